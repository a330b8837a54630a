"""Text, JSON and JSON lines from elsewhere: read right, or refused as what they are in one line that names the file."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from gr00t import file_reading
from gr00t.errors import ToolkitError
from gr00t.file_reading import parse_json, read_json, read_json_lines, read_text

WORDS = {"küche": "a\u2028b\u2029c\u0085d", "e\u0301": 1.5}  # NFC, NFD, and characters that end lines elsewhere
RECORDS = [{"task": text, "n": n} for n, text in enumerate(["a\u2028b", "c\u2029d", "e\u0085f", "g\x1fh", "ünï"])]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_json_is_read_whatever_a_windows_editor_puts_before_it(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(json.dumps(WORDS, ensure_ascii=False).encode(encoding))
    assert read_json(tmp_path / "a.json") == WORDS


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\r\n\r\n"])
@pytest.mark.parametrize("last", [True, False])
def test_lines_end_where_lines_of_json_end_and_nowhere_else(end: str, last: bool, tmp_path: Path) -> None:
    text = end.join(json.dumps(record, ensure_ascii=False) for record in RECORDS) + (end if last else "")
    (tmp_path / "a.jsonl").write_bytes(text.encode("utf-8-sig"))
    found = list(read_json_lines(tmp_path / "a.jsonl"))
    assert [record for _, record in found] == RECORDS
    assert found[0][0] == f"{tmp_path}/a.jsonl, line 1"


REFUSED = {
    "nested without end": (b"[" * 100_000, "nested without end"),
    "nested objects": (b'{"a":' * 5000 + b"1" + b"}" * 5000, "nested without end"),
    "deeper than any reader": (b'{"a":' + b"[" * 100 + b"]" * 100 + b"}", "nested without end"),
    "a number of many digits": (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
    "half of a character": (b'{"a": "\\ud800"}', "not valid JSON"),
    "zeros after a power failure": (bytes(1000), "not valid JSON"),
    "an image": (b"\x89PNG\r\n\x1a\n", "it is no text"),
    "half of UTF-16": (b"\xff\xfe{", "it is no text"),
    "cut off": (b'{"a": ', "not valid JSON"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_json_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    content, said = REFUSED[name]
    path = tmp_path / "info.json"
    path.write_bytes(content)
    for read in (read_json, lambda path: list(read_json_lines(path))):
        with pytest.raises(ToolkitError, match=said) as refused:
            read(path)
        assert str(path) in str(refused.value) and "\n" not in str(refused.value)


def test_what_other_programs_write_is_valid() -> None:
    assert parse_json("[" * 100 + "]" * 100, "here") is not None
    assert parse_json('"\\ud83d\\ude00"', "here") == "\N{GRINNING FACE}"
    assert parse_json("1000000000000000019884624838656", "here") == 1000000000000000019884624838656


@pytest.mark.parametrize("kind", ["a named pipe", "a socket", "a device", "a folder"])
def test_what_is_no_file_is_called_by_its_name_and_not_waited_for(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "info.json"
    listener = socket.socket(socket.AF_UNIX)
    {
        "a named pipe": lambda: os.mkfifo(path),
        "a socket": lambda: listener.bind(str(path)),
        "a device": lambda: path.symlink_to("/dev/zero"),
        "a folder": path.mkdir,
    }[kind]()
    with pytest.raises(ToolkitError, match=f"info.json is {kind}, where a file is expected. Remove it"):
        read_json(path)
    listener.close()


def test_a_file_that_is_not_there_or_leads_to_itself_says_so(tmp_path: Path) -> None:
    (tmp_path / "loop.json").symlink_to("loop.json")
    for name, said in (("none.json", "No such file"), ("loop.json", "symbolic links")):
        with pytest.raises(ToolkitError, match=rf"{name} cannot be read \(.*{said}.*\). Do this."):
            read_text(tmp_path / name, "Do this.")


def test_a_text_of_absurd_size_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_reading, "MOST_TEXT", 1000)
    (tmp_path / "a.json").write_text(json.dumps("x" * 998))
    assert parse_json(read_text(tmp_path / "a.json"), "here") == "x" * 998
    (tmp_path / "a.json").write_text(json.dumps("x" * 999))
    with pytest.raises(ToolkitError, match=r"texts above 1.0 kB are not"):
        read_text(tmp_path / "a.json")

"""What must never be published: keys, and what tells of this machine and its users. Every file is looked at."""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from getpass import getuser
from pathlib import Path

from safetensors import safe_open

from finetune.checkout import CHECKOUT, ROOT
from finetune.config.values import SECRET_NAME
from gr00t.errors import ToolkitError

_KEYS = {
    "a Hugging Face token": re.compile(r"\bhf_[A-Za-z0-9]{30,}"),
    "a wandb key": re.compile(r"\bwandb_v\d_[A-Za-z0-9_]{20,}"),
    "a GitHub token": re.compile(r"\b(?:gh[pousr]_|github_pat_)[A-Za-z0-9_]{30,}"),
    "an API key": re.compile(r"\bsk-[A-Za-z0-9_-]{20,}|\bAKIA[0-9A-Z]{16}\b"),
    "a private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
    "a login in an address": re.compile(r"://[\w.~%+-]+:[^\s/@\"'{}$]+@[\w.-]"),
    "a key or password": re.compile(
        r"(?i)(?:api[_-]?key|token|secret|passw(?:or)?d)[\"']?\s*[:=\s]\s*[\"']?"
        r"(?=[\w+/-]*\d)(?=[\w+/-]*[a-z])[\w+/-]{24,}"
    ),
}
_HOME = re.compile(r"(?<![\w.])(?:/home|/Users|[A-Za-z]:\\+Users\\)[/\\]*\w[^/\\\s\"'<>]*")
_ABSOLUTE = re.compile(r"(?<![\w.:/<>\\~$}-])/(?:[\w.+-]+/)+[\w.+-]+")
_VOCABULARY = ("tokenizer.json", "vocab.json", "merges.txt", "added_tokens.json")
_LEAST_SECRET = 8
_SHOWN = 8


@dataclass(frozen=True)
class Machine:
    """What tells of this machine: its folders, and those a run was given (absolute paths); names (login, host); the
    values of secret variables, with the variables' names."""

    folders: tuple[str, ...] = ()
    run_folders: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    secrets: dict[str, str] = field(default_factory=dict)

    @classmethod
    def here(cls, run_folders: Iterable[str] = ()) -> Machine:
        """This machine, and the folders that a run's own records name."""
        home, host = str(Path.home()), socket.gethostname()
        names = {host, host.split(".")[0], Path(home).name, _login()}
        secrets = {
            value: name
            for name, value in os.environ.items()
            if SECRET_NAME.search(name) and len(value.strip()) >= _LEAST_SECRET and not Path(value).is_absolute()
        }
        return cls(
            folders=(*_deep({str(CHECKOUT), str(ROOT), str(Path.cwd())} - {home}), home),
            run_folders=_deep(run_folders),
            names=tuple(sorted(name for name in names if len(name) > 2)),
            secrets=secrets,
        )


def _deep(folders: Iterable[str]) -> tuple[str, ...]:
    """Without those of one part, such as /data, which every second machine has."""
    return tuple(sorted(folder for folder in set(folders) if len(Path(folder).parts) > 2))


def _login() -> str:
    try:
        return getuser()
    except (OSError, KeyError):  # a user without a name, as in some containers
        return ""


@dataclass(frozen=True)
class Finding:
    """A line that must not be published. What stands there is not repeated."""

    place: str
    line: int
    what: str

    def __str__(self) -> str:
        return f"{self.place}:{self.line}: {self.what}"


def refuse_private(contents: Mapping[str, Path | str], machine: Machine) -> None:
    """Raise ToolkitError, naming file and line, where a file (or a text) of a release holds a key or tells of this
    machine. `contents`: by their place in the release."""
    found = list(find_private(contents, machine))
    if found:
        listed = "\n  ".join(map(str, found[:_SHOWN])) + (f"\n  and {len(found) - _SHOWN} more" * (len(found) > _SHOWN))
        raise ToolkitError(
            f"The release would hold what must not be published:\n  {listed}\n"
            "Take it out there, then start the same command again. A key that has been in a file is best replaced by a "
            "new one."
        )


def find_private(contents: Mapping[str, Path | str], machine: Machine) -> Iterator[Finding]:
    """Everything of that kind, file by file."""
    read = {place: _text(content) for place, content in sorted(contents.items())}
    texts = {place: text for place, text in read.items() if text is not None}
    code = set(re.findall(r"[\w-]+", "\n".join(text for place, text in texts.items() if not _of_run(place))))
    # A login such as "train" or "data" is a word of the toolkit as well and gives nobody away.
    names = [name for name in machine.names if not set(re.findall(r"[\w-]+", name)) <= code]
    for place, text in texts.items():
        patterns = [(what, p) for what, p in _patterns(place, machine, names) if p.search(text)]
        content = contents[place]
        for number, line in enumerate(text.splitlines(), start=1):
            for what, pattern in patterns:
                if pattern.search(line):
                    yield Finding(str(content) if isinstance(content, Path) else place, number, what)
                    break


def _of_run(place: str) -> bool:
    """Whether a file was made by a run, and not by the authors of the code."""
    return place.startswith("checkpoints/") or place == "README.md"


def _patterns(place: str, machine: Machine, names: list[str]) -> list[tuple[str, re.Pattern[str]]]:
    """What to look for in a file. A vocabulary holds words of all kinds, and pieces of paths among them."""
    secrets = [(f"the value of {name}", re.compile(re.escape(value))) for value, name in machine.secrets.items()]
    found = [*_KEYS.items(), *secrets]
    if Path(place).name in _VOCABULARY:
        return found
    folders = [*machine.folders, *(machine.run_folders if _of_run(place) else ())]
    found += [("a folder of this machine", _whole(folder)) for folder in folders] + [("a home folder", _HOME)]
    if _of_run(place):
        found += [("an absolute path", _ABSOLUTE), *(("a login or host name", _whole(name)) for name in names)]
    return found


def _whole(text: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![\w./-]){re.escape(text)}(?![\w-])")


def _text(content: Path | str) -> str | None:
    """A file's text, or what a weight file says of itself; None for pictures."""
    if isinstance(content, str):
        return content
    if content.suffix == ".safetensors":
        with safe_open(content, framework="pt") as shard:
            return json.dumps(shard.metadata() or {})
    read = content.read_bytes()
    return None if b"\0" in read else read.decode("utf-8", errors="replace")

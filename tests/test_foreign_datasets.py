"""Datasets from other machines: read right, or refused as what they are in one line that names the file."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import unicodedata
import zlib
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from damages import edit_lines, edit_meta, table_path, video_path

from conflict_panda_config import MODALITY_CONFIG
from gr00t.data.frame_tables import decode_image
from gr00t.data.layout import DatasetLayout, dataset_fingerprint
from gr00t.data.meta_files import numbered_tables
from gr00t.data.step_reader import StepReader
from gr00t.data.video import VideoReader
from gr00t.errors import ToolkitError
from gr00t.file_reading import check_size, open_table, read_columns

ROOT = Path(__file__).resolve().parents[1]
APPLE_DOUBLE = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        "


@pytest.fixture
def dataset(small_data: Path, tmp_path: Path) -> Path:
    """A copy of the train part, to be changed by the test."""
    return shutil.copytree(small_data / "color_object/train", tmp_path / "train", ignore=lambda *_: [".cache"])


def everything(root: Path) -> tuple[object, ...]:
    """What training sees of the first and the last episode."""
    reader = StepReader(root, MODALITY_CONFIG)
    steps = [reader.step(e.index, e.length - 1) for e in (reader.layout.episodes[0], reader.layout.episodes[-1])]
    values = [v.tobytes() for step in steps for of in (step.images, step.states, step.actions) for v in of.values()]
    return (*values, *(step.text for step in steps), reader.layout.train_episodes)


# -- read right --------------------------------------------------------------------------------------------------------


def save_as_windows_does(root: Path) -> None:
    for path in (root / "meta").iterdir():
        text = path.read_text().replace("\n", "\r\n")
        path.write_bytes(text.encode("utf-16" if path.name == "modality.json" else "utf-8-sig"))


def end_lines_as_old_macs_do(root: Path) -> None:
    for path in (root / "meta").glob("*.jsonl"):
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r"))


def copy_with_macos(root: Path) -> None:
    for path in [*root.rglob("*"), root / "meta/x"]:
        path.with_name(f"._{path.name}").write_bytes(APPLE_DOUBLE)
        path.with_name(".DS_Store").write_bytes(APPLE_DOUBLE)


def link_chunks(root: Path) -> None:
    for chunk in [*root.glob("data/chunk-*"), *root.glob("videos/chunk-*")]:
        away = root.parent / f"disk-{chunk.parent.name}"
        chunk.rename(away)
        chunk.symlink_to(away)
        (away / "back").symlink_to(root)


FROM_ELSEWHERE = {
    "saved on Windows": save_as_windows_does,
    "line ends of old Macs": end_lines_as_old_macs_do,
    "copied with macOS": copy_with_macos,
    "chunks that are links": link_chunks,
}


@pytest.mark.parametrize("name", FROM_ELSEWHERE)
def test_a_sound_dataset_from_elsewhere_reads_as_it_was(name: str, dataset: Path) -> None:
    before, fingerprint = everything(dataset), dataset_fingerprint(dataset, {})
    shutil.rmtree(dataset / ".cache")
    FROM_ELSEWHERE[name](dataset)
    assert everything(dataset) == before
    assert (dataset_fingerprint(dataset, {}) == fingerprint) is (name in ("copied with macOS", "chunks that are links"))


@pytest.mark.parametrize("on_disk", ["NFC", "NFD"])
@pytest.mark.parametrize("in_json", ["NFC", "NFD"])
def test_a_camera_of_any_name_is_found_in_both_of_its_spellings(on_disk: str, in_json: str, dataset: Path) -> None:
    name = "observation.images.küche\u2028厨"
    key = unicodedata.normalize(in_json, name)  # type: ignore[arg-type]
    for folder in dataset.glob("videos/*/observation.images.image"):
        folder.rename(folder.with_name(unicodedata.normalize(on_disk, name)))  # type: ignore[arg-type]
    edit_meta(dataset, "modality.json", lambda m: m["video"]["image"].update(original_key=key))
    assert len(everything(dataset)) > 4


def test_an_instruction_keeps_what_ends_lines_elsewhere(dataset: Path) -> None:
    text = "hebe\u2028den\x85Würfel\u2029auf"
    (dataset / "meta/tasks.jsonl").write_text(json.dumps({"task_index": 0, "task": text}, ensure_ascii=False) + "\r\n")
    assert DatasetLayout(dataset).tasks == {0: text}


def test_tables_of_v3_are_those_that_lerobot_wrote(tmp_path: Path) -> None:
    for name in ("file-10.parquet", "file-9.parquet", "._file-9.parquet", ".file-8.parquet"):
        (tmp_path / "data/chunk-000").mkdir(parents=True, exist_ok=True)
        (tmp_path / "data/chunk-000" / name).touch()
    assert [path.name for path in numbered_tables(tmp_path / "data")] == ["file-9.parquet", "file-10.parquet"]


# -- refused as what it is ---------------------------------------------------------------------------------------------


def in_place_of(path: Path, make: Callable[[Path], object]) -> None:
    path.unlink()
    make(path)


def template(value: str, key: str = "data_path") -> Callable[[Path], None]:
    return lambda root: edit_meta(root, "info.json", lambda info: info.update({key: value}))


def episode(**values: object) -> Callable[[Path], None]:
    return lambda root: edit_lines(root, "episodes.jsonl", lambda lines: lines[1].update(values))


def group(**values: object) -> Callable[[Path], None]:
    return lambda root: edit_meta(root, "modality.json", lambda m: m["action"]["arm"].update(values))


WHOLE = "must be a whole number from 0 to 2147483647"
REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "a wide number": (template("{episode_index:03000000000d}"), "data_path .*unknown format of {episode_index}"),
    "a wide text": (template("{video_key:>3000000000}", "video_path"), "video_path .*unknown format of {video_key}"),
    "a nested width": (template("{episode_index:{episode_index}}"), "unknown format of {episode_index}"),
    "an attribute": (template("{episode_index.__class__}"), "unknown field {episode_index.__class__}"),
    "an index": (template("{video_key[0]}", "video_path"), r"unknown field {video_key\[0\]}"),
    "a conversion": (template("{episode_index!r:>3d}"), "unknown format of {episode_index}"),
    "a mistyped field": (template("{episodeindex}"), 'unknown field {episodeindex}. Did you mean "episode_index"'),
    "an open brace": (template("{episode_index"), "data_path .* cannot be filled in"),
    "NUL": (template("data/\0{episode_index}"), "data_path .* cannot be filled in"),
    "a number as template": (template(3), "3"),  # type: ignore[arg-type]
    "a length of 2^31": (episode(length=2**31), f"episodes.jsonl: length is 2147483648; it {WHOLE}"),
    "a length beyond int64": (episode(length=10**400), f"episodes.jsonl: length is 1000.*{WHOLE}"),
    "an infinite length": (episode(length=float("inf")), f"episodes.jsonl: length is inf; it {WHOLE}"),
    "a length that is none": (episode(length=float("nan")), f"episodes.jsonl: length is nan; it {WHOLE}"),
    "a length in words": (episode(length="nine"), f"episodes.jsonl: length is 'nine'; it {WHOLE}"),
    "a list for an index": (episode(episode_index=[1]), f"episodes.jsonl: episode_index is .*{WHOLE}"),
    "a number of tasks": (episode(tasks=3), "episodes.jsonl: tasks is no list"),
    "a task beyond int64": (
        lambda r: edit_lines(r, "tasks.jsonl", lambda lines: lines[0].update(task_index=2**70)),
        f"tasks.jsonl: task_index is .*{WHOLE}",
    ),
    "held out in words": (
        lambda r: edit_meta(r, "split.json", lambda s: s.update(val_episodes="all")),
        "split.json: val_episodes is no list",
    ),
    "held out of 2^31": (
        lambda r: edit_meta(r, "split.json", lambda s: s.update(val_episodes=[2**31])),
        f"split.json: val_episodes is .*{WHOLE}",
    ),
    "a group of 2^31": (group(end=2**31), f"modality.json: action.arm.end is .*{WHOLE}"),
    "a group of nearly 2^31": (group(end=2**31 - 1), "modality.json: action .arm. ends at 2147483647"),
    "a group in words": (group(end="seven"), f"modality.json: action.arm.end is 'seven'; it {WHOLE}"),
    "a column that is none": (group(original_key=[1]), 'modality.json: action "arm" is not as GR00T writes it'),
    "a section that is none": (
        lambda r: edit_meta(r, "modality.json", lambda m: m.update(video=3)),
        'modality.json: video "image" is not as GR00T writes it',
    ),
    "info.json nested": (lambda r: (r / "meta/info.json").write_text("[" * 10**5), "info.json: not valid JSON"),
    "a pipe for info.json": (lambda r: in_place_of(r / "meta/info.json", os.mkfifo), "info.json is a named pipe"),
    "a pipe for episodes": (lambda r: in_place_of(r / "meta/episodes.jsonl", os.mkfifo), "jsonl is a named pipe"),
    "a pipe for a table": (lambda r: in_place_of(table_path(r, 1), os.mkfifo), "parquet is a named pipe"),
    "a folder for a table": (lambda r: in_place_of(table_path(r, 1), Path.mkdir), "parquet is a folder"),
    "a device for a table": (lambda r: in_place_of(table_path(r, 1), lambda p: p.symlink_to("/dev/zero")), "a device"),
    "a link to itself": (lambda r: in_place_of(table_path(r, 1), lambda p: p.symlink_to(p)), "parquet is missing"),
    "a pipe for a video": (lambda r: in_place_of(video_path(r, 1), os.mkfifo), "mp4 is a named pipe"),
    "cells of 2 GB": (lambda r: bomb(table_path(r, 1), "action"), "would be 2.4 GB or more in memory"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_in_one_line_that_names_it(name: str, dataset: Path) -> None:
    damage, said = REFUSED[name]
    damage(dataset)
    with pytest.raises(ToolkitError, match=said) as refused:
        everything(dataset)
    assert str(dataset) in str(refused.value) and "\n" not in str(refused.value)


def test_episodes_without_tables_are_refused_before_each_is_looked_for(dataset: Path) -> None:
    def list_more(lines: list[dict[str, object]]) -> None:
        lines += [{**lines[0], "episode_index": index} for index in range(len(lines), 2000)]

    edit_lines(dataset, "episodes.jsonl", list_more)
    with pytest.raises(ToolkitError, match=r"episodes.jsonl lists 2,000 episodes, but below data/ are \d+ tables"):
        StepReader(dataset, MODALITY_CONFIG)


# -- what unpacks to gigabytes -----------------------------------------------------------------------------------------


def bomb(path: Path, column: str) -> None:
    """600 rows that share one text of 4 MB, in a few kilobytes."""
    values = pa.DictionaryArray.from_arrays(pa.array([0] * 600, pa.int32()), pa.array(["x" * 4_000_000]))
    others = pq.read_schema(path).names if path.exists() else ["n"]
    pq.write_table(
        pa.table({**{name: range(600) for name in others}, column: values}),
        path,
        compression="zstd",
        store_schema=False,
    )


def test_a_table_is_measured_by_what_is_read_of_it(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    bomb(path, "x.y")
    assert path.stat().st_size < 20_000
    with open_table(path) as file:
        assert read_columns(file, path, ["n"]).num_rows == 600
        with pytest.raises(ToolkitError, match=r"a.parquet: \d+.\d kB on the disk would be 2.4 GB or more in memory"):
            check_size(file, path, ["n", "x.y"])


@pytest.mark.parametrize("nested", ["list", "struct"])
def test_shared_images_and_texts_of_usual_size_are_read(nested: str, tmp_path: Path) -> None:
    """10,000 rows share 40 kB: 400 MB at the most, were they not counted; and one megabyte is no bomb."""
    path, text = tmp_path / "a.parquet", b"\x89PNG" + b"x" * 40_000
    cells = [{"bytes": text if n == 0 else b"y", "path": "p"} for n in range(10_000)]
    values = pa.array([[cell["bytes"]] for cell in cells] if nested == "list" else cells)
    pq.write_table(pa.table({"images": values}), path, compression="zstd")
    with open_table(path) as file:
        assert read_columns(file, path, ["images"]).num_rows == 10_000


def test_numbers_are_counted_as_they_are_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"n": pa.array(np.zeros(40_000_000, np.int64))}), path, compression="zstd")
    with pytest.raises(ToolkitError, match=r"would be 320.0 MB or more in memory"), open_table(path) as file:
        read_columns(file, path, ["n"])


def png(width: int, height: int) -> bytes:
    """An image of one colour whose header is right and whose rows are few."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


IMAGES = {
    "100,000 x 100,000": (png(100_000, 100_000), "100000 x 100000 pixels, which no camera takes|decompression bomb"),
    "8,000 x 8,000": (png(8_000, 8_000), "8000 x 8000 pixels, which no camera takes"),
    "2^31 wide": (png(2**31 - 1, 1), "no image that can be decoded"),
    "cut off": (png(64, 64)[:60], "no image that can be decoded"),
    "PostScript": (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n",
        "no image that can be decoded",
    ),
}


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_that_no_camera_takes_is_refused(name: str, tmp_path: Path) -> None:
    content, said = IMAGES[name]
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ToolkitError, match=f"frame 3: .*({said})"):
        decode_image(tmp_path / "a.png", "frame 3")


@pytest.mark.parametrize("in_container", [True, False])
def test_a_video_of_absurd_size_is_refused_before_a_frame_is_decoded(in_container: bool, tmp_path: Path) -> None:
    path = tmp_path / "a.mov"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("png", rate=20)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "rgb24"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode(None))
    with VideoReader(path) as reader:
        assert reader.frames([0]).shape == (1, 16, 16, 3)
    content, most = path.read_bytes(), 8_000
    start = content.index(b"IHDR")
    header = b"IHDR" + struct.pack(">II", most, most) + content[start + 12 : start + 17]
    content = content[:start] + header + struct.pack(">I", zlib.crc32(header)) + content[start + 21 :]
    if in_container:
        content = content.replace(struct.pack(">HH", 16, 16), struct.pack(">HH", most, most))
    path.write_bytes(content)
    with pytest.raises(ToolkitError, match=r"a.mov: cannot be decoded \((Invalid|Arg)"), VideoReader(path) as reader:
        reader.frames([0])


# -- time and memory ---------------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("name", ["300,000 episodes", "cells of 2 GB", "a group of nearly 2^31", "a wide number"])
def test_the_doctor_says_so_within_ten_seconds_and_a_gigabyte_more(name: str, dataset: Path) -> None:
    script = (
        "import resource, sys, time; from data_prep.check import main\n"
        "from data_prep.doctor.examine import examine; from conflict_panda_config import MODALITY_CONFIG\n"
        "examine(sys.argv[1], MODALITY_CONFIG, fast=True)\n"
        "used = resource.getrusage(resource.RUSAGE_SELF)\n"
        "print(used.ru_utime + used.ru_stime, used.ru_maxrss / 1e6)\n"
    )

    def cost() -> tuple[float, float]:
        shutil.rmtree(dataset / ".cache", ignore_errors=True)
        done = subprocess.run([sys.executable, "-c", script, dataset], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        seconds, gigabytes = map(float, done.stdout.split())
        return seconds, gigabytes

    sound = cost()
    if name == "300,000 episodes":
        with (dataset / "meta/episodes.jsonl").open("a") as file:
            for index in range(1000, 300_000):
                file.write(json.dumps({"episode_index": index, "tasks": ["lift"], "length": 20}) + "\n")
    else:
        REFUSED[name][0](dataset)
    damaged = cost()
    assert damaged[0] < sound[0] + 10 and damaged[1] < sound[1] + 1, (sound, damaged)

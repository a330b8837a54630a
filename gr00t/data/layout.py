"""Where everything of one dataset folder lies (GR00T-flavoured LeRobot v2.x or v3.0): meta files, frame tables, videos.

v2.0 and v2.1 list episodes and tasks in JSON lines, one parquet and one mp4 an episode. v3.0 lists them in parquet
tables; data and videos are files of many episodes, and the tables say where each episode lies. Only `meta/` is read
here, so this is cheap; frame tables and videos are opened by others through the paths given here."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from gr00t.data.schema import look_up
from gr00t.errors import ToolkitError
from gr00t.file_replacement import file_sha256, parse_json

V2, V3 = ("v2.0", "v2.1"), "v3.0"
CODEBASE_VERSION = "v2.1"
FINGERPRINTED_SPLIT_KEYS = ("part", "instruction", "seed", "val_fraction", "val_episodes")
_ABSURD_WIDTH = re.compile(r"\d{4}[^{}]*}")  # {episode_index:01000000000d} would fill the memory
_INCOMPLETE = (
    "The file is not whole (LeRobot writes a table's end in `dataset.finalize()`): record, download or copy it again."
)


@dataclass(frozen=True)
class EpisodeInfo:
    """One episode: number of frames and the instructions that occur in it.

    `places` is where it lies in files that it shares (v3.0), in LeRobot's words: data/file_index,
    videos/<column>/chunk_index, videos/<column>/from_timestamp (seconds), and so on.
    """

    index: int
    length: int
    tasks: tuple[str, ...]
    places: Mapping[str, float] = field(default_factory=dict, hash=False)


class MetaFolder:
    """The files in `root`/meta. Raises ToolkitError for a missing or damaged one."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / "meta"

    def has(self, name: str) -> bool:
        """Whether the file exists."""
        return (self.folder / name).is_file()

    def json(self, name: str) -> dict[str, Any]:
        """The JSON object in a file."""
        value = parse_json(self._text(name), self.folder / name)
        if not isinstance(value, dict):
            raise ToolkitError(f"{self.folder / name}: expected a JSON object, found {type(value).__name__}.")
        return value

    def lines(self, name: str, *keys: str) -> list[dict[str, Any]]:
        """The objects in a file of JSON lines, each with these keys."""
        records = []
        for number, line in enumerate(self._text(name).splitlines(), start=1):
            if not line.strip():
                continue
            where = f"{self.folder / name}, line {number}"
            record = parse_json(line, where)
            missing = [key for key in keys if not isinstance(record, dict) or key not in record]
            if missing:
                raise ToolkitError(f"{where}: {', '.join(missing)} is missing; prepare the dataset again.")
            records.append(record)
        return records

    def table(self, path: Path, keys: Iterable[str], also: Callable[[str], bool]) -> list[dict[str, Any]]:
        """Rows of a parquet table: the columns `keys`, which must be there, and those whose name `also` takes."""
        import pyarrow as pa  # slow to load, and v2 datasets have no tables here
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(path) as file:
                names = file.schema_arrow.names
                missing = [key for key in keys if key not in names]
                if missing:
                    raise ToolkitError(f"{path}: the columns {', '.join(missing)} are missing. {_INCOMPLETE}")
                return file.read(columns=[name for name in names if name in keys or also(name)]).to_pylist()
        except (OSError, pa.ArrowException) as error:
            raise ToolkitError(f"{path} cannot be read ({error}). {_INCOMPLETE}") from error

    def _text(self, name: str) -> str:
        path = self.folder / name
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no text"
            hint = (
                " LeRobot's own datasets have no modality.json; this proposes one and writes it: "
                f"python -m data_prep.adopt dataset={self.root} write=true"
                if name == "modality.json"
                else ""
            )
            raise ToolkitError(f"{path}: cannot be read ({reason}).{hint}") from error


def read_tasks(meta: MetaFolder, version: str) -> dict[int, str]:
    """{task_index: instruction}."""
    if version != V3:
        return {int(t["task_index"]): str(t["task"]) for t in meta.lines("tasks.jsonl", "task_index", "task")}
    path = meta.folder / "tasks.parquet"
    found = {}
    for row in meta.table(path, ["task_index"], lambda name: True):
        # LeRobot stores the instruction as the table's index, under a name of pandas' choice.
        texts = [value for value in row.values() if isinstance(value, str)]
        if not texts:
            raise ToolkitError(f"{path}: task {row['task_index']} has no instruction. Write the tasks again.")
        found[int(row["task_index"])] = texts[0]
    return found


def read_episodes(meta: MetaFolder, version: str) -> list[EpisodeInfo]:
    """All episodes, sorted by index; none, one named twice and one without frames are refused."""
    episodes = []
    if version == V3:
        where = meta.folder / "episodes"
        files = by_number(where.glob("*/*.parquet"))
        if not files:
            raise ToolkitError(
                f"{where} holds no chunk-*/file-*.parquet, which lists the episodes of a LeRobot {V3} "
                "dataset. Download or copy it again."
            )
        wanted = ("tasks", "data/", "videos/")
        for path in files:
            for row in meta.table(path, ["episode_index", "length"], lambda name: name.startswith(wanted)):
                places = {n: v for n, v in row.items() if "/" in n and isinstance(v, int | float) and math.isfinite(v)}
                tasks = tuple(map(str, row.get("tasks") or []))
                episodes.append(EpisodeInfo(int(row["episode_index"]), int(row["length"]), tasks, places))
    else:
        where = meta.folder / "episodes.jsonl"
        for line in meta.lines("episodes.jsonl", "episode_index", "length"):
            tasks = tuple(map(str, line.get("tasks", [])))
            episodes.append(EpisodeInfo(int(line["episode_index"]), int(line["length"]), tasks))
    if not episodes:
        raise ToolkitError(f"{where} lists no episode; prepare the dataset again.")
    if len({e.index for e in episodes}) != len(episodes):
        raise ToolkitError(f"{where} names an episode twice; prepare the dataset again.")
    empty = [e.index for e in episodes if e.length < 1]
    if empty:
        raise ToolkitError(f"{where}: episode {empty[0]} has no frames; leave it out, or prepare the dataset again.")
    return sorted(episodes, key=lambda e: e.index)


def by_number(paths: Iterable[Path]) -> list[Path]:
    """Paths in the order of the numbers in them: file-999 before file-1000."""
    return sorted(paths, key=lambda p: [int(t) if t.isdigit() else t for t in re.split(r"(\d+)", p.as_posix())])


class DatasetLayout:
    """The meta data of the dataset at `root`, checked, and the paths that follow from it.

    Attributes: root; info (meta/info.json); version ("v2.0", "v2.1" or "v3.0"); fps (frames a second); chunks_size;
    modality (meta/modality.json); tasks ({task_index: instruction}); episodes (sorted by index); split
    (meta/split.json, {} where there is none).
    Raises ToolkitError for a missing folder or file, unreadable JSON, missing keys, or another LeRobot version.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise ToolkitError(
                f"{self.root}: no such dataset folder. Give the folder that holds meta/, data/ and videos/, "
                "or write it with prepare_conflict_data.py."
            )
        self.meta = MetaFolder(self.root)
        self.info = self.meta.json("info.json")
        self.version = str(self.info.get("codebase_version", CODEBASE_VERSION))
        if self.version not in (*V2, V3):
            raise ToolkitError(
                f"{self.root}: this is a LeRobot {self.version} dataset; {', '.join(V2)} and {V3} are read. Convert it "
                "with LeRobot, or prepare it with prepare_conflict_data.py."
            )
        self.fps = self._positive("fps", self._info("fps"))
        chunks_size = self._positive("chunks_size", self.info.get("chunks_size", 1000))
        self.chunks_size = int(chunks_size)
        if chunks_size != self.chunks_size:
            found = self.info["chunks_size"]
            raise ToolkitError(
                f"{self.root}/meta/info.json: chunks_size is {found}; it must be a whole number above 0."
            )
        self.modality: dict[str, dict[str, dict[str, Any]]] = self.meta.json("modality.json")
        self.tasks = read_tasks(self.meta, self.version)
        self.episodes = read_episodes(self.meta, self.version)
        self._by_index = {e.index: e for e in self.episodes}
        self.split = self.meta.json("split.json") if self.meta.has("split.json") else {}

    @property
    def cameras(self) -> list[str]:
        """The video keys of modality.json, e.g. ["image", "wrist_image"]."""
        return list(self.modality.get("video", {}))

    def frame_size(self, camera: str) -> list[int] | None:
        """[height, width] of a camera's frames, as info.json gives them; None where it does not."""
        features = self.info.get("features")
        feature = features.get(self.video_column(camera)) if isinstance(features, dict) else None
        names, shape = (feature.get(key) for key in ("names", "shape")) if isinstance(feature, dict) else (None, None)
        if not isinstance(names, list) or not isinstance(shape, list):
            return None
        sides = [size for side in ("height", "width") for name, size in zip(names, shape, strict=False) if name == side]
        return sides if len(sides) == 2 and all(isinstance(size, int) for size in sides) else None

    @property
    def val_episodes(self) -> list[int]:
        """Indices held out of training and statistics (empty for a dataset without meta/split.json)."""
        held_out = [int(i) for i in self.split.get("val_episodes", [])]
        for index in held_out:
            self.episode(index)
        return held_out

    @property
    def train_episodes(self) -> list[int]:
        """Indices of all episodes that are not held out."""
        held_out = set(self.val_episodes)
        return [e.index for e in self.episodes if e.index not in held_out]

    def episode(self, index: int) -> EpisodeInfo:
        """The episode of that index; an unknown one raises."""
        if index not in self._by_index:
            raise ToolkitError(
                f"{self.root}: there is no episode {index} in meta/episodes"
                f"{'' if self.version == V3 else '.jsonl'} ({len(self.episodes)})."
            )
        return self._by_index[index]

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the content: as recorded in meta/split.json, else computed (reads every file once)."""
        return str(self.split.get("fingerprint") or dataset_fingerprint(self.root, self.split))

    @cached_property
    def content(self) -> str:
        """Hash of the content as it is now, whatever was recorded (reads every file once): what caches are named by.

        Equal to the fingerprint of a dataset that nobody has edited since that was recorded.
        """
        found = dataset_fingerprint(self.root, self.split)
        elsewhere = sorted(set(self.files()) - set(_files(self.root)))
        digests = [found, *map(file_sha256, elsewhere)]
        return hashlib.sha256(json.dumps(digests).encode()).hexdigest() if elsewhere else found

    def training_digest(self, digest_of: Callable[[Path], str] = file_sha256) -> str:
        """Hash of what training reads, as it is now: meta files and frame tables in full, of videos name and size.

        Unlike the recorded fingerprint it notices files that were edited since, at the cost of reading the tables;
        `digest_of` may know their hashes already.
        """
        digest = hashlib.sha256()
        for path in _files(self.root):
            what = str(path.stat().st_size) if path.suffix == ".mp4" else digest_of(path)
            digest.update(f"{path.relative_to(self.root).as_posix()}\0{what}\n".encode())
        digest.update(json.dumps(self.val_episodes).encode())
        return digest.hexdigest()

    def files(self) -> list[Path]:
        """Every file of meta/, data/ and videos/ but meta/split.json, those behind linked folders too."""
        videos = [self.video_path(e.index, camera) for e in self.episodes for camera in self.cameras]
        named = {path for path in (*self.data_files(), *videos) if path.is_file()}
        return sorted({*_files(self.root), *named})

    def statistics(self) -> dict[str, Any]:
        """meta/stats.json: {column: {mean, std, min, max, q01, q99}}, lists of (D,)."""
        return self.meta.json("stats.json")

    def relative_statistics(self) -> dict[str, Any]:
        """meta/relative_stats.json: {action group: {stat: (H, dim) lists}}."""
        return self.meta.json("relative_stats.json")

    def parquet_path(self, episode: int) -> Path:
        """The frame table of one episode (the file may be missing; the path lies inside the folder).

        In v3.0 the table of many, as meta/episodes says; LeRobot's own converter may name the one before it there.
        """
        return self._path("data_path", episode, "data")

    def data_files(self) -> list[Path]:
        """Every frame table: one an episode, in order of their index, or (v3.0) all below data/, in order of number."""
        named = list(dict.fromkeys(self.parquet_path(e.index) for e in self.episodes))
        return named if self.version != V3 else by_number({*named, *(self.root / "data").glob("*/*.parquet")})

    def video_column(self, camera: str) -> str:
        """The dataset's own name of a camera, a key of modality.json's video section."""
        problem = f'{self.root}: no camera "{camera}" in meta/modality.json.'
        entry = look_up(self.modality.get("video", {}), camera, problem)
        return str(entry.get("original_key") or f"observation.images.{camera}")

    def video_path(self, episode: int, camera: str) -> Path:
        """The video of one episode, in v3.0 of many; `camera` is a key of modality.json's video section."""
        column = self.video_column(camera)
        return self._path("video_path", episode, f"videos/{column}", video_key=column)

    def video_start(self, episode: int, camera: str) -> float | None:
        """The second of the video at which the episode begins; None where the video holds that episode only."""
        if self.version != V3:
            return None
        return self._place(episode, f"videos/{self.video_column(camera)}/from_timestamp")

    def _place(self, episode: int, name: str) -> float:
        problem = f"{self.root}/meta/episodes: episode {episode} has no {name}."
        remedy = " Mend original_key in meta/modality.json, or download or copy the dataset again."
        return look_up(self.episode(episode).places, name, problem, remedy)

    def _path(self, template_key: str, episode: int, place: str, **names: str) -> Path:
        template = str(self._info(template_key))
        where = f'{self.root}/meta/info.json: {template_key} "{template[:200]}"'
        if "\0" in template or _ABSURD_WIDTH.search(template):
            raise ToolkitError(f"{where} is no path; put back what LeRobot {self.version} writes there.")
        numbers = {"episode_chunk": self.episode(episode).index // self.chunks_size, "episode_index": episode}
        if self.version == V3:
            numbers = {key: int(self._place(episode, f"{place}/{key}")) for key in ("chunk_index", "file_index")}
        try:
            relative = template.format(**numbers, **names)
        except (KeyError, IndexError, AttributeError, ValueError) as error:
            raise ToolkitError(
                f"{where} cannot be filled in ({error}); put back what LeRobot {self.version} writes there."
            ) from error
        normal = os.path.normpath(relative)
        # Lexical on purpose: links that the user has put inside the folder (a download cache) stay usable.
        if os.path.isabs(normal) or normal.split(os.sep)[0] == "..":
            raise ToolkitError(
                f'{self.root}/meta: the path "{relative}" (from {template_key} and modality.json) leaves the dataset '
                "folder; mend the template or do not use this dataset."
            )
        return self.root / normal

    def _info(self, key: str) -> Any:
        return look_up(self.info, key, f'{self.root}/meta/info.json: the key "{key}" is missing.')

    def _positive(self, key: str, value: Any) -> float:
        if not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise ToolkitError(f"{self.root}/meta/info.json: {key} is {value}; it must be a number above 0.")
        return float(value)


def file_hashes(root: Path) -> dict[str, str]:
    """{path below `root`: SHA-256} of every file of meta/, data/ and videos/ but meta/split.json."""
    return {path.relative_to(root).as_posix(): file_sha256(path) for path in _files(root)}


def dataset_fingerprint(root: Path, split: dict[str, Any], hashes: Mapping[str, str] | None = None) -> str:
    """Hash over every file of meta/, data/ and videos/ (names and content) and over what of `split` decides training.

    meta/split.json itself is left out: it carries the fingerprint, and the names of source files, which may move.
    hashes: what file_hashes gave, where the files have been read already.
    """
    digest = hashlib.sha256()
    for name, content in (file_hashes(root) if hashes is None else hashes).items():
        digest.update(f"{name}\0{content}\n".encode())
    deciding = {key: split[key] for key in FINGERPRINTED_SPLIT_KEYS if key in split}
    digest.update(json.dumps(deciding, sort_keys=True).encode())
    return digest.hexdigest()


def fingerprint_entries(root: Path, split: dict[str, Any]) -> dict[str, Any]:
    """What meta/split.json records of a dataset's content: its fingerprint, and the hash of each file of data/ and
    videos/, by which damage is distinguished from edited meta data, and named."""
    hashes = file_hashes(root)
    return {
        "fingerprint": dataset_fingerprint(root, split, hashes),
        "files": {name: content for name, content in hashes.items() if not name.startswith("meta/")},
    }


def _files(root: Path) -> list[Path]:
    whole = root.resolve()
    files = (p for part in ("meta", "data", "videos") for p in _below(root / part, frozenset([whole, *whole.parents])))
    return sorted((p for p in files if p != root / "meta" / "split.json"), key=lambda p: p.relative_to(root).as_posix())


def _below(path: Path, above: frozenset[Path]) -> Iterator[Path]:
    """Every file at or below a path, through linked folders too; `above`: folders that a link may lead back to."""
    if path.is_file():
        yield path
    elif path.is_dir() and (here := path.resolve()) not in above:
        for inside in path.iterdir():
            yield from _below(inside, above | {here})

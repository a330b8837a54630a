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
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from string import Formatter
from typing import Any

from gr00t.data.meta_files import (
    V3,
    EpisodeInfo,
    MetaFolder,
    as_list,
    by_number,
    named_episodes,
    numbered_tables,
    read_episodes,
    read_tasks,
    whole_number,
)
from gr00t.data.schema import look_up
from gr00t.errors import ToolkitError, did_you_mean
from gr00t.file_reading import files_below
from gr00t.file_replacement import file_sha256

V2 = ("v2.0", "v2.1")
CODEBASE_VERSION = "v2.1"
IMAGES = "images"  # the folder of images that lie beside the frame tables, which name them
FINGERPRINTED_SPLIT_KEYS = ("part", "instruction", "seed", "val_fraction", "val_episodes")
MANY_LOST = 500  # tables; fewer are named one by one
_VIDEO_PLACE = ("chunk_index", "file_index", "from_timestamp")
_WIDTH = re.compile(r"(0?\d{0,2}d)?")  # {episode_index:01000000000d} would fill the memory


@dataclass(frozen=True)
class SharedVideo:
    """An episode's place in a video of several: the second at which it begins, frames of those before it and of all of
    them by their lengths, and the episode before it (None for the first) with the second at which that one begins."""

    start: float
    before: int
    frames: int
    previous: EpisodeInfo | None
    previous_start: float


class DatasetLayout:
    """The meta data of the dataset at `root`, checked, and the paths that follow from it.

    Attributes: root; info (meta/info.json); version ("v2.0", "v2.1" or "v3.0"); fps (frames a second); chunks_size;
    modality (meta/modality.json); tasks ({task_index: instruction}); split (meta/split.json, {} where there is none);
    listed (all episodes, sorted by index); excluded (indices of those left out: by `exclude`, numbers and ranges as in
    [3, "40:60"], and by the list of that name in meta/split.json); episodes (the others).
    Raises ToolkitError for a missing folder or file, unreadable JSON, missing keys, another LeRobot version, or a left
    out episode that is not there.
    """

    def __init__(self, root: str | Path, exclude: Iterable[int | str] = ()) -> None:
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
        self.fps = positive(f"{self.root}/meta/info.json", "fps", self._info("fps"))
        chunks_size = positive(f"{self.root}/meta/info.json", "chunks_size", self.info.get("chunks_size", 1000))
        self.chunks_size = int(chunks_size)
        if chunks_size != self.chunks_size:
            found = self.info["chunks_size"]
            raise ToolkitError(
                f"{self.root}/meta/info.json: chunks_size is {found}; it must be a whole number above 0."
            )
        self.modality: dict[str, dict[str, dict[str, Any]]] = self.meta.json("modality.json")
        self.tasks = read_tasks(self.meta, self.version)
        self.listed = read_episodes(self.meta, self.version)
        self._by_index = {e.index: e for e in self.listed}
        self._orders: dict[str, dict[int, SharedVideo]] = {}
        self.split = self.meta.json("split.json") if self.meta.has("split.json") else {}
        self.excluded = self._excluded(exclude)
        self.episodes = [e for e in self.listed if e.index not in self.excluded]
        self.meta.refuse_empty(self.episodes)

    def _excluded(self, exclude: Iterable[int | str]) -> frozenset[int]:
        file, own = f"{self.root}/meta/split.json: exclude", self.split.get("exclude", [])
        if not isinstance(own, list):
            raise ToolkitError(f'{file} must be a list such as [3, "40:60"], not {str(own)[:80]!r}.')
        known = list(self._by_index)
        found = named_episodes(own, known, file) | named_episodes(exclude, known, f"dataset.exclude of {self.root}")
        return named_episodes(found, known, f"dataset.exclude and {file} together")

    @property
    def choice(self) -> str:
        """The part of a cache's name that stands for the excluded episodes; empty where there are none."""
        found = json.dumps(sorted(self.excluded)).encode()
        return hashlib.sha256(found).hexdigest()[:8] if self.excluded else ""

    @property
    def trains_fewer(self) -> bool:
        """Whether episodes are left out that would be trained on: recorded statistics count them."""
        return bool(self.excluded) and not self.excluded <= set(self.held_out)

    @property
    def cameras(self) -> list[str]:
        """The video keys of modality.json, e.g. ["image", "wrist_image"]."""
        return list(self.modality.get("video", {}))

    def frame_size(self, camera: str) -> list[int] | None:
        """[height, width] of a camera's frames, as info.json gives them; None where it does not."""
        names, shape = (self._feature(camera).get(key) for key in ("names", "shape"))
        if not isinstance(names, list) or not isinstance(shape, list):
            return None
        sides = [size for side in ("height", "width") for name, size in zip(names, shape, strict=False) if name == side]
        return sides if len(sides) == 2 and all(isinstance(size, int) for size in sides) else None

    @property
    def held_out(self) -> list[int]:
        """Indices that meta/split.json holds out, excluded ones among them; [] without that file."""
        where, key = self.meta.folder / "split.json", "val_episodes"
        found = [whole_number(i, where, key) for i in as_list(self.split.get(key, []), where, key)]
        for index in found:
            self.episode(index)
        return found

    @property
    def val_episodes(self) -> list[int]:
        """Indices held out of training and statistics, for evaluation."""
        return [index for index in self.held_out if index not in self.excluded]

    @property
    def train_episodes(self) -> list[int]:
        """Indices of all episodes that are neither held out nor excluded."""
        held_out = set(self.held_out)
        return [e.index for e in self.episodes if e.index not in held_out]

    def episode(self, index: int) -> EpisodeInfo:
        """The listed episode of that index; an unknown one raises."""
        if index not in self._by_index:
            raise ToolkitError(
                f"{self.root}: there is no episode {index} in meta/episodes"
                f"{'' if self.version == V3 else '.jsonl'} ({len(self.listed)})."
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
        digest.update(json.dumps(self.held_out).encode())
        return digest.hexdigest()

    def files(self) -> list[Path]:
        """Every file of meta/, data/ and videos/ but meta/split.json, those behind linked folders too; of images/ where
        frame tables may name them."""
        filmed = [camera for camera in self.cameras if not self.is_in_tables(camera)]
        videos = [self.video_path(e.index, camera) for e in self.episodes for camera in filmed]
        named = {path for path in (*self.data_files(), *videos) if path.is_file()}
        images = files_below(self.root / IMAGES) if len(filmed) < len(self.cameras) else ()
        return sorted({*_files(self.root), *named, *filter(Path.is_file, images)})

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
        return named if self.version != V3 else by_number({*named, *numbered_tables(self.root / "data")})

    def refuse_lost_tables(self) -> None:
        """Raise ToolkitError where hundreds of episodes have no table: to look for each of them takes minutes."""
        listed, there = len(self.episodes), sum(p.suffix == ".parquet" for p in files_below(self.root / "data"))
        if self.version != V3 and listed - there > max(MANY_LOST, there):
            raise ToolkitError(
                f"{self.meta.folder}/episodes.jsonl lists {listed:,} episodes, but below data/ are {there:,} tables. "
                "The copy is not whole, or the list is damaged: copy or prepare the dataset again."
            )

    def video_column(self, camera: str) -> str:
        """The dataset's own name of a camera, a key of modality.json's video section."""
        entry = self.entry("video", camera, f' has no camera "{camera}".')
        return str(entry.get("original_key") or f"observation.images.{camera}")

    def entry(self, section: str, name: str, problem: str) -> dict[str, Any]:
        """What meta/modality.json says of a name in one of its sections; where it is not there, `problem` says so."""
        where, entries = f"{self.root}/meta/modality.json", self.modality.get(section, {})
        found = look_up(entries, name, where + problem) if isinstance(entries, dict) else entries
        if not isinstance(found, dict) or not isinstance(found.get("original_key") or "", str):
            raise ToolkitError(f'{where}: {section} "{name}" is not as GR00T writes it. Mend or copy that file again.')
        return found

    def is_in_tables(self, camera: str) -> bool:
        """Whether the camera's images lie in cells of the frame tables (`dtype: image`), not in videos."""
        return self._feature(camera).get("dtype") == "image"

    def _feature(self, camera: str) -> dict[str, Any]:
        features = self.info.get("features")
        found = features.get(self.video_column(camera)) if isinstance(features, dict) else None
        return found if isinstance(found, dict) else {}

    def video_path(self, episode: int, camera: str) -> Path:
        """The video of one episode, in v3.0 of many; `camera` is a key of modality.json's video section."""
        column = self.video_column(camera)
        return self._path("video_path", episode, f"videos/{column}", video_key=column)

    def camera_path(self, episode: int, camera: str) -> Path:
        """The file that holds what a camera saw in an episode: a video, or the frame table with its images."""
        return self.parquet_path(episode) if self.is_in_tables(camera) else self.video_path(episode, camera)

    def shared_video(self, episode: int, camera: str) -> SharedVideo | None:
        """The episode's place among those in the same video file (v3.0); None where it holds that episode only."""
        if self.version != V3:
            return None
        column = f"videos/{self.video_column(camera)}"
        self._place(episode, f"{column}/from_timestamp")  # refused where it is not there
        if column not in self._orders:
            self._orders[column] = _video_orders(self.listed, column)
        return self._orders[column][episode]

    def _place(self, episode: int, name: str) -> float:
        problem = f"{self.root}/meta/episodes: episode {episode} has no {name}."
        remedy = " Mend original_key in meta/modality.json, or download or copy the dataset again."
        return look_up(self.episode(episode).places, name, problem, remedy)

    def _path(self, template_key: str, episode: int, place: str, **names: str) -> Path:
        template = str(self._info(template_key))
        where = f'{self.root}/meta/info.json: {template_key} "{template[:200]}"'
        numbers = {"episode_chunk": self.episode(episode).index // self.chunks_size, "episode_index": episode}
        if self.version == V3:
            numbers = {key: int(self._place(episode, f"{place}/{key}")) for key in ("chunk_index", "file_index")}
        problem = _template_problem(template, tuple(numbers), tuple(names))
        relative = "" if problem else template.format(**numbers, **names)
        if problem or "\0" in relative:
            raise ToolkitError(
                f"{where} cannot be filled in{problem}; put back what LeRobot {self.version} writes there."
            )
        normal = os.path.normpath(relative)
        # Lexical on purpose: links that the user has put inside the folder (a download cache) stay usable.
        if os.path.isabs(normal) or normal.split(os.sep)[0] == "..":
            raise ToolkitError(
                f'{self.root}/meta: the path "{relative}" (from {template_key} and modality.json) leaves the dataset '
                "folder; mend the template or do not use this dataset."
            )
        return self.root / normal if normal.isascii() else _in_some_form(self.root, normal)

    def _info(self, key: str) -> Any:
        return look_up(self.info, key, f'{self.root}/meta/info.json: the key "{key}" is missing.')


def positive(where: str, key: str, value: Any) -> float:
    """A number of meta/info.json; ToolkitError for what is no number above 0."""
    if not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise ToolkitError(f"{where}: {key} is {value}; it must be a number above 0.")
    return float(value)


@lru_cache
def _template_problem(template: str, numbers: tuple[str, ...], names: tuple[str, ...]) -> str:
    """What of a path template is more than these fields, numbers with a width of two digits; empty where nothing is."""
    try:
        fields = [(name, spec, how) for _, name, spec, how in Formatter().parse(template) if name is not None]
    except ValueError as error:
        return f" ({error})"
    for name, spec, how in fields:
        if name not in (*numbers, *names):
            return f" (unknown field {{{name[:80]}}}.{did_you_mean(name, (*numbers, *names))})"
        if how or not (_WIDTH.fullmatch(spec or "") if name in numbers else not spec):
            return f" (unknown format of {{{name}}})"
    return ""


def _in_some_form(root: Path, name: str) -> Path:
    """A path below `root`, of the forms in which Unicode spells it the one that is there; macOS may have changed it."""
    forms = [root / name, *(root / unicodedata.normalize(form, name) for form in ("NFC", "NFD"))]
    return next((path for path in forms if os.path.lexists(path)), forms[0])


def _video_orders(episodes: Iterable[EpisodeInfo], column: str) -> dict[int, SharedVideo]:
    """{episode: its place in its file}, in the order in which they begin there."""
    files: dict[tuple[float, ...], list[tuple[float, EpisodeInfo]]] = {}
    for e in episodes:
        chunk, file, start = (e.places.get(f"{column}/{key}", math.inf) for key in _VIDEO_PLACE)
        files.setdefault((chunk, file), []).append((start, e))
    found = {}
    for sharing in files.values():
        sharing.sort(key=lambda place: place[0])
        frames, before = sum(e.length for _, e in sharing), 0
        for (previous_start, previous), (start, e) in zip([(math.nan, None), *sharing], sharing, strict=False):
            found[e.index] = SharedVideo(start, before, frames, previous, previous_start)
            before += e.length
    return found


def file_hashes(root: Path) -> dict[str, str]:
    """{path below `root`: SHA-256} of every file of meta/, data/ and videos/ but meta/split.json."""
    return {path.relative_to(root).as_posix(): file_sha256(path) for path in _files(root)}


def dataset_fingerprint(root: Path, split: dict[str, Any], hashes: Mapping[str, str] | None = None) -> str:
    """Hash over every file of meta/, data/ and videos/ (names and content) and over what of `split` decides training.

    meta/split.json itself is left out: it carries the fingerprint, and the names of source files, which may move.
    hashes: what file_hashes gave, where the files have been read already.
    """
    digest = hashlib.sha256()
    for name, content in sorted((file_hashes(root) if hashes is None else hashes).items()):
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
    above = frozenset([whole, *whole.parents])
    files = {p for part in ("meta", "data", "videos") for p in files_below(root / part, above) if p.is_file()}
    return sorted(files - {root / "meta" / "split.json"}, key=lambda p: p.relative_to(root).as_posix())

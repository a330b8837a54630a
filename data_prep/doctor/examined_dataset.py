"""The dataset under examination, read as far as it can be: what is damaged is noted, and does not hide the rest.

What a video shows is measured while it is decoded once; no frame is kept but a few small ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa

from data_prep.doctor.findings import episodes, in_short
from data_prep.lerobot import SKETCH_SIDE, Columns, read_table, thumbnail
from gr00t.data.layout import V3, DatasetLayout, EpisodeInfo
from gr00t.data.schema import ModalityConfigs
from gr00t.data.statistics import COLUMNS, Statistics, Tail, relative_groups, relative_statistics
from gr00t.data.video import EpisodeVideo, VideoReader
from gr00t.errors import ToolkitError

SIDE = 16  # of a video's thumbnails
AT_ONCE = 64  # frames decoded in one piece
GLANCES = 8  # episodes whose first frame is decoded in the fast part
MEASURED = 200  # videos whose length is read in the fast part
THREADS = 4

Progress = Callable[[str, int, int], object]  # what is being done, how much of it is done, of how much
Series = dict[int, np.ndarray]  # episode: (T, D) float64
Pursuit = list[tuple[int, np.ndarray, np.ndarray]]  # (episode, state (T, D), action (T, D))


@dataclass(frozen=True)
class Footage:
    """Facts of one video of T frames. Where `problem` is set nothing else is; the rest of what is not measured is None.

    size: (height, width). first and mean: thumbnails (SIDE, SIDE, 3) of the first frame and of all; sketch: the
    smaller one that the converter records of the first frame. motion: mean absolute change between neighbouring frames
    (T-1,), of 255. leaps: change between the frames on both sides of each inner frame (T-2,). contrast: standard
    deviation over each frame (T,). unrest: median over the thumbnail's pixels of their deviation in time.
    """

    problem: str = ""
    length: int = 0
    fps: float = 0.0
    size: tuple[int, int] | None = None
    first: np.ndarray | None = None
    sketch: np.ndarray | None = None
    mean: np.ndarray | None = None
    motion: np.ndarray | None = None
    leaps: np.ndarray | None = None
    contrast: np.ndarray | None = None
    unrest: float | None = None


class Subject:
    """A dataset folder and everything the checks ask of it, read once and only when asked.

    refusal: why the folder cannot be read at all, empty where it can; `layout` and all that follows needs it empty.
    fast: of the videos only lengths and a few first frames are read.
    """

    def __init__(
        self,
        root: str | Path,
        configs: ModalityConfigs,
        *,
        fast: bool = False,
        progress: Progress = lambda what, done, total: None,
    ) -> None:
        self.root, self.configs, self.fast, self.progress = Path(root), configs, fast, progress
        self.name = self.root.name or self.root.resolve().name
        self.refusal = ""
        self._series: dict[tuple[str, str], Series] = {}
        self._relative: dict[Tail, dict[str, Statistics] | None] = {}
        try:
            self.layout = DatasetLayout(self.root)
        except ToolkitError as error:
            self.refusal = str(error)
        except Exception as error:
            self.refusal = f"{self.root}/meta holds a value of the wrong kind ({in_short(error)})."

    @cached_property
    def episodes(self) -> list[EpisodeInfo]:
        """The episodes that meta/ lists."""
        return self.layout.episodes

    def which(self, indices: Iterable[int]) -> str:
        """These episodes in words, for a finding's place: "episodes 1, 4" or "all 12 episodes"."""
        return episodes(list(indices), len(self.episodes))

    @cached_property
    def held_out(self) -> set[int]:
        """Episodes that meta/split.json keeps out of training, those that exist."""
        return {e.index for e in self.episodes} & set(self.listed_val)

    @cached_property
    def listed_val(self) -> list[int]:
        """What meta/split.json names as held out; [] where it is no list of numbers."""
        listed = self.layout.split.get("val_episodes", [])
        return [i for i in listed if isinstance(i, int)] if isinstance(listed, list) else []

    @cached_property
    def features(self) -> dict[str, dict[str, Any]]:
        """The features of meta/info.json, those that are objects."""
        features = self.layout.info.get("features")
        return {n: e for n, e in features.items() if isinstance(e, dict)} if isinstance(features, dict) else {}

    @cached_property
    def is_maniskill_panda(self) -> bool:
        """Whether data_prep.convert wrote it: joint order, units, gripper command and rate are known then."""
        return self.layout.info.get("robot_type") == "panda_wristcam"

    # -- frame tables --------------------------------------------------------------------------------------------------

    @cached_property
    def tables(self) -> dict[int, Columns | str]:
        """Columns of each episode's frame table, or why they cannot be read."""
        if self.layout.version == V3:
            return self._shared_tables()
        paths: dict[int, Path | str] = {}
        for e in self.episodes:
            try:
                paths[e.index] = self.layout.parquet_path(e.index)
            except ToolkitError as error:
                paths[e.index] = str(error)
        read = _read_tables(path for path in paths.values() if isinstance(path, Path))
        return {index: path if isinstance(path, str) else read[path] for index, path in paths.items()}

    def _shared_tables(self) -> dict[int, Columns | str]:
        """The same for LeRobot v3.0: rows say themselves which episode they are of (see gr00t.data.step_reader)."""
        try:
            tables = _read_tables(self.layout.data_files())
        except ToolkitError as error:
            return {e.index: str(error) for e in self.episodes}
        found: dict[int, Columns] = {}
        lost = next((table for table in tables.values() if isinstance(table, str)), "no frame table holds its rows.")
        for table in tables.values():
            if not isinstance(table, str) and "episode_index" in table:
                numbers = table["episode_index"]
                found |= {int(i): {n: v[numbers == i] for n, v in table.items()} for i in np.unique(numbers)}
        return {e.index: found.get(e.index, lost) for e in self.episodes}

    @cached_property
    def readable(self) -> dict[int, Columns]:
        """The tables that could be read."""
        return {index: table for index, table in self.tables.items() if not isinstance(table, str)}

    def column(self, name: str) -> dict[int, np.ndarray]:
        """{episode: values} of one column, where it is there."""
        return {index: table[name] for index, table in self.readable.items() if name in table}

    # -- groups of the modality configuration --------------------------------------------------------------------------

    def group_entry(self, modality: str, group: str) -> tuple[str, slice] | None:
        """(column, columns of it) of a state or action group; None where modality.json has no such, sound, entry."""
        entries = self.layout.modality.get(modality)
        entry = entries.get(group) if isinstance(entries, dict) else None
        if not isinstance(entry, dict):
            return None
        start, end = entry.get("start"), entry.get("end")
        if not isinstance(start, int) or not isinstance(end, int) or not 0 <= start < end:
            return None
        return str(entry.get("original_key") or COLUMNS[modality]), slice(start, end)

    def groups(self) -> list[tuple[str, str]]:
        """(modality, group) of every state and action group that the configuration names and the dataset has."""
        named = [(m, g) for m in ("state", "action") for g in self.configs[m].modality_keys]
        return [(m, g) for m, g in named if self.group_entry(m, g) is not None]

    @cached_property
    def group_columns(self) -> list[str]:
        """The columns that these groups are parts of, sorted."""
        return sorted({entry[0] for m, g in self.groups() if (entry := self.group_entry(m, g))})

    def series(self, modality: str, group: str) -> Series:
        """One group over each episode; without those whose column is missing, too narrow or not numeric."""
        if (modality, group) not in self._series:
            entry, found = self.group_entry(modality, group), {}
            if entry is not None:
                column, part = entry
                for index, values in self.column(column).items():
                    if values.dtype.kind in "fiu" and len(values) and matrix(values).shape[1] >= part.stop:
                        found[index] = matrix(values)[:, part].astype(np.float64)
            self._series[modality, group] = found
        return self._series[modality, group]

    @cached_property
    def pursuits(self) -> dict[str, Pursuit]:
        """{relative action group: (episode, state (T, D), action (T, D))}: targets beside what they are for."""
        found = {}
        for group, config in relative_groups(self.configs["action"]):
            states, actions = self.series("state", config.state_key or group), self.series("action", group)
            pairs = [(i, states[i], actions[i]) for i in actions if i in states]
            found[group] = [
                (i, s, a) for i, s, a in pairs if s.shape == a.shape and np.isfinite(s).all() and np.isfinite(a).all()
            ]
        return found

    @cached_property
    def motion_tables(self) -> Series:
        """{episode: every state and action value of its frames (T, D)}, where all are there and finite."""
        return self._joined(self.groups())

    @cached_property
    def state_tables(self) -> Series:
        """{episode: every state value of its frames (T, D)}, where all are there and finite."""
        return self._joined([(modality, group) for modality, group in self.groups() if modality == "state"])

    def _joined(self, groups: list[tuple[str, str]]) -> Series:
        series, found = [self.series(modality, group) for modality, group in groups], {}
        for index in self.readable if series else ():
            parts = [values[index] for values in series if index in values]
            if len(parts) == len(series) and len({len(part) for part in parts}) == 1:
                table = np.concatenate(parts, axis=1)
                if np.isfinite(table).all():
                    found[index] = table
        return found

    def fresh_relative(self, tail: Tail) -> dict[str, Statistics] | None:
        """Relative statistics as the training episodes give them now; None where they cannot be made."""
        if tail in self._relative:
            return self._relative[tail]
        self._relative[tail] = None
        columns = {m: entry[0] for m, g in self.groups() if (entry := self.group_entry(m, g))}
        if set(columns) == {"state", "action"}:
            states, actions = self.column(columns["state"]), self.column(columns["action"])
            used = [i for i in self.motion_tables if i not in self.held_out]
            with suppress(ToolkitError, ValueError, IndexError):
                self._relative[tail] = relative_statistics(
                    [states[i] for i in used], [actions[i] for i in used], self.layout.modality, self.configs, tail
                )
        return self._relative[tail]

    def dim_names(self, modality: str, group: str) -> list[str]:
        """Names of a group's dimensions, from meta/info.json where it lists them."""
        entry = self.group_entry(modality, group)
        assert entry is not None
        column, part = entry
        names = self.features.get(column, {}).get("names")
        if isinstance(names, list) and len(names) >= part.stop:
            return [str(name) for name in names[part]]
        width = part.stop - part.start
        return [group] if width == 1 else [f"{group} {d}" for d in range(width)]

    # -- videos --------------------------------------------------------------------------------------------------------

    @cached_property
    def cameras(self) -> list[str]:
        """Cameras of the configuration that modality.json has."""
        return [camera for camera in self.configs["video"].modality_keys if camera in self.layout.cameras]

    def video_path(self, episode: int, camera: str) -> Path | str:
        """Where a video lies, or why that cannot be said."""
        try:
            return self.layout.video_path(episode, camera)
        except (ToolkitError, AttributeError, TypeError) as error:
            return str(error)

    @cached_property
    def footage(self) -> dict[tuple[int, str], Footage]:
        """What the videos show: all of all of them, or in the fast part the length of some and a few first frames."""
        wanted = [e.index for e in self.episodes]
        if self.fast:
            wanted = evenly(wanted, max(1, MEASURED // max(1, len(self.cameras))))
        glanced = set(evenly(wanted, GLANCES))
        by_file: dict[Path | str, list[tuple[int, str]]] = {}
        for key in ((episode, camera) for episode in wanted for camera in self.cameras):
            by_file.setdefault(self.video_path(*key), []).append(key)
        with ThreadPoolExecutor(THREADS) as pool:
            found: dict[tuple[int, str], Footage] = {}
            for footage in pool.map(lambda file: self._look(file[0], file[1], glanced), by_file.items()):
                found |= footage
                self.progress(f"{self.name}: videos", len(found), len(wanted) * len(self.cameras))
            return found

    def footage_of(self, camera: str) -> dict[int, Footage]:
        """{episode: what the videos of one camera show}."""
        return {episode: footage for (episode, c), footage in self.footage.items() if c == camera}

    def _look(self, path: Path | str, keys: list[tuple[int, str]], glanced: set[int]) -> dict[tuple[int, str], Footage]:
        """What one video file shows: of one episode, in v3.0 of many."""
        if isinstance(path, str):
            return dict.fromkeys(keys, Footage(path))
        if not path.is_file() or not path.stat().st_size:
            return dict.fromkeys(keys, Footage(f"{path} is {'empty' if path.is_file() else 'missing'}."))
        with VideoReader(path) as reader:
            videos = {key: EpisodeVideo(self.layout, *key, reader) for key in keys}
            return {k: _glance(v, k[0] in glanced) if self.fast else _watch(v) for k, v in videos.items()}


def matrix(values: np.ndarray) -> np.ndarray:
    """(T, D); LeRobot stores a column of one dimension as (T,)."""
    return values.reshape(len(values), -1)


def evenly(items: Sequence[int] | range, count: int) -> list[int]:
    """At most `count` of the items, first and last among them."""
    if len(items) <= count:
        return list(items)
    if count < 1:
        return []
    return [items[i] for i in np.unique(np.linspace(0, len(items) - 1, count).round().astype(int))]


def _read_tables(paths: Iterable[Path]) -> dict[Path, Columns | str]:
    files = list(dict.fromkeys(paths))
    with ThreadPoolExecutor(THREADS) as pool:
        return dict(zip(files, pool.map(_read_table, files), strict=True))


def _read_table(path: Path) -> Columns | str:
    """The columns of one table, or why it cannot be read."""
    if not path.is_file():
        return f"{path} is missing."
    try:
        return read_table(path)
    except (OSError, ValueError, pa.ArrowException) as error:
        return f"{path} cannot be read ({' '.join(str(error).split())[:160]})."


# -- one video ---------------------------------------------------------------------------------------------------------


def _glance(video: EpisodeVideo, first_frame: bool) -> Footage:
    """Length and frame rate, which cost no decoding, and the first frame where asked for."""
    try:
        if not first_frame:
            return Footage(length=len(video), fps=video.reader.fps)
        frame = video.frames([0])[0]
        return Footage(
            "", len(video), video.reader.fps, frame.shape[:2], thumbnail(frame, SIDE), thumbnail(frame, SKETCH_SIDE)
        )
    except ToolkitError as error:
        return Footage(str(error))


def _watch(video: EpisodeVideo) -> Footage:
    """Decode every frame."""
    beginning: tuple[tuple[int, int], np.ndarray, np.ndarray] | None = None
    total, squares = np.zeros((SIDE, SIDE, 3)), np.zeros((SIDE, SIDE, 3))
    before: list[np.ndarray] = []  # the last two frames, grey and a quarter of the size
    motion, leaps, contrast = [], [], []
    try:
        for start in range(0, len(video), AT_ONCE):
            for frame in video.frames(range(start, min(start + AT_ONCE, len(video)))):
                small = thumbnail(frame, SIDE)
                grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY).astype(np.float32)
                # Blocks of 4x4 pixels average the codec's noise out and keep small motions.
                blocks = (frame.shape[1] // 4 or 1, frame.shape[0] // 4 or 1)
                grey = cv2.resize(grey, blocks, interpolation=cv2.INTER_AREA)
                if beginning is None:
                    beginning = frame.shape[:2], small, thumbnail(frame, SKETCH_SIDE)
                total += small
                squares += np.square(small, dtype=np.float64)
                contrast.append(float(frame.std()))
                if before:
                    motion.append(float(np.abs(grey - before[-1]).mean()))
                if len(before) == 2:
                    leaps.append(float(np.abs(grey - before[0]).mean()))
                before = [*before[-1:], grey]
        mean = total / len(video)
        deviation = np.sqrt(np.maximum(0.0, squares / len(video) - mean**2))
        size, first, sketch = beginning or (None, None, None)
        return Footage(
            length=len(video),
            fps=video.reader.fps,
            size=size,
            first=first,
            sketch=sketch,
            mean=mean.astype(np.float32),
            motion=np.array(motion),
            leaps=np.array(leaps),
            contrast=np.array(contrast),
            unrest=float(np.median(deviation)),
        )
    except ToolkitError as error:
        return Footage(str(error))

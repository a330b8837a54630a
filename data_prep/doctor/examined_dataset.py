"""The dataset under examination, read as far as it can be: what is damaged is noted, and does not hide the rest."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.doctor import PREPARE_AGAIN, Finding, Level, episodes, in_short, split_message
from data_prep.doctor.decoded_video import Footage, evenly, watch
from data_prep.lerobot import Columns, read_table, thumbnail
from gr00t.data.frame_tables import EpisodeImages, TableImages, matrix, open_camera, table_images
from gr00t.data.layout import V3, DatasetLayout
from gr00t.data.schema import ModalityConfigs
from gr00t.data.statistics import COLUMNS, Statistics, Tail, relative_groups, relative_statistics
from gr00t.data.video import EpisodeVideo
from gr00t.errors import ToolkitError

GLANCES = 8  # episodes whose first frame is decoded in the fast part
MEASURED = 200  # videos whose length is read in the fast part
THREADS = 4
ANCHORS = 200  # frames of an episode from which it is followed until the state has moved
MOVED = 0.1  # of the range of each dimension, on average: a motion that shows
LEAST = 0.03  # rad or m of one dimension, below which no camera shows it

Progress = Callable[[str, int, int], object]  # what is being done, how much of it is done, of how much
Series = dict[int, np.ndarray]  # episode: (T, D) float64
Pursuit = list[tuple[int, np.ndarray, np.ndarray]]  # (episode, state (T, D), action (T, D))


@dataclass(frozen=True)
class Group:
    """A state or action group of meta/modality.json, whose place in its column makes sense.

    part: which columns of `column`; dims: the dimensions' names, from meta/info.json where it lists them; series: the
    group over each episode, without those whose column is missing, too narrow or not numeric.
    """

    modality: str
    name: str
    column: str
    part: slice
    dims: list[str]
    series: Series

    @property
    def where(self) -> str:
        """How findings name it."""
        return f'{self.modality} "{self.name}"'

    @property
    def is_gripper(self) -> bool:
        """Whether it is called so."""
        return "gripper" in self.name.lower()


class Subject:
    """A dataset folder and everything the checks ask of it, read once and only when asked.

    refusal: why the folder cannot be read at all, empty where it can; all that follows needs it empty.
    lengths: frames of each episode that is not left out. listed_val: what of them meta/split.json names as held out,
    where that is a list of numbers; held_out: those that exist. features: those of meta/info.json that are objects.
    is_maniskill_panda: data_prep.convert wrote it, so joint order, units, gripper command and rate are known.
    fresh_relative: {action group: statistics} for a rule for start frames, as the training episodes give them now; {}
    where they cannot be made. video_path: where an episode's video, or the table with its images, lies, or why that is
    not known. fast: of the videos only lengths and a few first frames are read. probe: whether it is asked what the
    data teach; probed: what was found then, as plain JSON.
    """

    def __init__(
        self,
        root: str | Path,
        configs: ModalityConfigs,
        *,
        fast: bool = False,
        progress: Progress = lambda what, done, total: None,
        exclude: Iterable[int | str] = (),
    ) -> None:
        self.probe, self.probed = False, dict[str, Any]()
        self.root, self.configs, self.fast, self.progress = Path(root), configs, fast, progress
        self.name = self.root.name or self.root.resolve().name
        self.refusal = ""
        self.fresh_relative = cache(self._fresh_relative)
        self.video_path: Callable[[int, str], Path | str] = cache(lambda *place: _path(self.layout.camera_path, *place))
        try:
            self.layout = DatasetLayout(self.root, exclude)
            self.layout.refuse_lost_tables()
        except ToolkitError as error:
            self.refusal = str(error)
        except Exception as error:
            self.refusal = f"{self.root}/meta holds a value of the wrong kind ({in_short(error)})."
        else:
            self.lengths = {e.index: e.length for e in self.layout.episodes}
            listed = self.layout.split.get("val_episodes")
            numbers = {i for i in listed if isinstance(i, int)} if isinstance(listed, list) else set()
            self.listed_val = numbers - self.layout.excluded
            self.held_out = self.listed_val & set(self.lengths)
            self.features = _objects(self.layout.info.get("features"))
            self.is_maniskill_panda = self.layout.info.get("robot_type") == "panda_wristcam"

    def which(self, indices: Iterable[int]) -> str:
        """These episodes in words, for a finding's place: "episodes 1, 4" or "all 12 episodes"."""
        return episodes(list(indices), len(self.lengths))

    def about(
        self, level: Level, place: str, wrong: Mapping[int, str], remedy: str = PREPARE_AGAIN
    ) -> Iterator[Finding]:
        """One finding of the episodes of `wrong`, {episode: what is wrong with it}, in the words of the first.

        place: where in the dataset, before the episodes; empty where they say it all.
        """
        if wrong:
            where = f"{place}, {self.which(wrong)}" if place else self.which(wrong)
            yield level(where, next(iter(wrong.values())), remedy, episodes=tuple(wrong))

    # -- frame tables --------------------------------------------------------------------------------------------------

    @cached_property
    def tables(self) -> dict[int, Columns | str]:
        """Columns of each episode's frame table, or why they cannot be read."""
        if self.layout.version != V3:
            paths = [_path(self.layout.parquet_path, index) for index in self.lengths]
            return dict(zip(self.lengths, _read_tables(paths), strict=True))
        # in LeRobot v3.0 rows say themselves which episode they are of (see gr00t.data.step_reader)
        try:
            tables = _read_tables(self.layout.data_files())
        except ToolkitError as error:
            return dict.fromkeys(self.lengths, str(error))
        found: dict[int, Columns] = {}
        lost = next((table for table in tables if isinstance(table, str)), "no frame table holds its rows.")
        for table in tables:
            if not isinstance(table, str) and "episode_index" in table:
                numbers = table["episode_index"]
                found |= {int(i): {n: v[numbers == i] for n, v in table.items()} for i in np.unique(numbers)}
        return {index: found.get(index, lost) for index in self.lengths}

    @cached_property
    def readable(self) -> dict[int, Columns]:
        """The tables that could be read."""
        return {index: table for index, table in self.tables.items() if not isinstance(table, str)}

    def column(self, name: str) -> dict[int, np.ndarray]:
        """{episode: values} of one column, where it is there."""
        return {index: table[name] for index, table in self.readable.items() if name in table}

    # -- groups of states and actions ----------------------------------------------------------------------------------

    def entries(self, modality: str) -> Any:
        """A section of meta/modality.json, which should be an object."""
        return self.layout.modality.get(modality, {})

    @cached_property
    def all_groups(self) -> dict[tuple[str, str], Group]:
        """{(modality, name): state or action group}, of every entry of meta/modality.json that is sound."""
        found = {}
        for modality in ("state", "action"):
            for name, entry in _objects(self.entries(modality)).items():
                start, end = entry.get("start"), entry.get("end")
                if isinstance(start, int) and isinstance(end, int) and 0 <= start < end:
                    column = str(entry.get("original_key") or COLUMNS[modality])
                    found[modality, name] = self._group(modality, name, column, slice(start, end))
        return found

    def _group(self, modality: str, name: str, column: str, part: slice) -> Group:
        names, width = self.features.get(column, {}).get("names"), part.stop - part.start
        if isinstance(names, list) and len(names) >= part.stop:
            dims = [str(dim) for dim in names[part]]
        else:
            widest = max((matrix(v).shape[1] for v in self.column(column).values() if len(v)), default=0)
            dims = [name] if width == 1 else [f"{name} {d}" for d in range(min(width, widest))]
        series = {}
        for index, values in self.column(column).items():
            if values.dtype.kind in "fiu" and len(values) and matrix(values).shape[1] >= part.stop:
                series[index] = matrix(values)[:, part].astype(np.float64)
        return Group(modality, name, column, part, dims, series)

    @cached_property
    def groups(self) -> list[Group]:
        """Those of them that the modality configuration names, states first."""
        named = [(m, g) for m in ("state", "action") for g in self.configs[m].modality_keys]
        return [self.all_groups[key] for key in named if key in self.all_groups]

    @cached_property
    def group_columns(self) -> list[str]:
        """The columns that these groups are parts of, sorted."""
        return sorted({group.column for group in self.groups})

    def series(self, modality: str, name: str) -> Series:
        """One group over each episode; nothing where there is no such group."""
        group = self.all_groups.get((modality, name))
        return group.series if group else {}

    @cached_property
    def pursuits(self) -> dict[str, Pursuit]:
        """{relative action group: (episode, state (T, D), action (T, D))}: targets beside what they are for."""
        found = {}
        for name, config in relative_groups(self.configs["action"]):
            states, actions = self.series("state", config.state_key or name), self.series("action", name)
            pairs = [(i, states[i], actions[i]) for i in actions if i in states]
            found[name] = [
                (i, s, a) for i, s, a in pairs if s.shape == a.shape and np.isfinite(s).all() and np.isfinite(a).all()
            ]
        return found

    @cached_property
    def motion_tables(self) -> Series:
        """{episode: every state and action value of its frames (T, D)}, where all are there and finite."""
        return self._joined(self.groups)

    @cached_property
    def state_tables(self) -> Series:
        """{episode: every state value of its frames (T, D)}, where all are there and finite."""
        return self._joined([group for group in self.groups if group.modality == "state"])

    @cached_property
    def arm_tables(self) -> Series:
        """{episode: every state value of its frames but grippers' (T, D)}, where all are there and finite."""
        return self._joined([g for g in self.groups if g.modality == "state" and not g.is_gripper])

    @cached_property
    def action_tables(self) -> Series:
        """{episode: every action value of its frames but grippers' (T, D)}, where all are there and finite."""
        return self._joined([g for g in self.groups if g.modality == "action" and not g.is_gripper])

    @cached_property
    def journeys(self) -> dict[int, list[tuple[int, int]]]:
        """{episode: (frame, the first one until which the state has moved so far that images show it)}, for some
        frames; last from the first frame to the one farthest off. Grippers do not count."""
        tables = self.arm_tables
        if not tables:
            return {}
        joined = np.concatenate(list(tables.values()))
        low, high = np.percentile(joined, [2, 98], axis=0)
        unit = np.where(np.abs(joined).max(axis=0) > 2 * np.pi, 180 / np.pi, 1.0)  # degrees, or percent
        used = high > low
        spread = ((high - low) / unit)[used]
        found = {i: _journeys((t / unit)[:, used], spread) for i, t in tables.items()}
        return {i: journeys for i, journeys in found.items() if journeys}

    def _joined(self, groups: list[Group]) -> Series:
        found = {}
        for index in self.readable if groups else ():
            parts = [group.series[index] for group in groups if index in group.series]
            if len(parts) == len(groups) and len({len(part) for part in parts}) == 1:
                table = np.concatenate(parts, axis=1)
                if np.isfinite(table).all():
                    found[index] = table
        return found

    def _fresh_relative(self, tail: Tail) -> dict[str, Statistics]:
        packed, tables = dict[str, dict[str, dict[str, int]]](), list[Series]()
        for modality in ("state", "action"):  # groups may be of several columns: one behind the other
            groups = [group for group in self.groups if group.modality == modality]
            ends = np.cumsum([0, *(group.part.stop - group.part.start for group in groups)]).tolist()
            places = zip(groups, pairwise(ends), strict=True)
            packed[modality] = {group.name: {"start": start, "end": end} for group, (start, end) in places}
            tables.append(self._joined(groups))
        used = [i for i in self.motion_tables if i not in self.held_out]
        with suppress(ToolkitError, ValueError, LookupError):
            states, actions = ([of[i] for i in used] for of in tables)
            return relative_statistics(states, actions, packed, self.configs, tail)
        return {}

    # -- videos --------------------------------------------------------------------------------------------------------

    @cached_property
    def cameras(self) -> list[str]:
        """Cameras of the configuration that modality.json has."""
        return [camera for camera in self.configs["video"].modality_keys if camera in self.layout.cameras]

    def open_camera(self, episode: int, camera: str, reader: Any = None) -> EpisodeVideo | EpisodeImages:
        """What a camera saw in an episode; `reader` is shared by the episodes of a video."""
        return open_camera(self.layout, episode, camera, self.images.get(camera, reader))

    def thumbnails(self, episode: int, camera: str, frames: Sequence[int], side: int) -> np.ndarray:
        """(N, side, side, 3) float32 of 255: mean colours of fields of these frames; else ToolkitError."""
        with self.open_camera(episode, camera) as video:
            return np.stack([thumbnail(video.frames([frame])[0], side) for frame in frames])

    @cached_property
    def images(self) -> dict[str, TableImages]:
        """The cameras whose images lie in the frame tables."""
        return table_images(self.layout, self.cameras)

    @cached_property
    def footage(self) -> dict[tuple[int, str], Footage]:
        """What the videos show: all of all of them, or in the fast part the length of some and a few first frames."""
        most = max(1, MEASURED // max(1, len(self.cameras))) if self.fast else len(self.lengths)
        wanted = evenly(list(self.lengths), most)
        glanced = set(evenly(wanted, GLANCES))
        by_file: dict[tuple[Path | str, str], list[tuple[int, str]]] = defaultdict(list)
        for key in ((episode, camera) for episode in wanted for camera in self.cameras):
            by_file[self.video_path(*key), key[1]].append(key)
        found: dict[tuple[int, str], Footage] = {}
        with ThreadPoolExecutor(THREADS) as pool:
            for footage in pool.map(lambda file: self._look(file[0][0], file[1], glanced), by_file.items()):
                found |= footage
                self.progress(f"{self.name}: videos", len(found), len(wanted) * len(self.cameras))
            return found

    def filmed(self) -> Iterator[tuple[str, str, dict[int, Footage]]]:
        """(camera, how findings name its videos, {episode: what they show}) of every camera."""
        for camera in self.cameras:
            yield camera, f"videos/, {camera}", {i: seen for (i, c), seen in self.footage.items() if c == camera}

    def _look(self, path: Path | str, keys: list[tuple[int, str]], glanced: set[int]) -> dict[tuple[int, str], Footage]:
        """What one video file shows: of one episode, in v3.0 of many."""
        if isinstance(path, str):
            return dict.fromkeys(keys, Footage(path))
        if not path.is_file() or not path.stat().st_size:
            return dict.fromkeys(keys, Footage(f"{path} is {'empty' if path.is_file() else 'missing'}."))
        try:
            with self.open_camera(*keys[0]) as first:
                counts = {key: int(key[0] in glanced) if self.fast else None for key in keys}
                journeys = {} if self.fast else self.journeys
                return {
                    key: watch(self.open_camera(*key, first.reader), count, journeys.get(key[0], ()))
                    for key, count in counts.items()
                }
        except ToolkitError as error:
            return dict.fromkeys(keys, Footage(str(error)))


def _journeys(state: np.ndarray, spread: np.ndarray) -> list[tuple[int, int]]:
    found = []
    for start in evenly(range(len(state)), ANCHORS) if len(spread) else ():
        way = np.abs(state[start:] - state[start])
        arrived = ((way / spread).mean(axis=1) >= MOVED) & (way.max(axis=1) >= LEAST)
        if arrived.any():
            found.append((start, start + int(arrived.argmax())))
    return [*found, (0, int((np.abs(state - state[0]) / spread).mean(axis=1).argmax()))] if found else []


def listed_objects(subject: Subject, name: str) -> list[dict[str, Any]]:
    """The objects in a list of meta/split.json; none where it is no list."""
    entries = subject.layout.split.get(name)
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []


def _objects(value: Any) -> dict[str, dict[str, Any]]:
    """The entries of a JSON object that are objects themselves; none where it is no object."""
    return {n: e for n, e in value.items() if isinstance(e, dict)} if isinstance(value, dict) else {}


def _path(find: Callable[..., Path], *of: int | str) -> Path | str:
    """Where a file lies, or why that cannot be said."""
    try:
        return find(*of)
    except (ToolkitError, AttributeError, TypeError) as error:
        return str(error)


def _read_tables(paths: Iterable[Path | str]) -> list[Columns | str]:
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(_read_table, paths))


def _read_table(path: Path | str) -> Columns | str:
    """The columns of one table, or why it cannot be read."""
    if isinstance(path, str):
        return path
    if not path.exists():
        return f"{path} is missing."
    try:
        return read_table(path)
    except ToolkitError as error:
        return split_message(str(error))[0]

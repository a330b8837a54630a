"""The dataset under examination, read as far as it can be: what is damaged is noted, and does not hide the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.doctor.findings import in_short
from data_prep.doctor.footage import Footage, glance, not_there, watch
from gr00t.data.episode_video import EpisodeVideo
from gr00t.data.layout import DatasetLayout
from gr00t.data.meta import V3, EpisodeInfo
from gr00t.data.schema import ModalityConfigs
from gr00t.data.statistics import COLUMNS, Statistics, Tail, relative_groups, relative_statistics
from gr00t.data.video import VideoReader
from gr00t.errors import ToolkitError

Progress = Callable[[str, int, int], object]  # what is being done, how much of it is done, of how much
Columns = dict[str, np.ndarray]  # (T,) or (T, D) each
Series = dict[int, np.ndarray]  # episode: (T, D) float64
GLANCES = 8  # episodes whose first frame is decoded in the fast part
MEASURED = 200  # videos whose length is read in the fast part
THREADS = 4


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
        return self.layout.episodes

    @cached_property
    def held_out(self) -> set[int]:
        """Episodes that meta/split.json keeps out of training, those that exist."""
        known = {e.index for e in self.episodes}
        return {i for i in self.listed_val if i in known}

    @cached_property
    def listed_val(self) -> list[int]:
        """What meta/split.json names as held out; [] where it is no list of numbers."""
        listed = self.layout.split.get("val_episodes", [])
        return [i for i in listed if isinstance(i, int)] if isinstance(listed, list) else []

    # -- frame tables ----------------------------------------------------------------------------------------------

    @cached_property
    def tables(self) -> dict[int, Columns | str]:
        """Columns of each episode's frame table, or why they cannot be read."""
        if self.layout.version == V3:
            return self._shared_tables()
        paths = {e.index: self._parquet_path(e.index) for e in self.episodes}
        files = list(dict.fromkeys(paths.values()))
        with ThreadPoolExecutor(THREADS) as pool:
            read = dict(zip(files, pool.map(_read_table, files), strict=True))
        return {index: read[path] for index, path in paths.items()}

    def _shared_tables(self) -> dict[int, Columns | str]:
        """The same for LeRobot v3.0: rows say themselves which episode they are of (see gr00t.data.tables)."""
        try:
            files = self.layout.data_files()
        except ToolkitError as error:
            return {e.index: str(error) for e in self.episodes}
        with ThreadPoolExecutor(THREADS) as pool:
            read = dict(zip(files, pool.map(_read_table, files), strict=True))
        found: dict[int, Columns | str] = {}
        for table in read.values():
            numbers = None if isinstance(table, str) else table.get("episode_index")
            if numbers is not None and not isinstance(table, str):
                found |= {int(i): {n: v[numbers == i] for n, v in table.items()} for i in np.unique(numbers)}
        lost = next((table for table in read.values() if isinstance(table, str)), "no frame table holds its rows.")
        return {e.index: found.get(e.index, lost) for e in self.episodes}

    def _parquet_path(self, episode: int) -> Path | str:
        try:
            return self.layout.parquet_path(episode)
        except ToolkitError as error:
            return str(error)

    @cached_property
    def readable(self) -> dict[int, Columns]:
        """The tables that could be read."""
        return {index: table for index, table in self.tables.items() if not isinstance(table, str)}

    def column(self, name: str) -> dict[int, np.ndarray]:
        """{episode: values} of one column, where it is there."""
        return {index: table[name] for index, table in self.readable.items() if name in table}

    # -- groups of the modality configuration -----------------------------------------------------------------------

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

    def series(self, modality: str, group: str) -> Series:
        """One group over each episode; without those whose column is missing, too narrow or not numeric."""
        if (modality, group) not in self._series:
            self._series[modality, group] = self._cut_out(modality, group)
        return self._series[modality, group]

    def _cut_out(self, modality: str, group: str) -> Series:
        entry = self.group_entry(modality, group)
        if entry is None:
            return {}
        column, part = entry
        return {
            index: matrix(values)[:, part].astype(np.float64)
            for index, values in self.column(column).items()
            if values.dtype.kind in "fiu" and len(values) and matrix(values).shape[1] >= part.stop
        }

    def groups(self) -> list[tuple[str, str]]:
        """(modality, group) of every state and action group that the configuration names and the dataset has."""
        named = [(m, g) for m in ("state", "action") for g in self.configs[m].modality_keys]
        return [(m, g) for m, g in named if self.group_entry(m, g) is not None]

    @cached_property
    def pursuits(self) -> dict[str, list[tuple[int, np.ndarray, np.ndarray]]]:
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
    def motion_tables(self) -> dict[int, np.ndarray]:
        """{episode: every state and action value of its frames (T, D)}, where all are there and finite."""
        return self._joined(self.groups())

    @cached_property
    def state_tables(self) -> dict[int, np.ndarray]:
        """{episode: every state value of its frames (T, D)}, where all are there and finite."""
        return self._joined([(modality, group) for modality, group in self.groups() if modality == "state"])

    def _joined(self, groups: list[tuple[str, str]]) -> dict[int, np.ndarray]:
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
        if tail not in self._relative:
            self._relative[tail] = self._make_relative(tail)
        return self._relative[tail]

    def _make_relative(self, tail: Tail) -> dict[str, Statistics] | None:
        columns = {m: entry[0] for m, g in self.groups() if (entry := self.group_entry(m, g))}
        if set(columns) != {"state", "action"}:
            return None
        states, actions = self.column(columns["state"]), self.column(columns["action"])
        used = [i for i in self.motion_tables if i not in self.held_out]
        try:
            return relative_statistics(
                [states[i] for i in used], [actions[i] for i in used], self.layout.modality, self.configs, tail
            )
        except (ToolkitError, ValueError, IndexError):
            return None

    def dim_names(self, modality: str, group: str) -> list[str]:
        """Names of a group's dimensions, from meta/info.json where it lists them."""
        entry = self.group_entry(modality, group)
        assert entry is not None
        column, part = entry
        names = self.feature(column).get("names")
        if isinstance(names, list) and len(names) >= part.stop:
            return [str(name) for name in names[part]]
        width = part.stop - part.start
        return [group] if width == 1 else [f"{group} {d}" for d in range(width)]

    def feature(self, column: str) -> dict[str, Any]:
        """The entry of meta/info.json's features, {} where there is none."""
        features = self.layout.info.get("features")
        entry = features.get(column) if isinstance(features, dict) else None
        return entry if isinstance(entry, dict) else {}

    @cached_property
    def is_maniskill_panda(self) -> bool:
        """Whether data_prep.convert wrote it: joint order, units, gripper command and rate are known then."""
        return self.layout.info.get("robot_type") == "panda_wristcam"

    # -- videos ----------------------------------------------------------------------------------------------------

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

    def _look(self, path: Path | str, keys: list[tuple[int, str]], glanced: set[int]) -> dict[tuple[int, str], Footage]:
        """What one video file shows: of one episode, in v3.0 of many."""
        problem = path if isinstance(path, str) else not_there(path)
        if problem or isinstance(path, str):
            return dict.fromkeys(keys, Footage(problem))
        with VideoReader(path) as reader:
            videos = {key: EpisodeVideo(self.layout, *key, reader) for key in keys}
            return {k: glance(v, k[0] in glanced) if self.fast else watch(v) for k, v in videos.items()}


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


def _read_table(path: Path | str) -> Columns | str:
    if isinstance(path, str):
        return path
    if not path.is_file():
        return f"{path} is missing."
    try:
        with pq.ParquetFile(path) as file:
            names = [field.name for field in file.schema_arrow if _is_plain(field.type)]
            table = file.read(columns=names, use_threads=False)
        return {name: _to_numpy(table.column(name).combine_chunks(), name) for name in names}
    except (OSError, ValueError, pa.ArrowException) as error:
        return f"{path} cannot be read ({' '.join(str(error).split())[:160]})."


def _is_plain(kind: pa.DataType) -> bool:
    """Numbers, texts and lists of numbers; pictures stored in the table are not looked at."""
    if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind) or pa.types.is_large_list(kind):
        return _is_number(kind.value_type)
    return _is_number(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind))


def _to_numpy(column: pa.Array, name: str) -> np.ndarray:
    """(T,) or (T, D); empty cells of numbers become NaN. Rows of several widths raise ValueError."""
    if isinstance(column, pa.ChunkedArray):
        column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    if not (pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type)):
        return column.to_numpy(zero_copy_only=False)
    if column.null_count:
        raise ValueError(f'column "{name}" has empty cells')
    flat = column.flatten().to_numpy(zero_copy_only=False)
    if pa.types.is_list(column.type):
        widths = np.unique(np.diff(column.offsets.to_numpy()))
        if len(widths) > 1:
            raise ValueError(f'column "{name}" has rows of {widths.min()} to {widths.max()} values')
    return flat.reshape(len(column), -1)

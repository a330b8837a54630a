"""A dataset's meta/ folder: JSON, JSON lines (v2.x) and parquet tables (v3.0), episodes and instructions."""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gr00t.errors import ToolkitError
from gr00t.file_reading import open_table, read_columns, read_json, read_json_lines

V3 = "v3.0"
UNBOUNDED = 10**9  # numbers of episodes have fewer digits
_EPISODES = re.compile(r"([0-9]{1,9})|([0-9]{0,9}):([0-9]{0,9})")
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
        return read_json(self.folder / name, self._remedy(name))

    def lines(self, name: str, *keys: str) -> list[dict[str, Any]]:
        """The objects in a file of JSON lines, each with these keys."""
        records = []
        for where, record in read_json_lines(self.folder / name, self._remedy(name)):
            missing = [key for key in keys if not isinstance(record, dict) or key not in record]
            if missing:
                raise ToolkitError(f"{where}: {', '.join(missing)} is missing; prepare the dataset again.")
            records.append(record)
        return records

    def table(self, path: Path, keys: Iterable[str], also: Callable[[str], bool]) -> list[dict[str, Any]]:
        """Rows of a parquet table: the columns `keys`, which must be there, and those whose name `also` takes."""
        with open_table(path, _INCOMPLETE) as file:
            names = file.schema_arrow.names
            missing = [key for key in keys if key not in names]
            if missing:
                raise ToolkitError(f"{path}: the columns {', '.join(missing)} are missing. {_INCOMPLETE}")
            return read_columns(file, path, [name for name in names if name in keys or also(name)]).to_pylist()

    def refuse_empty(self, episodes: Iterable[EpisodeInfo]) -> None:
        """Raise ToolkitError for episodes without frames."""
        if empty := [e.index for e in episodes if e.length < 1]:
            raise ToolkitError(
                f"{self.folder}/episodes: episode {empty[0]} has no frames; leave it out, "
                f"dataset.exclude={as_typed(empty)}, or prepare the dataset again."
            )

    def _remedy(self, name: str) -> str:
        if name != "modality.json":
            return "Copy or prepare the dataset again."
        return (
            "LeRobot's own datasets have no modality.json; this proposes one and writes it: "
            f"python -m data_prep.adopt dataset={self.root} write=true"
        )


def read_tasks(meta: MetaFolder, version: str) -> dict[int, str]:
    """{task_index: instruction}."""
    path = meta.folder / ("tasks.parquet" if version == V3 else "tasks.jsonl")
    if version == V3:
        rows = meta.table(path, ["task_index"], lambda name: True)
        name = _task_column(path, rows)
    else:
        rows, name = meta.lines(path.name, "task_index", "task"), "task"
    found: dict[int, str] = {}
    for row in rows:
        text, number = row[name], whole_number(row["task_index"], path, "task_index")
        if not isinstance(text, str):
            raise ToolkitError(f"{path}: task {number} has no instruction. Write the tasks again.")
        if found.setdefault(number, text) != text:
            raise ToolkitError(
                f'{path}: task {number} is "{found[number]}" and "{text}". Give each instruction an index of its own, '
                "there and in the frame tables, or prepare the dataset again."
            )
    return found


def _task_column(path: Path, rows: list[dict[str, Any]]) -> str:
    """The column of the instructions: "task", else the index under a name of pandas' choice, else the only text."""
    texts = [name for name in (rows[0] if rows else {}) if any(isinstance(row[name], str) for row in rows)]
    chosen = [name for name in ("task", "__index_level_0__") if name in texts] or texts
    if not chosen:
        number = rows[0]["task_index"] if rows else 0
        raise ToolkitError(f"{path}: task {number} has no instruction. Write the tasks again.")
    if len(chosen) > 1 and chosen[0] not in ("task", "__index_level_0__"):
        raise ToolkitError(
            f'{path}: which of the columns {", ".join(chosen)} holds the instructions? Name it "task", or remove the '
            "others."
        )
    return chosen[0]


def read_episodes(meta: MetaFolder, version: str) -> list[EpisodeInfo]:
    """All episodes, sorted by index; none, and one named twice are refused."""
    episodes = []
    if version == V3:
        where = meta.folder / "episodes"
        files = numbered_tables(where)
        if not files:
            raise ToolkitError(
                f"{where} holds no chunk-*/file-*.parquet, which lists the episodes of a LeRobot {V3} "
                "dataset. Download or copy it again."
            )
        wanted = ("tasks", "data/", "videos/")
        for path in files:
            for row in meta.table(path, ["episode_index", "length"], lambda name: name.startswith(wanted)):
                places = {n: v for n, v in row.items() if "/" in n and isinstance(v, int | float) and math.isfinite(v)}
                episodes.append(_episode(row, path, places))
    else:
        where = meta.folder / "episodes.jsonl"
        for line in meta.lines("episodes.jsonl", "episode_index", "length"):
            episodes.append(_episode(line, where, {}))
    if not episodes:
        raise ToolkitError(f"{where} lists no episode; prepare the dataset again.")
    if len({e.index for e in episodes}) != len(episodes):
        raise ToolkitError(f"{where} names an episode twice; prepare the dataset again.")
    return sorted(episodes, key=lambda e: e.index)


def episode_range(entry: object, where: str) -> range:
    """The numbers that 3, "40:60", "40:" or ":5" means, ends as in Python. Raises ToolkitError for anything else."""
    found = None if isinstance(entry, bool) else _EPISODES.fullmatch(str(entry))
    if not found:
        raise ToolkitError(
            f"{where}: {str(entry)[:80]!r} is neither the number of an episode nor a range of them; write "
            '[3,17,"40:60"], where "40:60" ends with 59 and "40:" with the last.'
        )
    one, first, end = found.groups()
    return range(int(one), int(one) + 1) if one else range(int(first or 0), int(end) if end else UNBOUNDED)


def named_episodes(entries: Iterable[object], known: Sequence[int], where: str) -> frozenset[int]:
    """The episodes of `known` (sorted) that entries name. Raises ToolkitError for one that is not there, for a range
    that holds none or ends behind the last, and where none would be left."""
    found: set[int] = set()
    there = f"There are {as_typed(known)[1:-1]}"
    for entry in entries:
        numbers = episode_range(entry, where)
        inside = known[bisect_left(known, numbers.start) : bisect_left(known, numbers.stop)]
        if not inside or known[-1] + 1 < numbers.stop < UNBOUNDED:
            raise ToolkitError(
                f"{where}: there is no episode {entry}, or not all of them. {there} (a range ends before its last "
                "number; in a file, put ranges in quotes)."
            )
        found.update(inside)
    if len(found) == len(known):
        raise ToolkitError(f"{where} leaves no episode. {there}; name fewer.")
    return frozenset(found)


def in_ranges(indices: Iterable[int]) -> list[int | str]:
    """Episodes as the shortest list that `named_episodes` reads: [3, "40:60"]."""
    runs: list[list[int]] = []
    for index in sorted(set(indices)):
        if runs and runs[-1][1] == index:
            runs[-1][1] += 1
        else:
            runs.append([index, index + 1])
    return [first if end == first + 1 else f"{first}:{end}" for first, end in runs]


def as_typed(indices: Iterable[int]) -> str:
    """The ranges of `in_ranges` as a command line takes them, without quotes: [3,40:60]."""
    return f"[{','.join(map(str, in_ranges(indices)))}]"


def _episode(row: dict[str, Any], where: Path, places: dict[str, float]) -> EpisodeInfo:
    index, length = (whole_number(row[key], where, key) for key in ("episode_index", "length"))
    return EpisodeInfo(index, length, tuple(map(str, as_list(row.get("tasks") or [], where, "tasks"))), places)


def whole_number(value: Any, where: Path, key: str) -> int:
    """A count or index as meta files hold it: 0 to 2^31 - 1, in whatever way it is written; else ToolkitError."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 2**31 or value % 1:
        problem = f"{where}: {key} is {repr(value)[:40]}; it must be a whole number from 0 to {2**31 - 1}."
        raise ToolkitError(f"{problem} Mend it, or copy or prepare the dataset again.")
    return int(value)


def as_list(value: Any, where: Path, key: str) -> list[Any]:
    """A list in a meta file, or ToolkitError."""
    if not isinstance(value, list):
        raise ToolkitError(f"{where}: {key} is no list. Mend it, or copy or prepare the dataset again.")
    return value


def numbered_tables(folder: Path) -> list[Path]:
    """LeRobot v3.0's tables chunk-*/file-*.parquet in the order of their numbers; not what macOS writes beside them."""
    return by_number(path for path in folder.glob("*/*.parquet") if not path.name.startswith("."))


def by_number(paths: Iterable[Path]) -> list[Path]:
    """Paths in the order of the numbers in them: file-999 before file-1000."""
    return sorted(paths, key=lambda p: [int(t) if t.isdigit() else t for t in re.split(r"(\d+)", p.as_posix())])

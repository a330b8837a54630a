"""meta/ of a LeRobot dataset: its files with errors that name them, and its episodes and tasks in every version.

v2.0 and v2.1 list episodes and tasks in JSON lines, one parquet and one mp4 an episode. v3.0 lists them in parquet
tables; data and videos are files of many episodes, and the tables say where each episode lies.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gr00t.errors import ToolkitError
from gr00t.files import parse_json

V2, V3 = ("v2.0", "v2.1"), "v3.0"
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
        return (self.folder / name).is_file()

    def json(self, name: str) -> dict[str, Any]:
        """A JSON object."""
        value = parse_json(self._text(name), self.folder / name)
        if not isinstance(value, dict):
            raise ToolkitError(f"{self.folder / name}: expected a JSON object, found {type(value).__name__}.")
        return value

    def lines(self, name: str, *keys: str) -> list[dict[str, Any]]:
        """JSON lines, each with these keys."""
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
    episodes = _episodes_v3(meta) if version == V3 else _episodes_v2(meta)
    where = meta.folder / ("episodes" if version == V3 else "episodes.jsonl")
    if not episodes:
        raise ToolkitError(f"{where} lists no episode; prepare the dataset again.")
    if len({e.index for e in episodes}) != len(episodes):
        raise ToolkitError(f"{where} names an episode twice; prepare the dataset again.")
    empty = [e.index for e in episodes if e.length < 1]
    if empty:
        raise ToolkitError(f"{where}: episode {empty[0]} has no frames; leave it out, or prepare the dataset again.")
    return sorted(episodes, key=lambda e: e.index)


def _episodes_v2(meta: MetaFolder) -> list[EpisodeInfo]:
    lines = meta.lines("episodes.jsonl", "episode_index", "length")
    return [EpisodeInfo(int(e["episode_index"]), int(e["length"]), tuple(map(str, e.get("tasks", [])))) for e in lines]


def _episodes_v3(meta: MetaFolder) -> list[EpisodeInfo]:
    files = by_number((meta.folder / "episodes").glob("*/*.parquet"))
    if not files:
        raise ToolkitError(
            f"{meta.folder}/episodes holds no chunk-*/file-*.parquet, which lists the episodes of a LeRobot {V3} "
            "dataset. Download or copy it again."
        )
    episodes = []
    for path in files:
        for row in meta.table(path, ["episode_index", "length"], lambda n: n.startswith(("tasks", "data/", "videos/"))):
            places = {n: v for n, v in row.items() if "/" in n and isinstance(v, int | float) and math.isfinite(v)}
            tasks = tuple(map(str, row.get("tasks") or []))
            episodes.append(EpisodeInfo(int(row["episode_index"]), int(row["length"]), tasks, places))
    return episodes


def by_number(paths: Iterable[Path]) -> list[Path]:
    """Paths in the order of the numbers in them: file-999 before file-1000."""
    return sorted(paths, key=lambda p: [int(t) if t.isdigit() else t for t in re.split(r"(\d+)", p.as_posix())])

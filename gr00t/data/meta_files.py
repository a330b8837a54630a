"""A dataset's meta/ folder: JSON, JSON lines (v2.x) and parquet tables (v3.0), episodes and instructions."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gr00t.errors import ToolkitError
from gr00t.file_reading import read_json, read_json_lines

V3 = "v3.0"
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
            problem = str(error).partition(". ")[0]  # what follows is pyarrow's guess at a remedy
            raise ToolkitError(f"{path} cannot be read ({problem}). {_INCOMPLETE}") from error

    def _remedy(self, name: str) -> str:
        if name != "modality.json":
            return "Copy or prepare the dataset again."
        return (
            "LeRobot's own datasets have no modality.json; this proposes one and writes it: "
            f"python -m data_prep.adopt dataset={self.root} write=true"
        )


def read_tasks(meta: MetaFolder, version: str) -> dict[int, str]:
    """{task_index: instruction}."""
    if version != V3:
        return {int(t["task_index"]): str(t["task"]) for t in meta.lines("tasks.jsonl", "task_index", "task")}
    path = meta.folder / "tasks.parquet"
    rows = meta.table(path, ["task_index"], lambda name: True)
    name = _task_column(path, rows)
    for row in rows:
        if not isinstance(row[name], str):
            raise ToolkitError(f"{path}: task {row['task_index']} has no instruction. Write the tasks again.")
    return {int(row["task_index"]): row[name] for row in rows}


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

"""The frame tables of a dataset (parquet), memory-mapped through Hugging Face `datasets`."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa

from gr00t.checksums import files_digest, make_once, unsound, write_checksum
from gr00t.data.layout import DatasetLayout
from gr00t.errors import ToolkitError, did_you_mean
from gr00t.files import disk_errors, whole_folder

CACHE_FOLDER = ".cache"
EPISODE = "episode_index"


class FrameTables:
    """Columns of all episodes, one row a frame; `digest` is the hash of the parquet files' content.

    The parquet files are converted once to Arrow (in `.cache/` of the dataset folder, or of the temporary folder
    where the dataset is read-only) and mapped into memory; processes of one machine share the pages. The copy is named
    by their content, and checked whenever it is opened; a damaged one is made again.
    """

    def __init__(self, layout: DatasetLayout, columns: list[str]) -> None:
        self.root = layout.root
        self.digest = _digest(layout)
        table = _load(layout, columns, self.digest)
        promised = sum(e.length for e in layout.episodes)
        if table.num_rows != promised:
            raise ToolkitError(
                f"{self.root}: the frame tables hold {table.num_rows} rows, meta/episodes promises {promised}. "
                "Prepare the dataset again."
            )
        self._columns = {name: _to_numpy(table, name, layout.root) for name in dict.fromkeys([*columns, EPISODE])}
        self._span = _spans(layout, self._columns[EPISODE])

    def rows(self, column: str, episode: int, frames: np.ndarray) -> np.ndarray:
        """Values (len(frames), ...) of `column` at frame numbers within an episode."""
        start, end = self._span[episode]
        if len(frames) and (frames.min() < 0 or frames.max() >= end - start):
            raise IndexError(f"episode {episode} has {end - start} frames, not {frames.max() + 1}")
        return self._columns[column][start + frames]

    def episode(self, column: str, episode: int) -> np.ndarray:
        """All values (T, ...) of an episode, a view into the mapped file."""
        start, end = self._span[episode]
        return self._columns[column][start:end]


def _spans(layout: DatasetLayout, numbers: np.ndarray) -> dict[int, tuple[int, int]]:
    """{episode: (first row, one past the last)} from the column of episode indices (rows,).

    Where rows lie is read from the rows: in LeRobot v3.0 files hold many episodes, and its own converter may write the
    wrong file into meta/episodes.
    """
    starts = np.flatnonzero(np.diff(numbers, prepend=numbers[0] - 1))
    ends = np.append(starts[1:], len(numbers))
    found = {int(numbers[start]): (int(start), int(end)) for start, end in zip(starts, ends, strict=True)}
    for e in layout.episodes:
        start, end = found.get(e.index, (0, 0))
        if end - start != e.length or len(starts) != len(found):
            raise ToolkitError(
                f"{layout.parquet_path(e.index)}: the episode_index column does not say {e.index} in {e.length} rows "
                "that follow each other. Prepare the dataset again."
            )
    return found


def _load(layout: DatasetLayout, columns: list[str], digest: str) -> datasets.Dataset:
    cache = cache_folder(layout.root)
    copy = cache / f"tables-{digest[:16]}"
    make_once(copy, f"the Arrow copy of {layout.root}", lambda: _is_whole(copy), lambda: _copy(layout, copy))
    table = datasets.concatenate_datasets([datasets.Dataset.from_file(str(path)) for path in _parts(copy)])
    for name in [*columns, EPISODE]:
        if name not in table.column_names:
            raise ToolkitError(f'{layout.root}/data: no column "{name}".{did_you_mean(name, table.column_names)}')
    return table


def _digest(layout: DatasetLayout) -> str:
    paths = layout.data_files()
    for path in paths:
        if not path.is_file():
            raise ToolkitError(f"{path} is missing. Prepare the dataset again.")
    return files_digest(paths)


def _parts(copy: Path) -> list[Path]:
    return sorted(copy.glob("part-*.arrow"))


def _is_whole(copy: Path) -> bool:
    parts = _parts(copy)
    return bool(parts) and parts[-1].name == _part_name(len(parts) - 1, len(parts)) and not unsound(parts, copy.name)


def _part_name(number: int, count: int) -> str:
    return f"part-{number:05d}-of-{count:05d}.arrow"


def _copy(layout: DatasetLayout, copy: Path) -> None:
    """Write the copy through `datasets`, then remove those of what the tables held before.

    What `datasets` keeps by itself is found again by path and time, which files that were restored may share.
    """
    with whole_folder(copy, lock=False) as aside:
        made = _converted(layout, aside / "datasets")
        for number, path in enumerate(made):
            path.rename(aside / _part_name(number, len(made)))
            write_checksum(aside / _part_name(number, len(made)), copy.name)
        shutil.rmtree(aside / "datasets")
    for other in copy.parent.glob("tables-*"):
        if other != copy:
            shutil.rmtree(other, ignore_errors=True)


def _converted(layout: DatasetLayout, folder: Path) -> list[Path]:
    """The Arrow files of all rows, in their order."""
    paths = [str(path) for path in layout.data_files()]
    had_bars = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        table = datasets.Dataset.from_parquet(paths, cache_dir=str(folder))
    except Exception as error:  # datasets wraps what pyarrow says in many types
        if (disk := _disk_error(error)) is not None:
            raise disk from error
        raise ToolkitError(f"{layout.root}/data cannot be read ({error}). Prepare the dataset again.") from error
    finally:
        if had_bars:
            datasets.enable_progress_bars()
    assert isinstance(table, datasets.Dataset)
    return [Path(file["filename"]) for file in table.cache_files]


def _disk_error(error: BaseException | None) -> OSError | None:
    """What the disk said when a copy could not be written; None for anything else."""
    while error is not None:
        if isinstance(error, OSError) and error.errno:
            return error
        if "Not enough disk space" in str(error):  # of `datasets`, ahead of writing
            return OSError(errno.ENOSPC, str(error))
        error = error.__cause__ or error.__context__
    return None


def cache_folder(root: Path) -> Path:
    """The folder of what is made from a dataset: beside it, or below the temporary folder where it is read-only."""
    beside = root / CACHE_FOLDER
    place = beside if beside.is_dir() else root
    # the mode besides: the superuser may write where nobody is meant to
    if os.access(place, os.W_OK) and root.stat().st_mode & 0o222:
        return beside
    folder = Path(tempfile.gettempdir()) / f"groot-tables-{os.getuid()}"
    with disk_errors(folder, "Set TMPDIR to a folder with room."):
        folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise ToolkitError(f"{folder} belongs to another user. Remove it, or set TMPDIR to a folder of your own.")
    return folder / hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]


def _to_numpy(table: datasets.Dataset, name: str, root: Path) -> np.ndarray:
    """(rows,) or (rows, D); without a copy where the mapped column is one piece."""
    pieces = []
    for chunk in table.data.column(name).chunks:
        if chunk.null_count:
            raise ToolkitError(f'{root}/data: column "{name}" has empty cells. Prepare the dataset again.')
        if pa.types.is_list(chunk.type) or pa.types.is_fixed_size_list(chunk.type):
            flat = chunk.flatten().to_numpy(zero_copy_only=False)
            if len(chunk) and flat.size % len(chunk):
                raise ToolkitError(f'{root}/data: column "{name}" has rows of several widths. Prepare it again.')
            pieces.append(flat.reshape(len(chunk), -1))
        else:
            pieces.append(chunk.to_numpy(zero_copy_only=False))
    try:
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
    except ValueError:
        raise ToolkitError(f'{root}/data: column "{name}" has rows of several widths.') from None

"""The frame tables of a dataset (parquet), memory-mapped through Hugging Face `datasets`."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa

from gr00t.data.layout import DatasetLayout
from gr00t.errors import ToolkitError, did_you_mean
from gr00t.files import disk_refusal

CACHE_FOLDER = ".cache"
EPISODE = "episode_index"


class FrameTables:
    """Columns of all episodes, one row a frame.

    The parquet files are converted once to Arrow (in `.cache/` of the dataset folder, or of the temporary folder
    where the dataset is read-only) and mapped into memory; processes of one machine share the pages.
    """

    def __init__(self, layout: DatasetLayout, columns: list[str]) -> None:
        self.root = layout.root
        table = _load(layout, columns)
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


def _load(layout: DatasetLayout, columns: list[str]) -> datasets.Dataset:
    paths = layout.data_files()
    for path in paths:
        if not path.is_file():
            raise ToolkitError(f"{path} is missing. Prepare the dataset again.")
    had_bars = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        table = datasets.Dataset.from_parquet([str(p) for p in paths], cache_dir=str(cache_folder(layout.root)))
    except Exception as error:  # datasets wraps what pyarrow says in many types
        if refusal := disk_refusal(error, layout.root):
            remedy = "Frame tables are copied to .cache/ beside them, below TMPDIR where the dataset is read-only."
            raise ToolkitError(f"{refusal} {remedy}") from error
        raise ToolkitError(f"{layout.root}/data cannot be read ({error}). Prepare the dataset again.") from error
    finally:
        if had_bars:
            datasets.enable_progress_bars()
    assert isinstance(table, datasets.Dataset)
    for name in [*columns, EPISODE]:
        if name not in table.column_names:
            raise ToolkitError(f'{layout.root}/data: no column "{name}".{did_you_mean(name, table.column_names)}')
    return table


def cache_folder(root: Path) -> Path:
    """The folder of what is made from a dataset: beside it, or below the temporary folder where it is read-only."""
    # the mode besides: the superuser may write where nobody is meant to
    if os.access(root, os.W_OK) and root.stat().st_mode & 0o222:
        return root / CACHE_FOLDER
    folder = Path(tempfile.gettempdir()) / f"groot-tables-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise ToolkitError(f"{folder} belongs to another user. Remove it, or set TMPDIR to a folder of your own.")
    return folder


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

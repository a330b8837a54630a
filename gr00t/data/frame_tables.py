"""A dataset's frame tables (parquet), memory-mapped through Hugging Face `datasets`, and images stored in them."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from PIL import Image

from gr00t.data.layout import IMAGES, V3, DatasetLayout
from gr00t.data.schema import look_up
from gr00t.data.video import MOST_PIXELS, EpisodeVideo, VideoReader
from gr00t.errors import ToolkitError, disk_errors, is_disk_error
from gr00t.file_reading import check_size, open_table, refuse_foreign, refuse_special
from gr00t.file_replacement import files_digest, make_once, unsound, whole_folder, write_checksum

CACHE_FOLDER = ".cache"
EPISODE = "episode_index"
PARTS = "part-*.arrow"
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")  # others may start programs (EPS), or fetch what they name


class FrameTables:
    """Columns of all episodes, one row a frame; `digest` is the hash of the parquet files' content.

    The parquet files are converted once to Arrow (in `.cache/` of the dataset folder, or of the temporary folder
    where the dataset is read-only) and mapped into memory; processes of one machine share the pages. The copy is named
    by their content, and checked whenever it is opened; a damaged one is made again. With `images` the cells of the
    columns are kept as they are, in a copy of their own. A `digest` that is known already is not computed again.
    """

    def __init__(self, layout: DatasetLayout, columns: list[str], *, images: bool = False, digest: str = "") -> None:
        root, paths = layout.root, layout.data_files()
        for path in paths:
            if not path.exists():
                raise ToolkitError(f"{path} is missing. Prepare the dataset again.")
            refuse_foreign(path)
        self.digest = digest or files_digest(paths)
        names = sorted({*columns, EPISODE})
        read = hashlib.sha256("\0".join([self.digest, *names]).encode()).hexdigest()
        # by a hash, since the name of a column is the dataset's: it may be no name of a file
        kind = f"images_{hashlib.sha256(columns[0].encode()).hexdigest()[:8]}" if images else "tables"
        if layout.version != V3:  # other files, and another run may read its own choice of them now
            kind += f"_{layout.choice}" if layout.choice else ""
        if not images:  # and its own columns, by another robot's file
            kind += f"-{hashlib.sha256(chr(0).join(names).encode()).hexdigest()[:8]}_"
        copy = cache_folder(root) / f"{kind}{'-' if images else ''}{read[:16]}"
        make_once(copy, f"the Arrow copy of {root}", lambda: _is_whole(copy), lambda: _copy(layout, copy, names))
        parts = sorted(copy.glob(PARTS))
        table = datasets.concatenate_datasets([datasets.Dataset.from_file(str(part)) for part in parts])
        self._columns: dict[str, Any] = {
            name: table.data.column(name) if images and name != EPISODE else _to_numpy(table, name, root)
            for name in names
        }
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

    def cells(self, column: str, episode: int, frames: Sequence[int]) -> list[Any]:
        """What the cells of an image column hold at frame numbers within an episode."""
        start, _ = self._span[episode]
        return [self._columns[column][start + int(frame)].as_py() for frame in frames]


def _spans(layout: DatasetLayout, numbers: np.ndarray) -> dict[int, tuple[int, int]]:
    """{episode: (first row, one past the last)} from the column of episode indices (rows,), which may hold others.

    Where rows lie is read from the rows: in LeRobot v3.0 files hold many episodes, and its own converter may write the
    wrong file into meta/episodes.
    """
    starts = np.flatnonzero(np.diff(numbers, prepend=numbers[0] - 1))
    ends = np.append(starts[1:], len(numbers))
    found = {int(numbers[start]): (int(start), int(end)) for start, end in zip(starts, ends, strict=True)}
    parts = Counter(map(int, numbers[starts]))
    for e in layout.episodes:
        start, end = found.get(e.index, (0, 0))
        if end - start != e.length or parts[e.index] > 1:
            raise ToolkitError(
                f"{layout.parquet_path(e.index)}: the episode_index column does not say {e.index} in {e.length} rows "
                "that follow each other. Prepare the dataset again."
            )
    return found


def _is_whole(copy: Path) -> bool:
    parts = sorted(copy.glob(PARTS))
    return bool(parts) and parts[-1].name == _part_name(len(parts) - 1, len(parts)) and not unsound(parts, copy.name)


def _part_name(number: int, count: int) -> str:
    return f"part-{number:05d}-of-{count:05d}.arrow"


def _copy(layout: DatasetLayout, copy: Path, columns: list[str]) -> None:
    """Write these columns as Arrow files, rows in their order, then remove the copies of what the tables held before.

    Columns that nobody reads may differ between the files, and may be large.

    What `datasets` keeps by itself is found again by path and time, which files that were restored may share.
    """
    paths = layout.data_files()
    for path in paths:
        with open_table(path) as file:
            there = dict.fromkeys(file.schema_arrow.names)
            for name in columns:
                look_up(there, name, f'{path}: no column "{name}".')
            check_size(file, path, columns)
    with whole_folder(copy, lock=False) as aside:
        had_bars = datasets.is_progress_bar_enabled()
        datasets.disable_progress_bars()
        try:
            table = datasets.Dataset.from_parquet(
                [str(path) for path in paths], cache_dir=str(aside / "datasets"), columns=columns
            )
        except Exception as error:  # datasets wraps what pyarrow says in many types
            if (disk := _disk_error(error)) is not None:
                raise disk from (None if disk is error else error)
            problem = " ".join(str(error).split())
            raise ToolkitError(f"{layout.root}/data cannot be read ({problem}). Prepare the dataset again.") from error
        finally:
            if had_bars:
                datasets.enable_progress_bars()
        assert isinstance(table, datasets.Dataset)
        made = [Path(file["filename"]) for file in table.cache_files]
        for number, path in enumerate(made):
            part = aside / _part_name(number, len(made))
            path.rename(part)
            write_checksum(part, copy.name)
        shutil.rmtree(aside / "datasets")
    for other in copy.parent.glob(f"{copy.name[:-16]}*"):  # of the same columns, with other content
        if other != copy:
            shutil.rmtree(other, ignore_errors=True)


def _disk_error(error: BaseException | None) -> OSError | None:
    """What the disk said when a copy could not be written; None for anything else."""
    while error is not None:
        if isinstance(error, OSError) and (error.errno or is_disk_error(error)):
            return error
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


class TableImages:
    """The images of one camera that lie in the cells of the frame tables (`dtype: image`), encoded, or as paths.

    LeRobot's and openpi's convention: a cell holds {"bytes", "path"}, or the bytes or the path alone. The tables are
    mapped at once, so processes forked from this one share them; `digest` is that of FrameTables, where it is known.
    """

    def __init__(self, layout: DatasetLayout, camera: str, digest: str = "") -> None:
        self.layout, self.camera, self.column = layout, camera, layout.video_column(camera)
        self.path, self.fps, self.frames_to_decode = layout.root / "data", layout.fps, 1
        self._tables = FrameTables(layout, [self.column], images=True, digest=digest)
        self.digest = self._tables.digest

    def frames(self, episode: int, indices: Sequence[int]) -> np.ndarray:
        """The frames of these indices of an episode: (N, H, W, 3) uint8 RGB."""
        length = self.layout.episode(episode).length
        wrong = [int(i) for i in indices if not 0 <= i < length]
        where = f'{self.path}, column "{self.column}", episode {episode}'
        if wrong:
            raise ToolkitError(f"{where}: frame {wrong[0]} was asked for, the episode has {length}.")
        cells = self._tables.cells(self.column, episode, indices)
        found = [self._decode(cell, f"{where}, frame {i}") for i, cell in zip(indices, cells, strict=True)]
        if len({image.shape for image in found}) > 1:
            raise ToolkitError(f"{where}: images have several sizes. Leave that episode out, or record it again.")
        return np.stack(found)

    def _decode(self, cell: Any, where: str) -> np.ndarray:
        of_both = cell if isinstance(cell, dict) else {"bytes" if isinstance(cell, bytes) else "path": cell}
        data, path = of_both.get("bytes"), of_both.get("path")
        return decode_image(io.BytesIO(data) if data else self._inside(path, where), where)

    def _inside(self, path: Any, where: str) -> Path:
        normal = os.path.normpath(path) if isinstance(path, str) else ""
        if normal.split(os.sep)[0] != IMAGES:  # the folder whose files count as the dataset's content
            raise ToolkitError(
                f"{where}: neither image bytes nor a path in {IMAGES}/ of the dataset, but {str(path)[:80]!r}. Leave "
                "that episode out, or write the images into the table again."
            )
        return self.layout.root / normal

    def close(self) -> None:
        """Nothing is open: mapped tables take no memory that others could use."""

    def __reduce__(self) -> tuple[Any, ...]:  # another process maps the tables itself
        return type(self), (self.layout, self.camera, self.digest)


def matrix(values: np.ndarray) -> np.ndarray:
    """(N, D); LeRobot stores a column of one dimension as (N,)."""
    return values.reshape(len(values), -1)


def decode_image(source: io.BytesIO | Path, where: str) -> np.ndarray:
    """(H, W, 3) uint8 RGB of an encoded image; what cannot be decoded, or is far too large, raises ToolkitError."""
    if isinstance(source, Path):
        refuse_special(source)
    try:
        with Image.open(source, formats=IMAGE_FORMATS) as image:
            if image.width * image.height > MOST_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels, which no camera takes")
            return np.asarray(image.convert("RGB"))
    except Exception as error:  # each format's reader has its own
        raise ToolkitError(f"{where}: no image that can be decoded ({error}). Copy or record it again.") from error


class EpisodeImages(AbstractContextManager["EpisodeImages"]):
    """Frames of an episode from the cells of its frame table, with the interface of EpisodeVideo."""

    def __init__(self, layout: DatasetLayout, episode: int, reader: TableImages) -> None:
        self.reader, self.episode, self._length = reader, episode, layout.episode(episode).length

    def __len__(self) -> int:
        return self._length

    def frames(self, indices: Sequence[int]) -> np.ndarray:
        """The frames of these numbers, in their order (repeats allowed): (N, H, W, 3) uint8 RGB."""
        return self.reader.frames(self.episode, indices)

    def __exit__(self, *_: object) -> None:
        self.reader.close()


def table_images(layout: DatasetLayout, cameras: Iterable[str], digest: str = "") -> dict[str, TableImages]:
    """Those of the cameras whose images lie in the frame tables, mapped once for all that read them."""
    found: dict[str, TableImages] = {}
    for camera in cameras:
        if layout.is_in_tables(camera):
            found[camera] = TableImages(layout, camera, digest)
            digest = found[camera].digest
    return found


def open_camera(
    layout: DatasetLayout, episode: int, camera: str, reader: VideoReader | TableImages | None = None
) -> EpisodeVideo | EpisodeImages:
    """What a camera saw in an episode: a video, or images of the frame table. `reader` may be shared by episodes."""
    if isinstance(reader, TableImages) or (reader is None and layout.is_in_tables(camera)):
        return EpisodeImages(layout, episode, reader or TableImages(layout, camera))
    return EpisodeVideo(layout, episode, camera, reader)

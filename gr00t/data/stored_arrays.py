"""Caches of a dataset in memory-mapped files: the frozen backbone's output, and every frame decoded once.

Features: one row for each augmented view of each start frame, row = start x views + view. Files
(`rows-<number>.safetensors`) hold ROWS_PER_FILE each and appear whole, with a checksum beside each, so what exists need
not be computed again. Frames: one file a camera."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gr00t.data.frame_tables import EpisodeImages, open_camera, table_images
from gr00t.data.layout import DatasetLayout
from gr00t.data.video import EpisodeVideo, VideoReader
from gr00t.errors import ToolkitError, disk_errors, in_bytes
from gr00t.file_reading import read_json
from gr00t.file_replacement import (
    checksum_path,
    open_to_others,
    unsound,
    whole_file,
    whole_folder,
    write_checksum,
    write_json,
)

KEYS = ("features", "attention_mask", "image_mask")
ROWS_PER_FILE = 64  # what a killed process loses at most, and what processes share the work by
META = "meta.json"
PIECE = 256  # frames a thread decodes at a time, which bounds its memory


@dataclass(frozen=True)
class FeatureStore:
    """The rows of `starts` x `views` samples.

    A row is features (tokens, width) in `dtype`, attention_mask and image_mask (tokens,) bool.
    """

    folder: Path
    starts: int
    views: int
    tokens: int
    width: int
    dtype: torch.dtype

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return self.starts * self.views

    @property
    def row_bytes(self) -> int:
        """Size of a row on the disk."""
        return self.tokens * (self.width * self.dtype.itemsize + 2)

    def files(self) -> list[tuple[Path, range]]:
        """Every file, and the rows it holds."""
        firsts = range(0, self.rows, ROWS_PER_FILE)
        return [self._file(number) for number in range(len(firsts))]

    def missing(self) -> list[Path]:
        """The files that are not there, or without their checksum."""
        return [path for path, _ in self.files() if not (path.is_file() and checksum_path(path).is_file())]

    def row(self, row: int) -> dict[str, Tensor]:
        """One row's tensors: views into the mapped file. A missing or damaged file raises, naming the remedy."""
        number, place = divmod(row, ROWS_PER_FILE)
        if number not in self._open:
            self._open[number] = self._read(*self._file(number))
        return {key: tensor[place] for key, tensor in self._open[number].items()}

    def sample(self, start: int, view: int) -> dict[str, Tensor]:
        """What takes the place of images and text in a training sample."""
        return self.row(start * self.views + view)

    @staticmethod
    def collate(samples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """features (B, S, width), attention_mask and image_mask (B, S) bool."""
        return {key: torch.stack([s[key] for s in samples]) for key in KEYS}

    def write(self, path: Path, tensors: dict[str, Tensor]) -> None:
        """One file and its checksum, whole or not there; tensors (rows, ...) of KEYS on the CPU."""
        with disk_errors(path, "Make room there, or choose another cache_dir=FOLDER."):
            checksum_path(path).unlink(missing_ok=True)
            with whole_file(path) as temporary:
                save_file(tensors, temporary)
                open_to_others(temporary)
                with temporary.open("rb") as file:
                    os.fsync(file.fileno())
            write_checksum(path, self.folder.name)

    @cached_property
    def _open(self) -> dict[int, dict[str, Tensor]]:
        return {}

    def _file(self, number: int) -> tuple[Path, range]:
        first = number * ROWS_PER_FILE
        path = self.folder / f"rows-{number:05d}.safetensors"
        return path, range(first, min(first + ROWS_PER_FILE, self.rows))

    def _read(self, path: Path, rows: range) -> dict[str, Tensor]:
        try:
            with safe_open(path, framework="pt") as file:
                found = {key: file.get_tensor(key) for key in KEYS}
        except (SafetensorError, OSError) as error:
            raise ToolkitError(f"{path} is damaged ({error}). Delete that file; it is then made again.") from None
        if found["features"].shape != (len(rows), self.tokens, self.width) or found["features"].dtype != self.dtype:
            raise ToolkitError(f"{path} holds {tuple(found['features'].shape)}. Delete that file; it is made again.")
        return found

    def __getstate__(self) -> dict[str, Any]:  # another process maps the files itself
        return {key: value for key, value in self.__dict__.items() if key != "_open"}


class FrameStore:
    """The frames of a dataset's cameras: `<camera>.npy`, (frames, H, W, 3) uint8, episodes in order of their index.

    Processes of one machine share the mapped pages. Raises ToolkitError for a missing or damaged store.
    """

    def __init__(self, folder: Path, layout: DatasetLayout, cameras: list[str]) -> None:
        self.folder, self.layout, self.cameras = folder, layout, cameras
        self._first = first_rows(layout)
        shapes = read_json(folder / META).get("shapes", {})
        self._maps = {}
        for camera in cameras:
            try:
                found = np.load(folder / f"{camera}.npy", mmap_mode="r")
            except (OSError, ValueError) as error:
                raise self._damaged(f"{camera}.npy: {error}") from None
            if list(found.shape) != shapes.get(camera) or found.dtype != np.uint8:
                raise self._damaged(f"{camera}.npy holds {found.dtype} {found.shape}")
            self._maps[camera] = found

    def frames(self, episode: int, camera: str, indices: np.ndarray) -> np.ndarray:
        """The frames of these indices of an episode: (N, H, W, 3) uint8 RGB, a copy."""
        return self._maps[camera][self._first[episode] + np.asarray(indices)]

    def _damaged(self, problem: str) -> ToolkitError:
        return ToolkitError(f"{self.folder} is damaged ({problem}). Delete that folder; it is then made again.")

    def __reduce__(self) -> tuple[Any, ...]:  # another process maps the files itself
        return type(self), (self.folder, self.layout, self.cameras)


def frame_store_folder(cache_dir: Path, layout: DatasetLayout, cameras: list[str]) -> Path:
    """Where these cameras of this dataset lie: another content or choice has another folder (reads every file)."""
    decides = [layout.content, *cameras, *filter(None, [layout.choice])]
    digest = hashlib.sha256("\0".join(decides).encode()).hexdigest()
    return cache_dir / f"frames-{digest[:16]}"


def frame_store_is_whole(folder: Path, cameras: list[str]) -> bool:
    """Whether a store is there and every file is as it was written."""
    return not unsound(_files(folder, cameras), folder.name)


def _files(folder: Path, cameras: Iterable[str]) -> list[Path]:
    return [*(folder / f"{camera}.npy" for camera in cameras), folder / META]


def frame_shapes(layout: DatasetLayout, cameras: list[str]) -> dict[str, tuple[int, ...]]:
    """(frames, H, W, 3) of each camera's file; the size is that of the first episode's first frame."""
    total = sum(e.length for e in layout.episodes)
    found = {}
    for camera in cameras:
        with open_camera(layout, layout.episodes[0].index, camera) as video:
            found[camera] = (total, *video.frames([0]).shape[1:])
    return found


def write_frame_store(
    folder: Path,
    layout: DatasetLayout,
    shapes: dict[str, tuple[int, ...]],
    *,
    threads: int,
    on_frames: Callable[[int], None] = lambda count: None,
) -> None:
    """Decode every episode of the cameras in `shapes` into `folder`, which appears whole or not at all.

    The caller holds the folder's lock. `on_frames` is called with the number of frames decoded since the last call.
    Decoding leaves Python's lock free, so threads run side by side. Raises ToolkitError for frames of several sizes,
    and where the disk is full.
    """
    first, own, images = first_rows(layout), threading.local(), table_images(layout, shapes)

    def decode(camera: str, episode: int, length: int, target: np.ndarray) -> int:
        rows = target[first[episode] : first[episode] + length]
        path, reader = layout.camera_path(episode, camera), images.get(camera)
        if reader is None and getattr(own, "path", None) != path:  # a file may hold many episodes
            own.path, own.reader = path, VideoReader(path)
        _decode_to(rows, open_camera(layout, episode, camera, reader or own.reader), path)
        return length

    full = disk_errors(folder, "Make room there, or choose another cache_dir=FOLDER.")
    with full, whole_folder(folder, lock=False) as aside, ThreadPoolExecutor(threads) as pool:
        jobs = []
        for camera, shape in shapes.items():
            target = _reserve(aside / f"{camera}.npy", shape)
            jobs += [pool.submit(decode, camera, e.index, e.length, target) for e in layout.episodes]
        try:
            for job in jobs:
                on_frames(job.result())
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
        write_json(aside / META, {"dataset": layout.content, "shapes": {c: list(s) for c, s in shapes.items()}})
        list(pool.map(lambda path: write_checksum(path, folder.name), _files(aside, shapes)))


def _decode_to(rows: np.ndarray, video: EpisodeVideo | EpisodeImages, path: Path) -> None:
    for start in range(0, len(rows), PIECE):
        frames = video.frames(range(start, min(start + PIECE, len(rows))))
        if frames.shape[1:] != rows.shape[1:]:
            raise ToolkitError(
                f"{path}: frames are {frames.shape[1:3]}, those of the first episode {rows.shape[1:3]}. A frame "
                "store needs one size a camera: use dataset.frames=video."
            )
        rows[start : start + PIECE] = frames


def first_rows(layout: DatasetLayout) -> dict[int, int]:
    """The row of each episode's first frame."""
    ends = np.cumsum([e.length for e in layout.episodes])
    return {e.index: int(end) - e.length for e, end in zip(layout.episodes, ends, strict=True)}


def _reserve(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """A mapped file whose space is taken on the disk at once: running out later would kill the process."""
    mapped = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    with path.open("r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        except OSError as error:
            raise ToolkitError(f"{path}: no room for {in_bytes(path.stat().st_size)} ({error.strerror}).") from None
    return mapped

"""Every frame of a dataset decoded once, in one memory-mapped file a camera."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from gr00t.checksums import unsound, write_checksum
from gr00t.data.episode_video import EpisodeVideo
from gr00t.data.layout import DatasetLayout
from gr00t.data.video import VideoReader
from gr00t.errors import ToolkitError
from gr00t.files import disk_errors, in_bytes, read_json, whole_folder, write_json

META = "meta.json"
PIECE = 256  # frames a thread decodes at a time, which bounds its memory


class FrameStore:
    """The frames of a dataset's cameras: `<camera>.npy`, (frames, H, W, 3) uint8, episodes in order of their index.

    Processes of one machine share the mapped pages. Raises ToolkitError for a missing or damaged store.
    """

    def __init__(self, folder: Path, layout: DatasetLayout, cameras: list[str]) -> None:
        self.folder, self.layout, self.cameras = folder, layout, cameras
        self._first = first_rows(layout)
        shapes = read_json(folder / META).get("shapes", {})
        self._maps = {camera: self._map(camera, shapes.get(camera)) for camera in cameras}

    def frames(self, episode: int, camera: str, indices: np.ndarray) -> np.ndarray:
        """The frames of these indices of an episode: (N, H, W, 3) uint8 RGB, a copy."""
        return self._maps[camera][self._first[episode] + np.asarray(indices)]

    def _map(self, camera: str, shape: list[int] | None) -> np.ndarray:
        try:
            found = np.load(self.folder / f"{camera}.npy", mmap_mode="r")
        except (OSError, ValueError) as error:
            raise self._damaged(f"{camera}.npy: {error}") from None
        if list(found.shape) != shape or found.dtype != np.uint8:
            raise self._damaged(f"{camera}.npy holds {found.dtype} {found.shape}")
        return found

    def _damaged(self, problem: str) -> ToolkitError:
        return ToolkitError(f"{self.folder} is damaged ({problem}). Delete that folder; it is then made anew.")

    def __reduce__(self) -> tuple[Any, ...]:  # another process maps the files itself
        return type(self), (self.folder, self.layout, self.cameras)


def frame_store_folder(cache_dir: Path, layout: DatasetLayout, cameras: list[str]) -> Path:
    """Where these cameras of this dataset lie: another content or choice has another folder (reads every file)."""
    digest = hashlib.sha256("\0".join([layout.content, *cameras]).encode()).hexdigest()
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
        with EpisodeVideo(layout, layout.episodes[0].index, camera) as video:
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

    The caller holds the folder's lock. `on_frames` hears how many frames came in. Decoding leaves Python's lock free,
    so threads run side by side. Raises ToolkitError for frames of several sizes, and where the disk is full.
    """
    first, own = first_rows(layout), threading.local()

    def decode(camera: str, episode: int, length: int, target: np.ndarray) -> int:
        path, rows = layout.video_path(episode, camera), target[first[episode] : first[episode] + length]
        if not hasattr(own, "reader") or own.reader.path != path:  # a file may hold many episodes
            own.reader = VideoReader(path)
        video = EpisodeVideo(layout, episode, camera, own.reader)
        for start in range(0, length, PIECE):
            frames = video.frames(range(start, min(start + PIECE, length)))
            if frames.shape[1:] != rows.shape[1:]:
                raise ToolkitError(
                    f"{path}: frames are {frames.shape[1:3]}, those of the first episode {rows.shape[1:3]}. A frame "
                    "store needs one size a camera: use dataset.frames=video."
                )
            rows[start : start + PIECE] = frames
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

"""What a video shows, measured while it is decoded once; no frame is kept but a few small ones."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from gr00t.data.episode_video import EpisodeVideo
from gr00t.errors import ToolkitError

SIDE = 16  # of a thumbnail
AT_ONCE = 64  # frames decoded in one piece
BLANK = 2.0  # standard deviation over a frame (of 255) below which it shows nothing

Thumbnail = np.ndarray  # (SIDE, SIDE, 3) float32, RGB


@dataclass(frozen=True)
class Footage:
    """Facts of one video of T frames. Where `problem` is set nothing else is; the rest of what is not measured is None.

    size: (height, width). first and mean: thumbnails of the first frame and of all; sketch: of the first frame, see
    the function. motion: mean absolute change between neighbouring frames (T-1,), of 255.
    leaps: change between the frames on both sides of each inner frame (T-2,). contrast: standard deviation over each
    frame (T,). unrest: median over the thumbnail's pixels of their deviation in time.
    """

    problem: str = ""
    length: int = 0
    fps: float = 0.0
    size: tuple[int, int] | None = None
    first: Thumbnail | None = None
    sketch: np.ndarray | None = None
    mean: Thumbnail | None = None
    motion: np.ndarray | None = None
    leaps: np.ndarray | None = None
    contrast: np.ndarray | None = None
    unrest: float | None = None


def glance(video: EpisodeVideo, first_frame: bool) -> Footage:
    """Length and frame rate, which cost no decoding, and the first frame where asked for."""
    try:
        if not first_frame:
            return Footage(length=len(video), fps=video.reader.fps)
        frame = video.frames([0])[0]
        return Footage("", len(video), video.reader.fps, frame.shape[:2], thumbnail(frame), sketch(frame))
    except ToolkitError as error:
        return Footage(str(error))


def watch(video: EpisodeVideo) -> Footage:
    """Decode every frame."""
    tally = _Tally()
    try:
        for start in range(0, len(video), AT_ONCE):
            for frame in video.frames(range(start, min(start + AT_ONCE, len(video)))):
                tally.add(frame)
        return tally.footage(len(video), video.reader.fps)
    except ToolkitError as error:
        return Footage(str(error))


def not_there(path: Path) -> str:
    """Why there is nothing to open; empty where there is."""
    if not path.is_file():
        return f"{path} is missing."
    return "" if path.stat().st_size else f"{path} is empty."


@dataclass
class _Tally:
    """Sums over the frames seen so far."""

    size: tuple[int, int] | None = None
    first: np.ndarray | None = None
    sketch: np.ndarray | None = None
    sums: list[np.ndarray] = field(default_factory=lambda: [np.zeros((SIDE, SIDE, 3)), np.zeros((SIDE, SIDE, 3))])
    before: list[np.ndarray] = field(default_factory=list)  # the last two, grey and a quarter of the size
    motion: list[float] = field(default_factory=list)
    leaps: list[float] = field(default_factory=list)
    contrast: list[float] = field(default_factory=list)

    def add(self, frame: np.ndarray) -> None:
        small = thumbnail(frame)
        if self.first is None:
            self.size, self.first, self.sketch = frame.shape[:2], small, sketch(frame)
        self.sums[0] += small
        self.sums[1] += np.square(small, dtype=np.float64)
        self.contrast.append(float(frame.std()))
        grey = _grey(frame)
        if self.before:
            self.motion.append(float(np.abs(grey - self.before[-1]).mean()))
        if len(self.before) == 2:
            self.leaps.append(float(np.abs(grey - self.before[0]).mean()))
        self.before = [*self.before[-1:], grey]

    def footage(self, length: int, fps: float) -> Footage:
        mean = self.sums[0] / length
        deviation = np.sqrt(np.maximum(0.0, self.sums[1] / length - mean**2))
        return Footage(
            length=length,
            fps=fps,
            size=self.size,
            first=self.first,
            sketch=self.sketch,
            mean=mean.astype(np.float32),
            motion=np.array(self.motion),
            leaps=np.array(self.leaps),
            contrast=np.array(self.contrast),
            unrest=float(np.median(deviation)),
        )


def thumbnail(frame: np.ndarray) -> Thumbnail:
    """(H, W, 3) uint8 to (SIDE, SIDE, 3) float32."""
    return cv2.resize(frame.astype(np.float32), (SIDE, SIDE), interpolation=cv2.INTER_AREA)


def sketch(frame: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 to its colours in 4x4 fields, (4, 4, 3) float32: enough to tell one first frame from another."""
    return cv2.resize(frame.astype(np.float32), (4, 4), interpolation=cv2.INTER_AREA)


def sketch_to_text(frame: np.ndarray) -> str:
    """The sketch of a frame as 96 hexadecimal digits."""
    return sketch(frame).round().astype(np.uint8).tobytes().hex()


def sketch_from_text(text: str) -> np.ndarray:
    """The reverse; other text raises ValueError."""
    return np.frombuffer(bytes.fromhex(text), dtype=np.uint8).reshape(4, 4, 3).astype(np.float32)


def _grey(frame: np.ndarray) -> np.ndarray:
    """Brightness in blocks of 4x4 pixels: averages the codec's noise out and keeps small motions."""
    height, width = frame.shape[0] // 4 or 1, frame.shape[1] // 4 or 1
    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY).astype(np.float32)
    return cv2.resize(grey, (width, height), interpolation=cv2.INTER_AREA)

"""What a video shows, measured while it is decoded once; no frame is kept but small ones."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import cv2
import numpy as np

from data_prep.lerobot import SKETCH_SIDE, thumbnail
from gr00t.data.frame_tables import EpisodeImages
from gr00t.data.video import EpisodeVideo
from gr00t.errors import ToolkitError

T = TypeVar("T")

SIDE = 16  # of a video's thumbnails
SKETCH = (SKETCH_SIDE, SKETCH_SIDE, 3)
FIELDS = 32  # a side, of the grey ones in which frames far from each other are compared
AT_ONCE = 64  # frames decoded in one piece
AT_RANDOM = 4  # frames of a video that are read besides, each by itself


@dataclass(frozen=True)
class Footage:
    """Facts of one video, of those of its frames that were decoded: T in the full examination, one or none in the fast
    part. Where `problem` is set nothing else is.

    size: (height, width). mean: thumbnail (SIDE, SIDE, 3) of all; sketches: smaller ones of each (T, *SKETCH), as the
    converter records of the first. motion: mean absolute change between neighbouring frames (T-1,), of 255. leaps:
    change between the frames on both sides of each inner frame (T-2,). contrast: standard deviation over each frame
    (T,). unrest: median over the thumbnail's pixels of their deviation in time. moved: change of the image over each
    journey of the state (see Subject), of 255. times: seconds at which frames are shown, of a video that holds one
    episode. cost: frames decoded for a single one at random, at most.
    """

    problem: str = ""
    length: int = 0
    fps: float = 0.0
    size: tuple[int, int] | None = None
    mean: np.ndarray | None = None
    unrest: float | None = None
    cost: int = 1
    sketches: np.ndarray = field(default_factory=lambda: np.empty((0, *SKETCH), np.float16))
    motion: np.ndarray = field(default_factory=lambda: np.empty(0))
    leaps: np.ndarray = field(default_factory=lambda: np.empty(0))
    contrast: np.ndarray = field(default_factory=lambda: np.empty(0))
    moved: np.ndarray = field(default_factory=lambda: np.empty(0))
    times: np.ndarray = field(default_factory=lambda: np.empty(0))


def watch(video: EpisodeVideo | EpisodeImages, count: int | None, journeys: Sequence[tuple[int, int]] = ()) -> Footage:
    """Decode the first `count` frames, None for all. Length and frame rate alone cost no decoding."""
    size = mean = unrest = None
    small: list[np.ndarray] = []
    fields: list[np.ndarray] = []
    motion: list[float] = []
    leaps: list[float] = []
    contrast: list[float] = []
    before: deque[np.ndarray] = deque(maxlen=2)  # the last two frames as blocks
    try:
        count = len(video) if count is None else count
        for start in range(0, count, AT_ONCE):
            for frame in video.frames(range(start, min(start + AT_ONCE, count))):
                size = frame.shape[:2]
                small.append(thumbnail(frame, SIDE))
                contrast.append(float(frame.std()))
                # means of 4x4 pixels average the codec's noise out and keep small motions
                grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY).astype(np.float32)
                sides = (frame.shape[1] // 4 or 1, frame.shape[0] // 4 or 1)
                blocks = cv2.resize(grey, sides, interpolation=cv2.INTER_AREA)
                if journeys:
                    fields.append(cv2.resize(blocks, (FIELDS, FIELDS), interpolation=cv2.INTER_AREA))
                for changes, earlier in zip((motion, leaps), reversed(before), strict=False):
                    changes.append(float(np.abs(blocks - earlier).mean()))
                before.append(blocks)
        if small:
            mean = np.stack(small).mean(axis=0, dtype=np.float64).astype(np.float32)
            unrest = float(np.median(np.std(small, axis=0, dtype=np.float64)))
        cost = video.reader.frames_to_decode
        if count == len(video):  # as training reads; what was decoded in order may lie behind another key frame
            for index in evenly(range(count), AT_RANDOM):
                video.frames([index])
        moved = [float(np.abs(fields[b] - fields[a]).mean()) for a, b in journeys if max(a, b) < len(fields)]
        times = video.reader.times() if isinstance(video, EpisodeVideo) and video.is_alone else ()
        measured = map(np.array, (motion, leaps, contrast, moved, times))
        sketches = np.array([thumbnail(image, SKETCH_SIDE) for image in small], np.float16).reshape(-1, *SKETCH)
        return Footage("", len(video), video.reader.fps, size, mean, unrest, cost, sketches, *measured)
    except ToolkitError as error:
        return Footage(str(error))


def jpeg(image: np.ndarray) -> bytes:
    """(H, W, 3) uint8 RGB as a small JPEG."""
    done, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 88])
    assert done
    return data.tobytes()


def evenly(items: Sequence[T], count: int) -> list[T]:
    """At most `count` of the items, first and last among them."""
    if len(items) <= count:
        return list(items)
    return [items[i] for i in np.unique(np.linspace(0, len(items) - 1, count).round().astype(int))]

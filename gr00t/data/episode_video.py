"""One episode's frames in a video file, which in LeRobot v3.0 holds many episodes one after another."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gr00t.data.layout import DatasetLayout
from gr00t.data.video import VideoReader
from gr00t.errors import ToolkitError


class EpisodeVideo:
    """Frames of an episode by their number in it, exact; as a context manager it closes the file.

    `reader` reads the file that holds them and may be shared by episodes. In v3.0 the first frame is the one shown at
    the second that meta/episodes names, and each further one must follow 1/fps later: a file in which frames are
    missing or doubled raises ToolkitError, where LeRobot's own reader would take the nearest in silence or refuse.
    """

    def __init__(self, layout: DatasetLayout, episode: int, camera: str, reader: VideoReader | None = None) -> None:
        self.reader = reader or VideoReader(layout.video_path(episode, camera))
        self._length, self._fps = layout.episode(episode).length, layout.fps
        self._start = layout.video_start(episode, camera)
        self._where = f"episode {episode} of {layout.root}"
        self._first = 0 if self._start is None else None

    def __len__(self) -> int:
        """Frames of the episode; of the whole file where it holds one episode only (v2.1)."""
        return len(self.reader) if self._start is None else self._length

    def frames(self, indices: Sequence[int]) -> np.ndarray:
        """The frames of these numbers, in their order (repeats allowed): (N, H, W, 3) uint8 RGB."""
        if self._start is None:
            return self.reader.frames(indices)
        wrong = [int(i) for i in indices if not 0 <= i < self._length]
        if wrong:
            raise ToolkitError(
                f"{self.reader.path}: frame {wrong[0]} of {self._where} was asked for, which has {self._length}."
            )
        if self._first is None:
            self._first = self._find(self._start)
        return self.reader.frames([self._first + int(i) for i in indices])

    def __enter__(self) -> EpisodeVideo:
        return self

    def __exit__(self, *_: object) -> None:
        self.reader.close()

    def _find(self, start: float) -> int:
        """The first frame's number in the file."""
        times, wanted = self.reader.times(), start + np.arange(self._length) / self._fps
        first = int(np.abs(times - start).argmin())
        found = times[first : first + self._length]
        if len(found) < self._length:
            raise ToolkitError(
                f"{self.reader.path} ends {self._length - len(found)} frames before {self._where} does (it begins at "
                f"{start:g} s and has {self._length} frames). Download or copy that file again."
            )
        off = np.flatnonzero(np.abs(found - wanted) > 0.5 / self._fps)
        if len(off):
            raise ToolkitError(
                f"{self.reader.path}: frame {off[0]} of {self._where} is shown at {found[off[0]]:.3f} s and not at "
                f"{wanted[off[0]]:.3f} s: frames are missing or doubled, or fps in meta/info.json ({self._fps:g}) is "
                "not the video's. Leave that episode out, or record it again."
            )
        return first

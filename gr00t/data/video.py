"""Episode videos: exact random access, writing, and the check that what was written is what was meant. In LeRobot v3.0
a video file holds many episodes one after another."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.error import FFmpegError
from av.video.reformatter import Interpolation, VideoReformatter

from gr00t.data.layout import DatasetLayout, SharedVideo
from gr00t.errors import ToolkitError
from gr00t.file_reading import refuse_special

GOP = 10  # frames between two entry points: a random frame costs at most ten decodes
# At 18 the mean difference to 128x128 ManiSkill frames is 3.7 (base) and 4.2 (wrist) of 255; 3.2 and 2.9 of that are
# yuv420p's halved colour resolution, which no crf removes.
CRF = 18
# x264's macroblock tree reads beyond narrow images (32 pixels), which makes its output differ from run to run; with
# ten frames between entry points it gains nothing.
X264_PARAMS = "mbtree=0"
# Mean squared difference of 8x8 block means above which two images count as different. ManiSkill episodes move by 200
# to 2000 from first to last frame; the codec's own error is 2 to 3.
CLEARLY_DIFFERENT = 16.0
MOST_PIXELS = 7680 * 4320  # 8K
_DRIFT = 0.25  # of a frame: further away from one, the seconds of meta/episodes may mean its neighbour
_ENCODER_AT_FAULT = "The encoder of this PyAV build is at fault: reinstall av in the version of the constraints file."
# They store when a frame is shown. Elsewhere (AVI) that is guessed from the order of decoding, which B-frames change.
_WITH_TIMES = ("mov,mp4", "matroska,webm")
_TRIES = 3  # key frames at which decoding is begun before it is begun at the start of the file


class VideoReader(AbstractContextManager["VideoReader"]):
    """Frames of one video file by index, exact: the frames that decoding the file from its start gives.

    Opened at the first use and kept open, once per process: a reader may be pickled to, or inherited by, DataLoader
    workers. Raises ToolkitError for a missing or undecodable file and for an index beyond the end.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._container: Any = None
        self._pid = -1
        self._pts = np.empty(0, dtype=np.int64)  # of every frame, in display order
        self._keys = np.empty(0, dtype=np.int64)  # indices of the frames at which decoding can begin
        self._counted = False  # frames are found by counting from the start

    def __len__(self) -> int:
        self._open()
        return len(self._pts)

    @property
    def fps(self) -> float:
        """Frames a second, 0 where the file does not say."""
        self._open()
        return float(self._stream.average_rate or 0)

    @property
    def frames_to_decode(self) -> int:
        """Frames that the most expensive random frame costs: the longest way from a key frame, or from the start."""
        self._open()
        return int(np.diff(np.append(self._keys, len(self._pts))).max())

    def frames(self, indices: Sequence[int]) -> np.ndarray:
        """The frames of these indices, in their order (repeats allowed): (N, H, W, 3) uint8 RGB."""
        self._open()
        wanted = sorted({int(i) for i in indices})
        if not wanted:
            raise ToolkitError(f"{self.path}: no frame index was asked for.")
        if wanted[0] < 0 or wanted[-1] >= len(self._pts):
            wrong = wanted[0] if wanted[0] < 0 else wanted[-1]
            raise ToolkitError(
                f"{self.path}: frame {wrong} was asked for, but the video has {len(self._pts)} frames "
                f"(0 to {len(self._pts) - 1}). Video and frame table disagree: prepare the dataset again."
            )
        try:
            found = self._decode(wanted)
        except FFmpegError as error:
            raise self._undecodable(error) from error
        return np.stack([found[int(i)] for i in indices])

    def times(self) -> np.ndarray:
        """(N,) float64: seconds after the first frame at which each frame is shown."""
        self._open()
        return (self._pts - self._pts[0]) * float(self._stream.time_base)

    def close(self) -> None:
        """Close the file; the next use opens it again."""
        # A container inherited through fork shares its file position with the parent: drop it, do not close it.
        if self._container is not None and self._pid == os.getpid():
            self._container.close()
        self._container = None

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:  # another process opens the file itself
        return type(self), (self.path,)

    @property
    def _stream(self) -> Any:
        return self._container.streams.video[0]

    def _open(self) -> None:
        if self._container is not None and self._pid == os.getpid():
            return
        refuse_special(self.path)
        if not self.path.is_file():
            raise ToolkitError(f"{self.path}: no such video. The dataset is incomplete: prepare or copy it again.")
        try:
            self._begin()
            if not self._container.streams.video:
                raise ToolkitError(f"{self.path}: holds no video stream; prepare the dataset again.")
            self._index()
        except FFmpegError as error:
            self._container = None
            raise self._undecodable(error) from error
        if not len(self._pts):
            raise ToolkitError(f"{self.path}: the video holds no frames; prepare the dataset again.")
        self._pid = os.getpid()

    def _begin(self) -> None:
        """Open the file, at its start."""
        bounded = {"max_pixels": str(MOST_PIXELS)}  # frames may be larger than the container says
        self._container = av.open(str(self.path), options=bounded)
        for stream in self._container.streams.video[:1]:
            # The DataLoader already uses the cores: one decoder thread each.
            stream.codec_context.thread_count, stream.codec_context.options = 1, bounded

    def _index(self) -> None:
        """Which frames there are, by their packets; by decoding all of them where packets do not tell."""
        packets = [(p.pts, p.is_keyframe) for p in self._container.demux(self._stream) if p.size and not p.is_discard]
        times = sorted(packet for packet in packets if packet[0] is not None)
        self._pts = np.array([pts for pts, _ in times], dtype=np.int64)
        self._keys = np.flatnonzero([is_key for _, is_key in times])
        has_times = self._container.format.name.startswith(_WITH_TIMES) and len(times) == len(packets)
        self._counted = not (
            (has_times or len(self._keys) == len(packets)) and (np.diff(self._pts) > 0).all() and 0 in self._keys
        )
        if self._counted and packets:
            self._begin()
            shown = [frame.pts for frame in self._container.decode(self._stream)]
            steady = None not in shown and all(a < b for a, b in pairwise(shown))
            rate = float((self._stream.average_rate or 1) * self._stream.time_base)  # frames without a time lie evenly
            self._pts = np.array(shown if steady else np.rint(np.arange(len(shown)) / rate), dtype=np.int64)
            self._keys = np.zeros(min(len(shown), 1), dtype=np.int64)

    def _decode(self, wanted: list[int]) -> dict[int, np.ndarray]:
        found: dict[int, np.ndarray] = {}
        position = -1  # index of the last decoded frame
        decoder: Iterator[tuple[int, Any]] = iter(())
        colours = VideoReformatter()  # one for all frames: made again for each, it takes a third of the time
        for target in wanted:
            last, entry = np.searchsorted(self._keys, [position, target], side="right")
            if position < 0 or last < entry:  # decoding can begin nearer to the target
                frame, decoder = self._first_try(target, int(entry) - 1)
            else:
                frame = _next(decoder, target)
            if frame is None:
                frame, decoder = self._from_the_start(target)
            found[target] = colours.reformat(frame, format="rgb24").to_ndarray()
            position = target
        return found

    def _first_try(self, target: int, entry: int) -> tuple[Any, Iterator[tuple[int, Any]]]:
        """The frame decoded from the nearest key frame that leads to it, and what follows; None where none does.

        In an open GOP frames shown before a key frame come after it in the file, and refer to the GOP before. A
        container that seeks by the time of decoding (mp4) may go to that key frame, so what it finds is compared.
        """
        for key in [] if self._counted else self._keys[max(entry - _TRIES + 1, 0) : entry + 1][::-1]:
            self._container.seek(int(self._pts[key]), stream=self._stream, backward=True)
            shown = (frame for frame in self._container.decode(self._stream) if frame.pts is not None)
            decoder = ((int(np.searchsorted(self._pts, frame.pts)), frame) for frame in shown)
            if (frame := _next(decoder, target)) is not None and frame.pts == self._pts[target]:
                return frame, decoder
        return None, iter(())

    def _from_the_start(self, target: int) -> tuple[Any, Iterator[tuple[int, Any]]]:
        """The frame found by counting, and what follows."""
        self._begin()
        decoder = enumerate(self._container.decode(self._stream))
        if (frame := _next(decoder, target)) is None:
            raise self._undecodable(EOFError(f"frame {target} is not there"))
        return frame, decoder

    def _undecodable(self, error: BaseException) -> ToolkitError:
        return ToolkitError(
            f"{self.path}: cannot be decoded ({type(error).__name__}: {error}). The file is damaged or its codec is "
            "not in this PyAV build: prepare or copy the dataset again."
        )


def _next(decoder: Iterator[tuple[int, Any]], target: int) -> Any:
    """The frame of that number among the next ones; None where it does not come."""
    for number, frame in decoder:
        if number >= target:
            return frame if number == target else None
    return None


def write_video(path: str | Path, frames: np.ndarray, fps: int) -> None:
    """Write `frames` (T, H, W, 3) uint8 RGB as H.264 (yuv420p, GOP 10, no B-frames, crf 18).

    One encoder thread, so the bytes do not depend on the machine's cores. Raises ToolkitError for a wrong shape or
    dtype, no frames, or an odd size (yuv420p halves both sides).
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or len(frames) == 0:
        raise ToolkitError(f"{path}: a video needs frames (T, H, W, 3) uint8, got {frames.shape} {frames.dtype}.")
    check_frame_size(frames.shape[1], frames.shape[2], path)
    # FFmpeg's own writing may drop the error of a full disk at the end of a file; Python's does not.
    with Path(path).open("wb") as file, av.open(file, "w", format="mp4") as container:
        stream: Any = container.add_stream("libx264", rate=fps)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.gop_size, stream.max_b_frames = GOP, 0
        stream.codec_context.thread_count = 1
        stream.options = {"preset": "veryfast", "crf": str(CRF), "x264-params": X264_PARAMS}
        colours = VideoReformatter()
        for image in frames:
            rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            # Averaging keeps the colours of small objects best when colour resolution is halved.
            container.mux(stream.encode(colours.reformat(rgb, format="yuv420p", interpolation=Interpolation.AREA)))
        container.mux(stream.encode(None))


def check_frame_size(height: int, width: int, where: str | Path) -> None:
    """Raise ToolkitError for sizes that the video format cannot hold."""
    if height % 2 or width % 2 or min(height, width) < 2:
        raise ToolkitError(
            f"{where}: frames are {height}x{width}; height and width must be even. Record the camera with an even size "
            '(ManiSkill: sensor_configs={"width": ..., "height": ...}).'
        )


def check_video(
    path: str | Path, frames_expected: int, sample_of_original: dict[int, np.ndarray] | None = None
) -> float:
    """Check a video that was just written; returns the mean absolute difference to the sample (0.0 without one).

    `sample_of_original` maps frame indices to original images (H, W, 3) uint8 RGB. Raises ToolkitError when the length
    is wrong, when a frame shows another sampled frame's image (stuck or shifted), or when red and blue are swapped.
    """
    with VideoReader(path) as reader:
        if len(reader) != frames_expected:
            raise ToolkitError(
                f"{path}: {len(reader)} frames were written, {frames_expected} were meant. {_ENCODER_AT_FAULT}"
            )
        if not sample_of_original:
            return 0.0
        indices = sorted(sample_of_original)
        decoded = reader.frames(indices).astype(np.float32)
    originals = np.stack([sample_of_original[i] for i in indices]).astype(np.float32)
    means, meant = _blocks(decoded), _blocks(originals)
    swapped = _shows(means, meant[..., ::-1], instead_of=meant)  # (N,)
    stuck = _shows(means[:, None], meant[None], instead_of=meant[:, None])  # (N, N): the one for the other
    for k, index in enumerate(indices):
        if swapped[k]:
            raise ToolkitError(f"{path}: frame {index} has red and blue swapped (BGR instead of RGB).")
        if stuck[k].any():
            other = indices[int(stuck[k].argmax())]
            raise ToolkitError(f"{path}: frame {index} shows frame {other} instead. {_ENCODER_AT_FAULT}")
    return float(np.abs(decoded - originals).mean())


def _blocks(frames: np.ndarray) -> np.ndarray:
    """(N, H, W, 3) to means of 8x8 pixels: motion and colour stay, noise and the codec's fine losses average out."""
    count, height, width, _ = frames.shape
    side = min(8, height, width)
    rows, columns = height // side, width // side
    cut = frames[:, : rows * side, : columns * side]
    return cut.reshape(count, rows, side, columns, side, 3).mean(axis=(2, 4))


def _shows(decoded: np.ndarray, other: np.ndarray, instead_of: np.ndarray) -> np.ndarray:
    """Whether `decoded` is nearer to `other` than to its own original, where the two differ clearly at all.

    All are frames (..., H, W, 3) that broadcast; one answer for each.
    """

    def distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.square(a - b).mean(axis=(-3, -2, -1))

    distinct = distance(other, instead_of) >= CLEARLY_DIFFERENT
    return distinct & (2 * distance(decoded, other) < distance(decoded, instead_of))


class EpisodeVideo(AbstractContextManager["EpisodeVideo"]):
    """Frames of an episode by their number in it, exact; as a context manager it closes the file.

    `reader` reads the file that holds them and may be shared by episodes. In v3.0 a file's episodes follow each other:
    where their lengths add up to its frames, frames are counted. Else the first is the one shown at the second that
    meta/episodes names. Each further one must follow 1/fps later. Frames that are missing or doubled, and seconds that
    drift away from the frames, raise ToolkitError; the nearest frame would silently be another one.
    """

    def __init__(self, layout: DatasetLayout, episode: int, camera: str, reader: VideoReader | None = None) -> None:
        self.reader = reader or VideoReader(layout.video_path(episode, camera))
        self._length, self._fps = layout.episode(episode).length, layout.fps
        self._where = f"episode {episode} of {layout.root}"
        self._shared = layout.shared_video(episode, camera)
        self._first: int | None = None  # number of the episode's first frame in a shared file, once it was looked up

    def __len__(self) -> int:
        """Frames of the episode; of the whole file where it holds one episode only (v2.1)."""
        return len(self.reader) if self._shared is None else self._length

    @property
    def is_alone(self) -> bool:
        """Whether the file holds this episode only (v2.1)."""
        return self._shared is None

    def frames(self, indices: Sequence[int]) -> np.ndarray:
        """The frames of these numbers, in their order (repeats allowed): (N, H, W, 3) uint8 RGB."""
        if self._shared is None:
            return self.reader.frames(indices)
        wrong = [int(i) for i in indices if not 0 <= i < self._length]
        if wrong:
            raise ToolkitError(
                f"{self.reader.path}: frame {wrong[0]} of {self._where} was asked for, which has {self._length}."
            )
        if self._first is None:
            self._first = self._find(self._shared)
        return self.reader.frames([self._first + int(i) for i in indices])

    def _find(self, shared: SharedVideo) -> int:
        """The number of the episode's first frame in the file, which is checked to hold the others."""
        times, start = self.reader.times(), shared.start
        half = self._length / self._fps / 2  # further away, the order of the episodes may not be what it seems
        counted = shared.frames == len(times) and abs(times[shared.before] - start) < half
        first = shared.before if counted else int(np.abs(times - start).argmin())
        found = times[first : first + self._length]
        if len(found) < self._length:
            raise ToolkitError(
                f"{self.reader.path} ends {self._length - len(found)} frames before {self._where} does (it begins "
                f"at {start:g} s and has {self._length} frames). Download or copy that file again."
            )
        if not counted:
            self._check_start(times, first, shared)
        wanted = (found[0] if counted else start) + np.arange(self._length) / self._fps
        off = np.flatnonzero(np.abs(found - wanted) > 0.5 / self._fps)
        if len(off):
            raise ToolkitError(
                f"{self.reader.path}: frame {off[0]} of {self._where} is shown at {found[off[0]]:.3f} s and not at "
                f"{wanted[off[0]]:.3f} s: frames are missing or doubled, or fps in meta/info.json "
                f"({self._fps:g}) is not the video's. Leave that episode out, or record it again."
            )
        return first

    def _check_start(self, times: np.ndarray, first: int, shared: SharedVideo) -> None:
        """Refuse a beginning between two frames, or before the frames of the episode before end."""
        problem, start = "", shared.start
        if abs(times[first] - start) > _DRIFT / self._fps:
            problem = f"begins at {start:.4f} s by meta/episodes, but the nearest frame is at {times[first]:.4f} s"
        elif shared.previous is not None:
            end = int(np.abs(times - shared.previous_start).argmin()) + shared.previous.length
            if end > first:
                other = shared.previous.index
                problem = f"begins at frame {first} by meta/episodes, but episode {other} ends at frame {end}"
        if problem:
            raise ToolkitError(
                f"{self.reader.path}: {self._where} {problem}: the from_timestamp of that file drift away from its "
                f"frames ({len(times)}; the listed episodes have {shared.frames}). Write "
                "from_timestamp as the frames before an episode divided by fps, or convert the dataset again."
            )

    def __exit__(self, *_: object) -> None:
        self.reader.close()

"""At random access a video gives what decoding from its start gives, bit for bit, in every codec and container."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.video.reformatter import VideoReformatter
from scheduling import usual_scheduling

from gr00t.data.video import VideoReader
from gr00t.errors import ToolkitError

H, W, FRAMES, GOP = 64, 96, 50, 12
X264 = "keyint=12:scenecut=0:open-gop={}:bframes={}"
X265 = "keyint=12:log-level=none:pools=1:open-gop={}:bframes={}"
GOPS = [(0, 0), (0, 3), (1, 0), (1, 3)]
CODECS: dict[str, tuple[str, int, dict[str, str]]] = {
    **{f"h264-open{o}-b{b}": ("libx264", b, {"x264-params": X264.format(o, b)}) for o, b in GOPS},
    **{f"hevc-open{o}-b{b}": ("libx265", b, {"x265-params": X265.format(o, b)}) for o, b in GOPS},
    # as LeRobot's setting has it: key frames closer to each other than frames are moved by B-frames
    "h264-open1-g4": ("libx264", 3, {"x264-params": "keyint=4:min-keyint=1:scenecut=0:open-gop=1:bframes=3:b-adapt=0"}),
    "hevc-open1-g4": (
        "libx265",
        3,
        {"x265-params": "keyint=4:min-keyint=1:log-level=none:pools=1:open-gop=1:bframes=3"},
    ),
    "hevc-g2": ("libx265", 2, {"x265-params": "keyint=2:min-keyint=1:log-level=none:pools=1"}),
    "h264-intra-refresh": ("libx264", 0, {"x264-params": "keyint=12:intra-refresh=1:scenecut=0"}),
    "av1": ("libsvtav1", 0, {"svtav1-params": "keyint=12", "preset": "10"}),
    "vp9": ("libvpx-vp9", 0, {"deadline": "realtime", "cpu-used": "8"}),
    "vp9-alt-ref": ("libvpx-vp9", 0, {"auto-alt-ref": "1", "lag-in-frames": "16", "deadline": "good", "cpu-used": "5"}),
    "vp8-alt-ref": ("libvpx", 0, {"auto-alt-ref": "1", "lag-in-frames": "16", "deadline": "good", "cpu-used": "5"}),
    "mpeg4": ("mpeg4", 0, {}),
    "mpeg4-b3": ("mpeg4", 3, {}),
    "mjpeg": ("mjpeg", 0, {}),
    "ffv1": ("ffv1", 0, {}),
}
CONTAINERS = {
    "mp4": {*CODECS} - {"vp8-alt-ref"},
    "mkv": {*CODECS},
    "webm": {"av1", "vp9", "vp9-alt-ref", "vp8-alt-ref"},
    "avi": {"mpeg4", "mpeg4-b3", "mjpeg", "ffv1", "h264-open0-b0", "h264-open0-b3", "h264-open1-b3"},
    "ts": {"h264-open0-b3", "h264-open1-b3", "hevc-open1-b3"},
}


def write(path: Path, codec: str, b_frames: int, options: dict[str, str], count: int = FRAMES) -> None:
    y, x = np.mgrid[:H, :W]
    with usual_scheduling(), av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=20)
        stream.height, stream.width = H, W
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.gop_size, stream.max_b_frames, stream.options = GOP, b_frames, options
        stream.codec_context.thread_count = 1
        for t in range(count):
            image = np.stack([x * 2 + t * 5, y * 3 + t * 3, x + y + t * 7], -1) % 256
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image.astype(np.uint8), format="rgb24")))
        container.mux(stream.encode(None))


def decoded(path: Path) -> Iterator[np.ndarray]:
    colours = VideoReformatter()
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            yield colours.reformat(frame, format="rgb24").to_ndarray()


@pytest.mark.parametrize(
    ("container", "name"), [(container, name) for container, names in CONTAINERS.items() for name in sorted(names)]
)
def test_random_access_gives_what_decoding_from_the_start_gives(
    container: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"video.{container}"
    write(path, *CODECS[name])
    expected = list(decoded(path))
    assert len(expected) >= FRAMES - 1
    rng = np.random.default_rng(0)
    with VideoReader(path) as reader:
        assert len(reader) == len(expected)
        if container in ("mp4", "mkv", "webm"):  # a key frame before it leads to every frame
            monkeypatch.setattr(reader, "_from_the_start", lambda index: pytest.fail(f"{index} from the start"))
        for index in rng.permutation(len(expected)):
            assert np.array_equal(reader.frames([int(index)])[0], expected[index]), index
        several = [int(i) for i in rng.integers(0, len(expected), 20)]
        assert np.array_equal(reader.frames(several), np.stack([expected[i] for i in several]))


def test_what_a_random_frame_costs_is_known(tmp_path: Path) -> None:
    write(tmp_path / "keys.mp4", *CODECS["h264-open0-b0"])
    write(tmp_path / "none.mp4", "libx264", 0, {"x264-params": "keyint=250:scenecut=0"})
    write(tmp_path / "counted.avi", *CODECS["mpeg4-b3"])
    costs = [VideoReader(tmp_path / name).frames_to_decode for name in ("keys.mp4", "none.mp4", "counted.avi")]
    assert costs == [GOP, FRAMES, FRAMES]


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_truncated_video_is_named(tmp_path: Path, share: float) -> None:
    path = tmp_path / "video.mkv"
    write(path, *CODECS["h264-open1-b3"])
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    expected = list(decoded(path))
    with VideoReader(path) as reader:
        for index, frame in enumerate(expected):
            assert np.array_equal(reader.frames([index])[0], frame)
        with pytest.raises(ToolkitError, match=r"video\.mkv"):
            reader.frames([FRAMES - 1])

"""Videos: exact frames by index, faithful writing, and the check that catches writers gone wrong."""

import multiprocessing
import pickle

import h5py
import numpy as np
import pytest
from recordings import SAMPLES, moving_square

from gr00t.data.video import VideoReader, check_video, write_video
from gr00t.errors import ToolkitError

GOLDEN = SAMPLES.parent / "tests" / "golden"


@pytest.fixture
def frames() -> np.ndarray:
    return moving_square(37, (32, 64))


@pytest.fixture
def video(tmp_path, frames):
    path = tmp_path / "episode.mp4"
    write_video(path, frames, 20)
    return path


def test_length_and_rate_are_what_was_written(video):
    with VideoReader(video) as reader:
        assert len(reader) == 37
        assert reader.fps == 20


def test_any_order_and_repeats_give_the_frames_of_a_sequential_read(video):
    with VideoReader(video) as reader:
        everything = reader.frames(range(37))
        wanted = [36, 0, 19, 20, 20, 1, 11, 9]
        assert np.array_equal(reader.frames(wanted), everything[wanted])
        for index in (36, 5, 10, 0, 29):
            assert np.array_equal(reader.frames([index])[0], everything[index])


def test_every_decoded_frame_is_nearest_to_its_own_original(video, frames):
    decoded = VideoReader(video).frames(range(37))[:20].astype(int)
    distances = np.abs(decoded[:, None] - frames[None, :20]).mean(axis=(2, 3, 4))
    assert np.array_equal(distances.argmin(axis=1), np.arange(20))


def test_golden_frames_decode_bit_for_bit():
    points = np.load(GOLDEN / "dataset_points.npz")
    for camera in ("image", "wrist_image"):
        folder = GOLDEN / "dataset_new_embodiment/videos/chunk-000" / f"observation.images.{camera}"
        with VideoReader(folder / "episode_000001.mp4") as reader:
            assert np.array_equal(reader.frames([7])[0], points[f"7::image::{camera}"])


def test_red_is_read_as_red(tmp_path):
    red = np.zeros((3, 32, 32, 3), np.uint8)
    red[..., 0] = 220
    write_video(tmp_path / "red.mp4", red, 20)
    with VideoReader(tmp_path / "red.mp4") as reader:
        first, *others = reader.frames([1])[0].mean(axis=(0, 1))
    assert first > 200 and max(others) < 20


def test_real_frames_lose_little(tmp_path):
    with h5py.File(SAMPLES / "color_object/train/trajectory.h5") as recording:
        real = recording["traj_0/obs/sensor_data/hand_camera/rgb"][:12]
    write_video(tmp_path / "real.mp4", real, 20)
    assert check_video(tmp_path / "real.mp4", 12, dict(enumerate(real))) < 5


def test_a_reader_can_be_pickled_and_inherited_by_a_forked_worker(video):
    reader = VideoReader(video)
    first = reader.frames([3])
    assert np.array_equal(pickle.loads(pickle.dumps(reader)).frames([3]), first)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    worker = context.Process(target=lambda: queue.put(reader.frames([30])))
    worker.start()
    from_worker = queue.get(timeout=120)
    worker.join()
    assert np.array_equal(from_worker, reader.frames([30]))


def test_an_index_beyond_the_end_names_file_index_and_length(video):
    with pytest.raises(ToolkitError, match=r"episode\.mp4: frame 37 .* 37 frames"):
        VideoReader(video).frames([0, 37])
    with pytest.raises(ToolkitError, match="frame -1"):
        VideoReader(video).frames([-1])


def test_a_missing_video_is_named(tmp_path):
    with pytest.raises(ToolkitError, match=r"gone\.mp4: no such video"):
        VideoReader(tmp_path / "gone.mp4").frames([0])


@pytest.mark.parametrize("damage", ["text", "cut", "empty"])
def test_a_damaged_video_is_refused(video, damage):
    content = {"text": b"not a video", "cut": video.read_bytes()[:900], "empty": b""}[damage]
    video.write_bytes(content)
    with pytest.raises(ToolkitError, match=r"episode\.mp4: cannot be decoded"):
        VideoReader(video).frames([0])


def test_odd_sizes_and_wrong_arrays_are_refused(tmp_path, frames):
    with pytest.raises(ToolkitError, match="32x63; height and width must be even"):
        write_video(tmp_path / "odd.mp4", frames[:, :, :63], 20)
    rgba = np.concatenate([frames, frames[..., :1]], axis=-1)
    for wrong in (frames[..., 0], frames[None], rgba, frames.astype(np.float32), frames[:0]):
        with pytest.raises(ToolkitError, match="needs frames"):
            write_video(tmp_path / "wrong.mp4", wrong, 20)


def test_the_check_passes_a_faithful_video(video, frames):
    assert check_video(video, 37, {i: frames[i] for i in (0, 12, 36)}) < 8


def test_the_check_catches_a_wrong_length(video):
    with pytest.raises(ToolkitError, match="37 frames were written, 36 were meant"):
        check_video(video, 36)


def test_the_check_catches_a_stuck_first_frame(tmp_path, frames):
    write_video(tmp_path / "stuck.mp4", np.repeat(frames[:1], 37, axis=0), 20)
    with pytest.raises(ToolkitError, match="frame 9 shows frame 0"):
        check_video(tmp_path / "stuck.mp4", 37, {i: frames[i] for i in (0, 9)})


def test_the_check_catches_swapped_colours(tmp_path, frames):
    write_video(tmp_path / "bgr.mp4", frames[..., ::-1], 20)
    with pytest.raises(ToolkitError, match="red and blue swapped"):
        check_video(tmp_path / "bgr.mp4", 37, {0: frames[0]})


def test_the_check_accepts_noisy_cameras(tmp_path, frames):
    noise = np.random.default_rng(0).integers(-25, 25, frames.shape)
    noisy = np.clip(frames + noise, 0, 255).astype(np.uint8)
    write_video(tmp_path / "noisy.mp4", noisy, 20)
    check_video(tmp_path / "noisy.mp4", 37, dict(enumerate(noisy)))


def test_the_same_frames_give_the_same_file(tmp_path, video, frames):
    for again in range(10):
        write_video(tmp_path / f"{again}.mp4", frames, 20)
        assert (tmp_path / f"{again}.mp4").read_bytes() == video.read_bytes()


def test_the_check_accepts_a_scene_that_does_not_move(tmp_path):
    still = np.full((5, 32, 32, 3), 90, dtype=np.uint8)
    write_video(tmp_path / "still.mp4", still, 20)
    check_video(tmp_path / "still.mp4", 5, dict(enumerate(still)))

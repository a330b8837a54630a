"""Bad recordings, full disks, interruptions: refused with what, where and how to mend it; no half dataset is left."""

import errno
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
from recordings import INSTRUCTION, edit_json, replace, write_recording, write_split

from conflict_panda_config import MODALITY_CONFIG
from data_prep import lerobot
from data_prep.convert import convert_split
from data_prep.lerobot import choose_val_episodes
from data_prep.recording_checks import check_no_duplicates, read_recordings
from gr00t.data.layout import DatasetLayout
from gr00t.errors import ToolkitError

ROOT = Path(__file__).parent.parent
HAND = "obs/sensor_data/hand_camera"
REPLAY = r"python -m mani_skill\.trajectory\.replay_trajectory --traj-path \S+ -o rgb -c pd_joint_pos --save-traj"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write_split(tmp_path_factory.mktemp("whole"), [17, 4, 16, 16], [17])


@pytest.fixture
def raw(whole, tmp_path):
    """A sound split of four train episodes and one conflict episode, to be spoilt by the test."""
    return shutil.copytree(whole, tmp_path / "raw")


@pytest.fixture
def data(tmp_path):
    return tmp_path / "data"


def run(raw, data, **settings):
    return convert_split(raw, data, "color_object", INSTRUCTION, MODALITY_CONFIG, progress=False, **settings)


def h5(raw, part="train"):
    return raw / "color_object" / part / "trajectory.h5"


def refused(raw, data, message):
    """Converting raises an error that matches `message` and says nothing of tracebacks; data_dir stays empty."""
    with pytest.raises(ToolkitError, match=message):
        run(raw, data)
    assert not data.exists() or list(data.iterdir()) == []


def set_kwargs(raw, part="train", **values):
    edit_json(h5(raw, part), lambda meta: meta["env_info"]["env_kwargs"].update(values))


# -- recorded in another way -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["none", "state", "state_dict", "rgb+state", "None"])
def test_a_recording_without_images_or_agent_state_gets_the_replay_command(raw, data, mode):
    set_kwargs(raw, obs_mode=mode)
    refused(raw, data, rf'trajectory\.h5: recorded with obs_mode "{re.escape(mode)}".*{REPLAY}')


def test_the_replay_remedy_tells_how_to_import_an_own_task(raw, data):
    set_kwargs(raw, obs_mode="none")
    refused(raw, data, r"CueConflictPick-v1 is not part of ManiSkill.*import <your task module>")


def test_the_replay_remedy_warns_of_a_switched_off_renderer(raw, data):
    set_kwargs(raw, obs_mode="none", render_backend="none")
    refused(raw, data, r'render_backend in \S+trajectory\.json to "gpu" or "cpu"')


def test_joint_deltas_are_refused_with_the_replay_command(raw, data):
    edit_json(h5(raw), lambda meta: meta["episodes"][1].update(control_mode="pd_joint_delta_pos"))
    refused(raw, data, rf'control_mode "pd_joint_delta_pos".*{REPLAY}')


def test_end_effector_deltas_are_refused_since_no_replay_converts_them(raw, data):
    set_kwargs(raw, control_mode="pd_ee_delta_pose")
    refused(raw, data, r'"pd_ee_delta_pose"; absolute joint targets.*cannot convert.*record again')


def test_another_control_frequency_is_refused(raw, data):
    set_kwargs(raw, sim_config={"control_freq": 30})
    refused(raw, data, "recorded at 30 Hz")


def test_the_conflict_part_is_checked_before_anything_is_written(raw, data):
    set_kwargs(raw, part="conflict", obs_mode="none")
    refused(raw, data, r"conflict/trajectory\.h5: recorded with obs_mode")


# -- files that are missing, damaged or do not belong together ---------------------------------------------------------


def test_a_missing_split_or_part_is_named(raw, data):
    with pytest.raises(ToolkitError, match=r"other: no such folder.*other/train and other/conflict"):
        convert_split(raw, data, "other", INSTRUCTION, MODALITY_CONFIG)
    shutil.rmtree(raw / "color_object/train")
    refused(raw, data, "train: no such folder of recordings")


def test_a_folder_without_recordings_is_named(raw, data):
    h5(raw).unlink()
    refused(raw, data, r"train: holds no \.h5 file")


def test_a_missing_json_is_named(raw, data):
    h5(raw).with_suffix(".json").unlink()
    refused(raw, data, r"trajectory\.json is missing beside it")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"env_info"', "not valid JSON"),
        (b"\xff\xfe\x00", "it is no text"),
        (b"[]", "expected a JSON object, not list"),
        (b'{"env_info": {}, "episodes": []}', r"env_info\.env_kwargs is missing"),
    ],
)
def test_a_damaged_json_is_refused(raw, data, content, message):
    h5(raw).with_suffix(".json").write_bytes(content)
    refused(raw, data, rf"trajectory\.json\b.*{message}")


def test_a_truncated_h5_is_refused(raw, data):
    content = h5(raw).read_bytes()
    h5(raw).write_bytes(content[: len(content) // 2])
    refused(raw, data, r"trajectory\.h5: cannot be read .*truncated")


def test_pixels_that_turn_out_damaged_leave_no_dataset(raw, data):
    with h5py.File(h5(raw)) as recording:
        chunk = recording[f"traj_1/{HAND}/rgb"].id.get_chunk_info(0)
    content = bytearray(h5(raw).read_bytes())
    content[chunk.byte_offset : chunk.byte_offset + chunk.size] = b"\xff" * chunk.size
    h5(raw).write_bytes(content)
    with pytest.raises(
        ToolkitError, match=r"trajectory\.h5: cannot be read[\s\S]*1 of 5 episodes are converted and wait"
    ):
        run(raw, data)
    assert not (data / "color_object").exists()


def test_a_trajectory_that_only_the_json_knows_is_named(raw, data):
    with h5py.File(h5(raw), "a") as recording:
        del recording["traj_1"]
    refused(raw, data, r"traj_1 \(1 in all\) in the \.json but not in the \.h5")


def test_a_trajectory_that_only_the_h5_knows_is_named(raw, data):
    edit_json(h5(raw), lambda meta: meta["episodes"].pop(2))
    refused(raw, data, r"traj_2 \(1 in all\) in the \.h5 but not in the \.json")


def test_different_lengths_in_json_and_h5_are_refused(raw, data):
    edit_json(h5(raw), lambda meta: meta["episodes"][1].update(elapsed_steps=9))
    refused(raw, data, "traj_1: 4 actions, but the .json says elapsed_steps 9")


def test_an_episode_id_that_occurs_twice_or_is_missing_is_refused(raw, data):
    edit_json(h5(raw), lambda meta: meta["episodes"][1].update(episode_id=0))
    refused(raw, data, "episode_id 0 occurs twice")
    edit_json(h5(raw), lambda meta: meta["episodes"][1].pop("episode_id"))
    refused(raw, data, "an episode has no episode_id")


def test_the_same_recording_twice_is_refused(raw, data):
    for suffix in (".h5", ".json"):
        shutil.copy(h5(raw).with_suffix(suffix), h5(raw).with_name(f"again{suffix}"))
    refused(raw, data, "is the same recording as")


def test_a_conflict_episode_among_the_train_episodes_is_refused(raw, data):
    for suffix in (".h5", ".json"):
        shutil.copy(h5(raw, "conflict").with_suffix(suffix), h5(raw).with_name(f"more{suffix}"))
    refused(raw, data, "is also a train episode")


# -- episodes that cannot be used --------------------------------------------------------------------------------------


def test_no_successful_episode_is_refused(raw, data):
    write_recording(raw / "color_object/train", [5, 5, 5], failed=(0, 1, 2))
    refused(raw, data, "none of the 3 recorded episodes is successful")


def test_too_few_episodes_to_hold_two_out_are_refused(raw, data):
    write_recording(raw / "color_object/train", [17, 5])
    refused(raw, data, "2 successful train episodes cannot spare 2 for validation")


def test_episodes_shorter_than_the_action_horizon_are_refused(raw, data):
    write_recording(raw / "color_object/train", [5, 5, 5, 5])
    refused(raw, data, "longest episode outside validation .* has 5 steps, the action horizon has 16")


SPOILT = {
    "no wrist camera": (lambda t: t.pop(HAND), r'camera "hand_camera" is missing.*robot_uids="panda_wristcam"'),
    "no rgb": (lambda t: t.pop(f"{HAND}/rgb"), 'has no "obs/sensor_data/hand_camera/rgb"'),
    "no qpos": (lambda t: t.pop("obs/agent/qpos"), 'has no "obs/agent/qpos"'),
    "no success": (lambda t: t.pop("success"), 'has no "success"'),
    "zero length": (lambda t: replace(t, "actions", np.zeros((0, 8), np.float32)), "has no steps"),
    "seven actions": (lambda t: replace(t, "actions", np.zeros((4, 7), np.float32)), r"\(4, 7\), \(any, 8\) is needed"),
    "as many observations as actions": (
        lambda t: replace(t, "obs/agent/qpos", np.zeros((4, 9), np.float32)),
        r'"obs/agent/qpos" has the shape \(4, 9\), \(5, 9\) is needed: T actions, T\+1 observations',
    ),
    "another robot": (lambda t: replace(t, "obs/agent/qpos", np.zeros((5, 12), np.float32)), r"\(5, 9\) is needed"),
    "no values at all": (lambda t: replace(t, "obs/agent/qpos", h5py.Empty("f4")), r"has the shape \(\), \(5, 9\) is"),
    "too few frames": (lambda t: replace(t, f"{HAND}/rgb", np.zeros((4, 32, 32, 3), np.uint8)), r"\(5, any, any, 3\)"),
    "float frames": (lambda t: replace(t, f"{HAND}/rgb", np.zeros((5, 32, 32, 3), np.float32)), "uint8 is needed"),
    "odd frames": (lambda t: replace(t, f"{HAND}/rgb", np.zeros((5, 31, 32, 3), np.uint8)), "31x32; height and width"),
    "another size": (
        lambda t: replace(t, f"{HAND}/rgb", np.zeros((5, 64, 32, 3), np.uint8)),
        "wrist_image frames are 64x32, those of .*traj_0 are 32x32",
    ),
    "NaN action": (lambda t: t["actions"].write_direct(nan((4, 8))), '"actions" is not a finite number at step 2'),
    "NaN state": (lambda t: t["obs/agent/qpos"].write_direct(nan((5, 9))), '"obs/agent/qpos" is not a finite number'),
}


def nan(shape):
    values = np.zeros(shape, np.float32)
    values[2, 1] = np.nan
    return values


@pytest.mark.parametrize("name", SPOILT)
def test_a_spoilt_episode_is_refused_by_name(raw, data, name):
    spoil, message = SPOILT[name]
    with h5py.File(h5(raw), "a") as recording:
        spoil(recording["traj_1"])
    with pytest.raises(ToolkitError, match="traj_1"):
        run(raw, data)
    refused(raw, data, message)


# -- the place to write to ---------------------------------------------------------------------------------------------


def test_an_existing_dataset_is_refused_and_untouched(raw, data):
    first = run(raw, data)
    before = {p: p.stat().st_mtime_ns for p in data.rglob("*")}
    for other in ({"seed": 7}, {"val_fraction": 0.25}, {"seed": 7, "share": "1/2"}):
        with pytest.raises(ToolkitError, match=r"color_object: exists already.*overwrite=true"):
            run(raw, data, **other)
    assert first.parts[0].episodes == 4
    recording = h5(raw)
    kept, same_size = recording.read_bytes(), bytearray(recording.read_bytes())
    same_size[-1] ^= 1
    for content in (kept + b"x", bytes(same_size)):
        recording.write_bytes(content)
        with pytest.raises(ToolkitError, match="exists already"):
            run(raw, data)
    recording.write_bytes(kept)
    extra = raw / "color_object/train/more.h5"
    extra.write_bytes(kept)
    with pytest.raises(ToolkitError, match="exists already"):
        run(raw, data)
    assert before == {p: p.stat().st_mtime_ns for p in data.rglob("*")}


@pytest.mark.parametrize("share", [None, "1/2"])
def test_the_same_conversion_again_does_nothing_and_says_so(raw, data, share):
    """As a job does that is requeued after it published."""
    run(raw, data)
    before = {p: p.stat().st_mtime_ns for p in data.rglob("*")}
    again = run(raw, data, share=share)
    assert again.lines() == [f"{data / 'color_object'}: already holds these recordings, converted with these settings."]
    assert before == {p: p.stat().st_mtime_ns for p in data.rglob("*")}


def test_overwrite_replaces_the_old_dataset(raw, data):
    run(raw, data)
    write_recording(raw / "color_object/train", [17, 16, 16], seed=5)
    run(raw, data, overwrite=True)
    assert len(DatasetLayout(data / "color_object/train").episodes) == 3
    assert [p.name for p in data.iterdir()] == ["color_object"]


def test_a_failed_overwrite_keeps_the_old_dataset(raw, data, monkeypatch):
    old = run(raw, data)
    monkeypatch.setattr(lerobot, "write_video", full_disk)
    with pytest.raises(ToolkitError, match="disk or quota is full"):
        run(raw, data, overwrite=True)
    assert DatasetLayout(data / "color_object/train").fingerprint == old.parts[0].fingerprint
    assert [p.name for p in data.iterdir()] == ["color_object"]


def test_overwrite_never_replaces_what_the_converter_did_not_write(raw, data):
    run(raw, data)
    (data / "color_object/my_notes.txt").write_text("keep me")
    with pytest.raises(ToolkitError, match=r"holds my_notes\.txt"):
        run(raw, data, overwrite=True)
    with pytest.raises(ToolkitError, match=r"did not write"):
        run(raw, raw, overwrite=True)
    assert (data / "color_object/my_notes.txt").is_file()
    assert h5(raw).is_file()


def full_disk(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_disk_that_fills_up_is_reported_and_nothing_is_left(raw, data, monkeypatch):
    monkeypatch.setattr(lerobot, "write_video", full_disk)
    refused(raw, data, r"disk or quota is full; nothing half-written is left.*data_dir")


def test_too_little_free_space_is_reported_before_writing(raw, data, monkeypatch):
    usage = namedtuple("usage", "total used free")(10**9, 10**9, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    refused(raw, data, r"about [\d.]+ kB are needed and 1\.0 kB are free")


def test_conflict_failing_after_train_leaves_no_dataset(raw, data, monkeypatch):
    real = lerobot.write_video

    def fail_in_conflict(path, frames, fps):
        if "conflict" in path.parts:
            full_disk()
        real(path, frames, fps)

    monkeypatch.setattr(lerobot, "write_video", fail_in_conflict)
    with pytest.raises(ToolkitError, match="disk or quota is full"):
        run(raw, data)
    assert not (data / "color_object").exists()


def test_an_encoder_that_writes_other_colours_is_caught(raw, data, monkeypatch):
    real = lerobot.write_video
    monkeypatch.setattr(lerobot, "write_video", lambda path, frames, fps: real(path, frames[..., ::-1], fps))
    refused(raw, data, "red and blue swapped")


def test_ctrl_c_leaves_nothing(raw, data, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(lerobot, "check_video", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(raw, data)
    assert list(data.iterdir()) == []


# -- killed ------------------------------------------------------------------------------------------------------------

KILLED_HALFWAY = """
import sys, time
from conflict_panda_config import MODALITY_CONFIG
from data_prep import lerobot
from data_prep.convert import convert_split
real = lerobot.write_video
def write_and_stop(path, frames, fps):
    real(path, frames, fps)
    print("written", flush=True)
    time.sleep(60)
lerobot.write_video = write_and_stop
convert_split(sys.argv[1], sys.argv[2], "color_object", "pick up", MODALITY_CONFIG, progress=False)
"""


@pytest.fixture
def halfway(raw, data):
    """Another process that converts the split and has stopped after its first video."""
    command = [sys.executable, "-c", KILLED_HALFWAY, str(raw), str(data)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    assert process.stdout.readline() == "written\n"
    yield process
    process.kill()
    process.wait()


def test_a_killed_conversion_leaves_no_dataset_and_the_next_start_cleans_up(halfway, raw, data):
    os.kill(halfway.pid, signal.SIGKILL)
    halfway.wait()
    assert not (data / "color_object").exists()
    assert list(data.glob(".color_object.converting"))
    run(raw, data)
    assert [p.name for p in data.iterdir()] == ["color_object"]
    assert len(DatasetLayout(data / "color_object/train").episodes) == 4


def test_a_running_conversion_is_never_disturbed(halfway, raw, data):
    before = sorted(data.rglob("*"))
    with pytest.raises(ToolkitError, match="another process is writing it"):
        run(raw, data)
    assert sorted(data.rglob("*")) == before
    assert any(p.suffix == ".mp4" for p in before)


def test_an_old_dataset_moved_away_by_a_killed_overwrite_is_put_back(raw, data):
    old = run(raw, data)
    (data / "color_object").rename(data / ".color_object.replaced")
    assert "already holds these recordings" in run(raw, data).lines()[0]
    assert DatasetLayout(data / "color_object/train").fingerprint == old.parts[0].fingerprint
    assert json.loads((data / "color_object/train/meta/info.json").read_text())["total_episodes"] == 4


def test_a_file_system_without_locks_is_reported(raw, data, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(ToolkitError, match=r"no file locks.* Write to a local folder and copy the result"):
        run(raw, data)


# -- what is alike, and what is not ------------------------------------------------------------------------------------


def test_equal_actions_from_another_start_are_another_episode(raw):
    with h5py.File(h5(raw), "a") as recording:
        replace(recording["traj_3"], "actions", recording["traj_2/actions"][:])
    check_no_duplicates(read_recordings(h5(raw).parent))
    with h5py.File(h5(raw), "a") as recording:
        recording["traj_3/obs/agent/qpos"][0] = recording["traj_2/obs/agent/qpos"][0]
    with pytest.raises(ToolkitError, match=r"traj_3 is the same recording as .*traj_2 .*1 such"):
        check_no_duplicates(read_recordings(h5(raw).parent))


def test_a_conflict_recording_that_is_there_twice_is_refused(raw, data):
    for suffix in (".h5", ".json"):
        shutil.copy(h5(raw, "conflict").with_suffix(suffix), h5(raw, "conflict").with_name(f"again{suffix}"))
    refused(raw, data, r"conflict.* is the same recording as")


def test_conflict_frames_of_another_size_are_refused(raw, data):
    write_recording(raw / "color_object/conflict", [17], seed=2, size=(64, 32))
    refused(raw, data, r"conflict\S*, traj_0: the image frames are 64x32, those of .*train.* are 32x32")


def test_episodes_held_out_do_not_count_for_the_action_horizon(raw, data):
    held_out = choose_val_episodes(4, 0.1, 42)
    write_recording(raw / "color_object/train", [16 if i in held_out else 15 for i in range(4)])
    refused(raw, data, "longest episode outside validation .* has 15 steps")


def test_each_episode_has_its_own_instruction_where_the_recording_gives_one(raw, data):
    def change(meta):
        for number, text in ((1, "lift it"), (3, "lift it")):
            meta["episodes"][number]["instruction"] = text

    edit_json(h5(raw), change)
    run(raw, data)
    layout = DatasetLayout(data / "color_object/train")
    assert [e.tasks for e in layout.episodes] == [(INSTRUCTION,), ("lift it",), (INSTRUCTION,), ("lift it",)]
    assert layout.tasks == {0: INSTRUCTION, 1: "lift it"} and layout.info["total_tasks"] == 2
    rows = pq.read_table(layout.parquet_path(3)).to_pydict()
    assert set(rows["task_index"]) == set(rows["annotation.human.task_description"]) == {1}


def test_held_out_episodes_are_rounded_to_the_nearest():
    assert [len(choose_val_episodes(count, 0.1, 42)) for count in (24, 26, 34, 36)] == [2, 3, 3, 4]
    assert len(choose_val_episodes(3, 0.1, 42)) == 2
    with pytest.raises(ToolkitError, match="must lie between 0 and 1"):
        choose_val_episodes(20, 1.0, 42)
    with pytest.raises(ToolkitError, match="20 successful train episodes cannot spare 20"):
        choose_val_episodes(20, 0.99, 42)

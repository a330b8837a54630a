"""The task in the simulator: seeded resets, the expert, recordings that are killed, resumed and converted."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from pathlib import Path

import h5py
import numpy as np
import pytest
from config_calls import compose
from simulator import TRAIN, command, needs_simulator, record_killed, recorded

from conflict_panda_config import MODALITY_CONFIG
from gr00t.errors import ToolkitError
from simulation.scenes.instruction_suite import ALL
from simulation.scenes.instruction_suite import sample_episode as sample_instructed
from simulation.scenes.plate_suite import SPLITS, sample_episode
from simulation.scenes.verbs import VERBS, Thresholds
from toolkit.installation import CHECKOUT

pytestmark = needs_simulator


def played(task, actions: np.ndarray) -> dict:
    """Carry out actions (T, 8); the last step's info."""
    for action in actions:
        info = task.step(action)[-1]
    return info


def physics(split: str, part: str):
    """The task without cameras, and its expert."""
    from simulation.scenes.environment import make_env
    from simulation.scenes.expert import Expert

    task = make_env(split, part, render="none").unwrapped
    return task, Expert(task)


@pytest.fixture(scope="module")
def color_size():
    return physics("color_size", "conflict")


@pytest.mark.parametrize("split", SPLITS)
def test_the_expert_solves_the_first_episodes_of_every_split(split: str) -> None:
    from simulation.scenes.expert import drawn_style

    task, expert = physics(split, "conflict")
    for seed in range(2):
        task.reset(seed=seed)
        assert task.episode == sample_episode(split, "conflict", seed)
        info = played(task, expert.plan(task.episode.target, drawn_style(random.Random(seed))))
        assert bool(info["success"]) and int(info["picked"]) == task.episode.target
    task.close()


def test_the_expert_lifts_every_shape_in_every_size() -> None:
    from simulation.scenes.expert import drawn_style

    task, expert = physics("instruction/size_object", "train")
    solved: dict[tuple[str, str], list[bool]] = {}
    for seed in range(60):
        thing = (episode := sample_instructed("instruction/size_object", "train", seed)).objects[episode.target]
        if len(solved.setdefault((thing.object, thing.size), [])) < 2:
            task.reset(seed=seed)
            assert task.episode == episode
            info = played(task, expert.plan(episode.target, drawn_style(random.Random(seed))))
            solved[thing.object, thing.size].append(bool(info["success"]) and int(info["picked"]) == episode.target)
    task.close()
    assert len({shape for shape, _ in solved}) == 6 and {size for _, size in solved} == {"small", "large"}
    assert sum(map(sum, solved.values())) >= sum(map(len, solved.values())) - 1


@pytest.fixture(scope="module")
def verb_color():
    return physics("instruction/verb_color", "conflict")


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_is_done_and_told_from_the_others(verb_color, verb: str) -> None:
    """By the expert: to the target, which is success, and to the other object or otherwise, which is none."""
    from simulation.scenes.expert import Style

    task, expert = verb_color
    seed = next(seed for seed in range(100) if sample_instructed(task.split, task.part, seed).verb == verb)
    otherwise = "rotate" if verb == "lift" else "lift"
    for goal, done in (("target", verb), ("lure", verb), ("target", otherwise)):
        task.reset(seed=seed)
        index, before = getattr(task.episode, goal), task.object_poses()
        info = played(task, expert.plan(index, Style(), done))
        assert (int(info["picked"]), VERBS[int(info["did"])]) == (index, done)
        assert bool(info["success"]) == (goal == "target" and done == verb)
        assert np.abs(np.delete(task.object_poses() - before, index, axis=0)).max() < 1e-3


def test_settings_of_the_suite_reach_the_environment() -> None:
    from simulation.scenes.environment import make_env

    task = make_env(ALL, "train", render="none", no_distractor_prob=1.0, thresholds={"moved": 0.08}).unwrapped
    seed = next(
        seed for seed in range(100) if sample_instructed(ALL, "train", seed).named["size"] in ("small", "large")
    )
    task.reset(seed=seed)
    assert task.detector.thresholds == Thresholds(moved=0.08)
    assert task.episode == sample_instructed(ALL, "train", seed, None, 1.0) and len(task.objects) == 1
    task.close()


def test_images_do_not_depend_on_what_is_left_out_of_them(renderer: None) -> None:
    """Wherever the arm is, what is not drawn for a camera, most of it, would not have been in its image."""
    from mani_skill.envs.sapien_env import BaseEnv

    from simulation.scenes.environment import make_env
    from simulation.scenes.frustum_culling import only_what_is_seen

    task = make_env(ALL, "train", image_size=64).unwrapped
    rng = np.random.default_rng(0)
    left_out = {name: 0 for name in task._sensors}
    for seed in range(4):
        task.reset(seed=seed)
        bodies = task.scene.sub_scenes[0].render_system.render_bodies
        for _ in range(6):
            turned = task.qpos()[:7] + rng.normal(0, 0.4, 7)
            task.step(np.append(turned, rng.choice([-1, 1])).astype(np.float32))
            looks = task.look()
            for name, sensor in task._sensors.items():
                with only_what_is_seen(sensor.camera._render_cameras[0], bodies):
                    left_out[name] += sum(not body.visibility for body in bodies)
            assert all(body.visibility == 1 for body in bodies)
            BaseEnv.capture_sensor_data(task)
            for name, image in looks.items():
                whole = task._sensors[name].get_obs(rgb=True, depth=False, position=False, segmentation=False)["rgb"]
                assert np.array_equal(whole[0].numpy(), image), (name, seed)
    task.close()
    assert min(left_out.values()) > 24 * 5  # of 15 and more


def test_picking_the_lure_is_no_success(color_size) -> None:
    task, expert = color_size
    task.reset(seed=1)
    info = played(task, expert.plan(task.episode.lure))
    assert not bool(info["success"]) and int(info["picked"]) == task.episode.lure


def test_doing_nothing_picks_nothing(color_size) -> None:
    task, expert = color_size
    task.reset(seed=1)
    hold = np.append(expert.joints()[:7], 1).astype(np.float32)
    assert int(played(task, np.stack([hold] * 5))["picked"]) == -1


def states(task, expert, seed: int, **reset: object) -> list[np.ndarray]:
    task.reset(seed=seed, **reset)
    found = [task.get_state().numpy()]
    for action in expert.plan(task.episode.target):
        task.step(action)
        found.append(task.get_state().numpy())
    return found


def test_the_same_seed_gives_the_same_first_state_bit_for_bit(color_size) -> None:
    task, expert = color_size
    first = states(task, expert, 7)
    states(task, expert, 8)
    assert np.array_equal(first[0], states(task, expert, 7)[0])


def test_in_a_rebuilt_scene_the_same_seed_and_actions_give_the_same_states_bit_for_bit(color_size) -> None:
    from simulation.scenes.environment import REBUILD

    task, expert = color_size
    first = states(task, expert, 7, options=dict(REBUILD))
    states(task, expert, 8)
    again = states(task, expert, 7, options=dict(REBUILD))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))


def test_after_a_push_the_expert_plans_again_and_succeeds(color_size) -> None:
    task, expert = color_size
    task.reset(seed=3)
    played(task, expert.plan(task.episode.target)[:10])
    before = expert.hand_pose(expert.joints()).p
    expert.displace(random.Random(0))
    assert 0.02 <= float(np.linalg.norm((expert.hand_pose(expert.joints()).p - before)[:2])) <= 0.04
    assert bool(played(task, expert.plan(task.episode.target))["success"])


# -- recordings --------------------------------------------------------------------------------------------------------


def meta_of(folder: Path) -> dict:
    return json.loads((folder / "trajectory.json").read_text())


@pytest.mark.multiprocess
@pytest.mark.slow
def test_a_recording_is_one_complete_file(recordings: Path) -> None:
    assert sorted(p.name for p in recordings.iterdir()) == ["conflict", "train"]
    meta = meta_of(recordings / "train")
    assert [e["episode_seed"] for e in meta["episodes"]] == [0, 1, 2]
    with h5py.File(recordings / "train/trajectory.h5") as file:
        assert sorted(file) == ["traj_0", "traj_1", "traj_2"]
        for entry in meta["episodes"]:
            trajectory, steps = file[f"traj_{entry['episode_id']}"], entry["elapsed_steps"]
            assert trajectory["actions"].shape == (steps, 8) and trajectory["success"][-1]
            for camera in ("base_camera", "hand_camera"):
                frames = trajectory[f"obs/sensor_data/{camera}/rgb"]
                assert frames.shape == (steps + 1, 64, 64, 3) and frames[0].std() > 10


@pytest.mark.long
@pytest.mark.multiprocess
def test_a_killed_recording_continues_as_the_undisturbed_one(recordings: Path, tmp_path: Path) -> None:
    resumed = record_killed(tmp_path)
    assert sorted(p.name for p in resumed.parent.iterdir() if not p.name.endswith(".lock")) == ["train"]
    assert contents(resumed / "trajectory.h5") == contents(recordings / "train/trajectory.h5")
    assert meta_of(resumed) == meta_of(recordings / "train")


@pytest.mark.long
@pytest.mark.multiprocess
def test_shares_recorded_side_by_side_join_to_the_recording_of_one_process(recordings: Path, tmp_path: Path) -> None:
    shares = [command(tmp_path, *TRAIN, "workers=1", f"share={share}") for share in ("1/2", "2/2")]
    started = [subprocess.Popen(share, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True) for share in shares]
    said = [process.communicate()[0] for process in started]
    assert " 2 recorded now" in said[0] and " 1 recorded now" in said[1]
    work = tmp_path / "size_color/.train.recording"
    assert {path.stem for path in work.glob("*.h5")} == {"0", "1", "2"}
    (work / "1.h5").unlink()  # as if the second had been killed
    (work / "5.partial-0.h5").touch()
    assert " 1 recorded now" in recorded(tmp_path, *TRAIN, "workers=1", "share=2/2")
    assert (work / "5.partial-0.h5").exists()
    assert " 0 recorded now" in recorded(tmp_path, *TRAIN)
    assert "already holds these 3 episodes" in recorded(tmp_path, *TRAIN, "share=2/2")
    assert [p.name for p in work.parent.iterdir() if not p.name.endswith(".lock")] == ["train"]
    joined, whole = work.with_name("train"), recordings / "train"
    assert contents(joined / "trajectory.h5") == contents(whole / "trajectory.h5")
    assert (joined / "trajectory.json").read_bytes() == (whole / "trajectory.json").read_bytes()


@pytest.mark.multiprocess
@pytest.mark.slow
def test_the_json_says_what_each_episode_holds(recordings: Path) -> None:
    paraphrases = compose("record", "split=size_color").split
    for entry in meta_of(recordings / "train")["episodes"]:
        episode = sample_episode("size_color", "train", entry["episode_seed"])
        assert entry["conflict"] == json.loads(json.dumps(episode.describe()))
        assert entry["instruction"] in (paraphrases.instruction, *paraphrases.paraphrases)
    for entry in meta_of(recordings / "conflict")["episodes"]:
        assert entry["disturbed"] and entry["conflict"]["lure"] is not None and "instruction" not in entry


@pytest.mark.multiprocess
@pytest.mark.slow
def test_an_episode_with_a_push_begins_after_it(recordings: Path) -> None:
    task, _ = physics("size_color", "conflict")
    with h5py.File(recordings / "conflict/trajectory.h5") as file:
        for entry in meta_of(recordings / "conflict")["episodes"]:
            trajectory = file[f"traj_{entry['episode_id']}"]
            assert len(trajectory["actions"]) == entry["elapsed_steps"] and trajectory["success"][-1]
            joints = trajectory["obs/agent/qpos"][:, :7]
            assert len(joints) == len(trajectory["env_states/actors/plate"]) == entry["elapsed_steps"] + 1
            task.reset(**entry["reset_kwargs"])
            assert np.abs(joints[0] - task.agent.robot.qpos[0, :7].numpy()).max() > 0.04  # radians


@pytest.mark.multiprocess
@pytest.mark.slow
def test_recorded_actions_replayed_from_the_seed_give_the_recorded_states_and_succeed(recordings: Path) -> None:
    task, _ = physics("size_color", "train")
    with h5py.File(recordings / "train/trajectory.h5") as file:
        for entry in meta_of(recordings / "train")["episodes"]:
            task.reset(**entry["reset_kwargs"])
            trajectory = file[f"traj_{entry['episode_id']}"]
            assert bool(played(task, trajectory["actions"][:])["success"])
            assert np.array_equal(expected := trajectory["obs/agent/qpos"][-1], task.agent.robot.qpos[0].numpy()), (
                expected
            )


@pytest.mark.multiprocess
@pytest.mark.slow
def test_recordings_are_converted_as_a_users_are(recordings: Path, tmp_path: Path) -> None:
    from data_prep.convert import convert_split

    report = convert_split(recordings.parent, tmp_path, "size_color", "pick it up", MODALITY_CONFIG, progress=False)
    assert [(part.part, part.episodes, part.left_out) for part in report.parts] == [
        ("train", 3, ()),
        ("conflict", 2, ()),
    ]
    told = [json.loads(line) for line in (tmp_path / "size_color/train/meta/episodes.jsonl").read_text().splitlines()]
    said = [entry["instruction"] for entry in meta_of(recordings / "train")["episodes"]]
    assert [line["tasks"] for line in told] == [[text] for text in said]
    tasks = (tmp_path / "size_color/conflict/meta/tasks.jsonl").read_text().splitlines()
    assert [json.loads(line)["task"] for line in tasks] == ["pick it up"]


@pytest.mark.multiprocess
@pytest.mark.slow
def test_a_finished_recording_is_left_alone_and_other_settings_are_refused(recordings: Path) -> None:
    from simulation.record import record

    def again(*argv: str) -> list[str]:
        given = ("local=none", "split=size_color", "image_size=64", f"out={recordings.parent}", "paraphrases=true")
        return record(compose("record", *given, *argv))

    before = (recordings / "train/trajectory.h5").stat().st_mtime_ns
    leftover = recordings / ".train.recording"
    leftover.mkdir()
    settings = meta_of(recordings / "train")["recording"]["settings"]
    (leftover / "settings.json").write_text(json.dumps(settings))
    assert "already holds these 3 episodes" in again("episodes=3")[0]
    assert not leftover.exists()
    with pytest.raises(ToolkitError, match=r"episodes=3 \(now 2\).*overwrite=true"):
        again("episodes=2")
    (recordings / "train/notes.txt").write_text("mine")
    with pytest.raises(ToolkitError, match=r"notes\.txt, which was not recorded here"):
        again("episodes=4", "overwrite=true")
    (recordings / "train/notes.txt").unlink()
    assert (recordings / "train/trajectory.h5").stat().st_mtime_ns == before


@pytest.mark.long
@pytest.mark.multiprocess
@pytest.mark.slow
def test_a_recording_is_made_longer_by_what_it_lacks(recordings: Path, tmp_path: Path) -> None:
    from simulation.record import record

    shorter = tmp_path / "size_color/train"
    shutil.copytree(recordings / "train", shorter)
    meta = meta_of(shorter)
    del meta["episodes"][2]
    meta["recording"]["settings"]["episodes"] = 2
    (shorter / "trajectory.json").write_text(json.dumps(meta))
    with h5py.File(shorter / "trajectory.h5", "a") as file:
        del file["traj_2"]
    settings = ("local=none", "split=size_color", "image_size=64", f"out={tmp_path}", "paraphrases=true", "workers=1")
    lines = record(compose("record", *settings, "episodes=3"))
    assert "3 successful episodes" in lines[0] and " 1 recorded now" in lines[-1]
    assert meta_of(shorter) == meta_of(recordings / "train")
    assert contents(shorter / "trajectory.h5") == contents(recordings / "train/trajectory.h5")
    assert [path.name for path in shorter.parent.iterdir() if not path.name.endswith(".lock")] == ["train"]


def test_a_longer_recording_continues_after_the_seeds_that_were_given_up(tmp_path: Path) -> None:
    from simulation.record import settings_of, take_apart

    config = compose("record", "local=none", "split=size_color", "seed=4", "episodes=9", f"out={tmp_path}")
    target, work = tmp_path / "train", tmp_path / "work"
    target.mkdir()
    work.mkdir()
    meta = {"env_info": {}, "recording": {"settings": settings_of(config)}}
    episodes = [{"episode_id": number, "episode_seed": seed} for number, seed in enumerate((5, 7, 8))]
    (target / "trajectory.json").write_text(json.dumps({**meta, "episodes": episodes}))
    with h5py.File(target / "trajectory.h5", "w") as file:
        for number in range(2):
            file[f"traj_{number}/actions"] = np.full(3, number)
    with pytest.raises(ToolkitError, match=r"has no traj_2\. Record again"):
        take_apart(target, work, config.seed)
    with h5py.File(target / "trajectory.h5", "a") as file:
        file["traj_2/actions"] = np.full(3, 2)
    take_apart(target, work, config.seed)
    assert {path.name for path in work.glob("*.failed")} == {"4.failed", "6.failed"}
    for number, seed in enumerate((5, 7, 8)):
        assert contents(work / f"{seed}.h5") == {"traj_0/actions": np.full(3, number).tobytes()}
        assert json.loads((work / f"{seed}.json").read_text()) == {
            "env_info": {},
            "episodes": [{"episode_id": 0, "episode_seed": seed}],
        }
    (target / "trajectory.h5").write_bytes(b"no HDF5")
    with pytest.raises(ToolkitError, match=r"cannot be read.*Record again"):
        take_apart(target, work, config.seed)


def test_settings_that_would_lose_or_mix_recorded_episodes_stop_the_recording() -> None:
    from simulation.record import _begins, settings_of

    def settings(*change: str) -> dict:
        return settings_of(compose("record", "local=none", "split=size_color", *change))

    assert _begins(settings("episodes=4"), settings("episodes=9"))
    assert not _begins(settings("episodes=9"), settings("episodes=4"))
    assert not _begins(settings("episodes=4"), settings("episodes=9", "seed=1"))
    pushed = settings("recoveries=0.2")
    earlier = {name: value for name, value in pushed.items() if name != "begins_after_push"}
    assert _begins(pushed, pushed) and not _begins(earlier, pushed)


def contents(path: Path) -> dict[str, bytes]:
    found = {}
    with h5py.File(path) as file:
        file.visititems(lambda name, item: found.update({name: item[()].tobytes()} if hasattr(item, "dtype") else {}))
    return found

"""Closed loop: what policies are shown, who acts, the same outcomes every time, and policies that check the loop."""

from __future__ import annotations

import functools
import multiprocessing
import os
from collections import Counter
from pathlib import Path

import h5py
import numpy as np
import pytest
from config_calls import compose, refusal
from finished import finished_checkpoint
from recordings import INSTRUCTION, SAMPLES
from simulator import needs_simulator, renderer

from conflict_panda_config import MODALITY_CONFIG
from finetune.config.schema import ABLATIONS
from gr00t.data.dataset import StepReader
from gr00t.data.video import VideoReader
from gr00t.errors import ToolkitError
from gr00t.files import read_json, write_json
from gr00t.model.gr00t_n1 import GR00TPolicy
from simulation.closed_loop import evaluate_closed_loop
from simulation.factors import FIRST_EVALUATION_SEED, PARTS
from simulation.inference import Inference
from simulation.observation import Observation
from simulation.outcomes import CONDITIONS, LURE, NOTHING, OTHER, TARGET
from simulation.policies import LurePolicy, RandomPolicy, ScriptedPolicy, TargetPolicy, replay_policy
from simulation.rollout import Phase, Request, Settings, run_episodes

__all__ = ["renderer"]
FIRST = FIRST_EVALUATION_SEED
PHYSICS = Settings("color_object", INSTRUCTION, render="none")


def played(policy: ScriptedPolicy | None, part: str, seeds, settings: Settings = PHYSICS, ask=None, condition="none"):
    """Outcomes of a player in this process, and the player."""
    from simulation.episodes import EpisodePlayer

    player = EpisodePlayer(settings, policy, ask)
    player.begin(Phase(condition, part, INSTRUCTION, tuple(seeds)))
    return [player.play(seed) for seed in seeds], player


# -- policies that check the loop --------------------------------------------------------------------------------------


@needs_simulator
@pytest.mark.multiprocess
@pytest.mark.slow
def test_the_expert_succeeds_in_every_episode_of_both_parts() -> None:
    outcomes = run_episodes(TargetPolicy(), Settings("size_color", "x", episodes=5, render="none"), progress=False)
    assert [(o.part, o.seed) for o in outcomes] == [(part, FIRST + i) for part in PARTS for i in range(5)]
    assert all(o.success and o.picked == TARGET and o.picked_step <= o.steps <= 100 for o in outcomes)
    assert all(o.chunks == -(-o.steps // 8) and o.episode["part"] == o.part for o in outcomes)
    assert not multiprocessing.active_children()


@needs_simulator
def test_one_that_takes_the_lure_fails_in_every_conflict_episode() -> None:
    outcomes, player = played(LurePolicy(), "conflict", range(FIRST, FIRST + 8))
    assert [(o.success, o.picked) for o in outcomes] == [(False, LURE)] * 8
    player.begin(Phase("none", "train", INSTRUCTION, ()))
    assert player.play(FIRST).success  # there both cues point at one object


@needs_simulator
def test_one_that_picks_at_random_picks_by_chance_and_the_same_every_time() -> None:
    seeds = range(FIRST, FIRST + 30)
    outcomes, player = played(RandomPolicy(seed=1), "conflict", seeds)
    picked = Counter(o.picked for o in outcomes)
    assert picked[TARGET] + picked[LURE] + picked[OTHER] == 30
    assert all(1 <= picked[kind] <= 19 for kind in (TARGET, LURE, OTHER))  # 10 +- 3.5 standard deviations
    assert picked[TARGET] == sum(o.success for o in outcomes)
    player.begin(Phase("none", "conflict", INSTRUCTION, ()))
    assert [player.play(seed) for seed in seeds[:4]] == outcomes[:4]


@needs_simulator
def test_a_phase_repeats_its_motions_bit_for_bit_whatever_was_played_before() -> None:
    def motions(player) -> list[np.ndarray]:
        player.begin(Phase("none", "train", INSTRUCTION, ()))
        found = []
        for seed in (FIRST + 3, FIRST + 4):
            player.play(seed)
            found.append(player.task.get_state().numpy())
        return found

    _, player = played(TargetPolicy(), "conflict", [FIRST + 9])
    first = motions(player)
    assert all(np.array_equal(a, b) for a, b in zip(first, motions(player), strict=True))


class Fatal(ScriptedPolicy):
    """Ends its process."""

    def plan(self, task, expert):
        os._exit(3)


@needs_simulator
@pytest.mark.multiprocess
def test_a_worker_that_dies_is_said_and_none_is_left() -> None:
    with pytest.raises(ToolkitError, match="exit code 3"):
        run_episodes(Fatal(), Settings("size_color", "x", episodes=1, render="none"), progress=False)
    assert not multiprocessing.active_children()


# -- recordings and datasets -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory, renderer: None) -> Path:
    """raw/ with three train episodes of color_object at 64 pixels, and the dataset they are converted to, data/."""
    from data_prep.convert import convert_split
    from simulation.recording import record

    folder = tmp_path_factory.mktemp("recorded")
    record(compose("record", "episodes=3", "image_size=64", "workers=1", f"out={folder}/raw"))
    convert_split(folder / "raw", folder / "data", "color_object", INSTRUCTION, progress=False)
    return folder


@needs_simulator
@pytest.mark.multiprocess
@pytest.mark.slow
def test_recorded_actions_succeed_and_every_observation_is_the_datasets_frame(recorded: Path) -> None:
    """Shown when a chunk is due, and rendered then only."""
    reader = StepReader(recorded / "data/color_object/train", MODALITY_CONFIG)
    settings = Settings("color_object", INSTRUCTION, image_size=64)
    requests: list[Request] = []

    def ask(request: Request) -> np.ndarray:
        requests.append(request)
        return actions[8 * request.chunk :][:8]

    _, player = played(None, "train", [], settings, ask)
    renders = count_calls(player.task, "capture_sensor_data")
    for episode, seed in enumerate(range(3)):
        values = reader.trajectory("action", episode)
        actions = np.concatenate([values["arm"], values["gripper"]], axis=1)
        requests.clear(), renders.clear()
        player.begin(Phase("none", "train", INSTRUCTION, ()))
        outcome = player.play(seed)
        assert outcome.success and 0 <= len(actions) - outcome.steps <= 3  # recordings hold still a little longer
        assert len(renders) == len(requests) == outcome.chunks == -(-outcome.steps // 8)
        for request in requests:
            compare(request, reader, recorded, episode)


def count_calls(holder: object, name: str) -> list[str]:
    """A list that grows with every call of the method."""
    calls, method = [], getattr(holder, name)

    def counted(*arguments):
        calls.append(name)
        return method(*arguments)

    setattr(holder, name, counted)
    return calls


def compare(request: Request, reader: StepReader, recorded: Path, episode: int) -> None:
    frame, step = 8 * request.chunk, reader.step(episode, 8 * request.chunk)
    state = np.concatenate([step.states["arm"][0], step.states["gripper"][0]])
    assert np.array_equal(request.observation.state, state) and request.observation.state.dtype == np.float32
    with h5py.File(recorded / "raw/color_object/train/trajectory.h5") as file:
        cameras = file[f"traj_{episode}/obs/sensor_data"]
        for key, sensor in (("image", "base_camera"), ("wrist_image", "hand_camera")):
            image = request.observation.images[key]
            assert np.array_equal(image, cameras[f"{sensor}/rgb"][frame])
            video = step.images[key][0].astype(float)
            assert np.abs(image - video).mean() < 4  # what the video's compression costs


@needs_simulator
@pytest.mark.multiprocess
@pytest.mark.slow
def test_recorded_actions_replayed_by_the_policy_of_that_name_succeed(recorded: Path) -> None:
    policy = replay_policy(recorded / "raw", "color_object", ["train"])
    assert policy.seeds("train", 2) == [0, 1]
    outcomes, _ = played(policy, "train", policy.seeds("train", 9))
    assert [(o.seed, o.success) for o in outcomes] == [(0, True), (1, True), (2, True)]


@needs_simulator
@pytest.mark.multiprocess
@pytest.mark.slow
def test_recordings_that_cannot_be_replayed_are_refused(recorded: Path) -> None:
    with pytest.raises(ToolkitError, match="no recording of color_object train"):
        replay_policy(SAMPLES, "color_object", ["train"])
    with pytest.raises(ToolkitError, match="no such folder"):
        replay_policy(recorded / "raw", "color_object", ["conflict"])
    path = recorded / "raw/color_object/train/trajectory.json"
    meta = read_json(path)
    pushed = [{**entry, "disturbed": True} for entry in meta["episodes"]]
    write_json(path, {**meta, "episodes": [pushed[0], *meta["episodes"][1:]]})
    assert replay_policy(recorded / "raw", "color_object", ["train"]).seeds("train", 9) == [1, 2]
    write_json(path, {**meta, "episodes": pushed})
    with pytest.raises(ToolkitError, match="pushed aside in every episode"):
        replay_policy(recorded / "raw", "color_object", ["train"])
    write_json(path, meta)


# -- policies that look ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(small_data: Path, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, trained (it says) on images of 32 pixels."""
    return finished_checkpoint(tiny_base, small_data, tmp_path_factory.mktemp("finished") / "checkpoint")


@needs_simulator
@pytest.mark.multiprocess
@pytest.mark.slow
def test_the_same_evaluation_twice_shows_and_does_the_same_bit_for_bit(
    checkpoint: Path, tmp_path: Path, renderer: None
) -> None:
    settings = Settings("color_object", INSTRUCTION, "pick up the object-matching object", image_size=32, episodes=3)
    runs = []
    for name, conditions, videos in (("a", ("none", "zero_state"), 1), ("b", ("none",), 0)):
        policy, calls = listened(GR00TPolicy.from_pretrained(checkpoint))
        own = dict(max_steps=20, conditions=conditions, videos=videos)
        outcomes = run_episodes(policy, Settings(**{**vars(settings), **own}), folder=tmp_path / name, progress=False)
        runs.append((outcomes, calls))
    (outcomes, calls), (again, calls_again) = runs
    assert [strip(o) for o in outcomes[:6]] == again and len(calls_again) == 12 and len(calls) == 24
    for before, after in zip(calls, calls_again, strict=False):
        assert before.keys() == after.keys() and all(np.array_equal(before[name], after[name]) for name in before)
    assert all(o.steps == 20 and o.chunks == 3 and o.picked == NOTHING for o in outcomes)
    assert [o.condition for o in outcomes] == ["none"] * 6 + ["zero_state"] * 6
    assert {o.video for o in outcomes} == {f"train_{FIRST}.mp4", f"conflict_{FIRST}.mp4", None}
    with VideoReader(tmp_path / f"a/train_{FIRST}.mp4") as video:
        assert len(video) == 21 and video.frames([0]).shape[2] == 512


def listened(policy: GR00TPolicy):
    """The policy, and a list of what it was shown and answered."""
    calls: list[dict] = []
    act = policy.get_action

    @functools.wraps(act)
    def get_action(observation, **options):
        actions = act(observation, **options)
        calls.append({**observation, **options, **actions})
        return actions

    policy.get_action = get_action
    return policy, calls


def strip(outcome):
    return type(outcome)(**{**vars(outcome), "video": None})


@needs_simulator
@pytest.mark.multiprocess
@pytest.mark.slow
def test_ablations_show_other_images_and_the_rest_as_it_is(renderer: None) -> None:
    settings = Settings("color_object", INSTRUCTION, image_size=32, max_steps=16)
    shown: dict[str, list[Observation]] = {}
    still = np.zeros((8, 8), np.float32)
    still[:] = [0, 0.39, 0, -1.96, 0, 2.36, -0.79, 1]
    player = None
    for condition in ("none", "other_image", "blank_image"):
        requests: list[Request] = []

        def ask(request: Request, kept: list[Request] = requests) -> np.ndarray:
            kept.append(request)
            return still

        if player is None:
            _, player = played(None, "train", [], settings)
        player.ask = ask
        player.begin(Phase(condition, "train", INSTRUCTION, ()))
        player.play(FIRST)
        shown[condition] = [request.observation for request in requests]
    images = {name: [o.images["image"] for o in found] for name, found in shown.items()}
    assert all(len(found) == 2 for found in images.values())
    assert not np.array_equal(*images["none"]) and np.array_equal(*images["other_image"])
    player.begin(Phase("none", "train", INSTRUCTION, ()))
    player._reset(FIRST + 1)
    assert np.array_equal(player.task.look()["base_camera"], images["other_image"][0])
    assert all(not image.any() and image.shape == (32, 32, 3) for image in images["blank_image"])
    for name in shown:
        assert np.array_equal(shown[name][0].state, shown["none"][0].state)


class Own:
    """Somebody's policy: holds still; is interrupted at its fourth call."""

    def __init__(self) -> None:
        self.seen: list[tuple[dict, int]] = []

    def get_action(self, observation: dict, seed: int | None = None) -> dict:
        if len(self.seen) == 3:
            raise KeyboardInterrupt
        self.seen.append((observation, seed))
        arm = np.repeat(observation["state.arm"], 16, axis=1)
        return {"action.arm": arm, "action.gripper": np.ones((1, 16, 1))}


@needs_simulator
@pytest.mark.multiprocess
@pytest.mark.slow
def test_any_object_with_get_action_acts_and_no_worker_outlives_an_interruption(renderer: None) -> None:
    policy = Own()
    with pytest.raises(KeyboardInterrupt):
        run_episodes(policy, Settings("color_object", "do it", image_size=32, workers=1), progress=False)
    assert not multiprocessing.active_children()
    observation, _ = policy.seen[0]
    assert {name: np.shape(value) for name, value in observation.items()} == {
        "video.image": (1, 1, 32, 32, 3),
        "video.wrist_image": (1, 1, 32, 32, 3),
        "state.arm": (1, 1, 7),
        "state.gripper": (1, 1, 1),
        "annotation.human.task_description": (1,),
    }
    assert observation["annotation.human.task_description"] == ["do it"]
    assert len({seed for _, seed in policy.seen}) == 3


# -- what is refused ---------------------------------------------------------------------------------------------------


class Answering:
    """Gives the actions it was made with."""

    def __init__(self, **actions: np.ndarray) -> None:
        self.actions = {f"action.{name}": values for name, values in actions.items()}

    def get_action(self, observation: dict) -> dict:
        return self.actions


def asked(policy: object) -> list[np.ndarray]:
    image = np.zeros((32, 32, 3), np.uint8)
    request = Request(Observation({"image": image, "wrist_image": image}, np.zeros(8, np.float32)), FIRST, 0)
    return Inference(policy, 42, 8, ("none",)).chunks([request, request], "x", drop_state=False)


def test_an_answer_of_the_right_shape_is_cut_to_the_executed_steps() -> None:
    chunks = asked(Answering(arm=np.full((1, 16, 7), 2.0), gripper=np.full((1, 16, 1), -1.0)))
    assert [chunk.shape for chunk in chunks] == [(8, 8), (8, 8)] and chunks[0].dtype == np.float32
    assert np.array_equal(chunks[0][0], [2] * 7 + [-1])


BAD_ANSWERS = {
    'no "action.gripper"': {"arm": np.zeros((1, 16, 7))},
    "shape (1, 7, 7)": {"arm": np.zeros((1, 7, 7)), "gripper": np.zeros((1, 16, 1))},
    "shape (16, 7)": {"arm": np.zeros((16, 7)), "gripper": np.zeros((1, 16, 1))},
    "not finite": {"arm": np.full((1, 16, 7), np.nan), "gripper": np.zeros((1, 16, 1))},
}


@pytest.mark.parametrize("problem", BAD_ANSWERS)
def test_answers_that_cannot_be_executed_are_refused(problem: str) -> None:
    with pytest.raises(ToolkitError) as error:
        asked(Answering(**BAD_ANSWERS[problem]))
    assert problem in str(error.value)


def test_policies_that_cannot_act_here_are_refused() -> None:
    with pytest.raises(ToolkitError, match="get_action"):
        asked(object())
    with pytest.raises(ToolkitError, match="drop_state"):
        Inference(Answering(), 42, 8, ("none", "zero_state"))
    with pytest.raises(ToolkitError, match="n_action_steps=17 is more than the 16"):
        Inference(Answering(), 42, 17, ("none",))
    other = Answering()
    other.modality_configs = {**MODALITY_CONFIG, "video": type(MODALITY_CONFIG["video"])([0], ["front"])}
    with pytest.raises(ToolkitError, match='video "front"'):
        asked(other)


@pytest.mark.parametrize(
    "change, problem",
    [
        ({"split": "color_size_object"}, "no simulated task"),
        ({"parts": ("val",)}, 'no part "val"'),
        ({"conditions": ("no_image",)}, "Did you mean"),
        ({"conditions": ("none", "other_instruction")}, "needs another instruction"),
        ({"render": "none"}, "needs images"),
    ],
)
def test_settings_that_do_not_fit_are_refused(change: dict, problem: str) -> None:
    with pytest.raises(ToolkitError, match=problem):
        run_episodes(Own(), Settings(**{**vars(Settings("color_object", "x")), **change}))


def test_a_policy_that_does_not_look_has_no_ablations() -> None:
    with pytest.raises(ToolkitError, match="does not look"):
        run_episodes(TargetPolicy(), Settings("color_object", "x", conditions=("none", "blank_image"), render="none"))


def test_the_ablations_of_the_configuration_are_the_reports_conditions() -> None:
    assert ["none", *ABLATIONS] == list(CONDITIONS)


@pytest.mark.parametrize(
    "arguments, problem",
    [
        (("policy=expert", "server=localhost:5555"), "name two policies"),
        (("policy=lure", "ablations=[zero_state]"), "does not look"),
        (("render=none",), "need images"),
        (("parts=[]",), "one at least"),
        (("parts=[train,train]",), "each once"),
        (("server=localhost",), "HOST:PORT"),
        (("policy=oracle",), "checkpoint, expert, lure"),
    ],
)
def test_keys_that_do_not_fit_are_refused(arguments: tuple[str, ...], problem: str) -> None:
    assert problem in refusal("evaluate", "mode=closed_loop", *arguments)


@needs_simulator
def test_a_checkpoint_that_does_not_fit_is_refused_before_its_weights_are_read(
    checkpoint: Path, tmp_path: Path, renderer: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GR00TPolicy, "from_pretrained", None)

    def evaluated(*arguments: str) -> str:
        given = ("mode=closed_loop", f"checkpoint={checkpoint}", f"report_dir={tmp_path}/report", *arguments)
        with pytest.raises(ToolkitError) as error:
            evaluate_closed_loop(compose("evaluate", *given))
        assert not (tmp_path / "report").exists()
        return str(error.value)

    assert "more than the 16 steps" in evaluated("n_action_steps=17")
    assert "no simulated task" in evaluated("split=my_split", "split.instruction=do it")
    told = checkpoint / "experiment_cfg/dataset.json"
    before = read_json(told)
    assert before["frame_sizes"] == {"image": [32, 32], "wrist_image": [32, 32]}
    write_json(told, {**before, "fps": 30})
    assert "30 frames a second" in evaluated()
    write_json(told, {**before, "frame_sizes": {"image": [48, 64], "wrist_image": [48, 64]}})
    assert "48x64" in evaluated()
    write_json(told, before)

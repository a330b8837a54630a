"""Closed loop: what policies are shown, who acts, the same outcomes every time, and policies that check the loop."""

from __future__ import annotations

import dataclasses
import functools
import multiprocessing
import shutil
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
from config_calls import compose, refusal
from finished import finished_checkpoint
from outcomes import HELD, NONE, WRONG, outcome
from recordings import INSTRUCTION, SAMPLES
from simulator import needs_simulator

from conflict_panda_config import MODALITY_CONFIG
from data_prep.convert import convert_split
from finetune.recipe.recipe_identity import write_mark
from gr00t.data.step_reader import StepReader
from gr00t.data.video import VideoReader
from gr00t.errors import ToolkitError
from gr00t.file_reading import read_json
from gr00t.file_replacement import write_json
from gr00t.model.gr00t_n1 import GR00TPolicy
from simulation.closed_loop import LURE, NOTHING, OTHER, TARGET, Settings
from simulation.closed_loop.kept_episodes import KeptEpisodes
from simulation.closed_loop.policies import (
    Inference,
    LurePolicy,
    Observation,
    RandomPolicy,
    ReplayPolicy,
    ScriptedPolicy,
    TargetPolicy,
    as_batch,
    check_configs,
)
from simulation.closed_loop.rollout import Segment, _Crew, _to_film, run_episodes
from simulation.closed_loop_evaluation import _info, _policy, _settings, _strategy, evaluate_closed_loop
from simulation.scenes.plate_suite import FIRST_EVALUATION_SEED, sample_episode
from toolkit.shared_keys import PARTS

FIRST = FIRST_EVALUATION_SEED
SPLIT = "size_color"


def player_of(settings: Settings):
    """A player in this process. Its `policy` or its `ask` is set by each test."""
    from simulation.closed_loop.episode_player import EpisodePlayer

    return EpisodePlayer(settings, None, lambda request: np.zeros((0, 8)))


@pytest.fixture(scope="module")
def physics():
    """Plays color_object without images."""
    return player_of(Settings("color_object", INSTRUCTION, render="none"))


@pytest.fixture(scope="module")
def looking(renderer: None):
    """Plays the split of the recordings with images of their size."""
    return player_of(Settings(SPLIT, INSTRUCTION, image_size=64, max_steps=60))


def play(player, part: str, seeds, policy: ScriptedPolicy | None = None, condition: str = "none"):
    """The outcomes of a phase."""
    player.policy = policy
    player.begin(condition, part)
    return [player.play(seed) for seed in seeds]


# -- policies that check the loop --------------------------------------------------------------------------------------


@needs_simulator
@pytest.mark.parametrize("part", PARTS)
def test_the_expert_succeeds_in_every_episode(physics, part: str) -> None:
    outcomes = play(physics, part, range(FIRST, FIRST + 6), TargetPolicy())
    assert all(o.success and o.picked == TARGET and o.picked_step <= o.steps <= 100 for o in outcomes)
    assert all(o.chunks == -(-o.steps // 8) and o.episode["part"] == part for o in outcomes)


@needs_simulator
def test_one_that_takes_the_lure_fails_in_every_conflict_episode(physics) -> None:
    outcomes = play(physics, "conflict", range(FIRST, FIRST + 6), LurePolicy())
    assert [(o.success, o.picked) for o in outcomes] == [(False, LURE)] * 6
    assert play(physics, "train", [FIRST], LurePolicy())[0].success  # there both cues point at one object


@needs_simulator
def test_one_that_picks_at_random_picks_by_chance_and_the_same_every_time(physics) -> None:
    seeds = range(FIRST, FIRST + 30)
    outcomes = play(physics, "conflict", seeds, RandomPolicy(seed=1))
    picked = Counter(o.picked for o in outcomes)
    assert picked[TARGET] + picked[LURE] + picked[OTHER] == 30
    assert all(1 <= picked[kind] <= 19 for kind in (TARGET, LURE, OTHER))  # 10 +- 3.5 standard deviations
    assert picked[TARGET] == sum(o.success for o in outcomes)
    assert play(physics, "conflict", seeds[:4], RandomPolicy(seed=1)) == outcomes[:4]


@needs_simulator
def test_a_phase_repeats_its_motions_bit_for_bit_whatever_was_played_before(physics) -> None:
    def last_states() -> list[np.ndarray]:
        seeds = (FIRST + 3, FIRST + 4)
        play(physics, "train", seeds, TargetPolicy())
        return [physics.task.get_state().numpy()]

    play(physics, "conflict", [FIRST + 9], TargetPolicy())
    assert np.array_equal(last_states(), last_states())


# -- recordings and datasets -------------------------------------------------------------------------------------------


@needs_simulator
@pytest.mark.multiprocess
@pytest.mark.slow
def test_recorded_actions_succeed_and_every_observation_is_the_datasets_frame(
    looking, recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shown when a chunk is due, and rendered then only."""
    convert_split(recordings.parent, tmp_path, SPLIT, INSTRUCTION, MODALITY_CONFIG, progress=False)
    reader = StepReader(tmp_path / SPLIT / "train", MODALITY_CONFIG)
    requests: list[Observation] = []

    def ask(request: Observation) -> np.ndarray:
        requests.append(request)
        return actions[8 * request.chunk :][:8]

    monkeypatch.setattr(looking, "ask", ask)
    renders = count_calls(looking.task, "capture_sensor_data", monkeypatch)
    for episode, seed in enumerate(range(3)):
        values = reader.trajectory("action", episode)
        actions = np.concatenate([values["arm"], values["gripper"]], axis=1)
        requests.clear(), renders.clear()
        outcome = play(looking, "train", [seed])[0]
        assert outcome.success and 0 <= len(actions) - outcome.steps <= 3  # recordings hold still a little longer
        assert len(renders) == len(requests) == outcome.chunks == -(-outcome.steps // 8)
        for request in requests:
            compare(request, reader, recordings, episode)


def count_calls(holder: object, name: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A list that grows with every call of the method."""
    calls: list[str] = []
    method = getattr(holder, name)

    def counted(*arguments):
        calls.append(name)
        return method(*arguments)

    monkeypatch.setattr(holder, name, counted)
    return calls


def compare(request: Observation, reader: StepReader, recordings: Path, episode: int) -> None:
    frame, step = 8 * request.chunk, reader.step(episode, 8 * request.chunk)
    state = np.concatenate([step.states["arm"][0], step.states["gripper"][0]])
    assert np.array_equal(request.state, state) and request.state.dtype == np.float32
    with h5py.File(recordings / "train/trajectory.h5") as file:
        cameras = file[f"traj_{episode}/obs/sensor_data"]
        for key, sensor in (("image", "base_camera"), ("wrist_image", "hand_camera")):
            image = request.images[key]
            assert np.array_equal(image, cameras[f"{sensor}/rgb"][frame])
            assert np.abs(image - step.images[key][0].astype(float)).mean() < 8  # what the video's compression costs


@needs_simulator
@pytest.mark.multiprocess
@pytest.mark.slow
def test_recorded_actions_replayed_by_the_policy_of_that_name_succeed(looking, recordings: Path) -> None:
    policy = ReplayPolicy(recordings.parent, SPLIT, ["train"])
    assert policy.seeds("train", 2) == [0, 1]
    outcomes = play(looking, "train", policy.seeds("train", 9), policy)
    assert [(o.seed, o.success) for o in outcomes] == [(0, True), (1, True), (2, True)]


@needs_simulator
@pytest.mark.multiprocess
@pytest.mark.slow
def test_recordings_that_cannot_be_replayed_are_refused(recordings: Path, tmp_path: Path) -> None:
    with pytest.raises(ToolkitError, match="no recording of color_object train"):
        ReplayPolicy(SAMPLES, "color_object", ["train"])
    with pytest.raises(ToolkitError, match="no such folder"):
        ReplayPolicy(tmp_path, SPLIT, ["conflict"])
    with pytest.raises(ToolkitError, match="pushed aside in every episode"):
        ReplayPolicy(recordings.parent, SPLIT, ["conflict"])
    shutil.copytree(recordings, tmp_path / SPLIT)
    path = tmp_path / SPLIT / "train/trajectory.json"
    meta = read_json(path)
    meta["episodes"][0]["disturbed"] = True
    write_json(path, meta)
    assert ReplayPolicy(tmp_path, SPLIT, ["train"]).seeds("train", 9) == [1, 2]


# -- policies that look ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(small_data: Path, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, trained (it says) on images of 32 pixels."""
    return finished_checkpoint(tiny_base, small_data, tmp_path_factory.mktemp("finished") / "checkpoint")


@pytest.mark.parametrize(
    ("strategy", "named", "played"),
    [
        ("complete_v3", "seen,unseen,conflict", ("seen", "conflict")),
        ("random_f6_v3", "seen,unseen,conflict", ("seen", "unseen", "conflict")),
        ("complete_v3", "unseen", ("unseen",)),  # refused when it is to be played
        ("complete_v3", "", ("seen", "conflict", "single_a", "single_b")),
    ],
)
def test_one_list_of_parts_serves_strategies_that_leave_nothing_unseen(
    strategy: str, named: str, played: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    given = compose("evaluate", "mode=closed_loop", "split=instruction/color_object", f"parts=[{named}]").chosen
    assert _settings(given, {}, strategy).parts == played
    left_out = "unseen" in named and "unseen" not in played
    assert ("strategy=complete_v3 leaves no scenes for parts=unseen" in capsys.readouterr().err) == left_out


def test_of_datasets_of_several_strategies_the_one_that_is_meant_must_be_named(tmp_path: Path) -> None:
    write_json(made(tmp_path / "experiment_cfg") / "dataset.json", {"mixture": [{"strategy": "diagonal"}, {}]})
    given = compose("evaluate", "mode=closed_loop", "split=instruction/color_size", f"checkpoint={tmp_path}").chosen
    assert _strategy(given, None) == "diagonal"
    several = [{"strategy": "diagonal"}, {"strategy": "random_f6"}, {"strategy": "diagonal"}]
    write_json(tmp_path / "experiment_cfg/dataset.json", {"mixture": several})
    with pytest.raises(ToolkitError, match=r"several strategies, diagonal and random_f6, .* strategy=\.\.\."):
        _strategy(given, None)
    assert _strategy(dataclasses.replace(given, strategy="random_f6"), None) == "random_f6"


def test_an_evaluation_notes_the_recipe_and_the_seed_of_its_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(checkpoint, tmp_path / "checkpoint")

    def info() -> dict:
        given = compose("evaluate", "mode=closed_loop", "split=color_object", f"checkpoint={copy}").chosen
        facts = _policy(given)[1]
        return _info(given, _settings(given, facts, None), facts)

    assert "recipe" not in info()  # of another project, or an earlier version
    write_mark(copy, {"train.seed": 7, "train.max_steps": 1000}, step=900)
    found = info()
    assert (found["recipe"], found["training_seed"], found["training_step"]) == ({"train.max_steps": 1000}, 7, 900)


@needs_simulator
@pytest.mark.multiprocess
@pytest.mark.slow
def test_the_same_evaluation_twice_shows_and_does_the_same_bit_for_bit(
    checkpoint: Path, tmp_path: Path, renderer: None, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = Settings("color_object", INSTRUCTION, "pick up the object-matching object", image_size=32, episodes=3)
    runs = []
    (tmp_path / f"b/train_{FIRST}.mp4").mkdir(parents=True)  # that film cannot be written
    for name, conditions in (("a", ("none", "zero_state")), ("b", ("none",))):
        policy, calls = listened(GR00TPolicy.from_pretrained(checkpoint))
        own = dict(max_steps=20, conditions=conditions, videos=1)
        kept = kept_until_conflict(tmp_path / "kept") if name == "b" else KeptEpisodes(made(tmp_path / "kept"))
        settings = Settings(**{**vars(settings), **own})
        outcomes = run_episodes(policy, settings, folder=tmp_path / name, progress=False, kept=kept)
        runs.append((outcomes, calls))
    (outcomes, calls), (again, calls_again) = runs
    calls = [*calls[:6], *calls[8:]]  # b was not asked the first two times in conflict again
    assert [(o.part, o.seed) for o in again] == [(part, FIRST + i) for part in PARTS for i in range(3)]
    assert [strip(o) for o in outcomes[:6]] == [strip(o) for o in again] and len(calls_again) == 10 and len(calls) == 22
    for before, after in zip(calls, calls_again, strict=False):
        assert before.keys() == after.keys() and all(np.array_equal(before[name], after[name]) for name in before)
    assert all(o.steps == 20 and o.chunks == 3 and o.picked == NOTHING for o in outcomes)
    assert [o.condition for o in outcomes] == ["none"] * 6 + ["zero_state"] * 6
    filmed = {f"{o.part}_{o.seed}.mp4" for o in _to_film(outcomes, 1)}  # the first failure at each stage
    assert {o.video for o in outcomes} == {*filmed, None} > {f"train_{FIRST}.mp4", f"conflict_{FIRST}.mp4"}
    assert {o.video for o in again} == {*filmed, None} - {f"train_{FIRST}.mp4"}
    assert f"the video train_{FIRST}.mp4 could not be written: [Errno 21]" in capfd.readouterr().err
    with VideoReader(tmp_path / f"a/train_{FIRST}.mp4") as video:
        assert len(video) == 21 and video.frames([0]).shape[2] == 512


def made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def kept_until_conflict(folder: Path) -> KeptEpisodes:
    """What a kill would have left that came when the policy had been asked for the third time in conflict episodes."""
    (folder / f"none-train-42-{FIRST}.jsonl").unlink()
    path = folder / f"none-conflict-42-{FIRST}.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]) + '{"of": [[')
    return KeptEpisodes(folder)


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
@pytest.mark.slow
def test_ablations_show_other_images_and_the_rest_as_it_is(looking, monkeypatch: pytest.MonkeyPatch) -> None:
    still = np.tile(np.float32([0, 0.39, 0, -1.96, 0, 2.36, -0.79, 1]), (8, 1))
    shown: list[Observation] = []

    def ask(request: Observation) -> np.ndarray:
        shown.append(request)
        return still[: 8 if len(shown) < 2 else 0]

    def seen(condition: str) -> list[Observation]:
        shown.clear()
        play(looking, "train", [FIRST], condition=condition)
        return list(shown)

    monkeypatch.setattr(looking, "ask", ask)
    plain, other, black = (seen(condition) for condition in ("none", "other_image", "blank_image"))
    assert len(plain) == len(other) == len(black) == 2
    first, second = (o.images["image"] for o in plain)
    assert not np.array_equal(first, second)
    shown.clear()
    play(looking, "train", [FIRST + 1])
    assert all(np.array_equal(o.images["image"], shown[0].images["image"]) for o in other)
    assert all(not image.any() and image.shape == first.shape for o in black for image in o.images.values())
    assert all(np.array_equal(found[0].state, plain[0].state) for found in (other, black))


class Own:
    """Somebody's policy: holds still; the simulation is killed at its fourth call."""

    def __init__(self) -> None:
        self.seen: list[tuple[dict, int]] = []

    def get_action(self, observation: dict, seed: int | None = None) -> dict:
        self.seen.append((observation, seed))
        if len(self.seen) == 4:
            multiprocessing.active_children()[0].kill()
        arm = np.repeat(observation["state.arm"], 16, axis=1)
        return {"action.arm": arm, "action.gripper": np.ones((1, 16, 1))}


@needs_simulator
@pytest.mark.multiprocess
@pytest.mark.slow
def test_any_object_with_get_action_acts_and_a_worker_that_dies_is_said(renderer: None) -> None:
    policy = Own()
    with pytest.raises(ToolkitError, match=r"worker process died \(exit code -9\)"):
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
    assert len({seed for _, seed in policy.seen}) == 4


# -- without the simulator ---------------------------------------------------------------------------------------------


def test_the_first_successes_and_failures_of_each_part_are_filmed_as_they_are() -> None:
    endings = [HELD, NONE, HELD, HELD, WRONG, NONE]
    blank = [outcome("train", 9, HELD, "blank_image")]
    plain = [outcome(part, n, ending) for part in PARTS for n, ending in enumerate(endings)]
    chosen = [(o.condition, o.part, o.seed - FIRST) for o in _to_film([*blank, *plain], 2)]
    assert chosen == [("none", part, number) for part in PARTS for number in (0, 1, 2, 4)]
    assert list(_to_film(plain, 0)) == []


def test_a_video_that_was_not_written_before_a_stop_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found, segment = [outcome("train", n, HELD) for n in range(2)], Segment("none", "train", 42, (FIRST, FIRST + 1))
    (tmp_path / f"train_{FIRST}.mp4").write_bytes(b"a video")
    crew = _Crew(TargetPolicy(), Settings("color_object", "x", videos=2), KeptEpisodes(), ExitStack())
    assert crew._film(segment, found, tmp_path) == {("train", FIRST): f"train_{FIRST}.mp4"}
    assert f"before the video train_{FIRST + 1}.mp4 was written" in capsys.readouterr().err


def test_a_video_that_is_cut_off_while_it_is_written_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mani_skill")
    from simulation.closed_loop import episode_player

    def cut_off(path: Path, *_: object) -> None:
        path.write_bytes(b"half a video")
        raise KeyboardInterrupt

    player: Any = object.__new__(episode_player.EpisodePlayer)
    player.task = SimpleNamespace(reset=lambda seed: None, set_state=lambda state: None)
    player.states = {("train", FIRST): [None]}
    player._images = lambda: {"image": np.zeros((32, 32, 3), np.uint8)}
    monkeypatch.setattr(episode_player, "write_video", cut_off)
    with pytest.raises(KeyboardInterrupt):
        player.film("train", FIRST, "lift it", tmp_path / "a.mp4")
    assert not any(tmp_path.iterdir())


def test_a_batch_holds_the_groups_of_the_state_in_the_order_of_the_requests() -> None:
    def seen(value: int, instruction: str) -> Observation:
        images = {"image": np.full((4, 4, 3), value, np.uint8), "wrist_image": np.full((4, 4, 3), value + 1, np.uint8)}
        return Observation(images, np.arange(8, dtype=np.float32) + 10 * value, FIRST, 0, instruction)

    batch = as_batch([seen(1, "do it"), seen(5, "do that")], MODALITY_CONFIG)
    assert batch["state.arm"].shape == (2, 1, 7) and batch["state.gripper"][:, 0, 0].tolist() == [17, 57]
    assert batch["state.arm"][1, 0].tolist() == [50, 51, 52, 53, 54, 55, 56]
    assert batch["video.image"][:, 0, 0, 0, 0].tolist() == [1, 5]
    assert batch["video.wrist_image"][:, 0, 0, 0, 0].tolist() == [2, 6]
    assert batch["annotation.human.task_description"] == ["do it", "do that"]


class Seeded:
    """Remembers the seeds and options that it was given."""

    def __init__(self) -> None:
        self.given: list[tuple[int, bool]] = []

    def get_action(self, observation: dict, seed: int = 0, drop_state: bool = False) -> dict:
        self.given.append((seed, drop_state))
        return {"action.arm": np.zeros((1, 16, 7)), "action.gripper": np.zeros((1, 16, 1))}


def test_noise_is_of_seed_episode_and_chunk_whatever_the_batch() -> None:
    image = np.zeros((4, 4, 3), np.uint8)
    shown = {"image": image, "wrist_image": image}, np.zeros(8, np.float32)

    def given(seed: int, *chunks: tuple[int, int], drop_state: bool = False) -> list[tuple[int, bool]]:
        policy = Seeded()
        requests = [Observation(*shown, episode, chunk, "x") for episode, chunk in chunks]
        Inference(policy, seed, 16, ("none", "zero_state")).chunks(requests, drop_state=drop_state)
        return policy.given

    both = given(42, (FIRST, 0), (FIRST + 1, 3))
    assert both == [*given(42, (FIRST, 0)), *given(42, (FIRST + 1, 3))]
    others = [given(42, (FIRST, 1)), given(42, (FIRST + 1, 0)), given(43, (FIRST, 0))]
    assert len({found[0][0] for found in [both, *others]}) == 4
    assert [dropped for _, dropped in given(42, (FIRST, 0), drop_state=True)] == [True]


def test_a_policy_of_more_than_the_present_frame_or_without_a_group_is_refused() -> None:
    kind = type(MODALITY_CONFIG["video"])
    check_configs(MODALITY_CONFIG, 16)
    for modality in ("video", "state"):
        past = kind([-1, 0], MODALITY_CONFIG[modality].modality_keys)
        with pytest.raises(ToolkitError, match=rf"reads {modality} at the frames \[-1, 0\]"):
            check_configs({**MODALITY_CONFIG, modality: past}, 8)
    with pytest.raises(ToolkitError, match='no action "gripper"'):
        check_configs({**MODALITY_CONFIG, "action": kind(list(range(16)), ["arm"])}, 8)


def test_a_policy_whose_actions_are_not_of_one_frame_after_another_is_refused() -> None:
    action = MODALITY_CONFIG["action"]
    for frames in (list(range(0, 32, 2)), list(range(1, 17)), list(range(-1, 15))):
        with pytest.raises(ToolkitError, match=rf"actions are those of the frames \[{frames[0]}, {frames[1]}, "):
            check_configs({**MODALITY_CONFIG, "action": dataclasses.replace(action, delta_indices=frames)}, 8)
    later = [*range(8), *range(8, 24, 2)]  # what is not executed may lie at any time
    check_configs({**MODALITY_CONFIG, "action": dataclasses.replace(action, delta_indices=later)}, 8)


def test_scripted_policies_choose_their_object() -> None:
    train, conflict = (sample_episode("color_object", part, FIRST) for part in ("train", "conflict"))
    assert (TargetPolicy().choose(conflict), LurePolicy().choose(conflict)) == (conflict.target, conflict.lure)
    assert LurePolicy().choose(train) == train.target
    episodes = [sample_episode("color_object", "conflict", FIRST + n) for n in range(60)]
    chosen = [[RandomPolicy(seed).choose(e) for e in episodes] for seed in (1, 1, 2)]
    assert chosen[0] == chosen[1] != chosen[2] and min(Counter(chosen[0]).values()) > 8
    assert TargetPolicy().seeds("train", 3) == [FIRST, FIRST + 1, FIRST + 2]


# -- what is refused ---------------------------------------------------------------------------------------------------


class Answering:
    """Gives the actions it was made with."""

    def __init__(self, **actions: np.ndarray) -> None:
        self.actions = {f"action.{name}": values for name, values in actions.items()}

    def get_action(self, observation: dict) -> dict:
        return self.actions


def asked(policy: object) -> list[np.ndarray]:
    image = np.zeros((32, 32, 3), np.uint8)
    request = Observation({"image": image, "wrist_image": image}, np.zeros(8, np.float32), FIRST, 0, "x")
    return Inference(policy, 42, 8, ("none",)).chunks([request, request], drop_state=False)


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


@pytest.mark.parametrize(
    "arguments, problem",
    [
        (("policy=expert", "server=localhost:5555"), "name two policies"),
        (("policy=lure", "ablations=[zero_state]"), "does not look"),
        (("render=none",), "need images"),
        (("parts=[seen]",), "color_object has train, conflict, no seen"),
        (("parts=[conflict]", "split=instruction/all"), "has seen, unseen, no conflict"),
        (("parts=[train,train]",), "each once"),
        (("policy=lerobot", "server=localhost:5555"), "name two policies"),
        (("server=localhost",), "HOST:PORT"),
        (("server=ws://user:secret@localhost:8000",), "a login in an address"),
        (("server=http://localhost:8000",), "ws://HOST:PORT"),
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
    parts = [before, {**before, "frame_sizes": {"image": [48, 48]}}]
    write_json(told, {"fps": before["fps"], "mixture": parts})
    assert "32x32 and 48x48" in evaluated()
    write_json(told, before)

"""What happened on the way: each stage is seen when it is reached, by policies that stop there, and how smoothly."""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from simulator import needs_simulator

from simulation.closed_loop import NOWHERE, STAGES, EpisodeOutcome, Settings
from simulation.closed_loop.episode_stages import MOVED, NEARER, StageWatch, spectral_arc_length
from simulation.closed_loop.policies import LurePolicy, ScriptedPolicy, TargetPolicy
from simulation.closed_loop_evaluation import _expert
from simulation.scenes.plate_suite import FIRST_EVALUATION_SEED as FIRST

HELD_STILL = 30  # steps
SPLITS = {"color_object": "train", "instruction/verb_object": "seen"}  # with a part in which one object fits both cues


# -- scripted policies that stop on the way ----------------------------------------------------------------------------


class Stops(ScriptedPolicy):
    """The expert until just after stage `at`; then the arm goes back to where it began, and rests, the hand open."""

    def __init__(self, at: str) -> None:
        self.at = at

    def plan(self, task, expert) -> np.ndarray:
        whole = super().plan(task, expert)
        closes = int(np.argmax(whole[:, 7] < 0))  # where the hand is around the object
        back = np.append(task.qpos()[:7], 1.0).astype(np.float32)[None].repeat(HELD_STILL, axis=0)
        if self.at == "touched":  # closed fingers come down on the object and go up again the same way
            top = 2 * float(task.object_poses()[task.episode.target, 2])
            heights = [expert.hand_pose(np.append(action[:7], [0, 0])).p[2] for action in whole]
            tap = whole[: int(np.argmax(np.array(heights) < top)) + 1]
            tap[:, 7] = -1
            return np.concatenate([tap, tap[::-1]])
        cut = {"nowhere": 0, "toward": closes - 5, "moved": closes + 7}[self.at]
        return np.concatenate([whole[:cut], back])


@functools.cache
def player_of(split: str):
    """Plays a split without images."""
    from simulation.closed_loop.episode_player import EpisodePlayer

    instruction = None if "/" in split else "pick up the color-matching object"
    settings = Settings(split, instruction, parts=(SPLITS[split], "conflict"), render="none")
    return EpisodePlayer(settings, None, lambda request: np.zeros((0, 8)))


def play(split: str, part: str, policy: ScriptedPolicy, seeds: Sequence[int]) -> list[EpisodeOutcome]:
    player = player_of(split)
    player.policy = policy
    player.begin("none", part)
    return [player.play(seed) for seed in seeds]


@needs_simulator
@pytest.mark.parametrize("split", SPLITS)
def test_the_expert_reaches_every_stage_in_order_and_holds_at_the_end(split: str) -> None:
    outcomes = play(split, SPLITS[split], TargetPolicy(), range(FIRST, FIRST + 4))
    for outcome in outcomes:
        assert outcome.success and outcome.stages is not None and list(outcome.stages) == list(STAGES)
        steps = list(outcome.stages.values())
        assert steps == sorted(steps) and steps[-1] == outcome.steps and outcome.stage == "held"
        assert steps[0] < steps[1] < steps[3]
        assert outcome.smoothness is not None and -4 < outcome.smoothness < -1.3


@needs_simulator
@pytest.mark.parametrize("split", SPLITS)
def test_one_that_takes_the_lure_or_does_nothing_comes_nowhere(split: str) -> None:
    lure = play(split, "conflict", LurePolicy(), range(FIRST, FIRST + 4))
    still = play(split, SPLITS[split], Stops("nowhere"), [FIRST])
    assert [o.stage for o in [*lure, *still]] == [NOWHERE] * 5
    assert all(o.stages == {} for o in still) and still[0].smoothness is None
    assert all(o.smoothness is not None for o in lure)


@needs_simulator
@pytest.mark.parametrize("stage", ["toward", "touched", "moved"])
def test_one_that_turns_back_ends_at_the_stage_that_it_reached(stage: str) -> None:
    # The touched ones are cubes: what is round rolls away.
    seeds = [FIRST + 5, FIRST + 14] if stage == "touched" else [FIRST, FIRST + 1, FIRST + 2]
    outcomes = play("color_object", "train", Stops(stage), seeds)
    assert [o.stage for o in outcomes] == [stage] * len(seeds) and not any(o.success for o in outcomes)


@needs_simulator
def test_a_grasp_is_what_maniskill_calls_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked of every object at every step, in an episode that grasps and in one that presses from above."""
    task, said = player_of("color_object").task, Counter[tuple[bool, bool]]()
    own = task._forces

    def forces():
        found = own()
        both = zip(found, task.objects, strict=True)
        said.update((task._grasped(force), bool(task.agent.is_grasping(body)[0])) for force, body in both)
        return found

    monkeypatch.setattr(task, "_forces", forces)
    play("color_object", "train", TargetPolicy(), [FIRST + 5])
    play("color_object", "train", Stops("touched"), [FIRST + 5])
    assert set(said) == {(True, True), (False, False)} and said[True, True] > 10


# -- the watch itself --------------------------------------------------------------------------------------------------

PLACES = np.array([[0.2, 0.0, 0.02], [0.0, 0.2, 0.02]])  # target and another object
START = np.array([0.0, 0.0, 0.2])


def watched(*steps: tuple[Sequence[float], Sequence[float], str]) -> dict[str, int]:
    """The stages of (hand, target's shift, what the environment says) at each step."""
    watch = StageWatch(START, PLACES, 0)
    for hand, shift, said in steps:
        found = {name: name in said.split() for name in NAMES}
        watch.update(np.array(hand), PLACES + np.array([shift, [0, 0, 0]]), found)
    return watch.stages()


NAMES = ("touched", "grasped", "done", "held")
UNMOVED = (0, 0, 0)
OVER_TARGET, OVER_OTHER = (0.2, 0.0, 0.1), (0.0, 0.2, 0.03)


def test_the_hand_moves_toward_the_target_where_it_is_decidedly_nearer_and_no_other_object_is() -> None:
    way = PLACES[0] - START
    short, enough = (tuple(START + (1 - NEARER) * share * way) for share in (0.99, 1.01))
    assert watched((short, UNMOVED, "")) == {} and watched((short, UNMOVED, ""), (enough, UNMOVED, "")) == {"toward": 2}
    assert watched((OVER_OTHER, UNMOVED, "")) == {}
    beside = np.array([[0.0, 0.0, 0.02], [0.0, 0.02, 0.1]])
    between = StageWatch(START, beside, 0)
    between.update(np.array([0.0, 0.0, 0.09]), beside, dict.fromkeys(NAMES, False))
    assert between.stages() == {}


def test_what_is_pushed_aside_by_another_object_was_not_moved_by_the_hand() -> None:
    far, near = (1.1 * MOVED, 0, 0), (0.9 * MOVED, 0, 0)
    assert watched((OVER_TARGET, far, "")) == {"toward": 1}
    assert watched((OVER_TARGET, UNMOVED, "touched"), (OVER_TARGET, near, "")) == {"toward": 1, "touched": 1}
    moved = watched((OVER_TARGET, UNMOVED, "touched"), (OVER_TARGET, near, ""), (OVER_TARGET, far, ""))
    assert moved == {"toward": 1, "touched": 1, "moved": 3}


def test_a_stage_implies_those_before_it_and_the_first_time_counts() -> None:
    assert watched((OVER_OTHER, UNMOVED, ""), (OVER_OTHER, UNMOVED, "touched"), (OVER_TARGET, UNMOVED, "")) == {
        "toward": 2,
        "touched": 2,
    }
    found = watched(*[(OVER_TARGET, UNMOVED, "touched grasped")] * 3, (OVER_TARGET, UNMOVED, "done held"))
    assert found == {"toward": 1, "touched": 1, "moved": 1, "done": 4, "held": 4} and list(found) == list(STAGES)
    assert watched((START, UNMOVED, "held")) == dict.fromkeys(STAGES, 1)


# -- smoothness --------------------------------------------------------------------------------------------------------


def minimum_jerk(seconds: float, frequency: float) -> np.ndarray:
    """The speed of a reach of 0.3 m with the least jerk (Flash and Hogan 1985)."""
    t = (np.arange(round(seconds * frequency)) + 0.5) / (seconds * frequency)
    return 0.3 / seconds * (30 * t**2 - 60 * t**3 + 30 * t**4)


def arc_length_by_integration(seconds: float) -> float:
    """The same from the definition (Balasubramanian et al. 2015, equation 9): Fourier integrals on a fine grid."""
    t = np.linspace(0, 1, 401)
    profile = 30 * t**2 - 60 * t**3 + 30 * t**4
    hertz = np.linspace(0, 10, 2001)
    rows = [np.trapezoid(profile * np.exp(-2j * math.pi * f * seconds * t), t) for f in hertz]
    magnitude = np.abs(np.array(rows))
    end = np.flatnonzero(magnitude >= 0.05)[-1]
    slope = np.gradient(magnitude[: end + 1], hertz[: end + 1])
    return -float(np.trapezoid(np.sqrt(1 / hertz[end] ** 2 + slope**2), hertz[: end + 1]))


@pytest.mark.parametrize("seconds", [1.0, 2.0])
def test_the_smoothness_of_a_minimum_jerk_reach_is_that_of_the_definition(seconds: float) -> None:
    found = spectral_arc_length(minimum_jerk(seconds, 20), 20)
    assert found == pytest.approx(arc_length_by_integration(seconds), abs=0.02) and -1.45 < found < -1.35


def test_smoothness_falls_with_tremor_and_stops_and_not_with_size_or_time() -> None:
    reach = minimum_jerk(2.0, 20)
    smooth = spectral_arc_length(reach, 20)
    assert smooth is not None
    tremor = reach + 0.05 * np.abs(np.sin(2 * math.pi * 3 * np.arange(40) / 20))
    stops = np.concatenate([minimum_jerk(1.0, 20), np.zeros(10), minimum_jerk(1.0, 20)])
    for worse in (tremor, stops):
        found = spectral_arc_length(worse, 20)
        assert found is not None and found < smooth - 0.3
    assert spectral_arc_length(3 * reach, 20) == pytest.approx(smooth)
    assert spectral_arc_length(minimum_jerk(4.0, 20), 20) == pytest.approx(smooth, abs=0.02)
    assert spectral_arc_length(np.full(40, 0.005), 20) is None and spectral_arc_length(np.zeros(0), 20) is None


# -- the expert as the reference ---------------------------------------------------------------------------------------


@needs_simulator
@pytest.mark.multiprocess
@pytest.mark.slow
def test_the_expert_plays_the_first_of_the_same_episodes_beside_a_policy_that_looks() -> None:
    settings = Settings("color_object", "x", parts=("train",), conditions=("none", "zero_state"), episodes=2, workers=1)
    outcomes = _expert(object(), settings)
    assert [(o.condition, o.seed, o.stage) for o in outcomes] == [("none", FIRST, "held"), ("none", FIRST + 1, "held")]
    assert _expert(LurePolicy(), settings) == []

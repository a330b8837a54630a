"""Verbs: what holds for an object that was moved so and so, and what a detector says of an episode."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from gr00t.errors import ToolkitError
from simulation.scenes.verbs import VERBS, Detector, Thresholds, suits, verb_of

HERE = (0.0, 0.0, 0.03)  # m


def pose(
    x: float = HERE[0], y: float = HERE[1], z: float = HERE[2], yaw: float = 0.0, tilt: float = 0.0
) -> list[float]:
    """Position and quaternion of an object that is turned by yaw, or tipped over by tilt (rad)."""
    if tilt:
        return [x, y, z, math.cos(tilt / 2), *([math.sin(tilt / 2) / math.sqrt(2)] * 2), 0]
    return [x, y, z, math.cos(yaw / 2), 0, 0, math.sin(yaw / 2)]


def watched(*steps: tuple[list[float], bool], shape: str = "cube") -> Detector:
    """What a detector says of the first of two objects, of which the other stays where it is."""
    still = pose(0.2, 0.1)
    detector = Detector(np.array([pose(), still]), [shape, "cube"])
    for where, held in steps:
        detector.update(np.array([where, still]), [held, False])
    return detector


def did(detector: Detector) -> tuple[int, str | None]:
    return detector.picked, VERBS[detector.did] if detector.did >= 0 else None


@pytest.mark.parametrize(
    ("verb", "steps"),
    [
        ("lift", [(pose(z=0.09), True)]),
        (None, [(pose(z=0.09), False)]),  # thrown, not held
        (None, [(pose(z=0.06), True)]),
        ("grasp", [(pose(), True)] * 10),
        (None, [(pose(), True)] * 9),
        (None, ([(pose(), True)] * 9 + [(pose(), False)]) * 2),
        ("push", [(pose(0.05, 0.02), False)]),
        ("pull", [(pose(-0.05, -0.02), True)]),
        ("slide", [(pose(0.02, 0.05), False)]),
        ("slide", [(pose(-0.02, -0.05), True)]),
        (None, [(pose(0.03), False)] * 20),
        ("rotate", [(pose(yaw=0.6), False)]),
        ("rotate", [(pose(yaw=yaw), True) for yaw in (-0.2, -0.4, -0.6)]),
        (None, [(pose(yaw=0.4), True)] * 20),
        (None, [(pose(0.03, yaw=0.6), False)]),
        (None, [(pose(tilt=1.5), False)]),  # tipped over, which is no turn
    ],
)
def test_each_verb_has_its_physical_definition(verb: str | None, steps: list[tuple[list[float], bool]]) -> None:
    assert did(watched(*steps)) == (-1 if verb is None else 0, verb)


def test_at_most_one_verb_holds_and_every_verb_can() -> None:
    """Ranges of the definitions, written out once more, never overlap."""
    limits, seen = Thresholds(), set[str]()
    for rise, away, aside, turn, held in itertools.product(
        (0, 0.019, 0.021, 0.06), (-0.05, -0.03, 0, 0.03, 0.05), (-0.05, 0, 0.01, 0.05), (-0.6, -0.3, 0, 0.6), (0, 5, 12)
    ):
        distance = math.hypot(away, aside)
        flat, sideways = rise < limits.level, abs(aside) > abs(away)
        holds = {
            "lift": held > 0 and rise > limits.lifted,
            "grasp": held >= limits.held and flat and distance < limits.still and abs(turn) < limits.unturned,
            "push": flat and distance >= limits.moved and not sideways and away > 0,
            "pull": flat and distance >= limits.moved and not sideways and away < 0,
            "slide": flat and distance >= limits.moved and sideways,
            "rotate": flat and distance < limits.still and abs(turn) >= limits.turned,
        }
        expected = [verb for verb, true in holds.items() if true]
        assert len(expected) <= 1
        assert verb_of(rise, (away, aside), turn, held) == (expected[0] if expected else None)
        seen.update(expected)
    assert seen == {*VERBS}


def test_what_was_done_last_to_the_first_object_counts() -> None:
    grasped = [(pose(), True)] * 12
    assert did(watched(*grasped)) == (0, "grasp")
    lifted = watched(*grasped, (pose(z=0.05), True), (pose(z=0.09), True))
    assert did(lifted) == (0, "lift") and lifted.now == VERBS.index("lift")
    put_down = watched(*grasped, (pose(z=0.09), True), (pose(), False))
    assert did(put_down) == (0, "lift") and put_down.now == -1


def test_a_second_object_does_not_replace_the_first() -> None:
    detector = Detector(np.array([pose(), pose(0.2)]), ["cube", "cube"])
    detector.update(np.array([pose(), pose(0.25)]), [False, False])
    assert did(detector) == (1, "push")
    detector.update(np.array([pose(z=0.09), pose(0.25)]), [True, False])
    assert did(detector) == (1, "push") and detector.now == VERBS.index("push")


def test_turns_add_up_past_half_a_circle_and_spheres_only_roll() -> None:
    turning = [(pose(yaw=yaw), True) for yaw in np.arange(0.0, 7.0, 0.5)]
    assert watched(*turning).turns[0] == pytest.approx(6.5)
    assert did(watched(*turning, shape="sphere")) == (0, "grasp")
    assert not suits("rotate", "sphere") and suits("rotate", "cup") and suits("push", "sphere")


def test_thresholds_can_be_set_but_not_overlap() -> None:
    assert verb_of(0.0, (0.05, 0.0), 0.0, 0, Thresholds(moved=0.06)) is None
    with pytest.raises(ToolkitError, match=r"moved=0.01 let two verbs hold .* Take 0 < still < moved"):
        Thresholds(moved=0.01)

"""What happened on the way in an episode: the stages with respect to the target, when each was reached, how smoothly.

Needs neither torch nor a simulator."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from data_prep.maniskill import CONTROL_FREQ
from simulation.closed_loop import STAGES
from simulation.closed_loop.smoothness import spectral_arc_length
from simulation.scenes.verbs import Thresholds

NEARER = 0.5  # of the distance at the start: from there on the hand is at the target rather than on its way past it
MOVED = Thresholds.still  # m: an object that lies nearer to its place counts as unmoved for every verb, too


class StageWatch:
    """Watches one episode, step by step."""

    def __init__(self, hand: np.ndarray, objects: np.ndarray, target: int) -> None:
        """hand (3,): the point between the fingers, m; objects (N, 7): poses, m; both when the episode begins."""
        self.hands, self.target, self.first = [hand], target, objects[target, :3]
        self.seen: dict[str, int] = {}
        self.near = NEARER * float(np.linalg.norm(self.first - hand))

    def update(self, hand: np.ndarray, objects: np.ndarray, found: Mapping[str, bool]) -> None:
        """One control step later; found: what the environment says of the target, touched, grasped, done, held."""
        self.hands.append(hand)
        away = np.linalg.norm(objects[:, :3] - hand, axis=1)
        shifted = float(np.linalg.norm(objects[self.target, :3] - self.first)) >= MOVED
        now = {
            "toward": away[self.target] <= self.near and int(away.argmin()) == self.target,
            "touched": found["touched"],
            # What another object pushes aside was not moved by the hand.
            "moved": found["grasped"] or (shifted and (found["touched"] or "touched" in self.seen)),
            "done": found["done"],
            "held": found["held"],
        }
        for stage, reached in now.items():
            if reached:
                self.seen.setdefault(stage, len(self.hands) - 1)

    def stages(self) -> dict[str, int]:
        """The step at which each stage was reached, in their order, of those that were.

        A stage implies those before it, at its own step at the latest: who holds an object has come to it, also where
        a neighbour was nearer to the hand.
        """
        steps, last = dict[str, int](), math.inf
        for stage in reversed(STAGES):
            last = min(last, self.seen.get(stage, math.inf))
            if last < math.inf:
                steps[stage] = int(last)
        return dict(reversed(steps.items()))

    def smoothness(self) -> float | None:
        """SPARC of the hand's speed, to three digits, beyond which it depends on the machine; None of a still hand."""
        speed = np.linalg.norm(np.diff(self.hands, axis=0), axis=1) * CONTROL_FREQ
        found = spectral_arc_length(speed, CONTROL_FREQ)
        return None if found is None else round(found, 3)

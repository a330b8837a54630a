"""What happened on the way in an episode: the stages with respect to the target, when each was reached, how smoothly.

Smoothness is the spectral arc length of the hand's speed (SPARC): Balasubramanian, Melendez-Calderon, Roby-Brami and
Burdet, "On the analysis of movement smoothness", Journal of NeuroEngineering and Rehabilitation 12:112 (2015); the arc
length is that of the same group's IEEE Transactions on Biomedical Engineering 59:2126 (2012). Needs neither torch nor a
simulator."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from data_prep.maniskill import CONTROL_FREQ
from simulation.closed_loop import STAGES
from simulation.scenes.verbs import Thresholds

NEARER = 0.5  # of the distance at the start: from there on the hand is at the target rather than on its way past it
MOVED = Thresholds.still  # m: an object that lies nearer to its place counts as unmoved for every verb, too
CUTOFF = 10.0  # Hz, the highest frequency that counts; half of our 20 steps a second
LEAST = 0.05  # of the magnitude at 0 Hz: where the spectrum stays below, the arc ends
PADDING = 4  # the speed is padded with zeros to 2**4 times its length, so that the spectrum is a fine curve
STILL = 0.01  # m/s: a hand that is never faster does not move, and has no smoothness


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


def spectral_arc_length(speed: np.ndarray, frequency: float) -> float | None:
    """SPARC of a speed profile (T,) m/s with `frequency` values a second; None of one that never reaches STILL.

    Minus the arc length of the magnitude spectrum, both axes scaled to 1, so it has no unit and depends neither on the
    size of the movement nor on how long it takes: -1.4 is one smooth reach, every stop and tremor lowers it.
    """
    if not len(speed) or speed.max() < STILL:
        return None
    size = 2 ** (math.ceil(math.log2(len(speed))) + PADDING)
    spectrum = np.abs(np.fft.rfft(speed, size))[np.fft.rfftfreq(size, 1 / frequency) <= CUTOFF]
    spectrum /= spectrum[0]
    arc = spectrum[: np.flatnonzero(spectrum >= LEAST)[-1] + 1]
    return -float(np.hypot(1 / (len(arc) - 1), np.diff(arc)).sum())

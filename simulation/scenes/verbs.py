"""The verbs of the instruction suite: how each is said, what it means physically, and which was done to which object.

Everything is judged by how an object lies now against how it lay when the episode began, and by whether the fingers
hold it. At any moment at most one verb holds for an object: rise, shift and turn lie in ranges that exclude each other,
with a gap between them in which none holds. Needs neither torch nor a simulator."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gr00t.errors import ToolkitError

VERBS = ("lift", "grasp", "push", "pull", "rotate", "slide")
# How recordings with paraphrases=true say them: in place of the published sentence's verb, which each list begins with.
# No phrase fits two of the verbs.
PHRASES = {
    "lift": ("Lift", "Pick up", "Raise"),
    "grasp": ("Grasp", "Grip", "Take hold of"),
    "push": ("Push", "Shove", "Push away"),
    "pull": ("Pull", "Drag", "Tug"),
    "slide": ("Slide", "Shift", "Move aside"),
    "rotate": ("Rotate", "Turn", "Spin"),
}
# What turns about its own axis looks the same afterwards.
UNSUITED = frozenset({("rotate", "sphere")})


@dataclass(frozen=True)
class Thresholds:
    """Where a verb begins (m, rad, control steps of 1/20 s), settable as `thresholds` of the environment.

    lift: held, `lifted` above where it stood. All others: not `level` above it. push, pull, slide: `moved` along the
    table, within 45 degrees of away from the robot, toward it, or sideways. rotate: `turned`, not `still` moved. grasp:
    held for `held` steps without a break, not `still` moved, not `unturned` turned.
    """

    lifted: float = 0.05
    level: float = 0.02
    moved: float = 0.04
    still: float = 0.02
    turned: float = 0.5
    unturned: float = 0.25
    held: int = 10

    def __post_init__(self) -> None:
        for less, more in (("level", "lifted"), ("still", "moved"), ("unturned", "turned")):
            if not 0 < getattr(self, less) < getattr(self, more):
                raise ToolkitError(
                    f"thresholds: {less}={getattr(self, less)} and {more}={getattr(self, more)} let two verbs hold at "
                    f"once. Take 0 < {less} < {more}."
                )


def suits(verb: str, shape: str) -> bool:
    """Whether the verb can be done to the shape, so that one sees that it was done."""
    return (verb, shape) not in UNSUITED


def ways_to_say(published: str) -> list[str]:
    """The published sentence, which begins with its verb, then its paraphrases: the same object in the same words."""
    verb, _, what = published.partition(" ")
    if verb.lower() not in PHRASES:
        raise ToolkitError(f'"{published}": no paraphrase is known of this verb. Leave paraphrases=true out.')
    return [f"{phrase} {what}" for phrase in PHRASES[verb.lower()]]


def verb_of(
    rise: float, shift: tuple[float, float], turn: float, held: int, thresholds: Thresholds | None = None
) -> str | None:
    """The verb that holds for an object, or None. rise, shift: m; turn: rad; held: steps without a break."""
    limits = thresholds or Thresholds()
    if rise >= limits.level:
        return "lift" if held and rise > limits.lifted else None
    away, aside = shift
    distance = math.hypot(away, aside)
    if distance >= limits.moved:
        if abs(aside) > abs(away):
            return "slide"
        return "push" if away > 0 else "pull"
    if distance >= limits.still:
        return None
    if abs(turn) >= limits.turned:
        return "rotate"
    return "grasp" if held >= limits.held and abs(turn) < limits.unturned else None


class Detector:
    """Watches an episode's objects. `picked`: the index of the first one for which a verb held, -1: none; `did`: the
    index in VERBS of the last verb that held for that object, for a lift begins as a grasp; -1: none; `now`: the verb
    that holds for it at present."""

    def __init__(self, poses: np.ndarray, shapes: Sequence[str], thresholds: Thresholds | None = None) -> None:
        """poses (N, 7): positions (m) and quaternions (w first) of the objects when the episode begins."""
        self.first, self.thresholds = poses, thresholds or Thresholds()
        self.turns_count = [suits("rotate", shape) for shape in shapes]
        self.headings, self.turns, self.held = [_heading(pose) for pose in poses], [0.0] * len(poses), [0] * len(poses)
        self.picked, self.did, self.now = -1, -1, -1

    def update(self, poses: np.ndarray, held: Sequence[bool]) -> None:
        """One control step later: the poses (N, 7), and which of the objects both fingers press on."""
        verbs = [self._verb(index, pose, held[index]) for index, pose in enumerate(poses)]
        if self.picked < 0:
            self.picked = next((index for index, verb in enumerate(verbs) if verb), -1)
        if self.picked >= 0:
            verb = verbs[self.picked]
            self.now = VERBS.index(verb) if verb else -1
            self.did = self.now if verb else self.did

    def _verb(self, index: int, pose: np.ndarray, held: bool) -> str | None:
        heading, before = _heading(pose), self.headings[index]
        if heading is not None and before is not None and self.turns_count[index]:
            self.turns[index] += math.remainder(heading - before, 2 * math.pi)
        self.headings[index] = heading
        self.held[index] = self.held[index] + 1 if held else 0
        away, aside, rise = (float(value) for value in pose[:3] - self.first[index, :3])
        return verb_of(rise, (away, aside), self.turns[index], self.held[index], self.thresholds)


def _heading(pose: np.ndarray) -> float | None:
    """Direction on the table of an object's x axis, rad; None for one that lies on its side, which has none."""
    w, x, y, z = (float(value) for value in pose[3:])
    upright = 1 - 2 * (x * x + y * y)
    return math.atan2(2 * (x * y + w * z), 1 - 2 * (y * y + z * z)) if upright > 0.8 else None

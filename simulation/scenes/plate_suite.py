"""What an episode of a conflict split is: objects, cue plate, target and lure, drawn from (split, part, seed).

Needs neither torch nor a simulator, so thousands of episodes are drawn and checked in a second.

In a split <a>_<b> a plate on the table carries the cues by its own color, outline, size and side. In `train` one
object matches it in both a and b, the others in neither. In `conflict` none matches in both: the target matches in a,
the lure in b, a third object in neither. The two factors that are no cue are drawn apart for plate and objects."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from gr00t.errors import ToolkitError, did_you_mean
from toolkit.composition import read_yaml
from toolkit.installation import CONFIG_DIR
from toolkit.shared_keys import PARTS

FACTORS: dict[str, tuple[str, ...]] = {
    "color": ("red", "green", "blue"),
    "object": ("cube", "sphere", "cylinder"),
    "size": ("small", "large"),
    "position": ("left", "right"),  # as the base camera sees it
}
SPLITS = tuple(f"{a}_{b}" for a, b in itertools.permutations(FACTORS, 2))

# Seeds below are for recordings, those from here on for evaluation, so that no evaluated episode was ever recorded.
FIRST_EVALUATION_SEED = 1_000_000

# Meters, in the robot's frame turned to the table: x away from the robot, y to the base camera's right.
HALF_SIZE = {"small": 0.015, "large": 0.028}  # half a cube's edge
OBJECT_X = (-0.11, 0.075)
OBJECT_Y = (0.065, 0.20)  # distance from the middle line, where the waiting hand would hide an object
SPACING = 0.10  # between centers: an open hand fits between two large objects
PLATE_X, PLATE_Y, PLATE_JITTER = 0.19, 0.12, 0.01

_BLOCK = 36  # seeds in which every combination of the plate's factors occurs once


@dataclass(frozen=True)
class Thing:
    """An object or the cue plate: its four factors, where its center lies (m) and how it is turned (rad)."""

    color: str
    object: str
    size: str
    position: str
    x: float
    y: float
    yaw: float

    def __getitem__(self, factor: str) -> str:
        return str(getattr(self, factor))


@dataclass(frozen=True)
class Episode:
    """One episode; `target` and `lure` are indices into `objects`, `lure` is None in train."""

    split: str
    part: str
    seed: int
    plate: Thing
    objects: tuple[Thing, ...]
    target: int
    lure: int | None

    def describe(self) -> dict[str, Any]:
        """Everything above as plain JSON."""
        return {**asdict(self), "objects": [asdict(thing) for thing in self.objects]}


def split_factors(split: str) -> tuple[str, str]:
    """(a, b) of a split <a>_<b>; a split that has no simulated task raises ToolkitError."""
    if split not in SPLITS:
        raise ToolkitError(
            f"split={split}: there is no simulated task of that name; it takes two different ones of "
            f"{', '.join(FACTORS)}, as in color_object.{did_you_mean(split, SPLITS)}"
        )
    a, b = split.split("_")
    return a, b


def other_instruction(split: str) -> str:
    """For the split's other cue: that of the split with the cues swapped, a sentence of the same kind."""
    a, b = split_factors(split)
    return str(read_yaml(CONFIG_DIR / "split" / f"{b}_{a}.yaml")["instruction"])


def object_count(split: str) -> int:
    """Objects on the table: three where both cues have three values, else two.

    With a cue of two values, a third object would make the target the odd one out, which is found without the plate.
    """
    return min(len(FACTORS[factor]) for factor in split_factors(split))


def sample_episode(split: str, part: str, seed: int) -> Episode:
    """The episode of that seed; consecutive seeds are balanced.

    In every 36 seeds from a multiple of 36 on, each combination of the plate's factors occurs once, and each value of
    every other factor of every object equally often.
    """
    plate, objects = _sample_factors(split, part, seed)
    rng = random.Random(f"{split}/{part}/{seed}")
    things = _place_objects(rng, objects)
    order = rng.sample(range(len(things)), len(things))
    jitter = [rng.uniform(-PLATE_JITTER, PLATE_JITTER) for _ in range(2)]
    return Episode(
        split=split,
        part=part,
        seed=seed,
        plate=Thing(**plate, x=PLATE_X + jitter[0], y=_signed(plate, PLATE_Y + jitter[1]), yaw=0.0),
        objects=tuple(things[i] for i in order),
        target=order.index(0),
        lure=order.index(1) if part == "conflict" else None,
    )


def _sample_factors(split: str, part: str, seed: int) -> tuple[dict[str, str], list[dict[str, str]]]:
    """The factors of the plate and of each object: the target, the lure (in train another object), perhaps a third."""
    cues = split_factors(split)
    if part not in PARTS:
        raise ToolkitError(f"part={part}: expected train or conflict.")
    block, index = divmod(seed, _BLOCK)
    rng = random.Random(f"{split}/{part}/block {block}")
    plates = list(itertools.product(*FACTORS.values()))
    rng.shuffle(plates)
    plate = dict(zip(FACTORS, plates[index], strict=True))
    objects: list[dict[str, str]] = [
        {factor: _column(rng, values, _BLOCK)[index] for factor, values in FACTORS.items()}
        for _ in range(object_count(split))
    ]
    for cue, factor in enumerate(cues):
        # How many values away from the plate's the first object without a match is, for every seed of the block:
        # balanced for each value on the plate, so that the objects' values are balanced too.
        values, on_plates = FACTORS[factor], [drawn[list(FACTORS).index(factor)] for drawn in plates]
        pools = {value: _column(rng, range(1, len(values)), on_plates.count(value)) for value in values}
        first = [pools[value].pop() for value in on_plates][index]
        matched_by_target = part == "train" or cue == 0
        shifts = (0, first, len(values) - first) if matched_by_target else (first, 0, len(values) - first)
        for thing, shift in zip(objects, shifts, strict=False):
            thing[factor] = values[(values.index(plate[factor]) + shift) % len(values)]
    return plate, objects


def _column(rng: random.Random, values: Sequence[Any], count: int) -> list[Any]:
    """`count` values in random order, each equally often."""
    column = list(values) * (count // len(values))
    rng.shuffle(column)
    return column


def _place_objects(rng: random.Random, objects: list[dict[str, str]]) -> list[Thing]:
    """The objects on their sides, far enough apart."""
    while True:
        points = [(rng.uniform(*OBJECT_X), _signed(factors, rng.uniform(*OBJECT_Y))) for factors in objects]
        if all(math.dist(p, q) >= SPACING for p, q in itertools.combinations(points, 2)):
            yaws = [rng.uniform(-math.pi / 4, math.pi / 4) if f["object"] == "cube" else 0.0 for f in objects]
            return [Thing(**f, x=x, y=y, yaw=yaw) for f, (x, y), yaw in zip(objects, points, yaws, strict=True)]


def _signed(factors: dict[str, str], distance: float) -> float:
    return distance if factors["position"] == "right" else -distance

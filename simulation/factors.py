"""What an episode of a conflict split is: objects, cue plate, target and lure, drawn from (split, part, seed).

Needs neither torch nor a simulator, so thousands of episodes are drawn and checked in a second.

In a split <a>_<b> a plate on the table carries the cues by its own colour, outline, size and side. In `train` one
object matches it in both a and b, the others in neither. In `conflict` none matches in both: the target matches in a,
the lure in b, a third object in neither. The two factors that are no cue are drawn apart for plate and objects.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from gr00t.errors import ToolkitError, did_you_mean

PARTS = ("train", "conflict")
FACTORS: dict[str, tuple[str, ...]] = {
    "color": ("red", "green", "blue"),
    "object": ("cube", "sphere", "cylinder"),
    "size": ("small", "large"),
    "position": ("left", "right"),  # as the base camera sees it
}
SPLITS = tuple(f"{a}_{b}" for a, b in itertools.permutations(FACTORS, 2))
# Seeds below are for recordings, those from here on for evaluation, so that no evaluated episode was ever recorded.
FIRST_EVALUATION_SEED = 1_000_000

# Metres, in the robot's frame turned to the table: x away from the robot, y to the base camera's right.
HALF_SIZE = {"small": 0.015, "large": 0.028}  # half a cube's edge
OBJECT_X = (-0.11, 0.075)
OBJECT_Y = (0.065, 0.20)  # distance from the middle line, where the waiting hand would hide an object
SPACING = 0.10  # between centres: an open hand fits between two large objects
PLATE_X, PLATE_Y, PLATE_JITTER = 0.19, 0.12, 0.01
_BLOCK = 36  # seeds in which every combination of the plate's factors occurs once
_TRIES = 100_000


@dataclass(frozen=True)
class Thing:
    """An object or the cue plate: its four factors, where its centre lies (m) and how it is turned (rad)."""

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
    cues = split_factors(split)
    if part not in PARTS:
        raise ToolkitError(f"part={part}: expected train or conflict.")
    block, index = divmod(seed, _BLOCK)
    columns = random.Random(f"{split}/{part}/block {block}")
    plates = list(itertools.product(*FACTORS.values()))
    columns.shuffle(plates)
    plate = dict(zip(FACTORS, plates[index], strict=True))
    objects = [
        {factor: _column(columns, values, _BLOCK)[index] for factor, values in FACTORS.items()}
        for _ in range(object_count(split))
    ]
    for cue, factor in enumerate(cues):
        on_plates = [values[list(FACTORS).index(factor)] for values in plates]
        first = _first_shifts(columns, factor, on_plates)[index]
        for thing, shift in zip(objects, _shifts(cue, part, first, len(FACTORS[factor])), strict=False):
            thing[factor] = _shifted(factor, plate[factor], shift)
    place = random.Random(f"{split}/{part}/{seed}")
    things = _placed(place, objects)
    order = place.sample(range(len(things)), len(things))
    lure = order.index(1) if part == "conflict" else None
    return Episode(
        split, part, seed, _placed_plate(place, plate), tuple(things[i] for i in order), order.index(0), lure
    )


def episode_problem(episode: Episode) -> str | None:
    """Why the episode is ambiguous or cannot be solved; None where it is sound."""
    a, b = split_factors(episode.split)
    matching = {
        factor: [i for i, thing in enumerate(episode.objects) if thing[factor] == episode.plate[factor]]
        for factor in (a, b)
    }
    if matching[a] != [episode.target]:
        return f"objects {matching[a]} match the plate in {a}; the target {episode.target} alone should"
    other = episode.target if episode.part == "train" else episode.lure
    if matching[b] != [other]:
        return f"objects {matching[b]} match the plate in {b}; {other} alone should"
    if (episode.lure is None) != (episode.part == "train") or episode.lure == episode.target:
        return f"lure {episode.lure} does not fit the part {episode.part} with target {episode.target}"
    return _misplaced(episode)


# -- factors -----------------------------------------------------------------------------------------------------------


def _column(rng: random.Random, values: Sequence[Any], count: int) -> list[Any]:
    """`count` values in random order, each equally often."""
    column = list(values) * (count // len(values))
    rng.shuffle(column)
    return column


def _first_shifts(rng: random.Random, factor: str, on_plates: list[str]) -> list[int]:
    """How many values away from the plate's the first object without a match is, for every seed of a block.

    Balanced for each value on the plate, so that the objects' values are balanced too.
    """
    shifts = range(1, len(FACTORS[factor]))
    pools = {value: _column(rng, shifts, on_plates.count(value)) for value in FACTORS[factor]}
    return [pools[value].pop() for value in on_plates]


def _shifts(cue: int, part: str, first: int, count: int) -> tuple[int, ...]:
    """For target, lure (or another) and a third object: how many values away from the plate's; 0 is a match.

    `cue` is 0 for a, 1 for b; `first` a drawn shift from 1 to count - 1.
    """
    second = count - first
    if part == "train" or cue == 0:
        return 0, first, second
    return first, 0, second


def _shifted(factor: str, value: str, shift: int) -> str:
    values = FACTORS[factor]
    return values[(values.index(value) + shift) % len(values)]


# -- places ------------------------------------------------------------------------------------------------------------


def _placed(rng: random.Random, objects: list[dict[str, str]]) -> list[Thing]:
    """The objects on their sides, far enough apart."""
    for _ in range(_TRIES):
        points = [(rng.uniform(*OBJECT_X), _signed(factors, rng.uniform(*OBJECT_Y))) for factors in objects]
        if all(math.dist(p, q) >= SPACING for p, q in itertools.combinations(points, 2)):
            yaws = [rng.uniform(-math.pi / 4, math.pi / 4) if f["object"] == "cube" else 0.0 for f in objects]
            return [
                Thing(**factors, x=x, y=y, yaw=yaw) for factors, (x, y), yaw in zip(objects, points, yaws, strict=True)
            ]
    raise AssertionError(f"no room for {objects}")


def _placed_plate(rng: random.Random, factors: dict[str, str]) -> Thing:
    jitter = [rng.uniform(-PLATE_JITTER, PLATE_JITTER) for _ in range(2)]
    return Thing(**factors, x=PLATE_X + jitter[0], y=_signed(factors, PLATE_Y + jitter[1]), yaw=0.0)


def _signed(factors: dict[str, str], distance: float) -> float:
    return distance if factors["position"] == "right" else -distance


def _misplaced(episode: Episode) -> str | None:
    for name, thing in [("plate", episode.plate), *((f"object {i}", t) for i, t in enumerate(episode.objects))]:
        if (thing.y > 0) != (thing.position == "right"):
            return f"{name} at y={thing.y:.3f} is not on the {thing.position}"
    for i, thing in enumerate(episode.objects):
        if not (OBJECT_X[0] <= thing.x <= OBJECT_X[1] and OBJECT_Y[0] <= abs(thing.y) <= OBJECT_Y[1]):
            return f"object {i} at ({thing.x:.3f}, {thing.y:.3f}) is out of the workspace"
    for (i, p), (k, q) in itertools.combinations(enumerate(episode.objects), 2):
        if math.dist((p.x, p.y), (q.x, q.y)) < SPACING:
            return f"objects {i} and {k} are too near each other for the hand"
    return None

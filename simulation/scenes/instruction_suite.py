"""The instruction suite: what an episode of `instruction/<a>_<b>` is, drawn from (split, part, seed).

Needs neither torch nor a simulator. In this suite the sentence names both cues ("Lift the red cube."). In `train` and
`unseen` exactly one object fits the sentence, and it fits in both; the other objects fit in neither. In `conflict` no
object fits in both: one has only the first value that is named, another only the second. Which one a policy acts on is
counted (the Factor Dominance Rate). Only the pair varies and is named; the other factors are FIXED.

The experiments' names, their vocabulary and the form of the sentences are those of a public suite (the cards of
yqi19/GR00T and yqi19/Maniskill_gen_new); how scenes are drawn, sizes and places are this project's own."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

from gr00t.errors import ToolkitError, did_you_mean
from simulation.scenes.combinations import Combination, Strategy

PREFIX = "instruction/"
FACTORS: dict[str, tuple[str, ...]] = {
    "color": ("red", "yellow", "blue", "orange", "green", "black"),
    "object": ("cube", "sphere", "cup", "car", "pyramid", "star"),
    "spatial": ("left", "right", "middle", "front", "behind"),  # as the base camera sees the table
    "size": ("small", "large", "smaller", "larger", "smallest", "largest"),
}
FIXED = {"verb": "lift", "color": "red", "object": "cube", "size": "large"}
EXPERIMENTS = ("color_object", "color_size", "color_spatial", "size_object", "spatial_object", "spatial_size")
SPLITS = tuple(PREFIX + name for name in EXPERIMENTS)
PARTS = ("train", "seen", "unseen", "conflict", "train_conflict")
_AS = {"seen": "train", "train_conflict": "conflict"}  # drawn alike, from other seeds
DEFAULT_STRATEGY = "random_f12"

# Meters, in the robot's frame turned to the table: x away from the robot, y to the base camera's right.
HALF_SIZE = {"small": 0.016, "medium": 0.021, "large": 0.026}  # half a cube's edge; the other shapes follow from it
CELLS = {
    "middle": (0.04, 0.0),
    "left": (0.04, -0.15),
    "right": (0.04, 0.15),
    "front": (0.155, 0.0),
    "behind": (-0.075, 0.0),
}
JITTER = 0.012  # of a place, in both directions: the nearest two objects leave room for the open hand

_SMALL = ("small", "smaller", "smallest")  # the other words mean large ones
_COMPARATIVES = {"smaller", "larger"}  # said of two objects
_SUPERLATIVES = {"smallest", "largest"}  # said of three; of a medium one nothing is said
_PHRASES = {"left": "on the left", "right": "on the right", "middle": "in the middle", "front": "in the front"}
_PHRASES["behind"] = "at the back"


@dataclass(frozen=True)
class Body:
    """An object: its factors (size: of HALF_SIZE), where its center lies (m) and how it is turned (rad)."""

    color: str
    object: str
    size: str
    spatial: str
    x: float
    y: float
    yaw: float


@dataclass(frozen=True)
class InstructedEpisode:
    """One episode. named: the two values that the sentence names, by factor. target: the index in `objects` of what the
    first of them points at, lure: of what the second does, None where that is the target."""

    split: str
    part: str
    seed: int
    strategy: str
    instruction: str
    named: dict[str, str]
    objects: tuple[Body, ...]
    target: int
    lure: int | None

    @property
    def verb(self) -> str:
        """What is to be done."""
        return self.named.get("verb", FIXED["verb"])

    def describe(self) -> dict[str, Any]:
        """Everything above as plain JSON."""
        return {**asdict(self), "objects": [asdict(body) for body in self.objects]}


def factors_of(split: str) -> tuple[str, str]:
    """(a, b) of a split instruction/<a>_<b>; one that has no scenes raises ToolkitError."""
    if split not in SPLITS:
        raise ToolkitError(
            f"split={split}: the instruction suite has no experiment of that name.{did_you_mean(split, SPLITS)} It has "
            f"{', '.join(EXPERIMENTS)}."
        )
    a, b = split.removeprefix(PREFIX).split("_")
    return a, b


@cache
def combinations(split: str, strategy: str = DEFAULT_STRATEGY) -> tuple[list[Combination], list[Combination]]:
    """The combinations of the pair's values that are recorded, and the others; the same in every recording."""
    values = [FACTORS[factor] for factor in factors_of(split)]
    every = list(itertools.product(*values))
    chosen = Strategy.read(strategy).choose(values, every, split)
    return chosen, [each for each in every if each not in chosen]


def sample_episode(split: str, part: str, seed: int, strategy: str = DEFAULT_STRATEGY) -> InstructedEpisode:
    """The episode of that seed; `seen` is drawn as `train` is, `train_conflict` as `conflict`, from numbers of its own.

    Outside conflict target and distractor come in pairs of combinations, each as often in the one role as in the other:
    the image alone does not tell which of them the sentence names.
    """
    if part not in PARTS:
        raise ToolkitError(f"part={part}: expected {', '.join(PARTS)}.")
    a, b = factors_of(split)
    recorded, others = combinations(split, strategy)
    if part == "unseen" and not others:
        raise ToolkitError(f"strategy={strategy} records all combinations of {split}: none is left for part=unseen.")
    rng = random.Random(f"{split}/{part}/{seed}")
    pool, conflict = others if part == "unseen" else recorded, _AS.get(part, part) == "conflict"
    first, second = (_conflict if conflict else _pair)(rng, (a, b), pool)
    named = dict(zip((a, b), first[:2], strict=True))
    wanted = [dict(zip((a, b), each, strict=True)) for each in (first, second)]
    if conflict:  # each has one of the two
        wanted = [{a: named[a], b: second[1]}, {a: second[0], b: named[b]}]
    if _SUPERLATIVES & {*first, *second}:
        wanted.append(_medium(rng, (a, b), wanted))
    order = rng.sample(range(len(wanted)), len(wanted))
    return InstructedEpisode(
        split=split,
        part=part,
        seed=seed,
        strategy=strategy,
        instruction=sentence(named),
        named=named,
        objects=_place(rng, [wanted[i] for i in order]),
        target=order.index(0),
        lure=order.index(1) if conflict else None,
    )


def sentence(named: dict[str, str]) -> str:
    """The instruction: Lift the larger red cube on the right."""
    words = [named[factor] for factor in ("size", "color") if factor in named]
    words += [named.get("object", FIXED["object"]), *([_PHRASES[named["spatial"]]] if "spatial" in named else [])]
    return f"Lift the {' '.join(words)}."


# -- what lies there ---------------------------------------------------------------------------------------------------


def _pair(rng: random.Random, pair: tuple[str, str], pool: Sequence[Combination]) -> tuple[Combination, Combination]:
    """Target and distractor, which differ in both factors: each two of the pool equally often in either order, and each
    combination the target about equally often."""
    ordered, weights = _weighed(pair, tuple(pool))
    return rng.choices(ordered, weights)[0]


@cache
def _weighed(
    pair: tuple[str, str], pool: tuple[Combination, ...]
) -> tuple[list[tuple[Combination, Combination]], list[float]]:
    """All two of a pool that may lie beside each other, and how often.

    The weights are symmetric, and those of each combination add up to the same as far as its partners allow (scaled as
    by Sinkhorn and Knopp 1967). One without a partner, such as the corner of an L, gets those that are not recorded.
    """
    every = tuple(itertools.product(*(FACTORS[factor] for factor in pair)))
    partners = {one: [other for other in pool if _differ(pair, one, other)] for one in pool}
    scale = dict.fromkeys(pool, 1.0)
    for _ in range(100):
        sums = {one: scale[one] * sum(scale[other] for other in partners[one]) for one in pool}
        scale = {one: scale[one] / math.sqrt(sums[one]) if sums[one] else 0.0 for one in pool}
    found = {(one, other): scale[one] * scale[other] for one in pool for other in partners[one]}
    for lonely in (one for one in pool if not partners[one]):
        strangers = [other for other in every if _differ(pair, lonely, other)]
        found |= {(lonely, other): 1.0 / len(strangers) for other in strangers}
    return list(found), list(found.values())


def _differ(pair: tuple[str, str], one: Combination, other: Combination) -> bool:
    """Whether neither value of one fits the other, and both can be said of the same table."""
    kinds = {*one, *other}
    return not (kinds & _COMPARATIVES and kinds & _SUPERLATIVES) and all(
        (x in _SMALL) != (y in _SMALL) if factor == "size" else x != y
        for factor, x, y in zip(pair, one, other, strict=True)
    )


def _conflict(
    rng: random.Random, pair: tuple[str, str], pool: Sequence[Combination]
) -> tuple[Combination, Combination]:
    """What is named, a recorded combination, and the value that each object has in place of the other's: one that was
    recorded, where there is one."""
    named = rng.choice(pool)
    for values in (zip(*pool, strict=True), [FACTORS[factor] for factor in pair]):
        every = itertools.product(*(dict.fromkeys(each) for each in values))
        instead = [each for each in every if _differ(pair, named, each)]
        if instead:
            break
    return named, rng.choice(instead)


def _medium(rng: random.Random, pair: tuple[str, str], others: Sequence[dict[str, str]]) -> dict[str, str]:
    """A third object, neither the smallest nor the largest, and in the other factor unlike both."""
    factor = pair[0] if pair[1] == "size" else pair[1]
    free = [value for value in FACTORS[factor] if value not in {other[factor] for other in others}]
    return {"size": "medium", factor: rng.choice(free)}


def _place(rng: random.Random, wanted: Sequence[dict[str, str]]) -> tuple[Body, ...]:
    """The objects in the places that are named, or in any others."""
    taken = {factors["spatial"] for factors in wanted if "spatial" in factors}
    free = rng.sample([cell for cell in CELLS if cell not in taken], len(CELLS) - len(taken))
    bodies = []
    for factors in wanted:
        found = {**FIXED, **factors}
        del found["verb"]
        found.setdefault("spatial", free[-1])
        free = [cell for cell in free if cell != found["spatial"]]
        if found["size"] != "medium":
            found["size"] = "small" if found["size"] in _SMALL else "large"
        x, y = (center + rng.uniform(-JITTER, JITTER) for center in CELLS[found["spatial"]])
        bodies.append(Body(**found, x=x, y=y, yaw=rng.uniform(-math.pi / 4, math.pi / 4)))
    return tuple(bodies)

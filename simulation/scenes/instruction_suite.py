"""The instruction suite: what an episode of `instruction/<a>_<b>` is, drawn from (split, part, seed).

Needs neither torch nor a simulator. In this suite the sentence names both cues ("Lift the red cube."). In `train` and
`unseen` exactly one object fits the sentence, and it fits in both; the other objects fit in neither. In `conflict` no
object fits in both: one has only the first value that is named, another only the second. Which one a policy acts on is
counted (the Factor Dominance Rate). Only the pair varies and is named; the other factors are FIXED.

A verb is no property of an object: in `verb_<b>` it points at an object through what it was paired with in training.
There the recorded combinations are (verb, value of b); the target has the value that is named, the others one that is
not recorded with this verb. In `conflict` the sentence joins a verb and a value that were not recorded together: one
object, the target, has a value recorded with the verb, another, the lure, the value that is named.

`instruction/all` names all five factors. A distractor is another recorded combination (in `unseen`: another one that
was not recorded) in another place, so it may share words with the target, but never all; there is no conflict.

The experiments' names, their vocabulary and the form of the sentences are those of a public suite (the cards of
yqi19/GR00T and yqi19/Maniskill_gen_new); how scenes are drawn, sizes and places are this project's own."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

from gr00t.errors import ToolkitError, did_you_mean
from simulation.scenes.combinations import Combination, Strategy
from simulation.scenes.verbs import VERBS, suits

PREFIX = "instruction/"
FACTORS: dict[str, tuple[str, ...]] = {
    "verb": VERBS,
    "color": ("red", "yellow", "blue", "orange", "green", "black"),
    "object": ("cube", "sphere", "cup", "car", "pyramid", "star"),
    "spatial": ("left", "right", "middle", "front", "behind"),  # as the base camera sees the table
    "size": ("small", "large", "smaller", "larger", "smallest", "largest"),
}
FIXED = {"verb": "lift", "color": "red", "object": "cube", "size": "large"}
OF_ATTRIBUTES = ("color_object", "color_size", "color_spatial", "size_object", "spatial_object", "spatial_size")
OF_VERBS = ("verb_color", "verb_object", "verb_size", "verb_spatial")
EXPERIMENTS = (*OF_ATTRIBUTES, *OF_VERBS)
ALL = PREFIX + "all"
SPLITS = (*(PREFIX + name for name in EXPERIMENTS), ALL)
PARTS = ("train", "seen", "unseen", "conflict", "train_conflict")
_AS = {"seen": "train", "train_conflict": "conflict"}  # drawn alike, from other seeds
DEFAULT_STRATEGY = "random_f12"
NO_DISTRACTOR_PROB = 0.7  # of instruction/all, where the size that is named needs no other object

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

_SMALL = ("small", "smaller", "smallest")
_KINDS = {word: "small" if word in _SMALL else "large" for word in FACTORS["size"]}  # what the object then is
_COMPARATIVES = {"smaller", "larger"}  # said of two objects
_SUPERLATIVES = {"smallest", "largest"}  # said of three; of a medium one nothing is said
_PHRASES = {"left": "on the left", "right": "on the right", "middle": "in the middle", "front": "in the front"}
_PHRASES["behind"] = "at the back"
_FEW = 200  # combinations, of which all pairs are weighed


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
    """One episode. named: the values that the sentence names, by factor. target: the index in `objects` of what the
    first of them points at, lure: of what the second does, None where that is the target. Of `verb_<b>` in conflict,
    the target has a value that the verb was recorded with, the lure the one that is named."""

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


def factors_of(split: str) -> tuple[str, ...]:
    """(a, b) of a split instruction/<a>_<b>, all five of instruction/all; one without scenes raises ToolkitError."""
    if split not in SPLITS:
        raise ToolkitError(
            f"split={split}: the instruction suite has no experiment of that name.{did_you_mean(split, SPLITS)} It has "
            f"{', '.join(EXPERIMENTS)} and all."
        )
    return ("verb", "size", "color", "object", "spatial") if split == ALL else tuple(split[len(PREFIX) :].split("_"))


def default_strategy(split: str) -> str:
    """The strategy of a split for which none is named; that of instruction/all is published."""
    return "Lrandom_f50_n100" if split == ALL else DEFAULT_STRATEGY


@cache
def values_of(split: str, strategy: str) -> dict[str, tuple[str, ...]]:
    """The values that each factor of a split takes, by factor: all of FACTORS, or the first as many as the strategy
    says (_v3). Whatever is recorded or played with the strategy, conflicts too, takes these only."""
    factors, first = factors_of(split), Strategy.read(strategy).values
    most = max(len(FACTORS[factor]) for factor in factors)
    if first is not None and first > most:
        raise ToolkitError(f"strategy={strategy}: a factor of {split} has {most} values at most, so up to _v{most}.")
    return {factor: FACTORS[factor][:first] for factor in factors}


@cache
def combinations(split: str, strategy: str | None = None) -> tuple[list[Combination], list[Combination]]:
    """The combinations of the factors' values that are recorded, and the others; the same in every recording."""
    factors, strategy = factors_of(split), strategy or default_strategy(split)
    values = list(values_of(split, strategy).values())
    every = list(itertools.product(*values))
    if {"verb", "object"} <= {*factors}:
        verb, shape = factors.index("verb"), factors.index("object")
        every = [each for each in every if suits(each[verb], each[shape])]
    late: list[Combination] = []
    if factors == ("verb", "size"):  # a verb recorded with both kinds of size has no conflict
        small = random.Random(split).sample(values[0], len(values[0]) // 2)
        late = [each for each in every if (each[0] in small) != (_kind(each[1]) == "small")]
    chosen = Strategy.read(strategy).choose(values, every, split, late)
    recorded = frozenset(chosen)
    return chosen, [each for each in every if each not in recorded]


def sample_episode(
    split: str, part: str, seed: int, strategy: str | None = None, no_distractor_prob: float | None = None
) -> InstructedEpisode:
    """The episode of that seed; `seen` is drawn as `train` is, `train_conflict` as `conflict`, from numbers of its own.

    Outside conflict target and distractor come in pairs of combinations, each as often in the one role as in the other:
    the image alone does not tell which of them the sentence names. no_distractor_prob: of instruction/all only, how
    often the target lies alone where its size is not said by comparison.
    """
    strategy = strategy or default_strategy(split)
    values, conflict = values_of(split, strategy), _AS.get(part, part) == "conflict"
    factors = tuple(values)
    _check(split, part, strategy, no_distractor_prob)
    rng = random.Random(f"{split}/{part}/{seed}")
    first, second = (_conflict if conflict else _pair)(rng, split, strategy, part == "unseen")
    named = dict(zip(factors, first, strict=True))
    verb = named.get("verb", FIXED["verb"])
    wanted = [dict(zip(factors, each, strict=True)) for each in (first, second)]
    if conflict:  # each has one of the two
        a, b = factors
        wanted = [{a: named[a], b: second[1]}, {a: second[0], b: named[b]}]
    if _SUPERLATIVES & {*first, *second}:
        wanted.append(_medium(rng, verb, wanted, values))
    if split == ALL and named["size"] in HALF_SIZE:
        alone = NO_DISTRACTOR_PROB if no_distractor_prob is None else no_distractor_prob
        wanted = wanted[:1] if rng.random() < alone else wanted
    order = rng.sample(range(len(wanted)), len(wanted))
    return InstructedEpisode(
        split=split,
        part=part,
        seed=seed,
        strategy=strategy,
        instruction=sentence(named),
        named=named,
        objects=_place(rng, verb, [wanted[i] for i in order], values),
        target=order.index(0),
        lure=order.index(1) if conflict else None,
    )


def sentence(named: Mapping[str, str]) -> str:
    """The instruction: Lift the larger red cube on the right."""
    words = [named[factor] for factor in ("size", "color") if factor in named]
    words += [named.get("object", FIXED["object"]), *([_PHRASES[named["spatial"]]] if "spatial" in named else [])]
    return f"{named.get('verb', FIXED['verb']).capitalize()} the {' '.join(words)}."


def _check(split: str, part: str, strategy: str, no_distractor_prob: float | None) -> None:
    """Raise ToolkitError for a part that there is none of."""
    if part not in PARTS:
        raise ToolkitError(f"part={part}: expected {', '.join(PARTS)}.{did_you_mean(part, PARTS)}")
    if part == "unseen" and not combinations(split, strategy)[1]:
        raise ToolkitError(f"strategy={strategy} records all combinations of {split}: none is left for part=unseen.")
    if split == ALL and _AS.get(part, part) == "conflict":
        raise ToolkitError(f"part={part}: {ALL} names all factors and has no conflict. Take train, seen or unseen.")
    if no_distractor_prob is not None and (split != ALL or not 0 <= no_distractor_prob <= 1):
        raise ToolkitError(
            f"no_distractor_prob={no_distractor_prob}: expected a number from 0 to 1, for {ALL} only (here: {split})."
        )


# -- what lies there ---------------------------------------------------------------------------------------------------


def _pair(rng: random.Random, split: str, strategy: str, unseen: bool) -> tuple[Combination, Combination]:
    """Target and distractor: each two of the pool equally often in either order, and each combination the target about
    equally often."""
    pool = combinations(split, strategy)[1 if unseen else 0]
    if len(pool) <= _FEW:
        ordered, weights = _weighed(split, strategy, unseen)
        return rng.choices(ordered, cum_weights=weights)[0]
    while True:  # both are drawn again, so that neither role prefers what has many partners
        one, other = rng.choice(pool), rng.choice(pool)
        if _beside(split, one, other):
            return one, other


@cache
def _weighed(split: str, strategy: str, unseen: bool) -> tuple[list[tuple[Combination, Combination]], list[float]]:
    """All two of a pool that may lie beside each other, and the sums of how often.

    The weights are symmetric, and those of each combination add up to the same as far as its partners allow (scaled as
    by Sinkhorn and Knopp 1967). One without a partner, such as the corner of an L, gets those that are not recorded.
    """
    recorded, others = combinations(split, strategy)
    pool, paired = others if unseen else recorded, _paired(split, strategy)
    partners = {one: [other for other in pool if _beside(split, one, other, paired)] for one in pool}
    scale = dict.fromkeys(pool, 1.0)
    for _ in range(100):
        sums = {one: scale[one] * sum(scale[other] for other in partners[one]) for one in pool}
        scale = {one: scale[one] / math.sqrt(sums[one]) if sums[one] else 0.0 for one in pool}
    found = {(one, other): scale[one] * scale[other] for one in pool for other in partners[one]}
    lonely = [one for one in pool if not partners[one]]
    for rules in (paired, frozenset[Combination]()):
        if unseen and found and rules != paired:
            break  # beside what its verb was recorded with, an unseen combination would be a conflict
        strangers = {
            one: [other for other in (*recorded, *others) if _beside(split, one, other, rules)] for one in lonely
        }
        found |= {(one, other): 1.0 / len(them) for one, them in strangers.items() for other in them}
        lonely = [one for one in lonely if not strangers[one]]
    return list(found), list(itertools.accumulate(found.values()))


@cache
def _paired(split: str, strategy: str) -> frozenset[Combination]:
    """(verb, what the object then is) of the recorded combinations of an experiment verb_<b>; nothing of others."""
    if split.removeprefix(PREFIX) not in OF_VERBS:
        return frozenset()
    return frozenset((verb, _kind(value)) for verb, value in combinations(split, strategy)[0])


def _beside(split: str, one: Combination, other: Combination, paired: frozenset[Combination] = frozenset()) -> bool:
    """Whether two combinations' objects may lie beside each other: neither fits the other's words, both words can be
    said of the same table, and each verb can be done to either object.

    Objects of a pair differ in both factors; verbs, in that neither is recorded (`paired`) with the other's value.
    Those of instruction/all differ in place, and in size where it is said by comparison.
    """
    factors, words = factors_of(split), {*one, *other}
    this, that = (dict(zip(factors, each, strict=True)) for each in (one, other))
    compared = words & (_COMPARATIVES | _SUPERLATIVES)
    if words & _COMPARATIVES and words & _SUPERLATIVES:
        return False
    differ = factors if split != ALL else ("spatial", "size") if compared else ("spatial",)
    if any(_kind(this[factor]) == _kind(that[factor]) for factor in differ if factor != "verb"):
        return False
    if "verb" not in factors:
        return True
    crossed = {(this["verb"], _kind(other[-1])), (that["verb"], _kind(one[-1]))}
    places = [each["spatial"] for each in (this, that) if "spatial" in each]
    shapes = [each["object"] for each in (this, that) if "object" in each]
    verbs = (this["verb"], that["verb"])
    return not crossed & paired and all(
        _has_room(verb, places) and all(suits(verb, shape) for shape in shapes) for verb in verbs
    )


def _kind(value: str) -> str:
    """What an object is of which the value is said: words for sizes are many, sizes two."""
    return _KINDS.get(value, value)


def _has_room(verb: str, places: Iterable[str]) -> bool:
    """Whether the verb can be done to each of the objects there without touching another."""
    taken = {*places}
    if verb in ("push", "pull"):
        return "middle" not in taken or not taken & {"front", "behind"}
    return verb != "slide" or not taken >= {"left", "middle", "right"}


def _conflict(rng: random.Random, split: str, strategy: str, unseen: bool) -> tuple[Combination, Combination]:
    """What is named, and the value that each object has in place of the other's: one that was recorded, where there is
    one. Of verbs: what is named was not recorded, and what the target has instead was, with this verb."""
    if split.removeprefix(PREFIX) in OF_VERBS:
        crossings = _crossings(split, strategy)
        verb = rng.choice(list(crossings))
        value = rng.choice(list(crossings[verb]))
        return (verb, value), (verb, rng.choice(crossings[verb][value]))
    pool = combinations(split, strategy)[0]
    named = rng.choice(pool)
    for values in (zip(*pool, strict=True), values_of(split, strategy).values()):
        every = itertools.product(*(dict.fromkeys(each) for each in values))
        instead = [each for each in every if _beside(split, named, each)]
        if instead:
            break
    return named, rng.choice(instead)


@cache
def _crossings(split: str, strategy: str) -> dict[str, dict[str, list[str]]]:
    """By verb and a value that it was never recorded with: values that it was recorded with."""
    paired, found = _paired(split, strategy), dict[str, dict[str, list[str]]]()
    for verb, value in combinations(split, strategy)[1]:
        own = sorted(kind for other, kind in paired if other == verb)
        instead = [kind for kind in own if _beside(split, (verb, value), (verb, kind))]
        if instead and (verb, _kind(value)) not in paired:
            found.setdefault(verb, {})[value] = instead
    if not found:
        raise ToolkitError(
            f"strategy={strategy} leaves {split} no conflict: each verb that is recorded is recorded with every value. "
            "Take one that records fewer combinations, such as diagonal."
        )
    return found


def _medium(
    rng: random.Random, verb: str, others: Sequence[dict[str, str]], values: Mapping[str, tuple[str, ...]]
) -> dict[str, str]:
    """A third object, neither the smallest nor the largest, and in every other factor that varies unlike both."""
    found = {"size": "medium"}
    for factor in sorted(others[0].keys() - {"size", "verb"}):
        taken = {other[factor] for other in others}
        free = [value for value in values[factor] if value not in taken and suits(verb, value)]
        found[factor] = rng.choice([v for v in free if factor != "spatial" or _has_room(verb, {*taken, v})])
    return found


def _place(
    rng: random.Random, verb: str, wanted: Sequence[dict[str, str]], values: Mapping[str, tuple[str, ...]]
) -> tuple[Body, ...]:
    """The objects in the places that are named, or in any others, such that the verb can be done to each."""
    taken = {factors["spatial"] for factors in wanted if "spatial" in factors}
    others = [cell for cell in CELLS if cell in values.get("spatial", CELLS) and cell not in taken]
    while True:
        free = rng.sample(others, len(others))
        places = [factors.get("spatial") or free.pop() for factors in wanted]
        if _has_room(verb, places):
            break
    bodies = []
    for factors, place in zip(wanted, places, strict=True):
        found = {**FIXED, **factors, "spatial": place}
        del found["verb"]
        found["size"] = _kind(found["size"])
        x, y = (center + rng.uniform(-JITTER, JITTER) for center in CELLS[place])
        bodies.append(Body(**found, x=x, y=y, yaw=rng.uniform(-math.pi / 4, math.pi / 4)))
    return tuple(bodies)

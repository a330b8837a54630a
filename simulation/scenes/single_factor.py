"""Scenes of the instruction suite in which one factor alone tells objects apart, and sentences for the other object.

A conflict says which of two factors wins, not whether either is followed at all, nor how well. In `single_a` and
`single_b` the target fits the sentence in the factor of that name and the other object does not, while the second
factor says nothing: both objects have the value that is named. Two objects cannot lie in one place, so a place that is
to say nothing is not named. A verb points at what recordings pair it with: where it is to say nothing, both objects
were paired with it; where it alone is to tell, the sentence names nothing else and only the target was."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from simulation.scenes import instruction_suite as suite
from simulation.scenes.instruction_suite import FACTORS, InstructedEpisode
from simulation.scenes.verbs import suits

PARTS = ("single_a", "single_b")
_OTHER_SIZE = {"small": "large", "smaller": "larger", "smallest": "largest"}
_OTHER_SIZE |= {large: small for small, large in _OTHER_SIZE.items()}


def sample_single(split: str, part: str, seed: int, strategy: str) -> InstructedEpisode:
    """The episode of that seed; it has no lure, so that an object other than the target is picked as `other`."""
    a, b = suite.factors_of(split)
    telling, silent = (a, b) if part == "single_a" else (b, a)
    rng = random.Random(f"{split}/{part}/{seed}")
    recorded, _ = suite.combinations(split, strategy)
    pool = [dict(zip((a, b), each, strict=True)) for each in recorded]
    named, other = (_by_verb if "verb" in (a, b) else _by_value)(rng, telling, silent, pool)
    wanted = [{**named}, {**named, **other}]
    if named.get("size") in suite._SUPERLATIVES and telling == "size":
        wanted.append({**named, "size": "medium"})
    if silent == "spatial":
        del named["spatial"]
        for factors, place in zip(wanted, rng.sample(sorted(suite.CELLS), len(wanted)), strict=True):
            factors["spatial"] = place
    if telling == "verb":
        del named[silent]
    order = rng.sample(range(len(wanted)), len(wanted))
    objects = suite._place(rng, [wanted[i] for i in order])
    sentence = suite.sentence(named)
    return InstructedEpisode(split, part, seed, strategy, sentence, named, objects, order.index(0), None)


def _by_value(
    rng: random.Random, telling: str, silent: str, pool: Sequence[dict[str, str]]
) -> tuple[dict[str, str], dict[str, str]]:
    """What is named, and what the other object has in its place. A size that says nothing is an absolute one, if any
    was recorded."""
    absolute = [each for each in pool if silent != "size" or each["size"] in suite.HALF_SIZE]
    named = rng.choice(absolute or list(pool))
    return dict(named), {telling: rng.choice([value for value in FACTORS[telling] if _apart(telling)(named, value)])}


def _by_verb(
    rng: random.Random, telling: str, silent: str, pool: Sequence[dict[str, str]]
) -> tuple[dict[str, str], dict[str, str]]:
    """The same for an experiment of a verb and another factor."""
    factor = silent if telling == "verb" else telling
    apart, found = _apart(factor), []
    for named in pool:
        paired = {each[factor] for each in pool if each["verb"] == named["verb"]}
        possible = [v for v in FACTORS[factor] if apart(named, v) and (factor != "object" or suits(named["verb"], v))]
        chosen = [v for v in possible if (v in paired) == (telling != "verb")]
        found += [(dict(named), {factor: value}, bool(chosen)) for value in chosen or possible]
    told = [(named, other) for named, other, fits in found if fits]  # none where a strategy pairs all or one with each
    return rng.choice(told or [(named, other) for named, other, _ in found])


def _apart(factor: str) -> Callable[[dict[str, str], str], bool]:
    """Whether an object with that value does not fit what is named."""
    if factor == "size":
        return lambda named, value: value == _OTHER_SIZE[named["size"]]
    return lambda named, value: value != named[factor]


def other_sentence(episode: InstructedEpisode) -> str:
    """The sentence of the same form that names the scene's other object: in a conflict, the one in which both objects
    change places. The verb stays, for it is what is done."""
    second = list(episode.named)[-1]
    others = [i for i, body in enumerate(episode.objects) if i != episode.target and body.size != "medium"]
    if not others:
        return episode.instruction
    other = others[0] if episode.lure is None else episode.lure
    named = dict(episode.named)
    for factor, value in episode.named.items():
        has, lacks = (episode.target, other) if episode.lure is None or factor != second else (other, episode.target)
        if factor == "size":
            differs = episode.objects[has].size != episode.objects[lacks].size
            named[factor] = _OTHER_SIZE[value] if differs else value
        elif factor != "verb":
            named[factor] = getattr(episode.objects[lacks], factor)
    return suite.sentence(named)

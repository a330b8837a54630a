"""Scenes of the instruction suite in which one factor alone tells objects apart, and sentences for the other object.

A conflict says which of two factors wins, not whether either is followed at all, nor how well. In `single_a` and
`single_b` the target fits the sentence in the factor of that name and the other object does not, while the second
factor says nothing: both objects have the value that is named. Two objects cannot lie in one place, so a place that is
to say nothing is not named. A verb points at what recordings pair it with: where it is to say nothing, both objects
were paired with it; where it alone is to tell, the sentence names nothing else and only the target was."""

from __future__ import annotations

import random
from functools import cache

from gr00t.errors import ToolkitError
from simulation.scenes import instruction_suite as suite
from simulation.scenes.instruction_suite import InstructedEpisode
from simulation.scenes.verbs import suits

PARTS = ("single_a", "single_b")
_OTHER_SIZE = {"small": "large", "smaller": "larger", "smallest": "largest"}
_OTHER_SIZE |= {large: small for small, large in _OTHER_SIZE.items()}


def sample_single(split: str, part: str, seed: int, strategy: str) -> InstructedEpisode:
    """The episode of that seed; it has no lure, so that an object other than the target is picked as `other`."""
    if split == suite.ALL:
        raise ToolkitError(
            f"part={part}: {split} names all factors at once. Take a split of two, such as color_object."
        )
    a, b = suite.factors_of(split)
    telling, silent = (a, b) if part == "single_a" else (b, a)
    rng = random.Random(f"{split}/{part}/{seed}")
    named, other = rng.choice(_choices(split, strategy, telling, silent))
    named = dict(named)
    wanted, verb = [dict(named), {**named, telling: other}], named.get("verb", suite.FIXED["verb"])
    if telling == "verb":
        wanted[1] = {**named, silent: other}
        del named[silent]
    elif named.get("size") in suite._SUPERLATIVES and telling == "size":
        wanted.append({**named, "size": "medium"})
    if silent == "spatial" and telling != "verb":
        del named["spatial"]
        for factors in wanted:
            del factors["spatial"]
    order = rng.sample(range(len(wanted)), len(wanted))
    objects = suite._place(rng, verb, [wanted[i] for i in order], suite.values_of(split, strategy))
    sentence = suite.sentence(named if silent != "object" or telling != "verb" else {**named, "object": "object"})
    return InstructedEpisode(split, part, seed, strategy, sentence, named, objects, order.index(0), None)


@cache
def _choices(split: str, strategy: str, telling: str, silent: str) -> list[tuple[dict[str, str], str]]:
    """What may be named, recorded combinations, and the value that the other object then has in the place of the
    target's. A size that says nothing is an absolute one, if any was recorded."""
    factors, factor = suite.factors_of(split), silent if telling == "verb" else telling
    recorded = [dict(zip(factors, each, strict=True)) for each in suite.combinations(split, strategy)[0]]
    absolute = [each for each in recorded if silent != "size" or telling == "verb" or each["size"] in suite.HALF_SIZE]
    paired, found = suite._paired(split, strategy), []
    for named in absolute or recorded:
        for value in suite.values_of(split, strategy)[factor] if factor != "size" else [_OTHER_SIZE[named["size"]]]:
            if value == named[factor]:
                continue
            verb = named.get("verb", suite.FIXED["verb"])
            possible = suits(verb, value) and (factor != "spatial" or suite._has_room(verb, [named["spatial"], value]))
            by_verb = (verb, suite._kind(value)) in paired
            if possible and ("verb" not in named or by_verb == (telling != "verb")):
                found.append((named, value))
    if not found:
        raise ToolkitError(
            f"strategy={strategy} leaves {split} no scene in which {telling} alone tells the objects apart: leave that "
            "part out."
        )
    return found


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
            named[factor] = _other_size(episode, value) if differs else value
        elif factor != "verb":
            named[factor] = getattr(episode.objects[lacks], factor)
    return suite.sentence(named)


def _other_size(episode: InstructedEpisode, word: str) -> str:
    """The word of the same form, or the absolute one where the strategy's values lack that."""
    said = suite.values_of(episode.split, episode.strategy)["size"]
    return next(each for each in (_OTHER_SIZE[word], suite._KINDS[_OTHER_SIZE[word]]) if each in said)

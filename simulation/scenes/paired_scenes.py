"""A scene, and the same scene with one thing changed: by which of them a policy's heading changes, it can be seen what
the policy goes by. Needs neither torch nor a simulator.

Two objects take part: the target, and one other (in conflict the lure). A factor is changed by exchanging the two
objects' values, or, where both have the same, by giving the other one another; all else stays, each object's index and
yaw included. `place` factors exchange where the two lie. `instruction` is the sentence that names the other object (in
the plate suite, in conflict: the one that names the other cue), `verb` the sentence with a verb that recordings pair
with the other, `plate` a plate that shows the other object's values of both cues."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from simulation.scenes import instruction_suite as suite
from simulation.scenes import plate_suite
from simulation.scenes.instruction_suite import InstructedEpisode
from simulation.scenes.plate_suite import Episode
from simulation.scenes.single_factor import other_sentence
from simulation.scenes.suites import suite_of
from simulation.scenes.verbs import suits

PLACES = ("position", "spatial")


@dataclass(frozen=True)
class PairedScene:
    """A scene, what is asked of the policy in it, and what was changed (None in the first of its pairs). `other`: the
    index of the object that takes part beside episode.target."""

    change: str | None
    episode: Episode | InstructedEpisode
    instruction: str
    other: int


def scenes_of(split: str, seed: int, strategy: str | None, sentences: tuple[str, str]) -> list[list[PairedScene]]:
    """For this seed a scene in which the cues agree and, where the split has one, a conflict: each the first of a list
    of which every further scene differs from the first in one thing. sentences: the plate suite's instruction, and that
    of the split with its cues exchanged."""
    chosen, found = suite_of(split), list[list[PairedScene]]()
    for part in chosen.evaluated_of(split):
        if part not in (chosen.evaluated[0], "conflict"):
            continue
        alone = {"no_distractor_prob": 0.0} if split == suite.ALL else {}
        found.append(list(_variants(chosen.sample(split, part, seed, strategy, **alone), sentences)))
    return found


def _variants(episode: Episode | InstructedEpisode, sentences: tuple[str, str]) -> Iterator[PairedScene]:
    asked = episode.instruction if isinstance(episode, InstructedEpisode) else sentences[0]
    bystanders = [i for i, body in enumerate(episode.objects) if i != episode.target and body.size != "medium"]
    other = bystanders[0] if episode.lure is None else episode.lure
    yield PairedScene(None, episode, asked, other)
    if episode.lure is not None:
        if isinstance(episode, Episode):
            yield PairedScene("instruction", episode, sentences[1], other)
        return
    for factor in suite_of(episode.split).factors:
        if factor != "verb":
            yield PairedScene(factor, _with_factor(episode, factor, other), asked, other)
    if isinstance(episode, Episode):
        yield PairedScene("plate", _with_plate(episode, other), asked, other)
        return
    yield PairedScene("instruction", episode, other_sentence(episode), other)
    if (spoken := _with_verb(episode, other)) is not None:
        yield PairedScene("verb", spoken, spoken.instruction, other)


def _with_factor(episode: Any, factor: str, other: int) -> Any:
    objects, target = list(episode.objects), episode.target
    fields = (factor, "x", "y") if factor in PLACES else (factor,)
    mine, theirs = ({name: getattr(objects[i], name) for name in fields} for i in (target, other))
    if mine[factor] == theirs[factor] and factor not in PLACES:
        mine = {factor: _another(episode, factor, theirs[factor])}
    objects[target], objects[other] = replace(objects[target], **theirs), replace(objects[other], **mine)
    return replace(episode, objects=tuple(objects))


def _another(episode: Any, factor: str, value: str) -> str:
    """Any other value of a factor that an object can have here."""
    if isinstance(episode, Episode):
        known = [each for each in plate_suite.FACTORS[factor] if each != value]
    else:
        values = ("small", "large") if factor == "size" else suite.FACTORS[factor]
        known = [each for each in values if each != value and suits(episode.verb, each)]
    return random.Random(f"{episode.split}/{episode.seed}/{factor}").choice(known)


def _with_plate(episode: Episode, other: int) -> Episode:
    shown = {factor: episode.objects[other][factor] for factor in plate_suite.split_factors(episode.split)}
    moved = shown.get("position", episode.plate.position) != episode.plate.position
    return replace(episode, plate=replace(episode.plate, **shown, y=-episode.plate.y if moved else episode.plate.y))


def _with_verb(episode: InstructedEpisode, other: int) -> InstructedEpisode | None:
    """With a verb that was recorded with the other object and not with the target; None where there is none."""
    if episode.split.removeprefix(suite.PREFIX) not in suite.OF_VERBS:
        return None
    factor = suite.factors_of(episode.split)[1]
    paired = suite._paired(episode.split, episode.strategy)
    mine, theirs = (getattr(episode.objects[i], factor) for i in (episode.target, other))
    places = [body.spatial for body in episode.objects]
    verbs = sorted(
        verb
        for verb, kind in paired
        if kind == theirs and (verb, mine) not in paired and suite._has_room(verb, places) and _suit(verb, episode)
    )
    if not verbs:
        return None
    named = {**episode.named, "verb": random.Random(f"{episode.split}/{episode.seed}/verb").choice(verbs)}
    return replace(episode, named=named, instruction=suite.sentence(named))


def _suit(verb: str, episode: InstructedEpisode) -> bool:
    return all(suits(verb, body.object) for body in episode.objects)

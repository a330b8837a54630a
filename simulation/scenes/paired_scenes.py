"""A scene, and the same scene with one thing changed: by which of them a policy's heading changes, it can be seen what
the policy goes by. Needs neither torch nor a simulator.

Two objects take part: the target, and one other (in conflict the lure). A factor is changed by exchanging their values
of it, a place by exchanging where they lie; where both have the same value, the other one gets another. All else stays,
each object's index and yaw included. `instruction` is the sentence that names the other object (in the plate suite, in
conflict, the one that names the other cue), `verb` the sentence with a verb that recordings pair with the other object,
`plate` a plate that shows the other object's values of both cues."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from simulation.scenes import instruction_suite as suite
from simulation.scenes.instruction_suite import InstructedEpisode
from simulation.scenes.plate_suite import Episode
from simulation.scenes.single_factor import other_sentence
from simulation.scenes.suites import suite_of
from simulation.scenes.verbs import suits

PLACES = ("position", "spatial")


@dataclass(frozen=True)
class PairedScene:
    """A scene and what is asked of the policy in it. change: what differs from the first scene, None for that itself.
    other: the index of the object that takes part beside episode.target."""

    change: str | None
    episode: Episode | InstructedEpisode
    instruction: str
    other: int


def paired_scenes(split: str, seed: int, strategy: str | None, sentences: tuple[str, str]) -> list[list[PairedScene]]:
    """Of this seed a scene in which the cues agree and, where the split has one, a conflict: each the first of a list
    of scenes that differ from it in one thing. sentences: the plate suite's instruction, and the one for its other cue.
    """
    chosen = suite_of(split)
    parts = [part for part in chosen.evaluated_of(split) if part in (chosen.evaluated[0], "conflict")]
    alone = {"no_distractor_prob": 0.0} if split == suite.ALL else {}
    return [list(_variants(chosen.sample(split, part, seed, strategy, **alone), sentences)) for part in parts]


def _variants(episode: Any, sentences: tuple[str, str]) -> Iterator[PairedScene]:
    plate_suite = isinstance(episode, Episode)
    asked = sentences[0] if plate_suite else episode.instruction
    beside = [i for i, body in enumerate(episode.objects) if i != episode.target and body.size != "medium"]
    other = beside[0] if episode.lure is None else episode.lure
    yield PairedScene(None, episode, asked, other)
    if episode.lure is not None:
        if plate_suite:
            yield PairedScene("instruction", episode, sentences[1], other)
        return
    for factor in suite_of(episode.split).factors:
        if factor != "verb":
            yield PairedScene(factor, _with_factor(episode, factor, other), asked, other)
    if plate_suite:
        yield PairedScene("plate", _with_plate(episode, other), asked, other)
        return
    yield PairedScene("instruction", episode, other_sentence(episode), other)
    if verbs := _other_verbs(episode, other):
        named = {**episode.named, "verb": _rng(episode).choice(verbs)}
        spoken = replace(episode, named=named, instruction=suite.sentence(named))
        yield PairedScene("verb", spoken, spoken.instruction, other)


def _rng(episode: Any) -> random.Random:
    return random.Random(f"{episode.split}/{episode.seed}/changed")


def _with_factor(episode: Any, factor: str, other: int) -> Any:
    objects, target = list(episode.objects), episode.target
    fields = (factor, "x", "y") if factor in PLACES else (factor,)
    mine, theirs = ({name: getattr(objects[i], name) for name in fields} for i in (target, other))
    if mine == theirs:
        values = ("small", "large") if factor == "size" else suite_of(episode.split).factors[factor]
        verb = getattr(episode, "verb", "lift")
        mine = {factor: _rng(episode).choice([v for v in values if v != mine[factor] and suits(verb, v)])}
    objects[target], objects[other] = replace(objects[target], **theirs), replace(objects[other], **mine)
    return replace(episode, objects=tuple(objects))


def _with_plate(episode: Episode, other: int) -> Episode:
    plate = episode.plate
    shown: dict[str, Any] = {cue: episode.objects[other][cue] for cue in suite_of(episode.split).cues(episode.split)}
    moved = shown.get("position", plate.position) != plate.position
    return replace(episode, plate=replace(plate, **shown, y=-plate.y if moved else plate.y))


def _other_verbs(episode: InstructedEpisode, other: int) -> list[str]:
    """Verbs that were recorded with the other object's value and not with the target's; none but in verb_<b>."""
    paired, factor = suite._paired(episode.split, episode.strategy), list(episode.named)[-1]
    mine, theirs = (getattr(episode.objects[i], factor) for i in (episode.target, other))
    places, shapes = zip(*((body.spatial, body.object) for body in episode.objects), strict=True)
    found = {verb for verb, kind in paired if kind == theirs} - {verb for verb, kind in paired if kind == mine}
    return sorted(v for v in found if suite._has_room(v, places) and all(suits(v, shape) for shape in shapes))

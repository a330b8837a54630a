"""Closed-loop outcomes for the tests of the reports: real scenes, chosen endings."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Any

from simulation.closed_loop import LURE, NOTHING, OTHER, TARGET, EpisodeOutcome, Evaluation
from simulation.scenes.instruction_suite import InstructedEpisode
from simulation.scenes.plate_suite import FIRST_EVALUATION_SEED, sample_episode
from simulation.scenes.single_factor import other_sentence
from simulation.scenes.suites import suite_of

HELD, LOST = (TARGET, True), (TARGET, False)
WRONG, NONE = (LURE, False), (NOTHING, False)


def outcome(
    part: str,
    number: int,
    ending: tuple[str, bool],
    condition: str = "none",
    split: str = "color_object",
    **fields: Any,
) -> EpisodeOutcome:
    """The episode of that number among those for evaluation, with (what was picked first, success)."""
    seed = FIRST_EVALUATION_SEED + number
    picked, success = ending
    values = {
        "picked_step": None if picked == NOTHING else 20,
        "steps": 30 + number if success else 100,
        "chunks": 4,
        "instruction": f"pick up the {'object' if condition == 'other_instruction' else 'color'}-matching object",
        "episode": sample_episode(split, part, seed).describe(),
    }
    return EpisodeOutcome(condition, part, seed, success, picked, **{**values, **fields})


def played(
    endings: dict[tuple[str, bool], int], part: str = "conflict", condition: str = "none"
) -> list[EpisodeOutcome]:
    """So many episodes with each ending, one after another from the first seed on."""
    rows = [ending for ending, count in endings.items() for _ in range(count)]
    return [outcome(part, number, ending, condition) for number, ending in enumerate(rows)]


def evaluation(episodes: Iterable[EpisodeOutcome], **info: Any) -> Evaluation:
    told = {"split": "color_object", "policy": "a policy", "n_action_steps": 8, "max_steps": 100, "seed": 42}
    told |= {"instruction": "pick up the color-matching object", "versions": {"numpy": "2"}}
    return Evaluation({**told, **info}, tuple(episodes))


def by_scene(part: str, count: int, ending: Callable[[dict[str, Any]], tuple[str, bool]]) -> list[EpisodeOutcome]:
    """Episodes whose ending depends on the target's factors."""
    drawn = [outcome(part, number, HELD) for number in range(count)]
    ends = [ending(e.episode["objects"][e.episode["target"]]) for e in drawn]
    return [outcome(part, number, end) for number, end in enumerate(ends)]


Chooses = Callable[[InstructedEpisode, random.Random], int | None]


def acted(
    split: str, parts: Iterable[str], count: int, chooses: Chooses, condition: str = "none", does: str | None = None
) -> list[EpisodeOutcome]:
    """Episodes of the instruction suite in which a policy `chooses` an object, by its index, or none, and `does` to it
    what was asked for, or that verb."""
    found = []
    for part in parts:
        for seed in range(FIRST_EVALUATION_SEED, FIRST_EVALUATION_SEED + count):
            episode = suite_of(split).sample(split, part, seed, None)
            assert isinstance(episode, InstructedEpisode)
            chosen, did = chooses(episode, random.Random(seed)), does or episode.verb
            picked = {None: NOTHING, episode.target: TARGET, episode.lure: LURE}.get(chosen, OTHER)
            picked = NOTHING if chosen is None else picked
            success = picked == TARGET and did == episode.verb
            ending = success, picked, None if chosen is None else 20, 30 if success else 100, 4
            said = other_sentence(episode) if condition == "other_instruction" else episode.instruction
            verb = None if chosen is None else did
            found.append(EpisodeOutcome(condition, part, seed, *ending, said, episode.describe(), did=verb))
    return found


def follows(factor: int) -> Chooses:
    """A policy that follows only the first factor (0) or the second (1), and takes any object where that is silent."""

    def chooses(episode: InstructedEpisode, rng: random.Random) -> int | None:
        if episode.part == ("single_b", "single_a")[factor]:
            return rng.randrange(len(episode.objects))
        return episode.target if factor == 0 or episode.lure is None else episode.lure

    return chooses


def any_object(episode: InstructedEpisode, rng: random.Random) -> int | None:
    return rng.randrange(len(episode.objects))

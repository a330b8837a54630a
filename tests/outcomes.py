"""Closed-loop outcomes for the tests of the reports: real scenes, chosen endings."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from simulation.closed_loop import LURE, NOTHING, TARGET, EpisodeOutcome, Evaluation
from simulation.scenes.plate_suite import FIRST_EVALUATION_SEED, sample_episode

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
        "instruction": "pick up the color-matching object",
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

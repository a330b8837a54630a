"""Scripted policies, which act in closed loop as any object with `get_action` may.

Scripted policies know the simulation's state and show that the closed loop itself is sound: the expert should nearly
always succeed, one that takes the lure never in conflict, one that picks at random by chance, and recorded actions
always. They act in the worker processes, so they must pickle; they need no images."""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_prep.maniskill import Episode as Recorded
from data_prep.recording_checks import read_recordings
from gr00t.errors import ToolkitError
from gr00t.file_reading import read_json
from simulation.scenes import ENV_ID
from simulation.scenes.instruction_suite import InstructedEpisode
from simulation.scenes.plate_suite import FIRST_EVALUATION_SEED, Episode

if TYPE_CHECKING:
    from simulation.scenes.environment import ConflictPickEnv
    from simulation.scenes.expert import Expert

STYLES = 5  # tried until one keeps the arm within its joints' reach


class ScriptedPolicy:
    """Plans a whole episode at its start. `rebuilds`: it needs scenes that remember no earlier contacts."""

    rebuilds = False

    def seeds(self, part: str, episodes: int) -> list[int]:
        """The episodes that it, or a policy that looks, is evaluated on; none of them was ever recorded."""
        return list(range(FIRST_EVALUATION_SEED, FIRST_EVALUATION_SEED + episodes))

    def choose(self, episode: Episode | InstructedEpisode) -> int:
        """Index of the object that the expert is to pick up; the expert's own choice is the target."""
        return episode.target

    def plan(self, task: ConflictPickEnv, expert: Expert) -> np.ndarray:
        """Actions (T, 8) float32 of the episode that `task` was just reset to; T = 0 where it gives up."""
        from simulation.scenes.expert import Unreachable, drawn_style

        goal = self.choose(task.episode)
        for attempt in range(STYLES):
            rng = random.Random(f"{task.split}/{task.part}/{task.episode.seed}/{attempt}")
            with suppress(Unreachable):
                return expert.plan(goal, drawn_style(rng))
        return np.zeros((0, 8), np.float32)


class TargetPolicy(ScriptedPolicy):
    """The expert: always the target."""


class LurePolicy(ScriptedPolicy):
    """Always the lure; where there is none, in train, both cues point at the target."""

    def choose(self, episode: Episode | InstructedEpisode) -> int:
        return episode.target if episode.lure is None else episode.lure


@dataclass(frozen=True)
class RandomPolicy(ScriptedPolicy):
    """Any of the objects, by (seed, episode)."""

    seed: int = 42

    def choose(self, episode: Episode | InstructedEpisode) -> int:
        rng = random.Random(f"{self.seed}/{episode.split}/{episode.part}/{episode.seed}")
        return rng.randrange(len(episode.objects))


class ReplayPolicy(ScriptedPolicy):
    """Actions recorded in raw_dir/<split>/<part>, in the same episodes, but those in which the arm was pushed aside.
    `strategy`: the one that the scenes were drawn by, None in the plate suite."""

    rebuilds = True  # as recordings are made, so that motions too are the same

    def __init__(self, raw_dir: Path, split: str, parts: Sequence[str]) -> None:
        self.recorded: dict[str, dict[Any, Recorded]] = {}  # by part and seed
        strategies: dict[str | None, str] = {}
        for part in parts:
            folder = raw_dir / split / part
            episodes = [(e, _entry(e, split, part)) for e in read_recordings(folder).episodes]
            strategies |= {entry.get("conflict", {}).get("strategy"): part for _, entry in episodes}
            self.recorded[part] = {e.seed: e for e, entry in episodes if not entry.get("disturbed")}
            if not self.recorded[part]:
                raise ToolkitError(
                    f"{folder}: the arm was pushed aside in every episode, which actions alone do not repeat."
                )
        if len(strategies) > 1:
            told = ", ".join(f"{part} by {strategy}" for strategy, part in strategies.items())
            raise ToolkitError(
                f"{raw_dir / split}: parts were recorded by other strategies ({told}). Replay one: parts=[...]."
            )
        self.strategy = next(iter(strategies), None)

    def seeds(self, part: str, episodes: int) -> list[int]:
        return list(self.recorded[part])[:episodes]

    def plan(self, task: ConflictPickEnv, expert: Expert) -> np.ndarray:
        return self.recorded[task.part][task.episode.seed].actions()


def _entry(episode: Recorded, split: str, part: str) -> dict[str, Any]:
    """The entry in the .json of an episode of this toolkit's recordings."""
    path = episode.file.with_suffix(".json")
    meta = read_json(path)
    kwargs = meta["env_info"]["env_kwargs"]
    if meta["env_info"].get("env_id") != ENV_ID or (kwargs.get("split"), kwargs.get("part")) != (split, part):
        raise ToolkitError(
            f"{path}: is no recording of {split} {part} by python -m simulation.record, so its seeds mean nothing "
            "here. Give the folder of one, raw_dir=FOLDER."
        )
    if episode.seed is None:
        raise ToolkitError(f"{episode.name}: the .json gives no episode_seed, so the episode cannot be set up again.")
    return next(entry for entry in meta["episodes"] if entry["episode_id"] == episode.episode_id)

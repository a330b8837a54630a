"""Policies that know the simulation's state: they show that the closed loop itself is sound.

The expert should nearly always succeed, one that takes the lure never in conflict, one that picks at random by chance,
and recorded actions always. They act in the worker processes, so they must pickle; they need no images.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_prep.maniskill import Episode as Recorded
from data_prep.maniskill import read_recordings
from gr00t.errors import ToolkitError
from gr00t.files import read_json
from simulation.factors import FIRST_EVALUATION_SEED, Episode

if TYPE_CHECKING:
    from simulation.environment import ConflictPickEnv
    from simulation.expert import Expert

ENV_ID = "ConflictPick-v1"  # environment.py's, which only the worker processes load
STYLES = 5  # tried until one keeps the arm within its joints' reach


class ScriptedPolicy:
    """Plans a whole episode at its start. `rebuilds`: it needs scenes that remember no earlier contacts."""

    rebuilds = False

    def seeds(self, part: str, episodes: int) -> list[int]:
        """The episodes it is evaluated on."""
        return evaluation_seeds(episodes)

    def plan(self, task: ConflictPickEnv, expert: Expert) -> np.ndarray:
        """Actions (T, 8) float32 of the episode that `task` was just reset to; T = 0 where it gives up."""
        raise NotImplementedError


def evaluation_seeds(episodes: int) -> list[int]:
    """The seeds of that many evaluated episodes; none of them was ever recorded."""
    return list(range(FIRST_EVALUATION_SEED, FIRST_EVALUATION_SEED + episodes))


class _Picker(ScriptedPolicy):
    """Lets the expert pick up an object."""

    def choose(self, episode: Episode) -> int:
        """Index of the object."""
        raise NotImplementedError

    def plan(self, task: ConflictPickEnv, expert: Expert) -> np.ndarray:
        from simulation.expert import Unreachable, drawn_style

        goal = self.choose(task.episode)
        for attempt in range(STYLES):
            rng = random.Random(f"{task.split}/{task.part}/{task.episode.seed}/{attempt}")
            try:
                return expert.plan(goal, drawn_style(rng))
            except Unreachable:
                continue
        return np.zeros((0, 8), np.float32)


class TargetPolicy(_Picker):
    """The expert: always the target."""

    def choose(self, episode: Episode) -> int:
        return episode.target


class LurePolicy(_Picker):
    """Always the lure; where there is none, in train, both cues point at the target."""

    def choose(self, episode: Episode) -> int:
        return episode.target if episode.lure is None else episode.lure


@dataclass(frozen=True)
class RandomPolicy(_Picker):
    """Any of the objects, by (seed, episode)."""

    seed: int = 42

    def choose(self, episode: Episode) -> int:
        rng = random.Random(f"{self.seed}/{episode.split}/{episode.part}/{episode.seed}")
        return rng.randrange(len(episode.objects))


@dataclass(frozen=True)
class ReplayPolicy(ScriptedPolicy):
    """Recorded actions in the recorded episodes, of each part."""

    recorded: dict[str, tuple[Recorded, ...]]
    rebuilds = True  # as recordings are made, so that motions too are the same

    def seeds(self, part: str, episodes: int) -> list[int]:
        return [_seed(episode) for episode in self.recorded[part][:episodes]]

    def plan(self, task: ConflictPickEnv, expert: Expert) -> np.ndarray:
        by_seed = {_seed(episode): episode for episode in self.recorded[task.part]}
        return by_seed[task.episode.seed].actions()


def replay_policy(raw_dir: Path, split: str, parts: Sequence[str]) -> ReplayPolicy:
    """Reads raw_dir/<split>/<part>; episodes in which the arm was pushed aside are left out. Raises ToolkitError for
    recordings of other tasks, and where nothing is left."""
    recorded: dict[str, tuple[Recorded, ...]] = {}
    for part in parts:
        folder = raw_dir / split / part
        episodes = tuple(e for e in read_recordings(folder).episodes if not _entry(e, split, part).get("disturbed"))
        if not episodes:
            raise ToolkitError(
                f"{folder}: the arm was pushed aside in every episode, which actions alone do not repeat."
            )
        recorded[part] = episodes
    return ReplayPolicy(recorded)


def _entry(episode: Recorded, split: str, part: str) -> dict[str, Any]:
    """What the .json says of an episode of this toolkit's recordings."""
    path = episode.file.with_suffix(".json")
    meta = read_json(path)
    info, wanted = meta["env_info"], {"split": split, "part": part}
    if info.get("env_id") != ENV_ID or any(info["env_kwargs"].get(name) != value for name, value in wanted.items()):
        raise ToolkitError(
            f"{path}: is no recording of {split} {part} by python -m simulation.record, so its seeds mean nothing "
            "here. Give the folder of one, raw_dir=FOLDER."
        )
    return next(entry for entry in meta["episodes"] if entry["episode_id"] == episode.episode_id)


def _seed(episode: Recorded) -> int:
    if episode.seed is None:
        raise ToolkitError(f"{episode.name}: the .json gives no episode_seed, so the episode cannot be set up again.")
    return episode.seed

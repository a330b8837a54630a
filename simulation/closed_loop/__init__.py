"""Episodes in closed loop, where a policy acts and the simulation answers: how they are played, what they ended with.

Needs neither torch nor a simulator: a report can be made, or made again, from closed_loop.json alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from toolkit.shared_keys import PARTS

FORMAT = 1
TARGET, LURE, OTHER, NOTHING = PICKS = ("target", "lure", "other", "nothing")
# What is done to the policy's observation. The ablations show whether it looks and listens.
CONDITIONS = {
    "none": "as it is",
    "other_image": "images of another episode",
    "blank_image": "blank images",
    "other_instruction": "another instruction",
    "zero_state": "zeroed state",
}


@dataclass(frozen=True)
class Settings:
    """How episodes are played.

    instruction: what the policy is asked to do; other_instruction: under the condition of that name. n_action_steps:
    steps executed of each chunk; max_steps: control steps (1/20 s) of an episode. image_size: of both cameras, pixels.
    render: cpu, gpu, or none for policies without images. seed: of the noise. videos: of the first successes, and of
    the first failures, of each part.
    """

    split: str
    instruction: str
    other_instruction: str | None = None
    parts: tuple[str, ...] = PARTS
    conditions: tuple[str, ...] = ("none",)
    episodes: int = 100
    n_action_steps: int = 8
    max_steps: int = 100
    image_size: int = 224
    render: str = "cpu"
    seed: int = 42
    workers: int = 2
    videos: int = 0


@dataclass(frozen=True)
class EpisodeOutcome:
    """One closed-loop episode.

    condition: of CONDITIONS; part: train or conflict; seed: of the episode (simulation.scenes.factors.sample_episode).
    picked: what was first held above the table (PICKS), picked_step: after how many steps, None for nothing.
    success: the target was held by a still arm before the steps ran out; it may follow a wrong first pick.
    steps: control steps executed; chunks: action chunks asked for. instruction: what the policy was asked to do.
    episode: the plate's and the objects' factors and places, as Episode.describe gives them.
    video: path below the report's folder, None where none was kept.
    """

    condition: str
    part: str
    seed: int
    success: bool
    picked: str
    picked_step: int | None
    steps: int
    chunks: int
    instruction: str
    episode: dict[str, Any]
    video: str | None = None

    def thing(self, whose: str) -> dict[str, Any] | None:
        """The factors and place of the target, lure or plate; None for the lure of a train episode."""
        if whose == "plate":
            return self.episode["plate"]
        index = self.episode[whose]
        return None if index is None else self.episode["objects"][index]

    def in_words(self, whose: str) -> str:
        """The same as in: small red cube, left; empty for None."""
        found = self.thing(whose)
        return "" if found is None else f"{found['size']} {found['color']} {found['object']}, {found['position']}"


@dataclass(frozen=True)
class Evaluation:
    """All episodes of one evaluation, and what was evaluated.

    info: plain JSON; always with split, policy (a name for people), n_action_steps, max_steps, seed, instruction,
    versions; with checkpoint, denoising_steps, precision, device, workers, seconds where they apply.
    """

    info: dict[str, Any]
    episodes: tuple[EpisodeOutcome, ...]

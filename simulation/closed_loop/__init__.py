"""Episodes in closed loop, where a policy acts and the simulation answers: how they are played, what they ended with.

Needs neither torch nor a simulator: a report can be made, or made again, from closed_loop.json alone."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from gr00t.errors import ToolkitError
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
class Phase:
    """Order to a worker: play the episodes of these seeds, under one condition in one part."""

    condition: str
    part: str
    instruction: str
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Film:
    """Order to a worker: write a video of an episode that it has played."""

    part: str
    seed: int
    text: str
    path: Path


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


@dataclass(frozen=True)
class Evaluation:
    """All episodes of one evaluation, and what was evaluated.

    info: plain JSON; always with split, policy (a name for people), n_action_steps, max_steps, seed, instruction,
    versions; with checkpoint, denoising_steps, precision, device, workers, seconds where they apply.
    """

    info: dict[str, Any]
    episodes: tuple[EpisodeOutcome, ...]

    def to_json(self) -> dict[str, Any]:
        """As closed_loop.json holds it (the report adds its summary)."""
        return {"format": FORMAT, "info": self.info, "episodes": [asdict(episode) for episode in self.episodes]}

    @staticmethod
    def from_json(data: dict[str, Any], where: str) -> Evaluation:
        """The reverse of to_json; anything else raises ToolkitError with `where` in its message."""
        if data.get("format") != FORMAT:
            raise ToolkitError(
                f"{where}: is no closed-loop result of format {FORMAT} (found {data.get('format')!r}). Evaluate again: "
                "python evaluate_conflict.py mode=closed_loop ..."
            )
        names = {field.name for field in fields(EpisodeOutcome)}
        try:
            episodes = tuple(EpisodeOutcome(**{n: e[n] for n in names}) for e in data["episodes"])
            return Evaluation(dict(data["info"]), episodes)
        except (KeyError, TypeError, ValueError) as error:
            raise ToolkitError(f"{where}: is damaged ({type(error).__name__}: {error}). Evaluate again.") from None

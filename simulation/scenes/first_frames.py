"""What a policy is shown when an episode begins, and where the expert would go from there; nothing is played."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from data_prep.maniskill import CAMERAS, state_of
from simulation.scenes.environment import ConflictPickEnv, make_env
from simulation.scenes.expert import Expert, Style
from simulation.scenes.instruction_suite import InstructedEpisode
from simulation.scenes.plate_suite import Episode
from simulation.scenes.suites import suite_of

STEPS = 32  # of the expert's way to an object, 1/20 s each


@dataclass(frozen=True)
class FirstFrame:
    """The start of an episode. images: by key of CAMERAS, (H, W, 3) uint8 RGB. state: (8,) float32, 7 joints (rad) and
    gripper width (m). toward: (objects, STEPS, 7) float32, the expert's first joint targets (rad) for each object."""

    images: dict[str, np.ndarray]
    state: np.ndarray
    toward: np.ndarray


class Photographer:
    """An environment that builds scenes of a split and looks at them; one per process."""

    def __init__(self, split: str, *, image_size: int = 224, render: str = "cpu") -> None:
        env = make_env(split, suite_of(split).evaluated[0], image_size=image_size, render=render)
        self.task: ConflictPickEnv = env.unwrapped  # type: ignore[assignment]
        self.task.render_when_asked()
        self.task.reset(seed=0)
        self.expert = Expert(self.task)

    def show(self, episode: Episode | InstructedEpisode) -> FirstFrame:
        """The start of that episode, the arm as its seed has it. Raises expert.Unreachable where an object is."""
        self.task.reset(seed=episode.seed, options={"episode": episode})
        seen = self.task.look()
        ways = [self.expert.plan(index, Style())[:, :7] for index in range(len(episode.objects))]
        toward = np.stack([way[np.minimum(np.arange(STEPS), len(way) - 1)] for way in ways])
        return FirstFrame({key: seen[sensor] for key, sensor in CAMERAS.items()}, state_of(self.task.qpos()), toward)


def first_frames(
    split: str, part: str, seeds: Iterable[int], *, strategy: str | None = None, image_size: int = 224
) -> Iterator[tuple[Episode | InstructedEpisode, FirstFrame]]:
    """The episodes of these seeds of a part, each with its start; rendered in this process."""
    photographer = Photographer(split, image_size=image_size)
    for seed in seeds:
        episode = suite_of(split).sample(split, part, seed, strategy)
        yield episode, photographer.show(episode)

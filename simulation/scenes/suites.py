"""Both suites by one interface: what a split's episodes are, without asking which suite it belongs to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from gr00t.errors import ToolkitError, did_you_mean
from simulation.scenes import instruction_suite, plate_suite, single_factor
from simulation.scenes.instruction_suite import InstructedEpisode
from simulation.scenes.plate_suite import Episode


class Sample(Protocol):
    """The episode of (split, part, seed, strategy); strategy None is the usual one. no_distractor_prob: how often the
    target of instruction/all lies alone, None: as usual."""

    def __call__(
        self, split: str, part: str, seed: int, strategy: str | None, no_distractor_prob: float | None = None
    ) -> Episode | InstructedEpisode: ...


@dataclass(frozen=True)
class Suite:
    """A suite of conflict splits.

    recorded, evaluated: the parts that are recorded, and those that are played in closed loop. factors: their values.
    strategies: whether recordings hold chosen combinations of the values only. cues: (a, b) of a split, all five of
    instruction/all, which has no conflict.
    """

    name: str
    splits: tuple[str, ...]
    recorded: tuple[str, ...]
    evaluated: tuple[str, ...]
    factors: Mapping[str, tuple[str, ...]]
    strategies: bool
    cues: Callable[[str], tuple[str, ...]]
    sample: Sample

    def recorded_of(self, split: str) -> tuple[str, ...]:
        """The parts that are recorded of this split."""
        return _without_conflict(self.recorded) if split == instruction_suite.ALL else self.recorded

    def evaluated_of(self, split: str) -> tuple[str, ...]:
        """The parts of this split that are played in closed loop."""
        return _without_conflict(self.evaluated) if split == instruction_suite.ALL else self.evaluated

    def playable(self, split: str, strategy: str | None) -> list[str]:
        """The parts that are played in closed loop, without those that the strategy leaves no scenes for."""
        found, refused = [], None
        for part in self.evaluated_of(split):
            try:
                self.sample(split, part, 0, strategy)
            except ToolkitError as error:
                refused = error
            else:
                found.append(part)
        if refused is not None and not found:
            raise refused
        return found


def _without_conflict(parts: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(part for part in parts if "conflict" not in part and part not in single_factor.PARTS)


def _on_plate(
    split: str, part: str, seed: int, strategy: str | None, no_distractor_prob: float | None = None
) -> Episode:
    for name, value in (("strategy", strategy), ("no_distractor_prob", no_distractor_prob)):
        if value is not None:
            raise ToolkitError(
                f"{name}={value}: {split} always shows all combinations. Leave it out, or take a split of the "
                f"instruction suite, such as {instruction_suite.SPLITS[0]}."
            )
    return plate_suite.sample_episode(split, part, seed)


def _instructed(
    split: str, part: str, seed: int, strategy: str | None, no_distractor_prob: float | None = None
) -> InstructedEpisode:
    if part in single_factor.PARTS:
        return single_factor.sample_single(split, part, seed, strategy or instruction_suite.default_strategy(split))
    return instruction_suite.sample_episode(split, part, seed, strategy, no_distractor_prob)


PLATE = Suite(
    "plate",
    plate_suite.SPLITS,
    recorded=plate_suite.PARTS,
    evaluated=plate_suite.PARTS,
    factors=plate_suite.FACTORS,
    strategies=False,
    cues=plate_suite.split_factors,
    sample=_on_plate,
)
INSTRUCTION = Suite(
    "instruction",
    instruction_suite.SPLITS,
    recorded=("train", "unseen", "conflict", "train_conflict"),
    evaluated=("seen", "unseen", "conflict", *single_factor.PARTS),
    factors=instruction_suite.FACTORS,
    strategies=True,
    cues=instruction_suite.factors_of,
    sample=_instructed,
)
SUITES = (PLATE, INSTRUCTION)
SPLITS = (*PLATE.splits, *INSTRUCTION.splits)


def suite_of(split: str) -> Suite:
    """The suite that has this split; ToolkitError for a name that neither has."""
    for suite in SUITES:
        if split in suite.splits:
            return suite
    raise ToolkitError(
        f"split={split}: there is no simulated task of that name.{did_you_mean(split, SPLITS)} It takes two different "
        f"ones of {', '.join(PLATE.factors)}, as in color_object, or an experiment of the instruction suite, as in "
        f"{INSTRUCTION.splits[0]}."
    )

"""Demonstrations of a conflict split, recorded in ManiSkill's own format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from toolkit.declaration import key
from toolkit.shared_keys import LARGEST_SEED, PARTS, SplitConfig, check_writable

ATTEMPTS = 5  # at one episode, each in another style


@dataclass(kw_only=True)
class RecordConfig:
    """Record demonstrations of a conflict split in simulation, as ManiSkill would."""

    split: SplitConfig = key("the conflict split")
    part: str = key("train, in which the cues agree, or conflict", "train", choices=PARTS)
    episodes: int = key("successful episodes recorded; a finished recording can be made longer", 500, at_least=1)
    out: str = key("folder that receives <split>/<part>", "conflict_maniskill", folder=True)
    image_size: int = key("width and height of both cameras, pixels", 224, at_least=32, at_most=1024)
    seed: int = key("seed of the first episode; the others follow", 0, at_least=0, at_most=LARGEST_SEED)
    recoveries: float = key("part of the episodes in which the arm is pushed aside once", 0.0, at_least=0, at_most=1)
    paraphrases: bool = key("tell each episode's instruction in one of the split's ways", False)
    workers: int = key("processes, with a simulation each", 2, at_least=1)
    render: str = key("where images are rendered", "cpu", choices=("cpu", "gpu"))
    overwrite: bool = key("replace a recording that is already there", False)

    def check_here(self) -> None:
        """Refuse what cannot run on this machine."""
        check_writable("out", Path(self.out))

"""Which evaluated step was best, and whether it is time to end early. best.json in the run folder names that step; its
checkpoint is never removed."""

from __future__ import annotations

import logging
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from finetune.run_files import BEST
from gr00t.files import read_json, write_json

log = logging.getLogger(__name__)


@dataclass
class Best:
    """The best evaluation so far: its step and metric (smaller is better), called `name`.

    evaluated: the step of the last evaluation, 0 before the first; worse: how many since the best one.
    """

    name: str = ""
    step: int | None = None
    metric: float = math.inf
    evaluated: int = 0
    worse: int = 0

    @classmethod
    def restored(cls, state: dict[str, Any]) -> Best:
        """What a checkpoint's state holds; a new one from checkpoints that hold nothing."""
        found = state.get("best")
        return cls(**{**found, "metric": math.inf if found["metric"] is None else found["metric"]}) if found else cls()

    def state(self) -> dict[str, Any]:
        """For a checkpoint's state, as JSON has it."""
        return {**asdict(self), "metric": self.metric if math.isfinite(self.metric) else None}

    def update(self, step: int, name: str, metric: float) -> bool:
        """Count an evaluation after `step` steps; whether it is the best one. A metric that is no number never is."""
        self.evaluated = step
        if not metric < self.metric:
            self.worse += 1
            return False
        self.name, self.step, self.metric, self.worse = name, step, metric, 0
        return True

    def exhausted(self, patience: int | None) -> bool:
        """Whether so many evaluations in a row were no better."""
        return patience is not None and self.worse >= patience

    def write(self, run_dir: Path) -> None:
        """best.json, where the best step's checkpoint is there; a stale one goes."""
        if self.step is None:
            (run_dir / BEST).unlink(missing_ok=True)
        elif (run_dir / f"checkpoint-{self.step}").is_dir():
            write_json(run_dir / BEST, {"step": self.step, "metric": self.metric, "name": self.name})

    def forget_lost(self, run_dir: Path) -> None:
        """Look for a new best one where the checkpoint of the old one is not there any more."""
        if self.step is not None and not (run_dir / f"checkpoint-{self.step}").is_dir():
            log.warning("%s: checkpoint-%d, the best one so far, is not there any more", run_dir, self.step)
            self.step, self.metric = None, math.inf


def read_best(run_dir: Path) -> dict[str, Any] | None:
    """{"step", "metric", "name"} of the best evaluated checkpoint; None where nothing was evaluated."""
    path = run_dir / BEST
    return read_json(path) if path.is_file() else None

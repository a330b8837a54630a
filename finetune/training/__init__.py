"""Training: from a dataset and a base to checkpoints, resumed exactly.

Here are the names of what a run folder holds for people and other programs, beside its checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gr00t.file_reading import read_json

METRICS = "metrics.jsonl"  # a line each time something was measured
STATUS = "status.json"  # running, finished, stopped or failed, and why
FIRST_BATCH = "first_batch.png"
EVALUATIONS = "evaluations"  # images of the evaluations during training
ARTIFACTS = "artifacts"  # what wandb artifacts hold; an offline run needs it until it is sent
CONDITIONS = "conditions.jsonl"  # what each attempt is computed with, a line each
INPUTS = "inputs.json"  # the digest of every file that the run reads, to name one that has changed
BEST = "best.json"  # the best evaluated step, whose checkpoint is kept
REPORT = "report.html"


def read_best(run_dir: Path) -> dict[str, Any] | None:
    """{"step", "metric", "name"} of the best evaluated checkpoint; None where nothing was evaluated."""
    path = run_dir / BEST
    return read_json(path) if path.is_file() else None

"""Training: from a dataset and a base to checkpoints, resumed exactly.

Here are the names of what a run folder holds for people and other programs, beside its checkpoints."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gr00t.file_reading import parsing, read_json
from toolkit.trackers import TENSORBOARD

RUN_CONFIG = "run_config.json"  # the resolved configuration; the first file that a run writes
METRICS = "metrics.jsonl"  # a line each time something was measured
STATUS = "status.json"  # running, finished, stopped or failed, and why
FIRST_BATCH = "first_batch.png"
EVALUATIONS = "evaluations"  # images of the evaluations during training
WANDB_RUN = "run.json"  # the id and project under which training logs to wandb
SENT = "sent.json"  # what finetune.send_metrics has sent, and as which run
ARTIFACTS = "artifacts"  # what wandb artifacts hold; an offline run needs it until it is sent
CONDITIONS = "conditions.jsonl"  # what each attempt is computed with, a line each
INPUTS = "inputs.json"  # the digest of every file that the run reads, to name one that has changed
BEST = "best.json"  # the best evaluated step, whose checkpoint is kept
REPORT = "report.html"
# what a run that begins again removes of the one before, besides its checkpoints
RUN_FILES = (WANDB_RUN, SENT, METRICS, STATUS, BEST, FIRST_BATCH, INPUTS, CONDITIONS)
RUN_FOLDERS = (ARTIFACTS, EVALUATIONS, TENSORBOARD)
_STEPS = 2**31  # no run has as many
_LONGEST = 1 << 17  # bytes of a line


def read_optional(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None where there is none."""
    return read_json(path) if path.is_file() else None


def read_best(run_dir: Path) -> dict[str, Any] | None:
    """{"step", "metric", "name"} of the best evaluated checkpoint; None where nothing was evaluated."""
    found = read_optional(run_dir / BEST)
    if found is None:
        return None
    with parsing(run_dir / BEST):
        return {"step": int(found["step"]), "metric": float(found["metric"]), "name": str(found["name"])}


def as_tracked(values: dict[str, float]) -> dict[str, float]:
    """What was measured under the names that trackers know it by: all but evaluations ("val/...") as "train/..."."""
    return {name if "/" in name else f"train/{name}": value for name, value in values.items()}


def logged(path: Path) -> Iterator[bytes]:
    """The lines of METRICS, however large the file is. A line longer than any valid one arrives in pieces, which do
    not parse."""
    with path.open("rb", buffering=_LONGEST) as file:
        yield from iter(lambda: file.readline(_LONGEST), b"")


def measurement(line: str | bytes) -> tuple[int, dict[str, float]] | None:
    """The step and the finite numbers in a line of METRICS; None for one that is damaged, or not written to its end."""
    if line[:1] not in ("{", b"{"):  # parsing gigabytes of zeros takes long
        return None
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    entries = found.items() if isinstance(found, dict) else ()
    numbers = {name: value for name, value in entries if isinstance(value, int | float) and abs(value) < 1e300}
    step = numbers.pop("step", None)
    return (step, numbers) if isinstance(step, int) and 0 <= step < _STEPS else None

"""The run folders of a project, and the jobs recorded in them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from finetune.slurm import record
from gr00t.files import read_json, write_json

RECORD = "submitted.json"  # in job/ of a run folder, or job-<stage>/
OWN_FOLDER = ".launcher"  # in runs_dir: the launcher's submissions, and where runs are that lie elsewhere
_ELSEWHERE = "elsewhere"
_MARKS = ("attempt.json", "run_config.json", "metrics.jsonl", "job", "attempts")
_DEEPEST = 4


def job_folder(run_dir: Path, label: str) -> Path:
    """Where a run folder keeps what a job of it was submitted with."""
    return run_dir / ("job" if label == "finetune" else f"job-{label}")


def submissions(run_dir: Path) -> list[dict[str, Any]]:
    """What the launcher noted of this run's jobs, the fine-tune's first."""
    return [read_json(path) for path in sorted(run_dir.glob(f"job*/{RECORD}"))]


def now() -> str:
    """The time as records have it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def jobs_of(run_dir: Path) -> list[dict[str, Any]]:
    """The newest job of each stage of a run: as the launcher noted it, or as its attempts did after plain sbatch.

    A run that was never a job is one entry without a job_id.
    """
    noted = {str(found["name"]): found for found in submissions(run_dir)}
    held = record.token(run_dir)
    tuned = noted.get(run_dir.name)
    if held is not None and (tuned is None or str(held["started"]) > str(tuned["submitted"])):
        job_id = str(held["job_id"])
        if tuned is None or tuned["job_id"] != job_id:
            entry = {"job_id": job_id, "job_name": held.get("job_name"), "log": held.get("log")}
            noted[run_dir.name] = {"name": run_dir.name, "stage": "finetune", "split": split_of(run_dir), **entry}
    if not noted:
        noted[run_dir.name] = {"name": run_dir.name, "stage": "finetune", "split": split_of(run_dir)}
    return sorted(noted.values(), key=lambda found: (found["stage"] != "finetune", found["name"]))


def run_folders(runs_dir: Path) -> list[Path]:
    """Every run folder below `runs_dir`, and those elsewhere that the launcher submitted from here."""
    noted = [Path(read_json(path)["run_dir"]) for path in (runs_dir / OWN_FOLDER / _ELSEWHERE).glob("*.json")]
    found = [*_below(runs_dir, 0), *(path for path in noted if path.is_dir())]
    return sorted({Path(os.path.abspath(path)) for path in found})


def note_elsewhere(runs_dir: Path, run_dir: Path) -> None:
    """Remember a run folder that a search of `runs_dir` would not find."""
    if run_dir.is_relative_to(os.path.abspath(runs_dir)):
        return
    folder = runs_dir / OWN_FOLDER / _ELSEWHERE
    folder.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256(os.fsencode(run_dir)).hexdigest()[:16]
    write_json(folder / f"{name}.json", {"run_dir": str(run_dir)})


def split_of(run_dir: Path) -> str | None:
    """The split that a run trains on, as its records say."""
    settings = resolved(run_dir)
    return str(settings["split"]["name"]) if settings else None


def resolved(run_dir: Path) -> dict[str, Any]:
    """The fine-tune's configuration as last resolved, by a job or else by the training; {} before the first."""
    path = run_dir / "job" / "config.yaml"
    if path.is_file():
        return dict(yaml.safe_load(path.read_text(encoding="utf-8")))
    path = run_dir / "run_config.json"
    return read_json(path) if path.is_file() else {}


def _below(folder: Path, depth: int) -> Iterator[Path]:
    if not folder.is_dir() or depth > _DEEPEST:
        return
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not path.is_dir():
            continue
        if any((path / mark).exists() for mark in _MARKS):
            yield path
        else:
            yield from _below(path, depth + 1)

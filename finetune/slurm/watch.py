"""How the runs of a project stand: what their folders say, and what SLURM says of their jobs where it still knows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from finetune.run_files import STATUS
from finetune.slurm import record, runs
from finetune.slurm.queue import Job, Queue
from gr00t.errors import ToolkitError
from gr00t.files import read_json

_TAIL_BYTES = 65536
_DAMAGED = (ToolkitError, OSError, KeyError, TypeError, ValueError, AttributeError, yaml.YAMLError)
_WORDS = {"done": "finished", "stop": "stopped", "requeue": "between attempts"}


@dataclass(frozen=True)
class View:
    """One line of the list: a run's fine-tune, or another stage of it that was submitted.

    state: in words; alive: whether SLURM still has its job; training_left: seconds at the present speed; job_left: of
    the job's limit, as SLURM writes it; log: what follow shows.
    """

    name: str
    split: str | None
    stage: str
    run_dir: str
    job: str | None
    state: str
    reason: str
    alive: bool
    nodes: str
    attempt: int | None
    step: int | None
    steps: int | None
    samples_per_second: float | None
    training_left: float | None
    job_left: str
    loss: float | None
    log: str | None


def views(runs_dir: Path) -> list[View]:
    """Every run below `runs_dir` or submitted from there, by name."""
    found = [(folder, noted) for folder in runs.run_folders(runs_dir) for noted in _jobs_of(folder)]
    queue = Queue.read([str(noted["job_id"]) for _, noted in found if noted.get("job_id")])
    return [_readable(folder, noted, queue) for folder, noted in found]


def _jobs_of(run_dir: Path) -> list[dict[str, Any]]:
    """The jobs of a run; one entry that tells what is wrong where the records are damaged."""
    try:
        return runs.jobs_of(run_dir)
    except _DAMAGED as error:
        return [{"name": run_dir.name, "stage": "finetune", "split": None, "damaged": _told(error)}]


def _readable(run_dir: Path, noted: dict[str, Any], queue: Queue) -> View:
    """As `view`; one run's damaged records must not hide the other runs."""
    try:
        if "damaged" in noted:
            return _without_records(run_dir, noted, queue, noted["damaged"])
        return view(run_dir, noted, queue)
    except _DAMAGED as error:
        return _without_records(run_dir, noted, queue, _told(error))


def _without_records(run_dir: Path, noted: dict[str, Any], queue: Queue, damage: str) -> View:
    job = queue.find(noted) if noted.get("job_id") else None
    return View(
        name=noted["name"],
        split=noted["split"],
        stage=noted["stage"],
        run_dir=str(run_dir),
        job=noted.get("job_id"),
        state=job.state.lower() if job and job.alive else "damaged",
        reason=damage,
        alive=bool(job and job.alive),
        nodes=job.nodes if job else "",
        attempt=None,
        step=None,
        steps=None,
        samples_per_second=None,
        training_left=None,
        job_left=job.time_left if job and job.alive else "",
        loss=None,
        log=noted.get("log"),
    )


def _told(error: Exception) -> str:
    return str(error) if isinstance(error, ToolkitError) else f"its records are damaged ({str(error).splitlines()[0]})"


def view(run_dir: Path, noted: dict[str, Any], queue: Queue) -> View:
    """One line, from a job's record and SLURM's answer."""
    job = queue.find(noted) if noted.get("job_id") else None
    tuned = noted["stage"] == "finetune"
    attempts = record.attempts(run_dir) if tuned else []
    last = attempts[-1] if attempts else None
    settings = runs.resolved(run_dir).get("train", {}) if tuned else {}
    metrics = last_metrics(run_dir) if tuned else {}
    state, reason = _state(job, last, queue.silence, bool(noted.get("job_id")))
    if state == "local" and (metrics.get("step") == settings.get("max_steps", -1) or _finished_early(run_dir)):
        state = "finished"
    return View(
        name=noted["name"],
        split=noted["split"],
        stage=noted["stage"],
        run_dir=str(run_dir),
        job=noted.get("job_id"),
        state=state,
        reason=reason,
        alive=bool(job and job.alive),
        nodes=job.nodes if job else "",
        attempt=last.number if last else None,
        step=metrics.get("step"),
        steps=settings.get("max_steps"),
        samples_per_second=metrics.get("samples_per_second"),
        training_left=_training_left(metrics, settings) if job and job.alive else None,
        job_left=job.time_left if job and job.alive else "",
        loss=metrics.get("loss"),
        log=_log(run_dir, noted, last),
    )


def last_metrics(run_dir: Path) -> dict[str, Any]:
    """The last whole line of metrics.jsonl that training measured; {} before the first."""
    path = run_dir / "metrics.jsonl"
    if not path.is_file():
        return {}
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        lines = file.read().splitlines()
    for line in reversed(lines):
        try:
            found = json.loads(line)
        except ValueError:  # the line that is being written
            continue
        if isinstance(found, dict) and "step" in found and "loss" in found:
            return found
    return {}


def _state(job: Job | None, last: record.Attempt | None, silence: str, was_job: bool) -> tuple[str, str]:
    """A word for how it stands, and why."""
    if job is not None and job.alive:
        return job.state.lower(), job.reason
    ended = last.ended if last else None
    outcome = last.outcome if last else None
    if ended is not None and ended["what"] in _WORDS:
        return _WORDS[ended["what"]], str(ended["reason"]).splitlines()[0]
    if outcome is not None:
        return str(outcome["status"]), str(outcome.get("reason") or "")
    if job is not None:
        return job.state.lower(), job.reason
    if not was_job:
        return "local", ""
    return ("unknown", silence) if silence else ("lost", "its job is gone and left no word")


def _finished_early(run_dir: Path) -> bool:
    """Whether training ended by itself before max_steps, as train.patience lets it."""
    path = run_dir / STATUS
    return path.is_file() and read_json(path).get("status") == "finished"


def _training_left(metrics: dict[str, Any], settings: dict[str, Any]) -> float | None:
    speed = metrics.get("samples_per_second")
    if not speed or not settings:
        return None
    return float((settings["max_steps"] - metrics["step"]) * settings["global_batch_size"] / speed)


def _log(run_dir: Path, noted: dict[str, Any], last: record.Attempt | None) -> str | None:
    """The job's own output, which goes on across attempts; rank 0's of the newest attempt where that is not known."""
    paths: Sequence[Path] = [Path(noted["log"])] if noted.get("log") else []
    paths = [*paths, *([last.folder / "rank-0.log"] if last else [])]
    return next((str(path) for path in paths if path.is_file()), str(paths[0]) if paths else None)

"""Which jobs the runs of a project have: those that run folders record, and those of plain sbatch, of which only SLURM
knows until they start."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from finetune.slurm import attempt_record
from finetune.slurm.cluster_queries import Job, Queue, user_name
from gr00t.errors import ToolkitError
from toolkit.configuration import load

DAMAGED = (ToolkitError, OSError, KeyError, TypeError, ValueError, AttributeError, yaml.YAMLError)

_SCRIPT_BYTES = 1 << 16
_PAYLOAD = re.compile(r'^exec "\$(?:run|SLURM_SUBMIT_DIR/finetune_jobs/run\.sh)" (finetune .*)$', re.MULTILINE)


class Entry(NamedTuple):
    """A job of a run: its run folder, which a job that waits may not have yet, and what is noted of it."""

    run_dir: Path
    noted: dict[str, Any]

    @property
    def number(self) -> int:
        """Of the job, -1 without one; a later job has a higher one."""
        number = str(self.noted.get("job_id") or "").partition("_")[0]
        return int(number) if number.isdecimal() else -1


@dataclass(frozen=True)
class KnownJobs:
    """Every job by its entry, and SLURM's answer of the same moment."""

    runs_dir: Path
    entries: list[Entry]
    queue: Queue

    @classmethod
    def read(cls, runs_dir: Path, *, usage: bool = False) -> KnownJobs:
        """Those of every run below `runs_dir` or submitted from there; `usage` also asks what they used of CPU and
        memory."""
        recorded = [entry for folder in attempt_record.run_folders(runs_dir) for entry in recorded_in(folder)]
        queue = Queue.read([entry.noted for entry in recorded], usage=usage)
        return cls(runs_dir, _with_plain(recorded, queue, runs_dir), queue)

    def again(self, run_dir: Path) -> KnownJobs:
        """With what is now known of one run folder's jobs; the others as they were."""
        mine = recorded_in(run_dir) if run_dir.is_dir() else []
        queue = Queue.read([entry.noted for entry in mine])
        others = [entry for entry in self.entries if entry.run_dir != run_dir]
        return KnownJobs(self.runs_dir, _with_plain([*mine, *others], queue, self.runs_dir), queue)

    def find(self, job_id: str) -> Entry | None:
        """The entry of a job."""
        return next((entry for entry in self.entries if entry.noted.get("job_id") == job_id), None)


def recorded_in(run_dir: Path) -> list[Entry]:
    """The jobs that a run folder records, or one entry that says what is damaged."""
    try:
        return [Entry(run_dir, noted) for noted in attempt_record.jobs_of(run_dir)]
    except DAMAGED as error:
        damage = {
            "name": attempt_record.run_name(run_dir),
            "stage": "finetune",
            "split": None,
            "damage": in_words(error),
        }
        return [Entry(run_dir, damage)]


def in_words(error: Exception) -> str:
    """What is wrong with the records of a run."""
    return str(error) if isinstance(error, ToolkitError) else f"its records are damaged ({str(error).splitlines()[0]})"


# -- plain sbatch ------------------------------------------------------------------------------------------------------


def _with_plain(recorded: Sequence[Entry], queue: Queue, runs_dir: Path) -> list[Entry]:
    """With this user's plain jobs that no run folder records."""
    entries, me = [*recorded], user_name(os.getuid())
    for job in {job.job_id: job for job in queue.jobs.values() if job.user == me and job.command}.values():
        entry = None if _is_known(job, entries) else _of_plain_job(job, runs_dir)
        if entry is None:
            continue
        if entry.run_dir.is_dir() and all(other.run_dir != entry.run_dir for other in entries):
            entries += recorded_in(entry.run_dir)
        if not _is_known(job, entries):
            rivals = [e for e in entries if e.run_dir == entry.run_dir and e.noted["stage"] == "finetune"]
            entries = [e for e in entries if e not in rivals] + _standing([*rivals, entry], queue)
    return sorted(entries, key=lambda e: (e.run_dir, e.noted["stage"] != "finetune", e.noted["name"], e.number))


def _is_known(job: Job, entries: Sequence[Entry]) -> bool:
    return any(entry.noted.get("job_id") == job.job_id for entry in entries)


def _standing(rivals: Sequence[Entry], queue: Queue) -> list[Entry]:
    """Of several jobs of one run those that SLURM still has; where it has none, the newest."""
    alive = [entry for entry in rivals if (job := queue.find(entry.noted)) and job.alive]
    return alive or [max(rivals, key=lambda entry: entry.number)]


def _of_plain_job(job: Job, runs_dir: Path) -> Entry | None:
    """The entry of a job whose script is one of finetune_jobs/ or like them; None where it is of another project.

    Its run folder lies below `runs_dir`, or anywhere where that is runs/ of the checkout that it was submitted from.
    """
    found = _run_of(job.command, job.work_dir)
    if found is None:
        return None
    run_dir, split = found
    ours, checkout = (Path(os.path.realpath(path)) for path in (runs_dir, job.work_dir))
    if not (Path(os.path.realpath(run_dir)).is_relative_to(ours) or ours == checkout / "runs"):
        return None
    noted = {"name": attempt_record.run_name(run_dir), "stage": "finetune", "split": split, "user": job.user}
    return Entry(run_dir, {**noted, "job_id": job.job_id, "job_name": job.name})


@lru_cache(1024)
def _run_of(command: str, work_dir: str) -> tuple[Path, str] | None:
    """Run folder and split that a script and its arguments mean; None for a script of another kind."""
    name, *arguments = command.split(" ")
    payload = _PAYLOAD.search(_beginning_of(Path(work_dir, name)))
    if payload is None:
        return None
    overrides = [word for word in shlex.split(payload[1])[1:] if word not in ("--", "$@")]
    said = dict(word.partition("=")[::2] for word in overrides)
    split, run_dir = said.get("split", Path(name).stem), ""
    try:
        config = load("finetune", [*overrides, *arguments], check_here=False)
        split, run_dir = config.split.name, config.run_dir
    except DAMAGED:  # it will be refused when it starts, or has spaces in its arguments, which squeue does not quote
        run_dir = f"runs/{split}"
    return Path(os.path.abspath(Path(work_dir, run_dir))), split


def _beginning_of(script: Path) -> str:
    try:
        if not script.is_file():
            return ""
        with script.open(encoding="utf-8", errors="replace") as file:
            return file.read(_SCRIPT_BYTES)
    except OSError:
        return ""

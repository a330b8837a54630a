"""A run's log as it grows, across requeues, until the run ends."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

from finetune.jobs.known_jobs import KnownJobs
from finetune.jobs.run_views import OVER, View, end_of, find, view, views_of
from finetune.slurm.cluster_queries import available, slurm
from gr00t.errors import ToolkitError

POLL_SECONDS = 0.5
ASK_SECONDS = 5.0  # between two questions to SLURM
GONE_ANSWERS = 3  # a job that is being requeued is unknown for a moment
SILENT_ANSWERS = 120  # a controller that is being restarted is away for a minute


def follow(runs_dir: Path, name: str, lines: int, write: Callable[[str], object]) -> View:
    """Write the last `lines` of the run's log, then what is added to it; returns when the run has ended.

    Of a stage that was dropped it is the log of the stage that failed.
    """
    known = KnownJobs.read(runs_dir)
    found = find(views_of(known), name, runs_dir)
    run_dir = Path(found.run_dir)
    log, position, answers_gone = "", 0, 0
    if found.state == "pending":
        write(f"{found.name} waits in the queue ({found.reason or 'no reason given'})\n")
    while True:
        path = found.log or _log_of_job(found)
        if path and path != log and Path(path).is_file():
            log = path
            write(f"==> {log}\n")
            tail, position = end_of(Path(log), 1 << 20)
            position -= sum(len(line) for line in tail[-lines:]) if lines else 0
        position = _pass_on(log, position, write) if log else 0
        answers_gone = 0 if found.alive else answers_gone + 1
        patience = SILENT_ANSWERS if found.state == "unknown" else GONE_ANSWERS
        if answers_gone and (found.state in OVER or answers_gone > patience):
            if not log and not found.reason:
                raise ToolkitError(f"{found.name} has no log here. Its folder is {found.run_dir}.")
            return found
        for _ in range(round(ASK_SECONDS / POLL_SECONDS) if found.alive else 1):
            time.sleep(POLL_SECONDS)
            position = _pass_on(log, position, write) if log else 0
        known = known.again(run_dir)
        named = [entry for entry in known.entries if entry.run_dir == run_dir and entry.noted["name"] == found.name]
        if not named:
            raise ToolkitError(f"{run_dir} is gone.")
        found = view(next((entry for entry in named if entry.noted.get("job_id") == found.job), named[-1]), known)


def _pass_on(log: str, position: int, write: Callable[[str], object]) -> int:
    """Write what the file holds beyond `position`; the position after it."""
    with Path(log).open("rb") as file:
        file.seek(position)
        while data := file.read(1 << 20):
            write(data.decode(errors="replace"))
        return file.tell()


def _log_of_job(found: View) -> str | None:
    """Where the output of a plain job goes that has not begun an attempt, and may have been refused before."""
    if found.job is None or found.state == "pending" or not available():
        return None
    done = slurm("scontrol", "show", "job", "--oneliner", found.job, check=False)
    said = re.search(r"\bStdOut=(/.*?)(?: \w+=|$)", done.stdout)
    return said[1] if said else None

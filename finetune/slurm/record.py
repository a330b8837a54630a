"""The run folder's record of its SLURM attempts: the token of the one that may write, and what became of each."""

from __future__ import annotations

import re
import secrets
import socket
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from finetune.slurm import commands
from gr00t.errors import ToolkitError
from gr00t.files import file_lock, read_json, write_json

ALIVE = ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "REQUEUED", "STOPPED", "SIGNALING")


@dataclass(frozen=True)
class Attempt:
    """One attempt of a run: how it began, how training ended (outcome), and what was decided then (ended)."""

    number: int
    folder: Path

    @property
    def begun(self) -> dict[str, Any]:
        return read_json(self.folder / "attempt.json")

    @property
    def outcome(self) -> dict[str, Any] | None:
        """What training wrote at its end; None after a crash, and while it runs."""
        return self._optional("outcome.json")

    @property
    def ended(self) -> dict[str, Any] | None:
        """What was decided after it; None when its node was lost before, and while it runs."""
        return self._optional("ended.json")

    def _optional(self, name: str) -> dict[str, Any] | None:
        return read_json(self.folder / name) if (self.folder / name).is_file() else None


def attempts(run_dir: Path) -> list[Attempt]:
    """The attempts of a run, first to last."""
    folders = [path for path in (run_dir / "attempts").glob("*") if (path / "attempt.json").is_file()]
    return sorted((Attempt(int(f.name), f) for f in folders if f.name.isdecimal()), key=lambda a: a.number)


def newest_step(run_dir: Path) -> int:
    """Step of the newest checkpoint, 0 without one. Not verified: a measure of progress."""
    steps = [re.fullmatch(r"checkpoint-(\d+)", path.name) for path in run_dir.glob("checkpoint-*")]
    return max((int(match[1]) for match in steps if match), default=0)


def token(run_dir: Path) -> dict[str, Any] | None:
    """attempt.json: whose turn it is to write into this folder; None before the first SLURM attempt."""
    path = run_dir / "attempt.json"
    return read_json(path) if path.is_file() else None


def refuse_foreign_job(run_dir: Path, job_id: str) -> None:
    """Refuse a folder whose last attempt belongs to another job that SLURM still runs or has queued."""
    held = token(run_dir)
    if held is None or held["job_id"] == job_id:
        return
    state = job_state(held["job_id"])
    if state in ALIVE:
        raise ToolkitError(
            f"{run_dir} belongs to job {held['job_id']}, which is {state.lower()}. Wait for it, end it with "
            f"scancel {held['job_id']}, or give this run a folder of its own: run_dir=... output_dir=...."
        )


def close_lost(attempt: Attempt) -> None:
    """Say of an attempt that ended without a word, with its node or by KILL, that it did."""
    if attempt.ended is None:
        lost = {"what": "lost", "reason": "no end was recorded: the node was lost, or the job was killed"}
        write_json(attempt.folder / "ended.json", {**lost, "on": attempt.begun["nodes"]})


def job_state(job_id: str) -> str | None:
    """SLURM's state of a job; None when it does not know it, or its commands are not here (inside a container)."""
    if not commands.available():
        return None
    done = commands.slurm("squeue", "--noheader", "--format=%T", f"--jobs={job_id}", check=False)
    return done.stdout.split()[0] if done.returncode == 0 and done.stdout.split() else None


def begin(run_dir: Path, job_id: str, more: dict[str, Any]) -> Attempt:
    """A new attempt, which takes the token over from any before it."""
    (run_dir / "attempts").mkdir(parents=True, exist_ok=True)
    with file_lock(run_dir / "attempt.json", required=False):
        refuse_foreign_job(run_dir, job_id)
        number = max((int(p.name) for p in (run_dir / "attempts").iterdir() if p.name.isdecimal()), default=-1) + 1
        attempt = Attempt(number, run_dir / "attempts" / str(number))
        attempt.folder.mkdir()
        begun = {
            "attempt": number,
            "id": secrets.token_hex(16),
            "job_id": job_id,
            **more,
            "host": socket.gethostname(),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        write_json(attempt.folder / "attempt.json", {**begun, "from_step": newest_step(run_dir)})
        write_json(run_dir / "attempt.json", begun)
    return attempt

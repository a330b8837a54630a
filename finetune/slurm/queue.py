"""What SLURM knows of jobs: squeue for those alive and just ended, sacct for older ones where accounts are kept."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from finetune.slurm.commands import available, slurm
from gr00t.errors import ToolkitError

ALIVE = ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "REQUEUED", "STOPPED", "SIGNALING")


@dataclass(frozen=True)
class Job:
    """A job or an element of an array: SLURM's state, why it waits, what is left of its limit (as SLURM writes it)."""

    job_id: str
    name: str
    state: str
    reason: str = ""
    time_left: str = ""
    nodes: str = ""

    @property
    def alive(self) -> bool:
        return self.state in ALIVE


@dataclass(frozen=True)
class Queue:
    """SLURM's answer at one moment about this user's jobs, by id; `silence` says why there is none."""

    jobs: dict[str, Job]
    silence: str = ""

    @classmethod
    def read(cls, ask_accounts_for: Collection[str] = ()) -> Queue:
        """squeue's jobs; those of `ask_accounts_for` that it has forgotten as sacct remembers them."""
        if not available():
            return cls({}, "SLURM is not on this machine")
        try:
            jobs = _squeue()
        except ToolkitError as error:
            return cls({}, str(error))
        forgotten = sorted(set(ask_accounts_for) - set(jobs))
        return cls({**_sacct(forgotten), **jobs} if forgotten else jobs)

    @classmethod
    def answered(cls) -> Queue:
        """As `read`, for what must not go on without an answer."""
        queue = cls.read()
        if queue.silence:
            raise ToolkitError(f"{queue.silence}. Do it on a login node of the cluster, once its controller answers.")
        return queue

    def find(self, noted: dict[str, Any]) -> Job | None:
        """The job of a record; None when SLURM does not know it, or has given its number to another one."""
        job = self.jobs.get(str(noted["job_id"]))
        return job if job and noted.get("job_name") in (None, job.name) else None


def _squeue() -> dict[str, Job]:
    done = slurm(
        "squeue", "--me", "--noheader", "--states=all", "--array", "--format=%i|%A|%T|%L|%N|%r|%j", check=False
    )
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no answer"])[-1]
        raise ToolkitError(f"SLURM does not answer (squeue: {reason.removeprefix('squeue: ')})")
    jobs: dict[str, Job] = {}
    for line in done.stdout.splitlines():
        shown, number, state, left, nodes, reason, name = (word.strip() for word in line.split("|", 6))
        job = Job(shown, name, state, "" if reason == "None" else reason, left, nodes)
        jobs[shown] = job
        if "_" in shown and state != "PENDING":  # elements that wait have the array's number in common
            jobs.setdefault(number, job)
    return jobs


def _sacct(job_ids: Collection[str]) -> dict[str, Job]:
    """Nothing where no accounts are kept: sacct fails there."""
    columns = "--format=JobID,State,NodeList,JobName"
    done = slurm("sacct", "-X", "--noheader", "--parsable2", columns, f"--jobs={','.join(job_ids)}", check=False)
    jobs = {}
    for line in done.stdout.splitlines() if done.returncode == 0 else []:
        job_id, state, nodes, name = (line.split("|", 3) + [""] * 3)[:4]
        words = state.split()  # "CANCELLED by 1000"
        jobs[job_id] = Job(job_id, name, words[0] if words else "UNKNOWN", nodes=nodes)
    return jobs

"""The jobs of a project's runs (those that run folders record, and those of plain sbatch, of which only SLURM knows
until they start), and how each stands: its state and why, its progress, what it has used, and where its log is."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from finetune.slurm import attempt_record
from finetune.slurm.attempt_record import Attempt
from finetune.slurm.cluster_queries import Job, Queue, user_name
from finetune.training import METRICS, STATUS, measurement, read_optional
from gr00t.errors import ToolkitError, did_you_mean
from gr00t.file_reading import read_json
from toolkit.composition import read_yaml
from toolkit.configuration import load

DROPPED = "dropped"
OVER = ("finished", "stopped", "cancelled", "failed", "superseded", "local", DROPPED)
GOOD = ("finished", "completed")

_WORDS = {"done": "finished", "stop": "stopped", "cancelled": "cancelled"}
_WAITING = ("PENDING", "CONFIGURING", "REQUEUED")
_NEVER = "DependencyNeverSatisfied"
_DAMAGED = (ToolkitError, OSError, KeyError, TypeError, ValueError, AttributeError, yaml.YAMLError)
_SCRIPT_BYTES = 1 << 16
_PAYLOAD = re.compile(r'^exec "\$(?:run|SLURM_SUBMIT_DIR/finetune_jobs/run\.sh)" (finetune .*)$', re.MULTILINE)


class Entry(NamedTuple):
    """A job of a run: its run folder, which a job that waits may not have yet, and what is noted of it."""

    run_dir: Path
    noted: dict[str, Any]

    @property
    def number(self) -> int:
        """Of the job, as `job_number` has it."""
        return job_number(self.noted.get("job_id"))


def job_number(job_id: str | None) -> int:
    """The number of a job, or of its array: a later one has a higher one; -1 without a job."""
    number = str(job_id or "").partition("_")[0]
    return int(number) if number.isdecimal() else -1


@dataclass(frozen=True)
class KnownJobs:
    """Every job by its entry, and SLURM's answer of the same moment."""

    runs_dir: Path
    entries: list[Entry]
    queue: Queue

    @classmethod
    def read(cls, runs_dir: Path, *, usage: bool = False) -> KnownJobs:
        """Those of every run below `runs_dir` or submitted from there; with `usage` also what they used."""
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
        return _find(job_id, self.entries)


def recorded_in(run_dir: Path) -> list[Entry]:
    """The jobs that a run folder records, or one entry that says what is damaged."""
    try:
        return [Entry(run_dir, noted) for noted in attempt_record.jobs_of(run_dir)]
    except _DAMAGED as error:
        unknown = {"name": attempt_record.run_name(run_dir), "stage": "finetune", "split": None}
        return [Entry(run_dir, {**unknown, "damage": _in_words(error)})]


def _in_words(error: Exception) -> str:
    """What is wrong with the records of a run."""
    return str(error) if isinstance(error, ToolkitError) else f"its records are damaged ({str(error).splitlines()[0]})"


def _with_plain(recorded: Sequence[Entry], queue: Queue, runs_dir: Path) -> list[Entry]:
    """With this user's plain jobs that no run folder records; of several of a run those still queued, or the newest."""
    entries, me = [*recorded], user_name(os.getuid())
    for job in {job.job_id: job for job in queue.jobs.values() if job.user == me and job.command}.values():
        entry = None if _find(job.job_id, entries) else _of_plain_job(job, runs_dir)
        if entry is None:
            continue
        if entry.run_dir.is_dir() and all(other.run_dir != entry.run_dir for other in entries):
            entries += recorded_in(entry.run_dir)
        if not _find(job.job_id, entries):
            rivals = [e for e in entries if e.run_dir == entry.run_dir and e.noted["stage"] == "finetune"]
            entries, rivals = [e for e in entries if e not in rivals], [*rivals, entry]
            alive = [rival for rival in rivals if (its := queue.find(rival.noted)) and its.alive]
            entries += alive or [max(rivals, key=lambda rival: rival.number)]
    return sorted(entries, key=lambda e: (e.run_dir, e.noted["stage"] != "finetune", e.noted["name"], e.number))


def _find(job_id: str, entries: Sequence[Entry]) -> Entry | None:
    return next((entry for entry in entries if entry.noted.get("job_id") == job_id), None)


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
    except _DAMAGED:  # it will be refused when it starts, or has spaces in its arguments, which squeue does not quote
        run_dir = f"runs/{split}"
    return Path(os.path.abspath(Path(work_dir, run_dir))), split


def _beginning_of(script: Path) -> str:
    with suppress(OSError):
        if script.is_file():
            with script.open(encoding="utf-8", errors="replace") as file:
                return file.read(_SCRIPT_BYTES)
    return ""


# -- how each stands ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class View:
    """One line of the list: a run's fine-tune, or another stage of it that was submitted.

    state: in words; alive: whether SLURM still has its job; training_left: seconds at the present speed; job_left: of
    the job's limit, as SLURM writes it; gpu_hours: allocated GPUs times hours, of a fine-tune over all attempts;
    cpu_share and peak_memory (bytes of the largest task): as accounts have them; waits_for: the jobs that had to
    succeed first; dropped_by: the one that did not; by_hand: typed inside an allocation, which is the job; log: what
    follow shows.
    """

    name: str
    split: str | None
    stage: str
    run_dir: str
    job: str | None
    user: str | None
    state: str
    reason: str
    alive: bool
    nodes: str
    attempt: int | None = None
    step: int | None = None
    steps: int | None = None
    samples_per_second: float | None = None
    training_left: float | None = None
    job_left: str = ""
    loss: float | None = None
    gpu_hours: float | None = None
    cpu_share: float | None = None
    peak_memory: int | None = None
    waits_for: list[str] = field(default_factory=list)
    dropped_by: str | None = None
    by_hand: bool = False
    log: str | None = None

    @property
    def is_foreign(self) -> bool:
        return self.user not in (None, user_name(os.getuid()))


def views(runs_dir: Path, *, usage: bool = False) -> list[View]:
    """Every run below `runs_dir` or submitted from there, by name; one's damaged records do not hide the others.

    `usage` also asks accounts for CPU and memory, which takes longer.
    """
    return views_of(KnownJobs.read(runs_dir, usage=usage))


def views_of(known: KnownJobs) -> list[View]:
    return [view(entry, known) for entry in known.entries]


def view(entry: Entry, known: KnownJobs) -> View:
    """One line, from a job's record, SLURM's answer and the run folder, or from the first two where that is damaged."""
    noted, job = entry.noted, known.queue.find(entry.noted) or Job("", "", "")
    shown = View(
        **{name: noted[name] for name in ("name", "split", "stage")},
        run_dir=str(entry.run_dir),
        job=noted.get("job_id"),
        user=noted.get("user"),
        state=job.state.lower() if job.alive else "damaged",
        reason=noted.get("damage", ""),
        alive=job.alive,
        nodes=job.nodes,
        job_left=job.time_left if job.alive else "",
        gpu_hours=job.gpus * job.seconds / 3600 if job.gpus and job.seconds else None,
        cpu_share=job.cpu_share,
        peak_memory=job.peak_memory,
        waits_for=list(noted.get("after", [])),
        log=noted.get("log"),
    )
    try:
        return shown if "damage" in noted else _with_records(shown, job, known)
    except _DAMAGED as error:
        return replace(shown, reason=_in_words(error))


def _with_records(shown: View, job: Job, known: KnownJobs) -> View:
    """What the run folder adds."""
    run_dir = Path(shown.run_dir)
    attempts = attempt_record.attempts(run_dir) if shown.stage == "finetune" else []
    begun = attempts[-1].begun if attempts else {}
    own = attempts[-1] if attempts and str(begun["job_id"]) == shown.job else None
    if shown.stage == "finetune":
        shown = _with_progress(shown, job, attempts)
    shown = replace(_with_state(shown, job, own, known), by_hand=bool(own and begun.get("by_hand")))
    if shown.state == "local" and (read_optional(run_dir / STATUS) or {}).get("status") == "finished":
        shown = replace(shown, state="finished")
    # the job's own output continues across attempts; rank 0's of the newest attempt where that is not known
    logs = [log for log in (shown.log, own and str(own.folder / "rank-0.log")) if log]
    return replace(shown, log=next((log for log in logs if Path(log).is_file()), logs[0] if logs else None))


def _with_progress(shown: View, job: Job, attempts: Sequence[Attempt]) -> View:
    """How far a fine-tune is, and what its attempts cost."""
    run_dir = Path(shown.run_dir)
    settings, metrics = attempt_record.resolved_section(run_dir, "train"), last_metrics(run_dir)
    speed, left = metrics.get("samples_per_second"), None
    if shown.alive and speed and settings:
        left = float((settings["max_steps"] - metrics["step"]) * settings["global_batch_size"] / speed)
    running = job.alive and job.state not in _WAITING
    hours = [attempt.gpu_hours(running and attempt is attempts[-1]) for attempt in attempts]
    recorded = [spent for spent in hours if spent is not None]
    return replace(
        shown,
        attempt=attempts[-1].number if attempts else None,
        step=metrics.get("step"),
        steps=settings.get("max_steps"),
        samples_per_second=speed,
        training_left=left,
        loss=metrics.get("loss"),
        gpu_hours=sum(recorded) if recorded else shown.gpu_hours,
    )


def last_metrics(run_dir: Path) -> dict[str, Any]:
    """The last whole line of metrics.jsonl that training measured; {} before the first."""
    path = run_dir / METRICS
    for line in reversed(end_of(path, 1 << 16)[0] if path.is_file() else []):
        found = measurement(line)
        if found and "loss" in found[1]:
            return {"step": found[0], **found[1]}
    return {}


def end_of(path: Path, size: int) -> tuple[list[bytes], int]:
    """The lines in the last `size` bytes of a file, and where it ends."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - size))
        return file.read().splitlines(keepends=True), file.tell()


def _with_state(shown: View, job: Job, last: Attempt | None, known: KnownJobs) -> View:
    """With the job's state in a word, and the reason; `last` is the newest attempt, where that is this job's."""
    started = last is not None or job.seconds > 0 or shown.log is None or Path(shown.log).exists()
    gone = not job.alive and not job.reason and job.state in ("", "CANCELLED") and not known.queue.silence
    if job.reason == _NEVER or (gone and not started and shown.waits_for):
        culprit = _culprit(shown, job, known)
        why = f"it waited for {culprit.name}, job {culprit.job}: {culprit.state}" if culprit else job.dependency
        if culprit or job.reason == _NEVER:
            state = job.state.lower() if job.alive else DROPPED
            log, cause = (culprit.log, culprit.job) if culprit else (shown.log, None)
            return replace(shown, state=state, reason=why, dropped_by=cause, log=log)
    state, reason = _recorded_state(last) if last is not None and not job.alive else ("", "")
    if not state:
        state, reason = _state_of_job(shown, job, last, started, known.queue.silence)
    return replace(shown, state=state, reason=reason)


def _recorded_state(last: Attempt) -> tuple[str, str]:
    """What the last attempt recorded of its end; nothing where it did not, or was to be followed by another."""
    ended, outcome = last.ended, last.outcome
    if ended is not None and ended["what"] in _WORDS:
        return _WORDS[ended["what"]], str(ended["reason"]).splitlines()[0]
    if outcome is not None and (ended is None or ended["what"] != "requeue"):
        return str(outcome["status"]), str(outcome.get("reason") or "")
    return "", ""


def _state_of_job(shown: View, job: Job, last: Attempt | None, started: bool, silence: str) -> tuple[str, str]:
    """As SLURM says, or as follows from its knowing the job no more."""
    if job.state:
        return job.state.lower(), "" if job.state == "CANCELLED" else job.reason
    if shown.job is None:
        return "local", ""
    if silence:
        return "unknown", silence
    if shown.is_foreign:
        return "unknown", f"SLURM does not show {shown.user}'s job, or knows it no more"
    if last is not None and (last.ended or {}).get("what") == "requeue":
        return "cancelled", "it was requeued, and left the queue before it started again"
    if not started:
        return "cancelled", "it left the queue before it started"
    if shown.stage != "finetune" and _has_result(shown):
        return "completed", ""
    return "lost", "its job is gone without recording an outcome"


def _culprit(shown: View, job: Job, known: KnownJobs) -> View | None:
    """The first of the jobs before this one that did not succeed; None where no run folder here tells of one."""
    others = replace(known, entries=[e for e in known.entries if e.noted.get("job_id") != shown.job])
    said = re.findall(r"(\d+(?:_\d+)?)\(failed\)", job.dependency)
    for entry in filter(None, map(others.find, [*said, *shown.waits_for])):
        earlier = view(entry, others)
        if earlier.state == DROPPED:
            cause = others.find(earlier.dropped_by or "")
            return view(cause, others) if cause else earlier
        if not earlier.alive and earlier.state not in GOOD:
            return earlier
    return None


def _has_result(shown: View) -> bool:
    """Whether a stage that SLURM has forgotten has left what it was to make, since it was submitted."""
    folder = attempt_record.folder_of_job(Path(shown.run_dir), shown.name)
    noted, said = read_json(folder / attempt_record.RECORD), attempt_record.arguments_of_job(folder)
    if shown.stage == "record":
        out = said.get("out") or read_yaml(folder / "config.yaml")["out"]  # of a default it is what that came to
        results = [Path(out, str(shown.split), said["part"], "trajectory.json")]
    elif shown.stage == "prepare":
        results = [Path(said["data_dir"], str(shown.split), "train", "meta", "info.json")]
    else:
        results = [Path(said["report_dir"], name) for name in ("open_loop.json", "closed_loop.json")]
    if "share" in said and shown.log and Path(shown.log).is_file():  # what it made is only a part of the result
        said_last = b"".join(end_of(Path(shown.log), 1 << 14)[0]).decode(errors="replace")
        if f"share {said['share']} is there" in said_last:
            return True
    since = datetime.fromisoformat(noted["submitted"]).timestamp()
    found = [path for path in (Path(noted["folder"], result) for result in results) if path.is_file()]
    return any(path.stat().st_mtime >= since for path in found)


def find(known: Sequence[View], name: str, runs_dir: Path) -> View:
    """The run that a user means: by its name in the list, its run folder's path, or its split when only one has it."""
    path = str(Path(name).absolute())
    for matches in (
        [v for v in known if v.name == name],
        [v for v in known if path == v.run_dir or name == Path(v.run_dir).name],
        [v for v in known if v.split == name and v.stage == "finetune"],
        [v for v in known if v.split == name],
    ):
        if len({v.run_dir for v in matches}) > 1:
            listed = ", ".join(sorted({v.name if v.name != name else v.run_dir for v in matches}))
            raise ToolkitError(f'"{name}" may be any of these runs: {listed}. Name one of them.')
        if matches:
            return next((v for v in matches if v.stage == "finetune"), matches[0])
    hint = did_you_mean(name, [v.name for v in known])
    raise ToolkitError(f'There is no run "{name}" in {runs_dir}.{hint} (python -m finetune.jobs lists them)')

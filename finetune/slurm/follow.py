"""A run's log as it grows, until the run has ended; and the other things done to its jobs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from finetune.checkout import CHECKOUT
from finetune.config.schema import ClusterConfig
from finetune.slurm import runs
from finetune.slurm.batch import job_name_of, output_in
from finetune.slurm.commands import slurm
from finetune.slurm.queue import Queue
from finetune.slurm.submit import one_at_a_time, sbatch
from finetune.slurm.template import render
from finetune.slurm.watch import View, view, views
from gr00t.errors import ToolkitError, did_you_mean
from gr00t.files import read_json, write_json

POLL_SECONDS = 0.5
ASK_SECONDS = 5.0  # between two questions to SLURM
GONE_ANSWERS = 3  # a job that is being requeued is unknown for a moment
SILENT_ANSWERS = 120  # a controller that is started anew is away for a minute
OVER = ("finished", "stopped", "failed", "superseded", "local")
_TAIL_BYTES = 1 << 20


def find(runs_dir: Path, name: str) -> View:
    """The run that a user means: by its name in the list, its run folder's path, or its split when only one has it."""
    known = views(runs_dir)
    path = str(Path(name).absolute())
    for matches in (
        [v for v in known if v.name == name],
        [v for v in known if v.run_dir == path],
        [v for v in known if Path(v.run_dir).name == name],
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


def follow(runs_dir: Path, name: str, lines: int, write: Callable[[str], object]) -> View:
    """Write the last `lines` of the run's log, then what is added to it; returns when the run has ended."""
    found = find(runs_dir, name)
    log, position, answers_gone = "", 0, 0
    while True:
        if found.log and found.log != log and Path(found.log).is_file():
            log, position = found.log, _start(Path(found.log), lines)
            write(f"==> {log}\n")
        position = _pass_on(log, position, write) if log else 0
        answers_gone = 0 if found.alive else answers_gone + 1
        patience = SILENT_ANSWERS if found.state == "unknown" else GONE_ANSWERS
        if answers_gone and (found.state in OVER or answers_gone > patience):
            if not log:
                raise ToolkitError(f"{found.name} has no log here. Its folder is {found.run_dir}.")
            return found
        for _ in range(round(ASK_SECONDS / POLL_SECONDS) if found.alive else 1):
            time.sleep(POLL_SECONDS)
            position = _pass_on(log, position, write) if log else 0
        found = _again(found)


def cancel(runs_dir: Path, name: str) -> list[View]:
    """End the jobs of a run, or of all; only those that its own records name and SLURM still has. Returns them.

    A conversion that other runs wait for goes on, unless all are cancelled.
    """
    Queue.answered()
    known = views(runs_dir)
    wanted = known if name == "all" else _jobs_of(known, find(runs_dir, name), name)
    kept = {job for v in known if v not in wanted and v.alive for job in _waited_for(v)}
    ended = [v for v in wanted if v.alive and v.job is not None and v.job.partition("_")[0] not in kept]
    if ended:
        slurm("scancel", *(str(v.job) for v in ended))
    return ended


def resubmit(runs_dir: Path, name: str) -> str:
    """Submit a run's saved job script again, with the code and overrides of then; returns the new job's id."""
    with one_at_a_time(runs_dir.absolute()):
        return _resubmit(runs_dir, name)


def _resubmit(runs_dir: Path, name: str) -> str:
    Queue.answered()
    found = find(runs_dir, name)
    if found.alive:
        if found.state == "completing":
            raise ToolkitError(f"{found.name} is ending as job {found.job}. Try again in some seconds.")
        raise ToolkitError(
            f"{found.name} is {found.state} as job {found.job}. Cancel it first: python -m finetune.jobs cancel {name}"
        )
    folder = runs_dir.absolute() / runs.OWN_FOLDER / f"again-{time.strftime('%Y%m%d-%H%M%S')}"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    noted_in = _noted_in(found)
    if noted_in is None:
        return sbatch(_script_of_a_plain_job(found), [], folder)
    noted = read_json(noted_in)
    script = (noted_in.parent / "script.sbatch").read_text(encoding="utf-8")
    index = noted["job_id"].partition("_")[2]
    job = sbatch(script, [f"--array={index}"] if index else [], folder)
    job_id = f"{job}_{index}" if index else job
    log = noted["log"].replace(noted["job_id"].partition("_")[0], job)
    write_json(noted_in, {**noted, "job_id": job_id, "log": log, "submitted": runs.now(), "after": []})
    return job_id


def _script_of_a_plain_job(found: View) -> str:
    """For a run that was started by hand with sbatch: the same payload, code and overrides, at what they ask for."""
    run_dir = Path(found.run_dir)
    job = run_dir / "job"
    if not (job / "overrides.json").is_file() or not (run_dir / "code").is_dir():
        raise ToolkitError(f"{run_dir} holds no job that could be submitted again. Start it with the launcher.")
    cluster = ClusterConfig(**dict(OmegaConf.load(job / "config.yaml").cluster))
    return render(
        cluster,
        job_name=job_name_of(found.name),
        stage="finetune",
        overrides=read_json(job / "overrides.json")["overrides"],
        output=output_in(run_dir, "slurm-finetune-%j.out"),
        checkout=CHECKOUT,
        code=run_dir / "code",
    )


def _noted_in(found: View) -> Path | None:
    """The record of this job; None where it was not submitted by the launcher."""
    for path in Path(found.run_dir).glob(f"job*/{runs.RECORD}"):
        noted: dict[str, Any] = read_json(path)
        if noted["name"] == found.name and noted["job_id"] == found.job:
            return path
    return None


def _jobs_of(known: Sequence[View], found: View, name: str) -> list[View]:
    """All stages of the run, or the one whose own name was given."""
    if found.stage != "finetune" and found.name == name:
        return [found]
    return [v for v in known if v.run_dir == found.run_dir]


def _waited_for(found: View) -> list[str]:
    path = _noted_in(found)
    return list(read_json(path)["after"]) if path else []


def _again(found: View) -> View:
    run_dir = Path(found.run_dir)
    noted = next((n for n in runs.jobs_of(run_dir) if n["name"] == found.name), None)
    if noted is None:
        raise ToolkitError(f"{run_dir} is gone.")
    return view(run_dir, noted, Queue.read())


def _start(log: Path, lines: int) -> int:
    """Where the last `lines` begin."""
    size = log.stat().st_size
    with log.open("rb") as file:
        file.seek(max(0, size - _TAIL_BYTES))
        tail = file.read()
    return size - sum(len(line) for line in tail.splitlines(keepends=True)[-lines:]) if lines else size


def _pass_on(log: str, position: int, write: Callable[[str], object]) -> int:
    """Write what the file holds beyond `position`; the position after it."""
    with Path(log).open("rb") as file:
        file.seek(position)
        while data := file.read(_TAIL_BYTES):
            write(data.decode(errors="replace"))
            position += len(data)
    return position

"""Jobs of runs ended, and submitted again together with the stages that were dropped with them."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from finetune.jobs.run_views import DROPPED, GOOD, KnownJobs, View, find, job_number, views_of
from finetune.recipe import ClusterConfig
from finetune.slurm.attempt_record import OWN_FOLDER, RECORD, REPEATS, must_resume, now, resolved
from finetune.slurm.batches import job_name_of, output_in
from finetune.slurm.cluster_queries import slurm
from finetune.slurm.render import render, with_code
from finetune.slurm.submit import one_at_a_time, sbatch
from finetune.training import read_optional
from gr00t.errors import ToolkitError
from gr00t.file_reading import read_json, read_text
from gr00t.file_replacement import write_json


def cancel(runs_dir: Path, name: str) -> list[str]:
    """End the jobs of a run, or of all: those that the list shows and SLURM still has. Returns a line on each.

    A run's name means all of its stages, a stage's name that one. A recording or conversion that other runs wait for
    continues, unless all are cancelled. Another user's job is left alone, and so is an allocation in which a run was
    started by hand: these are refused where they were meant.
    """
    wanted = known = _answered(runs_dir)
    if name != "all":
        found = find(known, name, runs_dir)
        alone = found.stage != "finetune" and found.name == name
        wanted = [v for v in known if v.run_dir == found.run_dir]
        if alone:  # with the shares that it joins
            wanted = [v for v in wanted if v is found or (v.stage == found.stage and v.job in found.waits_for)]
    kept = _waited_for([v for v in known if v not in wanted and v.alive], known)
    ended = [v for v in wanted if v.alive and v.job is not None and v.job not in kept]
    left = [(v, reason) for v in ended if (reason := _not_ours(v))]
    if left and name != "all":
        listed = " ".join(f"job {v.job} of {v.name} {reason}." for v, reason in left)
        raise ToolkitError(f"{listed} Nothing was cancelled.")
    ours = [v for v in ended if not _not_ours(v)]
    if ours:
        slurm("scancel", *(str(v.job) for v in ours))
    lines = [f"cancelled job {v.job} ({v.name})" for v in ours]
    lines += [f"left job {v.job} ({v.name}), which {reason}" for v, reason in left]
    return lines or ["no job of it is queued or running"]


def _waited_for(waiting: Sequence[View], known: Sequence[View]) -> set[str]:
    """The jobs that these wait for, directly or behind others."""
    jobs = {job for v in waiting for job in v.waits_for}
    before = [v for v in known if v.job in jobs]
    return jobs | _waited_for(before, known) if before else jobs


def _not_ours(found: View) -> str:
    """Why a job is not to be ended from here, "" for one that may be."""
    if found.is_foreign:
        return f"is {found.user}'s: only its owner or an operator can end it (scancel)"
    if found.by_hand:
        return "is the allocation in which it was started by hand: end the run there, with Ctrl-C"
    return ""


def _answered(runs_dir: Path) -> list[View]:
    """The jobs as SLURM has them; ToolkitError where it gives no answer."""
    known = KnownJobs.read(runs_dir)
    known.queue.require()
    return views_of(known)


def resubmit(runs_dir: Path, name: str) -> list[str]:
    """Submit a run's saved job script again, with the code and overrides of then, and after it the stages that waited
    for it and were dropped. A run that was itself dropped begins with the stage that failed; one that has started over
    resumes. Returns a line on each."""
    with one_at_a_time(runs_dir.absolute()):
        known = _answered(runs_dir)
        found = find(known, name, runs_dir)
        if found.alive:
            raise ToolkitError(
                f"{found.name} is {found.state} as job {found.job}. Wait for its end, or cancel it first: "
                f"python -m finetune.jobs cancel {name}"
            )
        first = next((v for v in known if v.job == found.dropped_by), found) if found.dropped_by else found
        folder = runs_dir.absolute() / OWN_FOLDER / f"again-{time.strftime('%Y%m%d-%H%M%S')}"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        chain = _chain(first, known)
        notes = [note for one in chain if (note := _not_kept(one))]  # before their records are renewed
        lines = [*_submit(chain, known, folder), *notes]
    here = "" if runs_dir == Path("runs") else f" runs_dir={runs_dir}"
    return [*lines, f"python -m finetune.jobs follow {first.name}{here}"]


def _chain(first: View, known: Sequence[View]) -> list[View]:
    """`first`, those that never started because they waited for it, or for one that did, and what else these need that
    failed too, such as another share; each after what it waits for."""
    broken = [v for v in sorted(known, key=lambda v: job_number(v.job)) if not v.alive and v.state not in GOOD]
    chain: list[View] = []
    more = [first]
    while more:
        chain += more
        jobs = {v.job for v in chain}
        never = [v for v in broken if v.state in (DROPPED, "cancelled") and v is not first]
        behind = [v for v in never if jobs & {*v.waits_for}]
        needed = {job for v in never if v in chain or v in behind for job in v.waits_for}
        more = [v for v in broken if (v in behind or v.job in needed) and v not in chain]
    return sorted(chain, key=lambda v: job_number(v.job))


def _submit(chain: Sequence[View], known: Sequence[View], folder: Path) -> list[str]:
    """Submit them in order, all or none, and note their new jobs; a line on each."""
    jobs = {str(v.job): str(v.job) for v in known if v.alive}  # what is still waited for, and by which id
    lines, submitted, records = [], [], []
    with ExitStack() as undo:
        for one in chain:
            waits = [jobs[job] for job in one.waits_for if job in jobs]
            after = [f"--dependency=afterok:{':'.join(waits)}", "--kill-on-invalid-dep=yes"] if waits else []
            script, index, record = _script_of(one)
            number = sbatch(script, [*after, "--hold", *([f"--array={index}"] if index else [])], folder)
            undo.callback(slurm, "scancel", number, check=False)
            submitted.append(number)
            jobs[str(one.job)] = job_id = f"{number}_{index}" if index else number
            records += [(record, _renewed(read_json(record), job_id, waits))] if record else []
            behind = f", after {' and '.join(waits)}" if waits else ""
            lines.append(f"submitted {one.name} again as job {job_id}{behind}")
        for path, noted in records:
            undo.callback(write_json, path, read_json(path))
            write_json(path, noted)
        slurm("scontrol", "release", ",".join(submitted))  # now that all are accepted, and noted as what they repeat
        undo.pop_all()  # all is submitted
    return lines


def _renewed(noted: Mapping[str, Any], job_id: str, after: Sequence[str]) -> dict[str, Any]:
    """The record of a job that has been submitted again."""
    log = Path(noted["log"])
    old, new = (text.partition("_")[0] for text in (noted["job_id"], job_id))
    name = re.sub(rf"{old}((_\d+)?\.\w+)$", rf"{new}\1", log.name)
    renewed = {"job_id": job_id, "log": str(log.with_name(name)), "after": [*after]}
    return {**noted, **renewed, REPEATS: [*noted.get(REPEATS, []), noted["job_id"]], "submitted": now()}


def _script_of(found: View) -> tuple[str, str, Path | None]:
    """The script of a job, its index in an array ("" without one), and the launcher's record, if there is one."""
    path = _record_of(found)
    if path is None:
        return _script_of_a_plain_job(found), "", None
    script = (path.parent / "script.sbatch").read_text(encoding="utf-8")
    return script, read_json(path)["job_id"].partition("_")[2], path


def _record_of(found: View) -> Path | None:
    """The launcher's record of a job; None of one that was submitted with plain sbatch."""
    for path in Path(found.run_dir).glob(f"job*/{RECORD}"):
        noted = read_json(path)
        if (noted["name"], noted["job_id"]) == (found.name, found.job):
            return path
    return None


def _not_kept(found: View) -> str:
    """What is to be said of a plain job that was submitted again, "" of one of the launcher's."""
    if _record_of(found) is not None:
        return ""
    lost = "options that sbatch was given on its command line (sbatch --nodes=2 ...) are"
    if _saved_script(found, ()) is None:
        lost = f"its script is not in {found.run_dir}/job, so that lines of your own in it, and {lost}"
    return (
        f"note: {found.name} was submitted with plain sbatch: {lost} not kept. If it needs them, cancel this job and "
        "submit the run with them and the same run_dir=... again: it continues."
    )


def _saved_script(found: View, overrides: Sequence[str]) -> str | None:
    """The script that a plain job was submitted with, made to run the code of then with these overrides."""
    run_dir = Path(found.run_dir)
    path = run_dir / "job" / "script.sbatch"
    if not path.is_file():
        return None
    return with_code(read_text(path), overrides, output_in(run_dir, "slurm-finetune-%j.out"), run_dir / "code")


def _script_of_a_plain_job(found: View) -> str:
    """For a run that was started by hand with sbatch: the same payload, code and overrides, in the script of then, or
    else, where that is not there, at what they ask for."""
    run_dir = Path(found.run_dir)
    noted = read_optional(run_dir / "job" / "overrides.json")
    if noted is None or not (run_dir / "code").is_dir():
        raise ToolkitError(f"{run_dir} holds no job that could be submitted again. Start it with the launcher.")
    overrides = noted["overrides"]
    if must_resume(run_dir, str(found.job)):
        overrides = [*(text for text in overrides if not text.startswith("train.resume=")), "train.resume=auto"]
    return _saved_script(found, overrides) or render(
        ClusterConfig(**resolved(run_dir)["cluster"]),
        job_name=job_name_of(found.name),
        stage="finetune",
        overrides=overrides,
        output=output_in(run_dir, "slurm-finetune-%j.out"),
        code=run_dir / "code",
    )

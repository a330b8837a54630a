"""From a request to jobs: one copy of the code, records beside the runs, then sbatch through submitit.

A request is checked first, then shown (dry_run=true) or submitted; a failure leaves neither jobs nor files."""

from __future__ import annotations

import os
import secrets
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from rich.table import Table

from finetune.slurm.attempt_record import OWN_FOLDER, RECORD, describe_job, job_folder, note_elsewhere, now
from finetune.slurm.batches import Batch, batches_of, cluster_of, code_folder
from finetune.slurm.cluster_queries import environment, max_array_size, reason_of, slurm
from finetune.slurm.launch_request import Request, Task
from finetune.slurm.refusals import check_accepted, check_request, explanation
from finetune.slurm.render import DIVIDED
from gr00t.data.schema import python_source
from gr00t.errors import ToolkitError, disk_errors, require_extra
from gr00t.file_replacement import lock_in_turn, write_json
from toolkit.code_files import copy_code, describe_code, describe_git
from toolkit.configuration import as_yaml
from toolkit.installation import CHECKOUT
from toolkit.shared_keys import modality_configs


def launch(request: Request) -> list[Batch]:
    """Submit what is asked for, or with dry_run=true print it; the jobs, with their ids once submitted."""
    if not request.launch.dry_run:
        _require_submitit()
    for note in request.notes:
        print(note)
    runs_dir = Path(request.launch.runs_dir).absolute()
    with nullcontext() if request.launch.dry_run else one_at_a_time(runs_dir):
        asked = check_request(request, print)
        if not request.tasks:
            print("nothing is left to do, nothing was submitted")
            return []
        folder = runs_dir / OWN_FOLDER / f"{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
        batches = batches_of(request, folder, max_array_size() if asked else None)
        for batch in batches if asked else []:
            _test(batch)
        if request.launch.dry_run:
            _show(batches)
            return batches
        submit(batches, folder)
        for task in request.tasks:
            note_elsewhere(runs_dir, task.run_dir)
        _report(batches, runs_dir)
        return batches


def _require_submitit() -> None:
    require_extra("slurm", "The launcher needs", submitit="submitit", otherwise=" (dry_run=true works without)")


@contextmanager
def one_at_a_time(runs_dir: Path) -> Iterator[None]:
    """Wait for other launchers with this runs_dir: between asking SLURM for a run's jobs and noting its new ones, two
    would both find it free."""
    with ExitStack() as held:
        with disk_errors(runs_dir, "Nothing was submitted."):
            held.enter_context(_new_folders(runs_dir))
            held.enter_context(lock_in_turn(runs_dir / "launcher", seconds=300.0))
        yield


def _test(batch: Batch) -> None:
    """Refuse a script that SLURM would not take, or that would wait for ever."""
    done = slurm("sbatch", "--test-only", check=False, text=batch.script)
    names, cluster = ", ".join(task.name for task in batch.tasks), cluster_of(batch.tasks[0])
    if done.returncode != 0:
        raise ToolkitError(
            f"SLURM would refuse the job of {names}: {reason_of(done)}. {explanation(cluster)} Nothing was submitted."
        )
    check_accepted(cluster, done.stderr)


def _show(batches: Sequence[Batch]) -> None:
    """Print the scripts and configurations of a dry run."""
    for batch in batches:
        print(f"# ===== job script of {', '.join(task.name for task in batch.tasks)}")
        for task in batch.tasks:
            for other in task.after:
                print(f"# {task.name} waits for {other.job_id or other.name} to succeed")
        if batch.lane:
            print(f"# waits for {', '.join(task.name for other in batch.lane for task in other.tasks)} to end")
        print(batch.script)
        for task in batch.tasks:
            if task.share is None:  # that of a share differs by the share only
                print(f"# ----- configuration of {task.name}: {' '.join(task.overrides)}\n{as_yaml(task.config)}")
    print("# dry_run=true: nothing was submitted or written")


def _report(batches: Sequence[Batch], runs_dir: Path) -> None:
    table = Table("job", "run", "stage", "waits for", "run folder", box=None, pad_edge=False)
    for task in (task for batch in batches for task in batch.tasks):
        waits = ", ".join(other.job_id for other in task.after)
        table.add_row(task.job_id, task.run_name, task.label, waits, str(task.run_dir))
    width = None if sys.stdout.isatty() else 400
    Console(highlight=False, soft_wrap=True, markup=False, width=width).print(table)
    here = "" if runs_dir == Path("runs").absolute() else f" runs_dir={runs_dir}"
    name = batches[-1].tasks[-1].run_name
    print(f"all runs:  python -m finetune.jobs{here}\none's log: python -m finetune.jobs follow {name}{here}")
    print(f"end it:    python -m finetune.jobs cancel {name}{here}")


def submit(batches: Sequence[Batch], folder: Path) -> None:
    """Copy the code, write the records of every run, submit the batches in order, and note each task's job id.

    `folder` receives this submission's own files (scripts as submitted, commands and output of an array's elements);
    only this user can read it. When anything fails, submitted jobs are cancelled and files are as before.
    """
    with ExitStack() as records, ExitStack() as undo:
        with disk_errors(folder, "Nothing was submitted."):
            records.enter_context(_new_folders(folder))
            undo.callback(shutil.rmtree, folder, ignore_errors=True)
            folder.chmod(0o700)
            for batch in batches:
                batch.write_elements()
            records.enter_context(_new_folders(code_folder(folder).parent))
            undo.callback(shutil.rmtree, code_folder(folder), ignore_errors=True)
            described = _copy_code(batches, folder)
            for run_dir in {task.run_dir: None for batch in batches for task in batch.tasks}:
                records.enter_context(_run_records(run_dir, batches, described))
        for batch in batches:
            waits, after = batch.waits, list[str]()
            if waits != "":  # a task whose predecessor has failed is dropped; where each has its own, they follow
                after = [*([f"--dependency={waits}"] if waits else []), "--kill-on-invalid-dep=yes"]
            batch.submitted(sbatch(batch.script, ["--hold", *after], folder))
            undo.callback(slurm, "scancel", batch.job_id, check=False)
            if waits is None:
                _wait_each(batch)
            _note(batch)
        slurm("scontrol", "release", ",".join(batch.job_id for batch in batches))  # now that all are accepted
        undo.pop_all()  # all is submitted


def _wait_each(batch: Batch) -> None:
    """Let each element of an array wait for tasks of its own."""
    alike: dict[str, list[str]] = {}
    for task in batch.tasks:
        alike.setdefault(batch.waits_of(task), []).append(task.job_id)
    for waits, jobs in alike.items():
        if waits:
            slurm("scontrol", "update", f"JobId={','.join(jobs)}", f"Dependency={waits}")


@contextmanager
def _new_folders(folder: Path) -> Iterator[None]:
    """Make `folder` and those above it that are missing; on failure remove again what of them is empty."""
    missing = [path for path in [folder, *folder.parents] if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for path in missing:
            with suppress(OSError):
                path.rmdir()
        raise


def _copy_code(batches: Sequence[Batch], folder: Path) -> Path:
    """Copy the checkout once for all runs of a launch; the folder with what git says of it."""
    code, described = code_folder(folder), folder / "described"
    named = sorted({name for batch in batches for task in batch.tasks for name in task.run.cluster.files})
    revision = describe_git(CHECKOUT)
    code.mkdir()
    copy_code(CHECKOUT, code, revision, named)
    describe_code(CHECKOUT, described, revision)
    return described


@contextmanager
def _run_records(run_dir: Path, batches: Sequence[Batch], described: Path) -> Iterator[None]:
    """A run folder's code/ and job/ for these batches in the place of older ones, which are back on failure.

    code/ is a link to the copy that all runs of the launch share; an evaluation alone leaves that of the fine-tune.
    """
    own = {task: batch for batch in batches for task in batch.tasks if task.run_dir == run_dir}
    with (
        _new_folders(run_dir),
        TemporaryDirectory(prefix=".submitting-", dir=run_dir, ignore_cleanup_errors=True) as temporary,
        ExitStack() as undo,
    ):
        aside, replacing = Path(temporary), dict[Path, Path | None]()
        for task, batch in own.items():
            job = aside / f"new-{task.label}"
            shutil.copytree(described, job)
            describe_job(job, batch.script, task.overrides, task.config)
            if task.robot is not None:
                source = python_source(modality_configs(task.robot))
                (job / task.robot_file.name).write_text(source, encoding="utf-8")
            replacing[job_folder(run_dir, task.label)] = job
            replacing |= dict.fromkeys(_former_shares(task))
            if task.stage == "finetune":
                (aside / "code").symlink_to(code_folder(batch.folder))
                replacing[run_dir / "code"] = aside / "code"
        for target, new in replacing.items():
            old = aside / f"old-{target.name}"
            if os.path.lexists(target):
                target.rename(old)
                undo.callback(old.rename, target)
            if new is not None:
                new.rename(target)
                undo.callback(target.rename, new)
        yield
        undo.pop_all()


def _former_shares(task: Task) -> list[Path]:
    """What a run folder has of jobs that did the same in other shares."""
    if task.stage not in DIVIDED or task.share is not None:
        return []
    found = task.run_dir.glob(f"{job_folder(task.run_dir, task.label).name}-*of*")
    return sorted({*found} - {job_folder(share.run_dir, share.label) for share in task.shares})


def _note(batch: Batch) -> None:
    """submitted.json: which job a task became, and how to find it again."""
    for task in batch.tasks:
        record: dict[str, Any] = {
            "job_id": task.job_id,
            "job_name": batch.job_name,
            "stage": task.stage,
            "name": task.name,
            "split": task.run.split.name,
            "parts": sorted(task.parts),
            "run_dir": str(task.run_dir),
            "folder": str(CHECKOUT),
            "log": batch.log_of(task),
            "after": [other.job_id for other in task.after],
            "submitted": now(),
        }
        write_json(job_folder(task.run_dir, task.label) / RECORD, record)


@contextmanager
def _environment_for_sbatch() -> Iterator[None]:
    """submitit passes this process's variables on: only those that a new job should see, for as long as that takes."""
    before, wanted = dict(os.environ), environment()
    for name in before.keys() - wanted.keys():
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(before)


def sbatch(script: str, options: Sequence[str], folder: Path) -> str:
    """Submit a script of ours through submitit and return the job's id.

    submitit keeps the script as submitted in `folder` and calls sbatch. It pickles no function and runs nothing inside
    the job, so its own signal handling and requeueing never come into play.
    """
    _require_submitit()
    from submitit.core.utils import FailedJobError, FailedSubmissionError
    from submitit.slurm.slurm import SlurmExecutor

    class OwnScript(SlurmExecutor):
        def _make_submission_file_text(self, command: str, uid: str) -> str:
            return script

        def _make_submission_command(self, submission_file_path: Path) -> list[str]:
            return ["sbatch", *options, str(submission_file_path)]

    try:
        with _environment_for_sbatch():
            return str(OwnScript(folder)._submit_command("").job_id)
    except (FailedJobError, FailedSubmissionError) as error:
        raise ToolkitError(f"sbatch refused the job, nothing is queued: {' '.join(str(error).split())}") from None

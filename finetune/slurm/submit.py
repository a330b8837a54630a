"""Submission: records beside the runs, then sbatch through submitit; a failure leaves neither jobs nor files."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from finetune.checkout import CHECKOUT
from finetune.config.load import as_yaml
from finetune.config.modality import modality_configs
from finetune.slurm.batch import Batch, code_folder, element_arguments
from finetune.slurm.commands import slurm
from finetune.slurm.environment import write_environment
from finetune.slurm.request import Task
from finetune.slurm.runs import RECORD, job_folder, now
from finetune.slurm.snapshot import snapshot_code
from gr00t.data.schema import python_source
from gr00t.errors import ToolkitError
from gr00t.files import disk_errors, lock_in_turn, write_json

WAIT_SECONDS = 300.0


def submit(batches: Sequence[Batch], folder: Path) -> None:
    """Write the records of every run, submit the batches in order, and note each one's job id in both.

    `folder` receives this submission's own files (scripts as submitted, arguments and output of an array's elements);
    only this user can read it. When anything fails, submitted jobs are cancelled and files are as before.
    """
    with ExitStack() as undo:
        with disk_errors(folder, "Nothing was submitted."):
            undo.enter_context(_new_private_folder(folder))
            _write_elements(batches, folder)
            for run_dir in {task.run_dir: None for batch in batches for task in batch.tasks}:
                undo.enter_context(_run_records(run_dir, batches))
        hold = ["--hold"] if len(batches) > 1 else []  # none starts before all are accepted
        for batch in batches:
            batch.job_id = sbatch(batch.script, [*batch.options, *hold], folder)
            undo.enter_context(_cancelled_on_failure(batch.job_id))
            _note(batch, folder)
        if hold:
            slurm("scontrol", "release", ",".join(batch.job_id for batch in batches))


@contextmanager
def one_at_a_time(runs_dir: Path) -> Iterator[None]:
    """Wait for other launchers with this runs_dir: between asking SLURM for a run's jobs and noting its new ones, two
    would both find it free."""
    with ExitStack() as held:
        with disk_errors(runs_dir, "Nothing was submitted."):
            held.enter_context(_new_folders(runs_dir))
            held.enter_context(lock_in_turn(runs_dir / "launcher", WAIT_SECONDS))
        yield


def sbatch(script: str, options: Sequence[str], folder: Path) -> str:
    """Submit a script of ours through submitit and return the job's id.

    submitit keeps the script as submitted in `folder` and calls sbatch. It pickles no function and runs nothing inside
    the job, so its own signal handling and requeueing never come into play.
    """
    try:
        from submitit.core.utils import FailedJobError, FailedSubmissionError
        from submitit.helpers import clean_env
        from submitit.slurm.slurm import SlurmExecutor
    except ImportError:
        raise ToolkitError(
            "The launcher needs submitit. Install it: pip install '.[slurm]' -c constraints.txt"
        ) from None

    class OwnScript(SlurmExecutor):
        def _make_submission_file_text(self, command: str, uid: str) -> str:
            return script

        def _make_submission_command(self, submission_file_path: Path) -> list[str]:
            return ["sbatch", *options, str(submission_file_path)]

    inside_a_job = "SLURM_JOB_ID" in os.environ
    try:
        with clean_env() if inside_a_job else nullcontext():
            return str(OwnScript(folder)._submit_command("").job_id)
    except (FailedJobError, FailedSubmissionError) as error:
        raise ToolkitError(f"sbatch refused the job, nothing is queued: {' '.join(str(error).split())}") from None


@contextmanager
def _cancelled_on_failure(job_id: str) -> Iterator[None]:
    try:
        yield
    except BaseException:
        slurm("scancel", job_id, check=False)
        raise


@contextmanager
def _new_private_folder(folder: Path) -> Iterator[None]:
    """Make `folder`, readable by this user only; gone again on failure."""
    with _new_folders(folder):
        folder.chmod(0o700)
        try:
            yield
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise


@contextmanager
def _new_folders(folder: Path) -> Iterator[None]:
    """Make `folder` and those above it that are missing; on failure remove again what of them is empty."""
    missing = [path for path in [folder, *folder.parents] if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for path in missing:
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
        raise


def _write_elements(batches: Sequence[Batch], folder: Path) -> None:
    """The command of each element of an array, a file for each index, its words ended by NUL."""
    for batch in batches:
        if batch.arguments is None:
            continue
        batch.arguments.mkdir()
        for index, task in enumerate(batch.tasks):
            words = element_arguments(task, batch.tasks)
            (batch.arguments / str(index)).write_bytes(b"".join(os.fsencode(word) + b"\0" for word in words))


@contextmanager
def _run_records(run_dir: Path, batches: Sequence[Batch]) -> Iterator[None]:
    """A run folder's code/ and job/ for these batches in the place of older ones, which are back on failure."""
    tasks = [task for batch in batches for task in batch.tasks]
    own = {task: batch for batch in batches for task in batch.tasks if task.run_dir == run_dir}
    with _new_folders(run_dir), ExitStack() as undo:
        aside = Path(tempfile.mkdtemp(prefix=".submitting-", dir=run_dir))
        undo.callback(shutil.rmtree, aside, ignore_errors=True)
        files = sorted({name for task in own for name in task.run.cluster.files})
        code = snapshot_code(CHECKOUT, aside, named=files)
        replacing = {code_folder(task, tasks): code for task in own}
        for task, batch in own.items():
            described = aside / f"described-{task.label}"
            shutil.copytree(aside / "job", described)  # what git says of the snapshot
            _describe(described, task, batch)
            replacing[job_folder(run_dir, task.label)] = described
        for target, new in replacing.items():
            undo.enter_context(_in_place_of(target, new, aside))
        yield


@contextmanager
def _in_place_of(target: Path, new: Path, aside: Path) -> Iterator[None]:
    """Rename `new` to `target`; an older target waits in `aside`, and comes back on failure."""
    old = aside / f"old-{target.name}"
    if target.exists():
        target.rename(old)
    new.rename(target)
    try:
        yield
    except BaseException:
        target.rename(new)
        if old.exists():
            old.rename(target)
        raise


def _describe(folder: Path, task: Task, batch: Batch) -> None:
    """What the job runs and with what, nothing of the user's environment variables."""
    (folder / "script.sbatch").write_text(batch.script, encoding="utf-8")
    write_json(folder / "overrides.json", {"overrides": task.overrides})
    (folder / "config.yaml").write_text(as_yaml(task.config), encoding="utf-8")
    if task.robot is not None:
        (folder / task.robot_file.name).write_text(python_source(modality_configs(task.robot)), encoding="utf-8")
    write_environment(folder)


def _note(batch: Batch, folder: Path) -> None:
    """submitted.json: which job a task became, and how to find it again."""
    for index, task in enumerate(batch.tasks):
        record: dict[str, Any] = {
            "job_id": batch.id_of(index),
            "job_name": batch.job_name,
            "stage": task.stage,
            "name": task.name,
            "split": task.run.split.name,
            "run_dir": str(task.run_dir),
            "folder": str(CHECKOUT),
            "log": batch.log_of(task, folder),
            "after": [other.job_id for other in batch.after],
            "submitted": now(),
        }
        write_json(job_folder(task.run_dir, task.label) / RECORD, record)

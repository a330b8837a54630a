"""From a request to jobs: batches (one call of sbatch each), records beside the runs, then sbatch through submitit.

A request is checked first, then shown (dry_run=true) or submitted; a failure leaves neither jobs nor files."""

from __future__ import annotations

import dataclasses
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from rich.table import Table

from finetune.recipe import ClusterConfig
from finetune.slurm.attempt_record import OWN_FOLDER, RECORD, describe_job, job_folder, note_elsewhere, now
from finetune.slurm.cluster_queries import JOB_NAME, environment, reason_of, slurm
from finetune.slurm.launch_request import Request, Task
from finetune.slurm.refusals import check_accepted, check_request, explanation
from finetune.slurm.render import RUN, render
from gr00t.data.schema import python_source
from gr00t.errors import ToolkitError, disk_errors, require_extra
from gr00t.file_replacement import lock_in_turn, write_json
from toolkit.code_files import snapshot_code
from toolkit.configuration import as_yaml
from toolkit.installation import CHECKOUT
from toolkit.shared_keys import modality_configs

ARRAY_NAME = "groot"


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
        batches = batches_of(request, folder)
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
        for other, condition in batch.waits.items():
            names = ", ".join(task.name for task in other.tasks)
            print(f"# waits for {names} to {'succeed' if condition == 'afterok' else 'end'}")
        print(batch.script)
        for task in batch.tasks:
            print(f"# ----- configuration of {task.name}: {' '.join(task.overrides)}\n{as_yaml(task.config)}")
    print("# dry_run=true: nothing was submitted or written")


def _report(batches: Sequence[Batch], runs_dir: Path) -> None:
    table = Table("job", "run", "stage", "waits for", "run folder", box=None, pad_edge=False)
    for batch in batches:
        waits = ", ".join(other.job_id for other in batch.waits)
        for index, task in enumerate(batch.tasks):
            table.add_row(batch.id_of(index), task.run_dir.name, task.stage, waits, str(task.run_dir))
    Console(highlight=False, soft_wrap=True, markup=False).print(table)
    here = "" if runs_dir == Path("runs").absolute() else f" runs_dir={runs_dir}"
    name = batches[-1].tasks[-1].run_dir.name
    print(f"all runs:  python -m finetune.jobs{here}\none's log: python -m finetune.jobs follow {name}{here}")
    print(f"end it:    python -m finetune.jobs cancel {name}{here}")


# -- batches -----------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Batch:
    """One call of sbatch: a job of one task, or an array with a task for each index.

    waits: the batches before it, which must succeed (afterok), or only end, so that no more run at once than asked for
    (afterany); elements: the folder from which those of an array read their arguments.
    """

    tasks: list[Task]
    script: str
    job_name: str
    waits: dict[Batch, str] = field(default_factory=dict)
    elements: Path | None = None
    job_id: str = ""

    @property
    def options(self) -> list[str]:
        """What sbatch is given beside the script, once the jobs before have their ids."""
        waits = [f"{condition}:{batch.job_id}" for batch, condition in self.waits.items()]
        return [f"--dependency={','.join(waits)}", "--kill-on-invalid-dep=yes"] if waits else []

    def id_of(self, index: int) -> str:
        """The id of the task at `index`, as SLURM's commands take it."""
        return f"{self.job_id}_{index}" if self.elements else self.job_id

    def log_of(self, task: Task, folder: Path) -> str:
        """Where its output goes; `folder` is that of this submission."""
        job_id = self.id_of(self.tasks.index(task))
        return str(folder / f"{job_id}.out" if self.elements else task.run_dir / f"slurm-{task.label}-{job_id}.out")


def batches_of(request: Request, folder: Path) -> list[Batch]:
    """The calls of sbatch, those waited for first; `folder` is where this submission keeps its files."""
    tasks, bound = request.tasks, request.launch.max_parallel
    alike = all(task.stage == "finetune" and task.run.cluster == tasks[0].run.cluster for task in tasks)
    if alike and len(tasks) > 1:
        return [_array(tasks, bound, folder)]
    batches: dict[Task, Batch] = {}
    for task in tasks:
        job_name = job_name_of(task.name)
        script = render(
            cluster_of(task),
            job_name=job_name,
            stage=task.stage,
            overrides=task.overrides,
            about=[f"{task.stage} of {task.run_dir}, submitted by launch_finetune_slurm.py"],
            output=output_in(task.run_dir, f"slurm-{task.label}-%j.out"),
            code=_code_folder(task, tasks),
        )
        batches[task] = Batch([task], script, job_name, {batches[other]: "afterok" for other in task.after})
    tuned = [batches[task] for task in request.of_stage("finetune")]
    for one, next_one in zip(tuned, tuned[bound:] if bound else [], strict=False):
        next_one.waits[one] = "afterany"
    return list(batches.values())


def _array(tasks: Sequence[Task], bound: int | None, folder: Path) -> Batch:
    """One job script for all points; an element finds its run folder's payload and its overrides by its index."""
    cluster = cluster_of(tasks[0])
    array = f"--array=0-{len(tasks) - 1}" + (f"%{bound}" if bound else "")
    script = render(
        dataclasses.replace(cluster, sbatch=[*cluster.sbatch, array]),
        job_name=job_name_of(ARRAY_NAME),
        stage="finetune",
        overrides=[],
        about=[f"{index}: {task.run_dir}" for index, task in enumerate(tasks)],
        output=output_in(folder, "%A_%a.out"),
        elements=folder / "elements",
    )
    return Batch(list(tasks), script, job_name_of(ARRAY_NAME), elements=folder / "elements")


def cluster_of(task: Task) -> ClusterConfig:
    """What a task asks for: a fine-tune all of cluster.*; the other stages theirs of cluster.stages.*, on one node."""
    cluster = task.run.cluster
    here = cluster.python or cluster.container or (CHECKOUT / ".venv" / "bin" / "python").exists()
    cluster = dataclasses.replace(cluster, python=cluster.python if here else sys.executable)
    if task.stage == "finetune":
        return cluster
    own = cluster.stages.prepare if task.stage == "prepare" else cluster.stages.evaluate
    gpus = min(own.gpus, cluster.gpus_per_node)
    share = cluster.cpus_per_task * gpus // max(cluster.gpus_per_node, 1)  # as many as come with that many GPUs
    cpus = own.cpus or (share if gpus else min(cluster.cpus_per_task, 8))
    return dataclasses.replace(
        cluster,
        nodes=1,
        gpus_per_node=gpus,
        processes_per_node=None,
        cpus_per_task=max(cpus, 1),
        memory=own.memory,  # that of a fine-tune is for its whole node; a site's default goes with the CPUs
        partition=own.partition or cluster.partition,
        time=own.time or cluster.time,
        sbatch=cluster.sbatch if own.sbatch is None else own.sbatch,
    )


def job_name_of(name: str) -> str:
    """A name made of letters that a job script takes; that of SBATCH_JOB_NAME where the user has set one."""
    return re.sub(r"[^\w.+=-]+", "-", os.environ.get(JOB_NAME) or name)


def output_in(folder: Path, name: str) -> str:
    """An --output for sbatch, which would take a % in the folder's name for a pattern, and no space at all."""
    if re.search(r"[\s\"'#\\]", str(folder)):
        raise ToolkitError(
            f'{folder}: SLURM writes a job\'s output there, and takes no path with spaces, quotes, "#" or backslashes. '
            "Choose another run_dir=... (and runs_dir=...)."
        )
    return f"{str(folder).replace('%', '%%')}/{name}"


def _code_folder(task: Task, tasks: Sequence[Task]) -> Path:
    """The snapshot that a task runs; an evaluation alone leaves that of the fine-tune as it is."""
    tuned = any(other.stage == "finetune" and other.run_dir == task.run_dir for other in tasks)
    return task.run_dir / ("code" if tuned else f"code-{task.stage}")


# -- submission --------------------------------------------------------------------------------------------------------


def submit(batches: Sequence[Batch], folder: Path) -> None:
    """Write the records of every run, submit the batches in order, and note each one's job id in both.

    `folder` receives this submission's own files (scripts as submitted, arguments and output of an array's elements);
    only this user can read it. When anything fails, submitted jobs are cancelled and files are as before.
    """
    with ExitStack() as records, ExitStack() as undo:
        with disk_errors(folder, "Nothing was submitted."):
            records.enter_context(_new_folders(folder))
            undo.callback(shutil.rmtree, folder, ignore_errors=True)
            folder.chmod(0o700)
            for batch in batches:
                if batch.elements is None:
                    continue
                batch.elements.mkdir()
                for index, task in enumerate(batch.tasks):
                    words = [str(task.run_dir / "code" / RUN), task.stage, *task.overrides]  # each ended by NUL
                    (batch.elements / str(index)).write_bytes(b"".join(os.fsencode(word) + b"\0" for word in words))
            for run_dir in {task.run_dir: None for batch in batches for task in batch.tasks}:
                records.enter_context(_run_records(run_dir, batches))
        hold = ["--hold"] if len(batches) > 1 else []  # none starts before all are accepted
        for batch in batches:
            batch.job_id = sbatch(batch.script, [*batch.options, *hold], folder)
            undo.callback(slurm, "scancel", batch.job_id, check=False)
            _note(batch, folder)
        if hold:
            slurm("scontrol", "release", ",".join(batch.job_id for batch in batches))
        undo.pop_all()  # all is submitted


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


@contextmanager
def _run_records(run_dir: Path, batches: Sequence[Batch]) -> Iterator[None]:
    """A run folder's code/ and job/ for these batches in the place of older ones, which are back on failure."""
    tasks = [task for batch in batches for task in batch.tasks]
    own = {task: batch for batch in batches for task in batch.tasks if task.run_dir == run_dir}
    with (
        _new_folders(run_dir),
        TemporaryDirectory(prefix=".submitting-", dir=run_dir, ignore_cleanup_errors=True) as temporary,
        ExitStack() as undo,
    ):
        aside = Path(temporary)
        code = snapshot_code(CHECKOUT, aside, named=sorted({name for task in own for name in task.run.cluster.files}))
        replacing = {_code_folder(task, tasks): code for task in own}
        for task, batch in own.items():
            described = aside / f"described-{task.label}"
            shutil.copytree(aside / "job", described)  # what git says of the snapshot
            describe_job(described, batch.script, task.overrides, task.config)
            if task.robot is not None:
                source = python_source(modality_configs(task.robot))
                (described / task.robot_file.name).write_text(source, encoding="utf-8")
            replacing[job_folder(run_dir, task.label)] = described
        for target, new in replacing.items():
            old = aside / f"old-{target.name}"
            if target.exists():
                target.rename(old)
                undo.callback(old.rename, target)
            new.rename(target)
            undo.callback(target.rename, new)
        yield
        undo.pop_all()


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
            "after": [other.job_id for other, condition in batch.waits.items() if condition == "afterok"],
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

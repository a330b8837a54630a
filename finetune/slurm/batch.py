"""From tasks to calls of sbatch: single jobs, an array of a sweep's points, chains; each with its whole job script."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from finetune.checkout import CHECKOUT
from finetune.config.schema import ClusterConfig
from finetune.slurm.request import Request, Task
from finetune.slurm.template import render
from gr00t.errors import ToolkitError

ARRAY_NAME = "groot"


@dataclass(eq=False)
class Batch:
    """One call of sbatch: a job of one task, or an array with a task for each index.

    after: must succeed before this one starts; turn: must only have ended, so that no more run at once than asked for;
    arguments: the folder from which the elements of an array read theirs.
    """

    tasks: list[Task]
    script: str
    job_name: str
    after: list[Batch] = field(default_factory=list)
    turn: Batch | None = None
    arguments: Path | None = None
    job_id: str = ""

    @property
    def options(self) -> list[str]:
        """What sbatch is given beside the script, once the jobs before have their ids."""
        waits = [f"afterok:{batch.job_id}" for batch in self.after]
        waits += [f"afterany:{self.turn.job_id}"] if self.turn else []
        return [f"--dependency={','.join(waits)}", "--kill-on-invalid-dep=yes"] if waits else []

    def id_of(self, index: int) -> str:
        """The id of the task at `index`, as SLURM's commands take it."""
        return f"{self.job_id}_{index}" if self.arguments else self.job_id

    def log_of(self, task: Task, folder: Path) -> str:
        """Where its output goes; `folder` is that of this submission."""
        job, _, index = self.id_of(self.tasks.index(task)).partition("_")
        return str(folder / f"{job}_{index}.out") if index else str(log_file(task)).replace("%j", job)


def batches_of(request: Request, folder: Path) -> list[Batch]:
    """The calls of sbatch, those waited for first; `folder` is where this submission keeps its files."""
    tasks, bound = request.tasks, request.launch.max_parallel
    alike = all(task.stage == "finetune" and task.run.cluster == tasks[0].run.cluster for task in tasks)
    if alike and len(tasks) > 1:
        return [_array(tasks, bound, folder)]
    batches: dict[Task, Batch] = {}
    for task in tasks:
        after = [batches[other] for other in task.after]
        batches[task] = Batch([task], _script(task, tasks), job_name_of(task.name), after)
    tuned = [batches[task] for task in request.of_stage("finetune")]
    for one, next_one in zip(tuned, tuned[bound:] if bound else [], strict=False):
        next_one.turn = one
    return list(batches.values())


def code_folder(task: Task, tasks: Sequence[Task]) -> Path:
    """The snapshot that a task runs; an evaluation alone leaves that of the fine-tune as it is."""
    tuned = any(other.stage == "finetune" and other.run_dir == task.run_dir for other in tasks)
    return task.run_dir / ("code" if tuned else f"code-{task.stage}")


def log_file(task: Task) -> Path:
    """The output of a job that is no array; %j is the job's id."""
    return task.run_dir / f"slurm-{task.label}-%j.out"


def output_in(folder: Path, name: str) -> str:
    """An --output for sbatch, which would take a % in the folder's name for a pattern, and no space at all."""
    if re.search(r"[\s\"'#\\]", str(folder)):
        raise ToolkitError(
            f'{folder}: SLURM writes a job\'s output there, and takes no path with spaces, quotes, "#" or backslashes. '
            "Choose another run_dir=... (and runs_dir=...)."
        )
    return f"{str(folder).replace('%', '%%')}/{name}"


def cluster_of(task: Task) -> ClusterConfig:
    """What a task asks for: a fine-tune all of cluster.*; converting takes no GPU, evaluating one at most."""
    cluster = task.run.cluster
    here = cluster.python or cluster.container or (CHECKOUT / ".venv" / "bin" / "python").exists()
    python = cluster.python if here else sys.executable
    if task.stage == "finetune":
        return dataclasses.replace(cluster, python=python)
    gpus = 0 if task.stage == "prepare" else min(cluster.gpus_per_node, 1)
    return dataclasses.replace(cluster, python=python, nodes=1, gpus_per_node=gpus, processes_per_node=None)


def element_arguments(task: Task, tasks: Sequence[Task]) -> list[str]:
    """What an element of an array runs: the payload of its own snapshot, its stage and its overrides."""
    return [str(code_folder(task, tasks) / "finetune_jobs" / "run.sh"), task.stage, *task.overrides]


def _script(task: Task, tasks: Sequence[Task]) -> str:
    return render(
        cluster_of(task),
        job_name=job_name_of(task.name),
        stage=task.stage,
        overrides=task.overrides,
        about=[f"{task.stage} of {task.run_dir}, submitted by launch_finetune_slurm.py"],
        output=output_in(task.run_dir, log_file(task).name),
        checkout=CHECKOUT,
        code=code_folder(task, tasks),
    )


def _array(tasks: Sequence[Task], bound: int | None, folder: Path) -> Batch:
    """One job script for all points; an element finds its run folder's payload and its overrides by its index."""
    cluster = cluster_of(tasks[0])
    array = f"--array=0-{len(tasks) - 1}" + (f"%{bound}" if bound else "")
    script = render(
        dataclasses.replace(cluster, sbatch=[*cluster.sbatch, array]),
        job_name=ARRAY_NAME,
        stage="finetune",
        overrides=[],
        about=[f"{index}: {task.run_dir}" for index, task in enumerate(tasks)],
        output=output_in(folder, "%A_%a.out"),
        checkout=CHECKOUT,
        elements=folder / "elements",
    )
    return Batch(list(tasks), script, ARRAY_NAME, arguments=folder / "elements")


def job_name_of(name: str) -> str:
    """A name made of letters that a job script takes."""
    return re.sub(r"[^\w.+=-]+", "-", name)

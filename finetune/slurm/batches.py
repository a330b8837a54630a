"""Jobs of a request: tasks that ask for the same resources form arrays, stages wait for each other element by element,
and of all fine-tunes as many run at once as max_parallel says.

SLURM keeps the bound inside one array. Several arrays divide it among them; where there are more of them than the bound
allows, they form lanes, in which each waits until all before it have ended. (One that waited for its predecessor alone
would start too early: to wait for the end of a job that SLURM has dropped is to wait for nothing.)"""

from __future__ import annotations

import dataclasses
import itertools
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from finetune.recipe import ClusterConfig
from finetune.slurm.cluster_queries import JOB_NAME
from finetune.slurm.launch_request import Request, Task
from finetune.slurm.render import RUN, STAGES, asks_for, render
from gr00t.errors import ToolkitError

ARRAY_NAME = "groot"
CODE = "code"  # the folder of a launch's copies of the checkout, beside those of the launches


@dataclass(eq=False)
class Batch:
    """One call of sbatch: a job of one task, or an array with a task for each index.

    folder: where this submission keeps its files; number: of the batch in it. bound: how many elements run at once;
    lane: the batches that must have ended before, so that no more run at once than asked for.
    """

    tasks: list[Task]
    folder: Path
    number: int
    bound: int | None = None
    lane: list[Batch] = field(default_factory=list)
    job_id: str = ""

    @property
    def is_array(self) -> bool:
        return len(self.tasks) > 1

    @property
    def stage(self) -> str:
        return self.tasks[0].stage

    @property
    def job_name(self) -> str:
        array = ARRAY_NAME if self.stage == "finetune" else f"{ARRAY_NAME}-{self.stage}"
        return job_name_of(array if self.is_array else self.tasks[0].name)

    @property
    def elements(self) -> Path:
        """The folder from which those of an array read their commands."""
        return self.folder / f"elements-{self.number}"

    @cached_property
    def script(self) -> str:
        """What sbatch is given; an element finds its command by its index."""
        first, cluster, code = self.tasks[0], cluster_of(self.tasks[0]), code_folder(self.folder)
        if not self.is_array:
            about = [f"{self.stage} of {first.run_dir}, submitted by launch_finetune_slurm.py"]
            return render(
                cluster,
                job_name=self.job_name,
                stage=self.stage,
                overrides=first.overrides,
                about=about,
                output=output_in(first.run_dir, f"slurm-{first.label}-%j.out"),
                code=code,
            )
        bound = f"%{self.bound}" if self.bound and self.bound < len(self.tasks) else ""
        array = f"--array=0-{len(self.tasks) - 1}{bound}"
        return render(
            dataclasses.replace(cluster, sbatch=[*cluster.sbatch, array]),
            job_name=self.job_name,
            stage=self.stage,
            overrides=[],
            about=[f"{index}: {self.stage} of {task.run_dir}" for index, task in enumerate(self.tasks)],
            output=output_in(self.folder, "%A_%a.out"),
            elements=self.elements,
        )

    def write_elements(self) -> None:
        """Write each element's command, its words ended by NUL."""
        if self.is_array:
            self.elements.mkdir()
        for index, task in enumerate(self.tasks if self.is_array else []):
            words = [str(code_folder(self.folder) / RUN), task.stage, *task.overrides]
            (self.elements / str(index)).write_bytes(b"".join(os.fsencode(word) + b"\0" for word in words))

    def submitted(self, job_id: str) -> None:
        """Note the job's id, and each task's, as SLURM's commands take it."""
        self.job_id = job_id
        for index, task in enumerate(self.tasks):
            task.job_id = f"{job_id}_{index}" if self.is_array else job_id

    @property
    def waits(self) -> str | None:
        """The dependency of all its tasks, "" for none; None where each has its own. Jobs before have their ids."""
        alike = {self.waits_of(task) for task in self.tasks}
        if len(alike) == 1:
            return alike.pop()
        # or each element of an array waits for that of the same index in one other array
        first = self.tasks[0].after[:1]
        other = first[0].job_id.partition("_")[0] if first else ""
        pairs = [[f"{other}_{index}"] for index in range(len(self.tasks))]
        if self.lane or pairs != [[waited.job_id for waited in task.after] for task in self.tasks]:
            return None
        return f"aftercorr:{other}"

    def waits_of(self, task: Task) -> str:
        """The dependency of one task, as sbatch takes it."""
        ended = [f"afterany:{batch.job_id}" for batch in self.lane]
        return ",".join([*ended, *(f"afterok:{other.job_id}" for other in task.after)])

    def log_of(self, task: Task) -> str:
        """Where its output goes."""
        name = f"{task.job_id}.out"
        return str(self.folder / name if self.is_array else task.run_dir / f"slurm-{task.label}-{name}")


def batches_of(request: Request, folder: Path, largest: int | None = None) -> list[Batch]:
    """The calls of sbatch, those waited for first.

    `folder` is where this submission keeps its files; `largest` the most elements of one array, None for no limit.
    """
    batches: list[Batch] = []
    for stage, is_share in itertools.product(STAGES, (True, False)):  # shares before what joins them
        alike: dict[str, list[Task]] = {}
        for task in request.of_stage(stage):
            if (task.share is not None) is is_share:
                alike.setdefault(repr(cluster_of(task)), []).append(task)
        parts = [part for tasks in alike.values() for part in _parts(tasks, largest or len(tasks))]
        own = [Batch(part, folder, len(batches) + number) for number, part in enumerate(parts)]
        if stage == "finetune" and own and request.launch.max_parallel is not None:
            _bind(own, request.launch.max_parallel)
        batches += own
    return batches


def _parts(tasks: Sequence[Task], largest: int) -> Iterable[list[Task]]:
    """As few lists of at most `largest` as there can be, of equal size."""
    count = -(-len(tasks) // largest)
    size = -(-len(tasks) // count)
    return [list(tasks[first : first + size]) for first in range(0, len(tasks), size)]


def _bind(batches: Sequence[Batch], bound: int) -> None:
    """Let no more than `bound` tasks of all batches run at once, whatever becomes of them."""
    if len(batches) <= bound:
        shares = Counter(batches)
        for _ in range(bound - len(batches)):
            shares[max(batches, key=lambda batch: len(batch.tasks) / shares[batch])] += 1
        for batch in batches:
            batch.bound = shares[batch]
        return
    lanes: list[list[Batch]] = [[] for _ in range(bound)]
    for batch in batches:
        shortest = min(lanes, key=lambda lane: sum(len(other.tasks) for other in lane))
        batch.bound, batch.lane = 1, list(shortest)
        shortest.append(batch)


def code_folder(folder: Path) -> Path:
    """Where the copy of the checkout lies that the jobs of a submission run; others may read it, as the run folders."""
    return folder.parent / CODE / folder.name


def cluster_of(task: Task) -> ClusterConfig:
    """What its job asks for."""
    in_simulation = task.stage == "evaluate" and task.config.mode == "closed_loop"
    return asks_for(task.run.cluster, "closed_loop" if in_simulation else task.stage)


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

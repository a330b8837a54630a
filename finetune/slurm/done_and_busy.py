"""What of a request is done already, or is done by a job that is queued or runs: both are left out, and said.

A stage that is missing behind a busy one waits for it. A job that would do something else in the same place is in the
way, and refused."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.recipe import FinetuneConfig
from finetune.recipe.recipe_identity import RELEASE_MARK, differences, recipe, robot_of
from finetune.slurm.attempt_record import arguments_of_job, folder_of_job, jobs_of, resolved, run_folders, run_name
from finetune.slurm.cluster_queries import Job, Queue
from finetune.slurm.launch_request import Request, Task
from finetune.slurm.render import DIVIDED, STAGES
from gr00t.data.schema import comparable, python_source
from gr00t.errors import ToolkitError
from gr00t.file_reading import read_json, read_text
from gr00t.model.checkpoint_folder import fingerprint
from toolkit.code_files import ROBOT_FILE
from toolkit.composition import read_yaml
from toolkit.installation import CHECKOUT
from toolkit.shared_keys import modality_configs

_PLACES = ("output_dir", "dataset.data_dir", "model.base")  # of a fine-tune; what its recipe does not say
_MADE_IN = {"record": ("out", "conflict_maniskill"), "prepare": ("data_dir", "data")}  # of what runs may share
_NO_SETTING = ("modality_config", "workers", "share")  # the robot's file lies with the job
_BEFORE = {"guidance": 1.0}  # keys of an evaluation that came later: what it acted as without them
_NO_RESULT = ("device", "batch_size", "workers", "verify", "tracking", "report_dir", "checkpoint")  # of an evaluation


@dataclass(frozen=True)
class BusyJob:
    """A job of a run folder that is queued or runs; `noted` is its record there."""

    run_dir: Path
    noted: dict[str, Any]
    job: Job

    @property
    def folder(self) -> Path:
        """What it was submitted with."""
        return folder_of_job(self.run_dir, str(self.noted["name"]))

    @property
    def arguments(self) -> dict[str, str]:
        """The same by key; {} where that is not recorded."""
        return arguments_of_job(self.folder) if (self.folder / "overrides.json").is_file() else {}

    def does(self, task: Task) -> bool:
        """Whether it is the same work with the same settings."""
        robot = None if task.robot is None else python_source(modality_configs(task.robot))
        if robot != (read_text(self.folder / ROBOT_FILE) if (self.folder / ROBOT_FILE).is_file() else None):
            return False
        theirs, ours = (
            {name: value for name, value in given.items() if name not in _NO_SETTING}
            for given in (self.arguments, task.arguments)
        )
        if task.stage != "finetune":
            return theirs == ours
        if differences(recipe(resolved(self.run_dir)), recipe(dataclasses.asdict(task.config))):
            return False
        return [theirs.get(name) for name in _PLACES] == [ours.get(name) for name in _PLACES]

    def meets(self, task: Task) -> bool:
        """Whether it writes where this task would: the recording or dataset that runs may have in common, or a share of
        it; else into the run folder."""
        if task.stage not in DIVIDED:
            return self.run_dir == task.run_dir and self.noted["name"] == task.name
        if self.noted["stage"] != task.stage:
            return False
        name, otherwise = _MADE_IN[task.stage]
        given, split = self.arguments, task.config.split.name
        made = CHECKOUT / given.get(name, otherwise) / str(self.noted["split"]) / given.get("part", "")
        ours = Path(getattr(task.config, name)) / split / getattr(task.config, "part", "")
        return os.path.realpath(made) == os.path.realpath(ours)

    @property
    def share(self) -> str | None:
        """Which share of its stage's work it does; None for all of it, or for what joins the shares."""
        return self.arguments.get("share")

    def refusal(self, what: str) -> ToolkitError:
        """It is in the way: of what, and what to do."""
        return ToolkitError(
            f"{what} belongs to job {self.job.job_id} ({self.noted['name']}), which is {self.job.state.lower()}. Wait "
            f"for it, cancel it (python -m finetune.jobs cancel {run_name(self.run_dir)}), or give this run folders of "
            "its own: run_dir=... output_dir=...."
        )


def leave_out(request: Request, queue: Queue, say: Callable[[str], None]) -> None:
    """Remove from the request what is done or busy, saying so; ToolkitError where another job is in the way."""
    jobs = list(_busy_jobs(request, queue))
    same: list[BusyJob] = []
    for task in [task for stage in STAGES for task in request.of_stage(stage) if task.share is None]:
        meeting = [job for job in jobs if job.meets(task)]
        for other in (job for job in meeting if not job.does(task)):
            raise other.refusal(_what_is_made(task))
        same += meeting
        busy = next((job for job in meeting if job.share is None), None)
        if busy is not None:
            _leave_to(busy, task, say)
        elif (done := found_result(task)) is not None:
            say(f"{task.name}: {done[0]} is there already, so this is left out ({done[1]} again)")
            for follower in request.tasks:
                follower.after = [waited for waited in follower.after if waited is not task]
        else:
            _leave_shares_to(meeting, task, request, say)
            continue
        request.tasks = [other for other in request.tasks if other is not task and other not in task.shares]
    for task in request.tasks:
        for job in jobs:
            later = STAGES.index(str(job.noted["stage"])) > STAGES.index(task.stage)
            if job.run_dir == task.run_dir and (later or job not in same):
                raise job.refusal(f"run_dir={task.run_dir}")


def _leave_to(busy: BusyJob, task: Task, say: Callable[[str], None]) -> None:
    """Let what waits for the task wait for a job that does the same."""
    task.job_id = busy.job.job_id
    say(f"{task.name}: job {task.job_id} ({busy.job.state.lower()}) does it already, so this is left out")


def _leave_shares_to(meeting: Sequence[BusyJob], task: Task, request: Request, say: Callable[[str], None]) -> None:
    """Of a task whose shares are done by jobs in part, but joined by none, leave these shares to them."""
    shares = {share.share: share for share in task.shares}
    for busy in meeting:
        if busy.share not in shares:
            raise busy.refusal(f"{_what_is_made(task)}, which is made in other shares,")
        _leave_to(busy, shares[busy.share], say)
        request.tasks.remove(shares[busy.share])


def _what_is_made(task: Task) -> str:
    """What of a task another job may be at."""
    if task.stage in DIVIDED:
        return f"the {'dataset' if task.stage == 'prepare' else 'recording'} of {task.name}"
    return f"run_dir={task.run_dir}"


def _busy_jobs(request: Request, queue: Queue) -> Iterable[BusyJob]:
    """Jobs of the request's own run folders; of the others those whose recording or dataset runs may share."""
    if not any(job.alive for job in queue.jobs.values()):
        return
    own = {task.run_dir for task in request.tasks}
    shared = any(request.of_stage(stage) for stage in DIVIDED)
    others = run_folders(Path(request.launch.runs_dir).absolute()) if shared else []
    for run_dir in [*own, *(folder for folder in others if folder not in own)]:
        for noted in jobs_of(run_dir) if run_dir.is_dir() else []:
            job = queue.find(noted)
            if job is not None and job.alive and (run_dir in own or noted["stage"] in DIVIDED):
                yield BusyJob(run_dir, noted, job)


def found_result(task: Task) -> tuple[Path, str] | None:
    """Where a task's result lies already, and what does it again; None where it is not there."""
    if task.stage == "record":
        return (task.config.target, "overwrite=true records it") if task.config.is_recorded else None
    if task.stage == "prepare":
        found = Path(task.config.data_dir) / task.config.split.name
        there = all((found / part / "meta/info.json").is_file() for part in task.parts) and not task.config.overwrite
        return (found, "overwrite=true makes it") if there else None
    if task.after:
        return None
    if task.stage == "finetune":
        return (Path(task.config.output_dir), "train.resume=never does it") if is_finished(task.config) else None
    report = Path(task.config.report_folder) / f"{task.config.mode}.json"
    return (report, "without that file it is made") if _is_evaluated(task.config, report) else None


def is_finished(config: FinetuneConfig) -> bool:
    """Whether output_dir holds what this fine-tune would make; a checkpoint of another recipe or robot is refused.

    Datasets and bases, whose content the training itself compares, are not looked at.
    """
    folder = Path(config.output_dir)
    settings = folder / "experiment_cfg" / "config.yaml"
    if config.train.resume == "never" or not (folder / RELEASE_MARK).is_file() or not settings.is_file():
        return False
    ours = {**recipe(dataclasses.asdict(config)), "modality_config": comparable(modality_configs(config.dataset))}
    robot = robot_of(folder, config.dataset.embodiment_tag)
    theirs = {**recipe(read_yaml(settings)), **({"modality_config": robot} if robot else {})}
    different = differences(theirs, ours)
    if different:
        listed = "\n  ".join(different)
        raise ToolkitError(
            f"output_dir={config.output_dir} holds a finished checkpoint of another run:\n  {listed}\nChoose another "
            "output_dir=... (and run_dir=...), or replace it with train.resume=never."
        )
    return True


def _is_evaluated(config: Any, report: Path) -> bool:
    """Whether a report is of this checkpoint, as it is now, and of an evaluation with the same settings."""
    checkpoint = Path(config.checkpoint)
    if not report.is_file() or not (checkpoint / RELEASE_MARK).is_file():
        return False
    said = read_json(report)
    info = said.get("info", said)
    ours, theirs = _deciding(dataclasses.asdict(config)), _deciding({**_BEFORE, **info.get("config", {})})
    return ours == theirs and info.get("checkpoint_fingerprint") == fingerprint(checkpoint)


def _deciding(config: dict[str, Any]) -> dict[str, Any]:
    """What of an evaluation decides its numbers, folders as the jobs see them."""
    kept = {name: value for name, value in config.items() if name not in _NO_RESULT}
    for folder in {"data_dir", "raw_dir"} & kept.keys():
        kept[folder] = os.path.realpath(CHECKOUT / kept[folder])
    return kept

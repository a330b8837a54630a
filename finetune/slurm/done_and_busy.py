"""What of a request is done already, or is done by a job that is queued or runs: both are left out, and said.

A stage that is missing behind a busy one waits for it. A job that would do something else in the same place is in the
way, and refused."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.recipe import FinetuneConfig
from finetune.recipe.recipe_identity import RELEASE_MARK, differences, recipe, robot_of
from finetune.slurm.attempt_record import job_folder, jobs_of, resolved, run_folders, run_name
from finetune.slurm.cluster_queries import Job, Queue
from finetune.slurm.launch_request import STAGES, Request, Task
from gr00t.data.schema import comparable, python_source
from gr00t.errors import ToolkitError
from gr00t.file_reading import read_json, read_text
from gr00t.model.checkpoint_folder import fingerprint
from toolkit.code_files import ROBOT_FILE
from toolkit.composition import read_yaml
from toolkit.installation import CHECKOUT
from toolkit.shared_keys import modality_configs

_PLACES = ("output_dir", "dataset.data_dir", "model.base")  # of a fine-tune; what its recipe does not say
_NO_RESULT = ("device", "batch_size", "workers", "verify", "tracking")  # of an evaluation


@dataclass(frozen=True)
class BusyJob:
    """A job of a run folder that is queued or runs; `noted` is its record there."""

    run_dir: Path
    noted: dict[str, Any]
    job: Job

    @property
    def folder(self) -> Path:
        """What it was submitted with."""
        name, stage = str(self.noted["name"]), str(self.noted["stage"])
        return job_folder(self.run_dir, stage if stage == "finetune" else name[len(run_name(self.run_dir)) + 1 :])

    def does(self, task: Task) -> bool:
        """Whether it is the same work with the same settings."""
        robot = None if task.robot is None else python_source(modality_configs(task.robot))
        if robot != (read_text(self.folder / ROBOT_FILE) if (self.folder / ROBOT_FILE).is_file() else None):
            return False
        theirs, ours = self._settings(), _settings_of(task.overrides)
        if task.stage != "finetune":
            return theirs == ours
        if differences(recipe(resolved(self.run_dir)), recipe(dataclasses.asdict(task.config))):
            return False
        return [theirs.get(name) for name in _PLACES] == [ours.get(name) for name in _PLACES]

    def prepares(self, task: Task) -> bool:
        """Whether it makes the dataset that this conversion would."""
        if self.noted["stage"] != "prepare":
            return False
        made = CHECKOUT / self._settings().get("data_dir", "data") / str(self.noted["split"])
        return os.path.realpath(made) == os.path.realpath(Path(task.config.data_dir) / task.config.split.name)

    def _settings(self) -> dict[str, str]:
        path = self.folder / "overrides.json"
        return _settings_of(read_json(path)["overrides"]) if path.is_file() else {}

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
    for task in [task for stage in STAGES for task in request.of_stage(stage)]:
        busy = next((job for job in jobs if _meets(job, task)), None)
        if busy is not None and not busy.does(task):
            raise busy.refusal(f"run_dir={task.run_dir}" if task.stage != "prepare" else f"the dataset of {task.name}")
        if busy is not None:
            same.append(busy)
            task.job_id = busy.job.job_id  # which the stages behind it wait for
            say(f"{task.name}: job {task.job_id} ({busy.job.state.lower()}) does it already, so this is left out")
        elif (done := _done(task)) is not None:
            say(f"{task.name}: {done[0]} is there already, so this is left out ({done[1]} again)")
            for other in request.tasks:
                other.after = [waited for waited in other.after if waited is not task]
        else:
            continue
        request.tasks.remove(task)
    for task in request.tasks:
        for job in jobs:
            later = STAGES.index(str(job.noted["stage"])) > STAGES.index(task.stage)
            if job.run_dir == task.run_dir and (later or job not in same):
                raise job.refusal(f"run_dir={task.run_dir}")


def _busy_jobs(request: Request, queue: Queue) -> Iterable[BusyJob]:
    """Jobs of the request's own run folders; conversions of the others too, since runs may share a dataset."""
    if not any(job.alive for job in queue.jobs.values()):
        return
    own = {task.run_dir for task in request.tasks}
    others = run_folders(Path(request.launch.runs_dir).absolute()) if request.of_stage("prepare") else []
    for run_dir in [*own, *(folder for folder in others if folder not in own)]:
        for noted in jobs_of(run_dir) if run_dir.is_dir() else []:
            job = queue.find(noted)
            if job is not None and job.alive and (run_dir in own or noted["stage"] == "prepare"):
                yield BusyJob(run_dir, noted, job)


def _meets(job: BusyJob, task: Task) -> bool:
    """Whether a job writes where this task would."""
    if task.stage == "prepare":
        return job.prepares(task)
    return job.run_dir == task.run_dir and job.noted["name"] == task.name


def _settings_of(overrides: Iterable[str]) -> dict[str, str]:
    """Arguments by name, but for the robot's file, which lies with the job."""
    given = dict(argument.partition("=")[::2] for argument in overrides)
    return {name: value for name, value in given.items() if name != "modality_config"}


# -- done --------------------------------------------------------------------------------------------------------------


def _done(task: Task) -> tuple[Path, str] | None:
    """Where a task's result lies already, and what does it again; None where it is not there."""
    if task.stage == "prepare":
        found = Path(task.config.data_dir) / task.config.split.name
        there = (found / "train" / "meta" / "info.json").is_file() and not task.config.overwrite
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
    ours, theirs = _deciding(dataclasses.asdict(config)), _deciding(info.get("config", {}))
    return ours == theirs and info.get("checkpoint_fingerprint") == fingerprint(checkpoint)


def _deciding(config: dict[str, Any]) -> dict[str, Any]:
    """What of an evaluation decides its numbers, folders as the jobs see them."""
    folders = ("data_dir", "raw_dir")
    kept = {name: value for name, value in config.items() if name not in (*_NO_RESULT, "report_dir", "checkpoint")}
    return {name: os.path.realpath(CHECKOUT / value) if name in folders else value for name, value in kept.items()}

"""What of a request is done already, or is done by a job that is queued or runs: both are left out, and said.

A stage that is missing behind a busy one waits for it. A job that would do something else in the same place is in the
way, and refused."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

from finetune.recipe import FinetuneConfig
from finetune.recipe.recipe_identity import (
    RELEASE_MARK,
    differences,
    gave_up_earlier,
    is_replaced,
    publishable,
    recipe,
    robot_of,
)
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
from toolkit.declaration import flat
from toolkit.installation import CHECKOUT
from toolkit.shared_keys import modality_configs, parts_of

# Of a fine-tune what its recipe does not say: keys that are compared as they are, and those that are folders.
_MADE_FROM = ("split.name", "model.name", "dataset.mixture", "dataset.exclude")
_PLACES = ("output_dir", "dataset.data_dir", "model.base")
_MADE_IN = {"record": ("out", "conflict_maniskill"), "prepare": ("data_dir", "data")}  # of what runs may share
_NO_SETTING = ("modality_config", "workers", "share")  # the robot's file lies with the job
_TOLD = ("val_fraction", "seed", "split.instruction")  # keys of a conversion that meta/split.json holds
_BEFORE = {"guidance": 1.0}  # keys of an evaluation that came later: what it acted as without them
# Keys of an evaluation that decide none of its numbers.
NO_RESULT = ("device", "batch_size", "workers", "verify", "tracking", "videos", "share", "report_dir", "checkpoint")


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
            return theirs == ours and task.parts <= {*self.noted.get("parts", task.parts)}
        there, here = resolved(self.run_dir), dataclasses.asdict(task.config)
        if differences(recipe(there), recipe(here)) or _made_from(there) != _made_from(here):
            return False
        return _places(there) == _places(here)

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

    def refusal(self, what: str, own: str = "run_dir=... output_dir=...") -> ToolkitError:
        """It is in the way: of what, and what to do. own: the keys of the folders that are in common."""
        return ToolkitError(
            f"{what} belongs to job {self.job.job_id} ({self.noted['name']}), which is {self.job.state.lower()}. Wait "
            f"for it, cancel it (python -m finetune.jobs cancel {run_name(self.run_dir)}), or give this run folders of "
            f"its own: {own}."
        )


def leave_out(request: Request, queue: Queue, say: Callable[[str], None]) -> None:
    """Remove from the request what is done or busy, saying so; ToolkitError where another job is in the way."""
    jobs = list(_busy_jobs(request, queue))
    same: list[BusyJob] = []
    for task in [task for stage in STAGES for task in request.of_stage(stage) if task.share is None]:
        meeting = [job for job in jobs if job.meets(task)]
        for other in (job for job in meeting if not job.does(task)):
            raise other.refusal(*_what_is_made(task))
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
            made, own = _what_is_made(task)
            raise busy.refusal(f"{made}, which is made in other shares,", own)
        _leave_to(busy, shares[busy.share], say)
        request.tasks.remove(shares[busy.share])


def _what_is_made(task: Task) -> tuple[str, str]:
    """What of a task another job may be at, and the keys of the folders in which that lies."""
    if task.stage == "record":
        return f"the recording of {task.name}", "out=... raw_dir=..."
    if task.stage == "prepare":
        return f"the dataset of {task.name}", "data_dir=... run_dir=... output_dir=..."
    return f"run_dir={task.run_dir}", "run_dir=... output_dir=..."


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
        return (found, "overwrite=true makes it") if _is_converted(task, found) else None
    if task.after:
        return None
    if task.stage == "finetune":
        return (Path(task.config.output_dir), "train.resume=never does it") if is_finished(task.config) else None
    report = Path(task.config.report_folder) / f"{task.config.mode}.json"
    return (report, "without that file it is made") if _is_evaluated(task.config, report) else None


def left_result(task: Task) -> bool:
    """Whether a task that has just ended left its result."""
    if task.stage == "finetune":
        return is_finished(task.config, ended=True)
    return found_result(dataclasses.replace(task, after=[])) is not None


def _is_converted(task: Task, found: Path) -> bool:
    """Whether `found` holds each part that is recorded or asked for. One that would not become what is asked for, as
    its conversion leaves what is there as it is, is refused."""
    config, name = task.config, task.config.split.name
    there = {part for part in parts_of(name) if (found / part / "meta/info.json").is_file()}
    if config.overwrite or not there:
        return False
    remedy = "prepare.overwrite=true converts again, data_dir=FOLDER makes another dataset"
    coming = {other.config.part for other in task.recordings}
    if again := sorted(coming & there):
        raise ToolkitError(
            f"{found / again[0]} is there, and what it was made of is to be recorded now: the fine-tune would see the "
            f"old episodes. {remedy}; without the stages record and prepare it is trained on what is there."
        )
    typed = {key: attrgetter(key)(config) for key in _TOLD if key in task.arguments}
    for part in sorted(there) if typed else ():
        split_file = found / part / "meta" / "split.json"
        told = read_json(split_file) if split_file.is_file() else {}
        for key, now in typed.items():
            if (was := told.get(key.removeprefix("split."), now)) != now:
                raise ToolkitError(f"{found / part} was converted with {key}={was}, not {now}. {remedy}.")
    recorded = {part for part in parts_of(name) if (Path(config.raw_dir) / name / part).is_dir()}
    return not coming and recorded | task.parts <= there


def _made_from(resolved: Mapping[str, Any]) -> dict[str, Any]:
    values = flat(resolved)
    return {name: values.get(name) or None for name in _MADE_FROM}


def _places(resolved: Mapping[str, Any]) -> list[str]:
    values = flat(resolved)
    return [os.path.realpath(CHECKOUT / str(values.get(name))) for name in _PLACES]


def is_finished(config: FinetuneConfig, *, ended: bool = False) -> bool:
    """Whether output_dir holds what this fine-tune would make; a checkpoint of another recipe, split, model, mixture or
    robot is refused. Where its dataset or base has another name, only the training, which compares their content, can
    tell. ended: that training has just ended without an error, so that names and train.resume=never say nothing more.
    """
    folder = Path(config.output_dir)
    settings = folder / "experiment_cfg" / "config.yaml"
    again = config.train.resume == "never" and not ended
    if again or not (folder / RELEASE_MARK).is_file() or not settings.is_file():
        return False
    if is_replaced(Path(config.run_dir), read_json(folder / RELEASE_MARK)):
        return False
    ours = {**recipe(dataclasses.asdict(config)), "modality_config": comparable(modality_configs(config.dataset))}
    robot, made = robot_of(folder, config.dataset.embodiment_tag), read_yaml(settings)
    theirs = {**recipe(made), **({"modality_config": robot} if robot else {}), **_made_from(made)}
    ours |= _made_from(publishable(dataclasses.asdict(config)))
    ours["train.export"], theirs["train.export"] = config.train.export, made["train"].get("export", "last")
    different = differences(theirs, ours)
    if different:
        listed = "\n  ".join(different)
        raise ToolkitError(
            f"output_dir={config.output_dir} holds a finished checkpoint of another run:\n  {listed}\nChoose another "
            "output_dir=... (and run_dir=...), or replace it with train.resume=never."
        )
    same = config.model.base, config.dataset.data_dir, made["model"]["base"], made["dataset"]["data_dir"]
    base, data, base_then, data_then = (Path(place).name for place in same)
    return (ended or (base, data) == (base_then, data_then)) and not gave_up_earlier(folder, config.train.patience)


def _is_evaluated(config: Any, report: Path) -> bool:
    """Whether a report is of this checkpoint, as it is now, and of an evaluation with the same settings."""
    checkpoint = Path(config.checkpoint)
    if not report.is_file() or not (checkpoint / RELEASE_MARK).is_file():
        return False
    said = read_json(report)
    info = said.get("info", said)
    ours, theirs = _deciding(dataclasses.asdict(config)), _deciding({**_BEFORE, **info.get("config", {})})
    if ours != theirs or not _is_of_dataset(config, info.get("dataset_fingerprint")):
        return False
    with suppress(OSError, ToolkitError):  # of one that lost its weights
        return bool(info.get("checkpoint_fingerprint") == fingerprint(checkpoint))
    return False


def _is_of_dataset(config: Any, evaluated: str | None) -> bool:
    """Whether an open-loop report is of the dataset that is there now, as far as that says what it is."""
    if evaluated is None or config.mode != "open_loop":
        return True
    folder = Path(config.data_dir) / config.split.name / (config.own_dataset or "train")
    split_file = folder / "meta" / "split.json"
    return not split_file.is_file() or read_json(split_file).get("fingerprint", evaluated) == evaluated


def _deciding(config: dict[str, Any]) -> dict[str, Any]:
    """What of an evaluation decides its numbers, folders as the jobs see them."""
    kept = {name: value for name, value in config.items() if name not in NO_RESULT}
    for folder in {"data_dir", "raw_dir"} & kept.keys():
        kept[folder] = os.path.realpath(CHECKOUT / kept[folder])
    return kept

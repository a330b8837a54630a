"""From the launcher's command line to the jobs it asks for: points of a sweep, stages, and who waits for whom."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune.checkout import CHECKOUT, CONFIG_DIR
from finetune.config.checks import is_hub_id
from finetune.config.compose import default_choices
from finetune.config.keys import Key, keys_of
from finetune.config.load import as_yaml, load
from finetune.config.no_credentials import refuse_secret_arguments
from finetune.config.overrides import known_key
from finetune.config.schema import FinetuneConfig, LaunchConfig
from finetune.config.scripts import SCRIPTS
from finetune.slurm.runs import job_folder
from finetune.slurm.snapshot import ROBOT_FILE
from finetune.slurm.sweep import Point, expand, point_names
from gr00t.errors import ToolkitError, did_you_mean

STAGES = ("prepare", "finetune", "evaluate")
_HELP = ("--help", "-h")
_OWN_OF_A_POINT = ("run_dir", "output_dir", "tracking.run_name")
_DERIVED = (*_OWN_OF_A_POINT, "checkpoint", "data_dir", "embodiment_tag", "report_dir")


@dataclass(eq=False)
class Task:
    """One job, or one element of an array: a stage, its overrides, and the fine-tune that it belongs to.

    overrides: all that the stage's script is given; config: what they resolve to; run: the resolved fine-tune, whose
    run_dir keeps the records and whose cluster.* the job asks for; after: the tasks that must succeed first; label: the
    stage, numbered where a run has several of it.
    """

    stage: str
    overrides: list[str]
    config: Any
    run: FinetuneConfig
    after: list[Task] = field(default_factory=list)
    label: str = ""

    @property
    def run_dir(self) -> Path:
        return Path(os.path.abspath(self.run.run_dir))

    @property
    def robot(self) -> Any:
        """The part of its configuration with the robot's file; None where the checkout's own is used."""
        section = self.config.dataset if self.stage == "finetune" else self.config
        return section if getattr(section, "modality_config", None) is not None else None

    @property
    def robot_file(self) -> Path:
        """Where the job finds the robot's file as it was at submission."""
        return job_folder(self.run_dir, self.label) / ROBOT_FILE

    @property
    def name(self) -> str:
        """What users call it: its run folder's name, with the stage where it is no fine-tune."""
        return self.run_dir.name if self.stage == "finetune" else f"{self.run_dir.name}-{self.label}"


@dataclass
class Request:
    """All that one call of the launcher asks for, in an order in which each task follows those it waits for."""

    launch: LaunchConfig
    tasks: list[Task]
    notes: list[str] = field(default_factory=list)

    def of_stage(self, stage: str) -> list[Task]:
        return [task for task in self.tasks if task.stage == stage]


def read(argv: Sequence[str], config_dir: Path = CONFIG_DIR) -> Request:
    """The request that `argv` describes, composed but not yet compared with this machine or SLURM.

    `--help` and `--cfg` print and exit, as for the other scripts. Bad input raises ToolkitError.
    """
    refuse_secret_arguments(argv)
    if any(argument in _HELP for argument in argv):
        load("launch", ["--help"], config_dir)
    arguments = [argument for argument in argv if argument != "--cfg"]
    own = keys_of(LaunchConfig)
    mine = [argument for argument in arguments if argument.partition("=")[0] in own]
    local = [argument for argument in arguments if argument.startswith("local=")]
    launch = load("launch", [*mine, *local], config_dir, check_here=False)
    request = _Composer(launch, config_dir).compose([argument for argument in arguments if argument not in mine])
    if "--cfg" in argv:
        print("\n".join(f"# {task.name}\n{as_yaml(task.config)}" for task in request.tasks), end="")
        raise SystemExit(0)
    return request


def stages_of(text: str) -> list[str]:
    """'prepare,finetune' as a list, in the order of STAGES whatever the order typed."""
    wanted = [stage.strip() for stage in text.strip("[]").split(",")]
    for stage in wanted:
        if stage not in STAGES:
            raise ToolkitError(f'stages={text}: there is no stage "{stage}".{did_you_mean(stage, STAGES)}')
    return [stage for stage in STAGES if stage in wanted]


class _Composer:
    """Makes the tasks of a request, point by point."""

    def __init__(self, launch: LaunchConfig, config_dir: Path) -> None:
        self.launch, self.config_dir, self.stages = launch, config_dir, stages_of(launch.stages)
        self.groups = {stage: [*default_choices(stage, config_dir), "local"] for stage in STAGES}
        self.keys: dict[str, Mapping[str, Key]] = {stage: keys_of(SCRIPTS[stage].config) for stage in STAGES}

    def compose(self, arguments: Sequence[str]) -> Request:
        request = Request(self.launch, [])
        points = self._expand(arguments)
        runs = self._runs(points, request.notes)
        made: dict[tuple[str, ...], Task] = {}
        for point, (overrides, run) in zip(points, runs, strict=True):
            before: Task | None = None
            for stage in self.stages:
                own = overrides if stage == "finetune" else self._stage_overrides(stage, point, run)
                config = run if stage == "finetune" else self._load(stage, own)
                own = self._anchored(stage, own, config)
                task = made.setdefault((stage, *sorted(own)), Task(stage, own, config, run))
                if before is not None and before not in task.after:
                    task.after.append(before)
                before = task
        request.tasks = sorted(made.values(), key=lambda task: STAGES.index(task.stage))
        _refuse_shared_folders(request)
        _set_labels(request)
        _carry_robots(request)
        return request

    def _expand(self, arguments: Sequence[str]) -> list[Point]:
        """The points; a name that no script of these stages has is refused."""
        used = {*self.stages, "finetune"}
        groups = sorted({group for stage in used for group in self.groups[stage]})
        keys = {name: key for stage in STAGES if stage in used for name, key in self.keys[stage].items()}
        for argument in arguments:
            name = argument.partition("=")[0]
            owners = [stage for stage in STAGES if self._knows(stage, name)]
            if owners and not used.intersection(owners):
                owner = owners[0]
                stages = ",".join(stage for stage in STAGES if stage in {*self.stages, owner})
                raise ToolkitError(
                    f"{name} belongs to the stage {owner}, and stages={self.launch.stages} leaves that out. Leave "
                    f"{name} out too, or write stages={stages}."
                )
            if name and not owners and not argument.startswith("-") and "=" in argument:
                known_key(name.lstrip("+~"), groups, {**keys, **keys_of(LaunchConfig)})
        return expand(arguments, groups, keys)

    def _knows(self, stage: str, name: str) -> bool:
        return name in self.groups[stage] or name in self.keys[stage]

    def _load(self, stage: str, overrides: Sequence[str]) -> Any:
        return load(stage, overrides, self.config_dir, check_here=False)

    def _runs(self, points: Sequence[Point], notes: list[str]) -> list[tuple[list[str], FinetuneConfig]]:
        """The fine-tune of each point, with folders of its own where the sweep would make several write to one."""
        overrides = [self._finetune_overrides(point) for point in points]
        runs = [self._load("finetune", own) for own in overrides]
        swept = [name for name in points[0].swept if self._knows("finetune", name) or name == "data_dir"]
        marks = point_names(points, [name for name in swept if name != "split"] or swept)
        different = len({tuple(own) for own in overrides})
        for name in _OWN_OF_A_POINT if different > 1 else ():
            values = [_value(run, name) for run in runs]
            if name in points[0].arguments or len(set(values)) == different or None in values:
                continue
            for own, value, mark in zip(overrides, values, marks, strict=True):
                own.append(f"{name}={value}-{mark}")
            notes.append(f"{name} of each point ends in its swept values: {overrides[0][-1].partition('=')[2]}, ...")
        return (
            [(own, self._load("finetune", own)) for own in overrides]
            if notes
            else list(zip(overrides, runs, strict=True))
        )

    def _finetune_overrides(self, point: Point) -> list[str]:
        own = [f"{name}={raw}" for name, raw in point.arguments.items() if self._knows("finetune", name)]
        for name in ("data_dir", "modality_config"):
            typed, meant = point.arguments.get(f"dataset.{name}"), point.arguments.get(name)
            if typed is not None and meant is not None and typed != meant:
                raise ToolkitError(
                    f"dataset.{name}={typed} and {name}={meant} say two things of one dataset. Keep one of them."
                )
            if typed is None and meant is not None:
                own.append(f"dataset.{name}={meant}")
        return own

    def _stage_overrides(self, stage: str, point: Point, run: FinetuneConfig) -> list[str]:
        """What was typed for that stage, and what it takes over from the fine-tune: dataset, checkpoint, robot."""
        own = {name: raw for name, raw in point.arguments.items() if self._knows(stage, name)}
        own["data_dir"] = run.dataset.data_dir
        if stage == "prepare" and run.dataset.modality_config is not None:
            own["modality_config"] = run.dataset.modality_config
        if stage == "evaluate":
            own.setdefault("checkpoint", run.output_dir)
            own.setdefault("embodiment_tag", run.dataset.embodiment_tag)
            own.setdefault("report_dir", self._report_dir(own, point, run))
        return [f"{name}={raw}" for name, raw in own.items()]

    def _anchored(self, stage: str, overrides: Sequence[str], config: Any) -> list[str]:
        """The overrides, relative folders made absolute where they do not lie in the checkout, in which a job works."""
        if Path.cwd() == CHECKOUT:
            return list(overrides)
        own = dict(override.partition("=")[::2] for override in overrides)
        for name, key in self.keys[stage].items():
            value = _value(config, name) if key.bounds.get("folder") else None
            if value is not None and not is_hub_id(value):
                own[name] = os.path.abspath(value)
        return [f"{name}={raw}" for name, raw in own.items()]

    def _report_dir(self, own: Mapping[str, str], point: Point, run: FinetuneConfig) -> str:
        """The script's own default, under the run folder's name and with what is swept of the evaluation itself."""
        config = self._load("evaluate", [f"{name}={raw}" for name, raw in own.items()])
        run_name = Path(os.path.abspath(run.run_dir)).name
        parts = [run_name if part == config.split.name else part for part in config.report_folder.parts]
        swept = [name for name in point.swept if name in own and name != "part" and not self._knows("finetune", name)]
        return "-".join([str(Path(*parts)), *point_names([point], swept)] if swept else [str(Path(*parts))])


def _refuse_shared_folders(request: Request) -> None:
    written = (("prepare", ["data_dir"]), ("finetune", ["run_dir", "output_dir"]), ("evaluate", ["report_dir"]))
    for stage, names in written:
        for name in names:
            _refuse_shared(name, request.of_stage(stage))


def _refuse_shared(name: str, tasks: Sequence[Task]) -> None:
    seen: dict[str, Task] = {}
    for task in tasks:
        folder = os.path.realpath(_value(task.config, name))
        folder = os.path.join(folder, task.config.split.name) if name == "data_dir" else folder
        other = seen.setdefault(folder, task)
        if other is not task:
            raise ToolkitError(
                f"Two points of the sweep ({_difference(other, task)}) have the same {name}, "
                f"{_value(task.config, name)}. Put what differs into it, as in {name}="
                "'.../${split.name}_${train.seed}', or leave it out where each point then gets its own (run_dir, "
                "output_dir)."
            )


def _set_labels(request: Request) -> None:
    count: dict[tuple[str, Path], int] = {}
    for task in request.tasks:
        number = count[task.stage, task.run_dir] = count.get((task.stage, task.run_dir), 0) + 1
        task.label = task.stage if number == 1 else f"{task.stage}-{number}"


def _carry_robots(request: Request) -> None:
    """A job reads the robot's file beside its records, as it is now: an edit after submission changes no job."""
    for task in request.tasks:
        if task.robot is not None:
            key = "dataset.modality_config=" if task.stage == "finetune" else "modality_config="
            kept = [override for override in task.overrides if not override.startswith(key)]
            task.overrides = [*kept, f"{key}{task.robot_file}"]


def _value(config: Any, name: str) -> Any:
    for part in name.split("."):
        config = getattr(config, part)
    return config


def _difference(one: Task, other: Task) -> str:
    """What was typed for two tasks and differs: 'train.seed=1 and train.seed=2'."""
    own = [[a for a in task.overrides if a.partition("=")[0] not in _DERIVED] for task in (one, other)]
    sides = [[a for a in own[side] if a not in own[1 - side]] for side in (0, 1)]
    return " and ".join(" ".join(side) for side in sides)

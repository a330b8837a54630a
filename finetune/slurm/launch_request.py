"""From the launcher's command line to the jobs it asks for: stages of each point of a sweep, and who waits for whom."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

from finetune.recipe import FinetuneConfig
from finetune.recipe.train_config import DatasetConfig
from finetune.slurm.attempt_record import job_folder, run_name
from finetune.slurm.cluster_queries import notes_on_variables, sbatch_variables
from finetune.slurm.render import DIVIDED, STAGES, asks_for
from finetune.slurm.sweep import Point, expand, point_names
from gr00t.errors import ToolkitError, did_you_mean
from toolkit.code_files import ROBOT_FILE
from toolkit.composition import (
    COMMANDS,
    default_choices,
    unchanged_files,
)
from toolkit.configuration import as_yaml, load
from toolkit.credentials import refuse_secret_arguments
from toolkit.declaration import Key, key, keys_of
from toolkit.installation import CHECKOUT, CONFIG_DIR
from toolkit.shared_keys import TRAIN_CONFLICT, is_hub_id, is_ready_robot

_OWN_OF_A_POINT = ("run_dir", "output_dir", "tracking.run_name")
_DERIVED = (*_OWN_OF_A_POINT, "checkpoint", "data_dir", "embodiment_tag", "report_dir", "out", "workers")


@dataclass(kw_only=True)
class LaunchConfig:
    """Submit fine-tunes to SLURM: one job, an array of the points of a sweep, or a chain of stages for each of them.

    Takes every key of launch_finetune_local.py (cluster.* is what a job asks for) and, with their stages, those of
    simulation.record, prepare_conflict_data.py and evaluate_conflict.py; see their --help. A key goes to all stages
    that have it, STAGE.KEY to one; of those that both record and evaluate have, as in episodes=500
    evaluate.episodes=100, the evaluation is given evaluate.KEY only, but part. A comma list is a sweep: split=A,B
    train.seed=1,2 is four runs, each with folders of its own.
    """

    stages: str = key("what is done for each point, in this order: record, prepare, finetune, evaluate", "finetune")
    max_parallel: int | None = key("fine-tunes that run at once; null for no limit", None, at_least=1)
    dry_run: bool = key("print each job script and resolved configuration, submit and write nothing", False)
    runs_dir: str = key("folder of the launcher's own records, and where finetune.jobs looks", "runs", folder=True)


@dataclass(eq=False)
class Task:
    """One job, or one element of an array: a stage, its overrides, and the fine-tune that it belongs to.

    arguments: all that the stage's script is given; config: what they resolve to; run: the resolved fine-tune, whose
    run_dir keeps the records and whose cluster.* the job asks for; after: the tasks that must succeed first, of one
    whose work is divided its shares; parts: of a conversion, those that must be made at least; label: the stage, with
    part and share, numbered where a run has several of it; job_id: as SLURM's commands take it, once there is a job.
    """

    stage: str
    arguments: dict[str, str]
    config: Any
    run: FinetuneConfig
    after: list[Task] = field(default_factory=list)
    parts: set[str] = field(default_factory=lambda: {"train"})
    label: str = ""
    job_id: str = ""

    @property
    def overrides(self) -> list[str]:
        """Its arguments as the job's script takes them. The robot's file is the one beside the job's records: a later
        edit changes no job."""
        name = "dataset.modality_config" if self.stage == "finetune" else "modality_config"
        return _typed({**self.arguments, **({} if self.robot is None else {name: str(self.robot_file)})})

    @property
    def typed(self) -> list[str]:
        """Its arguments as a command line takes them."""
        return _typed(self.arguments)

    @property
    def share(self) -> str | None:
        """Which share of its stage's work it does, as "2/8"; None for all of it, or for what joins the shares."""
        return self.arguments.get("share")

    @property
    def shares(self) -> list[Task]:
        """Those whose shares it joins."""
        return [other for other in self.after if other.stage == self.stage]

    @property
    def recordings(self) -> list[Task]:
        """Those that a conversion waits for."""
        waited = [other for task in (self, *self.shares) for other in task.after if other.stage == "record"]
        return list(dict.fromkeys(waited))

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
        """What users call it: its run's name, with the stage where it is no fine-tune."""
        return self.run_name if self.stage == "finetune" else f"{self.run_name}-{self.label}"

    @property
    def run_name(self) -> str:
        return run_name(self.run_dir)


@dataclass
class Request:
    """All that one call of the launcher asks for, in an order in which each task follows those it waits for."""

    launch: LaunchConfig
    tasks: list[Task]
    notes: list[str] = field(default_factory=list)

    def of_stage(self, stage: str) -> list[Task]:
        return [task for task in self.tasks if task.stage == stage]


def read(argv: Sequence[str]) -> Request:
    """The request that `argv` describes, composed but not yet compared with this machine or SLURM.

    `--help` and `--cfg` print and exit, as for the other scripts. Bad input raises ToolkitError.
    """
    refuse_secret_arguments(argv)
    mine = [argument for argument in argv if argument.partition("=")[0] in (*keys_of(LaunchConfig), "--help", "-h")]
    launch = load(
        "launch", [*mine, *(argument for argument in argv if argument.startswith("local="))], check_here=False
    )
    with unchanged_files():
        request = _Composer(launch, [argument for argument in argv if argument not in (*mine, "--cfg")]).compose()
    if "--cfg" in argv:
        print("\n".join(f"# {task.name}\n{as_yaml(task.config)}" for task in request.tasks), end="")
        raise SystemExit(0)
    return request


def _typed(arguments: Mapping[str, str]) -> list[str]:
    return [f"{name}={raw}" for name, raw in arguments.items()]


def _load(stage: str, arguments: Mapping[str, str]) -> Any:
    return load(stage, _typed(arguments), check_here=False)


class _Composer:
    """Makes the tasks of a request, point by point."""

    def __init__(self, launch: LaunchConfig, arguments: Sequence[str]) -> None:
        self.launch = launch
        wanted = [stage.strip() for stage in launch.stages.strip("[]").split(",")]
        for stage in wanted:
            if stage not in STAGES:
                raise ToolkitError(f'stages={launch.stages}: there is no stage "{stage}".{did_you_mean(stage, STAGES)}')
        self.stages = [stage for stage in STAGES if stage in wanted]
        if any(argument.partition("=")[0].rpartition(".")[2] == "share" for argument in arguments):
            raise ToolkitError("share=... is what each job is given. Say how many: cluster.stages.record.shares=8.")
        self.groups = {stage: [*default_choices(stage, CONFIG_DIR), "local"] for stage in STAGES}
        self.keys: dict[str, Mapping[str, Key]] = {stage: keys_of(COMMANDS[stage].config) for stage in STAGES}
        used = [stage for stage in STAGES if stage in {*self.stages, "finetune"}]
        self._refuse_other_stages(arguments, used)
        groups = sorted({group for stage in used for group in self.groups[stage]})
        keys = {name: key for stage in used for name, key in self.keys[stage].items()}
        for typed in (argument.partition("=")[0] for argument in arguments):
            stage, _, name = typed.partition(".")
            if stage in STAGES and name in self.keys[stage]:
                keys[typed] = self.keys[stage][name]
        self.points, self.swept = expand(arguments, groups, {**keys, **keys_of(LaunchConfig)})

    def compose(self) -> Request:
        request = Request(self.launch, [], notes_on_variables(self.points[0]))
        runs = self._runs(request.notes)
        made: dict[Any, Task] = {}
        for point, (arguments, run) in zip(self.points, runs, strict=True):
            before: list[Task] = []
            for stage in self.stages:
                here = []
                for own in [arguments] if stage == "finetune" else self._stage_arguments(stage, point, run):
                    config = run if stage == "finetune" else _load(stage, own)
                    own = self._anchored(stage, own, config)
                    task = made.setdefault((stage, *sorted(own.items())), Task(stage, own, config, run))
                    task.after += [other for other in before if other not in task.after]
                    here.append(task)
                    if stage == "prepare":
                        task.parts |= {other.config.part for other in before}
                        task.parts |= {TRAIN_CONFLICT} if run.dataset.conflict_share else set()
                before = here
        refuse_shared_folders([*made.values()])
        tasks = [each for task in made.values() for each in [*_divide(task), task]]
        request.tasks = sorted(tasks, key=lambda task: STAGES.index(task.stage))
        label_tasks(request.tasks)
        return request

    def _knows(self, stage: str, name: str) -> bool:
        owner, _, own = name.partition(".")
        if owner in STAGES:
            return owner == stage and own in self.keys[stage]
        return name in self.groups[stage] or name in self.keys[stage]

    def _refuse_other_stages(self, arguments: Sequence[str], used: Collection[str]) -> None:
        for argument in arguments:
            name = argument.partition("=")[0]
            owners = [stage for stage in STAGES if self._knows(stage, name)]
            if owners and not set(used).intersection(owners):
                owner = owners[0] if owners == ["record"] else next(stage for stage in owners if stage != "record")
                stages = ",".join(stage for stage in STAGES if stage in {*self.stages, owner})
                raise ToolkitError(
                    f"{name} belongs to the stage {owner}, and stages={self.launch.stages} leaves that out. Leave "
                    f"{name} out too, or write stages={stages}."
                )

    def _runs(self, notes: list[str]) -> list[tuple[dict[str, str], FinetuneConfig]]:
        """The fine-tune of each point, with folders of its own where the sweep would make several write to one."""
        typed = [self._finetune_arguments(point) for point in self.points]
        runs = [_load("finetune", own) for own in typed]
        swept = [name for name in self.swept if self._knows("finetune", name) or name == "data_dir"]
        marks = point_names(self.points, [name for name in swept if name != "split"] or swept)
        different = len({tuple(own.items()) for own in typed})
        for name in _OWN_OF_A_POINT if different > 1 else ():
            values = [attrgetter(name)(run) for run in runs]
            if name in typed[0] or len(set(values)) == different or None in values:
                continue
            for own, value, mark in zip(typed, values, marks, strict=True):
                own[name] = f"{value}-{mark}"
            notes.append(f"{name} of each point ends in its swept values: {typed[0][name]}, ...")
        if notes:
            runs = [_load("finetune", own) for own in typed]
        return list(zip(typed, runs, strict=True))

    def _finetune_arguments(self, point: Point) -> dict[str, str]:
        own = {name: raw for name, raw in point.items() if self._knows("finetune", name)}
        for name, raw in sbatch_variables(point).values():
            own[name] = raw
        for name in ("data_dir", "modality_config"):
            if name in point and own.setdefault(f"dataset.{name}", point[name]) != point[name]:
                raise ToolkitError(
                    f"dataset.{name}={own[f'dataset.{name}']} and {name}={point[name]} say two things of one dataset. "
                    "Keep one of them."
                )
        return own

    def _stage_arguments(self, stage: str, point: Point, run: FinetuneConfig) -> list[dict[str, str]]:
        """For each job of that stage (not share) what was typed, and what it takes over from the fine-tune."""
        own = {name: raw for name, raw in point.items() if name.partition(".")[0] not in STAGES}
        own = {name: raw for name, raw in own.items() if self._knows(stage, name)}
        if stage == "evaluate" and "record" in self.stages:  # a key that both have is the recording's
            of_both = {*self.keys["record"]} - {"part"}
            own = {name: raw for name, raw in own.items() if name not in of_both or name.startswith("split")}
        own |= {n.removeprefix(f"{stage}."): raw for n, raw in point.items() if n.startswith(f"{stage}.")}
        if stage == "record":
            return self._record_arguments(own, point, run)
        if "record" in self.stages and "out" in point and "raw_dir" in self.keys[stage]:
            own.setdefault("raw_dir", point["out"])
        own["data_dir"] = run.dataset.data_dir
        if stage == "prepare" and run.dataset.modality_config is not None:
            own["modality_config"] = run.dataset.modality_config
        if stage == "evaluate":
            own.setdefault("checkpoint", run.output_dir)
            own.setdefault("embodiment_tag", run.dataset.embodiment_tag)
            if "report_dir" not in own:
                # the script's own default, under the run's name and with what is swept of the evaluation itself
                config = _load(stage, own)
                named = f"/{run_name(Path(os.path.abspath(run.run_dir)))}/"
                folder = f"/{config.report_folder}/".replace(f"/{config.split.name}/", named)[1:-1]
                swept = [n for n in self.swept if self._knows(stage, n) and not self._knows("finetune", n)]
                swept = [n for n in swept if n.rpartition(".")[2] != "part"]
                own["report_dir"] = "-".join([folder, *(point_names([point], swept) if swept else [])])
        return [own]

    def _record_arguments(self, own: dict[str, str], point: Point, run: FinetuneConfig) -> list[dict[str, str]]:
        """Those of each part's recording, which goes where the conversion looks for it."""
        place = own.setdefault("out", point["raw_dir"]) if "raw_dir" in point else own.get("out")
        if place is None and "prepare" in self.stages:
            own["out"] = place = str(_load("prepare", self._stage_arguments("prepare", point, run)[0]).raw_dir)
        if place != point.get("raw_dir", place):
            raise ToolkitError(
                f"out={place} and raw_dir={point['raw_dir']} say two things of one folder of recordings. Keep one of "
                "them."
            )
        own.setdefault("workers", str(asks_for(run.cluster, "record").cpus_per_task))
        if "part" in point and "record.part" not in point and "evaluate" in self.stages:
            del own["part"]  # which is meant for the evaluation
        parts = [own["part"]] if "part" in own else [*_load("record", own).parts]
        if run.dataset.conflict_share and TRAIN_CONFLICT not in parts:
            parts.append(TRAIN_CONFLICT)
        return [{**own, "part": part} for part in parts]

    def _anchored(self, stage: str, arguments: Mapping[str, str], config: Any) -> dict[str, str]:
        """The arguments, with folders as they are known here: absolute where variables and ~ have made them so, or
        where a job, which works in the checkout, would look elsewhere. Those on the job's node are left to it."""
        folders = {name: key for name, key in self.keys[stage].items() if key.bounds.get("folder")}
        values = {name: attrgetter(name)(config) for name in folders}
        values = {n: v for n, v in values.items() if v and (os.path.isabs(v) or Path.cwd() != CHECKOUT)}
        scratch = stage == "finetune" and config.cluster.scratch is not None
        if "$" in values.get("cache_dir", "") or (scratch and "cache_dir" not in arguments):
            values.pop("cache_dir", None)
        values = {n: v for n, v in values.items() if not (folders[n].bounds.get("file") and v and is_ready_robot(v))}
        absolute = {name: os.path.abspath(v) for name, v in values.items() if name != "model.base" or not is_hub_id(v)}
        return {**arguments, **absolute, **(self._anchored_entries(config.dataset) if stage == "finetune" else {})}

    def _anchored_entries(self, dataset: DatasetConfig) -> dict[str, str]:
        """The same of keys that list folders with something behind each."""
        found = {"dataset.mixture": dataset.mixture, "dataset.exclude": dataset.exclude}
        kept = {}
        for name, entries in found.items() if Path.cwd() != CHECKOUT else ():
            known = [e if e[:1] in "$~" or os.sep not in e else os.path.abspath(e) for e in entries]
            if known != entries:
                kept[name] = f"[{','.join(json.dumps(each) for each in known)}]"
        return kept


def label_tasks(tasks: Sequence[Task]) -> None:
    """Give each a label of its own in its run folder, where its records lie under it."""
    count: Counter[tuple[str, Path]] = Counter()
    for task in tasks:
        part = f"-{task.config.part}" if task.stage == "record" else ""
        label = f"{task.stage}{part}" + (f"-{task.share.replace('/', 'of')}" if task.share else "")
        count[label, task.run_dir] += 1
        number = count[label, task.run_dir]
        task.label = label if number == 1 else f"{label}-{number}"


def _divide(task: Task) -> list[Task]:
    """The shares of a task, which then only joins them; none where it does all itself."""
    count = getattr(task.run.cluster.stages, task.stage).shares if task.stage in DIVIDED else 1
    numbers = [f"{number}/{count}" for number in range(1, count + 1)] if count > 1 else []
    shares = []
    for share in numbers:
        own, config = {**task.arguments, "share": share}, replace(task.config, share=share)
        shares.append(replace(task, arguments=own, config=config, after=[*task.after]))
    task.after = shares or task.after
    return shares


def refuse_shared_folders(tasks: Sequence[Task]) -> None:
    """Refuse two tasks of one stage that would write to the same folder."""
    written = (("record", "out"), ("prepare", "data_dir"), ("finetune", "run_dir"), ("finetune", "output_dir"))
    for stage, name in (*written, ("evaluate", "report_dir")):
        seen: dict[Path, Task] = {}
        for task in (task for task in tasks if task.stage == stage):
            value = getattr(task.config, name)
            of_split = (task.config.split.name, getattr(task.config, "part", "")) if stage in DIVIDED else ()
            folder = Path(os.path.realpath(value), *of_split)
            other = seen.setdefault(folder, task)
            if other is task:
                continue
            one, two = ([a for a in t.typed if a.partition("=")[0] not in _DERIVED] for t in (other, task))
            sides = " and ".join(" ".join(a for a in x if a not in y) for x, y in ((one, two), (two, one)))
            raise ToolkitError(
                f"Two points of the sweep ({sides}) have the same {name}, {value}. Put what differs into it, as in "
                f"{name}='.../${{split.name}}_${{train.seed}}', or leave it out where each point then gets its own "
                "(run_dir, output_dir)."
            )

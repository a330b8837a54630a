"""The points of a study: the product of its file's axes, and the launcher's tasks that lead to each."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.slurm.done_and_busy import NO_RESULT
from finetune.slurm.launch_request import Request, Task, label_tasks, read, refuse_shared_folders
from finetune.slurm.render import STAGES
from finetune.slurm.sweep import point_names
from gr00t.errors import ToolkitError, did_you_mean
from gr00t.file_reading import read_json
from simulation.report.closed_loop_page import typed
from toolkit.composition import COMMANDS, default_choices, read_yaml, unchanged_files
from toolkit.declaration import flat, keys_of
from toolkit.installation import CONFIG_DIR

TRAINING_SEED = "train.seed"  # the axis over which rates are taken together
NUMBERS, PAGE = "study.json", "study.html"
_SECTIONS = ("meaning", "axes", "settings")
_OF_ALL = {"stages": ",".join(STAGES), "mode": "closed_loop"}
# Where what is made lies, and how many of the stages decide it: points that these do alike share it.
_FOLDERS = {"raw_dir": ("recordings", 2), "data_dir": ("data", 2), "cache_dir": ("cache", 2), "run_dir": ("runs", 3)}
_FOLDERS |= {"output_dir": ("checkpoints", 3), "report_dir": ("reports", 4)}
_GIVEN = ("raw_dir", "data_dir")  # which a file may name, where data are there already
_OURS = (*_OF_ALL, *({*_FOLDERS} - {*_GIVEN}), "out", "checkpoint", "runs_dir")  # which the study sets
# Keys of a fine-tune that change no loss, but which weights come out.
_CHOOSE = ("train.export", "train.patience", "train.eval_steps", "train.eval_episodes")


@dataclass(frozen=True)
class Point:
    """values: of each axis, as a command line takes them; evaluation: the task that all others of the point lead to."""

    values: dict[str, str]
    evaluation: Task

    @property
    def condition(self) -> tuple[str, ...]:
        """Its values but the seed of training."""
        return tuple(value for axis, value in self.values.items() if axis != TRAINING_SEED)


@dataclass(frozen=True)
class Study:
    """folder: of everything; request: the tasks of all points, each once and behind those that it waits for."""

    name: str
    meaning: str
    axes: dict[str, list[str]]
    settings: dict[str, str]
    folder: Path
    points: list[Point]
    request: Request

    def shares_weights(self, axis: str) -> bool:
        """Whether points that differ in this axis alone evaluate the same checkpoint."""
        return not any(_knows(stage, axis) for stage in STAGES[:3])


def read_study(name: str, out: Path, more: Sequence[str] = ()) -> Study:
    """The study of a file in configs/study, or of a path; `more`: arguments for every command.

    Raises ToolkitError for what a file may not hold, for keys that no command has, and where `out` holds the study with
    other settings.
    """
    path = Path(name) if name.endswith(".yaml") else CONFIG_DIR / "study" / f"{name}.yaml"
    if not path.is_file():
        known = [file.stem for file in (CONFIG_DIR / "study").glob("*.yaml")]
        raise ToolkitError(f"There is no study {name}.{did_you_mean(name, known)} Or give the path of your FILE.yaml.")
    content = read_yaml(path)
    axes, settings = _checked(content, path)
    folder = out / path.stem
    _refuse_other_settings(folder / NUMBERS, settings)
    chosen = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    requests = []
    with unchanged_files():
        for values, folders in zip(chosen, _folders(folder, chosen), strict=True):
            given = {**_OF_ALL, **folders, **settings, **values, "runs_dir": f"{folder}/runs"}
            try:
                requests.append(read([*(f"{name}={value}" for name, value in given.items()), *more]))
            except ToolkitError as error:
                raise ToolkitError(f"{path}: {error}") from None
    request, evaluations = _merged(requests)
    points = [Point(values, task) for values, task in zip(chosen, evaluations, strict=True)]
    return Study(path.stem, str(content.get("meaning", "")), axes, settings, folder, points, request)


def _checked(content: Mapping[str, Any], path: Path) -> tuple[dict[str, list[str]], dict[str, str]]:
    """The axes and the settings of a file."""
    for name in content:
        if name not in _SECTIONS:
            raise ToolkitError(f'{path}: there is no "{name}" in a study.{did_you_mean(name, _SECTIONS)}')
    axes, settings = content.get("axes"), content.get("settings") or {}
    if not axes or not isinstance(axes, dict) or not isinstance(settings, dict):
        raise ToolkitError(
            f"{path}: axes and settings hold lines of KEY: VALUE, axes one at least: train.seed: [0, 1]."
        )
    axes = flat(axes)
    for name, values in axes.items():
        plain = isinstance(values, list) and not any(isinstance(value, list | dict) for value in values)
        axes[name] = texts = [typed(value) for value in values] if plain else []
        if not texts or len({*values}) < len(texts) or any("," in text for text in texts):
            raise ToolkitError(
                f"{path}: axes: {name} takes a list of different values, as [0, 1], none of them a list itself."
            )
    given = {name: typed(value) for name, value in flat(settings).items()}
    _refuse_said_twice(path, [*axes], [*given])
    several = [axis for axis in axes if any(_knows(stage, axis) for stage in STAGES[:2])]
    for name in (name for name in _GIVEN if several and name in given):
        raise ToolkitError(f"{path}: settings: {name} is one folder, and {several[0]} needs several. Leave it out.")
    return axes, given


def _refuse_said_twice(path: Path, axes: Sequence[str], settings: Sequence[str]) -> None:
    """Refuse what the study itself says, and two names by which one key of a stage has two values."""
    for name in (*axes, *settings):
        stage, own = _parted(name)
        if own in _OURS or (stage and own in _GIVEN) or (name in axes and (name in settings or own in _GIVEN)):
            where = "axes" if name in axes else "settings"
            raise ToolkitError(f"{path}: {where}: {name} is an axis, or set by the study. Leave it out.")
    names = [*axes, *settings]
    for one, other in itertools.combinations(names, 2):
        if _parted(one)[1] == _parted(other)[1] and {*_acts_on(one)} & {*_acts_on(other)}:
            raise ToolkitError(f"{path}: {one} and {other} are one key of one command. Keep one of them.")


def _parted(name: str) -> tuple[str, str]:
    """The stage that a name is for, "" for all, and the key: evaluate.guidance, guidance."""
    owner, _, own = name.partition(".")
    return (owner, own) if owner in STAGES and own else ("", name)


def _acts_on(name: str) -> list[str]:
    """The stages that take a name's value; what recordings and evaluations both have is the recordings'."""
    stage, own = _parted(name)
    known = [stage] if stage else [stage for stage in STAGES if _knows(stage, own)]
    return [stage for stage in known if not ("record" in known and stage == "evaluate")]


def _decides(name: str) -> bool:
    """Whether a setting decides numbers of a point."""
    own = _parted(name)[1]
    key = keys_of(COMMANDS["finetune"].config).get(own)
    changes_no_loss = key is not None and not key.bounds.get("identity", True)
    return own in _CHOOSE or not (own.partition(".")[0] in (*NO_RESULT, "cluster") or changes_no_loss)


def _refuse_other_settings(numbers: Path, settings: Mapping[str, str]) -> None:
    before = read_json(numbers).get("settings", {}) if numbers.is_file() else settings
    names = [name for name in {**before, **settings} if _decides(name)]
    changed = [name for name in names if before.get(name) != settings.get(name)]
    if changed:
        said = ", ".join(f"{name}={before.get(name)} (now {settings.get(name)})" for name in changed)
        raise ToolkitError(
            f"{numbers.parent}: holds this study with {said}, and its points would not compare. Choose another "
            f"out=FOLDER, or remove {numbers} if they do."
        )


def _folders(folder: Path, chosen: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """The folders of each point."""
    found: list[dict[str, str]] = [{} for _ in chosen]
    for key, (place, count) in _FOLDERS.items():
        own = [a for a in chosen[0] if count == len(STAGES) or any(_knows(stage, a) for stage in STAGES[:count])]
        for folders, mark in zip(found, point_names(chosen, own), strict=True):
            folders[key] = str(folder / place / (mark or "all"))
    return found


def _knows(stage: str, name: str) -> bool:
    owner, _, own = name.partition(".")
    known = {*keys_of(COMMANDS[stage].config), *default_choices(stage, CONFIG_DIR)}
    return name in known or (owner == stage and own in known)


def _merged(requests: Sequence[Request]) -> tuple[Request, list[Task]]:
    """One request for all points, in which each task is there once; and the evaluation of each point."""
    made: dict[tuple[Any, ...], Task] = {}
    evaluations = []
    for request in requests:
        same: dict[Task, Task] = {}
        for task in request.tasks:
            same[task] = known = made.setdefault((task.stage, *sorted(task.arguments.items())), task)
            before = [] if known is task else known.after
            known.after = list(dict.fromkeys([*before, *(same[other] for other in task.after)]))
            known.parts |= task.parts
        evaluations.append(known)
    tasks = sorted(made.values(), key=lambda task: (STAGES.index(task.stage), task.share is None))
    refuse_shared_folders([task for task in tasks if task.share is None])
    label_tasks(tasks)
    return Request(requests[0].launch, tasks, requests[0].notes), evaluations

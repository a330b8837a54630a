"""Keys that several commands have (split, tracking, the robot's file), and checks of folders that they share."""

from __future__ import annotations

import os
import re
import runpy
import shlex
import traceback
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gr00t.data.schema import ModalityConfigs, check_modality_configs, from_json, to_json
from gr00t.errors import ToolkitError, did_you_mean, near_folder
from toolkit.declaration import key
from toolkit.installation import CHECKOUT, CONFIG_DIR

PRECISIONS = ("auto", "fastest", "bf16", "fp32")
DEVICES = ("auto", "cpu", "cuda")
PARTS = ("train", "conflict")
SUITE = "instruction"  # the suite whose splits are written with its name, as its folders are: instruction/color_object
TRAIN_CONFLICT = "train_conflict"  # conflict scenes that dataset.conflict_share may train on
SUITE_PARTS = ("train", "unseen", "conflict", TRAIN_CONFLICT)
LARGEST_SEED = 2**64 - 1  # what PyTorch's generators take
SPLIT_NAME = re.compile(rf"(?:{SUITE}/)?[A-Za-z0-9][A-Za-z0-9_-]*")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
VARIABLE = re.compile(r"\$(?:\{(?P<braced>[A-Za-z_]\w*)\}|(?P<bare>[A-Za-z_]\w*))")
_SHARE = re.compile(r"([0-9]{1,6})/([0-9]{1,6})")
_LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
_CUES = re.compile(r"(color|object|size|position)_(color|object|size|position)")
_NAMED = re.compile(rf"{SUITE}/(color|object|size|spatial|verb)_(color|object|size|spatial|verb)")
_HUB_SUITE = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]*gr00t[\w.-]*(/[\w.-]+)+", re.IGNORECASE)
_OWN_FOLDERS = ("checkpoints", "runs", "data", "demo", "reports")
_ROBOT_FILE = CHECKOUT / "conflict_panda_config.py"
_ROBOT_NAME = "MODALITY_CONFIG"
_READY_ROBOTS = {path.stem: path for path in sorted((CONFIG_DIR / "robots").glob("*.py"))}


def expanded(name: str, text: str) -> str:
    """The value of the key `name` with $NAME, ${NAME} and a leading ~ replaced; ToolkitError for a variable that is
    not set or empty here."""

    def value(found: re.Match[str]) -> str:
        variable = found["braced"] or found["bare"]
        if not os.environ.get(variable):
            raise ToolkitError(f"{name}={text}: the variable {variable} is not set here. Set it, or write the value.")
        return os.environ[variable]

    return os.path.expanduser(VARIABLE.sub(value, text))


def share_key(work: str) -> Any:
    """The key of the share that a process does of some work, for `share_of`."""
    meaning = f"{work} this share only, as in 2/8: eight such processes work side by side, on several nodes"
    return key(f"{meaning}; null does what is missing, and finishes", None, check=share_of)


def share_of(text: str | None) -> slice:
    """What a share takes of a sequence: "2/8" every eighth item from the second on, None all of it."""
    if text is None:
        return slice(None)
    number, count = (int(n) for n in found.groups()) if (found := _SHARE.fullmatch(text)) else (0, 0)
    if not 1 <= number <= count:
        raise ToolkitError("a share is its number and how many there are, as in 2/8.")
    return slice(number - 1, None, count)


def modality_config_key() -> Any:
    """The key of the robot's file; beside it stands `modalities`, a field of `modalities_field`."""
    return key(
        f"Python file with the robot's MODALITY_CONFIG, or a ready one of configs/robots ({', '.join(_READY_ROBOTS)}); "
        "null for conflict_panda_config.py of the checkout",
        None,
        folder=True,
        file=True,
    )


def modalities_field() -> Any:
    """What the file of `modality_config` says (toolkit.shared_keys), a plain value that no user sets."""
    return field(default_factory=dict, metadata={"derived": True})


def check_split_name(name: str) -> None:
    """Refuse what cannot be the name of a folder, or of one in the folder of the instruction suite."""
    if not SPLIT_NAME.fullmatch(name):
        raise ToolkitError(
            f'it becomes a folder name: use letters, digits, "_" and "-" only, behind {SUITE}/ for one of that suite.'
        )
    if name == SUITE:
        raise ToolkitError(f"that is the folder of a suite. Name one of its splits, such as {SUITE}/color_object.")


def of_suite(split: str) -> bool:
    """Whether a split is of the instruction suite, by its name."""
    return split.startswith(f"{SUITE}/")


def parts_of(split: str) -> tuple[str, ...]:
    """The parts that a split may be recorded in, `train` first. The split of all factors has no conflict."""
    if split == f"{SUITE}/all":
        return tuple(part for part in SUITE_PARTS if "conflict" not in part)
    return SUITE_PARTS if of_suite(split) else PARTS


def in_one_word(split: str) -> str:
    """A split's name where a slash cannot stand: instruction-color_object."""
    return split.replace("/", "-")


@dataclass(kw_only=True)
class SplitConfig:
    """The conflict split: a folder of recordings and the instruction that names the cue to follow."""

    name: str = key("name of the split, which is also the name of its folders", check=check_split_name)
    instruction: str | None = key("the instruction of every episode; null where each recorded episode has its own")
    paraphrases: list[str] = key("other ways to say it, for recordings with paraphrases=true", [])
    suite: str = key("the suite it belongs to", "conflict")


def choose_own_split(choices: dict[str, str], values: dict[str, Any], known: Collection[str]) -> str | None:
    """Turn split=<a name without a file> into the option `custom` with that name, which is returned."""
    name = choices.get("split")
    if name is None or name in known:
        return None
    try:
        check_split_name(name)
    except ToolkitError as error:
        raise ToolkitError(f"split={name}: {error}") from None
    if values.setdefault("split.name", name) != name:
        raise ToolkitError(f"split={name} and split.name={values['split.name']} name two splits. Keep one of them.")
    choices["split"] = "custom"
    if of_suite(name):
        values.setdefault("split.suite", SUITE)
    return name


def check_split(own: str | None, given: Collection[str], known: Collection[str]) -> None:
    """Refuse a split of one's own (`own` where it has no file) without a name or an instruction."""
    if own is not None and "instruction" not in given:
        raise ToolkitError(
            f'There is no split "{own}".{did_you_mean(own, set(known) - {"custom"})} For a split of your own give its '
            f'instruction: split={own} split.instruction="pick up the ...".'
        )
    if "name" not in given:
        raise ToolkitError('split=custom has no name. Write split=NAME split.instruction="pick up the ...".')


@dataclass(kw_only=True)
class TrackingConfig:
    """Where the run is logged."""

    name: str = key(
        "wandb, tensorboard (event files in the run's folder), or none for the terminal only",
        "none",
        choices=("wandb", "tensorboard", "none"),
    )
    project: str = key("wandb project", "groot-conflict")
    mode: str = key("auto is offline when there is no wandb key", "auto", choices=("auto", "online", "offline"))
    group: str | None = key("wandb group: the suite of runs that are looked at together", "${split.suite}")
    run_name: str | None = key("wandb name of the run", "${split.name}")
    tags: list[str] = key("wandb tags, beside split, cluster and engine", [])
    artifacts: str = key(
        "dataset, base and checkpoints as wandb artifacts: reference holds hashes and sizes, upload also the files of "
        "the dataset and of the finished checkpoint",
        "reference",
        choices=("none", "reference", "upload"),
    )
    stall_minutes: float | None = key(
        "minutes without a step, or a batch of an evaluation, after which a warning is sent; null for never",
        20.0,
        more_than=0,
    )


def check_finished_folder(checkpoint: Path, split: SplitConfig) -> None:
    """Refuse what is no folder of a finished checkpoint."""
    if not checkpoint.is_dir():
        raise ToolkitError(
            f"checkpoint={checkpoint} does not exist. Fine-tune first (python launch_finetune_local.py "
            f"{split_arguments(split)}), or give the folder of a finished checkpoint, checkpoint=FOLDER."
            + near_folder(checkpoint)
        )
    if not (checkpoint / "config.json").is_file() or any(checkpoint.glob("checkpoint-*")):
        raise ToolkitError(
            f"checkpoint={checkpoint} has no config.json, so it is no finished checkpoint. "
            "Give the output_dir of a fine-tune, not its run_dir."
        )


def cues_of(split: str) -> tuple[str, str] | None:
    """The cues of a conflict split by its name, the one to follow and the lure, or of the instruction suite the two
    factors that its sentences name; None for any other name."""
    cues = _CUES.fullmatch(split) or _NAMED.fullmatch(split)
    return (cues[1], cues[2]) if cues and cues[1] != cues[2] else None


def check_publication(config: Any, *more: tuple[str, str | None]) -> None:
    """Require an `out` apart from this checkout; licence, repo_id and `more` (key, id) as the hub writes them."""
    check_writable("out", Path(config.out))
    refuse_inside("out", Path(config.out), "this checkout", CHECKOUT)
    if config.upload and config.repo_id is None:
        raise ToolkitError("upload=true needs to know where to: say repo_id=owner/name.")
    for name, hub_id in [("repo_id", config.repo_id), *more]:
        if hub_id is not None and not HUB_ID.fullmatch(hub_id):
            raise ToolkitError(f"{name}={hub_id}: a repository of Hugging Face is written owner/name.")
    if config.licence is not None and not _LICENCE.fullmatch(config.licence):
        raise ToolkitError(
            f"licence={config.licence}: write it as Hugging Face does, apache-2.0 or cc-by-nc-4.0, or other."
        )


def is_hub_id(base: str) -> bool:
    """Whether it reads as owner/name of Hugging Face, or as owner/<a GR00T>/folder; not where such a folder, or one of
    the owner's name, is here."""
    owner = base.split("/")[0]
    return (
        bool(HUB_ID.fullmatch(base) or _HUB_SUITE.fullmatch(base))
        and not Path(base).exists()
        and not Path(owner).is_dir()
        and owner not in _OWN_FOLDERS
    )


def check_dataset_folder(data_dir: str, key: str, split: SplitConfig, part: str) -> None:
    """Refuse where <data_dir>/<split>/<part> is no dataset; `key` is the key that gave `data_dir`."""
    folder = Path(data_dir) / split.name / part
    if (folder / "meta" / "info.json").is_file():
        return
    problem = f"{folder} has no meta/info.json" if folder.is_dir() else f"{folder} does not exist"
    if (Path(data_dir) / part / "meta").is_dir():
        above = split_folder(Path(data_dir))[0]
        raise ToolkitError(f"{problem}: {key} must hold {split.name}/{part}. Give the folder above, {key}={above}.")
    raise ToolkitError(
        f"{problem}. Convert the recordings first: python prepare_conflict_data.py {split_arguments(split)} "
        f"raw_dir=FOLDER data_dir={data_dir}{near_split(Path(data_dir), split.name)}"
    )


def near_split(parent: Path, split: str) -> str:
    """A hint at a split of a similar name in that folder, or the ones that are there."""
    if not parent.is_dir():
        return ""
    found = [path.parent for path in (*parent.glob("*/train"), *parent.glob(f"{SUITE}/*/train")) if path.is_dir()]
    hint = did_you_mean(split, [path.relative_to(parent).as_posix() for path in found])
    return hint.replace("Known:", f"{parent} holds:")


def split_folder(folder: Path) -> tuple[Path, str]:
    """Where a folder of a split lies, and the name of the split that it is."""
    whole = Path(os.path.abspath(folder))
    above = whole.parents[1] if whole.parent.name == SUITE else whole.parent
    return above, whole.relative_to(above).as_posix()


def split_arguments(split: SplitConfig) -> str:
    """What names this split on a command line."""
    if (CONFIG_DIR / "split" / f"{split.name}.yaml").is_file():
        return f"split={split.name}"
    said = "null" if split.instruction is None else split.instruction
    return shlex.join([f"split={split.name}", f"split.instruction={said}"])


def check_writable(name: str, folder: Path) -> None:
    """The folder, or the nearest one above it that is there, must be a folder we may write to."""
    there = next(path for path in [folder.absolute(), *folder.absolute().parents] if path.exists())
    if not there.is_dir():
        raise ToolkitError(f"{name}={folder}: {there} is a file, not a folder. Give another, {name}=FOLDER.")
    if os.statvfs(there).f_flag & os.ST_RDONLY:
        raise ToolkitError(f"{name}={folder}: {there} lies on a read-only file system. Give another, {name}=FOLDER.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ToolkitError(f"{name}={folder}: no permission to write to {there}. Give another, {name}=FOLDER.")


def refuse_inside(outer_name: str, outer: Path, inner_name: str, inner: Path) -> None:
    """What is written must not replace, or grow inside, what something else needs."""
    outer_path, inner_path = Path(os.path.realpath(outer)), Path(os.path.realpath(inner))
    if inner_path == outer_path:
        raise ToolkitError(f"{outer_name} and {inner_name} are the same folder, {outer}. Give each its own.")
    if inner_path.is_relative_to(outer_path):
        raise ToolkitError(f"{inner_name} ({inner}) lies inside {outer_name} ({outer}). Give each a folder of its own.")


def read_robot(config: Any) -> None:
    """Fill `modalities` of a configuration, or of its dataset section, from the file that modality_config names."""
    for section, name in ((config, "modality_config"), (getattr(config, "dataset", None), "dataset.modality_config")):
        if section is not None and hasattr(section, "modality_config"):
            section.modalities = read_file(section.modality_config, name)


def is_ready_robot(file: str) -> bool:
    """Whether that is the name of a robot in configs/robots, and of no file here."""
    return file in _READY_ROBOTS and not Path(file).is_file()


def robot_path(file: str | None) -> Path:
    """The Python file that a modality_config means; None: conflict_panda_config.py of the checkout."""
    if file is None:
        return _ROBOT_FILE
    return _READY_ROBOTS[file] if is_ready_robot(file) else Path(file)


def read_file(file: str | None, key: str = "modality_config") -> dict[str, Any]:
    """MODALITY_CONFIG of the Python file that `robot_path` finds, as processor_config.json holds it. Raises
    ToolkitError, with the line where there is one, for a file that does not define it."""
    path = robot_path(file)
    where = f"{path}" if file is None else f"{key}={file}"
    if not path.is_file():
        known = [*(other.name for other in path.parent.glob("*.py")), *_READY_ROBOTS]
        hint = did_you_mean(path.name, known) if path.parent.is_dir() else near_folder(path.parent)
        raise ToolkitError(
            f"{where} {'is a folder' if path.is_dir() else 'does not exist'}. Give a Python file that defines "
            f"{_ROBOT_NAME}, as conflict_panda_config.py of the checkout does, or the name of a ready robot.{hint}"
        )
    try:
        variables = runpy.run_path(str(path))
    except (Exception, SystemExit) as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        number = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
        line = "" if number is None else f", line {number}"
        raise ToolkitError(f"{where}{line}: {type(error).__name__}: {error}. Mend that file.") from None
    if _ROBOT_NAME not in variables:
        raise ToolkitError(
            f"{where} defines no {_ROBOT_NAME}. Name the robot's modality configuration so in that file."
        )
    try:
        return to_json(check_modality_configs(variables[_ROBOT_NAME], f"{where}: {_ROBOT_NAME}"))
    except (AttributeError, TypeError):
        raise ToolkitError(
            f"{where}: {_ROBOT_NAME} must be a dict of ModalityConfig, with ActionConfig in action_configs "
            "(gr00t.data.schema). Compare conflict_panda_config.py of the checkout."
        ) from None


def modality_configs(section: Any) -> ModalityConfigs:
    """What `section.modalities` holds, as the rest of the toolkit takes it."""
    return from_json(section.modalities)

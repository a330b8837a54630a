"""What makes a run the same run: all that decides the loss of a later step, compared entry by entry; and the note of it
in a finished checkpoint, experiment_cfg/run.json; and its configuration as a finished checkpoint holds it.

An identity is a dict: keys of the recipe, and entries that are no configuration keys (`ENTRIES`). What is added to it
later says what the runs written before acted as: `before=VALUE` of a configuration key, or its value in `ENTRIES`."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path, PurePath, PureWindowsPath
from typing import Any

from finetune.recipe import FinetuneConfig
from finetune.recipe.train_config import AugmentConfig, TrainConfig, parts
from gr00t.data.schema import comparable
from gr00t.file_reading import read_json
from gr00t.file_replacement import write_json
from toolkit.composition import read_yaml
from toolkit.declaration import flat, keys_of
from toolkit.shared_keys import split_folder

UNKNOWN = object()  # before an entry was recorded: there is nothing to compare with
ENTRIES: dict[str, Any] = {
    "modality_config": UNKNOWN,
    "statistics": UNKNOWN,
    "dataset.shares": UNKNOWN,
    "dataset_files": UNKNOWN,
    "dataset.conflict_share": 0.0,  # no entry where no conflict scenes are trained on
    "dataset.exclude": [],  # what the key and the datasets' own lists leave out together; no entry where that is none
    "base_files": UNKNOWN,
    "train.export": "last",  # of a finished checkpoint
    "padding": "attended to",  # where prompts have several lengths; no entry where they have not
}
RELEASE_MARK = Path("experiment_cfg") / "run.json"
REPLACES = "replaces.json"  # in run_dir: the mark of the old result that a run that was started over is to replace
_SECTIONS = {"train": TrainConfig, "augment": AugmentConfig}
_MESSAGES = {
    "base": "model.base holds other weights than when the run began",
    "dataset": "the dataset holds other data than when the run began",
    "content": "the dataset or model.base holds other content than when that was made",
    "statistics": "states and actions are normalised with other statistics than when the run began",
    "padding": "padding: instructions of several lengths were padded and the padding reached the losses when the run "
    "began; it no longer does. Finish the run with the version that began it, or begin it again",
}
_FILES = {"dataset_files": "the dataset", "base_files": "model.base"}
_FILES_LISTED = 8
_HASHED = ("dataset", "base")
_TOLD_APART = ("identity", "step")  # what of two marks is compared


def recipe(resolved: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a resolved fine-tune that must not change when it is continued, with their values."""
    kept: dict[str, dict[str, Any]] = {}
    for name, section in _SECTIONS.items():
        left_out = {field.name for field in dataclasses.fields(section) if not field.metadata.get("identity", True)}
        kept[name] = {key: value for key, value in resolved[name].items() if key not in left_out}
    share = resolved["dataset"].get("conflict_share")
    return {
        **{f"train.{key}": value for key, value in kept["train"].items()},
        "augment": kept["augment"],
        "dataset.tail": resolved["dataset"]["tail"],
        "dataset.embodiment_tag": resolved["dataset"]["embodiment_tag"],
        **({"dataset.conflict_share": share} if share else {}),
    }


def befores() -> dict[str, Any]:
    """What later keys and entries were before they existed, by full dotted name."""
    keys = {f"{name}.{key.name}": key for name, section in _SECTIONS.items() for key in keys_of(section).values()}
    declared = {name: key.bounds["before"] for name, key in keys.items() if "before" in key.bounds}
    return declared | {name: value for name, value in ENTRIES.items() if value is not UNKNOWN}


def completed(stored: Mapping[str, Any]) -> dict[str, Any]:
    """A stored identity by full dotted names, with what its version did not know yet and acted as."""
    found = flat(stored)
    sections = {name for name, value in found.items() if value is None}
    later = {n: v for n, v in befores().items() if not any(n.startswith(f"{section}.") for section in sections)}
    return later | found


def differences(
    stored: Mapping[str, Any],
    now: Mapping[str, Any],
    files_stored: Mapping[str, str] | None = None,
    files_now: Mapping[str, str] | None = None,
) -> list[str]:
    """What differs between two identities, a line each; `files_*` (every input's digest) name files by which they do.

    Entries that an older version did not record are left out.
    """
    there, here, absent = completed(stored), completed(now), object()
    unknown = tuple(
        f"{name}." for name, was in ENTRIES.items() if was is UNKNOWN and (name not in stored or name not in now)
    )
    changed = [
        name
        for name in sorted({*there, *here})
        if there.get(name, absent) != here.get(name, absent) and not f"{name}.".startswith(unknown)
    ]
    if "statistics" in changed and len(changed) > 1:
        changed.remove("statistics")  # they follow from the rest
    files_then, files_here = files_stored or {}, files_now or {}
    names = {*files_then, *files_here} if files_then else set()
    files = sorted(name for name in names if files_then.get(name) != files_here.get(name))
    return [line for name in changed for line in _lines(name, there, here, files)]


def _lines(name: str, there: Mapping[str, Any], here: Mapping[str, Any], files: list[str]) -> list[str]:
    entry, _, place = name.partition(".")
    if entry in _FILES:
        how = "lost" if name not in here else "new" if name not in there else "changed"
        inside = [file for file in files if file.startswith(f"{entry}.{place}/")]  # place: a file, or a folder
        names = [file.partition(".")[2] for file in inside] or [place]
        lines = [f"{_FILES[entry]}: {how} {file}" for file in names[:_FILES_LISTED]]
        if len(names) > _FILES_LISTED:
            lines.append(f"{_FILES[entry]}: {len(names) - _FILES_LISTED} more files")
        return lines
    if name in _MESSAGES:
        return [_MESSAGES[name]]
    was, now = (repr(side[name]) if name in side else "absent" for side in (there, here))
    return [f"{name}: {was} there, {now} now"]


def identity_digest(identity: Mapping[str, Any]) -> str:
    """One text for all that makes a run the same run."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()


def write_mark(folder: Path, identity: Mapping[str, Any], step: int) -> None:
    """Note which run the weights in `folder` are of, after how many steps."""
    write_json(folder / RELEASE_MARK, {"identity": identity_digest(identity), "step": step, "made_of": identity})


def note_replaced(run_dir: Path, mark: Mapping[str, Any] | None) -> None:
    """Note of a run that is started over which finished checkpoint, by its mark, it is to replace; None: there is none.
    The attempts after this one know it by that."""
    if mark is None:
        (run_dir / REPLACES).unlink(missing_ok=True)
    else:
        write_json(run_dir / REPLACES, {name: mark.get(name) for name in _TOLD_APART})


def is_replaced(run_dir: Path, mark: Mapping[str, Any] | None) -> bool:
    """Whether the finished checkpoint with this mark is what the run in `run_dir`, started over, is to replace."""
    if mark is None or not (run_dir / REPLACES).is_file():
        return False
    noted = read_json(run_dir / REPLACES)
    return all(noted.get(name) == mark.get(name) for name in _TOLD_APART)


def made_by(folder: Path, identity: Mapping[str, Any]) -> bool:
    """Whether `folder` holds the finished checkpoint of the run with this identity, as one of its checkpoints says."""
    if not (folder / RELEASE_MARK).is_file():
        return False
    mark = read_json(folder / RELEASE_MARK)
    if "made_of" in mark:
        export = {"train.export": mark["made_of"].get("train.export", "last")}
        return not differences({**identity, **export}, mark["made_of"])
    # A checkpoint of the best evaluation differs from one of the last step.
    return mark.get("identity") in (identity_digest(identity), identity_digest({**identity, "train.export": "best"}))


def gave_up_earlier(folder: Path, patience: int | None) -> bool:
    """Whether the finished training in `folder` may have ended after fewer evaluations without a better one than
    `patience` now allows (None: any number), so that it is to continue."""
    settings = folder / "experiment_cfg" / "config.yaml"
    allowed = read_yaml(settings)["train"].get("patience") if settings.is_file() else None
    return allowed is not None and (patience is None or patience > allowed)


def trained_by(folder: Path) -> dict[str, Any]:
    """What a finished checkpoint says of its training, as an evaluation notes it: the identity of the run without its
    seed, the seed and the step; {} for others, and for those of earlier versions, which noted a digest only."""
    mark = read_json(folder / RELEASE_MARK) if (folder / RELEASE_MARK).is_file() else {}
    recipe = dict(mark.get("made_of", {}))
    seed = recipe.pop("train.seed", None)
    return {} if seed is None else {"recipe": recipe, "training_seed": seed, "training_step": mark.get("step")}


def robot_of(folder: Path, tag: str) -> dict[str, Any]:
    """The modality configuration that a finished checkpoint was trained with, as in an identity; {} for other tags."""
    from gr00t.data.processor_files import read_processor_files  # numpy, which no refusal should wait for

    configs = read_processor_files(folder).config.modality_configs
    return comparable(configs[tag]) if tag in configs else {}


def identity_of(folder: Path, now: Mapping[str, Any]) -> dict[str, Any]:
    """The identity of a finished checkpoint, to compare with `now`.

    Earlier versions noted a digest only. It is compared with that of `now` in their form; where they differ, the recipe
    in experiment_cfg/config.yaml says more.
    """
    mark = read_json(folder / RELEASE_MARK)
    if "made_of" in mark:
        return dict(mark["made_of"])
    resolved = read_yaml(folder / "experiment_cfg" / "config.yaml")
    theirs = recipe(resolved)
    robot = {"modality_config": robot_of(folder, str(theirs["dataset.embodiment_tag"]))}
    same = _known_then(now, resolved)
    if identity_digest(same) == mark.get("identity"):
        return {**same, **robot}
    hashed = {name: now[name] for name in _HASHED if name in now}
    export = {"train.export": resolved["train"].get("export", "last")}
    found = {**theirs, **robot, **hashed, **export}
    return found if differences(found, now) else {**found, "content": "others"}


def _known_then(now: Mapping[str, Any], resolved: Mapping[str, Any]) -> dict[str, Any]:
    """`now` in the form of the version that resolved this configuration: without the keys that came later."""
    known = {"augment": resolved["augment"], **{f"train.{name}": value for name, value in resolved["train"].items()}}
    others = (*_HASHED, "dataset.tail", "dataset.embodiment_tag")
    return {
        name: {part: inner for part, inner in value.items() if part in known[name]}
        if isinstance(value, Mapping) and isinstance(known.get(name), Mapping)
        else value
        for name, value in now.items()
        if name in known or name in others
    }


def publishable(resolved: Mapping[str, Any]) -> dict[str, Any]:
    """A resolved fine-tune without `cluster` and `tracking`; of a folder outside the working one its name is left."""
    # No result depends on these two, and they name accounts, projects, modules and proxies of a site.
    kept = copy.deepcopy({name: value for name, value in resolved.items() if name not in ("cluster", "tracking")})
    for key in keys_of(FinetuneConfig).values():
        *parents, name = key.name.split(".")
        holder: Any = kept
        for parent in parents:
            holder = holder.get(parent) or {}
        if key.bounds.get("folder") and isinstance(holder.get(name), str):
            holder[name] = _without_place(holder[name])
    dataset = kept.get("dataset") or {}
    if dataset.get("mixture"):
        dataset["mixture"] = [f"{_dataset_name(p.folder)}:{p.weight:g}" for p in parts(dataset["mixture"])]
    for number, (folder, slash, episodes) in enumerate(e.rpartition("/") for e in dataset.get("exclude", [])):
        dataset["exclude"][number] = f"{_dataset_name(Path(folder))}/{episodes}" if slash else episodes
    return kept


def _dataset_name(path: Path) -> str:
    folder, above = _without_place(str(path)), path.parent.name
    # `train` alone, which many end in, would not distinguish one from another
    return f"{split_folder(path.parent)[1]}/{folder}" if folder == "train" and above else folder


def _without_place(folder: str) -> str:
    """A path within the working folder (or a hub id) as it is, else its last part."""
    windows, path = PureWindowsPath(folder), PurePath(folder)
    if windows.drive or "\\" in folder:
        return windows.name
    outside = path.is_absolute() or ".." in path.parts or folder.startswith("~")
    return path.name if outside else folder

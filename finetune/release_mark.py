"""experiment_cfg/run.json of a finished checkpoint: the run that made it, told by its identity."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune.config.compose import read_yaml
from finetune.config.identity import differences, recipe
from gr00t.data.processor_files import read_processor_files
from gr00t.data.schema import comparable
from gr00t.files import read_json, write_json

RELEASE_MARK = Path("experiment_cfg") / "run.json"
_HASHED = ("dataset", "base")


def identity_digest(identity: Mapping[str, Any]) -> str:
    """One text for all that makes a run the same run."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()


def write_mark(folder: Path, identity: Mapping[str, Any], step: int) -> None:
    """Note which run the weights in `folder` are of, after how many steps."""
    write_json(folder / RELEASE_MARK, {"identity": identity_digest(identity), "step": step, "made_of": identity})


def made_by(folder: Path, identity: Mapping[str, Any]) -> bool:
    """Whether `folder` holds the finished checkpoint of the run with this identity, as one of its checkpoints says."""
    if not (folder / RELEASE_MARK).is_file():
        return False
    mark = read_json(folder / RELEASE_MARK)
    if "made_of" in mark:
        export = {"train.export": mark["made_of"].get("train.export", "last")}
        return not differences({**identity, **export}, mark["made_of"])
    # A checkpoint of the best evaluation is told apart from one of the last step.
    return mark.get("identity") in (identity_digest(identity), identity_digest({**identity, "train.export": "best"}))


def robot_of(folder: Path, tag: str) -> dict[str, Any]:
    """The modality configuration that a finished checkpoint was trained with, as an identity holds it; {} for a tag
    that it was not trained under."""
    configs = read_processor_files(folder).config.modality_configs
    return comparable(configs[tag]) if tag in configs else {}


def identity_of(folder: Path, now: Mapping[str, Any]) -> dict[str, Any]:
    """The identity of a finished checkpoint, to compare with `now`.

    Earlier versions noted a digest only. It is compared with that of `now` in their form; where they differ, the recipe
    in experiment_cfg/config.yaml tells more.
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

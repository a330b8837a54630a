"""The finished checkpoint in the release layout: what the policy, NVIDIA's code and LeRobot read; and what it says of
the run that made it, without paths, accounts and names of this machine."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path, PurePath, PureWindowsPath
from typing import Any

import torch
from omegaconf import OmegaConf

from finetune.recipe import FinetuneConfig
from finetune.recipe.recipe_identity import write_mark
from finetune.recipe.train_config import parts
from finetune.training.engine import Engine
from gr00t.data.dataset import Mixture, TrainingDataset
from gr00t.data.layout import DatasetLayout
from gr00t.data.processor import Gr00tN1d7Processor
from gr00t.file_replacement import whole_folder, write_json
from gr00t.model.finished_checkpoint import write_manifest
from gr00t.model.gr00t_n1d7 import Gr00tN1d7
from toolkit.code_files import versions
from toolkit.declaration import keys_of


def write_release(
    folder: Path,
    model: Gr00tN1d7,
    dataset: TrainingDataset,
    *,
    resolved: dict[str, Any],
    hardware: dict[str, Any],
    identity: dict[str, Any],
    conditions: dict[str, Any],
    step: int,
    allowed: Callable[[], None],
    replaceable: Callable[[Path], None],
) -> None:
    """Write config.json, shards and index, processor files and experiment_cfg/; an older checkpoint gives way last.

    resolved: the configuration. hardware: what it was trained on (`Engine.hardware`). conditions: of the last attempt.
    step: how many optimizer steps the weights have seen. `allowed` raises where nothing must be renamed or removed,
    `replaceable` where the folder that is there must stay.
    """
    mirror_processor(model, dataset.processor)
    with whole_folder(folder, lock=False, allowed=allowed, replaceable=replaceable) as aside:
        model.save_pretrained(aside, dtype=torch.bfloat16)
        dataset.processor.save_pretrained(aside)
        experiment = aside / "experiment_cfg"
        experiment.mkdir()
        published = OmegaConf.to_yaml(OmegaConf.create(publishable(resolved)))
        (experiment / "config.yaml").write_text(published, encoding="utf-8")
        write_json(experiment / "dataset.json", describe_datasets(dataset.mixture))
        write_json(experiment / "hardware.json", hardware)
        write_json(experiment / "versions.json", versions())
        write_json(experiment / "conditions.json", conditions)
        write_mark(aside, identity, step)
        write_manifest(aside)


def mirror_processor(model: Gr00tN1d7, processor: Gr00tN1d7Processor) -> None:
    """config.json repeats keys of processor_config.json; give both the same values."""
    values = processor.config.to_json()
    for key in values.keys() & model.config.to_dict().keys():
        if key not in ("model_name", "model_type"):
            setattr(model.config, key, values[key])
    model.config.use_albumentations_transforms = values["use_albumentations"]


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
        entries = []
        for part in parts(dataset["mixture"]):
            folder, above = _without_place(str(part.folder)), part.folder.parent.name
            # `train` alone, which many end in, would not distinguish one from another
            folder = f"{above}/{folder}" if folder == "train" and above else folder
            entries.append(f"{folder}:{part.weight:g}")
        dataset["mixture"] = entries
    return kept


def _without_place(folder: str) -> str:
    """A path within the working folder (or a hub id) as it is, else its last part."""
    windows, path = PureWindowsPath(folder), PurePath(folder)
    if windows.drive or "\\" in folder:
        return windows.name
    outside = path.is_absolute() or ".." in path.parts or folder.startswith("~")
    return path.name if outside else folder


def describe_run(engine: Engine, mixture: Mixture, identity: dict[str, Any]) -> dict[str, Any]:
    """What a run is made of that its configuration does not say."""
    return {
        "dataset": {**describe_datasets(mixture), "training_digest": identity["dataset"]},
        "base": identity["base"],
        "versions": versions(),
        "processes": engine.world_size,
        "device": engine.device.type,
        "precision": str(engine.dtype).removeprefix("torch."),
    }


def describe_datasets(mixture: Mixture) -> dict[str, Any]:
    """What was trained on, without a path of this machine: the dataset, or all of a mixture with their shares."""
    found = [describe_dataset(reader.layout) for reader in mixture.readers]
    if len(found) == 1:
        return found[0]
    shared = [{"share": share, **of} for share, of in zip(mixture.shares, found, strict=True)]
    return {"fingerprint": mixture.fingerprint, "fps": found[0]["fps"], "mixture": shared}


def describe_dataset(layout: DatasetLayout) -> dict[str, Any]:
    """What was trained on, without a path of this machine."""
    return {
        "fingerprint": layout.fingerprint,
        "episodes": len(layout.episodes),
        "frames": sum(episode.length for episode in layout.episodes),
        "train_frames": sum(layout.episode(index).length for index in layout.train_episodes),
        "train_episodes": layout.train_episodes,
        "val_episodes": layout.val_episodes,
        "fps": layout.fps,
        "frame_sizes": {camera: layout.frame_size(camera) for camera in layout.cameras},
        "instructions": sorted(layout.tasks.values()),
    }

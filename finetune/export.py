"""The finished checkpoint in the release layout: what the policy, NVIDIA's code and LeRobot read."""

from __future__ import annotations

import importlib.util
import platform
import subprocess
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from finetune.checkout import CHECKOUT
from finetune.config.publishable import publishable
from finetune.release_mark import write_mark
from finetune.slurm.snapshot import REVISION_FILE
from gr00t.data.layout import DatasetLayout
from gr00t.data.mixture import Mixture
from gr00t.data.processor import Gr00tN1d7Processor
from gr00t.files import whole_folder, write_json
from gr00t.model.gr00t_n1d7 import Gr00tN1d7
from gr00t.model.manifest import write_manifest

PACKAGES = ("torch", "transformers", "accelerate", "safetensors", "tokenizers", "datasets", "numpy", "av")
OPTIONAL = ("bitsandbytes", "peft", "deepspeed", "mani_skill", "sapien")


def write_release(
    folder: Path,
    model: Gr00tN1d7,
    processor: Gr00tN1d7Processor,
    *,
    resolved: dict[str, Any],
    hardware: dict[str, Any],
    mixture: Mixture,
    identity: dict[str, Any],
    conditions: dict[str, Any],
    step: int,
    dtype: torch.dtype = torch.bfloat16,
    allowed: Callable[[], None] = lambda: None,
    replaceable: Callable[[Path], None] = lambda folder: None,
) -> None:
    """Write config.json, shards and index, processor files and experiment_cfg/; an older checkpoint gives way last.

    hardware: what it was trained on (`Engine.hardware`). conditions: of the last attempt. step: how many
    optimizer steps the weights have seen. `allowed` raises where nothing must be renamed or removed, `replaceable`
    where the folder that is there must stay.
    """
    mirror_processor(model, processor)
    with whole_folder(folder, lock=False, allowed=allowed, replaceable=replaceable) as aside:
        model.save_pretrained(aside, dtype=dtype)
        processor.save_pretrained(aside)
        experiment = aside / "experiment_cfg"
        experiment.mkdir()
        (experiment / "config.yaml").write_text(
            OmegaConf.to_yaml(OmegaConf.create(publishable(resolved))), encoding="utf-8"
        )
        write_json(experiment / "dataset.json", describe_datasets(mixture))
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


def describe_datasets(mixture: Mixture) -> dict[str, Any]:
    """What was trained on, without a path of this machine: the dataset, or all of a mixture with their shares."""
    found = [describe_dataset(reader.layout) for reader in mixture.readers]
    if len(found) == 1:
        return found[0]
    parts = [{"share": share, **of} for share, of in zip(mixture.shares, found, strict=True)]
    return {"fingerprint": mixture.fingerprint, "fps": found[0]["fps"], "mixture": parts}


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


def versions() -> dict[str, Any]:
    """Python, packages (optional ones where installed) and the git revision (null outside a git checkout)."""
    names = [*PACKAGES, *(name for name in OPTIONAL if importlib.util.find_spec(name))]
    found = {name: metadata.version(name) for name in names}
    return {"python": platform.python_version(), **found, "git_revision": git_revision()}


def git_revision() -> str | None:
    """The commit of this checkout, with "+changes" where files differ from it. A job's copy has it in a file."""
    if (CHECKOUT / REVISION_FILE).is_file():
        return (CHECKOUT / REVISION_FILE).read_text().strip() or None
    try:
        revision = _git("rev-parse", "HEAD")
        return revision + ("+changes" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(CHECKOUT), *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()

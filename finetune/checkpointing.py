"""Checkpoints to resume from: `checkpoint-<step>/` holds trained tensors, optimizer moments and the step.

A checkpoint appears whole, by a rename, with a manifest of hashes; a damaged one is reported and the one before is
used. safetensors and JSON only. Nothing else need be stored: order, augmentation, noise and dropout follow from the
seed and the step, the learning rate from the step, and frozen weights from the base checkpoint.
"""

from __future__ import annotations

import logging
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gr00t.errors import ToolkitError
from gr00t.files import file_sha256, read_json, whole_folder, write_json

log = logging.getLogger(__name__)
_NAME = re.compile(r"checkpoint-(\d+)")
FILES = ("trained.safetensors", "optimizer.safetensors", "state.json")
MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint: `step` optimizer steps are done."""

    folder: Path
    step: int
    state: dict[str, Any]


def save_checkpoint(
    run_dir: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any], keep: int
) -> Path:
    """Write `checkpoint-<step>` after `step` optimizer steps, then remove all but the newest `keep`."""
    target = run_dir / f"checkpoint-{step}"
    with whole_folder(target, lock=False) as folder:
        trained = {n: p.detach().cpu().contiguous() for n, p in model.named_parameters() if p.requires_grad}
        save_file(trained, folder / "trained.safetensors")
        save_file(_optimizer_tensors(optimizer), folder / "optimizer.safetensors")
        write_json(folder / "state.json", {**state, "step": step})
        write_json(folder / "manifest.json", {name: file_sha256(folder / name) for name in FILES})
    others = [folder for folder in list_checkpoints(run_dir) if folder != target]
    for old in others[: max(0, len(others) - (keep - 1))]:
        shutil.rmtree(old)
    return target


def list_checkpoints(run_dir: Path) -> list[Path]:
    """Checkpoint folders, oldest first (not verified)."""
    found = [p for p in run_dir.glob("checkpoint-*") if _NAME.fullmatch(p.name) and p.is_dir()]
    return sorted(found, key=lambda p: int(p.name.removeprefix("checkpoint-")))


def newest_checkpoint(run_dir: Path) -> Checkpoint | None:
    """The newest whole checkpoint; damaged ones are reported and passed over."""
    for folder in reversed(list_checkpoints(run_dir)):
        problem = _damage(folder)
        if problem is None:
            state = read_json(folder / "state.json")
            return Checkpoint(folder, int(state["step"]), state)
        log.warning("%s is damaged (%s); the one before it is looked at.", folder, problem)
    return None


def load_checkpoint(checkpoint: Checkpoint, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put a checkpoint's tensors into a model and an optimizer that train the same parameters."""
    trained = load_file(checkpoint.folder / "trained.safetensors")
    own = {n: p for n, p in model.named_parameters() if p.requires_grad}
    different = sorted(set(trained) ^ set(own))
    if different:
        raise ToolkitError(
            f"{checkpoint.folder} trains other parameters than this configuration (first: {different[0]}). Use the "
            "train.tune.* and model settings it was written with, or start anew with train.resume=never."
        )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(trained[name])
    _restore_optimizer(optimizer, load_file(checkpoint.folder / "optimizer.safetensors"))


def check_same_run(checkpoint: Checkpoint, identity: dict[str, Any]) -> None:
    """Refuse to continue a checkpoint under another recipe, dataset or base."""
    before = checkpoint.state.get("identity", {})
    changed = sorted(k for k in {*before, *identity} if before.get(k) != identity.get(k))
    if changed:
        lines = "\n  ".join(_difference(k, before.get(k), identity.get(k)) for k in changed)
        raise ToolkitError(
            f"{checkpoint.folder} belongs to a run with other settings:\n  {lines}\n"
            "Use its settings to continue it, another run_dir=... to start beside it, or train.resume=never to start "
            "anew here."
        )


def _difference(key: str, before: Any, now: Any) -> str:
    hashed = {"base": "model.base holds other weights", "dataset": "the dataset holds other data"}
    return f"{hashed[key]} than when the run began" if key in hashed else f"{key}: {before!r} there, {now!r} now"


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, parameter in _named(optimizer):
        moments = optimizer.state.get(parameter, {})
        for key in MOMENTS:
            if key in moments:
                tensors[f"{key}.{name}"] = moments[key].detach().cpu().contiguous()
        if "step" in moments:
            tensors[f"step.{name}"] = moments["step"].detach().cpu().reshape(1)
    return tensors


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    for name, parameter in _named(optimizer):
        if f"step.{name}" not in tensors:
            continue
        device = parameter.device
        optimizer.state[parameter] = {
            "step": tensors[f"step.{name}"].reshape(()).to(device),
            **{key: tensors[f"{key}.{name}"].to(device) for key in MOMENTS},
        }


def _named(optimizer: torch.optim.Optimizer) -> list[tuple[str, Tensor]]:
    return [
        (name, parameter)
        for group in optimizer.param_groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
    ]


def _damage(folder: Path) -> str | None:
    try:
        manifest = read_json(folder / "manifest.json")
        for name in FILES:
            if file_sha256(folder / name) != manifest.get(name):
                return f"{name} has changed since it was written"
    except (ToolkitError, OSError, SafetensorError, AttributeError) as error:
        return str(error)
    return None

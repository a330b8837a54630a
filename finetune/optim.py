"""AdamW with the original's decay groups, and its schedule: linear warm-up, then a cosine down to zero."""

from __future__ import annotations

import math
import re

import torch
from torch import nn

from finetune.config.schema import TrainConfig

# by name, as the original's trainer does; LayerNorms are found by their type besides
_NO_DECAY = re.compile(r"bias|layernorm|rmsnorm|(^|\.)norm($|\.)|_norm($|\.)")


def decays(name: str, owner: nn.Module) -> bool:
    """Whether weight decay acts on a parameter. Embodiment layers' `.b` and the position embedding do decay."""
    return not isinstance(owner, nn.LayerNorm) and _NO_DECAY.search(name.lower()) is None


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Two groups, decaying and not, of the parameters that are trained, with their names under "names"."""
    groups: list[dict[str, object]] = []
    trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    for decay in (True, False):
        chosen = [(n, p) for n, p in trained if decays(n, model.get_submodule(n.rpartition(".")[0])) is decay]
        groups.append(
            {
                "params": [p for _, p in chosen],
                "names": [n for n, _ in chosen],
                "weight_decay": weight_decay if decay else 0.0,
            }
        )
    return groups


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over the trained parameters, fused (one kernel for all of them)."""
    return torch.optim.AdamW(
        parameter_groups(model, config.weight_decay),
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_eps,
        fused=True,
    )


def learning_rate(step: int, config: TrainConfig) -> float:
    """Learning rate of optimizer step `step` (from 0, where it is 0 when there is a warm-up)."""
    warmup = math.ceil(config.max_steps * config.warmup_ratio)
    if step < warmup:
        return config.learning_rate * step / warmup
    progress = (step - warmup) / max(1, config.max_steps - warmup)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = value

"""AdamW with the original's decay groups, plain, with 8-bit moments or on the CPU; its schedule: linear warm-up, then a
cosine down to zero."""

from __future__ import annotations

import itertools
import logging
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from finetune.config.schema import TrainConfig
from gr00t.model.gr00t_n1d7 import Gr00tN1d7

BACKBONE = "backbone."
# by name, as the original's trainer does; LayerNorms are found by their type besides
_NO_DECAY = re.compile(r"bias|layernorm|rmsnorm|(^|\.)norm($|\.)|_norm($|\.)")


def decays(name: str, owner: nn.Module) -> bool:
    """Whether weight decay acts on a parameter. Embodiment layers' `.b` and the position embedding do decay."""
    return not isinstance(owner, nn.LayerNorm) and _NO_DECAY.search(name.lower()) is None


def parameter_groups(model: nn.Module, weight_decay: float, backbone_rate: float = 1.0) -> list[dict[str, object]]:
    """Two groups, decaying and not, of the parameters that are trained, with their names under "names", and under
    "parts" what part of the model each belongs to.

    The backbone's parameters have two groups of their own where they learn at another rate: `backbone_rate` times that
    of the others, which is each group's "rate".
    """
    groups: list[dict[str, object]] = []
    parts = _parts(model)
    trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    rates = {n: backbone_rate if n.startswith(BACKBONE) else 1.0 for n, _ in trained}
    decay_of = {n: decays(n, model.get_submodule(n.rpartition(".")[0])) for n, _ in trained}
    for rate, decay in itertools.product(dict.fromkeys((1.0, backbone_rate)), (True, False)):
        chosen = [(n, p) for n, p in trained if (rates[n], decay_of[n]) == (rate, decay)]
        groups.append(
            {
                "params": [p for _, p in chosen],
                "names": [n for n, _ in chosen],
                "parts": [parts.get(id(p), "other") for _, p in chosen],
                "weight_decay": weight_decay if decay else 0.0,
                "rate": rate,
            }
        )
    return [group for group in groups if group["params"]]


def _parts(model: nn.Module) -> dict[int, str]:
    """The part of the model (a name of `Gr00tN1d7.groups`) that each parameter belongs to, by its id."""
    if not isinstance(model, Gr00tN1d7):
        return {}
    return {id(p): part for part, modules in model.groups().items() for m in modules for p in m.parameters()}


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimizer that train.optimizer names, over the trained parameters."""
    kinds: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "adamw": torch.optim.AdamW,
        "adamw_8bit": _eight_bit,
        "adamw_offload": OffloadedAdamW,
    }
    rate = config.learning_rate
    fused = {"fused": True} if config.optimizer == "adamw" else {}  # one kernel for all parameters
    return kinds[config.optimizer](
        parameter_groups(model, config.weight_decay, (config.backbone_learning_rate or rate) / rate),
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_eps,
        **fused,
    )


def _eight_bit(groups: list[dict[str, object]], **settings: Any) -> torch.optim.Optimizer:
    """AdamW with both moments in 8 bit, in blocks of 256 with a scale each (Dettmers et al., 2022); parameters of
    fewer than 4096 values keep fp32 moments."""
    hush_bitsandbytes()
    from bitsandbytes.optim import AdamW8bit

    return AdamW8bit(groups, **settings)


def hush_bitsandbytes() -> None:
    """At each import it complains that a package is missing, for kernels that are never used here."""
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


class OffloadedAdamW(torch.optim.Optimizer):
    """AdamW whose moments lie on the CPU, where the update is computed too, one parameter at a time.

    The GPU then holds a trained parameter and its gradient alone, 8 bytes instead of 16. The arithmetic is that of
    torch's fused AdamW on the CPU.
    """

    def __init__(self, groups: list[dict[str, object]], lr: float, betas: tuple[float, float], eps: float) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps})
        self._staging: list[Tensor] = []

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            for moment in ("exp_avg", "exp_avg_sq"):
                state[moment] = torch.zeros(parameter.shape)
        gradient = parameter.grad
        assert gradient is not None
        weight, gradient = self._on_cpu([parameter, gradient])
        adamw(
            [weight],
            [gradient],
            [state["exp_avg"]],
            [state["exp_avg_sq"]],
            [],
            [state["step"]],
            fused=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
        parameter.copy_(weight)

    def _on_cpu(self, tensors: list[Tensor]) -> list[Tensor]:
        """Themselves on a CPU; else copies in pinned memory, which is kept and as large as the largest parameter."""
        if tensors[0].device.type == "cpu":
            return tensors
        if not self._staging:
            size = max(p.numel() for group in self.param_groups for p in group["params"])
            self._staging = [torch.empty(size, pin_memory=True) for _ in tensors]
            _use_own_share_of_cores()
        copies = [b[: t.numel()].view(t.shape) for b, t in zip(self._staging, tensors, strict=True)]
        for copy, tensor in zip(copies, tensors, strict=True):
            copy.copy_(tensor)
        return copies


def _use_own_share_of_cores() -> None:
    """torchrun gives each of several processes one thread, which reads memory far slower than the machine can."""
    share = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    torch.set_num_threads(max(torch.get_num_threads(), share))


def optimizer_state(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Name and state of each trained parameter in turn; empty before its first update."""
    for name, parameter in _named(optimizer):
        state = optimizer.state.get(parameter, {})
        yield name, {key: torch.as_tensor(value) for key, value in state.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, states: Iterable[tuple[str, dict[str, Tensor]]]) -> None:
    """Put back what `optimizer_state` of an optimizer of the same kind gave, bit for bit."""
    parameters = dict(_named(optimizer))
    for name, stored in states:
        parameter = parameters[name]
        device = torch.device("cpu") if isinstance(optimizer, OffloadedAdamW) else parameter.device
        state: dict[str, Any] = {key: tensor.to(device) for key, tensor in stored.items()}
        if "state1" in state:  # bitsandbytes counts in an int
            state["step"] = int(state["step"])
        optimizer.state[parameter] = state


def _named(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    for group in optimizer.param_groups:
        yield from zip(group["names"], group["params"], strict=True)


def learning_rate(step: int, config: TrainConfig) -> float:
    """Learning rate of optimizer step `step` (from 0, where it is 0 when there is a warm-up)."""
    warmup = math.ceil(config.max_steps * config.warmup_ratio)
    if step < warmup:
        return config.learning_rate * step / warmup
    progress = (step - warmup) / max(1, config.max_steps - warmup)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Of what is no part of the backbone; the backbone's follows it."""
    for group in optimizer.param_groups:
        group["lr"] = value * group["rate"]

"""AdamW with the original's decay groups, plain, with 8-bit moments or on the CPU; its schedule: linear warm-up, then a
cosine down to zero.

Low-rank adapters on the frozen language model (LoRA, Hu et al., 2021), through peft: added for training, merged into
the weights they sit beside for the finished checkpoint, which then has the original's tensors only."""

from __future__ import annotations

import itertools
import logging
import math
import os
import re
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim.adamw import adamw

from finetune.recipe.train_config import LoraConfig, TrainConfig
from gr00t.data.sampler import Stream, torch_seed
from gr00t.model.gr00t_n1d7 import Gr00tN1d7

# by name, as the original's trainer does; LayerNorms are found by their type besides. Embodiment layers' `.b` and the
# position embedding do decay.
_NO_DECAY = re.compile(r"bias|layernorm|rmsnorm|(^|\.)norm($|\.)|_norm($|\.)")
_ADAPTER = "default"  # peft's name of the first one


def parameter_groups(model: nn.Module, weight_decay: float, backbone_rate: float = 1.0) -> list[dict[str, object]]:
    """Two groups, decaying and not, of the parameters that are trained, with "names" and "parts" (of the model, as
    `Gr00tN1d7.groups` names them); two more of the backbone's, where it learns at `backbone_rate` times the others'
    rate."""
    own = model.groups() if isinstance(model, Gr00tN1d7) else {}
    parts = {id(p): part for part, modules in own.items() for module in modules for p in module.parameters()}
    chosen: dict[tuple[float, bool], dict[str, Any]] = {}
    for rate, decay in itertools.product((1.0, backbone_rate), (True, False)):
        own_decay = weight_decay if decay else 0.0
        chosen[rate, decay] = {"params": [], "names": [], "parts": [], "weight_decay": own_decay, "rate": rate}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            rate = backbone_rate if name.startswith("backbone.") else 1.0
            is_norm = isinstance(model.get_submodule(name.rpartition(".")[0]), nn.LayerNorm)
            group = chosen[rate, not is_norm and _NO_DECAY.search(name.lower()) is None]
            group["params"].append(parameter)
            group["names"].append(name)
            group["parts"].append(parts.get(id(parameter), "other"))
    return [group for group in chosen.values() if group["params"]]


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimizer that train.optimizer names, over the trained parameters."""
    rate = config.learning_rate
    groups = parameter_groups(model, config.weight_decay, (config.backbone_learning_rate or rate) / rate)
    settings: dict[str, Any] = {"lr": rate, "betas": (config.adam_beta1, config.adam_beta2), "eps": config.adam_eps}
    if config.optimizer == "adamw_8bit":
        # Both moments in 8 bit, in blocks of 256 with a scale each (Dettmers et al., 2022); parameters of fewer than
        # 4096 values keep fp32 moments.
        hush_bitsandbytes()
        from bitsandbytes.optim import AdamW8bit

        return AdamW8bit(groups, **settings)
    if config.optimizer == "adamw_offload":
        return OffloadedAdamW(groups, **settings)
    return torch.optim.AdamW(groups, **settings, fused=True)  # one kernel for all parameters


def hush_bitsandbytes() -> None:
    """Silence its complaint, at each import, that a package is missing, for kernels that are never used here."""
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
                    self._update(parameter, parameter.grad, group)

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            for moment in ("exp_avg", "exp_avg_sq"):
                state[moment] = torch.zeros(parameter.shape)
        weight, gradient = self._on_cpu([parameter, gradient])
        settings: dict[str, Any] = {name: group[name] for name in ("lr", "weight_decay", "eps")}
        settings |= {"fused": True, "amsgrad": False, "maximize": False}
        settings["beta1"], settings["beta2"] = group["betas"]
        adamw([weight], [gradient], [state["exp_avg"]], [state["exp_avg_sq"]], [], [state["step"]], **settings)
        parameter.copy_(weight)

    def _on_cpu(self, tensors: list[Tensor]) -> list[Tensor]:
        """The tensors themselves on a CPU; else copies in pinned buffers, which are reused and as large as the largest
        parameter."""
        if tensors[0].device.type == "cpu":
            return tensors
        if not self._staging:
            size = max(p.numel() for group in self.param_groups for p in group["params"])
            self._staging = [torch.empty(size, pin_memory=True) for _ in tensors]
            # torchrun gives each of several processes one thread, which reads memory far slower than the machine can.
            share = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
            torch.set_num_threads(max(torch.get_num_threads(), share))
        return [b[: t.numel()].view(t.shape).copy_(t) for b, t in zip(self._staging, tensors, strict=True)]


def trained(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, str, Any]]:
    """Name, part and parameter of all that an optimizer of `build_optimizer` trains."""
    for group in optimizer.param_groups:
        yield from zip(group["names"], group["parts"], group["params"], strict=True)


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor of which FSDP2 leaves each process a share; other tensors as they are."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def optimizer_state(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Name and whole state of each trained parameter in turn; empty before its first update."""
    for name, _, parameter in trained(optimizer):
        state = optimizer.state.get(parameter, {})
        yield name, {key: whole(torch.as_tensor(value)) for key, value in state.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, states: Iterable[tuple[str, dict[str, Tensor]]]) -> None:
    """Put back what `optimizer_state` of an optimizer of the same kind gave, bit for bit."""
    parameters = {name: parameter for name, _, parameter in trained(optimizer)}
    for name, stored in states:
        parameter = parameters[name]
        device = torch.device("cpu") if isinstance(optimizer, OffloadedAdamW) else parameter.device
        state: dict[str, Any] = {key: _share(tensor, parameter).to(device) for key, tensor in stored.items()}
        if "state1" in state:  # bitsandbytes counts in an int
            state["step"] = int(state["step"])
        optimizer.state[parameter] = state


def _share(moment: Tensor, weight: Tensor) -> Tensor:
    """This process's shard of a moment, sharded like its weight; a step counter is returned as it is."""
    if moment.shape != weight.shape or not isinstance(weight, DTensor):
        return moment
    return distribute_tensor(moment.to(weight.device), weight.device_mesh, weight.placements, src_data_rank=None)


def learning_rate(step: int, config: TrainConfig) -> float:
    """Learning rate of optimizer step `step` (from 0, where it is 0 when there is a warm-up)."""
    warmup = math.ceil(config.max_steps * config.warmup_ratio)
    if step < warmup:
        return config.learning_rate * step / warmup
    progress = (step - warmup) / max(1, config.max_steps - warmup)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Set the rate of what is no part of the backbone; the backbone's follows it."""
    for group in optimizer.param_groups:
        group["lr"] = value * group["rate"]


def add_adapters(model: Gr00tN1d7, config: LoraConfig, seed: int) -> None:
    """Add trained fp32 adapters, rank x (in + out) values each, to the chosen products of every layer of the language
    model. At first they change nothing."""
    hush_bitsandbytes()  # peft imports it where it is installed
    import peft

    language_model = model.backbone.vlm.language_model
    adapters = peft.LoraConfig(
        r=config.rank or 0, lora_alpha=config.alpha, lora_dropout=config.dropout, target_modules=list(config.targets)
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed(seed, Stream.ADAPTERS))
        peft.inject_adapter_in_model(adapters, language_model, _ADAPTER)
        for _, _, layer in _adapted(language_model):
            layer.lora_A.float()  # peft gives them the frozen weight's dtype
            layer.lora_B.float()
            layer.reset_lora_parameters(_ADAPTER, True)
            model.trained_in_frozen.append(layer.lora_dropout)


def merge_adapters(model: Gr00tN1d7) -> None:
    """Add the adapters' product to the weights and take them out: tensors have the original's names again."""
    language_model = model.backbone.vlm.language_model
    with torch.no_grad():
        for parent, name, layer in list(_adapted(language_model)):
            merged = layer.get_base_layer()
            weight = merged.weight.float() + layer.get_delta_weight(_ADAPTER).float()
            merged.weight.copy_(weight)  # one rounding, where it is bf16
            setattr(parent, name, merged)
    model.trained_in_frozen.clear()
    del language_model.peft_config


def _adapted(language_model: nn.Module) -> Iterator[tuple[nn.Module, str, Any]]:
    """Parent, name and layer of every product with an adapter."""
    from peft.tuners.lora import LoraLayer

    for full, layer in language_model.named_modules():
        if isinstance(layer, LoraLayer):
            parent, _, name = full.rpartition(".")
            yield language_model.get_submodule(parent), name, layer

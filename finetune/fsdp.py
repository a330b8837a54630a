"""FSDP2 by PyTorch: every process holds its share of the head's weights, gradients and optimizer, and gathers the
weights of one block at a time.

Source: Zhao et al., 2023 (arXiv:2304.11277). The frozen backbone stays whole in every process.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from finetune.config.schema import FinetuneConfig
from finetune.engine import Engine, join_alone
from gr00t.model.action_head import ActionHead, ActionLoss
from gr00t.model.dit import TransformerBlock

torch.export.register_dataclass(ActionLoss)  # FSDP looks for tensors in what the head returns


class Fsdp2Engine(Engine):
    """The action head's weights, gradients and optimizer state divided among the processes."""

    def _build_accelerator(self, config: FinetuneConfig, device: torch.device) -> Accelerator:
        join_alone(device)
        return super()._build_accelerator(config, device)

    def prepare(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.module, self.optimizer = module, optimizer
        self._head = cast(ActionHead, module.action_head)
        _divide(self._head, init_device_mesh(self.device.type, (self.world_size,)))
        divided = dict(module.named_parameters())
        for group in optimizer.param_groups:
            group["params"] = [divided[name] for name in group["names"]]

    def accumulate(self, last: bool) -> AbstractContextManager[None]:
        return nullcontext()  # each micro-batch adds to this process's share of the gradients

    def step(self) -> Tensor:
        norm = _whole(super().step())
        self.part_norms = {part: _whole(own) for part, own in self.part_norms.items()}
        return norm

    def trained_weights(self) -> Iterator[tuple[str, Tensor]]:
        return ((name, _whole(weight)) for name, weight in super().trained_weights())

    def optimizer_state(self) -> Iterator[tuple[str, dict[str, Tensor]]]:
        for name, state in super().optimizer_state():
            yield name, {key: _whole(value) for key, value in state.items()}

    def restore_optimizer(self, states: Iterable[tuple[str, dict[str, Tensor]]]) -> None:
        weights = dict(super().trained_weights())
        super().restore_optimizer((name, {k: _share(v, weights[name]) for k, v in s.items()}) for name, s in states)

    def gather_weights(self) -> None:
        for name, weight in self.trained_weights():
            if self.is_main:
                owner, _, own = name.rpartition(".")
                setattr(self.module.get_submodule(owner), own, nn.Parameter(weight))


def _divide(head: ActionHead, mesh: DeviceMesh) -> None:
    """Make units, whose weights are gathered when their forward begins and dropped after it."""
    frozen = {parameter for parameter in head.parameters() if not parameter.requires_grad}
    for block in [module for module in head.modules() if isinstance(module, TransformerBlock)]:
        # the context's keys and values are computed before the block's own forward
        fully_shard([block.attn1.to_k, block.attn1.to_v], mesh=mesh, ignored_params=frozen)
        fully_shard(block, mesh=mesh, ignored_params=frozen)
    fully_shard(head, mesh=mesh, ignored_params=frozen)


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _share(whole: Tensor, weight: Tensor) -> Tensor:
    """This process's share of a moment, as its weight is divided; steps are no moments."""
    if whole.shape != weight.shape or not isinstance(weight, DTensor):
        return whole
    return distribute_tensor(whole.to(weight.device), weight.device_mesh, weight.placements, src_data_rank=None)

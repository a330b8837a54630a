"""ZeRO-2 by DeepSpeed: every process holds the weights, and its share of the gradients and of the optimizer.

Source: Rajbhandari et al., 2020 (arXiv:1910.02054). DeepSpeed's own mixed precision stays off, since it would cast the
trained weights to bf16 as well; it sees fp32 weights, and the frozen bf16 ones beside them are none of its business.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator, DeepSpeedPlugin, PartialState
from torch import Tensor, nn

from finetune.config.schema import FinetuneConfig
from finetune.engine import PATIENCE, Engine, join_alone
from gr00t.model.placement import pick_precision

BUCKET = 50_000_000  # elements exchanged at once: 200 MB of fp32 beside the gradients


class Zero2Engine(Engine):
    """Gradients and optimizer state divided among the processes."""

    def _build_accelerator(self, config: FinetuneConfig, device: torch.device) -> Accelerator:
        _prepare_deepspeed(device)
        join_alone(device)
        os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed asks for it
        # Accelerator(cpu=True) would leave DeepSpeed out
        PartialState(cpu=device.type == "cpu", timeout=PATIENCE)
        return Accelerator(mixed_precision="no", deepspeed_plugin=DeepSpeedPlugin(_deepspeed_config(config, device)))

    def prepare(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        names = {id(p): (n, p) for g in optimizer.param_groups for n, p in zip(g["names"], g["params"], strict=True)}
        self._parts = {n: part for g in optimizer.param_groups for n, part in zip(g["names"], g["parts"], strict=True)}
        self.optimizer = optimizer
        self._deepspeed: Any = self._accelerator.prepare(module, optimizer)[0]
        self.module = self._deepspeed
        self._named = [[names[id(p)] for p in group] for group in self._deepspeed.optimizer.bit16_groups]

    def accumulate(self, last: bool) -> AbstractContextManager[None]:
        self._deepspeed.set_gradient_accumulation_boundary(last)
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        self._deepspeed.backward(loss * self.world_size)  # DeepSpeed takes the mean over processes, too

    def step(self) -> Tensor:
        self.part_norms = self._norms_by_part()  # DeepSpeed forgets the gradients in its step
        self._deepspeed.step()
        return torch.as_tensor(self._deepspeed.get_global_grad_norm(), device=self.device)

    def _norms_by_part(self) -> dict[str, Tensor]:
        """From the squares that each process has of its share of the gradients, in one exchange."""
        squares = {part: torch.zeros((), device=self.device) for part in sorted(set(self._parts.values()))}
        for name, parameter in self.trained_weights():
            squares[self._parts[name]] += _own_square(parameter)
        whole = self.sum(torch.stack(list(squares.values())))
        return dict(zip(squares, whole.sqrt(), strict=True))

    def trained_weights(self) -> Iterator[tuple[str, Tensor]]:
        return (pair for named in self._named for pair in named)

    def optimizer_state(self) -> Iterator[tuple[str, dict[str, Tensor]]]:
        for group, named in zip(self.optimizer.param_groups, self._named, strict=True):
            flat = group["params"][0]
            state = self.optimizer.state.get(flat, {})
            for name, parameter in named:
                yield name, {k: _gather(parameter, v) if v.shape == flat.shape else v for k, v in state.items()}

    def restore_optimizer(self, states: Iterable[tuple[str, dict[str, Tensor]]]) -> None:
        shares = {
            n: (p, g["params"][0])
            for g, named in zip(self.optimizer.param_groups, self._named, strict=True)
            for n, p in named
        }
        for name, state in states:
            parameter, flat = shares[name]
            own = self.optimizer.state[flat]
            for key, value in state.items():
                if value.shape != parameter.shape:
                    own[key] = value.to(flat.device)
                    continue
                if key not in own:
                    own[key] = torch.zeros_like(flat)
                _scatter(parameter, value, own[key])


def _prepare_deepspeed(device: torch.device) -> None:
    """What DeepSpeed must know before it is first used."""
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    os.environ.setdefault("DS_LOG_LEVEL", "warning")
    from deepspeed.ops import __compatible_ops__

    __compatible_ops__["deepspeed_shm_comm"] = False  # else compiled for a minute at the first use, on the CPU


def _deepspeed_config(config: FinetuneConfig, device: torch.device) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": 1,  # DeepSpeed only prints it; micro-batches are counted by `accumulate`
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.train.max_grad_norm,
        "zero_allow_untested_optimizer": True,
        # DeepSpeed switches an autocast around it off on a GPU; without modules named here, gradients stay in fp32
        "torch_autocast": {
            "enabled": pick_precision(config.train.precision, device) == torch.bfloat16,
            "dtype": "bfloat16",
            "lower_precision_safe_modules": [],
        },
        "zero_optimization": {
            "stage": 2,
            "overlap_comm": device.type == "cuda",
            "reduce_bucket_size": BUCKET,
            "allgather_bucket_size": BUCKET,
        },
    }


def _gather(parameter: Tensor, share: Tensor) -> Tensor:
    """The whole of a flat tensor's part that belongs to a parameter, in its shape, from the processes' shares."""
    whole = torch.zeros(parameter.numel(), dtype=share.dtype, device=share.device)
    if parameter._hp_mapping is not None:  # type: ignore[attr-defined]
        inside, own = _addresses(parameter)
        whole[inside] = share[own]
    torch.distributed.all_reduce(whole)
    return whole.view(parameter.shape)


def _scatter(parameter: Tensor, whole: Tensor, share: Tensor) -> None:
    """The other way round."""
    if parameter._hp_mapping is not None:  # type: ignore[attr-defined]
        inside, own = _addresses(parameter)
        share[own] = whole.flatten()[inside].to(share)


def _own_square(parameter: Any) -> Tensor | float:
    """The squared norm of this process's share of a parameter's gradient, between backward and step."""
    if parameter._hp_mapping is None:
        return 0.0
    return parameter._hp_mapping.get_lp_grad_fragment(parameter._index_in_param_group).float().square().sum()


def _addresses(parameter: Any) -> tuple[slice, slice]:
    """Where this process's share of a parameter lies in the parameter, and in the process's flat share."""
    inside, own = parameter._hp_mapping.lp_fragment_address, parameter._hp_mapping.hp_fragment_address
    return slice(inside.start, inside.start + inside.numel), slice(own.start, own.start + own.numel)

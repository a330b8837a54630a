"""Processes, device and precision, through accelerate: one process or many, CPU or CUDA, the same code path.

Mixed precision is our own: frozen weights lie in bf16, trained ones in fp32, and forward passes run under autocast.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from torch import Tensor, nn

from finetune import optim
from finetune.config.schema import FinetuneConfig
from finetune.planning.machine import available_memory
from finetune.slurm.selftest import prove_processes_meet
from gr00t.model.placement import pick_device, pick_precision

# The main process writes 20 GB and more while the others wait; NCCL would end them after ten minutes.
PATIENCE = timedelta(minutes=30)


def build_engine(config: FinetuneConfig) -> Engine:
    """The engine that `engine.name` chooses."""
    if config.engine.name == "zero2":
        from finetune.zero import Zero2Engine  # DeepSpeed is optional

        return Zero2Engine(config)
    if config.engine.name == "fsdp2":
        from finetune.fsdp import Fsdp2Engine

        return Fsdp2Engine(config)
    return Engine(config)


def join_alone(device: torch.device) -> None:
    """A process group of one, where torchrun did not start the process and the engine needs a group."""
    if "RANK" not in os.environ and not torch.distributed.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        torch.distributed.init_process_group(backend, store=torch.distributed.HashStore(), rank=0, world_size=1)


class Engine:
    """What differs between one process and many; this one holds the whole model in every process (DDP).

    `rank` and `world_size` come from torchrun's environment. A training step is `accumulate` around the forward and
    `backward` of each micro-batch, then `step`. `part_norms` holds the norm of each trained part's gradients in the
    last step, before clipping.
    """

    def __init__(self, config: FinetuneConfig) -> None:
        device = pick_device(config.device)
        prove_processes_meet(device)
        self._accelerator = self._build_accelerator(config, device)
        self._max_grad_norm = config.train.max_grad_norm
        self.device: torch.device = self._accelerator.device
        self.rank: int = self._accelerator.process_index
        self.world_size: int = self._accelerator.num_processes
        self.is_main: bool = self._accelerator.is_main_process
        self.part_norms: dict[str, Tensor] = {}
        self.dtype = pick_precision(config.train.precision, self.device)
        if self.device.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = True
            torch.backends.cudnn.allow_tf32 = True

    def _build_accelerator(self, config: FinetuneConfig, device: torch.device) -> Accelerator:
        ddp = DistributedDataParallelKwargs(gradient_as_bucket_view=True)
        group = InitProcessGroupKwargs(timeout=PATIENCE)
        return Accelerator(cpu=device.type == "cpu", mixed_precision="no", kwargs_handlers=[ddp, group])

    def hardware(self) -> dict[str, Any]:
        """What computes: processes, device, the GPU's name (null without one) and the forward's precision."""
        gpu = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else None
        precision = {torch.bfloat16: "bf16", torch.float32: "fp32"}[self.dtype]
        return {"processes": self.world_size, "device": self.device.type, "gpu": gpu, "precision": precision}

    def prepare(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Take over the module whose forward is trained, on its device, and its optimizer (of `build_optimizer`)."""
        self.module, self.optimizer = self._accelerator.prepare_model(module), optimizer

    def autocast(self) -> AbstractContextManager[None]:
        """bf16 forward over fp32 parameters, or nothing in fp32."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def accumulate(self, last: bool) -> AbstractContextManager[None]:
        """Around a micro-batch: gradients are complete after the `last` one of a step."""
        return nullcontext() if last else self._accelerator.no_sync(self.module)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of this process's part of a loss that is a sum over processes and micro-batches."""
        (loss * self.world_size).backward()  # DDP takes the mean over processes

    def step(self) -> Tensor:
        """Clip the gradients, let the optimizer step, forget them; their norm before clipping."""
        gradients: dict[str, list[Tensor]] = {}
        for group in self.optimizer.param_groups:
            for part, parameter in zip(group["parts"], group["params"], strict=True):
                if parameter.grad is not None:
                    gradients.setdefault(part, []).append(parameter.grad)
        self.part_norms = {part: nn.utils.get_total_norm(own) for part, own in gradients.items()}
        norm = torch.linalg.vector_norm(torch.stack(list(self.part_norms.values())))
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        nn.utils.clip_grads_with_norm_(parameters, self._max_grad_norm, norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def trained_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Name and whole tensor of each trained parameter in turn; every process must go through them all."""
        for group in self.optimizer.param_groups:
            yield from zip(group["names"], group["params"], strict=True)

    def optimizer_state(self) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Name and whole optimizer state of each trained parameter in turn; every process must go through them all."""
        return optim.optimizer_state(self.optimizer)

    def restore_optimizer(self, states: Iterable[tuple[str, dict[str, Tensor]]]) -> None:
        """Put back what `optimizer_state` gave, whatever engine gave it."""
        optim.restore_optimizer(self.optimizer, states)

    def gather_weights(self) -> None:
        """Give the main process's model its whole trained weights again, when training is over."""

    def sum(self, value: Tensor) -> Tensor:
        """Sum over all processes, in a tensor of its own."""
        return self._accelerator.reduce(value.detach().clone().to(self.device), reduction="sum")

    def tell(self, text: str) -> str:
        """The main process's text, in every process; as numbers, since torch's way to send objects pickles them."""
        data = torch.tensor(list(text.encode() if self.is_main else b""), dtype=torch.int32)
        length = int(self.sum(torch.tensor(len(data))))
        everywhere = self.sum(data if self.is_main else torch.zeros(length, dtype=torch.int32))
        return bytes(everywhere.tolist()).decode()

    def main_first(self) -> AbstractContextManager[None]:
        """The main process runs the block before the others do."""
        return self._accelerator.main_process_first()

    def barrier(self) -> None:
        self._accelerator.wait_for_everyone()

    def move(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """A batch on this process's device."""
        return {k: v.to(self.device, non_blocking=True) for k, v in batch.items()}

    def peak_memory(self) -> float:
        """Highest memory so far, in GiB: of the GPU, or resident on the CPU."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**30
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # KiB on Linux

    def free_memory(self) -> int | None:
        """Bytes that this process's device has left: of the GPU, or of the host for all that run on it."""
        if self.device.type == "cuda":
            return torch.cuda.mem_get_info(self.device)[0]
        return available_memory()

    def close(self, *, failed: bool = False) -> None:
        """Leave the process group. A process that failed leaves without a word: the others may wait in a sum for it,
        and NCCL takes its leave of all together, so that the error would come when they are tired of waiting."""
        if failed and self.world_size > 1:
            return
        self._accelerator.end_training()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()

"""Processes, device and precision, through accelerate: one process or many, CPU or CUDA, the same code path.

Mixed precision is our own: frozen weights lie in bf16, trained ones in fp32, and forward passes run under autocast."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any, cast

import torch
import torch.distributed as dist
from accelerate import Accelerator, DeepSpeedPlugin, DistributedDataParallelKwargs, InitProcessGroupKwargs, PartialState
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from finetune.plan.memory import available_memory
from finetune.recipe import FinetuneConfig
from finetune.training.optimizer import optimizer_state, restore_optimizer, trained, whole
from finetune.training.process_selftest import prove_processes_meet
from gr00t.model.action_head import ActionHead, ActionLoss
from gr00t.model.device import pick_device, pick_precision
from gr00t.model.dit import TransformerBlock

# The main process writes 20 GB and more while the others wait; NCCL would end them after ten minutes.
PATIENCE = timedelta(minutes=30)
BUCKET = 50_000_000  # elements that ZeRO-2 exchanges at once: 200 MB of fp32 beside the gradients

_left: list[Any] = []  # process groups, kept until the process ends


def build_engine(config: FinetuneConfig) -> Engine:
    """The engine that `engine.name` chooses."""
    return {"zero2": Zero2Engine, "fsdp2": Fsdp2Engine}.get(config.engine.name, Engine)(config)


def agreed_precision(precision: str, device: torch.device) -> torch.dtype:
    """What all processes of this training compute in: where they lie on several kinds of machines, in bf16 only if it
    is what each would choose."""
    own = pick_precision(precision, device)
    if not (dist.is_available() and dist.is_initialized()):
        return own
    wanted = torch.tensor([float(own == torch.bfloat16)], device=device)
    dist.all_reduce(wanted, op=dist.ReduceOp.MIN)
    return torch.bfloat16 if wanted.item() else torch.float32


class Engine:
    """What differs between one process and many; this one holds the whole model in every process (DDP), the other two
    divide memory among them.

    A training step is `accumulate` around the forward and `backward` of each micro-batch, then `step`. `part_norms`
    holds the norm of each trained part's gradients in the last step, before clipping.
    """

    def __init__(self, config: FinetuneConfig) -> None:
        device = pick_device(config.device)
        prove_processes_meet(device)
        self._accelerator = self._build_accelerator(config, device)
        self._max_grad_norm = config.train.max_grad_norm
        self.device: torch.device = self._accelerator.device
        self.rank, self.world_size = self._accelerator.process_index, self._accelerator.num_processes
        self.is_main: bool = self._accelerator.is_main_process
        self.part_norms: dict[str, Tensor] = {}
        self.dtype = agreed_precision(config.train.precision, self.device)
        if self.device.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = True
            torch.backends.cudnn.allow_tf32 = True

    def _build_accelerator(self, config: FinetuneConfig, device: torch.device) -> Accelerator:
        handlers = [
            DistributedDataParallelKwargs(gradient_as_bucket_view=True),
            InitProcessGroupKwargs(timeout=PATIENCE),
        ]
        return Accelerator(cpu=device.type == "cpu", mixed_precision="no", kwargs_handlers=handlers)

    def hardware(self) -> dict[str, Any]:
        """What computes: processes, device, the GPU's name (null without one) and the forward's precision."""
        gpu = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else None
        precision = "bf16" if self.dtype == torch.bfloat16 else "fp32"
        return {"processes": self.world_size, "device": self.device.type, "gpu": gpu, "precision": precision}

    def prepare(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Take over the module whose forward is trained, on its device, and its optimizer (of `build_optimizer`)."""
        self.module, self.optimizer = self._accelerator.prepare_model(module), optimizer

    def autocast(self) -> AbstractContextManager[None]:
        """bf16 forward over fp32 parameters, or nothing in fp32."""
        return torch.autocast(self.device.type, self.dtype) if self.dtype != torch.float32 else nullcontext()

    def accumulate(self, last: bool) -> AbstractContextManager[None]:
        """Around a micro-batch: gradients are complete after the `last` one of a step."""
        return nullcontext() if last else self._accelerator.no_sync(self.module)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of this process's part of a loss that is a sum over processes and micro-batches."""
        (loss * self.world_size).backward()  # DDP takes the mean over processes

    def step(self) -> Tensor:
        """Clip the gradients, let the optimizer step, forget them; their norm before clipping, a scalar."""
        gradients: dict[str, list[Tensor]] = {}
        for _, part, parameter in trained(self.optimizer):
            if parameter.grad is not None:
                gradients.setdefault(part, []).append(parameter.grad)
        self.part_norms = {part: whole(nn.utils.get_total_norm(own)) for part, own in gradients.items()}
        norm = torch.linalg.vector_norm(torch.stack(list(self.part_norms.values())))
        nn.utils.clip_grads_with_norm_([p for _, _, p in trained(self.optimizer)], self._max_grad_norm, norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def trained_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Name and whole tensor of each trained parameter in turn; every process must go through them all."""
        return ((name, whole(parameter)) for name, _, parameter in trained(self.optimizer))

    def optimizer_state(self) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Name and whole optimizer state of each trained parameter in turn; every process must go through them all."""
        return optimizer_state(self.optimizer)

    def restore_optimizer(self, states: Iterable[tuple[str, dict[str, Tensor]]]) -> None:
        """Put back what `optimizer_state` gave, whatever engine gave it."""
        restore_optimizer(self.optimizer, states)

    def gather_weights(self) -> None:
        """Give the main process's model its whole trained weights again, when training is over."""

    def sum(self, value: Tensor) -> Tensor:
        """Sum over all processes, in a tensor of its own."""
        return self._accelerator.reduce(value.detach().clone().to(self.device), reduction="sum")

    def tell(self, value: Any) -> Any:
        """The main process's value, as JSON has it, in every process; torch's way to send objects pickles them."""
        data = torch.tensor(list(json.dumps(value).encode() if self.is_main else b""), dtype=torch.int32)
        length = int(self.sum(torch.tensor(len(data))))
        everywhere = self.sum(data if self.is_main else torch.zeros(length, dtype=torch.int32))
        return json.loads(bytes(everywhere.tolist()))

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
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # KiB on Linux

    def free_memory(self) -> int | None:
        """Bytes that this process's device has left: of the GPU, or of the host for all that run on it."""
        if self.device.type == "cuda":
            return torch.cuda.mem_get_info(self.device)[0]
        return available_memory()

    def close(self, *, failed: bool = False) -> None:
        """Leave the process group; a process that failed just ends. The others may wait in a sum for it, and NCCL
        shuts down in all processes together, so that its error would appear only after their time-out."""
        if failed and self.world_size > 1:
            return
        if dist.is_initialized():
            # It must outlive the model's reducer, which would wait, holding the GIL, for threads of gloo that may need
            # the GIL to free the tensors of a sum that has just ended.
            _left.append(dist.group.WORLD)
        self._accelerator.end_training()
        if dist.is_initialized():
            dist.destroy_process_group()


def join_alone(device: torch.device) -> None:
    """A process group of one, where torchrun did not start the process and the engine needs a group."""
    if "RANK" not in os.environ and not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)


torch.export.register_dataclass(ActionLoss)  # FSDP looks for tensors in what the head returns


class Fsdp2Engine(Engine):
    """FSDP2 by PyTorch (Zhao et al., 2023, arXiv:2304.11277): the action head's weights, gradients and optimizer state
    divided among the processes, one block's weights gathered at a time. The frozen backbone stays whole in each."""

    def _build_accelerator(self, config: FinetuneConfig, device: torch.device) -> Accelerator:
        join_alone(device)
        return super()._build_accelerator(config, device)

    def prepare(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.module, self.optimizer = module, optimizer
        head, mesh = cast(ActionHead, module.action_head), init_device_mesh(self.device.type, (self.world_size,))
        frozen = {parameter for parameter in head.parameters() if not parameter.requires_grad}
        # Units, whose weights are gathered when their forward begins and dropped after it.
        for block in [module for module in head.modules() if isinstance(module, TransformerBlock)]:
            # the context's keys and values are computed before the block's own forward
            fully_shard([block.attn1.to_k, block.attn1.to_v], mesh=mesh, ignored_params=frozen)
            fully_shard(block, mesh=mesh, ignored_params=frozen)
        fully_shard(head, mesh=mesh, ignored_params=frozen)
        divided = dict(module.named_parameters())
        for group in optimizer.param_groups:
            group["params"] = [divided[name] for name in group["names"]]

    def accumulate(self, last: bool) -> AbstractContextManager[None]:
        return nullcontext()  # each micro-batch adds to this process's share of the gradients

    def gather_weights(self) -> None:
        for name, weight in self.trained_weights():
            if self.is_main:
                owner, _, own = name.rpartition(".")
                setattr(self.module.get_submodule(owner), own, nn.Parameter(weight))


class Zero2Engine(Engine):
    """ZeRO-2 by DeepSpeed (Rajbhandari et al., 2020, arXiv:1910.02054): every process holds the weights, and its share
    of the gradients and of the optimizer state.

    DeepSpeed's own mixed precision stays off, since it would cast the trained weights to bf16 as well.
    """

    def _build_accelerator(self, config: FinetuneConfig, device: torch.device) -> Accelerator:
        os.environ.setdefault("DS_ACCELERATOR", device.type)
        os.environ.setdefault("DS_LOG_LEVEL", "warning")
        from deepspeed.ops import __compatible_ops__

        __compatible_ops__["deepspeed_shm_comm"] = False  # else compiled for a minute at the first use, on the CPU
        join_alone(device)
        os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed asks for it
        # Accelerator(cpu=True) would leave DeepSpeed out
        PartialState(cpu=device.type == "cpu", timeout=PATIENCE)
        settings = {
            "train_micro_batch_size_per_gpu": 1,  # DeepSpeed only prints it; micro-batches are counted by `accumulate`
            "gradient_accumulation_steps": 1,
            "gradient_clipping": config.train.max_grad_norm,
            "zero_allow_untested_optimizer": True,
            # DeepSpeed switches an autocast around it off on a GPU; without modules named here, gradients stay in fp32
            "torch_autocast": {
                "enabled": agreed_precision(config.train.precision, device) == torch.bfloat16,
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
        return Accelerator(mixed_precision="no", deepspeed_plugin=DeepSpeedPlugin(settings))

    def prepare(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        found = {id(parameter): (name, part, parameter) for name, part, parameter in trained(optimizer)}
        self._deepspeed: Any = self._accelerator.prepare(module, optimizer)[0]
        self.module, self.optimizer = self._deepspeed, optimizer
        groups = zip(self._deepspeed.optimizer.bit16_groups, optimizer.param_groups, strict=True)
        # A group's own parameter is this process's share of all its parameters, in one piece.
        self._shares = [(*found[id(p)], group["params"][0]) for own, group in groups for p in own]

    def accumulate(self, last: bool) -> AbstractContextManager[None]:
        self._deepspeed.set_gradient_accumulation_boundary(last)
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        self._deepspeed.backward(loss * self.world_size)  # DeepSpeed takes the mean over processes, too

    def step(self) -> Tensor:
        # Before DeepSpeed forgets the gradients, each process squares its share, and one exchange adds the squares up.
        squares = {part: torch.zeros((), device=self.device) for part in sorted({part for _, part, *_ in self._shares})}
        for _, part, parameter, _ in self._shares:
            if parameter._hp_mapping is not None:
                share = parameter._hp_mapping.get_lp_grad_fragment(parameter._index_in_param_group)
                squares[part] += share.float().square().sum()
        norms = self.sum(torch.stack(list(squares.values()))).sqrt()
        self.part_norms = dict(zip(squares, norms, strict=True))
        self._deepspeed.step()
        return torch.as_tensor(self._deepspeed.get_global_grad_norm(), device=self.device)

    def trained_weights(self) -> Iterator[tuple[str, Tensor]]:
        return ((name, parameter) for name, _, parameter, _ in self._shares)

    def optimizer_state(self) -> Iterator[tuple[str, dict[str, Tensor]]]:
        for name, _, parameter, flat in self._shares:
            state = self.optimizer.state.get(flat, {})
            yield name, {k: _gather(parameter, v) if v.shape == flat.shape else v for k, v in state.items()}

    def restore_optimizer(self, states: Iterable[tuple[str, dict[str, Tensor]]]) -> None:
        shares = {name: (parameter, flat) for name, _, parameter, flat in self._shares}
        for name, state in states:
            parameter, flat = shares[name]
            own = self.optimizer.state[flat]
            for key, value in state.items():
                if value.shape != parameter.shape:
                    own[key] = value.to(flat.device)
                elif key not in own:
                    own[key] = torch.zeros_like(flat)
                if value.shape == parameter.shape and parameter._hp_mapping is not None:
                    inside, place = _addresses(parameter)
                    own[key][place] = value.flatten()[inside].to(own[key])


def _gather(parameter: Any, share: Tensor) -> Tensor:
    """The whole of a flat tensor's part that belongs to a parameter, in its shape, from the processes' shares."""
    whole = torch.zeros(parameter.numel(), dtype=share.dtype, device=share.device)
    if parameter._hp_mapping is not None:
        inside, place = _addresses(parameter)
        whole[inside] = share[place]
    dist.all_reduce(whole)
    return whole.view(parameter.shape)


def _addresses(parameter: Any) -> tuple[slice, slice]:
    """Where this process's share of a parameter lies in the parameter, and in the process's flat share."""
    inside, own = parameter._hp_mapping.lp_fragment_address, parameter._hp_mapping.hp_fragment_address
    return slice(inside.start, inside.start + inside.numel), slice(own.start, own.start + own.numel)

"""Memory of one process on its device, part by part, at the moment of a step that needs most; memory of the host; and
what of it this machine has left, also where a job may use only a part."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from finetune.plan.activations import FEATURES, FP32, KEYS, Batch, Kernels, Stage, stages
from finetune.plan.model_shapes import Parameter, Shape
from finetune.recipe import FinetuneConfig

FEATURE_BATCH = 16  # rows a forward while features are cached, as in finetune/training/caches.py
ZERO_BUCKETS = 2 * 50_000_000 * FP32  # gradients as in finetune/training/engine.py; one fills while one is sent
CUDA_CONTEXT = 600_000_000  # driver, kernels and libraries of one process
CUDA_FRAGMENTATION = 0.08  # of what a step allocates and frees
CPU_LIBRARIES = 200_000_000  # buffers of oneDNN and OpenMP, with the next fitted to benchmarks/training_step.py
CPU_FRAGMENTATION = 0.3
EIGHT_BIT_LEAST = 4096  # values of a tensor from which bitsandbytes holds its moments in 8 bit
HOST_PROCESS = 3_000_000_000  # Python, PyTorch, CUDA's libraries, pinned batches
LOADER_PROCESS = 500_000_000


def available_memory(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes that may still be taken on this host; None where it does not say (not Linux).

    The smallest of what the kernel can give and what the control groups of this process (a SLURM job's --mem), from its
    own up to the root and of version 1 and 2, leave.
    """
    found = [int(kib) * 1024 for kib in re.findall(r"^MemAvailable: *(\d+)", _text(proc / "meminfo"), re.MULTILINE)]
    for controllers, path in re.findall(r"^\d+:(.*?):/*(.*)$", _text(proc / "self" / "cgroup"), re.MULTILINE):
        if controllers and "memory" not in controllers.split(","):
            continue
        root = cgroups / "memory" if controllers else cgroups
        files = ("limit_in_bytes", "usage_in_bytes") if controllers else ("max", "current")
        for folder in (root / path, *(root / path).parents):
            if folder.is_relative_to(root):
                found += _left(folder, *files)
    return min(found, default=None)


def own_memory(proc: Path = Path("/proc")) -> int:
    """Bytes of this process that are no pages of files, which count as available; 0 where the host does not say."""
    found = re.search(r"^RssAnon:\s*(\d+)", _text(proc / "self" / "status"), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def _left(folder: Path, limit: str, used: str) -> list[int]:
    """Limit less use, where both are known; page cache, which a group gives back, counts as free."""
    most, now = (_text(folder / f"memory.{name}").strip() for name in (limit, used))
    cache = re.findall(r"^(?:in)?active_file (\d+)$", _text(folder / "memory.stat"), re.MULTILINE)
    return [int(most) - int(now) + sum(map(int, cache))] if most.isdecimal() and now.isdecimal() else []


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def local_processes() -> int:
    """Training processes on this node, as torchrun says."""
    text = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return int(text) if text.isdecimal() and int(text) else 1


# -- the device --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """A number of bytes with a name."""

    name: str
    size: int
    note: str = ""


def total_size(parts: Iterable[Part]) -> int:
    return sum(part.size for part in parts)


@dataclass(frozen=True)
class Run:
    """What decides memory: the model, what of it is trained, how a step is cut, and what it runs on."""

    config: FinetuneConfig
    shape: Shape
    parameters: list[Parameter]
    gpus: int
    per_node: int
    batch: Batch
    kernels: Kernels
    making: bool = True  # cached features are computed first, by the process that then trains

    @property
    def cached(self) -> bool:
        """Whether the backbone's features are computed once, before training."""
        return self.config.train.features == "cached"

    @property
    def trained(self) -> int:
        return sum(p.count for p in self.parameters if p.trained)

    @property
    def shares(self) -> int:
        """Processes that divide gradients and optimizer among them."""
        return self.gpus if self.config.engine.name in ("zero2", "fsdp2") else 1

    @property
    def accumulation(self) -> int:
        """Micro-batches of one process in a step."""
        return max(1, self.config.train.global_batch_size // (self.gpus * self.batch.samples))


@dataclass(frozen=True)
class Moment:
    """What a step holds at one moment besides weights and optimizer."""

    name: str
    kept: int = 0
    copies: int = 0
    passing: int = 0
    gradients: int = 0

    @property
    def total(self) -> int:
        return self.kept + self.copies + self.passing + self.gradients


@dataclass(frozen=True)
class DeviceMemory:
    """Parts at the peak, in the order of the report; `moments`: the largest total of each phase of a step."""

    parts: list[Part]
    moments: dict[str, int]
    peak_moment: str

    @property
    def total(self) -> int:
        return total_size(self.parts)


def device_memory(run: Run) -> DeviceMemory:
    """Peak of one process on its GPU (or of its own memory, on a CPU)."""
    steady, moments = _weights(run, backbone=not run.cached), _moments(run)
    totals = {moment.name: total_size(steady) + moment.total for moment in moments}
    peak = _fullest(moments)
    if run.cached and run.making:
        whole, batch = _weights(run, backbone=True)[:2], replace(run.batch, samples=FEATURE_BATCH)
        before = stages(run.shape, run.parameters, batch, run.kernels, cached=False)
        making = replace(_forward(before, 0, 0)[0], name="caching features")
        totals[making.name] = total_size(whole) + making.total
        if totals[making.name] > totals[peak.name]:
            steady, peak = whole, making
    changing = peak.kept + peak.passing + peak.copies
    if run.kernels.cuda:
        allowed, what = CUDA_CONTEXT + int(CUDA_FRAGMENTATION * changing), "CUDA context, fragmentation"
    else:
        allowed, what = CPU_LIBRARIES + int(CPU_FRAGMENTATION * changing), "libraries, fragmentation"
    parts = [
        *steady,
        Part("gradients", peak.gradients, f"fp32, {peak.name}"),
        Part("bf16 copies of weights", peak.copies, "autocast keeps them until the backward"),
        Part("kept activations", peak.kept, peak.name),
        Part("passing tensors", peak.passing, peak.name),
        Part(what, allowed, "an allowance"),
    ]
    return DeviceMemory([part for part in parts if part.size], totals, peak.name)


def _weights(run: Run, *, backbone: bool) -> list[Part]:
    """What is held throughout a step: frozen weights, trained weights, moments, inputs."""
    frozen = sum(p.count for p in run.parameters if not p.trained and (backbone or not p.name.startswith("backbone.")))
    size, optimizer, batch = run.kernels.size, run.config.train.optimizer, run.batch
    whole, inputs = FP32 * run.trained, "cached features" if run.cached else "uint8 images"
    per_sample = batch.tokens * run.shape.context * size if run.cached else batch.images * batch.side**2 * 3
    return [
        Part("frozen weights", size * frozen, "bf16" if run.kernels.bf16 else "fp32"),
        Part("trained weights", whole // (run.shares if run.config.engine.name == "fsdp2" else 1), "fp32"),
        Part("optimizer moments", 0 if _offloads(run) else moments_size(run) // run.shares, optimizer),
        *_exchanged(run),
        Part("batch", run.accumulation * batch.samples * per_sample, inputs),
    ]


def _offloads(run: Run) -> bool:
    """Whether the moments lie elsewhere than on the device."""
    return run.config.train.optimizer == "adamw_offload" and run.kernels.cuda


def _exchanged(run: Run) -> list[Part]:
    """What engines that divide memory hold besides. ZeRO-2: the weights that a process updates once more, and buckets.
    FSDP2: a block's weights, the next one's and its gradients, and what is in no block, whole."""
    if run.config.engine.name == "zero2":
        own = FP32 * run.trained // run.shares
        return [Part("own share of the weights", own, "fp32"), Part("ZeRO-2's buckets", ZERO_BUCKETS, "two")]
    if run.config.engine.name == "fsdp2":
        blocks: Counter[str] = Counter()  # trained numbers of each transformer block of the head
        for p in run.parameters:
            block = re.match(r"action_head\..*transformer_blocks\.\d+\.", p.name)
            if block and p.trained:
                blocks[block[0]] += p.count
        rest = run.trained - blocks.total()
        return [Part("gathered weights", FP32 * (3 * max(blocks.values(), default=0) + 2 * rest), "fp32")]
    return []


def moments_size(run: Run) -> int:
    """Both moments: fp32, or 8 bit with a scale for every 256 values, except of small tensors."""
    if run.config.train.optimizer != "adamw_8bit":
        return 2 * FP32 * run.trained
    small = sum(p.count for p in run.parameters if p.trained and p.count < EIGHT_BIT_LEAST)
    return 2 * FP32 * small + int(2 * (1 + FP32 / 256) * (run.trained - small))


def _moments(run: Run) -> list[Moment]:
    """The fullest moment of each phase of a step."""
    parts = stages(run.shape, run.parameters, run.batch, run.kernels, cached=run.cached)
    if run.cached:  # they are the batch
        parts = [replace(stage, kept=0) if stage.name == FEATURES else stage for stage in parts]
    recomputed = run.config.train.activation_checkpointing
    if recomputed:
        parts = [stage.recomputed() for stage in parts]
    at_step = sum(stage.gradients for stage in parts)
    held = at_step if run.accumulation > 1 or run.gpus > 1 else 0  # DDP's buckets, or the micro-batch before
    if run.shares > 1:  # the own share alone; ZeRO-2 flattens it once more for the update
        held = at_step // run.shares
        at_step = 2 * held if run.config.engine.name == "zero2" else held
    # a CPU's plain products keep copies of keys and values, and the originals stay until the forward ends
    keys = 0 if run.kernels.cuda or recomputed else next(s.kept - s.passing for s in parts if s.name == KEYS)
    return [*_forward(parts, held, keys), _backward(parts, held), Moment("optimizer step", gradients=at_step)]


def _fullest(moments: list[Moment]) -> Moment:
    return max(moments, key=lambda moment: moment.total)


def _forward(parts: list[Stage], held: int, keys: int) -> list[Moment]:
    """The frozen part's fullest moment and the head's."""
    phases = [[Moment(f"forward of the {part}", gradients=held)] for part in ("backbone", "head")]
    moments, kept, copies, extra = phases[0], 0, 0, 0
    for stage in parts:
        if stage.name == FEATURES:
            moments = phases[1]
        if stage.name == KEYS:
            extra = keys
        kept, copies = kept + stage.kept, copies + stage.copies + stage.brief
        moments.append(Moment(moments[0].name, kept, copies, stage.passing + extra, held))
    return [_fullest(phase) for phase in phases]


def _backward(parts: list[Stage], held: int) -> Moment:
    """The last stage first: what it kept goes, its gradients come."""
    moments, gradients = [Moment("backward")], held
    kept, copies = sum(stage.kept for stage in parts), sum(stage.copies for stage in parts)
    for stage in reversed(parts):
        gradients += 0 if held else stage.gradients
        passing = stage.passing + stage.again if stage.kept else 0
        moments.append(Moment("backward", kept, copies, passing, gradients))
        kept, copies = kept - stage.kept, copies - stage.copies
    return _fullest(moments)


# -- the host ----------------------------------------------------------------------------------------------------------


def host_memory(run: Run) -> list[Part]:
    """Memory of one node besides the devices' own, at its fullest: training with a snapshot being written."""
    processes, loaders = run.per_node, run.per_node * run.config.train.num_workers
    largest = max((p.count for p in run.parameters if p.trained), default=0)
    offloaded = moments_size(run) + 2 * FP32 * largest if _offloads(run) else 0
    own = processes * HOST_PROCESS if run.kernels.cuda else 0
    waiting = FP32 * sum(p.waiting for p in run.parameters)
    second = "a second one where writing takes longer than train.save_steps steps"
    return [
        Part("processes", own, "Python, PyTorch, CUDA's libraries: an allowance"),
        Part("loader processes", loaders * LOADER_PROCESS, "an allowance"),
        Part("weights of other robots", processes * waiting, "for the finished checkpoint"),
        Part("offloaded moments", processes * offloaded, "with pinned copies of the largest tensor"),
        Part("checkpoint snapshot", checkpoint_size(run), second),
    ]


def checkpoint_size(run: Run) -> int:
    """Trained weights in fp32 and their moments, as a checkpoint to resume from holds them."""
    return FP32 * run.trained + moments_size(run)


def loading_memory(run: Run) -> int:
    """Of one node, while its processes read the base: the whole model of each."""
    frozen, trained = (sum(max(p.count, p.waiting) for p in run.parameters if p.trained is k) for k in (False, True))
    return run.per_node * (frozen * run.kernels.size + trained * FP32)

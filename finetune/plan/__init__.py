"""What a fine-tune needs before it starts: memory, disk, time. Nothing here imports torch: a login node can run it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from finetune.plan.activations import Batch, Kernels
from finetune.plan.disk_and_time import DiskPart, Duration, Gpu, disk, find_layouts, on_gpu
from finetune.plan.memory import (
    CUDA_CONTEXT,
    HOST_PROCESS,
    DeviceMemory,
    Part,
    Run,
    available_memory,
    device_memory,
    host_memory,
    loading_memory,
    local_processes,
    own_memory,
    total_size,
)
from finetune.plan.model_shapes import parameters, shape_of_architecture, shape_of_checkpoint
from finetune.recipe import FinetuneConfig, check_batch, check_cache, check_divided, check_evaluation, trains_backbone
from gr00t.errors import ToolkitError, free_space, in_bytes
from gr00t.file_reading import parsing, read_json
from gr00t.model.checkpoint_folder import resolve_folder
from toolkit.declaration import key
from toolkit.shared_keys import is_hub_id, modality_configs

TEXT_TOKENS = 22  # of a conflict split, where no base says otherwise
LONG = "rotate the smallest orange pyramid on the right"  # where each episode has its own instruction
CHAT = "<|im_start|>user\n{images}{text}<|im_end|>\n"
IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
FEWEST_VIEWS = 4
LARGEST_SIDE = 1 << 14  # pixels
PROCESSOR = "processor_config.json"
WRITTEN = {"checkpoints": "checkpoint-*", "frame store": "frames-*", "feature cache": "features-*"}
GPU, NODE = "each GPU", "each node's memory"  # what a verdict is about
START_ANYWAY = "To start anyway: check_fit=false."


@dataclass(kw_only=True)
class PlanConfig(FinetuneConfig):
    """What a fine-tune will need: parameters, memory by part, disk, time. Takes every key of the fine-tune."""

    gpus: int | None = key("training processes, one on each GPU; null for what cluster asks for", None, at_least=1)
    gpu: str | None = key("GPU by name (a100, a100-80gb, h100, h200, l40s, 4090, ...); null for cluster.gpu_type", None)
    gpu_memory_gb: float | None = key("memory of a GPU, in GB; null for what the table says", None, more_than=0)
    host_memory_gb: float | None = key("memory of a node, in GB; null leaves it unchecked", None, more_than=0)
    json: bool = key("print JSON in place of tables", False)

    def check_here(self) -> None:
        """Nothing of this machine is checked: a plan is made before the data, the base and the GPUs are there."""
        check_cache(self)
        check_divided(self)
        check_evaluation(self)
        if self.engine.name == "single" and (self.gpus or 1) > 1:
            raise ToolkitError(f"engine=single is one process, not gpus={self.gpus}. Choose engine=ddp.")
        if self.gpus is not None:
            check_batch(self.train.global_batch_size, self.train.micro_batch_size, self.gpus)


@dataclass(frozen=True)
class Plan:
    """What a run needs. `gpu`: None where it is unknown, or the run is for a CPU."""

    run: Run
    device: DeviceMemory
    host: list[Part]
    disk: list[DiskPart]
    gpu: Gpu | None
    duration: Duration | None


def make_plan(
    config: FinetuneConfig, gpus: int, *, per_node: int | None = None, cuda: bool = True, gpu: Gpu | None = None
) -> Plan:
    """The plan of `gpus` processes, `per_node` of them on a node (None: all)."""
    train, layouts, folder = config.train, find_layouts(config), _base_folder(config.model.base)
    shape = shape_of_checkpoint(folder) if folder else shape_of_architecture(config.model.architecture)
    video = modality_configs(config.dataset)["video"]
    images = len(video.modality_keys) * len(video.delta_indices)
    side = _image_side(folder, config.model.architecture.image_size)
    instructions = {text for layout in layouts for text in layout.tasks.values()} or {config.split.instruction or LONG}
    text = _text_tokens(folder, instructions, images)
    batch = Batch(_samples(config, gpus), images, side, text, train.backbone_batch_size, train.noise_draws)
    kernels = Kernels(bf16=train.precision == "bf16" or (train.precision in ("auto", "fastest") and cuda), cuda=cuda)
    run = Run(config, shape, parameters(shape, train), gpus, per_node or gpus, batch, kernels)
    duration = on_gpu(run, gpu) if cuda and gpu else None
    return Plan(run, device_memory(run), host_memory(run), disk(run, layouts), gpu, duration)


def _samples(config: FinetuneConfig, gpus: int) -> int:
    return config.train.micro_batch_size or math.ceil(config.train.global_batch_size / gpus)


def _base_folder(base: str) -> Path | None:
    """The base checkpoint where it is on this machine, in a folder or in the hub's cache; the network is not asked."""
    if not is_hub_id(base):
        return Path(base) if (Path(base) / "config.json").is_file() else None
    try:
        return resolve_folder(base, local_files_only=True)
    except ToolkitError:
        return None


def _image_side(folder: Path | None, otherwise: int) -> int:
    places = [folder, folder / "processor"] if folder else []  # the release has the file in both, others in one
    path = next((place / PROCESSOR for place in places if (place / PROCESSOR).is_file()), None)
    if path is None:
        return max(32, otherwise // 32 * 32)
    with parsing(path):
        settings = read_json(path).get("processor_kwargs") or {}
        side = int(settings.get("shortest_image_edge") or (settings.get("image_target_size") or [otherwise])[0])
        if not 0 < side <= LARGEST_SIDE:
            raise ValueError(f"images of {side} pixels")
    return max(32, side // 32 * 32)


def _text_tokens(folder: Path | None, instructions: set[str], images: int) -> int:
    """Of the longest instruction in its chat form, the marks around images included, image tokens not."""
    path = folder / "processor" / "vlm" / "tokenizer.json" if folder else None
    if path is None or not path.is_file():
        return TEXT_TOKENS
    from tokenizers import Tokenizer

    from gr00t.data.processor_files import formalize  # with numpy, which --help should not wait for

    with parsing(path):
        tokenizer = Tokenizer.from_file(str(path))
    chats = [CHAT.format(images=IMAGE * images, text=formalize(text)) for text in instructions]
    return max(len(tokenizer.encode(chat).ids) for chat in chats) - images


# -- whether it fits, and what makes it fit ----------------------------------------------------------------------------


class Change(NamedTuple):
    """Settings as they are typed, and the run they make."""

    settings: str
    config: FinetuneConfig
    gpus: int


def changes(config: FinetuneConfig, gpus: int, *, cuda: bool = True) -> Iterator[Change]:
    """What makes a run need less memory, the cheapest first, each change on top of the ones before it."""
    train, sizes, engine = config.train, _micro_batches(config, gpus), config.engine.name
    cached = train.features != "cached" and not trains_backbone(config)
    divided = engine in ("zero2", "fsdp2")  # which take no other optimizer
    views = "" if config.augment.views else f" augment.views={FEWEST_VIEWS}"
    for wanted, name, value in (
        (sizes, "micro_batch_size", min(sizes, default=0)),
        (cached, "features", "cached"),
        (not train.activation_checkpointing, "activation_checkpointing", True),
        (train.optimizer == "adamw" and not divided, "optimizer", "adamw_8bit"),
    ):
        if wanted:
            config = _with(config, **{name: value})
            also = views if name == "features" else ""  # which no memory depends on
            yield Change(f"train.{name}={str(value).lower()}{also}", config, gpus)
    share, dividing = train.global_batch_size // (config.train.micro_batch_size or 1), engine if divided else "zero2"
    # on a CPU all processes share the memory that is to be saved
    for more in (gpus, 2 * gpus, 4 * gpus) if cuda else ():
        if more > 1 and share % more == 0 and (dividing, more) != (engine, gpus):
            apart = replace(_with(config, optimizer="adamw"), engine=replace(config.engine, name=dividing))
            yield Change(f"engine={dividing} on {more} GPUs", apart, more)


def _micro_batches(config: FinetuneConfig, gpus: int) -> list[int]:
    """Smaller micro-batches that divide a process's share, the largest first."""
    share = max(1, config.train.global_batch_size // gpus)
    now = config.train.micro_batch_size or share
    return [size for size in range(now - 1, 0, -1) if share % size == 0]


def _with(config: FinetuneConfig, **train: Any) -> FinetuneConfig:
    return replace(config, train=replace(config.train, **train))


def remedy(
    config: FinetuneConfig, gpus: int, memory: Callable[[FinetuneConfig, int], int], room: int, *, cuda: bool = True
) -> list[tuple[str, int]]:
    """Settings to add, in order, with the bytes each leads to; the last one fits, or nothing does."""
    for micro in _micro_batches(config, gpus):
        size = memory(_with(config, micro_batch_size=micro), gpus)
        if size <= room:
            return [(f"train.micro_batch_size={micro}", size)]
    taken: list[tuple[str, int]] = []
    for settings, changed, processes in changes(config, gpus, cuda=cuda):
        size = memory(changed, processes)
        if settings.startswith("engine"):  # in place of fewer GPUs, and of an optimizer that it does not divide
            taken = [(s, size) for s, size in taken if not s.startswith(("engine", "train.optimizer"))]
        taken.append((settings, size))
        if size <= room:
            break
    return taken


@dataclass(frozen=True)
class Verdict:
    """`needed` bytes of `room` (None: not known); remedies: settings to add, in order, and the bytes of each."""

    what: str
    needed: int
    room: int | None
    remedies: list[tuple[str, int]]

    @property
    def otherwise(self) -> str:
        """What to do where none of `changes` helps."""
        if self.what == NODE:
            return (
                "Ask for more memory (cluster.memory), for fewer processes on a node, or for fewer train.num_workers."
            )
        larger = "GPUs with more memory" if self.what == GPU else "a machine with more memory"
        asked = "" if self.what == GPU else " (a job asks for it by cluster.memory)"
        return f"No setting makes it fit here: take {larger}{asked}, or train less (train.tune.*)."

    @property
    def fits(self) -> bool:
        """Whether the room is enough, or not known."""
        return self.room is None or self.needed <= self.room

    def sentence(self) -> str:
        """As in "fits: 21.4 of 40.0 GB"."""
        if self.room is None:
            return f"{self.what}: needs {gigabytes(self.needed)} GB"
        word = "fits" if self.fits else "does not fit"
        return f"{self.what} {word}: {gigabytes(self.needed)} of {gigabytes(self.room)} GB"

    def advice(self) -> list[str]:
        """What to change, a line each."""
        if self.room is None or self.fits:
            return []
        helps = self.remedies and self.remedies[-1][1] <= self.room
        listed = "\n  and ".join(f"{settings}: {gigabytes(size)} GB" for settings, size in self.remedies)
        said = [f"  {listed}"] if listed else []
        return ["What makes it fit:" if helps else self.otherwise, *"\n".join(said).splitlines()]


def gigabytes(size: float) -> str:
    """In GB (1e9), with as many digits as say something."""
    return f"{size / 1e9:,.1f}" if size >= 1e9 else f"{size / 1e9:.3f}"


def device_verdict(plan: Plan, room: int | None) -> Verdict:
    """Memory of each GPU; on a CPU, of all processes of the node."""
    run, cuda = plan.run, plan.run.kernels.cuda

    def memory(config: FinetuneConfig, gpus: int) -> int:
        """Bytes of the same run with other settings; the base is not read again."""
        found, batch = parameters(run.shape, config.train), replace(run.batch, samples=_samples(config, gpus))
        total = device_memory(replace(run, config=config, gpus=gpus, parameters=found, batch=batch)).total
        return total if cuda else run.per_node * total + total_size(plan.host)

    needed = memory(run.config, run.gpus)
    found = [] if room is None or needed <= room else remedy(run.config, run.gpus, memory, room, cuda=cuda)
    return Verdict(GPU if cuda else "the machine's memory", needed, room, found)


def host_verdict(plan: Plan, room: int | None) -> Verdict:
    """Memory of a node besides its GPUs."""
    return Verdict(NODE, max(total_size(plan.host), loading_memory(plan.run)), room, [])


def check_fits(
    config: FinetuneConfig,
    gpus: int,
    gpu_memory_bytes: int | None,
    *,
    per_node: int | None = None,
    cuda: bool = True,
    host_memory_bytes: int | None = None,
) -> None:
    """Refuse a run that cannot fit, with its largest parts and what to change; None leaves a memory unchecked.

    gpus: processes in all; gpu_memory_bytes: what one of them can take (on a CPU, cuda=False: what all of a node can).
    Nothing is checked where config.check_fit is false.
    """
    if not config.check_fit:
        return
    plan = make_plan(config, gpus, per_node=per_node, cuda=cuda)
    verdict, host = device_verdict(plan, gpu_memory_bytes), host_verdict(plan, host_memory_bytes)
    if not verdict.fits:
        largest = sorted(plan.device.parts, key=lambda part: -part.size)[:5]
        listed = ", ".join(f"{part.name} {gigabytes(part.size)}" for part in largest)
        lines = [f"{verdict.sentence()} ({plan.device.peak_moment}: {listed} GB).", *verdict.advice()]
        lines.append(f"python -m finetune.plan with the same settings shows every part. {START_ANYWAY}")
        raise ToolkitError("\n".join(lines))
    if cuda and not host.fits:
        raise ToolkitError(
            f"{host.sentence()}: of it {gigabytes(loading_memory(plan.run))} GB while the base is loaded. Ask for more "
            f"memory (cluster.memory), or for fewer processes on a node. {START_ANYWAY}"
        )


def check_here(config: FinetuneConfig, gpus: int, free: int | None, *, bf16: bool, cuda: bool, writes: bool) -> None:
    """The same for a process that is about to train; `free` bytes of its device, `writes`: it is the one that does."""
    config = replace(config, train=replace(config.train, precision="bf16" if bf16 else "fp32"))
    context = CUDA_CONTEXT if cuda and free is not None else 0  # its own is taken already, and in the plan
    room = None if free is None else free + context
    per_node, host = local_processes(), available_memory() if cuda else None
    if host is not None:  # so is what these processes have taken until here, of what the plan allows each
        host += per_node * min(own_memory(), HOST_PROCESS)
    check_fits(config, gpus, room, per_node=per_node, cuda=cuda, host_memory_bytes=host)
    if writes:
        check_disk(config, gpus, cuda=cuda)


def check_disk(config: FinetuneConfig, gpus: int, *, cuda: bool = True) -> None:
    """Refuse a run whose files cannot fit on the disks they go to; what earlier attempts wrote counts as there."""
    if not config.check_fit:
        return
    for parts, needed, free in disk_needs(make_plan(config, gpus, cuda=cuda).disk):
        if needed <= free:
            continue
        listed = "\n  ".join(f"{part.name}: {in_bytes(part.size or 0)} in {part.folder}" for part in parts)
        raise ToolkitError(
            f"The disk has {in_bytes(free)} free, but {in_bytes(needed)} are still to be written:\n  {listed}\n"
            "Free some space, take a folder on another disk (run_dir, output_dir, cache_dir), or keep fewer "
            f"checkpoints (train.keep_last, train.keep_every). {START_ANYWAY}"
        )


def disk_needs(parts: list[DiskPart]) -> list[tuple[list[DiskPart], int, int]]:
    """The parts of each disk, bytes still to be written there, and free bytes."""
    disks: dict[int, list[DiskPart]] = {}
    for part in parts:
        if part.size is not None:
            folder = part.folder.absolute()
            existing = next(path for path in [folder, *folder.parents] if path.exists())
            disks.setdefault(existing.stat().st_dev, []).append(part)
    return [(own, sum(_missing(part) for part in own), free_space(own[0].folder)) for own in disks.values()]


def _missing(part: DiskPart) -> int:
    """What of a part is not there yet. A finished checkpoint is written beside the one it replaces."""
    pattern = WRITTEN.get(part.name)
    folders = part.folder.glob(pattern) if pattern and part.folder.is_dir() else []
    there = sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())
    return max(0, (part.size or 0) - there)

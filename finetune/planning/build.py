"""From a configuration to a plan: what is where, for how many processes, on which device."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

from finetune.config.checks import is_hub_id
from finetune.config.modality import modality_configs
from finetune.config.schema import FinetuneConfig
from finetune.planning.activations import Batch, Kernels
from finetune.planning.disk import DiskPart, disk, find_layouts
from finetune.planning.duration import Duration, on_gpu
from finetune.planning.gpus import Gpu
from finetune.planning.memory import DeviceMemory, Part, Run, device_memory, host_memory
from finetune.planning.parameters import parameters
from finetune.planning.shapes import shape_of_architecture, shape_of_checkpoint
from gr00t.data.language import formalize
from gr00t.data.layout import DatasetLayout
from gr00t.errors import ToolkitError
from gr00t.files import read_json
from gr00t.model.checkpoint_folder import resolve_folder

TEXT_TOKENS = 22  # of a conflict split, where no base says otherwise
CHAT = "<|im_start|>user\n{images}{text}<|im_end|>\n"
IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"


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
    layouts = find_layouts(config)
    run = make_run(config, gpus, per_node=per_node, cuda=cuda, layouts=layouts)
    duration = on_gpu(run, gpu) if cuda and gpu else None
    return Plan(run, device_memory(run), host_memory(run), disk(run, layouts), gpu, duration)


def make_run(
    config: FinetuneConfig, gpus: int, *, per_node: int | None, cuda: bool, layouts: list[DatasetLayout]
) -> Run:
    """What decides memory and time."""
    folder = base_folder(config)
    shape = shape_of_checkpoint(folder) if folder else shape_of_architecture(config.model.architecture)
    video = modality_configs(config.dataset)["video"]
    images = len(video.modality_keys) * len(video.delta_indices)
    text = _text_tokens(folder, _instructions(config, layouts), images)
    side = _image_side(folder, config.model.architecture.image_size)
    train = config.train
    batch = Batch(_samples(config, gpus), images, side, text, train.backbone_batch_size, train.noise_draws)
    bf16 = train.precision == "bf16" or (train.precision == "auto" and cuda)
    found = parameters(shape, train)
    return Run(config, shape, found, gpus, per_node or gpus, batch, Kernels(bf16=bf16, cuda=cuda))


def changed(run: Run, config: FinetuneConfig, gpus: int) -> Run:
    """The same run with other settings; the base is not read again."""
    found, batch = parameters(run.shape, config.train), replace(run.batch, samples=_samples(config, gpus))
    return replace(run, config=config, gpus=gpus, parameters=found, batch=batch)


def _samples(config: FinetuneConfig, gpus: int) -> int:
    """Of a micro-batch."""
    return config.train.micro_batch_size or math.ceil(config.train.global_batch_size / gpus)


def base_folder(config: FinetuneConfig) -> Path | None:
    """The base checkpoint where it is on this machine, in a folder or in the hub's cache; the network is not asked."""
    base = config.model.base
    if not is_hub_id(base):
        folder = Path(base)
        return folder if (folder / "config.json").is_file() else None
    try:
        return resolve_folder(base, local_files_only=True)
    except ToolkitError:
        return None


def _image_side(folder: Path | None, otherwise: int) -> int:
    path = folder / "processor_config.json" if folder else None
    settings = read_json(path).get("processor_kwargs", {}) if path and path.is_file() else {}
    target = settings.get("image_target_size") or [otherwise]
    side = settings.get("shortest_image_edge") or target[0]
    return max(32, int(side) // 32 * 32)


def _instructions(config: FinetuneConfig, layouts: list[DatasetLayout]) -> list[str]:
    return sorted({text for layout in layouts for text in layout.tasks.values()}) or [config.split.instruction]


def _text_tokens(folder: Path | None, instructions: list[str], images: int) -> int:
    """Of the longest instruction in its chat form, the marks around images included, image tokens not."""
    path = folder / "processor" / "vlm" / "tokenizer.json" if folder else None
    if path is None or not path.is_file():
        return TEXT_TOKENS
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    chats = [CHAT.format(images=IMAGE * images, text=formalize(text)) for text in instructions]
    return max(len(tokenizer.encode(chat).ids) for chat in chats) - images

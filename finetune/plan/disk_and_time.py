"""What a run writes to disk (checkpoints, the finished one, caches) and how long a step takes: the operations of every
part over what the GPU can do, at an efficiency that is an assumption."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

from finetune.plan.activations import tokens_seen
from finetune.plan.memory import Run, checkpoint_size
from finetune.plan.model_shapes import DIT, EMBEDDINGS, HEAD, LLM, VISION, VL, Parameter
from finetune.recipe import FinetuneConfig, datasets
from finetune.recipe.train_config import TrainConfig
from gr00t.data.layout import DatasetLayout
from gr00t.errors import ToolkitError, did_you_mean
from gr00t.file_reading import parsing
from toolkit.shared_keys import modality_configs

PREPARE_AGAIN = "Prepare the dataset again."
SMALL_FILES = 20_000_000  # tokenizer and configurations
EFFICIENCY = 0.35  # of the data sheet's bf16 peak, products, norms and launches together
OPTIMIZER_BYTES = 46  # read and written for each trained parameter: gradient, clipping, weight, moments, bf16 copy
BANDWIDTH_SHARE = 0.8
FORWARD, WITH_INPUT_GRADIENT, TRAINED = 2, 4, 6  # operations for each number of a weight and token


@dataclass(frozen=True)
class DiskPart:
    """Bytes below a folder; None where they cannot be known yet, `note` then says why."""

    name: str
    folder: Path
    size: int | None
    note: str = ""


def disk(run: Run, layouts: list[DatasetLayout]) -> list[DiskPart]:
    """Everything a run writes, at its fullest."""
    config = run.config
    # bf16, with the copy of the token embeddings that the release holds
    numbers = [max(p.count, p.waiting) * (2 if p.name == EMBEDDINGS else 1) for p in run.parameters]
    finished = DiskPart("finished checkpoint", Path(config.output_dir), 2 * sum(numbers) + SMALL_FILES, "bf16")
    parts = [_checkpoints(run), finished]
    for name, wanted, cache in (
        ("frame store", config.dataset.frames == "store", _frames),
        ("feature cache", run.cached, _features),
    ):
        if wanted:
            size, note = cache(run, layouts) if layouts else (None, "known when the dataset is converted")
            parts.append(DiskPart(name, Path(config.cache_dir), size, note))
    return parts


def _checkpoints(run: Run) -> DiskPart:
    """Those that are kept, the best evaluated one among them, and one more while it is written."""
    train, each = run.config.train, checkpoint_size(run)
    saved, best = _saved(train, 1), 0 if train.eval_steps is None else 1
    for_good = _saved(train, train.keep_every) if train.keep_every else 0
    kept = min(saved, train.keep_last + for_good + best)
    writing = int(saved > kept)
    note = f"{kept} kept{', one being written' * writing}; {each / 1e9:.1f} GB each"
    return DiskPart("checkpoints", Path(run.config.run_dir), (kept + writing) * each, note)


def _saved(train: TrainConfig, every: int) -> int:
    """Checkpoints at multiples of `every` steps, at most: every save_steps, at the end, and wherever an evaluation is
    the best so far."""
    steps = train.max_steps
    places = [math.lcm(every, n) for n in (train.save_steps, train.eval_steps) if n is not None]
    found = sum(steps // place for place in places)
    found -= steps // math.lcm(*places) if len(places) > 1 else 0
    return found + int(steps % every == 0 and all(steps % place for place in places))


def _frames(run: Run, layouts: list[DatasetLayout]) -> tuple[int, str]:
    cameras = modality_configs(run.config.dataset)["video"].modality_keys
    frames = [(sum(episode.length for episode in layout.episodes), layout) for layout in layouts]
    size = 3 * sum(count * _pixels(layout, camera) for count, layout in frames for camera in cameras)
    return size, f"{sum(count for count, _ in frames)} frames of {len(cameras)} cameras"


def _pixels(layout: DatasetLayout, camera: str) -> int:
    column, path = layout.video_column(camera), layout.root / "meta" / "info.json"
    with parsing(path, PREPARE_AGAIN):
        shape = layout.info.get("features", {}).get(column, {}).get("shape")
        if not isinstance(shape, list) or len(shape) != 3 or not all(isinstance(n, int) and n > 0 for n in shape):
            raise ToolkitError(f"{path}: {column} has no shape of three numbers. {PREPARE_AGAIN}")
    height, width = shape[1:] if shape[0] == 3 else shape[:2]
    return height * width


def _features(run: Run, layouts: list[DatasetLayout]) -> tuple[int, str]:
    starts, augment = sum(start_count(run.config, layout) for layout in layouts), run.config.augment
    views = (augment.views or 1) * (2 if augment.instruction_dropout else 1)
    row = run.batch.tokens * (run.shape.context * run.kernels.size + 2)
    unseen = held_out_count(run.config, layouts[0])
    silent = " (with and without instruction)" if augment.instruction_dropout else ""
    note = f"{starts} start frames x {views} views{silent}" + (f", {unseen} held-out frames" if unseen else "")
    return (starts * views + unseen) * row, note


def find_layouts(config: FinetuneConfig) -> list[DatasetLayout]:
    """The datasets' meta data; none where one is not converted yet."""
    parts = datasets(config)
    there = all((part.folder / "meta" / "info.json").is_file() for part in parts)
    return [DatasetLayout(part.folder, part.exclude) for part in parts] if there else []


def held_out_count(config: FinetuneConfig, layout: DatasetLayout) -> int:
    """Frames that are evaluated during training."""
    if config.train.eval_steps is None:
        return 0
    return sum(layout.episode(index).length for index in layout.val_episodes[: config.train.eval_episodes])


def start_count(config: FinetuneConfig, layout: DatasetLayout) -> int:
    """Start frames of the training episodes, by dataset.tail."""
    offsets = modality_configs(config.dataset)["action"].delta_indices
    lost = max(0, max(offsets)) + max(0, -min(offsets)) if config.dataset.tail == "drop" else 0
    return sum(max(0, layout.episode(index).length - lost) for index in layout.train_episodes)


# -- time --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gpu:
    """tflops: 1e12 bf16 operations a second without sparsity; memory in GB (1e9); bandwidth in GB/s."""

    name: str
    memory: float
    tflops: float
    bandwidth: float


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("b200", 180, 2250, 8000),
        Gpu("h200", 141, 989, 4800),
        Gpu("gh200", 96, 989, 4000),
        Gpu("h100", 80, 989, 3350),
        Gpu("a100-80gb", 80, 312, 2039),
        Gpu("a100", 40, 312, 1555),
        Gpu("l40s", 48, 362, 864),
        Gpu("a6000", 48, 155, 768),
        Gpu("a40", 48, 150, 696),
        Gpu("5090", 32, 210, 1792),
        Gpu("4090", 24, 165, 1008),
        Gpu("3090", 24, 71, 936),
        Gpu("a10", 24, 125, 600),
        Gpu("l4", 24, 121, 300),
    )
}


def find_gpu(name: str) -> Gpu:
    """The GPU of that name; an unknown one is refused with the names that are known."""
    if name.lower() not in GPUS:
        raise ToolkitError(
            f"gpu={name} is not in the table.{did_you_mean(name.lower(), GPUS)} Of another GPU give its memory, "
            "gpu_memory_gb=48; its time is then left out."
        )
    return GPUS[name.lower()]


def gpu_of_cluster(name: str | None) -> Gpu | None:
    """What a cluster's name of a GPU type (nvidia_a100-sxm4-40gb, h100_pcie) stands for, or of a slice of one by MIG
    (a100_3g.20gb); None where it is unclear."""
    text = (name or "").lower()
    words = re.findall(r"[a-z]*\d+[a-z]*", text)
    gpu = next((GPUS[word] for word in words if word in GPUS), None)
    if gpu and gpu.name == "a100" and "80gb" in words:
        gpu = GPUS["a100-80gb"]
    slice_ = re.search(r"(\d)g[._-]?(\d+)gb", text)
    if gpu is None or slice_ is None:
        return gpu
    sevenths = int(slice_[1]) / 7
    return Gpu(f"{gpu.name}, {slice_[0]}", float(slice_[2]), gpu.tflops * sevenths, gpu.bandwidth * sevenths)


@dataclass(frozen=True)
class Duration:
    """Estimated seconds of a step, which every GPU takes at once, and what the estimate rests on."""

    products: float
    optimizer: float
    basis: str

    @property
    def step(self) -> float:
        return self.products + self.optimizer


def work(run: Run) -> dict[str, float]:
    """Operations of one sample by part of the model, forward and backward; attention's own products included, and what
    activation checkpointing computes again."""
    shape, batch, found = run.shape, run.batch, run.parameters
    again = run.config.train.activation_checkpointing
    vision_attention = 4 * shape.vision_blocks * shape.vision_width * batch.patches * (batch.side // 16) ** 2
    layer_attention = 2 * shape.llm_queries * batch.tokens**2
    vl_attention = 4 * shape.vl_blocks * shape.context * batch.tokens**2
    vision_graph, vl_graph = _trained(found, VISION), _trained(found, VISION, LLM, VL, f"{HEAD}vlln")
    vision = _part(found, f"{VISION}blocks", batch.patches, vision_attention, graph=vision_graph, again=again)
    for mergers in (f"{VISION}merger", f"{VISION}deepstack"):
        vision += _part(found, mergers, batch.image_tokens, 0, graph=vision_graph)
    llm, graph = 0, _trained(found, VISION, EMBEDDINGS)
    for layer in (f"{LLM}layers.{number}." for number in range(shape.llm_layers)):
        trained = _trained(found, layer)
        graph = graph or trained
        llm += _part(found, layer, batch.tokens, layer_attention, graph=graph, again=again and trained)
    ends = _numbers(found, f"{HEAD}state", f"{HEAD}action_encoder", f"{HEAD}action_decoder")
    return {
        "vision tower": 0 if run.cached else vision,
        "language model": 0 if run.cached else llm,
        "vl_self_attention": _part(found, VL, batch.tokens, vl_attention, graph=vl_graph, again=again),
        "diffusion transformer": _dit(run),
        "encoders and decoder": TRAINED * (shape.horizon + 1) * ends * batch.draws,
    }


def _dit(run: Run) -> float:
    """Keys and values are projected from the tokens that a block sees, all else runs over state and noised actions."""
    shape, batch, again = run.shape, run.batch, run.config.train.activation_checkpointing
    steps, total = shape.horizon + 1, 0.0
    for block in range(shape.dit_blocks):
        prefix, keys = f"{DIT}transformer_blocks.{block}.", tokens_seen(shape, batch, block)
        projected = _numbers(run.parameters, f"{prefix}attn1.to_k", f"{prefix}attn1.to_v")
        timestep = _numbers(run.parameters, f"{prefix}norm1")  # once a sample
        rest = _numbers(run.parameters, prefix) - projected - timestep
        each = TRAINED if _trained(run.parameters, prefix) else WITH_INPUT_GRADIENT
        inside = each + (FORWARD if again else 0)
        own = inside * (steps * rest + timestep) + (4 if again else 3) * 4 * shape.width * steps * keys
        # a self-attention block's keys and values are those of the noised actions; the others' are made before it
        if shape.context_of(block) == "self":
            own += inside * keys * projected
        else:
            total += each * keys * projected
        total += batch.draws * own
    return total


def _part(found: list[Parameter], prefix: str, tokens: int, attention: int, *, graph: bool, again: bool = False) -> int:
    """`attention`: operations of its products in the forward; again: whether its blocks are computed again in the
    backward, where they have one."""
    whole = _numbers(found, prefix)
    trained = _numbers([p for p in found if p.trained], prefix)
    once = FORWARD * tokens * whole + attention
    if not graph:
        return once
    backward = (WITH_INPUT_GRADIENT - FORWARD) * whole + (TRAINED - WITH_INPUT_GRADIENT) * trained
    return once * (2 if again else 1) + tokens * backward + 2 * attention


def _numbers(found: list[Parameter], *prefixes: str) -> int:
    return sum(p.count for p in found if p.matrix and p.name.startswith(prefixes))


def _trained(found: list[Parameter], *prefixes: str) -> bool:
    return any(p.trained for p in found if p.name.startswith(prefixes))


def on_gpu(run: Run, gpu: Gpu) -> Duration:
    """Of one optimizer step. Communication between GPUs and waiting for data are not in it."""
    samples = run.config.train.global_batch_size / run.gpus
    operations = samples * sum(work(run).values())
    peak = gpu.tflops * 1e12 * (1 if run.kernels.bf16 else 0.5)  # tf32 runs at half of bf16's rate
    seconds = operations / (peak * EFFICIENCY)
    optimizer = OPTIMIZER_BYTES * run.trained / (gpu.bandwidth * 1e9 * BANDWIDTH_SHARE)
    basis = (
        f"{EFFICIENCY:.0%} of the {peak / 1e12:.0f} TFLOP/s that the data sheet of {gpu.name} gives (an assumption), "
        f"optimizer at {BANDWIDTH_SHARE:.0%} of {gpu.bandwidth:.0f} GB/s; without communication and waiting for data"
        + (", and without making the feature cache" if run.cached else "")
    )
    return Duration(seconds, optimizer, basis)

"""How long a step takes: operations of every part over what the GPU can do, at an efficiency that is an assumption."""

from __future__ import annotations

from dataclasses import dataclass

from finetune.planning.gpus import Gpu
from finetune.planning.memory import Run
from finetune.planning.parameters import Parameter
from finetune.planning.shapes import HEAD, LLM, VISION, VL

EFFICIENCY = 0.35  # of the data sheet's bf16 peak, products, norms and launches together
OPTIMIZER_BYTES = 46  # read and written for each trained parameter: gradient, clipping, weight, moments, bf16 copy
BANDWIDTH_SHARE = 0.8
FORWARD, WITH_INPUT_GRADIENT, TRAINED = 2, 4, 6  # operations for each number of a weight and token


@dataclass(frozen=True)
class Work:
    """Operations of one sample in a part of the model, forward and backward."""

    part: str
    operations: float


@dataclass(frozen=True)
class Duration:
    """Seconds of a step on every GPU at once, and what they stand on."""

    products: float
    optimizer: float
    basis: str

    @property
    def step(self) -> float:
        return self.products + self.optimizer


def work(run: Run) -> list[Work]:
    """Operations of one sample by part; attention's own products included."""
    shape, batch, found = run.shape, run.batch, run.parameters
    steps = shape.horizon + 1
    vision_attention = 4 * shape.vision_blocks * shape.vision_width * batch.patches * (batch.side // 16) ** 2
    llm_attention = 2 * shape.llm_layers * shape.llm_queries * batch.tokens**2
    vl_attention = 4 * shape.vl_blocks * shape.context * batch.tokens**2
    vision_graph, llm_graph = _trained(found, VISION), _trained(found, VISION, LLM)
    vision = _part(found, f"{VISION}blocks", batch.patches, vision_attention, graph=vision_graph)
    for mergers in (f"{VISION}merger", f"{VISION}deepstack"):
        vision += _part(found, mergers, batch.image_tokens, 0, graph=vision_graph)
    llm = _part(found, f"{LLM}layers", batch.tokens, llm_attention, graph=llm_graph)
    vl = _part(found, VL, batch.tokens, vl_attention, graph=llm_graph or _trained(found, VL, f"{HEAD}vlln"))
    head = TRAINED * steps * _numbers(found, f"{HEAD}state", f"{HEAD}action_encoder", f"{HEAD}action_decoder")
    head *= batch.draws
    return [
        Work("vision tower", 0 if run.cached else vision),
        Work("language model", 0 if run.cached else llm),
        Work("vl_self_attention", vl),
        Work("diffusion transformer", _dit(run)),
        Work("encoders and decoder", head),
    ]


def _dit(run: Run) -> float:
    """Keys and values are projected from the tokens that a block sees, all else runs over state and noised actions."""
    shape, batch = run.shape, run.batch
    steps, total = shape.horizon + 1, 0.0
    for block in range(shape.dit_blocks):
        prefix = f"action_head.model.transformer_blocks.{block}."
        seen = {"self": steps, "all": batch.tokens, "text": batch.text, "image": batch.image_tokens}
        keys = seen[shape.context_of(block)]
        projected = _numbers(run.parameters, f"{prefix}attn1.to_k", f"{prefix}attn1.to_v")
        timestep = _numbers(run.parameters, f"{prefix}norm1")  # once a sample
        rest = _numbers(run.parameters, prefix) - projected - timestep
        each = TRAINED if _trained(run.parameters, prefix) else WITH_INPUT_GRADIENT
        own = each * (steps * rest + timestep) + 3 * 4 * shape.width * steps * keys
        # a self-attention block's keys and values are those of the noised actions
        total += each * keys * projected * (batch.draws if shape.context_of(block) == "self" else 1) + batch.draws * own
    return total


def _part(found: list[Parameter], prefix: str, tokens: int, attention: float, *, graph: bool) -> float:
    """`attention`: operations of its products in the forward."""
    trained = _trained(found, prefix)
    each = TRAINED if trained else WITH_INPUT_GRADIENT if graph else FORWARD
    return each * tokens * _numbers(found, prefix) + (3 if graph else 1) * attention


def _numbers(found: list[Parameter], *prefixes: str) -> int:
    return sum(p.count for p in found if p.matrix and p.name.startswith(prefixes))


def _trained(found: list[Parameter], *prefixes: str) -> bool:
    return any(p.trained for p in found if p.name.startswith(prefixes))


def on_gpu(run: Run, gpu: Gpu) -> Duration:
    """Of one optimizer step. Communication between GPUs and waiting for data are not in it."""
    samples = run.config.train.global_batch_size / run.gpus
    operations = samples * sum(part.operations for part in work(run))
    peak = gpu.tflops * 1e12 * (1 if run.kernels.bf16 else 0.5)  # tf32 runs at half of bf16's rate
    seconds = operations / (peak * EFFICIENCY)
    optimizer = OPTIMIZER_BYTES * run.trained / (gpu.bandwidth * 1e9 * BANDWIDTH_SHARE)
    basis = (
        f"{EFFICIENCY:.0%} of the {peak / 1e12:.0f} TFLOP/s that the data sheet of {gpu.name} gives (an assumption), "
        f"optimizer at {BANDWIDTH_SHARE:.0%} of {gpu.bandwidth:.0f} GB/s; without communication and waiting for data"
    )
    return Duration(seconds, optimizer, basis)

"""A training step or an action on random weights and one fixed batch (two 256x256 views, one instruction), measured.

    python -m benchmarks.training_step '{"model": "small", "precision": "bf16"}'   # a case, as benchmarks.gpu runs them
    python -m benchmarks.training_step models=[tiny,small] batches=[8,32] steps=2  # memory beside the plan's prediction

Memory is the highest resident size during the steps over that of the process before the model is built (GPU: the most
allocated). The plan's allowance (libraries, fragmentation; on a GPU the CUDA context too) is shown apart; on a GPU it
is no part of what is compared.

"Share" is what a step needs, over its time, over the fastest large matrix product measured in the same run in the
setting's precision. What it needs is counted once, from the live or the cached setting: every product of the forward
pass, and of the backward pass of what is trained, with attention to the tokens that count; products computed again, or
computed and masked away, are not needed.

The plain way, the baseline, is what a straightforward implementation does: fp32 frozen weights, embodiment weights
gathered for every sample and trained for all 32, cross-attention over all tokens under a mask, vision attention image
by image, patches embedded by a convolution, all samples through the backbone at once, PyTorch's own dropout with
everything kept for the backward pass."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import product, tee
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionAttention, Qwen3VLVisionPatchEmbed

from benchmarks import measuring
from benchmarks.measuring import Columns, Found
from finetune.create_base import random_model
from finetune.plan.activations import Batch, Kernels
from finetune.plan.memory import DeviceMemory, Run, device_memory
from finetune.plan.model_shapes import parameters, shape_of_architecture
from finetune.recipe import FinetuneConfig
from finetune.recipe.train_config import TrainConfig
from finetune.training.optimizer import build_optimizer
from gr00t.model.action_head import EmbodimentLinear, EmbodimentRows
from gr00t.model.cpu_kernels import Dropout
from gr00t.model.device import compile_for_acting, compile_for_training
from gr00t.model.dit import Attention, FeedForward, Tokens
from gr00t.model.gr00t_n1d7 import Gr00tN1d7
from toolkit.configuration import load


class PlainEmbodimentLinear(nn.Module):
    """Weights gathered for every sample of the batch."""

    def __init__(self, layer: EmbodimentLinear) -> None:
        super().__init__()
        self.W, self.b = layer.W, layer.b

    def forward(self, x: Tensor, rows: EmbodimentRows) -> Tensor:
        ids = torch.empty(len(x), dtype=torch.int64)
        for members, embodiment in zip(rows.rows, rows.embodiments, strict=True):
            ids[members] = embodiment
        return torch.bmm(x, self.W[ids]) + self.b[ids].unsqueeze(1)


def make_plain(model: Gr00tN1d7) -> Gr00tN1d7:
    """Replace the parts of a model (fp32, all embodiments) that are computed more cheaply."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, EmbodimentLinear):
                setattr(module, name, PlainEmbodimentLinear(child))
            elif isinstance(child, Attention):
                child.forward = _fused.__get__(child)  # type: ignore[method-assign]
            elif isinstance(child, Dropout):
                child.forward = nn.Dropout.forward.__get__(child)  # type: ignore[method-assign]
            elif isinstance(child, FeedForward):
                child.forward = child.net.forward  # type: ignore[method-assign]
    model.action_head.encode_context = _masked.__get__(model.action_head)  # type: ignore[method-assign]
    visual = model.backbone.vlm.visual
    embedding = Qwen3VLVisionPatchEmbed(visual.config)
    embedding.proj = visual.patch_embed.proj
    visual.patch_embed = embedding
    model.backbone.at_once = sys.maxsize
    for block in visual.blocks:
        plain = Qwen3VLVisionAttention(visual.config)
        plain.qkv, plain.proj = block.attn.qkv, block.attn.proj
        block.attn = plain
    return model


def _fused(self, x, context):  # type: ignore[no-untyped-def]
    allowed = None if context.mask is None else context.mask[:, None, None, :]
    out = F.scaled_dot_product_attention(self._split(self.to_q(x)), context.keys, context.values, attn_mask=allowed)
    return self.to_out[1](self.to_out[0](out.transpose(1, 2).flatten(2)))


def _masked(self, backbone):  # type: ignore[no-untyped-def]
    seen = self.vl_tokens(backbone)
    text, image = (Tokens(seen.tokens.values, mask) for mask in (seen.text, seen.image))
    return self.model.encode_context(seen.tokens, text, image)


TOKENS = {"<|image_pad|>": 6, "<|video_pad|>": 7, "<|vision_start|>": 3, "<|vision_end|>": 4}
EMBODIMENT = 10


COLUMNS: Columns = {
    "model | features | precision | batch | and": "{name}",
    "measured, GB": "{measured:.3f}",
    "plan, GB": "{plan:.3f}",
    "plan / measured": "{ratio:.2f}",
    "allowance": "{allowance:.3f}",
    "peak in": "{peak}",
}


@dataclass(frozen=True)
class Case:
    """What is measured, and how."""

    model: str = "small"  # of configs/model
    device: str = "cpu"
    batch: int = 32
    steps: int = 3
    warmup: int = 1
    precision: str = "bf16"
    plain: bool = False
    cached: bool = False
    compiled: bool = False
    recompute: bool = False
    optimizer: str = "adamw"
    micro_batch: int | None = None
    draws: int = 1  # noised copies of each sample's actions
    acting: bool = False  # get_action of one sample in place of a training step
    mode: str | None = None  # of torch.compile, for acting


def build(case: Case) -> Gr00tN1d7:
    """A model with random weights as training holds it: on its device, frozen weights in the precision."""
    architecture = load("create_base", [f"model={case.model}", "out=unused"], check_here=False).model.architecture
    frozen = "fp32" if case.plain else case.precision
    with torch.device(case.device):
        model = random_model(architecture, TOKENS, seed=0, dtype=frozen)
    model.set_trainable(projector=True, diffusion_model=True, vlln=True)
    if case.acting:
        return model.eval()
    if case.plain:
        make_plain(model)
    else:
        model.keep_embodiments([EMBODIMENT])
        for module in model.modules():
            if isinstance(module, EmbodimentLinear):
                module._set_aside = {}  # other embodiments' weights wait in the base's file in a run, not in memory
    for _, parameter in model.trained_parameters():
        parameter.data = parameter.data.float()
    nn.Module.to(model, case.device)
    if case.recompute:
        model.recompute_activations()
    model.train()
    if case.cached:
        model.backbone.to("meta")
    return model


def make_batch(model: Gr00tN1d7, case: Case, size: int) -> dict[str, Tensor]:
    """Two 256x256 views and 22 text tokens a sample: 150 tokens, as a conflict split's instruction gives."""
    config, image = model.config, model.backbone_config.image_token_id
    generator = torch.Generator().manual_seed(1)
    ids = torch.full((size, 150), 20)
    ids[:, 5:69] = ids[:, 71:135] = image
    shape = (size, config.action_horizon, config.max_action_dim)
    draws = (case.draws,) if case.draws > 1 else ()
    mask = torch.zeros(shape)
    mask[:, :16, :8] = 1
    batch = {
        "attention_mask": torch.ones_like(ids),
        "state": torch.randn((size, 1, config.max_state_dim), generator=generator),
        "embodiment_id": torch.full((size,), EMBODIMENT),
        "action": torch.randn(shape, generator=generator),
        "action_mask": mask,
        "noise": torch.randn((size, *draws, *shape[1:]), generator=generator),
        "time": torch.rand((size, *draws), generator=generator),
    }
    if case.cached:
        features = torch.randn((size, 150, config.backbone_embedding_dim), generator=generator)
        dtype = torch.bfloat16 if case.precision == "bf16" else torch.float32
        batch |= {"features": features.to(dtype), "image_mask": ids == image}
    else:
        images = torch.randint(0, 255, (2 * size, 256, 256, 3), generator=generator, dtype=torch.uint8)
        batch |= {"input_ids": ids, "images": images, "image_grid_thw": torch.tensor([[1, 16, 16]] * 2 * size)}
    return {name: tensor.to(case.device) for name, tensor in batch.items()}


def measure(given: dict[str, Any]) -> Found:
    """One case, in a process of its own."""
    case = Case(**given)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True  # as the engine sets it
    return acting(build(case), case) if case.acting else training_step(case)


def training_step(case: Case) -> Found:
    """Median seconds of a step, memory, trained parameters, and the FLOPs of its matrix products (eager only)."""
    before = 0 if case.device == "cuda" else measuring.resident("VmRSS")
    model = build(case)
    batch = make_batch(model, case, case.batch)
    micro_batches = list(_cut(batch, case.batch, case.micro_batch or case.batch))
    optimizer = build_optimizer(model, TrainConfig(optimizer=case.optimizer))
    if case.compiled:
        compile_for_training(model.action_head)

    def step() -> Tensor:
        total = torch.zeros((), device=case.device)
        for part in micro_batches:
            with torch.autocast(case.device, torch.bfloat16, enabled=case.precision == "bf16"):
                error = model(part).action_loss.sum() / batch["action_mask"].sum()
            error.backward()
            total += error.detach()
        nn.utils.clip_grad_norm_([p for _, p in model.trained_parameters()], 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return total

    measuring.forget_peak(case.device)
    found = {
        "seconds": _median_seconds(step, case),
        "memory_gib": (measuring.peak_memory(case.device) - before) / 2**30,
        "trained": sum(p.numel() for _, p in model.trained_parameters()),
        "loss": float(step()),
    }
    return found if case.compiled or case.recompute or case.plain else {**found, "flops": products(step)}


def acting(model: Gr00tN1d7, case: Case) -> Found:
    """Median seconds of an action chunk for one sample, and of the backbone in it; the highest memory; its shape."""
    batch = make_batch(model, case, 1)
    inputs = {name: batch[name] for name in batch if name not in ("action", "action_mask", "noise", "time")}
    if case.compiled:
        compile_for_acting(model.action_head, case.mode)
    with torch.inference_mode():
        whole = _median_seconds(lambda: model.get_action(inputs), case)
        backbone = _median_seconds(lambda: model.features(inputs), case)
        actions = model.get_action(inputs)
    if not torch.isfinite(actions).all():
        raise SystemExit("error: the action chunk is not finite")
    parts = {"seconds": whole, "backbone": backbone, "head": whole - backbone}
    return {**parts, "memory_gib": measuring.peak_memory(case.device) / 2**30, "chunk": list(actions.shape)}


def products(step: Any) -> float:
    """FLOPs of the matrix products and attentions of one call."""

    def attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return sdpa_flop_count(query, key, value)

    on_cpu = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention}  # which PyTorch does not count
    with FlopCounterMode(display=False, custom_mapping=on_cpu) as counter:
        step()
    return float(counter.get_total_flops())


def _cut(batch: dict[str, Tensor], size: int, piece: int) -> Iterator[dict[str, Tensor]]:
    for start in range(0, size, piece):
        yield {n: t[start * len(t) // size : (start + piece) * len(t) // size] for n, t in batch.items()}


def _median_seconds(call: Any, case: Case) -> float:
    times = [measuring.seconds(call, case.device) for _ in range(case.warmup + case.steps)]
    return statistics.median(times[case.warmup :])


# -- memory beside the plan's prediction -------------------------------------------------------------------------------


def predict(case: Case) -> DeviceMemory:
    """The plan of one step of a case."""
    recipe = {
        "precision": case.precision,
        "features": "cached" if case.cached else "live",
        "global_batch_size": case.batch,
        "noise_draws": case.draws,
        "optimizer": case.optimizer,
        "activation_checkpointing": str(case.recompute).lower(),
    }
    settings = [f"train.{name}={value}" for name, value in recipe.items()]
    config: FinetuneConfig = load(
        "finetune", ["local=none", f"model={case.model}", "augment.views=4", *settings], check_here=False
    )
    shape = shape_of_architecture(config.model.architecture)
    kernels = Kernels(bf16=case.precision == "bf16", cuda=case.device == "cuda")
    found, batch = parameters(shape, config.train), Batch(case.batch, 2, 256, 22, draws=case.draws)  # as make_batch
    return device_memory(Run(config, shape, found, 1, 1, batch, kernels, making=False))


def cases(models: list[str], batches: list[int], steps: int) -> Iterator[Case]:
    """Live and cached, both precisions, at every size; then what saves memory, once each."""
    device = "cuda" if torch.cuda.is_available() else "cpu"

    def case(model: str, batch: int = batches[-1], **more: Any) -> Case:
        return Case(model, device, batch, steps, **more)

    for model, batch, cached, precision in product(models, batches, (False, True), ("fp32", "bf16")):
        yield case(model, batch, cached=cached, precision=precision)
    yield case(models[-1], recompute=True)
    for optimizer in ("adamw_8bit", "adamw_offload"):
        yield case(models[-1], optimizer=optimizer)


def compared(case: Case) -> Found:
    """A line of the table: the plan of a case and what was measured."""
    extra = "recomputed" if case.recompute else case.optimizer
    name = f"{case.model} | {'cached' if case.cached else 'live'} | {case.precision} | {case.batch} | {extra}"
    found = {"name": name, **measuring.in_own_process("benchmarks.training_step", asdict(case))}
    if "error" in found:
        return found
    plan = predict(case)
    allowance = plan.parts[-1].size / 1e9
    predicted = plan.total / 1e9 - (allowance if case.device == "cuda" else 0)
    found["measured"] = found["memory_gib"] * 2**30 / 1e9
    ratio = predicted / found["measured"]
    return {**found, "plan": predicted, "ratio": ratio, "allowance": allowance, "peak": plan.peak_moment}


def main() -> None:
    chosen = measuring.options(models=["tiny", "small"], batches=[8, 32], steps=2)
    print(f"{measuring.describe()}\n")
    every, kept = tee(compared(case) for case in cases(chosen.models, chosen.batches, chosen.steps))
    measuring.show(COLUMNS, every)
    ratios = [row["ratio"] for row in kept if "ratio" in row]
    print(f"\nplan over measured: {min(ratios):.2f} to {max(ratios):.2f}")


if __name__ == "__main__":
    measuring.run(measure, main)

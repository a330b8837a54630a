"""The plan's memory beside what PyTorch really keeps and allocates, on the CPU."""

from __future__ import annotations

from dataclasses import asdict

import pytest
import torch

from benchmarks.measuring import in_own_process
from benchmarks.training_step import Case, build, make_batch, predict
from finetune.plan.activations import CPU_AT_ONCE
from finetune.plan.memory import FEATURE_BATCH, ZERO_BUCKETS
from finetune.recipe.train_config import TrainConfig
from finetune.training.optimizer import build_optimizer


def allocated(case: Case) -> int:
    """Bytes that PyTorch's allocator held at most during one step, above weights and moments."""
    model = build(case)
    batch = make_batch(model, case, case.batch)
    optimizer = build_optimizer(model, TrainConfig())

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=case.precision == "bf16"):
            loss = model(batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    results = profile.profiler.kineto_results  # type: ignore[union-attr]
    changes = sorted((e.start_ns(), e.nbytes()) for e in results.events() if e.name() == "[memory]")
    held = peak = 0
    for _, change in changes:
        held += change
        peak = max(peak, held)
    return peak


@pytest.mark.parametrize(
    "case",
    [
        Case("tiny", batch=8, precision="fp32"),
        Case("tiny", batch=16, precision="bf16"),
        Case("tiny", batch=8, precision="fp32", cached=True),
        Case("tiny", batch=8, precision="bf16", cached=True),
        Case("tiny", batch=16, precision="bf16", recompute=True),
        Case("tiny", batch=8, precision="bf16", cached=True, draws=4),
    ],
    ids=["live-fp32", "live-bf16", "cached-fp32", "cached-bf16", "recomputed-bf16", "four-draws"],
)
def test_a_step_allocates_what_the_plan_says(case: Case) -> None:
    plan = predict(case)
    lying = ("frozen weights", "trained weights", "optimizer moments", "batch")
    steady = sum(part.size for part in plan.parts if part.name in lying)
    assert max(plan.moments.values()) - steady == pytest.approx(allocated(case), rel=0.15)


def test_the_resident_size_lies_between_the_plan_without_and_with_its_allowance() -> None:
    case = Case("tiny", batch=32, precision="fp32", steps=2)
    plan = predict(case)
    measured = in_own_process("benchmarks.training_step", asdict(case))["memory_gib"] * 2**30
    assert 0.9 * (plan.total - plan.parts[-1].size) < measured < 1.1 * plan.total


def test_the_plan_knows_how_much_passes_the_backbone_and_the_network_at_once() -> None:
    from finetune.training.caches import BATCH
    from finetune.training.engine import BUCKET
    from gr00t.model.cpu_kernels import SAMPLES_AT_ONCE as PIECE

    assert (BATCH, PIECE, 2 * BUCKET * torch.float32.itemsize) == (FEATURE_BATCH, CPU_AT_ONCE, ZERO_BUCKETS)

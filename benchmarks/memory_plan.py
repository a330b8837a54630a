"""The plan's prediction beside measured peaks: memory of a training step on this machine, setting by setting.

    python -m benchmarks.memory_plan models=[tiny,small] batches=[8,32] steps=2

Each setting runs in a process of its own, on random weights and one fixed batch. On a CPU the measured figure is the
highest resident size while the steps run, over that of the process before the model is built; on a GPU it is the most
that PyTorch had allocated. The plan's allowance (libraries, fragmentation; on a GPU the CUDA context too) is shown
apart; on a GPU it is no part of what is compared."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from itertools import product
from typing import Any

import torch

from benchmarks.measuring import Columns, Found, describe, heading, in_own_process, line, options
from benchmarks.training_step import Case
from finetune.plan.activations import Batch, Kernels
from finetune.plan.memory import DeviceMemory, Run, device_memory
from finetune.plan.model_shapes import parameters, shape_of_architecture
from finetune.recipe import FinetuneConfig
from toolkit.configuration import load

COLUMNS: Columns = {
    "model | features | precision | batch | and": "{name}",
    "measured, GB": "{measured:.3f}",
    "plan, GB": "{plan:.3f}",
    "plan / measured": "{ratio:.2f}",
    "allowance": "{allowance:.3f}",
    "peak in": "{peak}",
}


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
    found = {"name": name, **in_own_process("benchmarks.training_step", asdict(case))}
    if "error" in found:
        return found
    plan = predict(case)
    allowance = plan.parts[-1].size / 1e9
    predicted = plan.total / 1e9 - (allowance if case.device == "cuda" else 0)
    found["measured"] = found["memory_gib"] * 2**30 / 1e9
    ratio = predicted / found["measured"]
    return {**found, "plan": predicted, "ratio": ratio, "allowance": allowance, "peak": plan.peak_moment}


def main() -> None:
    chosen = options(models=["tiny", "small"], batches=[8, 32], steps=2)
    print(f"{describe()}\n\n{heading(COLUMNS)}", flush=True)
    rows = []
    for case in cases(chosen.models, chosen.batches, chosen.steps):
        rows.append(compared(case))
        print(line(COLUMNS, rows[-1]), flush=True)
    ratios = [row["ratio"] for row in rows if "ratio" in row]
    print(f"\nplan over measured: {min(ratios):.2f} to {max(ratios):.2f}")


if __name__ == "__main__":
    main()

"""The plan's prediction beside measured peaks: memory of a training step on this machine, setting by setting.

    python -m benchmarks.memory_plan models=tiny,small batches=8,32 steps=2

Each setting runs in a process of its own, on random weights and one fixed batch. On a CPU the measured figure is the
highest resident size while the steps run, over that of the process before the model is built; on a GPU it is the most
that PyTorch had allocated. The plan's allowance (libraries, fragmentation; on a GPU the CUDA context too) is shown
apart; on a GPU it is no part of what is compared."""

from __future__ import annotations

import ctypes
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.measuring import describe, in_own_process
from benchmarks.step import Case, build, make_batch
from finetune.plan.activations import Batch, Kernels
from finetune.plan.memory import DeviceMemory, Run, device_memory
from finetune.plan.model_shapes import parameters, shape_of_architecture
from finetune.recipe import FinetuneConfig
from finetune.recipe.train_config import TrainConfig
from finetune.training.optimizer import build_optimizer
from toolkit.configuration import load

TEXT_TOKENS = 22  # of make_batch
HEADER = (
    "| model | features | precision | batch | and | measured, GB | plan, GB | plan / measured | allowance | peak in |"
)


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
    found, batch = parameters(shape, config.train), Batch(case.batch, 2, 256, TEXT_TOKENS, draws=case.draws)
    return device_memory(Run(config, shape, found, 1, 1, batch, kernels, making=False))


def measure(case: Case) -> dict[str, float]:
    """Bytes of the highest resident (GPU: allocated) size over the steps."""
    import torch

    before = status("VmRSS")
    model = build(case)
    batch = make_batch(model.config, case, case.batch)
    optimizer = build_optimizer(model, TrainConfig(optimizer=case.optimizer))
    forget_peak()
    for _ in range(case.steps):
        with torch.autocast(case.device, torch.bfloat16, enabled=case.precision == "bf16"):
            loss = model(batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for _, p in model.trained_parameters()], 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    peak = torch.cuda.max_memory_allocated() if case.device == "cuda" else status("VmHWM") - before
    return {"measured": peak, "loss": float(loss.detach())}


def status(field: str) -> int:
    """Bytes that the kernel reports of this process: VmRSS now, VmHWM at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def forget_peak() -> None:
    """Give back what building the model left, and begin to measure again."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def cases(options: dict[str, str]) -> list[Case]:
    """Live and cached, both precisions, at every size; then what saves memory, once each."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    models, batches = options.get("models", "tiny,small").split(","), options.get("batches", "8,32").split(",")
    steps = int(options.get("steps", "2"))

    def case(model: str, **more: Any) -> Case:
        return Case(**{"model": model, "device": device, "steps": steps, "batch": int(batches[-1]), **more})

    every = [
        case(model, batch=int(batch), cached=cached, precision=precision)
        for model in models
        for batch in batches
        for cached in (False, True)
        for precision in ("fp32", "bf16")
    ]
    saving = [
        case(models[-1], recompute=True),
        *(case(models[-1], optimizer=f"adamw_{o}") for o in ("8bit", "offload")),
    ]
    return [*every, *saving]


def main() -> None:
    if sys.argv[1:] and sys.argv[1].startswith("{"):  # the child process of one setting
        print(json.dumps(measure(Case(**json.loads(sys.argv[1])))))
        return
    print(f"{describe()}\n\n{HEADER}\n|---|---|---|---:|---|---:|---:|---:|---:|---|", flush=True)
    ratios = []
    for case in cases(dict(argument.split("=", 1) for argument in sys.argv[1:])):
        found = in_own_process("benchmarks.memory_plan", asdict(case))
        if "error" in found:
            print(f"| {case.model} | {name(case)} | {found['error']} |")
            continue
        ratios.append(row(case, found["measured"]))
    print(f"\nplan over measured: {min(ratios):.2f} to {max(ratios):.2f}")


def name(case: Case) -> str:
    """The columns that say what was measured."""
    extra = "recomputed" if case.recompute else case.optimizer
    return f"{'cached' if case.cached else 'live'} | {case.precision} | {case.batch} | {extra}"


def row(case: Case, measured: float) -> float:
    """Print one setting; the plan over the measured peak."""
    plan = predict(case)
    allowance = plan.parts[-1].size
    predicted = plan.total - (allowance if case.device == "cuda" else 0)
    print(
        f"| {case.model} | {name(case)} | {measured / 1e9:.3f} | {predicted / 1e9:.3f} "
        f"| {predicted / measured:.2f} | {allowance / 1e9:.3f} | {plan.peak_moment} |",
        flush=True,
    )
    return predicted / measured


if __name__ == "__main__":
    main()

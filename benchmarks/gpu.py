"""Everything that waits for a GPU, in one command: the released size, random weights, batch 32.

    python -m benchmarks.gpu                              # at most 12 minutes on one GPU; writes benchmarks/results/
    python -m benchmarks.gpu --config tiny --device cpu   # the same code where there is none, to see that it runs
    python -m benchmarks.gpu --config small --device cpu --steps 3 --minutes 60   # training on a CPU, also in fp32

Numbers, on tiny models: parity with the original in fp32, padding in bf16, the CPU's own kernels off against on, a step
of FSDP2, a resumed run; each says what was found, the bound it must keep, and in words what was compared. Training:
samples/s, the time of 10,000 steps, peak memory and share of the matrix products (benchmarks/training_step.py says
what that means), live and on cached features, with the optimizers, compiled and not, beside the plain way. Acting:
latency of get_action, eager and compiled. Each measurement runs in a process of its own: one that fails (out of memory)
is reported and the others still run; those for which no time is left are not begun."""

from __future__ import annotations

import argparse
import math
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from benchmarks import measuring
from benchmarks.curves import Case, Checkout
from benchmarks.measuring import ROOT, Columns
from gr00t.model import cpu_kernels
from gr00t.model.gr00t_n1d7 import Gr00tN1d7

sys.path.insert(0, str(ROOT / "tests"))
from golden_files import CARRIED, checkpoint_of, infer_files, load, train_files
from parity.measure import absolute, inputs_of, original_like

TRAINING: dict[str, dict[str, Any]] = {
    "plain, bf16 autocast": {"plain": True},
    "live": {},
    "live, compiled": {"compiled": True},
    "live, compiled, 8-bit optimizer": {"compiled": True, "optimizer": "adamw_8bit"},
    "live, activation checkpointing": {"recompute": True},
    "live, offloaded optimizer": {"optimizer": "adamw_offload"},
    "cached": {"cached": True},
    "cached, compiled": {"cached": True, "compiled": True},
    "cached, compiled, 8-bit optimizer": {"cached": True, "compiled": True, "optimizer": "adamw_8bit"},
}
TRAINING_ON_CPU: dict[str, dict[str, Any]] = {
    "plain, fp32": {"plain": True, "precision": "fp32"},
    "live, fp32": {"precision": "fp32"},
    "live, micro-batches of 8": {"micro_batch": 8},
    "cached, fp32": {"precision": "fp32", "cached": True},
}
ACTING: dict[str, dict[str, Any]] = {
    "eager": {},
    "compiled": {"compiled": True},
    "compiled, CUDA graphs (reduce-overhead)": {"compiled": True, "mode": "reduce-overhead"},
}
TABLES: dict[str, Columns] = {
    "numbers": {
        "numbers": "{name}",
        "compared": "{compared}",
        "difference": "{difference:.1e}",
        "bound": "{bound:.1e}",
        "": "{verdict}",
    },
    "training": {
        "training": "{name}",
        "samples/s": "{speed:.2f}",
        "x plain": "{times_plain:.2f}",
        "10,000 steps, min": "{minutes:.1f}",
        "peak memory, GiB": "{memory_gib:.2f}",
        "of plain": "{of_plain:.2f}",
        "trained, M": "{trained_m:.1f}",
        "share": "{share:.0%}",
        "loss": "{loss:.4f}",
    },
    "acting": {
        "get_action, one sample": "{name}",
        "whole, s": "{seconds:.4f}",
        "backbone, s": "{backbone:.4f}",
        "head, s": "{head:.4f}",
        "peak memory, GiB": "{memory_gib:.1f}",
    },
}
Rows = dict[str, measuring.Found]  # by name


# -- what must hold of the numbers on a device -------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """The largest difference of what was compared, and the most it may be."""

    difference: float
    bound: float
    compared: str

    @property
    def holds(self) -> bool:
        return self.difference <= self.bound


def parity(device: str) -> Found:
    """Normalised actions of the original's recordings."""
    worst = 0.0
    for path in infer_files():
        data = load(path)
        torch.manual_seed(int(data["seed"]))
        actions = original_like(path).to(device).get_action(_on(device, inputs_of(data)))  # its noise is the CPU's
        worst = max(worst, absolute(actions, data["action_pred"]))
    bound = 5e-6 if device == "cpu" else 1e-4
    return Found(worst, bound, f"actions of {len(infer_files())} recordings of the original, fp32")


def padding(device: str) -> Found:
    """Actions in bf16 with padding before the prompt: both are as far from fp32 as bf16 takes them."""
    inputs = inputs_of(load(CARRIED / "infer_tiny_h50__new_embodiment.npz"))
    one = {name: values[: len(values) // 2] for name, values in inputs.items()}
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        model = Gr00tN1d7.from_pretrained(CARRIED / "tiny_h50", dtype=dtype).to(device)
        noise = torch.randn((1, 50, 128), generator=torch.Generator().manual_seed(0))
        for count in (0, 16, 200):
            padded = {n: F.pad(v, (count, 0)) if n in ("input_ids", "attention_mask") else v for n, v in one.items()}
            found[dtype, count] = model.get_action(_on(device, padded), noise=noise).float()
    plain = found[torch.bfloat16, 0]
    rounding = float((plain - found[torch.float32, 0]).abs().max())
    moved = max(float((found[torch.bfloat16, count] - plain).abs().max()) for count in (16, 200))
    compared = "actions in bf16 with 16 and 200 tokens of padding; bound: twice the error of bf16"
    return Found(moved, 2 * rounding, compared)


def switch(device: str) -> Found:
    """Loss and gradients of a training step: on the device, on the CPU, and there with the CPU's own kernels off."""
    path = train_files()[0]
    results = [_loss_and_gradients(path, "cpu", on) for on in (True, False)]
    if device != "cpu":
        results.append(_loss_and_gradients(path, device, True))
    worst = max(float((other - results[0]).abs().max()) for other in results[1:])
    return Found(worst, 1e-5 if device == "cpu" else 1e-3, "loss and gradients, relative: CPU kernels on, off, device")


def _loss_and_gradients(path: Path, device: str, on: bool) -> Tensor:
    """The loss, and every gradient's norm as a share of all, (1 + parameters,)."""
    data = load(path)
    model = Gr00tN1d7.from_pretrained(checkpoint_of(path), dtype=torch.float32).to(device).train()
    inputs = _on(device, inputs_of(data) | {n: torch.from_numpy(data[f"eval::{n}"]) for n in ("noise", "time")})
    with cpu_kernels.switched(on):
        loss = model(inputs).loss
        loss.backward()
    norms = torch.stack([p.grad.norm() for _, p in model.trained_parameters() if p.grad is not None])
    return torch.cat([loss.detach()[None], norms / norms.norm()]).double().cpu()


def fsdp2(device: str) -> Found:
    """The first loss of a run whose memory is divided."""
    runs = [Case("tiny", "live", "auto", device, engine, ("train.compile=false",)) for engine in ("single", "fsdp2")]
    with tempfile.TemporaryDirectory() as folder:
        checkout = Checkout.of(".", Path(folder))
        checkout.prepare(runs)
        single, divided = (checkout.train(case, out=case.engine)[0][0]["loss"] for case in runs)
    bound = 1e-6 if device == "cpu" else 1e-3
    return Found(abs(divided / single - 1), bound, "loss of a step of engine=fsdp2 beside engine=single")


def resume(device: str) -> Found:
    """Losses and weights of a run that stopped half way, bit for bit."""
    case = Case("tiny", "live", "auto", device, more=("train.save_steps=2",))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkout = Checkout.of(".", folder)
        checkout.prepare([case])
        whole, _ = checkout.train(case, out="whole")
        shutil.copytree(folder / "whole", folder / "cut")
        for lost in ("run/checkpoint-4", "done"):
            shutil.rmtree(folder / "cut" / lost)
        again, _ = checkout.train(case, out="cut")
        there, here = (load_file(folder / out / "run/checkpoint-4/trained.safetensors") for out in ("whole", "cut"))
    apart = max(float((there[name].double() - here[name].double()).abs().max()) for name in there)
    moved = max(abs(a["loss"] - b["loss"]) for a, b in zip(whole, again, strict=True))
    return Found(max(apart, moved), 0.0, "weights and losses of a resumed run beside the whole one")


def _on(device: str, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: values.to(device) for name, values in inputs.items()}


CHECKS: dict[str, Callable[[str], Found]] = {
    check.__name__: check for check in (parity, padding, switch, fsdp2, resume)
}


def check(case: dict[str, Any]) -> measuring.Found:
    """One check of the numbers, in a process of its own."""
    found = CHECKS[case["check"]](case["device"])
    return {**asdict(found), "verdict": "holds" if found.holds else "**does not hold**"}


# -- all measurements --------------------------------------------------------------------------------------------------


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", choices=("full", "small", "tiny"), default="full", help="size of the model")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=10, help="timed steps of each measurement, after three others")
    parser.add_argument("--minutes", type=float, default=12, help="measurements still running then are ended")
    parser.add_argument("--out", type=Path, help="results file; default benchmarks/results/<date>-<device>-<config>.md")
    parser.add_argument("--only", default="", help="measure only what has this text in its name")
    chosen = parser.parse_args()
    if chosen.batch < 1 or chosen.steps < 1:
        parser.error("--batch and --steps must be at least 1.")
    if chosen.device == "cuda" and not torch.cuda.is_available():
        parser.exit(2, "No CUDA device here, so nothing is measured. To try the code: --config tiny --device cpu\n")
    return chosen


def measure(chosen: argparse.Namespace, deadline: float) -> Iterator[tuple[str, str, measuring.Found]]:
    """Kind, name and result of one measurement after the other; `deadline` by time.monotonic()."""
    for kind, name, module, case in _cases(chosen):
        if chosen.only not in name:
            continue
        begin = time.monotonic()
        if deadline - begin < 20:  # seconds; a measurement takes longer than that
            found = {"error": f"not begun: {chosen.minutes:g} minutes were over (--minutes)"}
        else:
            found = measuring.in_own_process(module, case, timeout=deadline - begin)
        measuring.say(f"{kind}, {name}: {found.get('error') or 'measured'} ({time.monotonic() - begin:.0f} s)")
        yield kind, name, found


def _cases(chosen: argparse.Namespace) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """Kind, name, and the module with the case that it is given."""
    for name in CHECKS:
        yield "numbers", name, "benchmarks.gpu", {"check": name, "device": chosen.device}
    model = "released" if chosen.config == "full" else chosen.config
    common = {"model": model, "device": chosen.device, "batch": chosen.batch, "steps": chosen.steps, "warmup": 3}
    training = TRAINING_ON_CPU | TRAINING if chosen.device == "cpu" else TRAINING
    acting = {name: setting for name, setting in ACTING.items() if chosen.device == "cuda" or "mode" not in setting}
    for kind, settings in (("training", training), ("acting", acting)):
        for name, setting in settings.items():
            yield kind, name, "benchmarks.training_step", {**common, **setting, "acting": kind == "acting"}


def _beside_plain(name: str, rows: Rows, batch: int, peaks: dict[str, float]) -> dict[str, float]:
    """Speed and memory beside the plain way's, where that was measured, and the share (see training_step)."""
    row, nothing = rows[name], {"seconds": math.nan, "memory_gib": math.nan}
    plain = nothing | next((other for key, other in rows.items() if key.startswith("plain")), {})
    needed = (r["flops"] for key, r in rows.items() if "flops" in r and ("cached" in key) == ("cached" in name))
    return {
        "speed": batch / row["seconds"],
        "times_plain": plain["seconds"] / row["seconds"],
        "minutes": row["seconds"] * 10_000 / 60,
        "of_plain": row["memory_gib"] / plain["memory_gib"],
        "trained_m": row["trained"] / 1e6,
        "share": next(needed, math.nan) / row["seconds"] / peaks["fp32" if "fp32" in name else "bf16"],
    }


def report(chosen: argparse.Namespace, peaks: dict[str, float], found: dict[str, Rows]) -> str:
    """The results file: machine, versions, command, and a table of each kind. peaks: FLOP/s of both precisions."""
    command = f"python -m benchmarks.gpu --config {chosen.config} --device {chosen.device} --batch {chosen.batch}"
    products = ", ".join(f"{peak / 1e12:,.2f} TFLOP/s in {precision}" for precision, peak in peaks.items())
    lines = [
        f"# Training step and acting, {chosen.config} size on {chosen.device}, {datetime.now(UTC):%Y-%m-%d}\n",
        f"    {command} --steps {chosen.steps}\n",
        f"{measuring.describe()}\nMatrix products: {products}. Random weights, bf16, batch {chosen.batch}, medians.\n",
        "Share: what a step needs of these products (benchmarks/training_step.py). Memory of a GPU is the most that",
        "PyTorch allocated during the steps; of a CPU the growth of the process.\n",
    ]
    for kind, columns in TABLES.items():
        lines.append(measuring.heading(columns))
        for name, row in found[kind].items():
            more = _beside_plain(name, found[kind], chosen.batch, peaks) if "trained" in row else {}
            lines.append(measuring.line(columns, {"name": name, **row, **more}))
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    chosen = arguments()
    name = f"{datetime.now(UTC):%Y-%m-%d}-{chosen.device}-{chosen.config}.md"
    out = chosen.out or ROOT / "benchmarks" / "results" / name
    out.parent.mkdir(parents=True, exist_ok=True)
    found: dict[str, Rows] = {kind: {} for kind in TABLES}
    deadline = time.monotonic() + 60 * chosen.minutes
    dtypes = {"bf16": torch.bfloat16, "fp32": torch.float32}
    peaks = {precision: measuring.product_peak(chosen.device, dtype) for precision, dtype in dtypes.items()}
    with tempfile.TemporaryDirectory() as compiled:
        # of its own: a process killed while it compiles leaves half a file there, which all later ones would load
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = compiled
        for kind, name, result in measure(chosen, deadline):
            found[kind][name] = result
            out.write_text(report(chosen, peaks, found))  # after each: a job that is killed keeps what was measured
    print(out.read_text() if any(found.values()) else f"Nothing is named like --only {chosen.only}.")


if __name__ == "__main__":
    measuring.run(check, main)

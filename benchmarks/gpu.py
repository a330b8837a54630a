"""Everything that waits for a GPU, in one command: the released size, random weights, batch 32.

    python -m benchmarks.gpu                              # at most 12 minutes on one GPU; writes benchmarks/results/
    python -m benchmarks.gpu --config tiny --device cpu   # the same code where there is none, to see that it runs

Numbers, on tiny models (benchmarks/device_numbers.py): parity with the original in fp32, padding in bf16, the CPU's own
kernels off against on, a step of FSDP2, a resumed run. Training: samples/s, the time of 10,000 steps, peak memory and
share of the matrix products, live and on cached features, with the optimizers, compiled and not, beside the plain way.
Acting: latency of get_action, eager and compiled. Each measurement runs in a process of its own: one that fails (out of
memory) is reported and the others still run; those for which no time is left are not begun.
What "share" means stands in benchmarks/training_step.py."""

from __future__ import annotations

import argparse
import importlib.util
import os
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.device_numbers import CHECKS
from benchmarks.measuring import ROOT, describe, in_own_process, product_peak, say

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
ACTING: dict[str, dict[str, Any]] = {
    "eager": {},
    "compiled": {"compiled": True},
    "compiled, CUDA graphs (reduce-overhead)": {"compiled": True, "mode": "reduce-overhead"},
}
MODELS = {"full": "released", "small": "small", "tiny": "tiny"}
STEPS_OF_A_RUN = 10_000
SECONDS_LEFT = 20.0  # a measurement takes longer than that


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", choices=sorted(MODELS), default="full", help="size of the model")
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


def measure(chosen: argparse.Namespace, deadline: float) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Kind, name and result of one measurement after the other; `deadline` by time.monotonic()."""
    for kind, name, module, case in _cases(chosen):
        if chosen.only not in name:
            continue
        begin = time.monotonic()
        found = unavailable(case)
        if found is None and deadline - begin < SECONDS_LEFT:
            found = {"error": f"not begun: {chosen.minutes:g} minutes were over (--minutes)"}
        found = found or in_own_process(module, case, timeout=deadline - begin)
        say(f"{kind}, {name}: {found.get('error') or 'measured'} ({time.monotonic() - begin:.0f} s)")
        yield kind, name, found


def _cases(chosen: argparse.Namespace) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """Kind, name, and the module with the case that it is given."""
    for check in CHECKS:
        yield "numbers", check, "benchmarks.device_numbers", {"check": check, "device": chosen.device}
    common = {"model": MODELS[chosen.config], "device": chosen.device, "steps": chosen.steps, "warmup": 3}
    for kind, settings in (("training", TRAINING), ("acting", ACTING)):
        for name, setting in settings.items():
            case = {**common, "batch": chosen.batch, **setting, "acting": kind == "acting"}
            yield kind, name, "benchmarks.step", case


def unavailable(case: dict[str, Any]) -> dict[str, Any] | None:
    """Why a measurement cannot run on this machine."""
    if case.get("optimizer") == "adamw_8bit" and importlib.util.find_spec("bitsandbytes") is None:
        return {"error": "bitsandbytes is not installed"}
    if case.get("mode") == "reduce-overhead" and case["device"] == "cpu":
        return {"error": "CUDA graphs need CUDA"}
    return None


def report(chosen: argparse.Namespace, peak: float, found: dict[str, dict[str, dict[str, Any]]]) -> str:
    """The results file: machine, versions, command, and a table of each kind."""
    command = f"python -m benchmarks.gpu --config {chosen.config} --device {chosen.device}"
    lines = [
        f"# Training step and acting, {chosen.config} size on {chosen.device}, {datetime.now(UTC):%Y-%m-%d}\n",
        f"    {command} --batch {chosen.batch} --steps {chosen.steps}\n",
        describe()
        + f"\nMatrix products in bf16: {peak / 1e12:,.2f} TFLOP/s. Random weights, bf16, batch {chosen.batch}.",
        "",
        "| numbers | compared | difference | bound | |",
        "|---|---|---:|---:|---|",
        *(_numbers_row(name, row) for name, row in found["numbers"].items()),
        "",
        f"| training | samples/s | {STEPS_OF_A_RUN:,} steps, min | peak memory, GiB | share | loss |",
        "|---|---:|---:|---:|---:|---:|",
        *(_training_row(name, row, found["training"], chosen.batch, peak) for name, row in found["training"].items()),
        "",
        "| get_action, one sample | whole, ms | backbone, ms | head, ms | peak memory, GiB |",
        "|---|---:|---:|---:|---:|",
        *(_acting_row(name, row) for name, row in found["acting"].items()),
        "",
        f"Medians of {chosen.steps}. Share: what a step needs of the peak above (benchmarks/training_step.py). Memory",
        "of a GPU is the most that PyTorch allocated during the steps; of a CPU the growth of the process.",
    ]
    return "\n".join(lines) + "\n"


def _numbers_row(name: str, row: dict[str, Any]) -> str:
    if "error" in row:
        return f"| {name} | failed: {row['error']} | | | |"
    verdict = "holds" if row["holds"] else "**does not hold**"
    return f"| {name} | {row['compared']} | {row['difference']:.1e} | {row['bound']:.1e} | {verdict} |"


def _training_row(name: str, row: dict[str, Any], rows: dict[str, Any], batch: int, peak: float) -> str:
    if "error" in row:
        return f"| {name} | failed: {row['error']} | | | | |"
    flops = rows.get("cached" if name.startswith("cached") else "live", {}).get("flops")
    share = f"{flops / row['seconds'] / peak:.0%}" if flops else "-"
    figures = [batch / row["seconds"], row["seconds"] * STEPS_OF_A_RUN / 60, row["memory_gib"]]
    return f"| {name} | {' | '.join(f'{figure:.1f}' for figure in figures)} | {share} | {row['loss']:.4f} |"


def _acting_row(name: str, row: dict[str, Any]) -> str:
    if "error" in row:
        return f"| {name} | failed: {row['error']} | | | |"
    whole, backbone = row["seconds"] * 1e3, row["backbone"] * 1e3
    return f"| {name} | {whole:.1f} | {backbone:.1f} | {whole - backbone:.1f} | {row['memory_gib']:.1f} |"


def main() -> None:
    chosen = arguments()
    out = chosen.out or (
        ROOT / "benchmarks" / "results" / f"{datetime.now(UTC):%Y-%m-%d}-{chosen.device}-{chosen.config}.md"
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    found: dict[str, dict[str, dict[str, Any]]] = {"numbers": {}, "training": {}, "acting": {}}
    deadline = time.monotonic() + 60 * chosen.minutes
    peak = product_peak(chosen.device, "bf16")
    with tempfile.TemporaryDirectory() as compiled:
        # of its own: a process killed while it compiles leaves half a file there, which all later ones would load
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = compiled
        for kind, name, result in measure(chosen, deadline):
            found[kind][name] = result
            out.write_text(report(chosen, peak, found))  # after each: a job that is killed keeps what was measured
    print(out.read_text() if any(found.values()) else f"Nothing is named like --only {chosen.only}.")


if __name__ == "__main__":
    main()

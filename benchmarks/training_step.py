"""Training step: samples/s, share of the machine's matrix products and memory, beside the plain way, in one run.

    python -m benchmarks.training_step model=small batch=32 steps=3
    python -m benchmarks.training_step only=bf16      # the plain way, and what has this in its name

model is tiny, small or released (a GPU's memory). Each setting runs in a process of its own, on random weights and one
fixed batch (two 256x256 views, one instruction). Memory is the highest resident size over that of the process before
the model is built (GPU: the most allocated). "Share" is what a step needs, over its time, over the fastest large
matrix product measured in the same run in the setting's precision. What it needs is counted once, from the live or
the cached setting: every product of the forward pass, and of the backward pass of what is trained, with attention to
the tokens that count; products computed again, or computed and masked away, are not needed."""

from __future__ import annotations

import sys
from typing import Any

import torch

from benchmarks.measuring import describe, in_own_process, product_peak, say

PLAIN = "plain, fp32"
SETTINGS: dict[str, dict[str, Any]] = {
    PLAIN: {"plain": True, "precision": "fp32"},
    "live, fp32": {"precision": "fp32"},
    "live, bf16": {"precision": "bf16"},
    "live, bf16, micro-batches of a quarter": {"precision": "bf16", "micro_batch": 4},
    "cached features, fp32": {"precision": "fp32", "cached": True},
    "cached features, bf16": {"precision": "bf16", "cached": True},
}
MODELS = ("tiny", "small", "released")


def main() -> None:
    options = {"model": "small", "batch": "32", "steps": "3", "only": "", **dict(a.split("=", 1) for a in sys.argv[1:])}
    if options["model"] not in MODELS:
        raise SystemExit(f"model={options['model']}: choose one of {', '.join(MODELS)}.")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if options["model"] == "released" and device == "cpu":
        raise SystemExit("model=released needs a GPU: a training step of the released size takes over 24 GB.")
    size, steps = int(options["batch"]), int(options["steps"])
    rows = {}
    for name, setting in SETTINGS.items():
        if options["only"] not in name and name != PLAIN:
            continue
        case = {"model": options["model"], "device": device, "batch": size, "steps": steps, **setting}
        if "micro_batch" in case:
            case["micro_batch"] = max(1, size // case["micro_batch"])
        say(name)
        rows[name] = in_own_process("benchmarks.step", case)
    print(f"model={options['model']}, batch {size}, median of {steps} steps\n{describe()}")
    report(rows, size, device)


def report(rows: dict[str, dict[str, Any]], size: int, device: str) -> None:
    """The table, with what failed and why."""
    peaks = {precision: product_peak(device, precision) for precision in ("fp32", "bf16")}
    print("matrix products: " + ", ".join(f"{p} {peak / 1e9:,.0f} GFLOP/s" for p, peak in peaks.items()) + "\n")
    columns = ("samples/s", "x plain", "share", "memory, GiB", "of plain", "trained, M")
    print(f"| setting | {' | '.join(columns)} |\n|---|{'---:|' * len(columns)}")
    plain = rows[PLAIN]
    for name, row in rows.items():
        if "error" in row:
            print(f"| {name} | failed: {row['error']} |{' |' * (len(columns) - 1)}")
            continue
        counted = [r["flops"] for n, r in rows.items() if "flops" in r and ("cached" in n) == ("cached" in name)]
        share = counted[0] / row["seconds"] / peaks["bf16" if "bf16" in name else "fp32"] if counted else float("nan")
        print(
            f"| {name} | {size / row['seconds']:.2f} | {_ratio(plain, 'seconds', row, inverse=True)} | {share:.0%} "
            f"| {row['memory_gib']:.2f} | {_ratio(plain, 'memory_gib', row)} | {row['trained'] / 1e6:.1f} |"
        )


def _ratio(plain: dict[str, Any], key: str, row: dict[str, Any], inverse: bool = False) -> str:
    if "error" in plain:
        return "-"
    ratio = row[key] / plain[key]
    return f"{1 / ratio if inverse else ratio:.2f}"


if __name__ == "__main__":
    main()

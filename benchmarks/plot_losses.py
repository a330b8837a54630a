"""Draw the losses of some runs by action group, one line a run; runs joined by + continue one another.

python -m benchmarks.plot_losses OUT.png mask=example/runs/first+example/runs/color_object drop=example/runs/drop
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from matplotlib.figure import Figure

COLORS = ("#1b5e9b", "#e0592b", "#5a8f29", "#7a4fa3")


def losses(runs: list[Path]) -> list[dict[str, float]]:
    """What the runs logged of training, line by line, with `samples` that were seen since the first of them began."""
    found: list[dict[str, float]] = []
    for run in runs:
        before = found[-1]["samples"] if found else 0
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        size = int(json.loads((run / "run_config.json").read_text(encoding="utf-8"))["train"]["global_batch_size"])
        found += [{**line, "samples": before + line["step"] * size} for line in lines if "loss" in line]
    return found


def draw(runs: dict[str, list[Path]], out: Path) -> None:
    """One panel for the whole loss and one for each action group that all runs have, over the samples seen."""
    found = {name: losses(parts) for name, parts in runs.items()}
    shared = set.intersection(*(set(lines[0]) for lines in found.values()))
    keys = ["loss", *sorted(key for key in shared if key.startswith("loss_"))]
    figure = Figure(figsize=(4.2 * len(keys), 3.2), dpi=110, layout="constrained")
    for axis, key in zip(figure.subplots(1, len(keys), squeeze=False)[0], keys, strict=True):
        for (name, lines), color in zip(found.items(), COLORS, strict=False):
            thousands = [line["samples"] / 1000 for line in lines]
            axis.plot(thousands, [line[key] for line in lines], color=color, linewidth=1.2, label=name)
        axis.set(xlabel="samples, thousands", title=key, yscale="log")
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False)
    figure.savefig(out)


def main() -> None:
    if len(sys.argv) < 3:
        raise SystemExit(__doc__)
    named = (argument.split("=", 1) for argument in sys.argv[2:])
    draw({name: [Path(run) for run in runs.split("+")] for name, runs in named}, Path(sys.argv[1]))


if __name__ == "__main__":
    main()

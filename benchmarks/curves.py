"""Draw the losses of some runs by action group, one line a run.

python -m benchmarks.curves OUT.png mask=example/runs/color_object drop=example/runs/drop
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from matplotlib.figure import Figure

COLORS = ("#1b5e9b", "#e0592b", "#5a8f29", "#7a4fa3")


def metrics(run: Path) -> list[dict[str, float]]:
    """What a run logged, line by line."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def samples_per_step(run: Path) -> int:
    """Of a run's optimizer steps."""
    return int(json.loads((run / "run_config.json").read_text(encoding="utf-8"))["train"]["global_batch_size"])


def draw(runs: dict[str, Path], out: Path) -> None:
    """One panel for the whole loss and one for each action group that all runs have, over the samples seen."""
    found = {name: metrics(run) for name, run in runs.items()}
    shared = set.intersection(*(set(lines[0]) for lines in found.values()))
    keys = ["loss", *sorted(key for key in shared if key.startswith("loss_"))]
    figure = Figure(figsize=(4.2 * len(keys), 3.2), dpi=110, layout="constrained")
    for axis, key in zip(figure.subplots(1, len(keys), squeeze=False)[0], keys, strict=True):
        for (name, lines), color in zip(found.items(), COLORS, strict=False):
            thousands = [m["step"] * samples_per_step(runs[name]) / 1000 for m in lines]
            axis.plot(thousands, [m[key] for m in lines], color=color, linewidth=1.2, label=name)
        axis.set(xlabel="samples, thousands", title=key, yscale="log")
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False)
    figure.savefig(out)


def main() -> None:
    if len(sys.argv) < 3:
        raise SystemExit(__doc__)
    draw({name: Path(run) for name, run in (argument.split("=", 1) for argument in sys.argv[2:])}, Path(sys.argv[1]))


if __name__ == "__main__":
    main()

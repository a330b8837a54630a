"""Draw the loss of a run that was stopped and continued over that of an undisturbed one.

    python benchmarks/resume_overlay.py runs/whole runs/cut docs/images/resume.png 17,38

The last argument names the steps at which the second run was killed."""

from __future__ import annotations

import sys
from pathlib import Path

from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.curves import read


def main() -> None:
    whole, cut = ({line["step"]: line["loss"] for line in read(Path(run))} for run in sys.argv[1:3])
    figure = Figure(figsize=(8, 3.2))
    axis = figure.subplots()
    axis.plot(list(whole), list(whole.values()), color="#1b5e9b", linewidth=5, alpha=0.35, label="undisturbed")
    axis.plot(list(cut), list(cut.values()), color="#e0592b", linewidth=1.4, label="killed and continued")
    for step in sys.argv[4].split(","):
        axis.axvline(int(step), color="0.6", linestyle=":", linewidth=1)
    equal = sum(whole.get(step) == loss for step, loss in cut.items())
    axis.set(xlabel="optimizer step", ylabel="loss", title=f"{equal} of {len(cut)} losses equal bit for bit")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(sys.argv[3], dpi=100)
    print(f"{sys.argv[3]}: {equal} of {len(cut)} losses equal")


if __name__ == "__main__":
    main()

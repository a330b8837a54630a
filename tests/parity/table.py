"""Print the tables of docs/parity.md: python tests/parity/table.py (with GROOT_GOLDEN_DIR for further files)."""

from __future__ import annotations

import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS.parent), str(TESTS)]

from golden_files import infer_files, train_files  # noqa: E402

from parity.measure import (  # noqa: E402
    chunking_difference,
    draw_differences,
    gradient_differences,
    infer_differences,
    recorded_modes,
    step_differences,
)

INFER_PARTS = ("features", "vl_embeds", "state", "velocity", "action_pred")


def row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def cell(value: float | None) -> str:
    if value is None:
        return "-"
    return "0" if value == 0 else f"{value:.1e}"


def infer_table() -> list[str]:
    """One row for each recorded inference."""
    lines = [row(["file", *INFER_PARTS, "rtc action_pred"]), row(["---"] * (len(INFER_PARTS) + 2))]
    for path in infer_files():
        found = infer_differences(path)
        values = [found.get(part) for part in INFER_PARTS] + [chunking_difference(path)]
        lines.append(row([path.stem.removeprefix("infer_").replace("__", ", "), *map(cell, values)]))
    return lines


def train_table() -> list[str]:
    """One row for each quantity of each recorded training batch."""
    lines = [row(["file", "what", "loss", "unreduced loss", "gradients, worst", "total gradient"]), row(["---"] * 6)]
    for path in train_files():
        for mode in recorded_modes(path):
            found = gradient_differences(path, mode)
            lines.append(row([path.stem, f"trained: {mode}", *map(cell, found.values())]))
    return lines


def step_table() -> list[str]:
    """One row for each recorded training batch: its draws, and the parameters after the optimizer steps."""
    names = ["noise", "time", "pred_velocity", "losses", "gradient norms", "parameter norms", "parameter sums"]
    lines = [row(["file", *names]), row(["---"] * (len(names) + 1))]
    for path in train_files():
        drawn, stepped = draw_differences(path), step_differences(path)
        values = [drawn.get(part) for part in ("noise", "time", "pred_velocity")] + [*stepped.values()]
        lines.append(row([path.stem, *map(cell, values)]))
    return lines


if __name__ == "__main__":
    print("\n".join([*infer_table(), "", *train_table(), "", *step_table()]))

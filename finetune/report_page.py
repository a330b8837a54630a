"""The page of a run, or of several: curves, what differs, how each stands."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from finetune.curves import COLORS, Line, Mark, Panel, draw_panels
from finetune.page import render_page
from finetune.run_files import REPORT
from finetune.run_history import History
from gr00t.files import disk_errors, write_text

TITLES = {
    "loss": "loss",
    "val/arm_mae": "error on held-out episodes, arm (rad)",
    "val/arm_mae_last": "the same, last frames",
    "val/gripper_wrong_signs_last": "gripper commands of the wrong sign, last frames (part)",
    "grad_norm": "gradient norm",
    "learning_rate": "learning rate",
    "samples_per_second": "samples a second",
    "data_wait_seconds": "seconds waited for data, between two log lines",
    "peak_memory_gib": "peak memory (GiB)",
}
COLUMNS = {
    "step": "step",
    "loss": "loss",
    "val/arm_mae": "held-out arm error",
    "samples_per_second": "samples/s",
    "peak_memory_gib": "peak GiB",
}
HOLD_STILL, MEAN_CHUNK, BASELINE = "_hold_still", "_mean_chunk", "#8c8c8c"
_DASHES = ("solid", "dashed", "dotted", "dotdash")


@dataclass(frozen=True)
class Card:
    """A number at the top of the page."""

    name: str
    value: str
    note: str = ""


def write_page(runs: Sequence[History], root: Path, out: Path) -> None:
    """Write the page of these runs, which lie below `root` (or are it), to `out`; whole or not at all."""
    runs = [_named(run, root) for run in runs]
    panels = _panels_of_one(runs[0]) if len(runs) == 1 else _panels_of_many(runs)
    values = {
        "title": runs[0].name if len(runs) == 1 else f"{len(runs)} runs",
        "lead": _lead(runs),
        "runs": runs,
        "cards": _cards(runs[0]),
        "columns": list(COLUMNS.values()),
        "rows": [_row(run, out) for run in runs],
        "differences": differences(runs) if len(runs) > 1 else [],
        "marked": any(panel.marks for panel in panels),
        "drawn": draw_panels(panels),
    }
    with disk_errors(out, "Choose another place, out=FILE."):
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, render_page("report.html", values))


def differences(runs: Sequence[History]) -> list[tuple[str, list[str]]]:
    """Settings in which these runs differ, with each run's value."""
    names = dict.fromkeys(name for run in runs for name in run.settings)
    rows = [(name, ["" if name not in run.settings else str(run.settings[name]) for run in runs]) for name in names]
    return [(name, values) for name, values in rows if len(set(values)) > 1]


def _named(run: History, root: Path) -> History:
    """By its place below `root`, where it has one: two runs may have folders of one name."""
    folder, above = run.folder.absolute(), root.absolute()
    inside = folder.relative_to(above) if folder.is_relative_to(above) and folder != above else Path(run.folder.name)
    return replace(run, name=str(inside))


def _lead(runs: Sequence[History]) -> str:
    made = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    if len(runs) > 1:
        return f"Made {made}."
    settings = runs[0].settings
    parts = [f"split {runs[0].split}", f"base {settings.get('model.base')}", f"engine {settings.get('engine.name')}"]
    return f"{', '.join(parts)}. Made {made}."


def _cards(run: History) -> list[Card]:
    total = run.settings.get("train.max_steps")
    cards = [Card("steps", str(run.step), f"of {total}" if total else "")]
    if (loss := run.last("loss")) is not None:
        cards.append(Card("loss", f"{loss:.4g}"))
    if run.best:
        cards.append(
            Card("best evaluation", f"{run.best['metric']:.4g}", f"{run.best['name']}, step {run.best['step']}")
        )
    if (speed := run.last("samples_per_second")) is not None:
        cards.append(Card("samples a second", f"{speed:.3g}"))
    if (memory := run.last("peak_memory_gib")) is not None:
        cards.append(Card("peak memory", f"{memory:.3g} GiB"))
    if run.starts:
        cards.append(Card("attempts", str(len(run.starts))))
    return cards


def _row(run: History, out: Path) -> dict[str, Any]:
    page = run.folder / REPORT
    values = {"step": run.step, **{name: run.last(name) for name in COLUMNS if name != "step"}}
    cells = ["" if values[name] is None else f"{values[name]:.4g}" for name in COLUMNS]
    linked = page.is_file() and page.absolute() != out.absolute()
    return {"run": run, "cells": cells, "link": quote(os.path.relpath(page, out.parent)) if linked else ""}


def _panels_of_one(run: History) -> list[Panel]:
    """A measurement's own parts (loss_arm, grad_norm_projector, ...) share its panel."""
    marks = [Mark(s.step, f"attempt {s.attempt}") for s in run.starts[1:]]
    if run.best:
        marks.append(Mark(int(run.best["step"]), "best"))
    panels = []
    for name in ("loss", *_judged(run), "grad_norm", "learning_rate", "samples_per_second", "data_wait_seconds"):
        panels.append(_panel_of_one(run, name, marks))
    panels.append(_panel_of_one(run, "peak_memory_gib", marks))
    return [panel for panel in panels if panel.lines]


def _judged(run: History) -> list[str]:
    """Errors on held-out episodes, one name a group, and the wrong signs."""
    kinds = ("_mae", "_wrong_signs")
    return [name for name in run.series if name.startswith("val/") and name.endswith(kinds)]


def _panel_of_one(run: History, name: str, marks: list[Mark]) -> Panel:
    names = [found for found in run.series if found == name or found.startswith(f"{name}_")]
    colors = dict(zip(names, COLORS * 2, strict=False))
    lines = [
        Line(
            found.removeprefix("val/").replace("_", " "),
            *run.series[found],
            BASELINE if found.endswith((HOLD_STILL, MEAN_CHUNK)) else colors[found],
            "dotted" if found.endswith(HOLD_STILL) else "dashed" if found.endswith(MEAN_CHUNK) else "solid",
        )
        for found in names
    ]
    return Panel(TITLES.get(name, name.removeprefix("val/").replace("_", " ")), lines, marks)


def _panels_of_many(runs: Sequence[History]) -> list[Panel]:
    """One panel a measurement, one color a run."""
    panels = []
    for name, title in TITLES.items():
        lines = [
            Line(run.name, *run.series[name], COLORS[i % len(COLORS)], _DASHES[i // len(COLORS) % len(_DASHES)])
            for i, run in enumerate(runs)
            if name in run.series
        ]
        marks = [Mark(s.step, run.name) for run in runs for s in run.starts[1:]]
        panels.append(Panel(title, lines, marks))
    return [panel for panel in panels if panel.lines]

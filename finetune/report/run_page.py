"""The page of a run, or of several: curves, what differs, how each stands.

Curves can be looked at closely: drag to zoom (the steps of all plots of a page follow), double-click to go back, hover
for values, click a name in the legend to hide its line. They are drawn by Bokeh, whose script is part of the page."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from bokeh.embed import components
from bokeh.models import BoxZoomTool, CustomJS, HoverTool, Label, Legend, Range1d, Span
from bokeh.plotting import figure
from bokeh.resources import Resources
from markupsafe import Markup

from finetune.report import History
from finetune.training import REPORT
from gr00t.errors import disk_errors
from gr00t.file_replacement import write_text
from toolkit.html_page import render_page

POINTS = 1500  # of a line; more than a screen has pixels
FEW = 60  # of so few each is a dot
HEIGHT, LEGEND_ROW, LEGEND_COLUMNS = 250, 24, 3  # pixels, pixels, names in a row
COLORS = ("#1f5f99", "#e0592a", "#2f8f5b", "#8a5fb0", "#c2872b", "#c44d7b", "#4aa3a2", "#7a7a7a", "#93a52c", "#5b6fd8",
          "#a3552e", "#3f3f3f")  # fmt: skip
DASHES = ("solid", "dashed", "dotted", "dotdash")
BASELINE, BASELINES = "#8c8c8c", {"_hold_still": "dotted", "_mean_chunk": "dashed"}

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
CARDS = (
    ("loss", "loss", "{:.4g}"),
    ("samples a second", "samples_per_second", "{:.3g}"),
    ("peak memory", "peak_memory_gib", "{:.3g} GiB"),
)


class Line(NamedTuple):
    """Values over steps, by the name that the legend shows; several lines of one color differ by their dashes."""

    name: str
    steps: list[int]
    values: list[float]
    color: str
    dash: str = "solid"


class Mark(NamedTuple):
    """A step that is marked on the curves, and why."""

    step: int
    text: str


class Panel(NamedTuple):
    """One plot."""

    title: str
    lines: list[Line]
    marks: list[Mark]


def write_page(runs: Sequence[History], root: Path, out: Path) -> None:
    """Write the page of these runs, which lie below `root` (or are it), to `out`; whole or not at all."""
    runs = [replace(run, name=_place(run.folder, root)) for run in runs]
    one, single = runs[0], len(runs) == 1
    panels = _panels_of_one(one) if single else _panels_of_many(runs)
    of = f"split {one.split}, base {one.settings.get('model.base')}, engine {one.settings.get('engine.name')}. "
    values = {
        "title": one.name if single else f"{len(runs)} runs",
        "lead": f"{of if single else ''}Made {datetime.now().astimezone():%Y-%m-%d %H:%M %Z}.",
        "runs": runs,
        "cards": _cards(one),
        "columns": list(COLUMNS.values()),
        "rows": [_row(run, out) for run in runs],
        "differences": [] if single else differences(runs),
        "marked": any(panel.marks for panel in panels),
        "drawn": _draw(panels),
    }
    with disk_errors(out, "Choose another place, out=FILE."):
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, render_page("report.html", values))


def _row(run: History, out: Path) -> dict[str, Any]:
    """A run in the table of several, with a link to its own page where it has one."""
    page = run.folder / REPORT
    linked = page.is_file() and page.absolute() != out.absolute()
    numbers = [run.step if name == "step" else run.last(name) for name in COLUMNS]
    cells = ["" if number is None else f"{number:.4g}" for number in numbers]
    return {"run": run, "cells": cells, "link": quote(os.path.relpath(page, out.parent)) if linked else ""}


def differences(runs: Sequence[History]) -> list[tuple[str, list[str]]]:
    """Settings in which these runs differ, with each run's value."""
    names = dict.fromkeys(name for run in runs for name in run.settings)
    rows = [(name, ["" if name not in run.settings else str(run.settings[name]) for run in runs]) for name in names]
    return [(name, values) for name, values in rows if len(set(values)) > 1]


def _place(folder: Path, root: Path) -> str:
    """A run's folder below `root`, since two runs may have folders of one name; its own name elsewhere."""
    here, above = folder.absolute(), root.absolute()
    return str(here.relative_to(above) if here.is_relative_to(above) and here != above else Path(folder.name))


def _cards(run: History) -> list[dict[str, str]]:
    """The numbers at the top of the page: name, value and note of each."""
    total, best, attempts = run.settings.get("train.max_steps"), run.best, len(run.starts)
    cards = [("steps", str(run.step), f"of {total}" if total else "")]
    if best:
        cards.append(("best evaluation", f"{best['metric']:.4g}", f"{best['name']}, step {best['step']}"))
    for name, measured, form in CARDS:
        value = run.last(measured)
        if value is not None:
            cards.append((name, form.format(value), ""))
    if attempts:
        cards.append(("attempts", str(attempts), ""))
    return [{"name": name, "value": value, "note": note} for name, value, note in cards]


# -- curves ------------------------------------------------------------------------------------------------------------


def _panels_of_one(run: History) -> list[Panel]:
    """A measurement's own parts (loss_arm, grad_norm_projector, ...) share its panel."""
    marks = [Mark(s.step, f"attempt {s.attempt}") for s in run.starts[1:]]
    marks += [Mark(int(run.best["step"]), "best")] if run.best else []
    # errors on held-out episodes, one name a group, and the wrong signs
    judged = [name for name in run.series if name.startswith("val/") and name.endswith(("_mae", "_wrong_signs"))]
    measured = [name for name in TITLES if not name.startswith("val/") and name != "loss"]
    panels = []
    for title in ("loss", *judged, *measured):
        lines: list[Line] = []
        for name in (name for name in run.series if name == title or name.startswith(f"{title}_")):
            dash = next((dash for end, dash in BASELINES.items() if name.endswith(end)), "solid")
            color = COLORS[len(lines) % len(COLORS)] if dash == "solid" else BASELINE
            lines.append(Line(_readable(name), *run.series[name], color, dash))
        panels.append(Panel(TITLES.get(title, _readable(title)), lines, marks))
    return [panel for panel in panels if panel.lines]


def _readable(name: str) -> str:
    return name.removeprefix("val/").replace("_", " ")


def _panels_of_many(runs: Sequence[History]) -> list[Panel]:
    """One panel a measurement, one color a run."""
    marks = [Mark(start.step, run.name) for run in runs for start in run.starts[1:]]
    looks = [(COLORS[i % len(COLORS)], DASHES[i // len(COLORS) % len(DASHES)]) for i in range(len(runs))]
    panels = []
    for name, title in TITLES.items():
        shown = [(run, look) for run, look in zip(runs, looks, strict=True) if name in run.series]
        panels.append(Panel(title, [Line(run.name, *run.series[name], *look) for run, look in shown], marks))
    return [panel for panel in panels if panel.lines]


def _draw(panels: Sequence[Panel]) -> dict[str, Any]:
    """The panels, with one range of steps for all: Bokeh's own script, the data's, and the place of each panel."""
    ends = [step for panel in panels for line in panel.lines for step in (line.steps[0], line.steps[-1])] or [0, 1]
    first, last = min(ends), max(ends)
    margin = max(1, last - first) * 0.02
    steps = Range1d(first - margin, last + margin, name="steps")
    plots = [_plot(panel, steps) for panel in panels]
    for plot in plots:
        plot.js_on_event("doubletap", CustomJS(args={"plots": plots}, code="for (const p of plots) p.reset.emit()"))
    script, places = components(plots) if plots else ("", [])  # nothing is measured yet
    library = Resources(mode="inline", components=["bokeh"]).render_js()
    return {"library": Markup(library), "script": Markup(script), "places": [Markup(place) for place in places]}


def _plot(panel: Panel, steps: Range1d) -> figure:
    several = len(panel.lines) > 1
    plot = figure(
        title=panel.title,
        height=HEIGHT + LEGEND_ROW * (-(-len(panel.lines) // LEGEND_COLUMNS) if several else 0),
        sizing_mode="stretch_width",
        min_border_left=64,  # axes of plots below each other in line
        x_range=steps,
        window_axis="x",  # where another plot is zoomed, the values of those steps fill this one's height
        tools=[BoxZoomTool(dimensions="auto")],
        toolbar_location=None,
    )
    plot.title.text_font_size, plot.title.text_font_style = "13px", "normal"
    plot.xaxis.axis_label, plot.xaxis.axis_label_text_font_size = "step", "11px"
    plot.xaxis.formatter.use_scientific = False
    plot.xgrid.grid_line_color, plot.ygrid.grid_line_color, plot.outline_line_color = None, "#eeeeee", None
    items = []
    for line in panel.lines:
        every = -(-len(line.steps) // POINTS)
        x, y, named = line.steps[::every], line.values[::every], {"color": line.color, "name": line.name}
        path = plot.line(x, y, line_width=1.6, line_dash=line.dash, **named)
        items.append((line.name, [path, plot.scatter(x, y, size=4 if len(x) < FEW else 1, **named)]))
    values = [("", "$name"), ("step", "@x"), ("", "@y{0.[00000]}")]
    paths = [path for _, (path, _) in items]
    plot.add_tools(HoverTool(renderers=paths, mode="vline", line_policy="nearest", tooltips=values))
    small = {"y": 4, "y_units": "screen", "x_offset": 3, "text_font_size": "10px", "text_color": "#66737f"}
    for mark in panel.marks:
        plot.add_layout(Span(location=mark.step, dimension="height", line_color="#8c8c8c", line_dash="dotted"))
        plot.add_layout(Label(x=mark.step, text=mark.text, **small))
    if several:
        look = {"border_line_color": None, "label_text_font_size": "11px", "padding": 0, "margin": 4}
        legend = Legend(items=items, click_policy="hide", orientation="horizontal", ncols=LEGEND_COLUMNS, **look)
        plot.add_layout(legend, "below")
    return plot

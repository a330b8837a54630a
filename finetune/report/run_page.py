"""The page of a run, or of several: curves, what differs, how each stands.

Curves can be looked at closely: drag to zoom (the steps of all plots of a page follow), double-click to go back, hover
for values. They are drawn by Bokeh, whose script is part of the page. Fields beside them do the same from the keyboard:
the steps shown, the lines shown, and a table of each plot's values."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
from bokeh.embed import components
from bokeh.models import BooleanFilter, BoxZoomTool, CDSView, ColumnDataSource, HoverTool, Label, Range1d, Span
from bokeh.plotting import figure
from bokeh.resources import Resources
from markupsafe import Markup

from finetune.report import Curve, History
from finetune.training import FIRST_BATCH, REPORT
from gr00t.errors import disk_errors
from gr00t.file_replacement import write_text
from toolkit.html_page import COLORS, GREY, render_page

FEW = 60  # of so few points each is a dot
CROWD = 12  # with more lines, only the one below the pointer shows its value; with more marks, none is drawn
HEIGHT = 250  # pixels
DASHES = ("solid", "6 3", "2 2", "2 4 6 4")  # pixels drawn and left out
BASELINES = {"_hold_still": DASHES[2], "_mean_chunk": DASHES[1]}

TITLES = {
    "loss": "loss",
    "val/arm_mae": "error on held-out episodes, arm (rad)",
    "val/arm_mae_last": "the same, last frames",
    "val/gripper_wrong_signs_last": "gripper commands of the wrong sign, last frames (part)",
    "probes/sensitivity": "sensitivity in cue probes (part of pairs; proven for color only)",
    "probes/heads_for": "what is headed for in cue probes (part of scenes; proven for the target only)",
    "grad_norm": "gradient norm",
    "learning_rate": "learning rate",
    "samples_per_second": "samples a second",
    "data_wait_seconds": "seconds waited for data, between two log lines",
    "peak_memory_gib": "peak memory (GiB)",
}
AGREEMENT = (
    "Rank correlation with closed loop over ten checkpoints of one run: 0.80 for heads for target, 0.83 for "
    "sensitivity to color; of the other curves none has been shown (python -m benchmarks.cue_probes)."
)
NOTES = {
    "probes/sensitivity": "Pairs of first frames differ in the one thing that a curve is named after; it shows in how "
    f"many of them the policy's chunk heads for one object in the one and for another in the other. {AGREEMENT}",
    "probes/heads_for": "target: of scenes in which the cues agree, where it heads for the object that fits; target "
    "not lure: the same of conflict scenes in which it heads for either; none: of all scenes, where it comes less than "
    f"a fifth of the expert's way toward any object. {AGREEMENT}",
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
    """A curve by the name that the page shows; several of one color differ by their dashes."""

    name: str
    curve: Curve
    color: str
    dash: str = DASHES[0]

    def ends(self) -> list[str]:
        """How many values were logged, the first, last, lowest and highest, and the steps of the latter two."""
        steps, values, logged = self.curve
        low, high = values.argmin(), values.argmax()
        least, most = (f"{values[at]:.4g} at {steps[at]}" for at in (low, high))
        return [str(logged), f"{values[0]:.4g}", f"{values[-1]:.4g}", least, most]


class Mark(NamedTuple):
    """A step that is marked on the curves, and why."""

    step: int
    text: str


class Panel(NamedTuple):
    title: str
    lines: list[Line]
    marks: list[Mark]
    note: str = ""


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
        "number_columns": [f"#{name}" for name in COLUMNS.values()],
        "images": _images(one) if single else [],
        "rows": [_row(run, out) for run in runs],
        "differences": [] if single else differences(runs),
        "looks": [] if single else _looks(runs),
        "panels": panels,
        "drawn": _draw(panels),
    }
    with disk_errors(out, "Choose another place, out=FILE."):
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, render_page("report.html", values))


def _row(run: History, out: Path) -> dict[str, Any]:
    """A run in the table of several, with a link to its own page where it has one."""
    page = run.folder / REPORT
    linked = page.is_file() and page.absolute() != out.absolute()
    numbers = [run.last(name) for name in COLUMNS if name != "step"]
    cells = ["" if number is None else f"{number:.4g}" for number in numbers]
    return {
        "run": run,
        "cells": [str(run.step), *cells],
        "link": quote(os.path.relpath(page, out.parent)) if linked else "",
    }


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


def _images(run: History) -> list[dict[str, Any]]:
    """The images of a run; those that are drawn, unlike those of cameras, turn dark with the page."""
    return [{"title": title, "path": path, "drawn": path.name != FIRST_BATCH} for title, path in run.images.items()]


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
            color = COLORS[len(lines) % len(COLORS)] if dash == "solid" else GREY
            lines.append(Line(_readable(name), run.series[name], color, dash))
        panels.append(Panel(TITLES.get(title, _readable(title)), lines, marks, NOTES.get(title, "")))
    return [panel for panel in panels if panel.lines]


def _readable(name: str) -> str:
    return name.removeprefix("val/").removeprefix("probes/").replace("_", " ")


def _panels_of_many(runs: Sequence[History]) -> list[Panel]:
    """One panel a measurement, one color a run."""
    marks = [Mark(start.step, run.name) for run in runs for start in run.starts[1:]]
    panels = []
    for name, title in TITLES.items():
        shown = [(run, look) for run, look in zip(runs, _looks(runs), strict=True) if name in run.series]
        lines = [Line(run.name, run.series[name], *look[1:]) for run, look in shown]
        panels.append(Panel(title, lines, marks if len(marks) <= CROWD else []))
    return [panel for panel in panels if panel.lines]


def _looks(runs: Sequence[History]) -> list[tuple[str, str, str]]:
    """Name, color and dash of each run."""
    return [(r.name, COLORS[i % len(COLORS)], DASHES[i // len(COLORS) % len(DASHES)]) for i, r in enumerate(runs)]


def _draw(panels: Sequence[Panel]) -> dict[str, Any]:
    """The panels, with one range of steps for all: Bokeh's own script, the data's, and the place of each panel; and how
    many points the most thinned curve has, of how many."""
    curves = [line.curve for panel in panels for line in panel.lines]
    ends = [int(step) for curve in curves for step in (curve.steps[0], curve.steps[-1])] or [0, 1]
    first, last = min(ends), max(ends)
    margin = max(1, last - first) * 0.02
    steps = Range1d(first - margin, last + margin, name="steps")
    script, places = components([_plot(panel, steps) for panel in panels]) if panels else ("", ())
    return {
        "library": Markup(Resources(mode="inline", components=["bokeh"]).render_js()),
        "script": Markup(script),
        "places": [Markup(place) for place in places],
        "ends": (first, last),
        "thinned": max(((c.logged, len(c.steps)) for c in curves if c.logged > len(c.steps)), default=None),
    }


def _plot(panel: Panel, steps: Range1d) -> figure:
    """What is drawn of a panel; the page's script fits its height, hides lines, and knows them by their names."""
    plot = figure(
        height=HEIGHT,
        sizing_mode="stretch_width",
        min_border_left=64,  # axes of plots below each other in line
        x_range=steps,
        y_range=Range1d(0, 1),
        tools=[BoxZoomTool(dimensions="auto")],
        toolbar_location=None,
    )
    plot.xaxis.axis_label, plot.xaxis.axis_label_text_font_size = "step", "11px"
    plot.xaxis.formatter.use_scientific = False
    plot.xgrid.visible, plot.outline_line_color = False, None
    tooltips = [("", "@name"), ("step", "$snap_x{0}"), ("", "$snap_y{0.[00000]}")]
    crowd = len(panel.lines) > CROWD
    width = 1.1 if crowd else 1.7
    path = plot.multi_line("xs", "ys", source=_source(panel.lines), color="color", line_dash="dash", line_width=width)
    look = {"mode": "mouse" if crowd else "vline", "line_policy": "nearest", "tooltips": tooltips}
    plot.add_tools(HoverTool(renderers=[path], **look))
    few = [line for line in panel.lines if len(line.curve.steps) < FEW]
    if few:
        plot.scatter("x", "y", size=4, source=_points(few), color="color")
    for drawn in plot.renderers:
        drawn.view = CDSView(filter=BooleanFilter())  # which of its rows are shown
    for mark in panel.marks:
        plot.add_layout(Span(location=mark.step, dimension="height", line_dash="dotted"))
        plot.add_layout(Label(x=mark.step, text=mark.text, y=4, y_units="screen", x_offset=3, text_font_size="10px"))
    return plot


def _source(lines: Sequence[Line]) -> ColumnDataSource:
    """Each line a row. Where there are so many that each has few points, single precision halves the page and shows the
    same digits."""
    last = max(int(line.curve.steps[-1]) for line in lines)
    steps = np.min_scalar_type(last) if last < 2**32 else np.float64
    values = np.float64 if len(lines) <= CROWD else np.float32
    drawn: dict[str, Any] = {name: [getattr(line, name) for line in lines] for name in ("name", "color", "dash")}
    drawn["xs"] = [line.curve.steps.astype(steps) for line in lines]
    drawn["ys"] = [line.curve.values.astype(values) for line in lines]
    return ColumnDataSource(drawn)


def _points(lines: Sequence[Line]) -> ColumnDataSource:
    each = [len(line.curve.steps) for line in lines]
    drawn: dict[str, Any] = {n: np.repeat([getattr(line, n) for line in lines], each) for n in ("name", "color")}
    drawn |= {"x": np.concatenate([x.curve.steps for x in lines]), "y": np.concatenate([x.curve.values for x in lines])}
    return ColumnDataSource(drawn)

"""Curves that can be looked at closely: drag to zoom (the steps of all plots of a page follow),
double-click to go back, hover for values,
click a name in the legend to hide its line. Drawn by Bokeh, whose script is part of the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from bokeh.embed import components
from bokeh.models import BoxZoomTool, CustomJS, HoverTool, Label, Legend, Range1d, Span
from bokeh.plotting import figure
from bokeh.resources import Resources
from markupsafe import Markup

POINTS = 1500  # of a line; more than a screen has pixels
FEW = 60  # of so few each is a dot
HEIGHT, LEGEND_ROW, LEGEND_COLUMNS = 250, 24, 3  # pixels, pixels, names in a row
COLORS = ("#1f5f99", "#e0592a", "#2f8f5b", "#8a5fb0", "#c2872b", "#c44d7b", "#4aa3a2", "#7a7a7a", "#93a52c", "#5b6fd8",
          "#a3552e", "#3f3f3f")  # fmt: skip


@dataclass(frozen=True)
class Line:
    """Values over steps, by the name that the legend shows; several lines of one color differ by their dashes."""

    name: str
    steps: list[int]
    values: list[float]
    color: str
    dash: str = "solid"


@dataclass(frozen=True)
class Mark:
    """A step that is marked on the curves, and why."""

    step: int
    text: str


@dataclass(frozen=True)
class Panel:
    """One plot."""

    title: str
    lines: list[Line]
    marks: list[Mark] = field(default_factory=list)


@dataclass(frozen=True)
class Drawn:
    """What a page needs: Bokeh's own script, the data's, and the place of each panel."""

    library: Markup
    script: Markup
    places: list[Markup]


def draw_panels(panels: Sequence[Panel]) -> Drawn:
    """The panels, with one range of steps for all."""
    last = max((line.steps[-1] for panel in panels for line in panel.lines), default=1)
    first = min((line.steps[0] for panel in panels for line in panel.lines), default=0)
    margin = max(1, last - first) * 0.02
    steps = Range1d(first - margin, last + margin, name="steps")
    plots = [_draw(panel, steps) for panel in panels]
    for plot in plots:
        plot.js_on_event("doubletap", CustomJS(args={"plots": plots}, code="for (const p of plots) p.reset.emit()"))
    script, places = components(plots)
    library = Resources(mode="inline", components=["bokeh"]).render_js()
    return Drawn(Markup(library), Markup(script), [Markup(place) for place in places])


def _draw(panel: Panel, steps: Range1d) -> figure:
    plot = figure(
        title=panel.title,
        height=HEIGHT + LEGEND_ROW * (-(-len(panel.lines) // LEGEND_COLUMNS) if len(panel.lines) > 1 else 0),
        sizing_mode="stretch_width",
        min_border_left=64,  # axes of plots below each other in line
        x_range=steps,
        window_axis="x",  # where another plot is zoomed, the values of those steps fill this one's height
        tools=[BoxZoomTool(dimensions="auto")],
        toolbar_location=None,
    )
    items = []
    for line in panel.lines:
        every = -(-len(line.steps) // POINTS)
        x, y = line.steps[::every], line.values[::every]
        path = plot.line(x, y, line_width=1.6, line_dash=line.dash, color=line.color, name=line.name)
        dots = plot.scatter(x, y, size=4 if len(x) < FEW else 1, color=line.color, name=line.name)
        items.append((line.name, [path, dots]))
    values = [("", "$name"), ("step", "@x"), ("", "@y{0.[00000]}")]
    paths = [path for _, (path, _) in items]
    plot.add_tools(HoverTool(renderers=paths, mode="vline", line_policy="nearest", tooltips=values))
    for mark in panel.marks:
        _draw_mark(plot, mark)
    _tidy(plot, items)
    return plot


def _draw_mark(plot: figure, mark: Mark) -> None:
    small = {"y": 4, "y_units": "screen", "x_offset": 3, "text_font_size": "10px", "text_color": "#66737f"}
    plot.add_layout(Span(location=mark.step, dimension="height", line_color="#8c8c8c", line_dash="dotted"))
    plot.add_layout(Label(x=mark.step, text=mark.text, **small))


def _tidy(plot: figure, items: list[tuple[str, list[object]]]) -> None:
    plot.title.text_font_size, plot.title.text_font_style = "13px", "normal"
    plot.xaxis.axis_label, plot.xaxis.axis_label_text_font_size = "step", "11px"
    plot.xaxis.formatter.use_scientific = False
    plot.xgrid.grid_line_color, plot.ygrid.grid_line_color, plot.outline_line_color = None, "#eeeeee", None
    if len(items) > 1:
        look = {"border_line_color": None, "label_text_font_size": "11px", "padding": 0, "margin": 4}
        legend = Legend(items=items, click_policy="hide", orientation="horizontal", ncols=LEGEND_COLUMNS, **look)
        plot.add_layout(legend, "below")

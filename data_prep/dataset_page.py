"""The examination as one HTML page: findings, what the cameras see, and the values' ranges and courses.

Figures are SVG text, one for each dimension, so that they flow to the width there is; tables have what they show."""

from __future__ import annotations

import io
import itertools
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import cv2
import numpy as np
from markupsafe import escape
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from data_prep.doctor import ERROR, WARNING, Report
from data_prep.doctor.decoded_video import jpeg
from data_prep.doctor.examined_dataset import Series, Subject, evenly
from data_prep.doctor.language_checks import instructions_by_episode
from gr00t.errors import ToolkitError
from toolkit.html_page import COLORS, GREY, data_uri, render_page

COLOURS = {"state": GREY, "action": COLORS[0]}
LENGTHS = {"training": COLORS[0], "held out": COLORS[1]}
AXES, TEXTS = "#010203", "#010204"  # stand for the page's own, which depend on light and dark
STYLE: Any = {
    "svg.fonttype": "none",  # texts stay texts
    "font.family": "sans-serif",
    "figure.constrained_layout.use": True,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": AXES,
    "axes.labelcolor": TEXTS,
    "axes.labelsize": 9,
    **{
        f"{axis}tick.{key}": value
        for axis in "xy"
        for key, value in (("color", AXES), ("labelcolor", TEXTS), ("labelsize", 8))
    },
}
Panel = tuple[str, dict[str, Series]]  # title, {modality: values (T,) of one dimension by episode}
MOMENTS = ("first", "middle", "last")
IMAGE_WIDTH = 192  # pixels: a page with a few dozen images stays below a few MB
INSTRUCTIONS = 20

# what only other programs read, and names that several figures of a page would share
_UNUSED = re.compile(r'<metadata>.*?</metadata>|(?<=<g) id="[\w.]+"', re.DOTALL)


def dataset_page(report: Report, subjects: Sequence[Subject], shown: int) -> str:
    """The page's HTML; of each part `shown` episodes appear with frames and curves."""
    parts = []
    for subject in subjects:
        with suppress(Exception), rc_context(STYLE):  # of data too damaged to be drawn: the findings say what is wrong
            if not subject.refusal:
                parts.append(_part(subject, _chosen(subject, report, shown)))
    return render_page(
        "dataset.html",
        {
            "title": f"Dataset {report.path}",
            "when": time.strftime("%Y-%m-%d %H:%M"),
            "report": report,
            "errors": report.findings(ERROR),
            "warnings": report.findings(WARNING),
            "parts": parts,
            "moments": MOMENTS,
            "lengths": LENGTHS,
            "modalities": COLOURS,
            "columns": max((len(part["subject"].cameras) for part in parts), default=1) * len(MOMENTS) or 1,
        },
    )


def _chosen(subject: Subject, report: Report, shown: int) -> list[int]:
    """The episodes that appear: those that findings name, then others evenly."""
    found = [f for dataset, _, f in report.findings(ERROR, WARNING) if dataset.folder == subject.root]
    blamed = list(dict.fromkeys(i for f in found for i in f.episodes if i in subject.lengths))[:shown]
    others = [index for index in subject.lengths if index not in blamed]
    return sorted(blamed + evenly(others, shown - len(blamed)))


def _part(subject: Subject, chosen: list[int]) -> dict[str, Any]:
    tasks, panels = subject.layout.tasks, _panels(subject)
    instructions = {
        index: " / ".join(tasks.get(n, f"task {n}, not listed") for n in sorted(numbers))
        for index, numbers in instructions_by_episode(subject).items()
    }

    def courses(axis: Axes, modalities: dict[str, Series]) -> None:
        for number, episode in enumerate(chosen):
            for modality, series in modalities.items():
                if episode in series:
                    seconds = np.arange(len(series[episode])) / subject.layout.fps
                    line, colour = "-" if modality == "action" else ":", COLORS[number % len(COLORS)]
                    axis.plot(seconds, series[episode], line, color=colour, linewidth=1.3)

    return {
        "subject": subject,
        "instructions": Counter(instructions.values()).most_common(INSTRUCTIONS),
        "episodes": {index: (instructions.get(index, ""), _images(subject, index)) for index in chosen},
        "lengths": _draw_lengths(subject),
        "ranges": [(title, modality, *_range(series)) for title, shown in panels for modality, series in shown.items()],
        "histograms": [_draw(panel, "how often its values occur", _histogram) for panel in panels],
        "traces": [_draw(panel, "over time (s)", courses) for panel in panels],
        "colours": dict(zip(chosen, itertools.cycle(COLORS), strict=False)),
    }


def _images(subject: Subject, index: int) -> list[tuple[str, str]]:
    """(name, data URI of a small JPEG) of the first, middle and last frame of each camera; empty URIs where the video
    cannot be read."""
    found = []
    for camera in subject.cameras:
        uris = [""] * len(MOMENTS)
        with suppress(ToolkitError), subject.open_camera(index, camera) as video:
            last = len(video) - 1
            uris = [data_uri(jpeg(_small(frame)), "image/jpeg") for frame in video.frames([0, last // 2, last])]
        found += [(f"{camera}, {moment}", uri) for moment, uri in zip(MOMENTS, uris, strict=True)]
    return found


def _small(frame: np.ndarray) -> np.ndarray:
    height, width = frame.shape[:2]
    size = (IMAGE_WIDTH, max(1, round(height * IMAGE_WIDTH / width)))
    return frame if width <= IMAGE_WIDTH else cv2.resize(frame, size, interpolation=cv2.INTER_AREA)


# -- figures -----------------------------------------------------------------------------------------------------------


def _draw_lengths(subject: Subject) -> str:
    """How many episodes have how many frames, those held out apart."""
    figure = Figure(figsize=(7.0, 2.2))
    panel = figure.subplots()
    held_out = [length for i, length in subject.lengths.items() if i in subject.held_out]
    training = [length for i, length in subject.lengths.items() if i not in subject.held_out]
    low, high = min(training + held_out), max(training + held_out)
    bins = np.linspace(low - 0.5, high + 0.5, min(30, high - low + 1) + 1).tolist()
    panel.hist([training, held_out], bins=bins, stacked=True, color=list(LENGTHS.values()))
    panel.set(xlabel="frames", ylabel="episodes")
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    middle = np.median(training + held_out)
    return _svg(figure, f"{len(subject.lengths)} episodes of {low} to {high} frames, median {middle:g}")


def _panels(subject: Subject) -> list[Panel]:
    """One of every dimension. State and action share it where the group is relative: both are in the same unit."""
    found = []
    for name in dict.fromkeys(group.name for group in subject.groups):
        groups = [group for group in subject.groups if group.name == name]
        together = name in subject.pursuits and len(groups) == 2
        for drawn in [groups] if together else [[group] for group in groups]:
            for d, dim in enumerate(drawn[-1].dims):
                title = dim if together else f"{dim}, {drawn[0].modality}"
                values = {g.modality: {i: v[:, d] for i, v in g.series.items() if v.shape[1] > d} for g in drawn}
                found.append((title, values))
    return found


def _histogram(axis: Axes, modalities: dict[str, Series]) -> None:
    joined = {m: np.concatenate([*series.values(), np.empty(0)]) for m, series in modalities.items()}
    finite = {m: values[np.isfinite(values)] for m, values in joined.items()}
    everything = np.concatenate(list(finite.values()))
    axis.set_yticks([])
    if len(everything):
        bins = np.linspace(everything.min(), everything.max(), 41).tolist() if np.ptp(everything) > 0 else 3
        for m, seen in finite.items():
            weights = np.full(len(seen), 1 / max(1, len(seen)))
            axis.hist(seen, bins=bins, weights=weights, color=COLOURS[m], alpha=0.7, histtype="stepfilled")


def _range(series: Series) -> list[str]:
    """The lowest, mean and highest of the finite values of a dimension; empty where there are none."""
    joined = np.concatenate([*series.values(), np.empty(0)])
    finite = joined[np.isfinite(joined)]
    return [f"{value:.4g}" for value in (finite.min(), finite.mean(), finite.max())] if len(finite) else [""] * 3


def _draw(panel: Panel, what: str, draw: Callable[[Axes, dict[str, Series]], None]) -> tuple[str, str]:
    """A panel's title, and its figure."""
    title, modalities = panel
    figure = Figure(figsize=(3.0, 1.5))
    draw(figure.subplots(), modalities)
    return title, _svg(figure, f"{title}: {what}")


def _svg(figure: Figure, said: str) -> str:
    """The figure as an <svg> element in the page's colours, with the text that stands for it."""
    stream = io.StringIO()
    FigureCanvasSVG(figure).print_svg(stream)
    text = stream.getvalue()
    text = _UNUSED.sub("", text[text.index("<svg") :]).replace(AXES, "var(--soft)").replace(TEXTS, "var(--ink)")
    return text.replace("<svg", f'<svg role="img" aria-label="{escape(said)}"', 1)

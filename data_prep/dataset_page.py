"""The examination as one HTML page: findings, what the cameras see, and the values' ranges and courses.

Figures are SVG text: episode lengths, and histograms and courses of every dimension."""

from __future__ import annotations

import io
import re
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import cv2
import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from data_prep.doctor.examined_dataset import Subject, evenly
from data_prep.doctor.file_checks import annotation_column, instructions_by_episode
from data_prep.doctor.findings import ERROR, WARNING, Report
from gr00t.data.video import EpisodeVideo
from gr00t.errors import ToolkitError
from toolkit.html_page import data_uri, render_page

COLOURS = {"state": "#8f9aa5", "action": "#1f5f99"}
EPISODES = ("#1f5f99", "#e0592a", "#1c7c54", "#a2559c", "#a86a00", "#4b5563")
COLUMNS = 4  # panels side by side
LABEL: dict[str, Any] = {"color": "#444444", "fontsize": 9}

MOMENTS = ("first", "middle", "last")
IMAGE_WIDTH = 192  # pixels: a page with a few dozen images stays below a few MB
INSTRUCTIONS = 20
VERDICTS = {"ok": "sound", WARNING: "sound, with warnings", ERROR: "not sound"}

_EPISODES = re.compile(r"episodes? (?:\()?([\d, ]+)")  # as data_prep.doctor.findings.episodes writes them


def dataset_page(report: Report, subjects: Sequence[Subject], shown: int) -> str:
    """The page's HTML; of each part `shown` episodes appear with frames and curves."""
    parts = []
    for subject in subjects:
        with suppress(Exception):  # of data too damaged to be drawn: the findings say what is wrong
            if not subject.refusal:
                parts.append(_part(subject, _chosen(subject, report, shown)))
    return render_page(
        "dataset.html",
        {
            "title": f"Dataset {report.path}",
            "when": time.strftime("%Y-%m-%d %H:%M"),
            "report": report,
            "verdict": VERDICTS[report.level],
            "errors": len(report.findings(ERROR)),
            "warnings": len(report.findings(WARNING)),
            "findings": report.findings(ERROR) + report.findings(WARNING),
            "parts": parts,
            "moments": MOMENTS,
            "columns": max((len(part["cameras"]) for part in parts), default=1) * len(MOMENTS) or 1,
        },
    )


def _chosen(subject: Subject, report: Report, shown: int) -> list[int]:
    """The episodes that appear: those that findings name, then others evenly."""
    places = [f.where for dataset, _, f in report.findings(ERROR, WARNING) if dataset.folder == subject.root]
    known = [e.index for e in subject.episodes]
    named = [int(n) for place in places for text in _EPISODES.findall(place) for n in re.findall(r"\d+", text)]
    blamed = list(dict.fromkeys(n for n in named if n in known))[:shown]
    others = [index for index in known if index not in blamed]
    return sorted(blamed + evenly(others, shown - len(blamed)))


def _part(subject: Subject, chosen: list[int]) -> dict[str, Any]:
    tasks = subject.layout.tasks
    instructions = {
        index: " / ".join(tasks.get(n, f"task {n}, not listed") for n in sorted(numbers))
        for index, numbers in instructions_by_episode(subject, annotation_column(subject)).items()
    }
    return {
        "name": subject.name,
        "facts": {
            "episodes": len(subject.episodes),
            "frames": sum(e.length for e in subject.episodes),
            "fps": subject.layout.fps,
            "held_out": sorted(subject.held_out),
        },
        "cameras": subject.cameras,
        "instructions": Counter(instructions.values()).most_common(INSTRUCTIONS),
        "pictures": [
            {
                "index": index,
                "length": subject.layout.episode(index).length,
                "held_out": index in subject.held_out,
                "instruction": instructions.get(index, ""),
                "frames": [
                    {"name": f"{camera}, {moment}", "uri": uri}
                    for camera in subject.cameras
                    for moment, uri in zip(MOMENTS, _frames(subject, index, camera), strict=True)
                ],
            }
            for index in chosen
        ],
        "lengths": _draw_lengths(subject),
        "histograms": _draw_histograms(subject),
        "traces": _draw_traces(subject, chosen),
    }


def _frames(subject: Subject, index: int, camera: str) -> list[str]:
    """First, middle and last frame as data URIs of small JPEGs; empty texts where the video cannot be read."""
    try:
        with EpisodeVideo(subject.layout, index, camera) as video:
            last = len(video) - 1
            frames = video.frames([0, last // 2, last])
    except ToolkitError:
        return [""] * len(MOMENTS)
    uris = []
    for frame in frames:
        height, width = frame.shape[:2]
        if width > IMAGE_WIDTH:
            size = (IMAGE_WIDTH, max(1, round(height * IMAGE_WIDTH / width)))
            frame = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
        done, data = cv2.imencode(".jpg", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 88])
        assert done
        uris.append(data_uri(data.tobytes(), "image/jpeg"))
    return uris


# -- figures -----------------------------------------------------------------------------------------------------------


def _draw_lengths(subject: Subject) -> str:
    """How many episodes have how many frames, those held out apart."""
    figure = Figure(figsize=(7.0, 2.2), layout="constrained")
    panel = figure.subplots()
    held_out = [e.length for e in subject.episodes if e.index in subject.held_out]
    training = [e.length for e in subject.episodes if e.index not in subject.held_out]
    low, high = min(training + held_out), max(training + held_out)
    bins = np.linspace(low - 0.5, high + 0.5, min(30, high - low + 1) + 1).tolist()
    colours, labels = [COLOURS["action"], "#e0592a"], ["training", "held out"]
    panel.hist([training, held_out], bins=bins, stacked=True, color=colours, label=labels)
    panel.set_xlabel("frames", **LABEL)
    panel.set_ylabel("episodes", **LABEL)
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    if held_out:
        panel.legend(frameon=False, fontsize=8)
    _tidy(panel)
    return _svg(figure)


def _draw_histograms(subject: Subject) -> str:
    """One panel for each dimension of each group that states and actions share, and of each of its own."""
    panels = _panels(subject)
    figure, axes = _grid([title for title, *_ in panels], 1.6)
    for axis, (_, group, d, modalities) in zip(axes, panels, strict=True):
        finite = {}
        for modality in modalities:
            columns = [v[:, d] for v in subject.series(modality, group).values() if v.shape[1] > d]
            values = np.concatenate(columns) if columns else np.empty(0)
            if np.isfinite(values).any():
                finite[modality] = values[np.isfinite(values)]
        if not finite:
            continue
        joined = np.concatenate(list(finite.values()))
        bins = np.linspace(joined.min(), joined.max(), 41).tolist() if np.ptp(joined) > 0 else 3
        for modality, seen in finite.items():
            weights = np.full(len(seen), 1 / len(seen))
            axis.hist(seen, bins=bins, weights=weights, color=COLOURS[modality], alpha=0.65, label=modality)
        axis.set_yticks([])
    return _svg(_with_legend(figure, axes))


def _draw_traces(subject: Subject, episodes: Sequence[int]) -> str:
    """One panel for each dimension: action and state of some episodes over time."""
    panels = _panels(subject)
    figure, axes = _grid([title for title, *_ in panels], 1.7)
    for axis, (_, group, d, modalities) in zip(axes, panels, strict=True):
        for number, episode in enumerate(episodes):
            for modality in modalities:
                values = subject.series(modality, group).get(episode)
                if values is not None:
                    style: dict[str, Any] = {"linestyle": "-" if modality == "action" else ":", "linewidth": 1.3}
                    seconds = np.arange(len(values)) / subject.layout.fps
                    label = f"episode {episode}" if modality == "action" else None
                    axis.plot(seconds, values[:, d], color=EPISODES[number % len(EPISODES)], label=label, **style)
    for axis in axes[-COLUMNS:]:
        axis.set_xlabel("time (s)", **LABEL)
    return _svg(_with_legend(figure, axes))


def _panels(subject: Subject) -> list[tuple[str, str, int, list[str]]]:
    """(title, group, dimension, modalities drawn together) of every dimension, groups one after the other.

    State and action share a panel where the group is relative, so that both are in the same unit.
    """
    found = []
    for group in dict.fromkeys(group for _, group in subject.groups()):
        present = [modality for modality, name in subject.groups() if name == group]
        together = group in subject.pursuits and len(present) == 2
        for modalities in [present] if together else [[modality] for modality in present]:
            for d, name in enumerate(subject.dim_names(modalities[-1], group)):
                found.append((name if together else f"{name}, {modalities[0]}", group, d, modalities))
    return found


def _grid(titles: Sequence[str], height: float) -> tuple[Figure, list[Axes]]:
    """A figure with one panel for each title."""
    rows = max(1, -(-len(titles) // COLUMNS))
    figure = Figure(figsize=(3.0 * COLUMNS, height * rows + 0.4), layout="constrained")
    axes = list(figure.subplots(rows, COLUMNS, squeeze=False).flatten())
    for panel in axes[len(titles) :]:
        panel.set_visible(False)
    for panel, title in zip(axes, titles, strict=False):
        panel.set_title(title, loc="left", **LABEL)
        _tidy(panel)
    return figure, axes[: len(titles)]


def _with_legend(figure: Figure, axes: Sequence[Axes]) -> Figure:
    known: dict[str, Any] = {}
    for panel in axes:
        known |= dict(zip(*reversed(panel.get_legend_handles_labels()), strict=True))
    if known:
        place: dict[str, Any] = {"loc": "outside lower center", "ncols": 6, "frameon": False, "fontsize": 9}
        figure.legend(handles=list(known.values()), labels=list(known), **place)
    return figure


def _tidy(panel: Axes) -> None:
    panel.spines[["top", "right"]].set_visible(False)
    panel.spines[["left", "bottom"]].set_color("#bbbbbb")
    panel.tick_params(colors="#666666", labelsize=7, length=3)


def _svg(figure: Figure) -> str:
    """The figure as an <svg> element; texts stay texts."""
    stream = io.StringIO()
    with rc_context({"svg.fonttype": "none", "font.family": "sans-serif"}):
        FigureCanvasSVG(figure).print_svg(stream)
    text = stream.getvalue()
    return text[text.index("<svg") :]

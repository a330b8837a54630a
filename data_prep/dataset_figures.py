"""Figures of the dataset page, as SVG text: episode lengths, histograms and courses of every dimension."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from data_prep.doctor.subject import Subject

STATE, ACTION = "#8f9aa5", "#1f5f99"
EPISODES = ("#1f5f99", "#e0592a", "#1c7c54", "#a2559c", "#a86a00", "#4b5563")
COLUMNS = 4
_STYLE: dict[str, Any] = {"color": "#444444", "fontsize": 9}


def draw_lengths(subject: Subject) -> str:
    """How many episodes have how many frames, those held out apart."""
    figure = Figure(figsize=(7.0, 2.2), layout="constrained")
    panel = figure.subplots()
    lengths = {
        held: [e.length for e in subject.episodes if (e.index in subject.held_out) is held] for held in (False, True)
    }
    everything = lengths[False] + lengths[True]
    bins = np.linspace(min(everything) - 0.5, max(everything) + 0.5, min(30, max(everything) - min(everything) + 1) + 1)
    panel.hist(
        [lengths[False], lengths[True]],
        bins=bins.tolist(),
        stacked=True,
        color=[ACTION, "#e0592a"],
        label=["training", "held out"],
    )
    panel.set_xlabel("frames", **_STYLE)
    panel.set_ylabel("episodes", **_STYLE)
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    if lengths[True]:
        panel.legend(frameon=False, fontsize=8)
    _tidy(panel)
    return _svg(figure)


def draw_histograms(subject: Subject) -> str:
    """One panel for each dimension of each group that states and actions share, and of each of its own."""
    panels = _dimensions(subject)
    figure, axes = _grid(len(panels), 1.6)
    for panel, (title, values) in zip(axes, panels, strict=False):
        finite = {m: v[np.isfinite(v)] for m, v in values.items()}
        finite = {m: v for m, v in finite.items() if len(v)}
        panel.set_title(title, loc="left", **_STYLE)
        _tidy(panel)
        if not finite:
            continue
        joined = np.concatenate(list(finite.values()))
        bins = np.linspace(joined.min(), joined.max(), 41).tolist() if np.ptp(joined) > 0 else 3
        for modality, seen in finite.items():
            weights = np.full(len(seen), 1 / len(seen))
            panel.hist(seen, bins=bins, weights=weights, color=_colour(modality), alpha=0.65, label=modality)
        panel.set_yticks([])
    return _svg(_with_legend(figure, axes))


def draw_traces(subject: Subject, episodes: Sequence[int]) -> str:
    """One panel for each dimension: action and state of some episodes over time."""
    names = _shared(subject)
    figure, axes = _grid(len(names), 1.7)
    for panel, (title, group, d, modalities) in zip(axes, names, strict=False):
        panel.set_title(title, loc="left", **_STYLE)
        _tidy(panel)
        for number, episode in enumerate(episodes):
            for modality in modalities:
                values = subject.series(modality, group).get(episode)
                if values is not None:
                    style: dict[str, Any] = {"linestyle": "-" if modality == "action" else ":", "linewidth": 1.3}
                    time = np.arange(len(values)) / subject.layout.fps
                    label = f"episode {episode}" if modality == "action" else None
                    panel.plot(time, values[:, d], color=EPISODES[number % len(EPISODES)], label=label, **style)
    for panel in axes[max(0, len(names) - COLUMNS) : len(names)]:
        panel.set_xlabel("time (s)", **_STYLE)
    return _svg(_with_legend(figure, axes))


def _shared(subject: Subject) -> list[tuple[str, str, int, list[str]]]:
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


def _dimensions(subject: Subject) -> list[tuple[str, dict[str, np.ndarray]]]:
    found = []
    for title, group, d, modalities in _shared(subject):
        columns = {m: [v[:, d] for v in subject.series(m, group).values() if v.shape[1] > d] for m in modalities}
        found.append((title, {m: np.concatenate(parts) for m, parts in columns.items() if parts}))
    return found


def _colour(modality: str) -> str:
    return STATE if modality == "state" else ACTION


def _grid(count: int, height: float) -> tuple[Figure, list[Axes]]:
    rows = max(1, -(-count // COLUMNS))
    figure = Figure(figsize=(3.0 * COLUMNS, height * rows + 0.4), layout="constrained")
    axes = list(figure.subplots(rows, COLUMNS, squeeze=False).flatten())
    for panel in axes[count:]:
        panel.set_visible(False)
    return figure, axes


def _with_legend(figure: Figure, axes: Sequence[Axes]) -> Figure:
    known: dict[str, Any] = {}
    for panel in axes:
        known |= dict(zip(*reversed(panel.get_legend_handles_labels()), strict=True))
    if known:
        figure.legend(
            handles=list(known.values()),
            labels=list(known),
            loc="outside lower center",
            ncols=6,
            frameon=False,
            fontsize=9,
        )
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

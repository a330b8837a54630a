"""Figures of an open-loop evaluation: an episode's actions over time, and the errors beside the baselines'."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from finetune.open_loop.predictions import (
    HEADINGS,
    LABELS,
    POLICY,
    PREDICTORS,
    SECTIONS,
    Forecast,
    Section,
)
from gr00t.data.step_reader import StepReader

EXECUTED_STEPS = 16  # of each chunk, as a robot would run them
RECORDED, PREDICTED, STATE = "#1f5f99", "#e0592a", "#b3b3b3"
BARS = {"policy": PREDICTED, "hold_still": "#9aa5b1", "mean_chunk": "#cfd6dd"}
_STYLE = {"color": "#444444", "fontsize": 9}
_UNITS = {"arm": "rad"}


def in_unit(group: str, signed: bool = False) -> str:
    """In brackets, the unit of an action group: of a signed command, and of the conflict splits' Panda; else ""."""
    return " (command)" if signed else f" ({_UNITS[group]})" if group in _UNITS else ""


def draw_episode(forecast: Forecast, reader: StepReader, path: Path) -> None:
    """One panel an action dimension: recorded action, state, and the policy's chunks executed one after another."""
    dims = [(group, d) for group, values in forecast.recorded.items() for d in range(values.shape[-1])]
    columns = 2 if len(dims) <= 16 else 4
    rows = -(-len(dims) // columns)
    figure = Figure(figsize=(6.2 * columns, 1.75 * rows + 1.1), dpi=110, layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, squeeze=False).flatten()
    states, names = reader.trajectory("state", forecast.episode), _dim_names(reader)
    ahead = np.asarray(reader.configs["action"].delta_indices)
    for number, (panel, (group, d)) in enumerate(zip(panels, dims, strict=False)):
        panel.set_title(f"{names[group][d]}{in_unit(group, group in forecast.signed)}", loc="left", **_STYLE)
        state = states[group][:, d] if group in states and d < states[group].shape[1] else None
        _draw_dim(panel, forecast, group, d, reader.layout.fps, state, ahead - ahead[0])
        if number >= len(dims) - columns:  # none below
            panel.set_xlabel("time (s)", **_STYLE)
            panel.tick_params(labelbottom=True)
    for panel in panels[len(dims) :]:
        panel.set_visible(False)
    handles = [
        Line2D([], [], color=RECORDED, linewidth=1.8, label="recorded action"),
        Line2D([], [], color=PREDICTED, marker="o", markeredgecolor="white", linewidth=1.5, label="predicted chunk"),
        Line2D([], [], color=STATE, linewidth=1.0, label="state"),
    ]
    title = f'Episode {forecast.episode}, {len(forecast.exists)} frames: "{reader.instruction(forecast.episode)}"'
    _finish(figure, handles, title, path)


def _finish(figure: Figure, handles: list[Any], title: str, path: Path) -> None:
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    figure.suptitle(title, fontsize=11)
    save(figure, path)


def _draw_dim(
    panel: Axes, forecast: Forecast, group: str, d: int, fps: float, state: np.ndarray | None, ahead: np.ndarray
) -> None:
    """ahead (H,): at which frames after a chunk's first step the others are due."""
    length = len(forecast.exists)
    time = np.arange(length) / fps
    tidy(panel)
    if state is not None:
        axis = panel
        if group in forecast.signed:  # the action is a command in other units than the state: an axis of its own
            axis = panel.twinx()
            axis.set_ylabel("state", color="#8c8c8c", fontsize=8)
            axis.tick_params(colors="#8c8c8c", labelsize=8, length=0)
            axis.spines[:].set_visible(False)
            panel.set_zorder(axis.get_zorder() + 1)
            panel.patch.set_visible(False)
        axis.plot(time, state, color=STATE, linewidth=1.0, zorder=2)
    panel.plot(time, forecast.recorded[group][:, 0, d], color=RECORDED, linewidth=1.8, zorder=3)
    for start in range(0, length, EXECUTED_STEPS):
        due = (ahead >= 0) & (ahead < min(EXECUTED_STEPS, length - start))
        chunk = forecast.predicted[POLICY][group][start, due, d]
        panel.axvline(time[start], color="#d9d9d9", linewidth=0.8, linestyle=(0, (2, 3)), zorder=0)
        panel.plot(time[start + ahead[due]], chunk, color=PREDICTED, linewidth=1.5, zorder=4)
        panel.plot(time[start], chunk[0], "o", color=PREDICTED, markersize=4.5, markeredgecolor="white", zorder=5)


def draw_errors(overall: Mapping[str, Section], title: str, path: Path) -> None:
    """The policy's errors beside the two baselines', a panel a group and one for the signs of each command."""
    groups, places = list(overall["all"].errors), np.arange(len(SECTIONS))
    signed = [g for g in groups if overall["all"].errors[g][POLICY].sign_error_rate is not None]
    shown = [(f"{g}: mean absolute error{in_unit(g, g in signed)}", "{:.2g}", g, "mae", 1) for g in groups]
    for g in signed:
        shown.append((f"{g}: commands of the wrong sign (%)", "{:.1f}", g, "sign_error_rate", 100))
    figure = Figure(figsize=(4.6 * len(shown), 3.6), dpi=110, layout="constrained")
    panels = figure.subplots(1, len(shown), squeeze=False)[0]
    for panel, (heading, form, group, measured, scale) in zip(panels, shown, strict=True):
        panel.set_title(heading, loc="left", **_STYLE)
        tidy(panel)
        for number, predictor in enumerate(PREDICTORS):
            errors = [overall[section].errors[group][predictor] for section in SECTIONS]
            heights = [scale * (getattr(of, measured) or 0) for of in errors]
            place, look = places + 0.27 * (number - 1), {"color": BARS[predictor], "label": LABELS[predictor]}
            bars = panel.bar(place, heights, 0.25, **look)
            panel.bar_label(bars, [form.format(v) for v in heights], fontsize=7.5, color="#555555", padding=2)
        panel.set_xticks(places, [HEADINGS[section] for section in SECTIONS])
        panel.tick_params(axis="x", length=0)
        panel.margins(y=0.12)
    _finish(figure, panels[0].get_legend_handles_labels()[0], title, path)


def _dim_names(reader: StepReader) -> dict[str, list[str]]:
    """{group: its dimensions' names}, from meta/info.json where it lists them."""
    layout, found = reader.layout, {}
    for group in reader.configs["action"].modality_keys:
        entry: dict[str, Any] = layout.modality["action"][group]
        start, end = int(entry["start"]), int(entry["end"])
        names = layout.info.get("features", {}).get(entry.get("original_key") or "action", {}).get("names")
        numbered = [group] if end - start == 1 else [f"{group} {d + 1}" for d in range(end - start)]
        listed = isinstance(names, list) and len(names) >= end
        found[group] = [str(name) for name in names[start:end]] if listed else numbered
    return found


def tidy(panel: Axes) -> None:
    """The look of every panel: few lines, in grey."""
    panel.spines[["top", "right"]].set_visible(False)
    panel.spines[["left", "bottom"]].set_color("#bbbbbb")
    panel.tick_params(colors="#666666", labelsize=8, length=3)
    panel.grid(axis="y", color="#eeeeee", linewidth=0.8)
    panel.set_axisbelow(True)


def save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure).print_png(str(path))

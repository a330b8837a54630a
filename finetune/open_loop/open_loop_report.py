"""The report of an open-loop evaluation: open_loop.json, open_loop.md, a table on the terminal, and figures of each
episode's actions over time and of the errors beside the baselines'."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from rich.console import Console
from rich.progress import track
from rich.table import Table

from finetune.open_loop.predictions import (
    EDGE_FRAMES,
    HEADINGS,
    POLICY,
    PREDICTORS,
    SECTIONS,
    SIGNED_GROUP,
    Forecast,
    Section,
    label,
)
from gr00t.data.step_reader import StepReader
from gr00t.file_replacement import whole_file, whole_folder, write_json, write_text

JSON_FILE, TEXT_FILE, FIGURES = "open_loop.json", "open_loop.md", "open_loop_figures"
DRAWN_EPISODES = 32  # more figures than that nobody looks at, and each takes a second
EXECUTED_STEPS = 16  # of each chunk, as a robot would run them
RECORDED, PREDICTED, STATE = "#1f5f99", "#e0592a", "#b3b3b3"
BARS = {"policy": PREDICTED, "hold_still": "#9aa5b1", "mean_chunk": "#cfd6dd"}
_STYLE = {"color": "#444444", "fontsize": 9}
_UNITS = {"arm": "rad", "gripper": "command"}


@dataclass(frozen=True)
class OpenLoopReport:
    """The outcome of an open-loop evaluation.

    info: what was evaluated on what (checkpoint, dataset, seed, versions); overall: errors by section ("all", "first"
    and "last" starts of episodes); episodes: the same one by one; findings: what a reader should know at once.
    """

    info: dict[str, Any]
    overall: dict[str, Section]
    episodes: dict[int, dict[str, Section]]
    findings: list[str]
    folder: Path


# -- figures -----------------------------------------------------------------------------------------------------------


def unit_of(group: str) -> str:
    """The unit of an action group of the conflict splits' Panda; "" for groups of other robots."""
    return _UNITS.get(group, "")


def _in_unit(group: str) -> str:
    return f" ({unit_of(group)})" if unit_of(group) else ""


def draw_episode(forecast: Forecast, reader: StepReader, path: Path) -> None:
    """One panel an action dimension: recorded action, state, and the policy's chunks executed one after another."""
    dims = [(group, d) for group, values in forecast.recorded.items() for d in range(values.shape[-1])]
    columns = 2 if len(dims) <= 16 else 4
    rows = -(-len(dims) // columns)
    figure = Figure(figsize=(6.2 * columns, 1.75 * rows + 1.1), dpi=110, layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, squeeze=False).flatten()
    states = reader.trajectory("state", forecast.episode)
    names = _dim_names(reader)
    for panel, (group, d) in zip(panels, dims, strict=False):
        panel.set_title(f"{names[group][d]}{_in_unit(group)}", loc="left", **_STYLE)
        state = states[group][:, d] if group in states and d < states[group].shape[1] else None
        _draw_dim(panel, forecast, group, d, reader.layout.fps, state)
    for panel in panels[len(dims) :]:
        panel.set_visible(False)
    for panel in panels[max(0, len(dims) - columns) : len(dims)]:
        panel.set_xlabel("time (s)", **_STYLE)
        panel.tick_params(labelbottom=True)
    handles = [
        Line2D([], [], color=RECORDED, linewidth=1.8, label="recorded action"),
        Line2D([], [], color=PREDICTED, marker="o", markeredgecolor="white", linewidth=1.5, label="predicted chunk"),
        Line2D([], [], color=STATE, linewidth=1.0, label="state"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    instruction = reader.instruction(forecast.episode)
    figure.suptitle(f'Episode {forecast.episode}, {len(forecast.exists)} frames: "{instruction}"', fontsize=11)
    save(figure, path)


def _draw_dim(panel: Axes, forecast: Forecast, group: str, d: int, fps: float, state: np.ndarray | None) -> None:
    length = len(forecast.exists)
    recorded = forecast.recorded[group][:, 0, d]
    time = np.arange(length) / fps
    tidy(panel)
    if state is not None:
        axis = panel
        if group == SIGNED_GROUP:  # the action is a command in other units than the state: an axis of its own
            axis = panel.twinx()
            axis.set_ylabel("state", color="#8c8c8c", fontsize=8)
            axis.tick_params(colors="#8c8c8c", labelsize=8, length=0)
            axis.spines[:].set_visible(False)
            panel.set_zorder(axis.get_zorder() + 1)
            panel.patch.set_visible(False)
        axis.plot(time, state, color=STATE, linewidth=1.0, zorder=2)
    panel.plot(time, recorded, color=RECORDED, linewidth=1.8, zorder=3)
    for start in range(0, length, EXECUTED_STEPS):
        chunk = forecast.predicted[POLICY][group][start, :EXECUTED_STEPS, d][: length - start]
        panel.axvline(time[start], color="#d9d9d9", linewidth=0.8, linestyle=(0, (2, 3)), zorder=0)
        panel.plot(time[start : start + len(chunk)], chunk, color=PREDICTED, linewidth=1.5, zorder=4)
        panel.plot(time[start], chunk[0], "o", color=PREDICTED, markersize=4.5, markeredgecolor="white", zorder=5)


def draw_errors(overall: Mapping[str, Section], title: str, path: Path) -> None:
    """The policy's errors beside the two baselines', a panel a group and one for the gripper's signs."""
    groups = list(overall["all"].errors)
    signed = [SIGNED_GROUP] if SIGNED_GROUP in groups else []
    figure = Figure(figsize=(4.6 * len(groups + signed), 3.6), dpi=110, layout="constrained")
    panels = figure.subplots(1, len(groups + signed), squeeze=False)[0]
    for panel, group in zip(panels, groups, strict=False):
        panel.set_title(f"{group}: mean absolute error{_in_unit(group)}", loc="left", **_STYLE)
        heights = {p: [overall[section].errors[group][p].mae for section in SECTIONS] for p in PREDICTORS}
        _draw_bars(panel, heights, "{:.2g}")
    if signed:
        panels[-1].set_title(f"{SIGNED_GROUP}: commands of the wrong sign (%)", loc="left", **_STYLE)
        rates = {
            p: [100 * (overall[section].errors[SIGNED_GROUP][p].sign_error_rate or 0) for section in SECTIONS]
            for p in PREDICTORS
        }
        _draw_bars(panels[-1], rates, "{:.1f}")
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=9
    )
    figure.suptitle(title, fontsize=11)
    save(figure, path)


def _draw_bars(panel: Axes, heights: Mapping[str, list[float]], form: str) -> None:
    tidy(panel)
    places = np.arange(len(SECTIONS))
    for number, (predictor, values) in enumerate(heights.items()):
        bars = panel.bar(places + 0.27 * (number - 1), values, 0.25, color=BARS[predictor], label=label(predictor))
        panel.bar_label(bars, [form.format(v) for v in values], fontsize=7.5, color="#555555", padding=2)
    panel.set_xticks(places, [HEADINGS[section] for section in SECTIONS])
    panel.tick_params(axis="x", length=0)
    panel.margins(y=0.12)


def _dim_names(reader: StepReader) -> dict[str, list[str]]:
    """{group: its dimensions' names}, from meta/info.json where it lists them."""
    layout, found = reader.layout, {}
    for group in reader.configs["action"].modality_keys:
        entry: dict[str, Any] = layout.modality["action"][group]
        start, end = int(entry["start"]), int(entry["end"])
        names = layout.info.get("features", {}).get(entry.get("original_key") or "action", {}).get("names")
        if isinstance(names, list) and len(names) >= end:
            found[group] = [str(name) for name in names[start:end]]
        else:
            found[group] = [group] if end - start == 1 else [f"{group} {d + 1}" for d in range(end - start)]
    return found


def tidy(panel: Axes) -> None:
    """The look of every panel: few lines, in grey."""
    panel.spines[["top", "right"]].set_visible(False)
    panel.spines[["left", "bottom"]].set_color("#bbbbbb")
    panel.tick_params(colors="#666666", labelsize=8, length=3)
    panel.grid(axis="y", color="#eeeeee", linewidth=0.8)
    panel.set_axisbelow(True)


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG."""
    FigureCanvasAgg(figure).print_png(str(path))


# -- the report --------------------------------------------------------------------------------------------------------


def write_report(report: OpenLoopReport, forecasts: Sequence[Forecast], reader: StepReader) -> None:
    """Write everything into report.folder; an older report there gives way, other files stay.

    Everything is written aside first, so that a full disk leaves the older report. open_loop.json goes first and comes
    back last: where it stands, the figures beside it are its own.
    """
    folder = report.folder
    drawn = forecasts[:DRAWN_EPISODES]
    with (
        whole_file(folder / JSON_FILE) as data,
        whole_file(folder / TEXT_FILE) as text,
        whole_folder(folder / FIGURES, lock=False) as aside,
    ):
        for forecast in track(drawn, "figures", console=Console(stderr=True), transient=True):
            draw_episode(forecast, reader, aside / f"episode_{forecast.episode:06d}.png")
        draw_errors(report.overall, _title(report), aside / "errors.png")
        write_text(text, _markdown(report, len(drawn)))
        values = dataclasses.asdict(report)
        episodes = [{"episode": index, "sections": sections} for index, sections in values["episodes"].items()]
        definitions = {"edge_frames": EDGE_FRAMES, "sections": HEADINGS, "findings": report.findings}
        write_json(data, {**report.info, **definitions, "overall": values["overall"], "by_episode": episodes})
        (folder / JSON_FILE).unlink(missing_ok=True)


def print_report(report: OpenLoopReport) -> None:
    """The errors as a table, what stands out, and where the rest is."""
    console = Console()
    console.print(f"[bold]{_title(report)}", highlight=False)
    for group in report.overall["all"].errors:
        table = Table(title=_measured(group), title_justify="left", min_width=80)
        table.add_column("")
        for section in SECTIONS:
            table.add_column(HEADINGS[section], justify="right")
        for predictor in PREDICTORS:
            cells = [_cell(report.overall[section], group, predictor) for section in SECTIONS]
            table.add_row(label(predictor), *cells, style="bold" if predictor == POLICY else None)
        console.print(table)
    for finding in report.findings:
        console.print(f"note: {finding}", highlight=False, soft_wrap=True)
    console.print(f"{report.folder / TEXT_FILE} and {report.folder / FIGURES}/", highlight=False, soft_wrap=True)


def _title(report: OpenLoopReport) -> str:
    starts, count = report.overall["all"].starts, len(report.episodes)
    return f"{report.info['split']}, {report.info['part']}: {count} episode{'s' * (count != 1)}, {starts} starts"


def _measured(group: str) -> str:
    return f"{group}, mean absolute error{_in_unit(group)}{' / wrong signs' if group == SIGNED_GROUP else ''}"


def _cell(section: Section, group: str, predictor: str) -> str:
    errors = section.errors[group][predictor]
    sign = "" if errors.sign_error_rate is None else f" / {errors.sign_error_rate:.1%}"
    return f"{errors.mae:.4f}{sign}"


def _markdown(report: OpenLoopReport, drawn: int) -> str:
    info = report.info
    lines = [
        f"# Open loop: {_title(report)}",
        "",
        f"Checkpoint `{info['checkpoint']}`, {info['denoising_steps']} denoising steps, {info['precision']}, "
        f"noise seed {info['seed']}. Dataset `{info['dataset']}` ({info['dataset_fingerprint'][:12]}). "
        "Every frame is a start; every predicted step that was recorded weighs the same.",
        "",
        *(f"- **{finding}**" for finding in report.findings),
    ]
    for group in report.overall["all"].errors:
        lines += ["", f"## {_measured(group)}", ""]
        lines += [_line("", *HEADINGS.values()), _line("---", *["---:"] * len(SECTIONS))]
        for predictor in PREDICTORS:
            cells = [_cell(report.overall[section], group, predictor) for section in SECTIONS]
            lines.append(_line(label(predictor), *cells))
        lines += ["", "By episode:", "", *_episode_rows(report, group)]
    lines += ["", f"![errors]({FIGURES}/errors.png)", ""]
    lines += [f"![episode {e}]({FIGURES}/episode_{e:06d}.png)" for e in list(report.episodes)[:drawn]]
    if drawn < len(report.episodes):
        lines += ["", f"Figures of the first {drawn} of {len(report.episodes)} episodes."]
    return "\n".join(lines) + "\n"


def _episode_rows(report: OpenLoopReport, group: str) -> list[str]:
    """One row an episode: every predictor over all starts, and over the last frames."""
    shown = [(section, predictor) for section in ("all", "last") for predictor in PREDICTORS]
    heads = [f"{label(predictor)}, {HEADINGS[section]}" for section, predictor in shown]
    lines = [_line("episode", "frames", *heads), _line(*["---:"] * (2 + len(heads)))]
    for index, sections in report.episodes.items():
        cells = [_cell(sections[section], group, predictor) for section, predictor in shown]
        lines.append(_line(str(index), str(sections["all"].starts), *cells))
    return lines


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"

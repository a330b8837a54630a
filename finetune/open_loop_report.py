"""The report of an open-loop evaluation: open_loop.json, open_loop.md, figures, and a table on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from finetune.open_loop import (
    EDGE_FRAMES,
    HEADINGS,
    POLICY,
    PREDICTORS,
    SECTIONS,
    SIGNED_GROUP,
    Errors,
    Forecast,
    label,
    to_json,
)
from finetune.plots import draw_episode, draw_errors, unit_of
from gr00t.data.dataset import StepReader
from gr00t.files import whole_file, whole_folder, write_json, write_text

if TYPE_CHECKING:
    from finetune.evaluate import OpenLoopReport

JSON_FILE, TEXT_FILE, FIGURES = "open_loop.json", "open_loop.md", "open_loop_figures"
DRAWN_EPISODES = 32  # more figures than that nobody looks at, and each takes a second


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
        write_json(data, _json(report))
        (folder / JSON_FILE).unlink(missing_ok=True)


def print_report(report: OpenLoopReport) -> None:
    """The errors as a table, what stands out, and where the rest is."""
    console = Console()
    console.print(f"[bold]{_title(report)}", highlight=False)
    for group in next(iter(report.overall.values())).errors:
        table = Table(title=_measured(group), title_justify="left", min_width=80)
        table.add_column("")
        for section in SECTIONS:
            table.add_column(HEADINGS[section], justify="right")
        for predictor, cells in _rows(report, group):
            table.add_row(predictor, *cells, style="bold" if predictor == label(POLICY) else None)
        console.print(table)
    for finding in report.findings:
        console.print(f"note: {finding}", highlight=False, soft_wrap=True)
    console.print(f"{report.folder / TEXT_FILE} and {report.folder / FIGURES}/", highlight=False, soft_wrap=True)


def _title(report: OpenLoopReport) -> str:
    starts, count = report.overall["all"].starts, len(report.episodes)
    return f"{report.info['split']}, {report.info['part']}: {count} episode{'s' * (count != 1)}, {starts} starts"


def _measured(group: str) -> str:
    unit = unit_of(group)
    signs = " / wrong signs" if group == SIGNED_GROUP else ""
    return f"{group}, mean absolute error{f' ({unit})' if unit else ''}{signs}"


def _rows(report: OpenLoopReport, group: str) -> list[tuple[str, list[str]]]:
    """One row a predictor: its name and one cell a section."""
    rows = []
    for predictor in PREDICTORS:
        rows.append((label(predictor), [_cell(report.overall[s].errors[group][predictor]) for s in SECTIONS]))
    return rows


def _cell(errors: Errors) -> str:
    sign = "" if errors.sign_error_rate is None else f" / {errors.sign_error_rate:.1%}"
    return f"{errors.mae:.4f}{sign}"


def _json(report: OpenLoopReport) -> dict[str, Any]:
    episodes = [
        {"episode": index, "sections": {name: to_json(section) for name, section in sections.items()}}
        for index, sections in report.episodes.items()
    ]
    overall = {name: to_json(section) for name, section in report.overall.items()}
    definitions = {"edge_frames": EDGE_FRAMES, "sections": HEADINGS}
    return {**report.info, **definitions, "findings": report.findings, "overall": overall, "by_episode": episodes}


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
        lines += ["", f"## {_measured(group)}", "", *_markdown_table(report, group)]
        lines += ["", "By episode:", "", *_markdown_episodes(report, group)]
    lines += [
        "",
        f"![errors]({FIGURES}/errors.png)",
        "",
        *(f"![episode {e}]({_figure(e)})" for e in _first(report, drawn)),
    ]
    if drawn < len(report.episodes):
        lines += ["", f"Figures of the first {drawn} of {len(report.episodes)} episodes."]
    return "\n".join(lines) + "\n"


def _first(report: OpenLoopReport, drawn: int) -> list[int]:
    return list(report.episodes)[:drawn]


def _figure(episode: int) -> str:
    return f"{FIGURES}/episode_{episode:06d}.png"


def _markdown_table(report: OpenLoopReport, group: str) -> list[str]:
    head = ["", *(HEADINGS[section] for section in SECTIONS)]
    rows = [[name, *cells] for name, cells in _rows(report, group)]
    return [_line(head), _line(["---", *["---:"] * len(SECTIONS)]), *map(_line, rows)]


def _markdown_episodes(report: OpenLoopReport, group: str) -> list[str]:
    """One row an episode: every predictor over all starts, and over the last frames."""
    shown = [(section, predictor) for section in ("all", "last") for predictor in PREDICTORS]
    heads = [f"{label(predictor)}, {HEADINGS[section]}" for section, predictor in shown]
    lines = [_line(["episode", "frames", *heads]), _line(["---:"] * (2 + len(heads)))]
    for index, sections in report.episodes.items():
        cells = [_cell(sections[section].errors[group][predictor]) for section, predictor in shown]
        lines.append(_line([str(index), str(sections["all"].starts), *cells]))
    return lines


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"

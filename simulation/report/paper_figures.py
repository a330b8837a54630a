"""A paper's figures, as SVG and PDF: success, cue preference, and which factor dominates."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from simulation.closed_loop import EVALUATED
from simulation.report import Result
from simulation.report.conclusions import A, B, verdict
from simulation.report.shares import Share
from simulation.scenes.suites import SUITES, suite_of

FIRST, SECOND, NONE = "#0072b2", "#e69f00", "#7d858c"
_SETTINGS: Any = {"svg.hashsalt": "paper", "svg.fonttype": "none", "pdf.fonttype": 42, "font.size": 9}
_NO_DATE = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}


def draw(folder: Path, results: Sequence[Result]) -> None:
    """Every figure; the same results give the same files."""
    with matplotlib.rc_context(_SETTINGS):
        parts = [part for part in EVALUATED if not part.startswith("single")]
        success = [(r, part) for r in results for part in parts if part in r.summary.chance]
        rows = [(f"{_label(r)}, {part}", r.summary.of(part).success, FIRST) for r, part in success]
        _save(_dots(rows, "success", None), folder / "success")
        conflicts = [r for r in results if r.summary.cues and r.summary.preference.n]
        if conflicts:
            colored = [(_label(r), r.summary.preference, _color(r)) for r in conflicts]
            _save(_dots(colored, "preference for a over b (FDR)", 0.5), folder / "dominance")
            for suite in SUITES:
                own = [r for r in conflicts if suite_of(r.info["split"]) is suite]
                if own:
                    _save(_matrix(list(suite.factors), own), folder / f"matrix_{suite.name}")


def _label(result: Result) -> str:
    return result.name if result.info["split"] in result.name else f"{result.info['split']}: {result.name}"


def _color(result: Result) -> str:
    answer = verdict(result.summary.preference, result.summary.cues or ("", ""))[0]
    return {A: FIRST, B: SECOND}.get(answer, NONE)


def _dots(rows: Sequence[tuple[str, Share, str]], heading: str, mark: float | None) -> Figure:
    """A share and its interval in each row."""
    figure = Figure(figsize=(6.5, 0.7 + 0.24 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    for place, (_, share, color) in enumerate(rows):
        axes.plot([100 * share.low, 100 * share.high], [place, place], color=color, linewidth=1.4)
        axes.plot([100 * (share.value or 0)], [place], "o", color=color, markersize=5)
    if mark is not None:
        axes.axvline(100 * mark, color=NONE, linestyle="--", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [label for label, _, _ in rows])
    axes.set(xlim=(0, 100), ylim=(len(rows) - 0.5, -0.5), xlabel=f"{heading}, % with 95 % interval")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _matrix(factors: Sequence[str], results: Sequence[Result]) -> Figure:
    """Row a, column b: the share of a, colored by who wins; evaluations of one split together."""
    figure = Figure(figsize=(0.9 + 0.85 * len(factors), 0.7 + 0.6 * len(factors)), layout="constrained")
    axes, counted = figure.add_subplot(), dict[tuple[str, str], tuple[int, int]]()
    for result in results:
        assert result.summary.cues is not None
        before, new = counted.get(result.summary.cues, (0, 0)), result.summary.preference
        counted[result.summary.cues] = before[0] + new.count, before[1] + new.n
    for (a, b), (count, n) in counted.items():
        row, column, value = factors.index(a), factors.index(b), count / n
        color = FIRST if value >= 0.5 else SECOND
        axes.fill_between([column - 0.5, column + 0.5], row - 0.5, row + 0.5, color=color, alpha=abs(value - 0.5), lw=0)
        axes.text(column, row, f"{100 * value:.0f} %\n{count}/{n}", ha="center", va="center")
    ticks = range(len(factors))
    axes.set(xticks=ticks, yticks=ticks, xticklabels=factors, yticklabels=factors, xlabel="b", ylabel="a")
    axes.set(xlim=(-0.5, len(factors) - 0.5), ylim=(len(factors) - 0.5, -0.5))
    return figure


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure)
    for kind, metadata in _NO_DATE.items():
        figure.savefig(path.with_suffix(f".{kind}"), metadata=metadata)

"""The table of runs: a line for each, and the GPU hours of all."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table

from finetune.jobs.run_views import View
from finetune.slurm.cluster_queries import in_time
from toolkit.progress import shows_bars

WITH_BARS = 120  # columns of a terminal


def show_table(found: Sequence[View], runs_dir: Path) -> None:
    """One line a job, as wide as it needs where the output is no terminal."""
    if not found:
        print(f"no runs in {runs_dir}; runs_dir=FOLDER looks elsewhere")
        return
    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 400)
    bars = shows_bars(console, WITH_BARS)
    table = Table("run", "job", "state", "att.", "step", box=None)
    for column in (*([""] if bars else []), "samples/s", "train left", "job left", "loss", "GPU h", "log"):
        table.add_column(column, no_wrap=not column)
    for view in found:
        table.add_row(*_row(view, bars))
    console.print(table)
    hours = [view.gpu_hours for view in found if view.gpu_hours is not None]
    if hours:
        console.print(f"GPU hours of all: {sum(hours):.1f}")


def _row(view: View, bars: bool) -> list[RenderableType]:
    log = Path(view.log) if view.log else None
    return [
        view.name,
        " ".join(filter(None, [view.job, f"({view.user})" if view.is_foreign else None])),
        f"{view.state} ({view.reason})" if view.reason else view.state,
        "" if view.attempt is None else str(view.attempt),
        f"{view.step or 0}/{view.steps}" if view.steps else "",
        *([ProgressBar(view.steps, view.step or 0, width=14) if view.steps else ""] if bars else []),
        f"{view.samples_per_second:.1f}" if view.samples_per_second else "",
        in_time(round(view.training_left)) if view.training_left is not None else "",
        view.job_left,
        f"{view.loss:.4f}" if view.loss is not None else "",
        f"{view.gpu_hours:.1f}" if view.gpu_hours is not None else "",
        str(log.relative_to(Path.cwd()) if log and log.is_relative_to(Path.cwd()) else log or ""),
    ]

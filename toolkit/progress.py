"""Progress of long tasks, on stderr; and bars in the tables of a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn

NOTE = TextColumn("{task.fields[note]}")  # for tasks that are added with note="..."


def progress_bar(*more: ProgressColumn, unit: str = "", show: bool | None = None, transient: bool = False) -> Progress:
    """A bar with description, count (of `unit`), time left and `more`; `show` None: where stderr is a terminal."""
    console = Console(stderr=True)
    counted = [TextColumn(unit)] if unit else []
    columns = [
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        *counted,
        TimeRemainingColumn(),
        *more,
    ]
    disable = not (console.is_terminal if show is None else show)
    return Progress(*columns, console=console, transient=transient, disable=disable)


def shows_bars(console: Console, columns: int) -> bool:
    """Whether its output is a terminal of so many columns that draws bars: no pipe, no TERM=dumb, no NO_COLOR."""
    plain = console.is_dumb_terminal or console.no_color or console.color_system is None
    return console.file.isatty() and not plain and console.width >= columns

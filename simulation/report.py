"""The report of a closed-loop evaluation: closed_loop.json, .md and .html, and tables on the terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gr00t.files import disk_errors, write_json, write_text
from simulation.outcomes import CONDITIONS, PICKS, Evaluation
from simulation.page import command, page
from simulation.readings import counts, in_short, points, words
from simulation.results import JSON_FILE, as_json
from simulation.summary import Counted, Summary, summarize

TEXT_FILE, PAGE_FILE = "closed_loop.md", "closed_loop.html"


def write_report(evaluation: Evaluation, folder: Path) -> None:
    """Write everything into `folder`, where the videos are already; other files there stay.

    The numbers go first, since they cost hours and the pages can be made from them again (simulation.compare
    pages=true). Pages of older numbers are removed before, so that none ever lies beside numbers that are not its own.
    """
    summary = summarize(evaluation)
    with disk_errors(folder, "Make room and evaluate again."):
        folder.mkdir(parents=True, exist_ok=True)
        for name in (PAGE_FILE, TEXT_FILE):
            (folder / name).unlink(missing_ok=True)
        write_json(folder / JSON_FILE, as_json(evaluation, summary))
        write_text(folder / TEXT_FILE, markdown(evaluation, summary))
        write_text(folder / PAGE_FILE, page(evaluation, summary, folder))


def print_report(evaluation: Evaluation, folder: Path) -> None:
    """Success and first picks as a table, what the ablations change, what stands out, and where the rest is."""
    summary, console = summarize(evaluation), Console()
    console.print(Text(_title(evaluation), style="bold"))
    console.print(_table(["part", "policy sees", "success", *PICKS], _briefly(summary)))
    if summary.changes:
        console.print(_table(_CHANGED, _changes(summary)))
    for line in in_short(summary):
        console.print(Text(f"- {line}"), soft_wrap=True)
    console.print(Text(str(folder / PAGE_FILE)), soft_wrap=True)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    table = Table(*head)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


# -- tables ------------------------------------------------------------------------------------------------------------

_PICKED = ["success", *(f"{pick} first" for pick in PICKS)]
_CHANGED = ["policy sees", "part", "success changes by", "target picks change by", "other pick"]


def _title(evaluation: Evaluation) -> str:
    return f"Closed loop: {evaluation.info['split']}, {evaluation.info['policy']}"


def _picks(summary: Summary) -> Iterator[list[str]]:
    for condition, parts in summary.counted.items():
        for part, counted in parts.items():
            yield [part, CONDITIONS[condition], words(counted.success), *_picked(counted, part)]


def _briefly(summary: Summary) -> Iterator[list[str]]:
    """As _picks, narrow enough for a terminal."""
    for condition, parts in summary.counted.items():
        for part, counted in parts.items():
            yield [part, CONDITIONS[condition], words(counted.success), *map(counts, counted.picks.values())]


def _picked(counted: Counted, part: str) -> list[str]:
    """In train there is no lure."""
    return ["-" if (part, pick) == ("train", "lure") else words(share) for pick, share in counted.picks.items()]


def _changes(summary: Summary) -> Iterator[list[str]]:
    for change in summary.changes:
        moved = points(change.success), points(change.target_picks)
        yield [CONDITIONS[change.condition], change.part, *moved, counts(change.other_pick)]


def _factors(summary: Summary, part: str, whose: str) -> Iterator[list[str]]:
    for table in summary.factors:
        if (table.part, table.whose) == (part, whose):
            for value, counted in table.rows.items():
                yield [f"{table.factor} {value}", words(counted.success), *_picked(counted, part)]


# -- markdown ----------------------------------------------------------------------------------------------------------


def markdown(evaluation: Evaluation, summary: Summary) -> str:
    """The same numbers as text."""
    info = evaluation.info
    lines = [
        f"# {_escaped(_title(evaluation))}",
        "",
        _escaped(
            f'Instruction "{info["instruction"]}". {info["n_action_steps"]} of each chunk\'s steps are executed, '
            f"{info['max_steps']} steps at most, seed {info['seed']}. Intervals are 95 % (Wilson, Newcombe)."
        ),
        "",
        *(f"- {line}" for line in in_short(summary)),
        "",
        "## First picks and success",
        "",
        *_rows(["part", "policy sees", *_PICKED], _picks(summary)),
    ]
    if summary.changes:
        lines += ["", "## Changes on the episodes played both ways", "", *_rows(_CHANGED, _changes(summary))]
    for part in summary.chance:
        lines += ["", f"## Steps to success, {part}", "", _steps(summary.of(part))]
    for part, whose in dict.fromkeys((table.part, table.whose) for table in summary.factors):
        head = [f"{whose}'s", *_PICKED]
        lines += ["", f"## By the {whose}'s factors, {part}", "", *_rows(head, _factors(summary, part, whose))]
    code = textwrap.indent(command(info), "    ", lambda _: True)
    return "\n".join([*lines, "", "## To repeat it", "", code]) + "\n"


def _steps(counted: Counted) -> str:
    steps = counted.steps
    if steps is None:
        return "No success."
    middle = f"half of them {steps.first_quartile:.0f} to {steps.third_quartile:.0f}"
    return f"Median {steps.median:.0f}, {middle}, of {steps.n} successes."


def _rows(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    cells = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(map(_escaped, row))} |" for row in cells]


def _escaped(text: str) -> str:
    """Names that people chose stay names: no cell, line or HTML of theirs."""
    for sign, entity in (("&", "&amp;"), ("<", "&lt;"), ("|", "\\|"), ("\n", " ")):
        text = text.replace(sign, entity)
    return text

"""Is a dataset sound? What is wrong with it, where, and how to mend it.

python -m data_prep.check data/color_object
python -m data_prep.check data/color_object html=doctor.html json=doctor.json
python -m data_prep.check --help
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from finetune.script import run_main

if TYPE_CHECKING:
    from data_prep.doctor.findings import Report
    from data_prep.doctor.subject import Progress as Told
    from finetune.config import CheckConfig

UNSOUND = 1
WIDTH = 118
STYLES = {"ok": "green", "warning": "yellow", "error": "bold red", "": "dim"}


@dataclass(frozen=True)
class Call:
    """What is examined, and the configuration."""

    path: Path
    config: CheckConfig


def read(arguments: Sequence[str]) -> Call:
    """`PATH [key=value ...]`; anything else raises ToolkitError."""
    from finetune.config import load
    from gr00t.errors import ToolkitError

    words = [a for a in arguments if not a.startswith("-") and ("=" not in a or "/" in a.partition("=")[0])]
    config = load("check", [argument for argument in arguments if argument not in words])
    if len(words) != 1:
        raise ToolkitError(
            f"{len(words)} folders are given; give one: python -m data_prep.check data/color_object (a split's folder, "
            "or a single dataset's)."
        )
    call = Call(Path(words[0]).expanduser(), config)
    for name in ("json", "html"):
        _check_target(name, getattr(config, name), call.path)
    return call


def _check_target(name: str, target: str | None, dataset: Path) -> None:
    """A report must not become a part of what it is about."""
    from gr00t.errors import ToolkitError

    if target is None:
        return
    path = Path(target).expanduser()
    if path.is_dir():
        raise ToolkitError(f"{name}={target} is a folder. Give a file, {name}={path / f'doctor.{name}'}.")
    inside = any(
        path.resolve().is_relative_to((p / part).resolve())
        for p in (dataset, *dataset.glob("*"))
        for part in ("meta", "data", "videos")
    )
    if inside:
        raise ToolkitError(f"{name}={target} lies inside the dataset, which would change it. Give another place.")


def main(call: Call) -> None:
    # Imported only after the arguments have been accepted: a refusal should not wait for it.
    from data_prep.doctor.examine import examine
    from finetune.config.modality import modality_configs

    with _progress() as told:
        report, subjects = examine(call.path, modality_configs(call.config), fast=call.config.fast, progress=told)
    show(report)
    if call.config.json is not None:
        _write(Path(call.config.json).expanduser(), json.dumps(report.to_json(), indent=2) + "\n")
    if call.config.html is not None:
        from data_prep.dataset_page import dataset_page

        _write(Path(call.config.html).expanduser(), dataset_page(report, subjects, call.config.shown))
    if report.level == "error":
        sys.exit(UNSOUND)


def _write(path: Path, text: str) -> None:
    from gr00t.files import disk_errors, write_text

    with disk_errors(path, "Give another file."):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
    print(f"written: {path}")


@contextmanager
def _progress() -> Iterator[Told]:
    """One bar on the terminal, gone when all is done."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("reading", total=None)
        yield lambda what, done, total: bar.update(task, description=what, completed=done, total=total)


def show(report: Report) -> None:
    """A table of every check's outcome, then what was found with its remedy, the most serious last."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=WIDTH)
    console.print(_overview(report))
    for level in ("warning", "error"):
        for dataset, result, finding in report.findings(level):
            console.print(
                f"\n[{STYLES[level]}]{level}[/] {_plain(dataset.name)}, {result.check}: {_plain(finding.where)}"
            )
            text = f"{_plain(finding.found)}\n[dim]remedy:[/] {_plain(finding.remedy)}"
            console.print(Padding(text, (0, 0, 0, 2)))
    errors, warnings = len(report.findings("error")), len(report.findings("warning"))
    part = " (fast part)" if report.fast else ""
    word = {"ok": "sound", "warning": "sound, with warnings", "error": "not sound"}[report.level]
    console.print(
        f"\n{_plain(str(report.path))}: [{STYLES[report.level]}]{word}[/]{part}; {errors} errors, {warnings} warnings, "
        f"{report.seconds:.1f} s"
    )


def _overview(report: Report) -> Table:
    """One line a check, one column a dataset."""
    table = Table("check", "question", *(dataset.name for dataset in report.datasets), box=None)
    names = {result.check: result.question for dataset in report.datasets for result in dataset.results}
    for name, question in names.items():
        row = []
        for dataset in report.datasets:
            result = next((r for r in dataset.results if r.check == name), None)
            level = "" if result is None or result.skipped else result.level
            row.append(f"[{STYLES[level]}]{level or ('-' if result is None else 'not made')}[/]")
        table.add_row(name, f"[dim]{_plain(question)}[/]", *row)
    return table


def _plain(text: str) -> str:
    """Text that may hold brackets, which rich would read as styles."""
    return text.replace("[", "\\[")


if __name__ == "__main__":
    run_main(main, "check", read=read)

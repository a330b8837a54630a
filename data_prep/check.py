"""Is a dataset sound? What is wrong with it, where, and how to mend it.

python -m data_prep.check data/color_object
python -m data_prep.check data/color_object html=doctor.html json=doctor.json
python -m data_prep.check --help"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from toolkit.command_line import run_main
from toolkit.progress import progress_bar

if TYPE_CHECKING:
    from data_prep import CheckConfig
    from data_prep.doctor import Report

UNSOUND = 1  # exit status
WIDTH = 118
STYLES = {"ok": "green", "warning": "yellow", "error": "bold red", "": "dim"}


@dataclass(frozen=True)
class Call:
    """What is examined, and the configuration."""

    path: Path
    config: CheckConfig


def read(arguments: Sequence[str]) -> Call:
    """`PATH [key=value ...]`; anything else raises ToolkitError."""
    from gr00t.errors import ToolkitError
    from toolkit.configuration import load

    words = [a for a in arguments if not a.startswith("-") and ("=" not in a or "/" in a.partition("=")[0])]
    config = load("check", [argument for argument in arguments if argument not in words])
    if len(words) != 1:
        raise ToolkitError(
            f"{len(words)} folders are given; give one: python -m data_prep.check data/color_object (a split's folder, "
            "or a single dataset's)."
        )
    dataset = Path(words[0]).expanduser()
    for name, target in (("json", config.json), ("html", config.html)):
        if target is None:
            continue
        path = Path(target).expanduser()
        if path.is_dir():
            raise ToolkitError(f"{name}={target} is a folder. Give a file, {name}={path / f'doctor.{name}'}.")
        parts = [p / part for p in (dataset, *dataset.glob("*")) for part in ("meta", "data", "videos")]
        if any(path.resolve().is_relative_to(part.resolve()) for part in parts):
            raise ToolkitError(f"{name}={target} lies inside the dataset, which would change it. Give another place.")
    return Call(dataset, config)


def main(call: Call) -> None:
    """Examine the dataset, print and write what was found; exit with UNSOUND where there is an error."""
    # Imported only after the arguments have been accepted: a refusal should not wait for it.
    from data_prep.doctor.examine import examine
    from toolkit.shared_keys import modality_configs

    config = call.config
    with progress_bar(transient=True) as bar:
        task = bar.add_task("reading", total=None)

        def progress(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)

        report, subjects = examine(call.path, modality_configs(config), fast=config.fast, progress=progress)
    _show(report)
    if config.json is not None:
        _write(Path(config.json).expanduser(), json.dumps(report.to_json(), indent=2) + "\n")
    if config.html is not None:
        from data_prep.dataset_page import dataset_page

        _write(Path(config.html).expanduser(), dataset_page(report, subjects, config.shown))
    if report.level == "error":
        sys.exit(UNSOUND)


def _write(path: Path, text: str) -> None:
    from gr00t.errors import disk_errors
    from gr00t.file_replacement import write_text

    with disk_errors(path, "Give another file."):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
    print(f"written: {path}")


def _show(report: Report) -> None:
    """A table of every check's outcome, then what was found with its remedy, the most serious last."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=WIDTH)
    table = Table("check", "question", *(dataset.name for dataset in report.datasets), box=None)
    questions = {result.check: result.question for dataset in report.datasets for result in dataset.results}
    for check, question in questions.items():
        row = []
        for dataset in report.datasets:
            result = next((r for r in dataset.results if r.check == check), None)
            level = "" if result is None or result.skipped else result.level
            row.append(f"[{STYLES[level]}]{level or ('-' if result is None else 'not made')}[/]")
        table.add_row(check, f"[dim]{escape(question)}[/]", *row)
    console.print(table)
    for level in ("warning", "error"):
        for dataset, result, finding in report.findings(level):
            console.print(
                f"\n[{STYLES[level]}]{level}[/] {escape(dataset.name)}, {result.check}: {escape(finding.where)}"
            )
            text = f"{escape(finding.found)}\n[dim]remedy:[/] {escape(finding.remedy)}"
            console.print(Padding(text, (0, 0, 0, 2)))
    errors, warnings = len(report.findings("error")), len(report.findings("warning"))
    part = " (fast part)" if report.fast else ""
    word = {"ok": "sound", "warning": "sound, with warnings", "error": "not sound"}[report.level]
    console.print(
        f"\n{escape(str(report.path))}: [{STYLES[report.level]}]{word}[/]{part}; {errors} errors, {warnings} warnings, "
        f"{report.seconds:.1f} s"
    )


if __name__ == "__main__":
    run_main(main, "check", read=read)

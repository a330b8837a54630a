"""Is a dataset sound? What is wrong with it, where, and how to mend it.

python -m data_prep.check data/color_object
python -m data_prep.check data/color_object html=doctor.html json=doctor.json exclude=bad_episodes.txt
python -m data_prep.check --help"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
WIDTH, WIDER = 118, 16  # of the table of train, conflict and both; for each further dataset
STYLES = {"ok": "green", "warning": "yellow", "error": "bold red", "": "dim"}


def read(arguments: Sequence[str]) -> tuple[Path, CheckConfig]:
    """`PATH [key=value ...]`; anything else raises ToolkitError."""
    from gr00t.errors import ToolkitError
    from toolkit.configuration import load_with_words

    words, config = load_with_words("check", arguments)
    if len(words) != 1:
        raise ToolkitError(
            f"{len(words)} folders are given; give one: python -m data_prep.check data/color_object (a split's folder, "
            "or a single dataset's)."
        )
    dataset = Path(words[0]).expanduser()
    parts = [p / part for p in (dataset, *dataset.glob("*")) for part in ("meta", "data", "videos")]
    for name, target in (("json", config.json), ("html", config.html), ("exclude", config.exclude)):
        path = Path(target or "").expanduser()
        if target is not None and path.is_dir():
            raise ToolkitError(f"{name}={target} is a folder. Give a file, {name}={path / f'doctor.{name}'}.")
        if target is not None and any(path.resolve().is_relative_to(part.resolve()) for part in parts):
            raise ToolkitError(f"{name}={target} lies inside the dataset, which would change it. Give another place.")
    return dataset, config


def main(call: tuple[Path, CheckConfig]) -> None:
    """Examine the dataset, print and write what was found; exit with UNSOUND where there is an error."""
    # Imported only after the arguments have been accepted: a refusal should not wait for it.
    from data_prep.doctor.examine import examine
    from toolkit.shared_keys import modality_configs

    path, config = call
    with progress_bar(transient=True) as bar:
        task = bar.add_task("reading", total=None)

        def progress(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)

        report, subjects = examine(
            path, modality_configs(config), fast=config.fast, progress=progress, probe=config.probe
        )
    _show(report)
    if config.json is not None:
        _write(Path(config.json).expanduser(), json.dumps(report.to_json(), indent=2) + "\n")
    if config.exclude is not None:
        _write(Path(config.exclude).expanduser(), json.dumps(report.exclude()) + "\n")
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
        console.width = WIDTH + WIDER * max(0, len(report.datasets) - 3)
    table = Table("check", "question", *(dataset.name for dataset in report.datasets), box=None)
    levels: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for dataset in report.datasets:
        for result in dataset.results:
            level = "" if result.skipped else result.level
            levels[result.check, result.question][dataset.name] = f"[{STYLES[level]}]{level or 'not made'}[/]"
    for (check, question), of in levels.items():
        table.add_row(check, f"[dim]{escape(question)}[/]", *(of.get(d.name, "[dim]-[/]") for d in report.datasets))
    console.print(table)
    for dataset in report.datasets:
        if left_out := dataset.facts.get("excluded"):
            numbers = ", ".join(map(str, left_out))
            console.print(f"\n{escape(dataset.name)}: left out, and not examined: episodes {numbers}")
        if probed := dataset.facts.get("probe"):
            _show_probe(console, dataset.name, probed)
    for level in ("warning", "error"):
        for dataset, result, finding in report.findings(level):
            where = f"{escape(dataset.name)}, {result.check}: {escape(finding.where)}"
            console.print(f"\n[{STYLES[level]}]{level}[/] {where}")
            text = f"{escape(finding.found)}\n[dim]remedy:[/] {escape(finding.remedy)}"
            console.print(Padding(text, (0, 0, 0, 2)))
    errors, warnings = len(report.findings("error")), len(report.findings("warning"))
    part = " (fast part)" if report.fast else ""
    verdict = f"[{STYLES[report.level]}]{report.verdict}[/]{part}; {errors} errors, {warnings} warnings"
    console.print(f"\n{escape(str(report.path))}: {verdict}, {report.seconds:.1f} s")


def _show_probe(console: Console, name: str, probed: dict[str, Any]) -> None:
    """What was found of what the data teach."""
    console.print(f"\n{escape(name)}, probe of {probed['episodes']} episodes: {probed['in_words']}")
    if rows := probed.get("rows"):
        table = Table(*map(escape, rows[0]), box=None)
        for row in rows[1:]:
            table.add_row(*row)
        console.print(table)


if __name__ == "__main__":
    run_main(main, "check", read=read)

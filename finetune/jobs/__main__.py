"""The runs of this project and their SLURM jobs.

python -m finetune.jobs
python -m finetune.jobs follow color_object
python -m finetune.jobs cancel color_object
python -m finetune.jobs resubmit color_object
python -m finetune.jobs --help"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from toolkit.command_line import run_main

if TYPE_CHECKING:
    from finetune.jobs import JobsConfig, View

COMMANDS = ("list", "follow", "cancel", "resubmit")


def read(arguments: Sequence[str]) -> tuple[str, str, JobsConfig]:
    """`[COMMAND [RUN]] [key=value ...]` as command, run and configuration; anything else raises ToolkitError."""
    from gr00t.errors import ToolkitError, did_you_mean
    from toolkit.configuration import load

    words = [argument for argument in arguments if "=" not in argument and not argument.startswith("-")]
    config = load("jobs", [argument for argument in arguments if argument not in words])
    command, *names = words or ["list"]
    if command not in COMMANDS:
        raise ToolkitError(f'There is no command "{command}".{did_you_mean(command, COMMANDS)}')
    if len(names) != (command != "list"):
        usage = f"python -m finetune.jobs {command}" + (" RUN" if command != "list" else "")
        raise ToolkitError(f"{command} takes {'no' if command == 'list' else 'one'} name: {usage}")
    return command, "".join(names), config


def main(call: tuple[str, str, JobsConfig]) -> None:
    """Carry out the command of `read`."""
    from finetune import jobs

    command, run, config = call
    runs_dir = Path(config.runs_dir)
    if command == "list" and config.json:
        print(json.dumps([dataclasses.asdict(view) for view in jobs.views(runs_dir)], indent=2))
    elif command == "list":
        show_table(jobs.views(runs_dir), runs_dir)
    elif command == "follow":
        ended = jobs.follow(runs_dir, run, config.lines, lambda text: print(text, end="", flush=True))
        print(f"{ended.name}: {ended.state}{' (' + ended.reason + ')' if ended.reason else ''}")
    elif command == "cancel":
        lines = [f"cancelled job {view.job} ({view.name})" for view in jobs.cancel(runs_dir, run)]
        print("\n".join(lines) or "no job of it is queued or running")
    else:
        job_id = jobs.resubmit(runs_dir, run)
        print(f"submitted again as job {job_id}: python -m finetune.jobs follow {run}")


def show_table(found: Sequence[View], runs_dir: Path) -> None:
    """One line a job, as wide as it needs where the output is no terminal."""
    if not found:
        print(f"no runs in {runs_dir}; runs_dir=FOLDER looks elsewhere")
        return
    table = Table("run", "job", "state", "att.", "step", "samples/s", "train left", "job left", "loss", "log", box=None)
    for view in found:
        log = Path(view.log) if view.log else None
        table.add_row(
            view.name,
            view.job or "",
            f"{view.state} ({view.reason})" if view.reason else view.state,
            "" if view.attempt is None else str(view.attempt),
            f"{view.step or 0}/{view.steps}" if view.steps else "",
            f"{view.samples_per_second:.1f}" if view.samples_per_second else "",
            in_words(view.training_left) if view.training_left is not None else "",
            view.job_left,
            f"{view.loss:.4f}" if view.loss is not None else "",
            str(log.relative_to(Path.cwd()) if log and log.is_relative_to(Path.cwd()) else log or ""),
        )
    console = Console(highlight=False, markup=False)
    console.print(table) if console.is_terminal else Console(highlight=False, markup=False, width=400).print(table)


def in_words(seconds: float) -> str:
    """A time to come: 3h12m, 14m, 40s."""
    if seconds < 90:
        return f"{seconds:.0f}s"
    minutes = round(seconds / 60)
    return f"{minutes // 60}h{minutes % 60:02}m" if minutes >= 60 else f"{minutes}m"


if __name__ == "__main__":
    try:
        run_main(main, "jobs", read=read)
    except BrokenPipeError:  # the reader of a pipe had enough
        sys.stderr.close()

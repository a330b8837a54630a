"""The runs of this project and their SLURM jobs.

python -m finetune.jobs
python -m finetune.jobs follow color_object
python -m finetune.jobs cancel color_object
python -m finetune.jobs resubmit color_object
python -m finetune.jobs --help
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from finetune.script import run_main

if TYPE_CHECKING:
    from finetune.config import JobsConfig
    from finetune.slurm.watch import View

COMMANDS = ("list", "follow", "cancel", "resubmit")


@dataclass(frozen=True)
class Call:
    """A command, the run it is for, and the configuration."""

    command: str
    run: str
    config: JobsConfig


def read(arguments: Sequence[str]) -> Call:
    """`[COMMAND [RUN]] [key=value ...]`; anything else raises ToolkitError."""
    from finetune.config import load
    from gr00t.errors import ToolkitError, did_you_mean

    words = [argument for argument in arguments if "=" not in argument and not argument.startswith("-")]
    config = load("jobs", [argument for argument in arguments if argument not in words])
    command, *names = words or ["list"]
    if command not in COMMANDS:
        raise ToolkitError(f'There is no command "{command}".{did_you_mean(command, COMMANDS)}')
    if len(names) != (command != "list"):
        usage = f"python -m finetune.jobs {command}" + (" RUN" if command != "list" else "")
        raise ToolkitError(f"{command} takes {'no' if command == 'list' else 'one'} name: {usage}")
    return Call(command, "".join(names), config)


def main(call: Call) -> None:
    from finetune.slurm import follow as actions
    from finetune.slurm.watch import views

    runs_dir = Path(call.config.runs_dir)
    if call.command == "list":
        found = views(runs_dir)
        show_json(found) if call.config.json else show_table(found, runs_dir)
    elif call.command == "follow":
        ended = actions.follow(runs_dir, call.run, call.config.lines, _write)
        print(f"{ended.name}: {ended.state}{' (' + ended.reason + ')' if ended.reason else ''}")
    elif call.command == "cancel":
        jobs = actions.cancel(runs_dir, call.run)
        print("\n".join(f"cancelled job {job.job} ({job.name})" for job in jobs) or "no job of it is queued or running")
    else:
        job_id = actions.resubmit(runs_dir, call.run)
        print(f"submitted again as job {job_id}: python -m finetune.jobs follow {call.run}")


def show_json(found: Sequence[View]) -> None:
    print(json.dumps([dataclasses.asdict(view) for view in found], indent=2))


def show_table(found: Sequence[View], runs_dir: Path) -> None:
    """One line a job, as wide as it needs where the output is no terminal."""
    if not found:
        print(f"no runs in {runs_dir}; runs_dir=FOLDER looks elsewhere")
        return
    table = Table("run", "job", "state", "att.", "step", "samples/s", "train left", "job left", "loss", "log", box=None)
    for view in found:
        state = f"{view.state} ({view.reason})" if view.reason else view.state
        steps = f"{view.step or 0}/{view.steps}" if view.steps else ""
        speed = f"{view.samples_per_second:.1f}" if view.samples_per_second else ""
        left = in_words(view.training_left) if view.training_left is not None else ""
        loss = f"{view.loss:.4f}" if view.loss is not None else ""
        attempt = "" if view.attempt is None else str(view.attempt)
        row = (view.name, view.job or "", state, attempt, steps, speed, left, view.job_left, loss, _short(view.log))
        table.add_row(*row)
    console = Console(highlight=False, markup=False)
    console.print(table) if console.is_terminal else Console(highlight=False, markup=False, width=400).print(table)


def in_words(seconds: float) -> str:
    """A time to come: 3h12m, 14m, 40s."""
    if seconds < 90:
        return f"{seconds:.0f}s"
    minutes = round(seconds / 60)
    return f"{minutes // 60}h{minutes % 60:02}m" if minutes >= 60 else f"{minutes}m"


def _short(log: str | None) -> str:
    """Relative to here where it lies below."""
    path = Path(log) if log else None
    return str(path.relative_to(Path.cwd()) if path and path.is_relative_to(Path.cwd()) else path or "")


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


if __name__ == "__main__":
    try:
        run_main(main, "jobs", read=read)
    except BrokenPipeError:  # the reader of a pipe had enough
        sys.stderr.close()

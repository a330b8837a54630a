"""The runs of a project and their SLURM jobs: listed, followed, cancelled and submitted again."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table

from finetune.jobs import JobsConfig
from finetune.jobs.run_views import OVER, KnownJobs, View, end_of, find, view, views, views_of
from finetune.slurm.cluster_queries import available, in_time, log_of, slurm
from gr00t.errors import ToolkitError, did_you_mean
from toolkit.command_line import run_main
from toolkit.configuration import load_with_words
from toolkit.progress import shows_bars

COMMANDS = ("list", "follow", "cancel", "resubmit")
WITH_BARS = 120  # columns of a terminal
POLL_SECONDS = 0.5
ASK_SECONDS = 5.0  # between two questions to SLURM
GONE_ANSWERS = 3  # a job that is being requeued is unknown for a moment
SILENT_ANSWERS = 120  # a controller that is being restarted is away for a minute


def read(arguments: Sequence[str]) -> tuple[str, str, JobsConfig]:
    """`[COMMAND [RUN]] [key=value ...]` as command, run and configuration; anything else raises ToolkitError."""
    words, config = load_with_words("jobs", arguments)
    command, *names = words or ["list"]
    if command not in COMMANDS:
        raise ToolkitError(f'There is no command "{command}".{did_you_mean(command, COMMANDS)}')
    if len(names) != (command != "list"):
        usage = f"python -m finetune.jobs {command}" + (" RUN" if command != "list" else "")
        raise ToolkitError(f"{command} takes {'no' if command == 'list' else 'one'} name: {usage}")
    return command, "".join(names), config


def main(call: tuple[str, str, JobsConfig]) -> None:
    command, run, config = call
    runs_dir = Path(config.runs_dir)
    if command == "list" and config.json:
        print(json.dumps([asdict(view) for view in views(runs_dir, usage=True)], indent=2))
    elif command == "list":
        show_table(views(runs_dir), runs_dir)
    elif command == "follow":
        ended = follow(runs_dir, run, config.lines, lambda text: print(text, end="", flush=True))
        print(f"{ended.name}: {ended.state}{' (' + ended.reason + ')' if ended.reason else ''}")
    else:
        # the launcher's part of the toolkit, which a list need not wait for
        from finetune.jobs.control import cancel, resubmit

        print("\n".join((cancel if command == "cancel" else resubmit)(runs_dir, run)))


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
    for one in found:
        table.add_row(*_row(one, bars))
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


def follow(runs_dir: Path, name: str, lines: int, write: Callable[[str], object]) -> View:
    """Write the last `lines` of the run's log, then what is added to it; returns when the run has ended.

    Of a stage that was dropped it is the log of the stage that failed.
    """
    known = KnownJobs.read(runs_dir)
    found = find(views_of(known), name, runs_dir)
    run_dir = Path(found.run_dir)
    log, position, answers_gone = "", 0, 0
    if found.state == "pending":
        write(f"{found.name} waits in the queue ({found.reason or 'no reason given'})\n")
    while True:
        path = found.log or _log_of_job(found)
        if path and path != log and Path(path).is_file():
            log = path
            write(f"==> {log}\n")
            tail, position = end_of(Path(log), 1 << 20)
            position -= sum(len(line) for line in tail[-lines:]) if lines else 0
        position = _pass_on(log, position, write) if log else 0
        answers_gone = 0 if found.alive else answers_gone + 1
        patience = SILENT_ANSWERS if found.state == "unknown" else GONE_ANSWERS
        if answers_gone and (found.state in OVER or answers_gone > patience):
            if not log and not found.reason:
                raise ToolkitError(f"{found.name} has no log here. Its folder is {found.run_dir}.")
            return found
        for _ in range(round(ASK_SECONDS / POLL_SECONDS) if found.alive else 1):
            time.sleep(POLL_SECONDS)
            position = _pass_on(log, position, write) if log else 0
        known = known.again(run_dir)
        named = [entry for entry in known.entries if entry.run_dir == run_dir and entry.noted["name"] == found.name]
        if not named:
            raise ToolkitError(f"{run_dir} is gone.")
        found = view(next((entry for entry in named if entry.noted.get("job_id") == found.job), named[-1]), known)


def _pass_on(log: str, position: int, write: Callable[[str], object]) -> int:
    """Write what the file holds beyond `position`; the position after it."""
    with Path(log).open("rb") as file:
        file.seek(position)
        while data := file.read(1 << 20):
            write(data.decode(errors="replace"))
        return file.tell()


def _log_of_job(found: View) -> str | None:
    """Where the output of a plain job goes that has not begun an attempt, and may have been refused before."""
    if found.job is None or found.state == "pending" or not available():
        return None
    return log_of(slurm("scontrol", "show", "job", "--oneliner", found.job, check=False).stdout)


if __name__ == "__main__":
    try:
        run_main(main, "jobs", read=read)
    except BrokenPipeError:  # the reader of a pipe had enough
        sys.stderr.close()

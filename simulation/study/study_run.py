"""A study's commands one after another on this machine: what is done is left out, what fails is noted."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from statistics import mean

from finetune.recipe import check_finetune
from finetune.slurm.done_and_busy import found_result
from finetune.slurm.launch_request import Task
from gr00t.errors import ToolkitError, disk_errors
from gr00t.file_reading import read_json
from gr00t.file_replacement import file_lock
from simulation.study.grid import NUMBERS, Point, Study
from toolkit.command_line import received, stop_signals
from toolkit.installation import CHECKOUT
from toolkit.progress import NOTE, progress_bar

_SCRIPTS = {"prepare": "prepare_conflict_data.py", "finetune": "launch_finetune_local.py"}
_SCRIPTS |= {"evaluate": "evaluate_conflict.py"}
LOOK = 2.0  # seconds between two looks whether a signal came


class Standing:
    """What of a study is done, and why a task failed. seconds: of the commands that ran so far, by stage."""

    def __init__(self, study: Study, processes: int) -> None:
        self.study, self.processes = study, processes
        self.done, self.failed = set[Task](), dict[Task, str]()
        numbers = study.folder / NUMBERS
        self.seconds: dict[str, list[float]] = read_json(numbers).get("seconds", {}) if numbers.is_file() else {}
        for task in study.request.tasks:
            try:
                if found_result(replace(task, after=[])):
                    self.done.add(task)
                elif task.stage == "finetune":  # before hours are spent on recording for it
                    check_finetune(task.config, processes, dataset_comes=True)
            except ToolkitError as error:
                self.failed[task] = str(error)

    def left(self, point: Point) -> list[Task]:
        """The tasks of a point that are still to be done, in order; a result needs none of those before it."""

        def needed(task: Task) -> Iterator[Task]:
            if task not in self.done:
                for other in task.after:
                    yield from needed(other)
                yield task

        return list(dict.fromkeys(needed(point.evaluation)))

    def failure(self, point: Point) -> str | None:
        """Why the point cannot be done; None where it can."""
        return next((self.failed[task] for task in reversed(self.left(point)) if task in self.failed), None)

    def all_left(self) -> list[Task]:
        """The tasks of all points that have not failed, point by point."""
        points = [point for point in self.study.points if self.failure(point) is None]
        return list(dict.fromkeys(task for point in points for task in self.left(point)))

    def estimate(self) -> str:
        """How long what is left will take, by what the same stages took so far."""
        tasks = self.all_left()
        known = [mean(self.seconds[task.stage]) for task in tasks if self.seconds.get(task.stage)]
        unknown = dict.fromkeys(task.stage for task in tasks if not self.seconds.get(task.stage))
        words = [f"about {timedelta(seconds=round(sum(known)))}"] if known else []
        words += [f"an unknown time to {' and '.join(unknown)}"] if unknown else []
        return f"{len(tasks)} commands left" + (f", {' and '.join(words)}" if words else "")


def command_of(task: Task, processes: int) -> list[str]:
    """The command line that does a task here."""
    several = task.stage == "finetune" and processes > 1
    starter = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if several else []
    script = ["-m", "simulation.record"] if task.stage == "record" else [str(CHECKOUT / _SCRIPTS[task.stage])]
    return [sys.executable, *starter, *script, *task.overrides]


def run_here(standing: Standing, minutes: float | None, draw: Callable[[], object]) -> None:
    """Run what is left until it is done, the time is over or a signal comes; `draw` is called after every command."""
    end, folder = time.monotonic() + 60 * (minutes or 0), standing.study.folder
    with disk_errors(folder, "Choose another out=FOLDER."):
        (folder / "logs").mkdir(parents=True, exist_ok=True)
    with file_lock(folder / NUMBERS), stop_signals(), progress_bar(NOTE, unit="commands") as bar:
        total = len(standing.all_left())
        shown = bar.add_task(standing.study.name, total=total, note="")
        while (left := standing.all_left()) and not received() and (minutes is None or time.monotonic() < end):
            print(f"{left[0].stage} for {left[0].name} ({standing.estimate()})", file=sys.stderr)
            bar.update(shown, completed=total - len(left), note=f"{left[0].stage} for {left[0].name}")
            _attempt(left[0], standing, folder / "logs" / f"{left[0].name}.log")
            draw()


def _attempt(task: Task, standing: Standing, log: Path) -> None:
    started, status = time.monotonic(), _status(command_of(task, standing.processes), log)
    if status == 0:
        standing.done.add(task)
        standing.seconds.setdefault(task.stage, []).append(round(time.monotonic() - started, 1))
    elif not received():
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
        said = next((line for line in reversed(lines) if line.startswith("error")), (lines or [f"status {status}"])[-1])
        standing.failed[task] = f"{task.stage}: {said.removeprefix('error: ')} (all of it: {log})"


def _status(command: list[str], log: Path) -> int:
    """Run a command, its output into `log`, and hand on a signal that asks this process to stop."""
    handed_on = False
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT) as child:
        while True:
            try:
                return child.wait(timeout=LOOK)
            except subprocess.TimeoutExpired:
                if (number := received()) is not None and not handed_on:
                    child.send_signal(number)
                    handed_on = True

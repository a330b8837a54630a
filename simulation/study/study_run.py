"""A study's commands one after another on this machine: what is done is left out, what fails is noted."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from statistics import mean
from typing import Any

from finetune.recipe import check_finetune
from finetune.recipe.recipe_identity import RELEASE_MARK
from finetune.slurm.done_and_busy import found_result, left_result
from finetune.slurm.launch_request import Task
from gr00t.data.meta_files import episode_range
from gr00t.errors import ToolkitError, disk_errors
from gr00t.file_reading import parsing, read_json
from gr00t.file_replacement import file_lock
from gr00t.model.checkpoint_folder import fingerprint
from simulation.record import settings_of
from simulation.study.grid import NUMBERS, Point, Study
from toolkit.command_line import received, stop_signals
from toolkit.installation import CHECKOUT
from toolkit.progress import NOTE, progress_bar

_SCRIPTS = {"prepare": "prepare_conflict_data.py", "finetune": "launch_finetune_local.py"}
_SCRIPTS |= {"evaluate": "evaluate_conflict.py"}
DONE = "done"  # of a point, in study.json
LOOK = 2.0  # seconds between two looks whether a signal came


class Standing:
    """What of a study is done, and why a task failed. processes: of a fine-tune here, None where it runs elsewhere;
    seconds: of the commands that ran so far, by stage; kept: what study.json has of points that were done, by the text
    of their values: it is enough where their files are gone, and stays where the axes no longer hold them."""

    def __init__(self, study: Study, processes: int | None) -> None:
        self.study, self.processes = study, processes
        self.done, self.failed = set[Task](), dict[Task, str]()
        numbers = study.folder / NUMBERS
        before = read_json(numbers) if numbers.is_file() else {}
        with parsing(numbers, "Remove it: what is done is found by its files."):
            self.seconds: dict[str, list[float]] = before.get("seconds", {})
            done = [point for point in before.get("others", []) + before.get("points", []) if point["state"] == DONE]
            self.kept: dict[str, dict[str, Any]] = {_text(point["values"]): point for point in done}
            for point in done:
                if not isinstance(point["rates"], dict):
                    raise TypeError(f"rates: {point['rates']}")
                for outcomes, kind in itertools.product(point.get("outcomes", {}).values(), ("success", "picked")):
                    by_seed(outcomes, kind)
        for task in study.request.tasks:
            try:
                if found_result(replace(task, after=[])):
                    _refuse_other_recording(task)
                    self.done.add(task)
                elif task.stage == "finetune" and processes:  # before hours are spent on recording for it
                    check_finetune(task.config, processes, dataset_comes=True)
            except ToolkitError as error:
                self.failed[task] = str(error)

    def left(self, point: Point) -> list[Task]:
        """The tasks of a point that are still to be done, in order; a result needs none of those before it."""
        if self.kept_of(point) is not None:
            return []
        return list(dict.fromkeys(_leading_to(point.evaluation, self.done)))

    def kept_of(self, point: Point) -> dict[str, Any] | None:
        """What study.json says of a point that was done; None where a report is there, or another checkpoint than was
        evaluated, which is evaluated in its place."""
        kept = None if point.evaluation in self.done else self.kept.get(_text(point.values))
        checkpoint = Path(point.evaluation.config.checkpoint)
        if kept is None or not (checkpoint / RELEASE_MARK).is_file():
            return kept
        known = kept.get("checkpoint")  # not noted by earlier versions
        with suppress(OSError, ToolkitError):  # of one that lost its weights
            return kept if known and known == fingerprint(checkpoint) else None
        return kept

    def others(self) -> list[dict[str, Any]]:
        """What study.json says of points that were done and are not among the study's now, or are to be done again."""
        points = {_text(point.values): point for point in self.study.points}
        again = {text for text, point in points.items() if self.kept_of(point) is None and self.left(point)}
        return [point for text, point in self.kept.items() if text not in points or text in again]

    def unfinished(self) -> list[Task]:
        """All tasks of the points that study.json does not hold, those that are done too, in the request's order."""
        points = [point for point in self.study.points if self.kept_of(point) is None]
        wanted = {task for point in points for task in _leading_to(point.evaluation, ())}
        return [task for task in self.study.request.tasks if task in wanted]

    def failure(self, point: Point) -> str | None:
        """Why the point cannot be done; None where it can."""
        return next((self.failed[task] for task in reversed(self.left(point)) if task in self.failed), None)

    def all_left(self) -> list[Task]:
        """The tasks of all points that have not failed, point by point."""
        points = [point for point in self.study.points if self.failure(point) is None]
        return list(dict.fromkeys(task for point in points for task in self.left(point)))

    def ready(self, running: Collection[Task]) -> Task | None:
        """The first task that is left and waits for none of the others."""
        left = self.all_left()
        return next((task for task in left if task not in running and not {*task.after} & {*left}), None)

    def estimate(self, parallel: int = 1) -> str:
        """How long what is left will take, so many at a time, by what the same stages took so far."""
        tasks = self.all_left()
        known = [mean(self.seconds[task.stage]) for task in tasks if self.seconds.get(task.stage)]
        unknown = dict.fromkeys(task.stage for task in tasks if not self.seconds.get(task.stage))
        words = [f"about {timedelta(seconds=round(sum(known) / parallel))}"] if known else []
        words += [f"an unknown time to {' and '.join(unknown)}"] if unknown else []
        return f"{len(tasks)} commands left" + (f", {' and '.join(words)}" if words else "")


def _text(values: Mapping[str, str]) -> str:
    return " ".join(f"{name}={values[name]}" for name in sorted(values))


def by_seed(outcomes: Mapping[str, Any], kind: str) -> dict[int, str]:
    """The letters of one kind that study.json holds of the episodes of a part, by the episodes' seeds."""
    seeds = [seed for entry in outcomes["seeds"] for seed in episode_range(entry, NUMBERS)]
    return dict(zip(seeds, outcomes[kind], strict=True))


def _leading_to(task: Task, done: Collection[Task]) -> Iterator[Task]:
    """The task behind all that it waits for; nothing of what is done, or leads to that alone."""
    if task not in done:
        for other in task.after:
            yield from _leading_to(other, done)
        yield task


def _refuse_other_recording(task: Task) -> None:
    """Refuse a dataset that was made of other recordings than the study's."""
    recordings = [other.config for other in task.after if other.stage == "record" and other.config.part == "train"]
    if task.stage != "prepare" or not recordings:
        return
    folder, config = Path(task.config.data_dir) / task.config.split.name / "train", recordings[0]
    with parsing(folder / "meta", "Make the dataset again, or choose another out=FOLDER."):
        split, info = read_json(folder / "meta/split.json"), read_json(folder / "meta/info.json")
        there = {"episodes": info["total_episodes"], "strategy": (split.get("recorded") or {}).get("strategy")}
    wanted = settings_of(config)
    different = [f"{n}={v} (here {wanted.get(n)})" for n, v in there.items() if v is not None and v != wanted.get(n)]
    if different:
        raise ToolkitError(
            f"{folder} was recorded with {' and '.join(different)}. Say the same in the study's settings "
            "(strategy, record.episodes), or leave out its data_dir, or choose another out=FOLDER."
        )


def command_of(task: Task, processes: int | None) -> list[str]:
    """The command line that does a task here."""
    several = task.stage == "finetune" and processes is not None and processes > 1
    starter = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if several else []
    script = ["-m", "simulation.record"] if task.stage == "record" else [str(CHECKOUT / _SCRIPTS[task.stage])]
    return [sys.executable, *starter, *script, *task.typed]


@dataclass(frozen=True)
class _Running:
    """A command that runs, its output in `log`."""

    task: Task
    child: subprocess.Popen[bytes]
    log: Path
    started: float


def run_here(standing: Standing, minutes: float | None, draw: Callable[[], object], parallel: int = 1) -> None:
    """Run what is left, so many commands at a time, until it is done, the time is over or a signal comes, which those
    that run are handed; `draw` is called after every command."""
    end, folder = time.monotonic() + 60 * (minutes or 0), standing.study.folder
    with disk_errors(folder, "Choose another out=FOLDER."):
        (folder / "logs").mkdir(parents=True, exist_ok=True)
    threads = max(1, len(os.sched_getaffinity(0)) // parallel)
    environment = os.environ if parallel == 1 else {"OMP_NUM_THREADS": str(threads), **os.environ}
    running: list[_Running] = []
    with file_lock(folder / NUMBERS), stop_signals(), progress_bar(NOTE, unit="commands") as bar, ExitStack() as stack:
        total = len(standing.all_left())
        shown = bar.add_task(standing.study.name, total=total, note="")
        handed_on = False
        stack.callback(_end, running)
        while True:
            may_begin = not received() and (minutes is None or time.monotonic() < end)
            while may_begin and len(running) < parallel and (task := standing.ready([one.task for one in running])):
                print(f"{_called(task)} ({standing.estimate(parallel)})", file=sys.stderr)
                running.append(_begin(command_of(task, standing.processes), task, folder, environment))
            if not running:
                return
            names = ", ".join(_called(one.task) for one in running)
            bar.update(shown, completed=total - len(standing.all_left()), note=names)
            with suppress(subprocess.TimeoutExpired):
                running[0].child.wait(timeout=LOOK)
            if (number := received()) is not None and not handed_on:
                for one in running:
                    one.child.send_signal(number)
                handed_on = True
            for one in [one for one in running if one.child.poll() is not None]:
                running.remove(one)
                _note(one, standing)
                draw()


def _called(task: Task) -> str:
    """evaluate for guidance_2-seed_0."""
    return f"{task.stage} for {Path(task.config.report_dir).name if task.stage == 'evaluate' else task.name}"


def _end(running: Sequence[_Running]) -> None:
    """End what still runs, which nobody would wait for after an error."""
    for one in running:
        one.child.terminate()
    for one in running:
        one.child.wait()


def _begin(command: list[str], task: Task, folder: Path, environment: Mapping[str, str]) -> _Running:
    log = folder / "logs" / f"{task.name}.log"
    with log.open("wb") as output:
        child = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
    return _Running(task, child, log, time.monotonic())


def _note(ended: _Running, standing: Standing) -> None:
    """Whether it is done, or why it failed; neither where it was asked to stop, as a fine-tune does with status 0."""
    task, status = ended.task, ended.child.returncode
    if received():
        return
    if status == 0 and (task.share or left_result(task)):
        standing.done.add(task)
        standing.seconds.setdefault(task.stage, []).append(round(time.monotonic() - ended.started, 1))
    else:
        reason = why(status, ended.log.read_text(errors="replace"))
        standing.failed[task] = f"{task.stage}: {reason} (all of it: {ended.log})"


def why(status: int, log: str) -> str:
    """Why a command failed, by its status, as subprocess has it, and what it wrote."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    said = next((line for line in reversed(lines) if line.startswith("error")), None)
    if said is not None:
        return said.removeprefix("error: ")
    if status < 0:  # its last line, if any, is of something else
        of_memory = ", perhaps as its memory did not suffice" if status == -signal.SIGKILL else ""
        return f"it was ended by {signal.Signals(-status).name}{of_memory}"
    return (lines or [f"status {status}"])[-1] if status else "it ended without its result"

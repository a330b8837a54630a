"""The runs of a project and their SLURM jobs: listed, followed, cancelled and submitted again.

python -m finetune.jobs
python -m finetune.jobs follow color_object
python -m finetune.jobs cancel color_object
python -m finetune.jobs resubmit color_object
python -m finetune.jobs --help"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.progress_bar import ProgressBar
from rich.table import Table

from finetune.recipe import ClusterConfig
from finetune.slurm import attempt_record
from finetune.slurm.batches import job_name_of, output_in
from finetune.slurm.cluster_queries import Job, Queue, in_time, slurm
from finetune.slurm.render import render
from finetune.slurm.submit import one_at_a_time, sbatch
from finetune.training import METRICS, STATUS, measurement
from gr00t.errors import ToolkitError, did_you_mean
from gr00t.file_reading import read_json
from gr00t.file_replacement import write_json
from toolkit.command_line import run_main
from toolkit.configuration import load_with_words
from toolkit.declaration import key
from toolkit.progress import shows_bars


@dataclass(kw_only=True)
class JobsConfig:
    """The runs of this project and their SLURM jobs, also after the jobs are gone or where SLURM is not installed.

    `list` is what is done without a command; `follow RUN` shows the newest attempt's log as it grows, across requeues,
    until the run ends; `cancel RUN` (or all) ends its jobs; `resubmit RUN` submits its saved job script again. RUN is
    the name of a run folder, of a split, or a run folder's path.
    """

    runs_dir: str = key("folder with the run folders and the launcher's records", "runs", folder=True)
    json: bool = key("list the runs as JSON", False)
    lines: int = key("lines of the log that follow shows first", 20, at_least=0)


COMMANDS = ("list", "follow", "cancel", "resubmit")
WITH_BARS = 120  # columns of a terminal
POLL_SECONDS = 0.5
ASK_SECONDS = 5.0  # between two questions to SLURM
GONE_ANSWERS = 3  # a job that is being requeued is unknown for a moment
SILENT_ANSWERS = 120  # a controller that is being restarted is away for a minute
OVER = ("finished", "stopped", "cancelled", "failed", "superseded", "local")

_DAMAGED = (ToolkitError, OSError, KeyError, TypeError, ValueError, AttributeError, yaml.YAMLError)
_WORDS = {"done": "finished", "stop": "stopped", "cancelled": "cancelled", "requeue": "between attempts"}


# -- the list ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class View:
    """One line of the list: a run's fine-tune, or another stage of it that was submitted.

    state: in words; alive: whether SLURM still has its job; training_left: seconds at the present speed; job_left: of
    the job's limit, as SLURM writes it; log: what follow shows.
    """

    name: str
    split: str | None
    stage: str
    run_dir: str
    job: str | None
    state: str
    reason: str
    alive: bool
    nodes: str
    attempt: int | None = None
    step: int | None = None
    steps: int | None = None
    samples_per_second: float | None = None
    training_left: float | None = None
    job_left: str = ""
    loss: float | None = None
    log: str | None = None


def views(runs_dir: Path) -> list[View]:
    """Every run below `runs_dir` or submitted from there, by name; one's damaged records do not hide the others."""
    found = [(folder, noted) for folder in attempt_record.run_folders(runs_dir) for noted in _noted(folder)]
    queue = Queue.read([str(noted["job_id"]) for _, noted in found if noted.get("job_id")])
    return [view(folder, noted, queue) for folder, noted in found]


def _noted(run_dir: Path) -> list[dict[str, Any]]:
    """The jobs of a run, or one entry that says what is damaged."""
    try:
        return attempt_record.jobs_of(run_dir)
    except _DAMAGED as error:
        return [{"name": run_dir.name, "stage": "finetune", "split": None, "damage": _in_words(error)}]


def _in_words(error: Exception) -> str:
    return str(error) if isinstance(error, ToolkitError) else f"its records are damaged ({str(error).splitlines()[0]})"


def view(run_dir: Path, noted: dict[str, Any], queue: Queue) -> View:
    """One line, from a job's record, SLURM's answer and the run folder, or from the first two where that is damaged."""
    job = queue.find(noted) or Job("", "", "")
    shown = View(
        **{name: noted[name] for name in ("name", "split", "stage")},
        run_dir=str(run_dir),
        job=noted.get("job_id"),
        state=job.state.lower() if job.alive else "damaged",
        reason=noted.get("damage", ""),
        alive=job.alive,
        nodes=job.nodes,
        job_left=job.time_left if job.alive else "",
        log=noted.get("log"),
    )
    try:
        return shown if "damage" in noted else _with_records(shown, job, queue.silence)
    except _DAMAGED as error:
        return replace(shown, reason=_in_words(error))


def _with_records(shown: View, job: Job, silence: str) -> View:
    """What the run folder adds."""
    run_dir, settings, metrics, last = Path(shown.run_dir), {}, {}, None
    if shown.stage == "finetune":
        settings, metrics = attempt_record.resolved(run_dir).get("train", {}), last_metrics(run_dir)
        last = next(reversed(attempt_record.attempts(run_dir)), None)
    state, reason = _state(job, last, silence, shown.job is not None)
    if state == "local" and (attempt_record.read_optional(run_dir / STATUS) or {}).get("status") == "finished":
        state = "finished"
    speed, left = metrics.get("samples_per_second"), None
    if shown.alive and speed and settings:
        left = float((settings["max_steps"] - metrics["step"]) * settings["global_batch_size"] / speed)
    # the job's own output continues across attempts; rank 0's of the newest attempt where that is not known
    logs = [log for log in (shown.log, last and str(last.folder / "rank-0.log")) if log]
    return replace(
        shown,
        state=state,
        reason=reason,
        attempt=last.number if last else None,
        step=metrics.get("step"),
        steps=settings.get("max_steps"),
        samples_per_second=speed,
        training_left=left,
        loss=metrics.get("loss"),
        log=next((log for log in logs if Path(log).is_file()), logs[0] if logs else None),
    )


def last_metrics(run_dir: Path) -> dict[str, Any]:
    """The last whole line of metrics.jsonl that training measured; {} before the first."""
    path = run_dir / METRICS
    for line in reversed(_end_of(path, 1 << 16)[0] if path.is_file() else []):
        found = measurement(line)
        if found and "loss" in found[1]:
            return {"step": found[0], **found[1]}
    return {}


def _end_of(path: Path, size: int) -> tuple[list[bytes], int]:
    """The lines in the last `size` bytes of a file, and where it ends."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - size))
        return file.read().splitlines(keepends=True), file.tell()


def _state(job: Job, last: attempt_record.Attempt | None, silence: str, was_job: bool) -> tuple[str, str]:
    """A word for how it stands, and why."""
    ended, outcome = (last.ended, last.outcome) if last else (None, None)
    if ended is not None and ended["what"] == "requeue" and not job.alive and not silence:
        return job.state.lower() or "lost", job.reason or "it was requeued, and ended while it waited to start again"
    if ended is not None and ended["what"] in _WORDS and not job.alive:
        return _WORDS[ended["what"]], str(ended["reason"]).splitlines()[0]
    if outcome is not None and not job.alive:
        return str(outcome["status"]), str(outcome.get("reason") or "")
    if job.state:
        return job.state.lower(), job.reason
    if not was_job:
        return "local", ""
    return ("unknown", silence) if silence else ("lost", "its job is gone without recording an outcome")


def find(runs_dir: Path, name: str) -> View:
    """The run that a user means: by its name in the list, its run folder's path, or its split when only one has it."""
    known = views(runs_dir)
    path = str(Path(name).absolute())
    for matches in (
        [v for v in known if v.name == name],
        [v for v in known if path == v.run_dir or name == Path(v.run_dir).name],
        [v for v in known if v.split == name and v.stage == "finetune"],
        [v for v in known if v.split == name],
    ):
        if len({v.run_dir for v in matches}) > 1:
            listed = ", ".join(sorted({v.name if v.name != name else v.run_dir for v in matches}))
            raise ToolkitError(f'"{name}" may be any of these runs: {listed}. Name one of them.')
        if matches:
            return next((v for v in matches if v.stage == "finetune"), matches[0])
    hint = did_you_mean(name, [v.name for v in known])
    raise ToolkitError(f'There is no run "{name}" in {runs_dir}.{hint} (python -m finetune.jobs lists them)')


# -- follow ------------------------------------------------------------------------------------------------------------


def follow(runs_dir: Path, name: str, lines: int, write: Callable[[str], object]) -> View:
    """Write the last `lines` of the run's log, then what is added to it; returns when the run has ended."""
    found = find(runs_dir, name)
    run_dir = Path(found.run_dir)
    log, position, answers_gone = "", 0, 0
    while True:
        if found.log and found.log != log and Path(found.log).is_file():
            log = found.log
            write(f"==> {log}\n")
            tail, position = _end_of(Path(log), 1 << 20)
            position -= sum(len(line) for line in tail[-lines:]) if lines else 0
        position = _pass_on(log, position, write) if log else 0
        answers_gone = 0 if found.alive else answers_gone + 1
        patience = SILENT_ANSWERS if found.state == "unknown" else GONE_ANSWERS
        if answers_gone and (found.state in OVER or answers_gone > patience):
            if not log:
                raise ToolkitError(f"{found.name} has no log here. Its folder is {found.run_dir}.")
            return found
        for _ in range(round(ASK_SECONDS / POLL_SECONDS) if found.alive else 1):
            time.sleep(POLL_SECONDS)
            position = _pass_on(log, position, write) if log else 0
        noted = next((n for n in _noted(run_dir) if n["name"] == found.name), None)
        if noted is None:
            raise ToolkitError(f"{run_dir} is gone.")
        found = view(run_dir, noted, Queue.read())


def _pass_on(log: str, position: int, write: Callable[[str], object]) -> int:
    """Write what the file holds beyond `position`; the position after it."""
    with Path(log).open("rb") as file:
        file.seek(position)
        while data := file.read(1 << 20):
            write(data.decode(errors="replace"))
        return file.tell()


# -- cancel and resubmit -----------------------------------------------------------------------------------------------


def cancel(runs_dir: Path, name: str) -> list[View]:
    """End the jobs of a run, or of all; only those that its own records name and SLURM still has. Returns them.

    A run's name means all of its stages, a stage's name that one. A conversion that other runs wait for continues,
    unless all are cancelled.
    """
    Queue.answered()
    wanted = known = views(runs_dir)
    if name != "all":
        found = find(runs_dir, name)
        alone = found.stage != "finetune" and found.name == name
        wanted = [found] if alone else [v for v in known if v.run_dir == found.run_dir]
    records = [_record_of(v) for v in known if v not in wanted and v.alive]
    kept = {job for record in records if record for job in read_json(record)["after"]}
    ended = [v for v in wanted if v.alive and v.job is not None and v.job not in kept]
    if ended:
        slurm("scancel", *(str(v.job) for v in ended))
    return ended


def resubmit(runs_dir: Path, name: str) -> str:
    """Submit a run's saved job script again, with the code and overrides of then; returns the new job's id."""
    with one_at_a_time(runs_dir.absolute()):
        Queue.answered()
        found = find(runs_dir, name)
        if found.alive:
            raise ToolkitError(
                f"{found.name} is {found.state} as job {found.job}. Wait for its end, or cancel it first: "
                f"python -m finetune.jobs cancel {name}"
            )
        folder = runs_dir.absolute() / attempt_record.OWN_FOLDER / f"again-{time.strftime('%Y%m%d-%H%M%S')}"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        record = _record_of(found)
        if record is None:
            return sbatch(_script_of_a_plain_job(found), [], folder)
        noted = read_json(record)
        script = (record.parent / "script.sbatch").read_text(encoding="utf-8")
        array, _, index = noted["job_id"].partition("_")
        job = sbatch(script, [f"--array={index}"] if index else [], folder)
        job_id, log = f"{job}_{index}" if index else job, noted["log"].replace(array, job)
        write_json(record, {**noted, "job_id": job_id, "log": log, "submitted": attempt_record.now(), "after": []})
        return job_id


def _record_of(found: View) -> Path | None:
    """The launcher's record of this job; None where it did not submit it."""
    records = {path: read_json(path) for path in Path(found.run_dir).glob(f"job*/{attempt_record.RECORD}")}
    asked = (found.name, found.job)
    return next((path for path, noted in records.items() if (noted["name"], noted["job_id"]) == asked), None)


def _script_of_a_plain_job(found: View) -> str:
    """For a run that was started by hand with sbatch: the same payload, code and overrides, at what they ask for."""
    run_dir = Path(found.run_dir)
    overrides = attempt_record.read_optional(run_dir / "job" / "overrides.json")
    if overrides is None or not (run_dir / "code").is_dir():
        raise ToolkitError(f"{run_dir} holds no job that could be submitted again. Start it with the launcher.")
    return render(
        ClusterConfig(**attempt_record.resolved(run_dir)["cluster"]),
        job_name=job_name_of(found.name),
        stage="finetune",
        overrides=overrides["overrides"],
        output=output_in(run_dir, "slurm-finetune-%j.out"),
        code=run_dir / "code",
    )


# -- the command -------------------------------------------------------------------------------------------------------


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
    """Carry out the command of `read`."""
    command, run, config = call
    runs_dir = Path(config.runs_dir)
    if command == "list" and config.json:
        print(json.dumps([asdict(view) for view in views(runs_dir)], indent=2))
    elif command == "list":
        show_table(views(runs_dir), runs_dir)
    elif command == "follow":
        ended = follow(runs_dir, run, config.lines, lambda text: print(text, end="", flush=True))
        print(f"{ended.name}: {ended.state}{' (' + ended.reason + ')' if ended.reason else ''}")
    elif command == "cancel":
        lines = [f"cancelled job {view.job} ({view.name})" for view in cancel(runs_dir, run)]
        print("\n".join(lines) or "no job of it is queued or running")
    else:
        job_id = resubmit(runs_dir, run)
        print(f"submitted again as job {job_id}: python -m finetune.jobs follow {run}")


def show_table(found: Sequence[View], runs_dir: Path) -> None:
    """One line a job, as wide as it needs where the output is no terminal."""
    if not found:
        print(f"no runs in {runs_dir}; runs_dir=FOLDER looks elsewhere")
        return
    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 400)
    bars = shows_bars(console, WITH_BARS)
    table = Table("run", "job", "state", "att.", "step", box=None)
    for column in (*([""] if bars else []), "samples/s", "train left", "job left", "loss", "log"):
        table.add_column(column, no_wrap=not column)
    for view in found:
        log = Path(view.log) if view.log else None
        table.add_row(
            view.name,
            view.job or "",
            f"{view.state} ({view.reason})" if view.reason else view.state,
            "" if view.attempt is None else str(view.attempt),
            f"{view.step or 0}/{view.steps}" if view.steps else "",
            *([ProgressBar(view.steps, view.step or 0, width=14) if view.steps else ""] if bars else []),
            f"{view.samples_per_second:.1f}" if view.samples_per_second else "",
            in_time(round(view.training_left)) if view.training_left is not None else "",
            view.job_left,
            f"{view.loss:.4f}" if view.loss is not None else "",
            str(log.relative_to(Path.cwd()) if log and log.is_relative_to(Path.cwd()) else log or ""),
        )
    console.print(table)


if __name__ == "__main__":
    try:
        run_main(main, "jobs", read=read)
    except BrokenPipeError:  # the reader of a pipe had enough
        sys.stderr.close()

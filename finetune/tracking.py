"""What a run says about itself: a progress bar, metrics.jsonl and status.json in the run folder, and wandb."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from finetune.attempt_token import AttemptToken
from finetune.config.schema import FinetuneConfig
from finetune.preemption import Stopped
from finetune.run_files import METRICS, STATUS
from finetune.stall import StallWatch
from gr00t.errors import ToolkitError
from gr00t.files import disk_errors, write_json

if TYPE_CHECKING:
    from finetune.artifacts import Artifacts
    from finetune.wandb_run import WandbRun

log = logging.getLogger(__name__)
REMEDY = "The last checkpoint is whole: make room and start the same command again."


class Tracker:
    """Logs one run, from entering to leaving; in a process that is not the main one every method does nothing.

    Leaving without an exception means that the run is finished, with Stopped that it goes on later, with another that
    it failed. Nothing is written once another attempt has taken the run folder over.
    """

    def __init__(
        self, config: FinetuneConfig, facts: Mapping[str, Any], *, active: bool, first_step: int, token: AttemptToken
    ) -> None:
        """facts: what the configuration does not say (dataset, base, versions, processes)."""
        self.active, self._token, self._config, self._facts = active, token, config, facts
        self._step, self._total = first_step, config.train.max_steps
        self._run_dir = Path(config.run_dir)
        self._wandb: WandbRun | None = None
        self._artifacts: Artifacts | None = None
        self.summary: dict[str, Any] = {}

    def __enter__(self) -> Tracker:
        if not self.active:
            return self
        self._console = Console(stderr=True)
        if self._config.tracking.name == "wandb":
            self._start_wandb()
        with disk_errors(self._run_dir, REMEDY):
            self._metrics = self._open_metrics(self._step)
        self._write_status("running", "")
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._progress.add_task(self._config.split.name, total=self._total, completed=self._step, note="")
        self._progress.start()
        minutes = self._config.tracking.stall_minutes
        self._stall = StallWatch(None if minutes is None else 60 * minutes, self._on_stall)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self.active:
            return
        self._stall.close()
        self._progress.stop()
        self._metrics.close()
        status, reason = _ending(error)
        if self._writes():
            self._write_status(status, reason)
        if self._wandb is not None:
            if status != "stopped":  # what is stopped goes on, and would be told of at each requeue
                self._alert(f"{self._config.split.name} {status}", reason or f"after {self._step} steps", status)
            self._wandb.close(status, self.summary)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Record what training measured up to `step` optimizer steps."""
        if not self._writes():
            return
        self._record(step, metrics, {f"train/{name}": value for name, value in metrics.items()})
        note = f"loss {metrics['loss']:.4f}  {metrics['samples_per_second']:.1f} samples/s"
        self._progress.update(self._task, note=note)
        if not self._console.is_terminal:  # a log file: lines instead of a bar
            waiting = metrics["data_wait_seconds"]
            self._say(f"step {step}/{self._total}  {note}  waited {waiting:.1f} s for data")

    def log_evaluation(self, step: int, values: dict[str, float], pictures: Mapping[str, Path], said: str) -> None:
        """Record an evaluation after `step` steps: values by name ("val/..."), pictures, and a line for people."""
        self.alive()
        if not self._writes():
            return
        self._record(step, values, values)
        for name, picture in pictures.items():
            self.show(step, name, picture, f"step {step}")
        self._say(f"step {step}/{self._total}  {said}")

    def show(self, step: int, name: str, picture: Path, caption: str) -> None:
        """A picture of the run folder, for wandb."""
        if self._wandb is not None:
            self._wandb.show(step, name, picture, caption)

    def advance(self, step: int) -> None:
        """One more step is done."""
        if self.active:
            self._step = step
            self.alive()
            self._progress.update(self._task, completed=step)

    def alive(self) -> None:
        """The run gets on, though no step is done: a part of an evaluation is."""
        if self.active:
            self._stall.beat()

    def checkpoint_written(self, folder: Path, *, best: bool) -> None:
        """A checkpoint to resume from is on the disk; best: of all that were evaluated."""
        if self._artifacts is not None and self._wandb is not None and self._writes() and folder.is_dir():
            self._wandb.made(self._artifacts.checkpoint(folder), ["latest", *(["best"] if best else [])])

    def released(self, folder: Path, step: int) -> None:
        """The finished checkpoint is on the disk, made of the weights after `step` steps."""
        if self._artifacts is not None and self._wandb is not None and self._writes():
            self._wandb.made(self._artifacts.policy(folder, step), ["latest", f"step-{step}"])

    def _writes(self) -> bool:
        return self.active and self._token.is_ours()

    def _record(self, step: int, line: Mapping[str, float], values: Mapping[str, float]) -> None:
        with disk_errors(self._run_dir, REMEDY):
            self._metrics.write(json.dumps({"step": step, **line}) + "\n")
            self._metrics.flush()
        if self._wandb is not None:
            self._wandb.log(step, values)

    def _say(self, text: str) -> None:
        self._console.print(text, highlight=False, soft_wrap=True)

    def _start_wandb(self) -> None:
        from finetune.artifacts import Artifacts  # wandb takes a second to import
        from finetune.wandb_run import WandbRun

        self._wandb = WandbRun(self._config, self._facts, dataclasses.asdict(self._config))
        if self._config.tracking.artifacts != "none":
            self._artifacts = Artifacts(self._config)
            self._wandb.used(self._artifacts.dataset(self._facts["dataset"]))
            self._wandb.used(self._artifacts.base(self._facts["base"]))

    def _write_status(self, status: str, reason: str) -> None:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        with disk_errors(self._run_dir, REMEDY):
            write_json(self._run_dir / STATUS, {"status": status, "reason": reason, "step": self._step, "written": now})

    def _on_stall(self, seconds: float) -> None:
        done = f"{self._step} of {self._total} steps are done"
        text = f"no step and no part of an evaluation for {seconds / 60:.0f} minutes; {done}"
        log.warning("%s: %s", self._run_dir, text)
        if self._wandb is not None and self._writes():
            self._alert(f"{self._config.split.name} stalls", text, "stalls")

    def _alert(self, title: str, text: str, status: str) -> None:
        levels = {"finished": "INFO", "stalls": "WARN"}
        if self._wandb is not None and self._writes():
            self._wandb.alert(title, text, levels.get(status, "ERROR"))

    def _open_metrics(self, first_step: int) -> Any:
        """metrics.jsonl, cut back to the step from which the run goes on."""
        path = self._run_dir / METRICS
        kept: list[str] = []
        if path.is_file() and first_step:
            for line in path.read_text().splitlines():
                try:
                    if json.loads(line)["step"] <= first_step:
                        kept.append(line)
                except (ValueError, KeyError):  # the line a killed run was writing
                    continue
        rest = path.with_name(f".{path.name}")
        rest.write_text("".join(line + "\n" for line in kept))
        rest.replace(path)  # a full disk leaves the lines that are there
        return path.open("a")


def _ending(error: BaseException | None) -> tuple[str, str]:
    """How a run ended, and why in words that may be shown to others."""
    if error is None:
        return "finished", ""
    if isinstance(error, Stopped):
        return "stopped", str(error)
    return "failed", str(error) if isinstance(error, ToolkitError) else type(error).__name__

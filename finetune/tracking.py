"""What a run says about itself: a progress bar, metrics.jsonl in the run folder, and wandb."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from finetune.attempt_token import AttemptToken
from finetune.config.schema import FinetuneConfig
from finetune.wandb_start import start_run
from gr00t.files import disk_errors, read_json, write_json

REMEDY = "The last checkpoint is whole: make room and start the same command again."


class Tracker:
    """Logs one run; in a process that is not the main one every method does nothing.

    The wandb run id is kept in run.json, so that a resumed run goes on in the same wandb run.
    """

    def __init__(
        self, config: FinetuneConfig, resolved: dict[str, Any], *, active: bool, first_step: int, token: AttemptToken
    ) -> None:
        self.active, self._token = active, token
        self._wandb: Any = None
        if not active:
            return
        self._run_dir = Path(config.run_dir)
        self._console = Console(stderr=True)
        self._total = config.train.max_steps
        with disk_errors(self._run_dir, REMEDY):
            self._metrics = self._open_metrics(first_step)
        if config.tracking.name == "wandb":
            self._wandb = _start_wandb(config, resolved, self._run_dir)
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._progress.add_task(config.split.name, total=self._total, completed=first_step, note="")
        self._progress.start()

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Record metrics after `step` optimizer steps."""
        if not self.active or not self._token.is_ours():
            return
        with disk_errors(self._run_dir, REMEDY):
            self._metrics.write(json.dumps({"step": step, **metrics}) + "\n")
            self._metrics.flush()
        note = f"loss {metrics['loss']:.4f}  {metrics['samples_per_second']:.1f} samples/s"
        self._progress.update(self._task, note=note)
        if not self._console.is_terminal:  # a log file: lines instead of a bar
            waiting = metrics["data_wait_seconds"]
            self._console.print(f"step {step}/{self._total}  {note}  waited {waiting:.1f} s for data", highlight=False)
        if self._wandb is not None:
            self._wandb.log({f"train/{k}": v for k, v in metrics.items()}, step=step)

    def advance(self, step: int) -> None:
        if self.active:
            self._progress.update(self._task, completed=step)

    def finish(self, summary: dict[str, Any] | None = None, *, failed: bool = False) -> None:
        if not self.active:
            return
        self._progress.stop()
        self._metrics.close()
        if self._wandb is not None:
            for key, value in (summary or {}).items():
                self._wandb.summary[key] = value
            self._wandb.finish(exit_code=1 if failed else 0)

    def _open_metrics(self, first_step: int) -> Any:
        """metrics.jsonl, cut back to the step from which the run goes on."""
        path = self._run_dir / "metrics.jsonl"
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


def _start_wandb(config: FinetuneConfig, resolved: dict[str, Any], run_dir: Path) -> Any:
    identity = run_dir / "run.json"
    run_id = read_json(identity)["wandb_id"] if identity.is_file() else uuid.uuid4().hex[:12]
    write_json(identity, {"wandb_id": run_id, "project": config.tracking.project})
    return start_run(config.tracking, run_dir, id=run_id, resume="allow", config=resolved)

"""What a run says about itself: a progress bar, metrics.jsonl and status.json in the run folder, and a tracker.

Datasets and checkpoints are wandb artifacts, so that lineage can be followed: which data and base made which weights.
By default an artifact is a short JSON file of hashes and sizes, which costs nothing where a checkpoint has 16 GB."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import re
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.recipe import FinetuneConfig, datasets
from finetune.training import ARTIFACTS, METRICS, STATUS, WANDB_RUN, as_tracked, logged, measurement
from finetune.training.checkpointing import Best
from finetune.training.stopping import Stopped, ThisAttempt, again
from gr00t.errors import ToolkitError, disk_errors
from gr00t.file_reading import files_below, read_json
from gr00t.file_replacement import write_json, write_text
from gr00t.model.finished_checkpoint import MANIFEST
from toolkit.progress import NOTE, progress_bar
from toolkit.trackers import TrackedRun, open_run

if TYPE_CHECKING:
    import wandb

_RUN_ID = re.compile(r"[\w-]{1,64}")
LONGEST_TAG = 64  # what wandb takes

log = logging.getLogger(__name__)


class Tracker:
    """Logs one run, from entering to leaving: without an exception the run is finished, with Stopped it resumes later,
    with another it failed. Processes other than the main one, or superseded ones, write nothing.
    """

    def __init__(self, attempt: ThisAttempt, facts: Mapping[str, Any]) -> None:
        """facts: what the configuration does not say (dataset, base, versions, processes)."""
        self.active, self._attempt, self._config = attempt.engine.is_main, attempt, attempt.config
        self._facts = facts
        self._step, self._total = attempt.step, self._config.train.max_steps
        self._run_dir = Path(self._config.run_dir)
        self._run = TrackedRun()
        self._artifacts: Artifacts | None = None
        self.summary: dict[str, Any] = {}

    def __enter__(self) -> Tracker:
        if not self.active:
            return self
        self._progress = progress_bar(NOTE)
        self._say = partial(self._progress.console.print, highlight=False, soft_wrap=True)
        with self._disk_errors():
            self._run = self._start_tracker()
        try:
            with self._disk_errors():
                self._metrics = self._open_metrics()
            self._write_status("running", "")
        except BaseException:
            self._run.end("failed", {})
            raise
        self._task = self._progress.add_task(self._config.split.name, total=self._total, completed=self._step, note="")
        self._progress.start()
        minutes = self._config.tracking.stall_minutes
        self._stall = StallWatch(None if minutes is None else 60 * minutes, self._on_stall)
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if not self.active:
            return
        self._stall.close()
        self._progress.stop()
        status, reason = "finished", f"after {self._step} steps"
        if error is not None:  # the reason in words that may be shown to others
            status = "stopped" if isinstance(error, Stopped) else "failed"
            reason = str(error) if isinstance(error, Stopped | ToolkitError) else type(error).__name__
        try:
            self._metrics.close()
            if self._attempt.writes:
                self._write_status(status, reason if error else "")
            if status != "stopped":  # it resumes later, and an alert at each requeue would be too many
                self._alert(status, reason, "INFO" if status == "finished" else "ERROR")
        finally:
            self._run.end(status, self.summary)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Record what training measured up to `step` optimizer steps."""
        if not self._attempt.writes:
            return
        self._record(step, metrics)
        note = f"loss {metrics['loss']:.4f}  {metrics['samples_per_second']:.1f} samples/s"
        self._progress.update(self._task, note=note)
        if not self._progress.console.is_terminal:  # a log file: lines instead of a bar
            waiting = metrics["data_wait_seconds"]
            self._say(f"step {step}/{self._total}  {note}  waited {waiting:.1f} s for data")

    def log_copies(self, seconds: float) -> None:
        """Record how long the data was copied to the node's disk, before the first step of this attempt."""
        if self._attempt.writes:
            self._record(self._step, {"copy_seconds": seconds})

    def log_evaluation(self, step: int, values: dict[str, float], images: Mapping[str, Path], said: str) -> None:
        """Record an evaluation after `step` steps: values by name ("val/..."), images, and a line for people."""
        self.alive()
        if not self._attempt.writes:
            return
        self._record(step, values)
        for name, path in images.items():
            self.show(step, name, path, f"step {step}")
        self._say(f"step {step}/{self._total}  {said}")

    def show(self, step: int, name: str, path: Path, caption: str) -> None:
        """An image of the run folder, copied into the tracker's run."""
        with self._disk_errors():
            self._run.show(step, name, path, caption)

    def advance(self, step: int) -> None:
        """One more step is done."""
        if self.active:
            self._step = step
            self.alive()
            self._progress.update(self._task, completed=step)

    def alive(self) -> None:
        """The run advances, though no step is done: a part of an evaluation is."""
        if self.active:
            self._stall.beat()

    def checkpoint_written(self, folder: Path, *, best: bool) -> None:
        """A checkpoint to resume from is on the disk; best: of all that were evaluated."""
        if self._artifacts is not None and self._attempt.writes and folder.is_dir():
            aliases = ["latest", "best"] if best else ["latest"]
            self._run.add_artifact(self._artifacts.checkpoint(folder), aliases)

    def released(self, folder: Path, step: int) -> None:
        """The finished checkpoint is on the disk, made of the weights after `step` steps."""
        if self._artifacts is not None and self._attempt.writes:
            self._run.add_artifact(self._artifacts.policy(folder, step), ["latest", f"step-{step}"])

    def _disk_errors(self) -> AbstractContextManager[None]:
        remedy = f"The last checkpoint is whole: make room and start {again(self._config)} again."
        return disk_errors(self._run_dir, remedy)

    def _record(self, step: int, values: dict[str, float]) -> None:
        with self._disk_errors():
            self._metrics.write(json.dumps({"step": step, **values}) + "\n")
            self._metrics.flush()
            self._run.log(step, as_tracked(values))

    def _start_tracker(self) -> TrackedRun:
        """Start a run, or continue the folder's own (for wandb the one that WANDB_RUN names), and say what it reads."""
        tracking, named, of_wandb = self._config.tracking, self._run_dir / WANDB_RUN, dict[str, Any]()
        if tracking.name == "wandb":
            run_id = read_json(named).get("wandb_id") if named.is_file() else uuid.uuid4().hex[:12]
            if not isinstance(run_id, str) or not _RUN_ID.fullmatch(run_id):
                problem = f"{named}: wandb_id is {run_id!r:.60}."
                raise ToolkitError(f"{problem} Write the wandb run's id, or remove the file.")
            write_json(named, {"wandb_id": run_id, "project": tracking.project})
            of_wandb = {"id": run_id, "resume": "allow", "tags": run_tags(self._config)}
        config = {**dataclasses.asdict(self._config), "run": dict(self._facts)}
        run = open_run(tracking, self._run_dir, config, first=self._step and self._step + 1, **of_wandb)
        if tracking.name == "wandb" and tracking.artifacts != "none":
            self._artifacts = Artifacts(self._config)
            run.add_artifact(self._artifacts.dataset(self._facts["dataset"]))
            run.add_artifact(self._artifacts.base(self._facts["base"]))
        return run

    def _write_status(self, status: str, reason: str) -> None:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        with self._disk_errors():
            write_json(self._run_dir / STATUS, {"status": status, "reason": reason, "step": self._step, "written": now})

    def _on_stall(self, seconds: float) -> None:
        text = f"no step and no part of an evaluation for {seconds / 60:.0f} minutes; "
        text += f"{self._step} of {self._total} steps are done"
        log.warning("%s: %s", self._run_dir, text)
        self._alert("stalls", text, "WARN")

    def _alert(self, what: str, text: str, level: str) -> None:
        """A message to whoever follows the run, as they chose in wandb (mail, Slack)."""
        if self._attempt.writes:
            self._run.alert(f"{self._config.split.name} {what}"[:63], text, level)

    def _open_metrics(self) -> Any:
        """metrics.jsonl, cut back to the step from which the run resumes."""
        path = self._run_dir / METRICS
        lines = logged(path) if path.is_file() and self._step else ()
        # infinite: of the line a killed run was writing
        kept = [line for line in lines if (measurement(line) or (math.inf,))[0] <= self._step]
        write_text(path, "".join(line.decode().rstrip() + "\n" for line in kept))
        return path.open("a")


class StallWatch:
    """Calls `on_stall` in a thread, with the seconds since the last `beat`, when they exceed `limit_seconds`: once for
    each standstill, and never where that is None."""

    def __init__(self, limit_seconds: float | None, on_stall: Callable[[float], None]) -> None:
        self._limit, self._on_stall = limit_seconds, on_stall
        self._timer: threading.Timer | None = None
        self.beat()

    def beat(self) -> None:
        self.close()
        if self._limit is not None:
            begin = time.monotonic()
            self._timer = threading.Timer(self._limit, lambda: self._on_stall(time.monotonic() - begin))
            self._timer.daemon = True
            self._timer.start()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer.join()


class Artifacts:
    """The artifacts of one run, holding what `tracking.artifacts` says. Folders in them are as the user wrote them."""

    def __init__(self, config: FinetuneConfig) -> None:
        self._config = config

    def dataset(self, described: Mapping[str, Any]) -> wandb.Artifact:
        """What is trained on, as `describe_datasets` has it: of a mixture, each dataset in a folder of its own."""
        folders = [part.folder for part in datasets(self._config)]
        uploaded = {"": folders[0]}
        if len(folders) > 1:
            described = {"folders": [str(folder) for folder in folders], **described}
            uploaded = {f"{number}/": folder for number, folder in enumerate(folders)}
        return self._make(f"{self._config.split.name}-dataset", "dataset", folders[0], described, uploaded)

    def base(self, fingerprint: str) -> wandb.Artifact:
        base = Path(self._config.model.base)
        return self._make(f"{base.name}-base", "model", base, {"fingerprint": fingerprint}, {})

    def checkpoint(self, folder: Path) -> wandb.Artifact:
        """A checkpoint to resume from, by the hashes of its manifest. Only this run reads it: it is not uploaded."""
        state, hashes = read_json(folder / "state.json"), read_json(folder / "manifest.json")
        files = {name: {"sha256": sha, "bytes": (folder / name).stat().st_size} for name, sha in hashes.items()}
        best = Best.restored(state)
        metric = {best.name: best.metric} if best.step == state["step"] else {}
        described = {"step": state["step"], "files": files, **metric}
        return self._make(f"{self._config.split.name}-training-state", "training-state", folder, described, {})

    def policy(self, folder: Path, step: int) -> wandb.Artifact:
        """The finished checkpoint, by the hashes of its manifest."""
        described = {"step": step, **read_json(folder / MANIFEST)}
        return self._make(f"{self._config.split.name}-policy", "model", folder, described, {"": folder})

    def _make(
        self, name: str, kind: str, folder: Path, described: Mapping[str, Any], uploaded: Mapping[str, Path]
    ) -> wandb.Artifact:
        """`uploaded`: folders whose files it may hold, by what their names then begin with."""
        import wandb

        metadata = {name: value for name, value in described.items() if not isinstance(value, dict | list)}
        artifact = wandb.Artifact(re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:128], type=kind, metadata=metadata)
        notes = Path(self._config.run_dir) / ARTIFACTS
        notes.mkdir(exist_ok=True)
        note = notes / f"{artifact.name}-{folder.name}.json"
        write_json(note, {"folder": str(folder), **described})
        files = {"reference.json": note}
        for below, root in uploaded.items() if self._config.tracking.artifacts == "upload" else ():
            inside = sorted(path for path in files_below(root) if path.is_file())
            files |= {f"{below}{path.relative_to(root)}": path for path in inside}
        for inside_name, path in files.items():  # "immutable": wandb makes no copy in the user's home
            artifact.add_file(str(path), name=inside_name, policy="immutable", skip_cache=True)
        return artifact


def run_tags(config: FinetuneConfig) -> list[str]:
    """Split, cluster ("local" outside of SLURM) and engine, then the user's own."""
    cluster = os.environ.get("SLURM_CLUSTER_NAME", "slurm") if "SLURM_JOB_ID" in os.environ else "local"
    tags = [config.split.name, cluster, config.engine.name, *config.tracking.tags]
    return list(dict.fromkeys(tag[:LONGEST_TAG] for tag in tags))

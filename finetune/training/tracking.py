"""What a run says about itself: a progress bar, metrics.jsonl and status.json in the run folder, and wandb.

Offline, all of wandb lies in run_dir/wandb, and `wandb sync` sends it later. Datasets and checkpoints are wandb
artifacts, so that lineage can be followed: which data and base made which weights. By default an artifact is a short
JSON file of hashes and sizes, which proves which files they were and costs nothing where a checkpoint has 16 GB."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import re
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from finetune.recipe import FinetuneConfig, datasets
from finetune.training import ARTIFACTS, METRICS, STATUS
from finetune.training.checkpointing import Best
from finetune.training.stopping import AttemptToken, Stopped
from gr00t.errors import ToolkitError, disk_errors
from gr00t.file_replacement import file_sha256, read_json, write_json
from toolkit.progress import NOTE, progress_bar
from toolkit.wandb_session import start_run

if TYPE_CHECKING:
    import wandb

LONGEST_TAG = 64  # what wandb takes
REMEDY = "The last checkpoint is whole: make room and start the same command again."

log = logging.getLogger(__name__)


class Tracker:
    """Logs one run, from entering to leaving; in a process that is not the main one every method does nothing.

    Leaving without an exception means that the run is finished, with Stopped that it resumes later, with another that
    it failed. Nothing is written once another attempt has taken the run folder over.
    """

    def __init__(
        self, config: FinetuneConfig, facts: Mapping[str, Any], *, active: bool, first_step: int, token: AttemptToken
    ) -> None:
        """facts: what the configuration does not say (dataset, base, versions, processes)."""
        self.active, self._token, self._config, self._facts = active, token, config, facts
        self._step, self._total = first_step, config.train.max_steps
        self._run_dir = Path(config.run_dir)
        self._wandb: Any = None  # wandb's own run
        self._artifacts: Artifacts | None = None
        self.summary: dict[str, Any] = {}

    def __enter__(self) -> Tracker:
        if not self.active:
            return self
        self._progress = progress_bar(NOTE)
        self._console = self._progress.console
        if self._config.tracking.name == "wandb":
            self._start_wandb()
        with disk_errors(self._run_dir, REMEDY):
            self._metrics = self._open_metrics(self._step)
        self._write_status("running", "")
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
        status, reason = "finished", ""
        if error is not None:  # the reason in words that may be shown to others
            status = "stopped" if isinstance(error, Stopped) else "failed"
            reason = str(error) if isinstance(error, Stopped | ToolkitError) else type(error).__name__
        if self._writes():
            self._write_status(status, reason)
        if self._wandb is None:
            return
        if status != "stopped":  # that resumes later, and an alert at each requeue would be too many
            level = "INFO" if status == "finished" else "ERROR"
            self._alert(f"{self._config.split.name} {status}", reason or f"after {self._step} steps", level)
        self._wandb.summary.update({**self.summary, "status": status})
        if status == "stopped":
            self._wandb.mark_preempting()
        self._wandb.finish(exit_code=0 if status == "finished" else 1)

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

    def log_evaluation(self, step: int, values: dict[str, float], images: Mapping[str, Path], said: str) -> None:
        """Record an evaluation after `step` steps: values by name ("val/..."), images, and a line for people."""
        self.alive()
        if not self._writes():
            return
        self._record(step, values, values)
        for name, path in images.items():
            self.show(step, name, path, f"step {step}")
        self._say(f"step {step}/{self._total}  {said}")

    def show(self, step: int, name: str, path: Path, caption: str) -> None:
        """An image of the run folder, copied into the wandb run."""
        if self._wandb is not None:
            import wandb

            self._wandb.log({name: wandb.Image(str(path), caption=caption)}, step=step)

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
        if self._artifacts is not None and self._writes() and folder.is_dir():
            self._wandb.log_artifact(
                self._artifacts.checkpoint(folder), aliases=["latest", "best"] if best else ["latest"]
            )

    def released(self, folder: Path, step: int) -> None:
        """The finished checkpoint is on the disk, made of the weights after `step` steps."""
        if self._artifacts is not None and self._writes():
            self._wandb.log_artifact(self._artifacts.policy(folder, step), aliases=["latest", f"step-{step}"])

    def _writes(self) -> bool:
        return self.active and self._token.is_ours()

    def _record(self, step: int, line: Mapping[str, float], values: Mapping[str, float]) -> None:
        with disk_errors(self._run_dir, REMEDY):
            self._metrics.write(json.dumps({"step": step, **line}) + "\n")
            self._metrics.flush()
        if self._wandb is not None:
            self._wandb.log(dict(values), step=step)

    def _say(self, text: str) -> None:
        self._console.print(text, highlight=False, soft_wrap=True)

    def _start_wandb(self) -> None:
        """Start a run, or continue the one that run.json names, and record what it reads."""
        tracking, named = self._config.tracking, self._run_dir / "run.json"
        run_id = read_json(named)["wandb_id"] if named.is_file() else uuid.uuid4().hex[:12]
        write_json(named, {"wandb_id": run_id, "project": tracking.project})
        config = as_typed({**dataclasses.asdict(self._config), "run": dict(self._facts)})
        tags = run_tags(self._config)
        self._wandb = start_run(tracking, self._run_dir, id=run_id, resume="allow", tags=tags, config=config)
        if tracking.artifacts != "none":
            self._artifacts = Artifacts(self._config)
            for read in (self._artifacts.dataset(self._facts["dataset"]), self._artifacts.base(self._facts["base"])):
                # use_artifact refuses an offline run, whose record can say it all the same
                self._wandb._log_artifact(read, is_user_created=True, use_after_commit=True)

    def _write_status(self, status: str, reason: str) -> None:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        with disk_errors(self._run_dir, REMEDY):
            write_json(self._run_dir / STATUS, {"status": status, "reason": reason, "step": self._step, "written": now})

    def _on_stall(self, seconds: float) -> None:
        done = f"{self._step} of {self._total} steps are done"
        text = f"no step and no part of an evaluation for {seconds / 60:.0f} minutes; {done}"
        log.warning("%s: %s", self._run_dir, text)
        if self._wandb is not None:
            self._alert(f"{self._config.split.name} stalls", text, "WARN")

    def _alert(self, title: str, text: str, level: str) -> None:
        """A message to whoever follows the run, as they chose in wandb (mail, Slack)."""
        if self._writes():
            self._wandb.alert(title[:63], text, level)

    def _open_metrics(self, first_step: int) -> Any:
        """metrics.jsonl, cut back to the step from which the run resumes."""
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


class StallWatch:
    """A thread that calls `on_stall` with the seconds since the last `beat` when they exceed `limit_seconds`; once for
    each standstill. A limit of None watches nothing."""

    def __init__(self, limit_seconds: float | None, on_stall: Callable[[float], None]) -> None:
        self._on_stall = on_stall
        self._last, self._reported = time.monotonic(), False
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        if limit_seconds is not None:
            watch = threading.Thread(target=self._watch, args=(limit_seconds,), name="stall watch", daemon=True)
            self._thread = watch
            self._thread.start()

    def beat(self) -> None:
        """The run advances."""
        self._last, self._reported = time.monotonic(), False

    def close(self) -> None:
        """End the thread."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self, limit: float) -> None:
        while not self._ended.wait(min(limit / 4, 10.0)):
            silence = time.monotonic() - self._last
            if silence > limit and not self._reported:
                self._reported = True
                self._on_stall(silence)


class Artifacts:
    """The artifacts of one run, holding what `tracking.artifacts` says. Folders in them are as the user wrote them."""

    def __init__(self, config: FinetuneConfig) -> None:
        self._config, self._uploads = config, config.tracking.artifacts == "upload"

    def dataset(self, described: Mapping[str, Any]) -> wandb.Artifact:
        """What is trained on, as `describe_datasets` has it: of a mixture, each dataset in a folder of its own."""
        folders = [part.folder for part in datasets(self._config)]
        several = len(folders) > 1
        if several:
            described = {"folders": [str(folder) for folder in folders], **described}
        artifact = self._make(f"{self._config.split.name}-dataset", "dataset", folders[0], described)
        for number, folder in enumerate(folders):
            self._add_files(artifact, folder, f"{number}/" if several else "")
        return artifact

    def base(self, fingerprint: str) -> wandb.Artifact:
        """The base checkpoint."""
        base = Path(self._config.model.base)
        return self._make(f"{base.name}-base", "model", base, {"fingerprint": fingerprint})

    def checkpoint(self, folder: Path) -> wandb.Artifact:
        """A checkpoint to resume from, by the hashes of its manifest. Only this run reads it: it is not uploaded."""
        state, files = read_json(folder / "state.json"), _sizes(folder, read_json(folder / "manifest.json"))
        best = Best.restored(state)
        metric = {best.name: best.metric} if best.step == state["step"] else {}
        described = {"step": state["step"], "files": files, **metric}
        return self._make(f"{self._config.split.name}-training-state", "training-state", folder, described)

    def policy(self, folder: Path, step: int) -> wandb.Artifact:
        """The finished checkpoint."""
        found = sorted(p for p in folder.rglob("*") if p.is_file())
        files = _sizes(folder, {str(p.relative_to(folder)): file_sha256(p) for p in found})
        described = {"step": step, "files": files}
        artifact = self._make(f"{self._config.split.name}-policy", "model", folder, described)
        self._add_files(artifact, folder, "")
        return artifact

    def _make(self, name: str, kind: str, folder: Path, described: Mapping[str, Any]) -> wandb.Artifact:
        import wandb

        metadata = {name: value for name, value in described.items() if not isinstance(value, dict | list)}
        artifact = wandb.Artifact(re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:128], type=kind, metadata=metadata)
        notes = Path(self._config.run_dir) / ARTIFACTS
        notes.mkdir(exist_ok=True)
        note = notes / f"{artifact.name}-{folder.name}.json"
        write_json(note, {"folder": str(folder), **described})
        # "immutable": wandb makes no copy in the user's home
        artifact.add_file(str(note), name="reference.json", policy="immutable", skip_cache=True)
        return artifact

    def _add_files(self, artifact: wandb.Artifact, folder: Path, below: str) -> None:
        for path in sorted(folder.rglob("*")) if self._uploads else []:
            inside = path.relative_to(folder)
            if path.is_file() and not inside.parts[0].startswith("."):
                artifact.add_file(str(path), name=f"{below}{inside}", policy="immutable", skip_cache=True)


def _sizes(folder: Path, hashes: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    return {name: {"sha256": digest, "bytes": (folder / name).stat().st_size} for name, digest in hashes.items()}


def run_tags(config: FinetuneConfig) -> list[str]:
    """Split, cluster ("local" outside of SLURM) and engine, then the user's own."""
    cluster = os.environ.get("SLURM_CLUSTER_NAME", "slurm") if "SLURM_JOB_ID" in os.environ else "local"
    tags = [config.split.name, cluster, config.engine.name, *config.tracking.tags]
    return list(dict.fromkeys(tag[:LONGEST_TAG] for tag in tags))


def as_typed(values: Any) -> Any:
    """Texts with this user's home folder written ~ again, as in the configuration: no path of a machine is logged."""
    if isinstance(values, dict):
        return {name: as_typed(value) for name, value in values.items()}
    if isinstance(values, list):
        return [as_typed(value) for value in values]
    home = os.path.expanduser("~")
    if isinstance(values, str) and (values == home or values.startswith(home + os.sep)):
        return "~" + values[len(home) :]
    return values

"""Send what a run has measured to a tracker, also one that was not chosen when it was trained.

python -m finetune.send_metrics runs/color_object tracking=wandb"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from finetune.training import (
    METRICS,
    RUN_CONFIG,
    SENT,
    STATUS,
    WANDB_RUN,
    as_tracked,
    logged,
    measurement,
    read_optional,
)
from gr00t.errors import ToolkitError, near_folder
from gr00t.file_replacement import file_lock, write_json
from toolkit.command_line import run_main
from toolkit.configuration import load_with_words
from toolkit.declaration import key
from toolkit.shared_keys import TrackingConfig
from toolkit.trackers import TENSORBOARD, WandbRun, check_tracking, chosen_mode, open_run, steps_in_tensorboard

Steps = dict[int, dict[str, float]]  # numbers by name, by step in ascending order


@dataclass(kw_only=True)
class SendMetricsConfig:
    """Send what runs have measured (RUN/metrics.jsonl) to wandb or TensorBoard, under the names that training logs.

    Only what is missing there is sent, so that it can be repeated while a run trains.
    """

    tracking: TrackingConfig = key("where the measurements are sent")
    new_run: bool = key("wandb: send everything, as another run than the one that was logged or sent before", False)

    def check_here(self) -> None:
        """Refuse to send nowhere (tracking=none may be a site's default), and a tracker that is not installed."""
        if self.tracking.name == "none":
            raise ToolkitError("tracking=none sends nothing. Choose one: tracking=wandb, or tracking=tensorboard.")
        check_tracking(self.tracking)


def read_steps(run_dir: Path) -> Steps:
    """What a run measured; a step that was done again after a resume counts once, as it was done last.

    Raises ToolkitError where there is nothing, and for a damaged line, unless it is the one that is being written.
    """
    path, steps = run_dir / METRICS, Steps()
    if not path.is_file():
        raise ToolkitError(
            f"{run_dir} is no run folder, or its run has logged nothing yet (it has no {METRICS}). Give the run_dir of "
            f"a fine-tune.{near_folder(run_dir)}"
        )
    for number, line in enumerate(logged(path), 1):
        found = measurement(line)
        if found is None and line.strip() and line.endswith(b"\n"):  # else it is being written
            raise ToolkitError(f"{path}, line {number} is damaged. Remove that line, and send again.")
        step, values = found or (0, {})
        if values:
            steps = {known: numbers for known, numbers in steps.items() if known <= step}
            steps[step] = steps.get(step, {}) | as_tracked(values)
    if not steps:
        raise ToolkitError(f"{path} holds no measurement yet. Send it after train.log_steps steps.")
    return steps


def send(run_dir: Path, config: SendMetricsConfig) -> str:
    """Send what is missing; what was done, in a sentence."""
    steps, settings = read_steps(run_dir), read_optional(run_dir / RUN_CONFIG) or {}
    with file_lock(run_dir / SENT, required=False):
        to = _to_tensorboard if config.tracking.name == "tensorboard" else _to_wandb
        return to(run_dir, steps, config, settings)


def _to_tensorboard(run_dir: Path, steps: Steps, config: SendMetricsConfig, settings: dict[str, Any]) -> str:
    """From the first step on of which a number is missing: TensorBoard takes steps in ascending order."""
    shown, where = steps_in_tensorboard(run_dir), f"tensorboard --logdir {run_dir / TENSORBOARD}"
    missing = [step for step, values in steps.items() if any(step not in shown.get(name, ()) for name in values)]
    if not missing:
        return f"nothing is missing: all {len(steps)} logged steps are there already ({where})"
    left = {step: values for step, values in steps.items() if step >= missing[0]}
    with open_run(config.tracking, run_dir, settings, first=missing[0]) as run:
        for step, values in left.items():
            run.log(step, values)
    return f"{len(left)} logged steps sent: {where}"


def _to_wandb(run_dir: Path, steps: Steps, config: SendMetricsConfig, settings: dict[str, Any]) -> str:
    """All after the last step that was sent."""
    tracking, run_id, last = _wandb_run(run_dir, config)
    status = str((read_optional(run_dir / STATUS) or {}).get("status", "finished"))
    later = _evaluated_now(steps, settings) if status == "running" else None
    waits = "" if later is None else f"; step {later} waits for its evaluation: send it again then"
    left = {step: values for step, values in steps.items() if step > last and step != later}
    if not left and last < 0:
        return f"nothing is sent yet{waits}"
    if not left:
        count = len(steps) - (later is not None)
        return f"nothing is missing: all {count} logged steps were sent as the wandb run {run_id}{waits}"
    split, own = (settings.get(name) or {} for name in ("split", "tracking"))
    named: Any = {"id": run_id, "resume": "allow", "group": tracking.group or own.get("group")}
    named["name"] = tracking.run_name or own.get("run_name") or run_dir.absolute().name
    named["tags"] = [str(tag) for tag in (split.get("name"), *tracking.tags) if tag]
    run = open_run(tracking, run_dir, settings, **named)
    assert isinstance(run, WandbRun)
    sent = {"wandb_id": run_id, "project": tracking.project, "step": last}
    write_json(run_dir / SENT, sent)  # whatever ends this process, the rest goes to the same run
    try:
        for step, values in left.items():
            run.log(step, values)
            last = step
    finally:
        run.end("stopped" if status == "running" else status, {})
        write_json(run_dir / SENT, {**sent, "step": last})
    kept = f", kept offline: wandb sync {run_dir / 'wandb'}" if run.offline else ""
    return f"{len(left)} logged steps sent as the wandb run {run_id} of {tracking.project}{kept}{waits}"


def _evaluated_now(steps: Steps, settings: dict[str, Any]) -> int | None:
    """The newest step, where its evaluation is still to come: wandb takes no more numbers of a step that it has."""
    newest, every = max(steps), (settings.get("train") or {}).get("eval_steps")
    is_due = isinstance(every, int) and newest and newest % every == 0
    return newest if is_due and not any(name.startswith("val/") for name in steps[newest]) else None


def _wandb_run(run_dir: Path, config: SendMetricsConfig) -> tuple[TrackingConfig, str, int]:
    """Where to send: the tracker with its mode, a run's id, and the last step that was sent to it (-1: none)."""
    tracking, mode = config.tracking, chosen_mode(config.tracking)[0]
    sent, logged = (read_optional(run_dir / name) or {} for name in (SENT, WANDB_RUN))
    if mode not in ("online", "offline"):
        raise ToolkitError(f"WANDB_MODE={mode} keeps nothing. Unset it, or give tracking.mode=offline.")
    if not config.new_run and sent.get("project") == tracking.project:
        run_id = str(sent["wandb_id"])
        offline = [path for path in (run_dir / "wandb").glob("offline-run-*") if path.name.endswith(f"-{run_id}")]
        if not all(any(folder.glob("*.synced")) for folder in offline):
            mode = "offline"  # wandb takes a run's steps in their order: what is kept here goes to the server first
        return replace(tracking, mode=mode), run_id, int(sent["step"])
    if not config.new_run and logged.get("project") == tracking.project:
        raise ToolkitError(
            f"{run_dir} logged to wandb while it trained, as the run {logged.get('wandb_id')}. What was kept offline, "
            f"images included, is sent with: wandb sync {run_dir / 'wandb'}. To send all as another run: new_run=true."
        )
    return tracking, uuid.uuid4().hex[:12], -1


def read(arguments: Sequence[str]) -> tuple[list[Path], SendMetricsConfig]:
    """`RUN [RUN ...] [key=value ...]` as run folders and configuration."""
    words, config = load_with_words("send_metrics", arguments)
    if not words:
        raise ToolkitError("Name a run folder: python -m finetune.send_metrics runs/color_object tracking=wandb")
    return [Path(word) for word in words], config


def main(call: tuple[list[Path], SendMetricsConfig]) -> None:
    for run_dir in call[0]:
        print(f"{run_dir}: {send(run_dir, call[1])}", flush=True)


if __name__ == "__main__":
    run_main(main, "send_metrics", read=read)

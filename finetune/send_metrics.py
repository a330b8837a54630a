"""Send what a run has measured to a tracker, also one that was not chosen when it was trained.

python -m finetune.send_metrics runs/color_object tracking=wandb
python -m finetune.send_metrics runs/color_object tracking=tensorboard
python -m finetune.send_metrics --help"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from finetune.slurm.attempt_record import read_optional
from finetune.training import METRICS, SENT, STATUS, WANDB_RUN
from gr00t.errors import ToolkitError, near_folder
from gr00t.file_replacement import file_lock, write_json
from toolkit.command_line import run_main
from toolkit.configuration import load_with_words
from toolkit.declaration import key
from toolkit.shared_keys import TrackingConfig
from toolkit.trackers import TENSORBOARD, WandbRun, check_tracking, open_run, steps_in_tensorboard
from toolkit.wandb_session import chosen_mode

Steps = dict[int, dict[str, float]]  # numbers by name, by step in ascending order


@dataclass(kw_only=True)
class SendMetricsConfig:
    """Send what a run has measured (RUN/metrics.jsonl) to wandb or TensorBoard, under the names that training logs.

    Only what is missing there is sent, so that it can be repeated while the run trains.
    """

    tracking: TrackingConfig = key("where the measurements are sent; group and run_name null: as the run has them")
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
    written = path.read_bytes()
    for number, line in enumerate(written.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line.decode("utf-8"))
            step = int(values.pop("step"))
        except (ValueError, KeyError, AttributeError, TypeError):
            if number == written.count(b"\n") + 1:  # no line break after it
                break
            raise ToolkitError(f"{path}, line {number} is damaged. Remove that line, and send again.") from None
        for later in [later for later in steps if later > step]:
            del steps[later]
        numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
        named = {name if "/" in name else f"train/{name}": float(value) for name, value in numbers.items()}
        steps.setdefault(step, {}).update(named)
    if not any(steps.values()):
        raise ToolkitError(f"{path} holds no measurement yet. Send it after train.log_steps steps.")
    return steps


def send(run_dir: Path, config: SendMetricsConfig) -> str:
    """Send what is missing; what was done, in a sentence."""
    steps = read_steps(run_dir)
    settings = read_optional(run_dir / "run_config.json") or {}
    with file_lock(run_dir / SENT, required=False):
        if config.tracking.name == "tensorboard":
            return _to_tensorboard(run_dir, steps, config.tracking, settings)
        return _to_wandb(run_dir, steps, config, settings)


def _to_tensorboard(run_dir: Path, steps: Steps, tracking: TrackingConfig, settings: dict[str, Any]) -> str:
    """From the first step on of which a number is missing: TensorBoard takes steps in ascending order."""
    shown = steps_in_tensorboard(run_dir)
    missing = [step for step, values in steps.items() if any(step not in shown.get(name, ()) for name in values)]
    where = f"tensorboard --logdir {run_dir / TENSORBOARD}"
    if not missing:
        return f"nothing is missing: all {len(steps)} logged steps are there already ({where})"
    left = {step: values for step, values in steps.items() if step >= missing[0]}
    with open_run(tracking, run_dir, settings, first=missing[0]) as run:
        for step, values in left.items():
            run.log(step, values)
    return f"{len(left)} logged steps sent: {where}"


def _to_wandb(run_dir: Path, steps: Steps, config: SendMetricsConfig, settings: dict[str, Any]) -> str:
    """All after the last step that was sent, and that the server does not have."""
    tracking, run_id, last = _wandb_run(run_dir, config)
    left = {step: values for step, values in steps.items() if step > last}
    if not left:
        return f"nothing is missing: all {len(steps)} logged steps were sent as the wandb run {run_id}"
    split, own = (settings.get(name) or {} for name in ("split", "tracking"))
    tags = [str(tag) for tag in (split.get("name"), *tracking.tags) if tag]
    named: Any = {"name": tracking.run_name or own.get("run_name") or run_dir.absolute().name, "tags": tags}
    named |= {"group": tracking.group or own.get("group"), "id": run_id, "resume": "allow"}
    run = open_run(tracking, run_dir, settings, **named)
    assert isinstance(run, WandbRun)
    count, status = 0, str((read_optional(run_dir / STATUS) or {}).get("status", "finished"))
    try:
        for step, values in left.items():
            if not run.has(step):
                run.log(step, values)
                count += 1
            last = step
    finally:
        run.end("stopped" if status == "running" else status, {})
        write_json(run_dir / SENT, {"wandb_id": run_id, "project": tracking.project, "step": last})
    kept = f", kept offline: wandb sync {run_dir / 'wandb'}" if run.offline else ""
    return f"{count} logged steps sent as the wandb run {run_id} of {tracking.project}{kept}"


def _wandb_run(run_dir: Path, config: SendMetricsConfig) -> tuple[TrackingConfig, str, int]:
    """Where to send: a tracker's mode, a run's id, and the last step that it is known to hold (-1: none)."""
    tracking, mode = config.tracking, chosen_mode(config.tracking)
    sent, logged = (read_optional(run_dir / name) or {} for name in (SENT, WANDB_RUN))
    if mode == "disabled":
        raise ToolkitError("WANDB_MODE=disabled: nothing would be kept. Unset it, or give tracking.mode=offline.")
    if not config.new_run and sent.get("project") == tracking.project:
        # the server takes a run's records in the order of its steps
        kept = _kept_offline(run_dir, str(sent["wandb_id"]))
        return replace(tracking, mode="offline" if kept else mode), str(sent["wandb_id"]), int(sent["step"])
    if config.new_run or logged.get("project") != tracking.project:
        return tracking, uuid.uuid4().hex[:12], -1
    run_id = str(logged["wandb_id"])
    if mode == "offline" or _kept_offline(run_dir, run_id):
        raise ToolkitError(
            f"{run_dir} logged to wandb while it trained, as the run {run_id} ({WANDB_RUN}). Send that, with its "
            f"images: wandb sync {run_dir / 'wandb'}. What is missing on the server is sent with tracking.mode=online "
            "once nothing is kept offline; new_run=true sends all as another run."
        )
    return replace(tracking, mode="online"), run_id, -1  # the server knows how far it came


def _kept_offline(run_dir: Path, run_id: str) -> bool:
    """Whether wandb's folder holds records of this run that `wandb sync` has not sent yet."""
    found = [folder for folder in (run_dir / "wandb").glob("offline-run-*") if folder.name.endswith(f"-{run_id}")]
    return any(not any(folder.glob("*.synced")) for folder in found)


# -- the command -------------------------------------------------------------------------------------------------------


def read(arguments: Sequence[str]) -> tuple[list[Path], SendMetricsConfig]:
    """`RUN [RUN ...] [key=value ...]` as run folders and configuration."""
    words, config = load_with_words("send_metrics", arguments)
    if not words:
        raise ToolkitError("Name a run folder: python -m finetune.send_metrics runs/color_object tracking=wandb")
    return [Path(word) for word in words], config


def main(call: tuple[list[Path], SendMetricsConfig]) -> None:
    """Send what is missing of each run."""
    runs, config = call
    for run_dir in runs:
        print(f"{run_dir}: {send(run_dir, config)}", flush=True)


if __name__ == "__main__":
    run_main(main, "send_metrics", read=read)

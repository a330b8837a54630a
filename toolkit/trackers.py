"""A run in a tracker: wandb, TensorBoard or none. Whoever logs uses one interface and does not ask which it is."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

from gr00t.errors import require_extra
from toolkit.declaration import flat
from toolkit.shared_keys import TrackingConfig
from toolkit.wandb_session import start_run

TENSORBOARD = "tensorboard"  # folder of the event files, in a run's or a report's
Tables = Mapping[str, tuple[Sequence[Any], Sequence[Sequence[Any]]]]  # columns and rows by name
Videos = Mapping[str, Sequence[tuple[Path, str]]]  # files with captions by name
_VIDEOS = (".mp4", ".webm", ".gif", ".ogg")  # what wandb takes


def check_tracking(tracking: TrackingConfig) -> None:
    """Refuse a tracker that is not installed."""
    if tracking.name == "tensorboard":
        require_extra("tensorboard", "tracking=tensorboard needs", tensorboard="TensorBoard")


def open_run(
    tracking: TrackingConfig, folder: Path, config: Mapping[str, Any], *, first: int = 0, **of_wandb: Any
) -> TrackedRun:
    """The run of `folder` in the tracker that `tracking` names.

    first: the first step that is going to be logged; what TensorBoard has of it and of later ones is shown no more.
    of_wandb: what wandb.init takes besides (id, resume, tags, job_type).
    """
    config = as_typed(dict(config))
    if tracking.name == "wandb":
        return WandbRun(start_run(tracking, folder, config=config, **of_wandb))
    return TensorBoardRun(folder / TENSORBOARD, config, first) if tracking.name == "tensorboard" else TrackedRun()


class TrackedRun(AbstractContextManager["TrackedRun"]):
    """A run in no tracker, which keeps nothing. A tracker's own class has what that tracker can show."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers by name, as they are after `step` steps."""

    def show(self, step: int, name: str, image: Path, caption: str) -> None:
        """A PNG file, which is copied."""

    def report(self, numbers: Mapping[str, Any], tables: Tables, page: Path, videos: Videos) -> None:
        """Results of the whole run: numbers and texts, tables, its HTML page, videos."""

    def add_artifact(self, artifact: Any, aliases: Sequence[str] = ()) -> None:
        """A wandb.Artifact that the run made; without aliases, one that it reads."""

    def alert(self, title: str, text: str, level: str) -> None:
        """A message to whoever follows the run. level: INFO, WARN or ERROR."""

    def end(self, status: str, results: Mapping[str, Any]) -> None:
        """Close it. status: finished, failed, or stopped, which means that it is resumed later."""

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.end("finished" if kind is None else "failed", {})


class WandbRun(TrackedRun):
    """A run of wandb, as `start_run` gives it."""

    def __init__(self, run: Any) -> None:
        self._run, self.offline = run, bool(run.offline)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def show(self, step: int, name: str, image: Path, caption: str) -> None:
        import wandb

        self._run.log({name: wandb.Image(str(image), caption=caption)}, step=step)

    def report(self, numbers: Mapping[str, Any], tables: Tables, page: Path, videos: Videos) -> None:
        import wandb

        media: dict[str, Any] = {
            name: wandb.Table(columns=list(columns), data=[list(row) for row in rows], allow_mixed_types=True)
            for name, (columns, rows) in tables.items()
        }
        media[f"{page.stem}/page"] = wandb.Html(page.read_text(encoding="utf-8"), inject=False)
        for name, found in videos.items():
            if films := [wandb.Video(str(path), caption=text) for path, text in found if path.suffix in _VIDEOS]:
                media[name] = films
        self._run.log(media)
        self._run.summary.update(dict(numbers))

    def add_artifact(self, artifact: Any, aliases: Sequence[str] = ()) -> None:
        if aliases:
            self._run.log_artifact(artifact, aliases=list(aliases))
        else:  # use_artifact refuses an offline run, whose record can say it all the same
            self._run._log_artifact(artifact, is_user_created=True, use_after_commit=True)

    def alert(self, title: str, text: str, level: str) -> None:
        self._run.alert(title, text, level)

    def end(self, status: str, results: Mapping[str, Any]) -> None:
        self._run.summary.update({**results, "status": status})
        if status == "stopped":
            self._run.mark_preempting()
        self._run.finish(exit_code=0 if status == "finished" else 1)


class TensorBoardRun(TrackedRun):
    """Event files in a folder. What is logged is on the disk when the call returns, also if the process is killed."""

    def __init__(self, folder: Path, config: Mapping[str, Any], first: int) -> None:
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        before = list(folder.glob("events.*"))
        for file in before if first == 0 else ():
            file.unlink()
        self._writer = SummaryWriter(str(folder), purge_step=first)
        if first == 0 or not before:
            self._writer.add_text("config", "    " + json.dumps(config, indent=2, default=str).replace("\n", "\n    "))
            values = {name: v if isinstance(v, int | float | str) else str(v) for name, v in flat(config).items()}
            files: Any = self._writer.file_writer  # add_hparams would make another run, in a folder below
            for summary in hparams(values, {"train/loss": 0.0}):
                files.add_summary(summary)
        self._writer.flush()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def show(self, step: int, name: str, image: Path, caption: str) -> None:
        import numpy as np
        from PIL import Image

        with Image.open(image) as opened:
            self._writer.add_image(name, np.asarray(opened.convert("RGB")), step, dataformats="HWC")
        self._writer.add_text(f"{name}/caption", caption, step)
        self._writer.flush()

    def report(self, numbers: Mapping[str, Any], tables: Tables, *of_wandb: object) -> None:
        for name, value in numbers.items():
            add = self._writer.add_text if isinstance(value, str) else self._writer.add_scalar
            add(name, value, 0)
        for name, (columns, rows) in tables.items():
            cells = (
                [str(cell).replace("|", "\\|") for cell in line] for line in (columns, ["---"] * len(columns), *rows)
            )
            self._writer.add_text(name, "\n".join(f"| {' | '.join(line)} |" for line in cells), 0)

    def end(self, status: str, results: Mapping[str, Any]) -> None:
        with suppress(OSError):  # of a full disk, which whoever logged has heard of
            self._writer.close()


def steps_in_tensorboard(folder: Path) -> dict[str, set[int]]:
    """The steps that TensorBoard shows of a run's folder, by the name of the number."""
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    shown = EventAccumulator(str(folder / TENSORBOARD), size_guidance={SCALARS: 0})
    if (folder / TENSORBOARD).is_dir():
        shown.Reload()
    return {name: {event.step for event in shown.Scalars(name)} for name in shown.Tags()[SCALARS]}


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

"""A run in a tracker: wandb, TensorBoard or none. Whoever logs uses one interface and does not ask which it is.

A wandb run is started online where wandb can be reached, and kept offline where it cannot."""

from __future__ import annotations

import configparser
import json
import logging
import netrc
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from gr00t.errors import ToolkitError, did_you_mean, require_extra
from toolkit.command_line import held_back
from toolkit.declaration import flat
from toolkit.shared_keys import TrackingConfig

TENSORBOARD = "tensorboard"  # folder of the event files, in a run's or a report's
Tables = Mapping[str, tuple[Sequence[Any], Sequence[Sequence[Any]]]]  # columns and rows by name
Videos = Mapping[str, Sequence[tuple[Path, str]]]  # files with captions by name
_VIDEOS = (".mp4", ".webm", ".gif", ".ogg")  # what wandb takes
MODES = ("online", "offline", "shared", "disabled", "dryrun", "run")  # what WANDB_MODE may say
PUBLIC_HOSTS = ("api.wandb.ai", "api.forge.coreweave.com")  # one service under its older and its newer name
INIT_SECONDS = 60  # until a server that does not answer counts as one that is not there

log = logging.getLogger(__name__)


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


def start_run(tracking: TrackingConfig, folder: Path, **options: Any) -> Any:
    """A wandb run whose files lie in <folder>/wandb; `options` go to wandb.init (id, config, job_type, tags, ...).

    mode=auto is offline where there is no key or no network; mode=online then raises ToolkitError.
    """
    import wandb

    mode, why = chosen_mode(tracking)
    if why:
        log.warning("wandb is %s: %s", mode, why)
    try:
        return _init(tracking, folder, mode, options)
    except (wandb.errors.Error, OSError) as error:
        if tracking.mode == "online":
            raise ToolkitError(
                f"wandb cannot go online ({type(error).__name__}). Check the key and the network (wandb login), or use "
                "tracking.mode=offline and send the run later with wandb sync."
            ) from None
        log.warning("wandb cannot go online (%s); the run is kept offline, wandb sync sends it.", type(error).__name__)
        wandb.teardown()  # its service still holds the id of the run that failed
        return _init(tracking, folder, "offline", options)


def _init(tracking: TrackingConfig, folder: Path, mode: str, options: dict[str, Any]) -> Any:
    import wandb

    chosen: dict[str, Any] = {
        "project": tracking.project,
        "name": tracking.run_name,
        "group": tracking.group,
        "tags": tracking.tags,
        # The git revision is among our versions; wandb would add the remote's address, which may hold a token.
        "settings": wandb.Settings(
            silent=True, console="off", init_timeout=INIT_SECONDS, disable_git=True, save_code=False
        ),
        **options,
    }
    with held_back():  # wandb's own process would end before the run's last words
        return wandb.init(dir=str(folder), mode=mode, **chosen)  # type: ignore[arg-type]


def chosen_mode(tracking: TrackingConfig) -> tuple[str, str]:
    """wandb's mode that `tracking.mode` stands for here, and why where that is not what the key says itself."""
    if tracking.mode != "auto":
        return tracking.mode, ""
    asked = os.environ.get("WANDB_MODE")
    if asked and asked not in MODES:
        raise ToolkitError(f"WANDB_MODE={asked} is no mode of wandb.{did_you_mean(asked, MODES)} Or unset it.")
    if asked:
        return asked, ""
    if has_key():
        return "online", ""
    return "offline", f"there is no key for {_host()} (wandb login); wandb sync sends the run"


def _host() -> str:
    """The server that wandb would send to, by its variable, its settings file or its default.

    wandb.setup() knows it too, but keeps for the whole process what it then finds.
    """
    import wandb

    file = configparser.ConfigParser()
    folder = os.environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb"
    with suppress(configparser.Error, UnicodeDecodeError):
        file.read(Path(folder).expanduser() / "settings")
    configured = os.environ.get("WANDB_BASE_URL") or file.get("default", "base_url", fallback=None)
    return str(urlsplit(configured or wandb.Settings().base_url).hostname)


def has_key() -> bool:
    """Whether wandb would find a key here: in its variables, or for its server in the .netrc file."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = _host()
    known = [host, *(PUBLIC_HOSTS if host in PUBLIC_HOSTS else ())]  # a key may be kept under the older name
    files = [os.environ["NETRC"]] if "NETRC" in os.environ else [Path.home() / ".netrc", Path.home() / "_netrc"]
    for file in files:
        try:
            entries = netrc.netrc(str(Path(file).expanduser())).hosts
        except (OSError, netrc.NetrcParseError):
            continue
        if any(name in entries for name in known):
            return True
    return False

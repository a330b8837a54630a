"""The wandb side of a run. Offline, everything lies in run_dir/wandb, and `wandb sync` sends it later."""

from __future__ import annotations

import logging
import netrc
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import wandb

from finetune.config.schema import FinetuneConfig
from finetune.stop_signals import held_back
from gr00t.errors import ToolkitError
from gr00t.files import read_json, write_json

log = logging.getLogger(__name__)
LONGEST_TAG = 64  # what wandb takes
FAILED, STOPPED, FINISHED = "failed", "stopped", "finished"


class WandbRun:
    """One wandb run. Its id is kept in run.json, so that a resumed run goes on in the same one."""

    def __init__(self, config: FinetuneConfig, facts: Mapping[str, Any], resolved: dict[str, Any]) -> None:
        """facts: what the configuration does not say (dataset, versions, processes); logged beside it."""
        run_dir = Path(config.run_dir)
        identity = run_dir / "run.json"
        run_id = read_json(identity)["wandb_id"] if identity.is_file() else uuid.uuid4().hex[:12]
        write_json(identity, {"wandb_id": run_id, "project": config.tracking.project})
        logged = as_typed({**resolved, "run": dict(facts)})
        mode = config.tracking.mode
        if mode == "auto":
            mode = os.environ.get("WANDB_MODE") or ("online" if has_key() else "offline")
        try:
            self._run = _init(config, logged, run_id, mode)
        except (wandb.errors.Error, OSError) as error:
            if config.tracking.mode == "online":
                raise ToolkitError(
                    f"wandb cannot go online ({type(error).__name__}). Check the key and the network (wandb login), or "
                    "use tracking.mode=offline and send the run later with wandb sync."
                ) from None
            log.warning(
                "wandb cannot go online (%s); the run is kept offline, wandb sync sends it.", type(error).__name__
            )
            self._run = _init(config, logged, run_id, "offline")

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        self._run.log(dict(values), step=step)

    def show(self, step: int, name: str, picture: Path, caption: str) -> None:
        """A picture, copied into the run."""
        self._run.log({name: wandb.Image(str(picture), caption=caption)}, step=step)

    def used(self, artifact: wandb.Artifact) -> None:
        """Record what the run reads."""
        # use_artifact refuses an offline run, whose record can say it all the same
        self._run._log_artifact(artifact, is_user_created=True, use_after_commit=True)

    def made(self, artifact: wandb.Artifact, aliases: list[str]) -> None:
        """Record what the run has written."""
        self._run.log_artifact(artifact, aliases=aliases)

    def alert(self, title: str, text: str, level: str = "INFO") -> None:
        """A message to whoever follows the run, as they chose in wandb (mail, Slack); level: INFO, WARN or ERROR."""
        self._run.alert(title[:63], text, level)

    def close(self, status: str, summary: Mapping[str, Any]) -> None:
        """End it as finished, failed or stopped; a stopped run is shown as preempted and goes on later."""
        self._run.summary.update({**summary, "status": status})
        if status == STOPPED:
            self._run.mark_preempting()
        self._run.finish(exit_code=0 if status == FINISHED else 1)


def _init(config: FinetuneConfig, logged: dict[str, Any], run_id: str, mode: str) -> Any:
    tracking = config.tracking
    with held_back():  # wandb's own process would end before the run's last words
        return wandb.init(
            project=tracking.project,
            name=tracking.run_name,
            group=tracking.group,
            tags=run_tags(config),
            id=run_id,
            resume="allow",
            dir=config.run_dir,
            mode=mode,  # type: ignore[arg-type]
            config=logged,
            # the git revision is in the configuration; wandb would add the remote's address, which may hold a token
            settings=wandb.Settings(silent=True, console="off", init_timeout=60, disable_git=True, save_code=False),
        )


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


def has_key() -> bool:
    """Whether wandb would find a key here."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False

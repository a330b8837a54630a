"""The wandb side of a run. Offline, everything lies in run_dir/wandb, and `wandb sync` sends it later."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import wandb

from finetune.config.schema import FinetuneConfig
from finetune.wandb_start import start_run
from gr00t.files import read_json, write_json

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
        self._run = start_run(
            config.tracking,
            run_dir,
            id=run_id,
            resume="allow",
            tags=run_tags(config),
            config=as_typed({**resolved, "run": dict(facts)}),
        )

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

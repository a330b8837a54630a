"""The run folder: where a run goes on from, what it must not overwrite, and that one process at a time writes it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from finetune import checkpointing
from finetune.config.schema import FinetuneConfig
from finetune.engine import Engine
from gr00t.errors import ToolkitError
from gr00t.files import file_lock, read_json, remove_leftovers, write_json

RELEASE_MARK = Path("experiment_cfg") / "run.json"


def identity_digest(identity: dict[str, Any]) -> str:
    """One text for all that makes a run the same run."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()


class RunFolder:
    """`run_dir` and `output_dir` of one run. Nothing is changed before `opened`."""

    def __init__(self, config: FinetuneConfig, identity: dict[str, Any]) -> None:
        self.config, self.identity = config, identity
        self.run_dir, self.output_dir = Path(config.run_dir), Path(config.output_dir)
        self.anew = config.train.resume == "never"

    def starting_point(self) -> checkpointing.Checkpoint | None:
        """The checkpoint to go on from, None to begin; refuses what would destroy other results."""
        start = None if self.anew else checkpointing.newest_checkpoint(self.run_dir)
        if start is not None:
            checkpointing.check_same_run(start, self.identity)
        elif not self.anew and checkpointing.list_checkpoints(self.run_dir):
            raise ToolkitError(
                f"Every checkpoint in {self.run_dir} is damaged. Restore one from a backup, or start anew with "
                "train.resume=never."
            )
        self._check_output()
        return start

    def is_finished(self) -> bool:
        """Whether output_dir holds what this very run would write."""
        return not self.anew and self._mark() == identity_digest(self.identity)

    @contextmanager
    def opened(self, start: checkpointing.Checkpoint | None, engine: Engine) -> Iterator[None]:
        """Hold the folder for this run: clear what killed or discarded attempts left, write run_config.json."""
        engine.barrier()  # no process still looks for its starting point
        self.run_dir.mkdir(parents=True, exist_ok=True)
        with file_lock(self.run_dir, required=False) if engine.is_main else nullcontext():
            if engine.is_main:
                self._clear(start)
                write_json(self.run_dir / "run_config.json", dataclasses.asdict(self.config))
            engine.barrier()
            yield

    def _check_output(self) -> None:
        if not self.output_dir.exists() or not any(self.output_dir.iterdir()):
            return
        mark = self._mark()
        if mark is None:
            raise ToolkitError(
                f"output_dir {self.output_dir} exists and holds other files than a finished checkpoint of this "
                "toolkit; it is never replaced. Choose another output_dir=...."
            )
        if mark != identity_digest(self.identity) and not self.anew:
            raise ToolkitError(
                f"output_dir {self.output_dir} exists already and holds the checkpoint of another run. Choose another "
                "output_dir=..., remove it, or replace it with train.resume=never."
            )

    def _mark(self) -> str | None:
        path = self.output_dir / RELEASE_MARK
        return str(read_json(path).get("identity")) if path.is_file() else None

    def _clear(self, start: checkpointing.Checkpoint | None) -> None:
        remove_leftovers(self.run_dir, "checkpoint-*")
        remove_leftovers(self.output_dir.parent, self.output_dir.name)
        checkpoints = checkpointing.list_checkpoints(self.run_dir)
        if self.anew:
            for old in checkpoints:
                shutil.rmtree(old)
            for name in ("run.json", "metrics.jsonl"):
                (self.run_dir / name).unlink(missing_ok=True)
        elif start is not None:
            for newer in checkpoints[checkpoints.index(start.folder) + 1 :]:  # damaged, or start would be one of them
                shutil.rmtree(newer.with_name(newer.name + ".damaged"), ignore_errors=True)
                newer.rename(newer.with_name(newer.name + ".damaged"))

"""The run folder: where a run goes on from, what it must not overwrite, and that one process at a time writes it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from finetune import checkpointing
from finetune.config.schema import FinetuneConfig
from finetune.engine import Engine
from finetune.preemption import Preemption
from finetune.run_files import ARTIFACTS, BEST, EVALUATIONS, FIRST_BATCH, METRICS, STATUS
from gr00t.errors import ToolkitError
from gr00t.files import LockHeld, file_lock, read_json, remove_leftovers, write_json

log = logging.getLogger(__name__)
LET_GO_SECONDS = 20.0  # a superseded attempt stops after its step
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

    def starting_point(self, engine: Engine) -> tuple[checkpointing.Checkpoint | None, bool]:
        """The checkpoint to go on from, None to begin, and whether output_dir holds what this very run would write.

        The main process looks and checks the hashes for all: a shared folder may show files to others later. What
        would destroy other results is refused.
        """
        found: checkpointing.Checkpoint | None = None
        answer: dict[str, Any] = {}
        if engine.is_main:
            try:
                found = self._look()
                answer = {"step": found and found.step, "finished": self.is_finished()}
            except ToolkitError as error:
                answer = {"refused": str(error)}
        answer = json.loads(engine.tell(json.dumps(answer)))
        if "refused" in answer:
            raise ToolkitError(answer["refused"])
        if answer["step"] is not None and not engine.is_main:
            found = checkpointing.read_checkpoint(self.run_dir, answer["step"])
        return found, answer["finished"]

    def _look(self) -> checkpointing.Checkpoint | None:
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
        return not self.anew and self._mark() == identity_digest(self.release_identity)

    @property
    def release_identity(self) -> dict[str, Any]:
        """What makes a finished checkpoint the same: all that makes the run, and which of its weights were exported."""
        best = self.config.train.export == "best"
        return {**self.identity, "train.export": "best"} if best else self.identity

    @contextmanager
    def opened(self, start: checkpointing.Checkpoint | None, engine: Engine, stop: Preemption) -> Iterator[None]:
        """Hold the folder for this run: clear what killed or discarded attempts left, write run_config.json."""
        engine.barrier()  # no process still looks for its starting point
        self.run_dir.mkdir(parents=True, exist_ok=True)
        with ExitStack() as held:
            if engine.is_main:
                self._lock(held, stop.token.id or "")
                if stop.token.is_ours():
                    self._clear(start)
                    write_json(self.run_dir / "run_config.json", dataclasses.asdict(self.config))
            stop.barrier()
            yield

    def _lock(self, held: ExitStack, holder: str) -> None:
        """Take the lock; one that an attempt of a SLURM job holds on to is no obstacle to the attempt after it, since
        the token keeps the older one from writing."""
        until = time.monotonic() + LET_GO_SECONDS
        while True:
            try:
                held.enter_context(file_lock(self.run_dir, required=False, holder=holder))
                return
            except LockHeld as error:
                if not (holder and error.holder):
                    raise
            if time.monotonic() > until:
                log.warning("%s: a superseded attempt still holds its lock; going on without it.", self.run_dir)
                return
            time.sleep(0.5)

    def _check_output(self) -> None:
        if not self.output_dir.exists() or not any(self.output_dir.iterdir()):
            return
        mark = self._mark()
        if mark is None:
            raise ToolkitError(
                f"output_dir {self.output_dir} exists and holds other files than a finished checkpoint of this "
                "toolkit; it is never replaced. Choose another output_dir=...."
            )
        if mark != identity_digest(self.release_identity) and not self.anew:
            raise ToolkitError(
                f"output_dir {self.output_dir} exists already and holds the checkpoint of another run, or of other "
                "steps of it (train.export). Choose another output_dir=..., remove it, or replace it with "
                "train.resume=never."
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
            for name in ("run.json", METRICS, STATUS, BEST, FIRST_BATCH):
                (self.run_dir / name).unlink(missing_ok=True)
            for name in (ARTIFACTS, EVALUATIONS):
                shutil.rmtree(self.run_dir / name, ignore_errors=True)
        elif start is not None:
            for newer in checkpoints[checkpoints.index(start.folder) + 1 :]:  # damaged, or start would be one of them
                shutil.rmtree(newer.with_name(newer.name + ".damaged"), ignore_errors=True)
                newer.rename(newer.with_name(newer.name + ".damaged"))

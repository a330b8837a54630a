"""The run folder: where a run goes on from, what it must not overwrite, and that one process at a time writes it."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from finetune import checkpointing
from finetune.config.identity import differences
from finetune.config.schema import FinetuneConfig
from finetune.engine import Engine
from finetune.preemption import Preemption
from finetune.release_mark import RELEASE_MARK, identity_of, made_by, robot_of
from finetune.run_files import ARTIFACTS, BEST, CONDITIONS, EVALUATIONS, FIRST_BATCH, INPUTS, METRICS, STATUS
from finetune.run_output import RunOutput
from gr00t.errors import ToolkitError
from gr00t.files import LockHeld, file_lock, read_json, remove_leftovers, write_json

log = logging.getLogger(__name__)
LET_GO_SECONDS = 20.0  # a superseded attempt stops after its step


def _read_inputs(run_dir: Path) -> dict[str, str]:
    return read_json(run_dir / INPUTS) if (run_dir / INPUTS).is_file() else {}


class RunFolder:
    """`run_dir` and `output_dir` of one run. Nothing is changed before `opened`."""

    def __init__(self, config: FinetuneConfig, identity: dict[str, Any], files: Mapping[str, str]) -> None:
        """`files`: the digest of every input (see run_identity); only the main process needs them."""
        self.config, self.identity, self.files = config, identity, files
        self.run_dir, self.output_dir = Path(config.run_dir), Path(config.output_dir)
        self.anew = config.train.resume == "never"
        self.output = RunOutput(self.output_dir, self.run_dir, replaces=self.anew)

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
                answer = {"step": found and found.step, "finished": self._is_finished()}
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
            known = dataclasses.replace(start, state={**start.state, "identity": self._with_robot(start)})
            checkpointing.check_same_run(known, self.identity, _read_inputs(self.run_dir), self.files)
        elif not self.anew and checkpointing.list_checkpoints(self.run_dir):
            raise ToolkitError(
                f"Every checkpoint in {self.run_dir} is damaged. Restore one from a backup, or start anew with "
                "train.resume=never."
            )
        return start

    def _with_robot(self, start: checkpointing.Checkpoint) -> dict[str, Any]:
        """The identity of a checkpoint. One of before the modality configuration was part of it takes that of its own
        finished checkpoint, or what the user says it was trained with."""
        stored: dict[str, Any] = start.state.get("identity", {})
        if "modality_config" in stored:
            return stored
        if made_by(self.output_dir, stored):
            return {**stored, "modality_config": robot_of(self.output_dir, self.config.dataset.embodiment_tag)}
        if self.config.dataset.modality_config is not None:
            return stored  # what is given now is recorded from the next checkpoint on
        raise ToolkitError(
            f"{start.folder} does not say with which modality configuration it was trained; it was written before that "
            "was recorded. Say it: dataset.modality_config=conflict_panda_config.py where that file has not changed "
            "since, else FILE as it was."
        )

    def _is_finished(self) -> bool:
        """Whether output_dir holds what this very run would write; anything else there is refused."""
        if self.output.is_empty():
            return False
        if self.anew or not (self.output_dir / RELEASE_MARK).is_file():
            self.output.refuse_foreign()
            return False
        made_of = identity_of(self.output_dir, self.release_identity)
        changed = differences(made_of, self.release_identity, _read_inputs(self.run_dir), self.files)
        if changed:
            lines = "\n  ".join(changed)
            raise ToolkitError(
                f"output_dir {self.output_dir} exists already and holds the checkpoint of another run, or of other "
                f"steps of it (train.export):\n  {lines}\nChoose another output_dir=..., remove it, or replace it with "
                "train.resume=never."
            )
        return True

    @property
    def release_identity(self) -> dict[str, Any]:
        """What makes a finished checkpoint the same: all that makes the run, and which of its weights were exported."""
        best = self.config.train.export == "best"
        return {**self.identity, "train.export": "best"} if best else self.identity

    def may_replace(self) -> Callable[[Path], None]:
        """For `whole_folder` over output_dir: raises where what lies there must stay."""
        checkpoints = checkpointing.list_checkpoints(self.run_dir)
        return self.output.replaceable(self.release_identity, checkpoints[-1] if checkpoints else None)

    @contextmanager
    def opened(
        self, start: checkpointing.Checkpoint | None, engine: Engine, stop: Preemption, conditions: Mapping[str, Any]
    ) -> Iterator[None]:
        """Hold the folder for this run: clear what killed or discarded attempts left, write what this one has."""
        engine.barrier()  # no process still looks for its starting point
        self.run_dir.mkdir(parents=True, exist_ok=True)
        with ExitStack() as held:
            if engine.is_main:
                self._lock(held, stop.token.id or "")
                self.output.claim(held)
                if stop.token.is_ours():
                    self._clear(start)
                    write_json(self.run_dir / "run_config.json", dataclasses.asdict(self.config))
                    write_json(self.run_dir / INPUTS, dict(self.files))
                    with (self.run_dir / CONDITIONS).open("a", encoding="utf-8") as file:
                        file.write(json.dumps({"from_step": start.step if start else 0, **conditions}) + "\n")
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

    def _clear(self, start: checkpointing.Checkpoint | None) -> None:
        remove_leftovers(self.run_dir, "checkpoint-*")
        remove_leftovers(self.output_dir.parent, self.output_dir.name)
        checkpoints = checkpointing.list_checkpoints(self.run_dir)
        if self.anew:
            for old in checkpoints:
                shutil.rmtree(old)
            for name in ("run.json", METRICS, STATUS, BEST, FIRST_BATCH, INPUTS, CONDITIONS):
                (self.run_dir / name).unlink(missing_ok=True)
            for name in (ARTIFACTS, EVALUATIONS):
                shutil.rmtree(self.run_dir / name, ignore_errors=True)
        elif start is not None:
            for newer in checkpoints[checkpoints.index(start.folder) + 1 :]:  # damaged, or start would be one of them
                shutil.rmtree(newer.with_name(newer.name + ".damaged"), ignore_errors=True)
                newer.rename(newer.with_name(newer.name + ".damaged"))

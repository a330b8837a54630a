"""The folders of a run: where it resumes from, what it must not overwrite, and that one process at a time writes them.

In run_dir lie checkpoints and logs; output_dir is claimed while the run trains and then receives the finished
checkpoint. Only two things are ever replaced there: an empty folder, and a finished checkpoint with nothing beside it
that is this run's own or, with train.resume=never, was there when the run began."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from finetune.recipe import FinetuneConfig
from finetune.recipe.recipe_identity import RELEASE_MARK, differences, identity_digest, identity_of, made_by, robot_of
from finetune.training import ARTIFACTS, BEST, CONDITIONS, EVALUATIONS, FIRST_BATCH, INPUTS, METRICS, STATUS
from finetune.training.checkpointing import (
    Checkpoint,
    check_same_run,
    list_checkpoints,
    newest_checkpoint,
    read_checkpoint,
)
from finetune.training.engine import Engine
from finetune.training.stopping import Preemption
from gr00t.errors import ToolkitError
from gr00t.file_replacement import LockHeld, file_lock, read_json, remove_leftovers, write_json
from gr00t.model.finished_checkpoint import foreign_files

LET_GO_SECONDS = 20.0  # a superseded attempt stops after its step
_FILES_LISTED = 4

log = logging.getLogger(__name__)


class RunFolder:
    """`run_dir` and `output_dir` of one run. Nothing is changed before `opened`."""

    def __init__(self, config: FinetuneConfig, identity: dict[str, Any], files: Mapping[str, str]) -> None:
        """`files`: the digest of every input (see run_identity); only the main process needs them."""
        self.config, self.identity, self.files = config, identity, files
        self.run_dir, self.output_dir = Path(config.run_dir), Path(config.output_dir)
        self.from_scratch = config.train.resume == "never"
        self._to_replace = _mark(self.output_dir) if self.from_scratch else None

    @property
    def release_identity(self) -> dict[str, Any]:
        """What makes a finished checkpoint the same: all that makes the run, and which of its weights were exported."""
        best = self.config.train.export == "best"
        return {**self.identity, "train.export": "best"} if best else self.identity

    def starting_point(self, engine: Engine) -> tuple[Checkpoint | None, bool]:
        """The checkpoint to resume from, None to begin, and whether output_dir holds what this very run would write.

        The main process looks and checks the hashes for all: a shared folder may show files to others later. What
        would destroy other results is refused.
        """
        found: Checkpoint | None = None
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
            found = read_checkpoint(self.run_dir, answer["step"])
        return found, answer["finished"]

    def _look(self) -> Checkpoint | None:
        if self.from_scratch:
            return None
        start = newest_checkpoint(self.run_dir)
        if start is not None:
            known = dataclasses.replace(start, state={**start.state, "identity": self._with_robot(start)})
            check_same_run(known, self.identity, self._inputs(), self.files)
        elif list_checkpoints(self.run_dir):
            raise ToolkitError(
                f"Every checkpoint in {self.run_dir} is damaged. Restore one from a backup, or start anew with "
                "train.resume=never."
            )
        return start

    def _inputs(self) -> dict[str, str]:
        """The digests of the inputs as the run recorded them."""
        return read_json(self.run_dir / INPUTS) if (self.run_dir / INPUTS).is_file() else {}

    def _with_robot(self, start: Checkpoint) -> dict[str, Any]:
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
        folder = self.output_dir
        if not os.path.lexists(folder) or _is_empty(folder):
            return False
        if self.from_scratch or not (folder / RELEASE_MARK).is_file():
            problem = _foreign(folder)
            if problem:
                raise ToolkitError(
                    f"output_dir {folder} {problem}; it is never replaced. Choose another output_dir=...."
                )
            return False
        made_of = identity_of(folder, self.release_identity)
        changed = differences(made_of, self.release_identity, self._inputs(), self.files)
        if changed:
            lines = "\n  ".join(changed)
            raise ToolkitError(
                f"output_dir {folder} exists already and holds the checkpoint of another run, or of other "
                f"steps of it (train.export):\n  {lines}\nChoose another output_dir=..., remove it, or replace it with "
                "train.resume=never."
            )
        return True

    @contextmanager
    def opened(
        self, start: Checkpoint | None, engine: Engine, stop: Preemption, conditions: Mapping[str, Any]
    ) -> Iterator[None]:
        """Hold the folders for this run: clear what killed or discarded attempts left, write what this one has."""
        engine.barrier()  # no process still looks for its starting point
        self.run_dir.mkdir(parents=True, exist_ok=True)
        with ExitStack() as held:
            if engine.is_main:
                self._lock(held, stop.token.id or "")
                self._claim_output(held)
                if stop.token.is_ours():
                    self._clear(start)
                    write_json(self.run_dir / "run_config.json", dataclasses.asdict(self.config))
                    write_json(self.run_dir / INPUTS, dict(self.files))
                    with (self.run_dir / CONDITIONS).open("a", encoding="utf-8") as file:
                        file.write(json.dumps({"from_step": start.step if start else 0, **conditions}) + "\n")
            stop.barrier()
            yield

    def _lock(self, held: ExitStack, holder: str) -> None:
        """Take the lock of run_dir; one that an attempt of a SLURM job holds on to is no obstacle to the attempt after
        it, since the token keeps the older one from writing."""
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

    def _claim_output(self, held: ExitStack) -> None:
        """Keep other runs from output_dir until `held` ends; refused where one that is running has it."""
        own = os.path.realpath(self.run_dir)
        self.output_dir.parent.mkdir(parents=True, exist_ok=True)
        try:
            held.enter_context(file_lock(self.output_dir, required=False, holder=own))
        except LockHeld as error:
            if error.holder != own:  # else an attempt of this run that has been superseded
                raise ToolkitError(
                    f"output_dir {self.output_dir} is the output of a run that is running, "
                    f"{error.holder or 'unknown'}. Choose another output_dir=..., or wait until that one has ended."
                ) from None
            log.warning("%s: a superseded attempt still holds its lock; going on without it.", self.output_dir)

    def _clear(self, start: Checkpoint | None) -> None:
        remove_leftovers(self.run_dir, "checkpoint-*")
        remove_leftovers(self.output_dir.parent, self.output_dir.name)
        checkpoints = list_checkpoints(self.run_dir)
        if self.from_scratch:
            for old in checkpoints:
                shutil.rmtree(old)
            for name in ("run.json", METRICS, STATUS, BEST, FIRST_BATCH, INPUTS, CONDITIONS):
                (self.run_dir / name).unlink(missing_ok=True)
            for name in (ARTIFACTS, EVALUATIONS):
                shutil.rmtree(self.run_dir / name, ignore_errors=True)
        elif start is not None:
            for newer in checkpoints[checkpoints.index(start.folder) + 1 :]:  # damaged, or start would be one of them
                aside = newer.with_name(newer.name + ".damaged")
                shutil.rmtree(aside, ignore_errors=True)
                newer.rename(aside)

    def may_replace(self) -> Callable[[Path], None]:
        """For `whole_folder` over output_dir: raises where what lies there must stay."""
        checkpoints, ours = list_checkpoints(self.run_dir), identity_digest(self.release_identity)

        def check(folder: Path) -> None:
            mark = _mark(folder)
            problem = _foreign(folder)
            if problem is None and not (mark and (mark == self._to_replace or mark.get("identity") == ours)):
                problem = "holds the finished checkpoint of another run"
            if problem is None or _is_empty(folder):
                return
            raise ToolkitError(
                f"output_dir {self.output_dir} {problem} that was not there when this run began; it is never replaced. "
                f"The weights are in {checkpoints[-1] if checkpoints else self.run_dir}: move that folder away, or "
                "choose another output_dir=..., and start the same command again, which then writes the result only."
            )

        return check


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.iterdir())


def _mark(folder: Path) -> dict[str, Any] | None:
    return read_json(folder / RELEASE_MARK) if (folder / RELEASE_MARK).is_file() else None


def _foreign(folder: Path) -> str | None:
    """What is there that no run made, in words; None where nothing is."""
    if not folder.is_dir():
        return "is no folder"
    if not (folder / RELEASE_MARK).is_file():
        return "exists and holds other files than a finished checkpoint of this toolkit"
    added = foreign_files(folder)
    if not added:
        return None
    more = f" and {len(added) - _FILES_LISTED} more" if len(added) > _FILES_LISTED else ""
    return f"holds files beside a finished checkpoint ({', '.join(added[:_FILES_LISTED])}{more})"

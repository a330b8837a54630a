"""output_dir of a run: claimed while it trains, and given the finished checkpoint without losing anything else."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from finetune.release_mark import RELEASE_MARK, identity_digest
from gr00t.errors import ToolkitError
from gr00t.files import LockHeld, file_lock, read_json
from gr00t.model.manifest import foreign_files

log = logging.getLogger(__name__)
_SHOWN = 4


class RunOutput:
    """The folder that receives a run's finished checkpoint.

    Only two things are ever replaced there: an empty folder, and a finished checkpoint with nothing beside it that is
    this run's own or, with `replaces` (train.resume=never), was there when the run began.
    """

    def __init__(self, folder: Path, run_dir: Path, *, replaces: bool) -> None:
        self.folder, self.run_dir = folder, run_dir
        self._to_replace = _mark(folder) if replaces else None

    def is_empty(self) -> bool:
        """Whether nothing lies there."""
        return not os.path.lexists(self.folder) or _is_empty(self.folder)

    def refuse_foreign(self) -> None:
        """Raise ToolkitError where something lies there that no run made."""
        problem = None if self.is_empty() else _foreign(self.folder)
        if problem:
            raise ToolkitError(
                f"output_dir {self.folder} {problem}; it is never replaced. Choose another output_dir=...."
            )

    def claim(self, held: ExitStack) -> None:
        """Keep other runs from the folder until `held` ends; refused where one that is running has it."""
        own = os.path.realpath(self.run_dir)
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            held.enter_context(file_lock(self.folder, required=False, holder=own))
        except LockHeld as error:
            if error.holder != own:  # else an attempt of this run that has been superseded
                raise ToolkitError(
                    f"output_dir {self.folder} is the output of a run that is running, {error.holder or 'unknown'}. "
                    "Choose another output_dir=..., or wait until that one has ended."
                ) from None
            log.warning("%s: a superseded attempt still holds its lock; going on without it.", self.folder)

    def replaceable(self, identity: dict[str, Any], last_checkpoint: Path | None) -> Callable[[Path], None]:
        """For `whole_folder`: raises where a folder that is in the way must stay."""

        def check(folder: Path) -> None:
            mark = _mark(folder)
            ours = mark is not None and (mark == self._to_replace or mark.get("identity") == identity_digest(identity))
            problem = _foreign(folder) or (None if ours else "holds the finished checkpoint of another run")
            if not problem or _is_empty(folder):
                return
            raise ToolkitError(
                f"output_dir {self.folder} {problem} that was not there when this run began; it is never replaced. The "
                f"weights are in {last_checkpoint or self.run_dir}: move that folder away, or choose another "
                "output_dir=..., and start the same command again, which then writes the result only."
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
    more = f" and {len(added) - _SHOWN} more" if len(added) > _SHOWN else ""
    return f"holds files beside a finished checkpoint ({', '.join(added[:_SHOWN])}{more})"

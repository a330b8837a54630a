"""The token of a run folder: which attempt may write, and how this one ended.

A SLURM job goes on in attempt after attempt. When a node is cut off, the next attempt may start while the old one still
runs there. `python -m finetune.slurm.attempt begin` writes a new id to run_dir/attempt.json and hands it to the
processes it starts; whoever finds another id there has been superseded, and must not write any more. Without the
variables (a local run) nobody is superseded: the lock beside run_dir keeps two local runs apart.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gr00t.errors import ToolkitError
from gr00t.files import write_json

log = logging.getLogger(__name__)
TOKEN = "attempt.json"
OUTCOME = "outcome.json"
ATTEMPT, ATTEMPT_ID = "GROOT_ATTEMPT", "GROOT_ATTEMPT_ID"
# What making room or a right remedies; other errors of a disk pass, so a further attempt may succeed.
_LASTING = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR)
READ_SECONDS = 5.0  # a network file system may lose a file for a moment while it is replaced


class Superseded(Exception):
    """Another attempt has taken over the run folder."""


@dataclass
class AttemptToken:
    """This attempt's number and id; both None outside SLURM."""

    run_dir: Path
    attempt: str | None = None
    id: str | None = None
    _lost: bool = False

    @classmethod
    def from_environment(cls, run_dir: Path) -> AttemptToken:
        """The token that `attempt begin` handed to this process."""
        return cls(run_dir, os.environ.get(ATTEMPT), os.environ.get(ATTEMPT_ID))

    def is_ours(self) -> bool:
        """Whether this attempt may write; what is lost once stays lost."""
        if self.id is not None and not self._lost and self._read() != self.id:
            self._lost = True
            log.warning("another attempt has taken over %s; this one stops and writes nothing more", self.run_dir)
        return not self._lost

    def require(self) -> None:
        """Raise Superseded unless this attempt may write."""
        if not self.is_ours():
            raise Superseded(f"another attempt has taken over {self.run_dir}")

    def record(self, status: str, reason: str, step: int, checkpoint: str | None) -> None:
        """Write attempts/<n>/outcome.json; a failure that is recorded there already is what counts."""
        if self.attempt is None:
            return
        path = self.run_dir / "attempts" / self.attempt / OUTCOME
        if path.exists():
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, {"status": status, "reason": reason, "step": step, "checkpoint": checkpoint})
        except OSError as error:  # without it the attempt counts as crashed, which is the cautious reading
            log.warning("%s cannot be written: %s", path, error)

    @contextmanager
    def failures(self) -> Iterator[None]:
        """Record a ToolkitError of the block: what only the user can mend must not be tried again."""
        try:
            yield
        except ToolkitError as error:
            cause = error.__cause__
            if not isinstance(cause, OSError) or cause.errno in _LASTING:
                self.record("failed", str(error), 0, None)
            raise

    def _read(self) -> str | None:
        """The id in attempt.json; None where it is gone for good."""
        until = time.monotonic() + READ_SECONDS
        while True:
            try:
                return str(json.loads((self.run_dir / TOKEN).read_text())["id"])
            except (OSError, ValueError, KeyError) as error:
                if time.monotonic() > until:
                    if isinstance(error, FileNotFoundError):
                        return None
                    raise
                time.sleep(0.2)

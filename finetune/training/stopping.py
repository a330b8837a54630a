"""Why a run stops before its last step, and which attempt of a job may write its run folder.

Each process sets a flag for every reason that it knows; the flags are summed in the all-reduce of each step, so all
processes stop after the same step.

A SLURM job continues in attempt after attempt, and the old one may still run on a node that is cut off. `python -m
finetune.slurm.attempt begin` writes a new id to run_dir/attempt.json and hands it to the processes it starts; a process
that finds another id there may not write any more. Local runs have no id: the lock beside run_dir keeps them apart."""

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

import torch
from torch import Tensor

from finetune.recipe import FinetuneConfig
from finetune.training.engine import Engine
from gr00t.errors import ToolkitError
from gr00t.file_replacement import write_json
from toolkit.command_line import SIGNALS, received

DEADLINE = "GROOT_DEADLINE"  # unix time at which SLURM ends the job
ATTEMPT, ATTEMPT_ID = "GROOT_ATTEMPT", "GROOT_ATTEMPT_ID"
TOKEN = "attempt.json"
READ_SECONDS = 5.0  # a network file system may lose a file for a moment while it is replaced
SUPERSEDED, TIME_LIMIT = "superseded", "time limit"
REASONS = (SUPERSEDED, *(f"signal {number.name}" for number in SIGNALS), TIME_LIMIT)  # the first one counts
# Errors that need room or a permission; other errors of a disk pass, so a further attempt may succeed.
_LASTING = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR)

log = logging.getLogger(__name__)


class Stopped(Exception):
    """All processes agreed to stop; the text is one of REASONS."""


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
        if not self.is_ours():
            raise Superseded(f"another attempt has taken over {self.run_dir}")

    def record(self, status: str, reason: str, step: int, checkpoint: str | None) -> None:
        """Write attempts/<n>/outcome.json; the first outcome of an attempt is the one that counts."""
        if self.attempt is None:
            return
        path = self.run_dir / "attempts" / self.attempt / "outcome.json"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                write_json(path, {"status": status, "reason": reason, "step": step, "checkpoint": checkpoint})
        except OSError as error:  # without it the attempt counts as crashed, which is the cautious reading
            log.warning("%s cannot be written: %s", path, error)

    @contextmanager
    def failures(self) -> Iterator[None]:
        """Record a ToolkitError of the block: what only the user can mend must not be tried again."""
        try:
            yield
        except ToolkitError as error:
            if not isinstance(error.__cause__, OSError) or error.__cause__.errno in _LASTING:
                self.record("failed", str(error), 0, None)
            raise

    def _read(self) -> str | None:
        """The id in attempt.json; None where the file stays missing."""
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


class ThisAttempt:
    """The attempt that runs, after `step` steps: its configuration, processes and token, and the reasons to stop."""

    def __init__(self, config: FinetuneConfig, engine: Engine, token: AttemptToken) -> None:
        self.config, self.engine, self.token, self.step = config, engine, token, 0
        self.save_seconds = 0.0  # of the last checkpoint
        self._step_seconds = 0.0  # of the longest step
        self._stepped = time.monotonic()
        self._stop_at = stop_time(time.time(), os.environ.get(DEADLINE), config.cluster.grace_seconds)
        self._received = torch.zeros(len(REASONS))
        self._ready = torch.cuda.Event() if engine.device.type == "cuda" else None

    @property
    def writes(self) -> bool:
        """Whether this process is the one that writes the run folder."""
        return self.engine.is_main and self.token.is_ours()

    def flags(self) -> Tensor:
        """(len(REASONS),) float32 on the engine's device: 1 for each reason that this process knows."""
        number, is_main = received(), self.engine.is_main
        known = {f"signal {number.name}"} if number else set()
        if is_main and not self.token.is_ours():
            known.add(SUPERSEDED)
        if is_main and time.time() + 2 * self._step_seconds + self.save_seconds > self._stop_at:
            known.add(TIME_LIMIT)
        return torch.tensor([float(reason in known) for reason in REASONS]).to(self.engine.device, non_blocking=True)

    def receive(self, flags: Tensor) -> None:
        """Take the `flags` of all processes, summed; `agreed` reads them later, without holding the device up."""
        # The view keeps the reduced tensor: to free it, gloo's thread would wait for Python's lock, which the process
        # may hold while it ends and waits for that thread.
        self._received = flags[:].to("cpu", non_blocking=True)
        if self._ready is not None:
            self._ready.record()

    def exchange(self) -> None:
        """Sum the flags outside of a step, in an all-reduce of their own."""
        self.receive(self.engine.sum(self.flags()))

    def agreed(self, step: int) -> str | None:
        """The reason to stop after `step` steps, from the flags received last; waits for their sum only."""
        now = time.monotonic()
        self._step_seconds, self._stepped = max(self._step_seconds, now - self._stepped), now
        self.step = step
        reason = self._reason()
        if reason is not None and self.engine.is_main:
            log.warning("%s: stopping after step %d", reason, step)
        return reason

    def check(self, *but: str) -> None:
        """All processes at once, outside of steps: raise Stopped when one of them has a reason that is not in `but`."""
        self.exchange()
        reason = self._reason()
        if reason is not None and reason not in but:
            raise Stopped(reason)
        self._stepped = time.monotonic()

    def barrier(self) -> None:
        """Wait for all processes; raises Stopped where this attempt has been superseded."""
        self.check(*REASONS[1:])

    def _reason(self) -> str | None:
        if self._ready is not None:
            self._ready.synchronize()
        return next((reason for reason, count in zip(REASONS, self._received, strict=True) if count), None)


def again(config: FinetuneConfig) -> str:
    """What continues a run that has begun: the same command, but train.resume=never would delete its checkpoints."""
    return f"the same command{' with train.resume=auto' if config.train.resume == 'never' else ''}"


def stop_time(now: float, deadline: str | None, grace_seconds: float) -> float:
    """The unix time at which to stop unasked: `grace_seconds` before the job's end, but not before half of the time
    that is left at `now` is used; infinity when the end is unknown."""
    if deadline is None:
        return float("inf")
    end = float(deadline)
    half = now + (end - now) / 2
    if half > end - grace_seconds:
        text = "The job ends in %.0f s, cluster.grace_seconds is %.0f: half of that time is used. Ask for more "
        log.warning(text + "(cluster.time), or for a shorter grace time.", end - now, grace_seconds)
    return max(end - grace_seconds, half)

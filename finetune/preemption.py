"""When to stop before the last step: a signal, the job's time limit, another attempt; agreed on by all processes.

Each process says in the sum that every step takes anyway what it knows; all read the same answer at the end of that
step, and save together.
"""

from __future__ import annotations

import logging
import os
import time

import torch
from torch import Tensor

from finetune.attempt_token import AttemptToken
from finetune.engine import Engine
from finetune.stop_signals import SIGNALS, received

log = logging.getLogger(__name__)
DEADLINE = "GROOT_DEADLINE"  # unix time at which SLURM ends the job
SUPERSEDED, TIME_LIMIT = "superseded", "time limit"
REASONS = (SUPERSEDED, *(f"signal {number.name}" for number in SIGNALS), TIME_LIMIT)  # the first one counts


class Stopped(Exception):
    """All processes agreed to stop; the text is one of REASONS."""


class Preemption:
    """What this process knows of reasons to stop, and what all have agreed on. `step` is how many steps are done."""

    def __init__(self, engine: Engine, token: AttemptToken, grace_seconds: float) -> None:
        self.engine, self.token, self.step = engine, token, 0
        self.save_seconds = 0.0  # of the last checkpoint
        self._step_seconds = 0.0  # of the longest step
        self._stepped = time.monotonic()
        self._stop_at = stop_time(time.time(), os.environ.get(DEADLINE), grace_seconds)
        self._agreed = torch.zeros(len(REASONS))
        self._ready = torch.cuda.Event() if engine.device.type == "cuda" else None

    def sum(self, value: Tensor) -> Tensor:
        """engine.sum of a float32 scalar, with this process's reasons carried along."""
        known = torch.tensor(self._known()).to(value.device, non_blocking=True)
        summed = self.engine.sum(torch.cat([value.reshape(1), known]))
        self._agreed = summed[1:].to("cpu", non_blocking=True)
        if self._ready is not None:
            self._ready.record()
        return summed[0]

    def agreed(self, step: int) -> str | None:
        """The reason to stop after `step` steps that was agreed on by the last `sum`; waits for that sum only."""
        now = time.monotonic()
        self._step_seconds, self._stepped = max(self._step_seconds, now - self._stepped), now
        self.step = step
        reason = self._reason()
        if reason is not None and self.engine.is_main:
            log.warning("%s: stopping after step %d", reason, step)
        return reason

    def check(self, *but: str) -> None:
        """All processes at once, outside steps: raises Stopped when one of them has a reason, `but` for these."""
        self.sum(torch.zeros((), device=self.engine.device))
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
        return next((reason for reason, count in zip(REASONS, self._agreed, strict=True) if count), None)

    def _known(self) -> list[float]:
        main, number = self.engine.is_main, received()
        needed = 2 * self._step_seconds + self.save_seconds
        reasons = {
            SUPERSEDED: main and not self.token.is_ours(),
            TIME_LIMIT: main and time.time() + needed > self._stop_at,
        }
        if number is not None:
            reasons[f"signal {number.name}"] = True
        return [float(reasons.get(reason, False)) for reason in REASONS]


def stop_time(now: float, deadline: str | None, grace_seconds: float) -> float:
    """The unix time at which to stop by oneself: `grace_seconds` before the job's end, infinity when that is unknown.

    At least half of the time that is left at `now` is used.
    """
    if deadline is None:
        return float("inf")
    end = float(deadline)
    half = now + (end - now) / 2
    if half > end - grace_seconds:
        log.warning(
            "The job ends in %.0f s, cluster.grace_seconds is %.0f: half of that time is used. Ask for more "
            "(cluster.time), or for a shorter grace time.",
            end - now,
            grace_seconds,
        )
    return max(end - grace_seconds, half)

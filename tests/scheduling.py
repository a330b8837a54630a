"""SVT-AV1 run by root turns the process that encodes into a real-time one, which starves all others on its core."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


def policy() -> int:
    """How this process is scheduled; 0 is the usual way."""
    return os.sched_getscheduler(0) if sys.platform == "linux" else 0


@contextmanager
def usual_scheduling() -> Iterator[None]:
    """Undo, at the end, what a library made of this process's scheduling, which later children would inherit."""
    before = policy()
    try:
        yield
    finally:
        if policy() != before:
            os.sched_setscheduler(0, before, os.sched_param(0))

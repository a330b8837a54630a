"""The signals that ask a run to save and stop: remembered where they arrive, obeyed at the end of a step.

Nothing here imports torch: the entry script listens before the seconds in which torch and the model are loaded.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# SLURM's own and the job's, ahead of preemption or the time limit; torchrun stops its workers with SIGTERM.
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
_received: signal.Signals | None = None
_listening = False


@contextmanager
def stop_signals() -> Iterator[None]:
    """Remember SIGNALS in place of dying of them; within another such block, or in a thread, this does nothing."""
    global _listening, _received
    if _listening or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _remember) for number in SIGNALS}
    _listening, _received = True, None
    try:
        yield
    finally:
        _listening = False
        for number, handler in before.items():
            signal.signal(number, handler)


def received() -> signal.Signals | None:
    """The first of SIGNALS that came, None while none has."""
    return _received


def leave_signals_to_parent() -> None:
    """Ignore SIGNALS in a process that a parent started and ends: SLURM sends them to every process of a job."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def held_back() -> Iterator[None]:
    """Block SIGNALS; programs started meanwhile inherit that and are never hit, this process is right afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _remember(number: int, frame: FrameType | None) -> None:
    global _received
    del frame
    _received = _received or signal.Signals(number)

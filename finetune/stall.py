"""Notices that a run hangs: nothing is done for minutes, though there is no error either."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class StallWatch:
    """A thread that calls `on_stall` with the seconds since the last `beat` when they exceed `limit_seconds`; once for
    each standstill. A limit of None watches nothing."""

    def __init__(self, limit_seconds: float | None, on_stall: Callable[[float], None]) -> None:
        self._limit, self._on_stall = limit_seconds, on_stall
        self._last, self._told = time.monotonic(), False
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        if limit_seconds is not None:
            self._thread = threading.Thread(target=self._watch, name="stall watch", daemon=True)
            self._thread.start()

    def beat(self) -> None:
        """The run got on."""
        self._last, self._told = time.monotonic(), False

    def close(self) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self) -> None:
        assert self._limit is not None
        while not self._ended.wait(min(self._limit / 4, 10.0)):
            silence = time.monotonic() - self._last
            if silence > self._limit and not self._told:
                self._told = True
                self._on_stall(silence)

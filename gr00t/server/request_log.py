"""What a server tells of its requests: now and then a line, however many there are."""

from __future__ import annotations

import logging
import time

from gr00t.server.endpoints import Reply

log = logging.getLogger(__name__)
SECONDS_BETWEEN_ERRORS = 1.0


class RequestLog:
    """Counts every request; logs the first answered get_action and then a line per `every` of them, and refusals at
    most once a second."""

    def __init__(self, every: int) -> None:
        self.requests = 0
        self._every = every
        self._actions: list[float] = []  # seconds since the last line
        self._answered = 0
        self._refused = 0  # since the last line of a refusal
        self._spoke = -SECONDS_BETWEEN_ERRORS

    def note(self, reply: Reply, seconds: float) -> None:
        """Take one reply and the seconds it took."""
        self.requests += 1
        if reply.error is not None:
            self._refuse(reply)
        elif reply.endpoint == "get_action":
            self._act(seconds)

    def _act(self, seconds: float) -> None:
        self._answered += 1
        self._actions.append(seconds)
        if self._answered == 1 or self._answered % self._every == 0:
            mean, most = sum(self._actions) / len(self._actions), max(self._actions)
            log.info("get_action %d: %.0f ms on average, %.0f at most", self._answered, 1e3 * mean, 1e3 * most)
            self._actions.clear()

    def _refuse(self, reply: Reply) -> None:
        self._refused += 1
        now = time.monotonic()
        if now - self._spoke >= SECONDS_BETWEEN_ERRORS:
            more = f" ({self._refused} refusals since the last line)" if self._refused > 1 else ""
            log.warning("%s refused: %s%s", reply.endpoint, reply.error, more)
            self._spoke, self._refused = now, 0

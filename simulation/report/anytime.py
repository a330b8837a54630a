"""Intervals and answers that hold at every look: an evaluation may end as soon as a question is answered.

An interval for a fixed number of episodes is wrong more often than it says when one looks again and again and stops at
a pleasing moment. Here a bet is placed on each episode against the claim that the mean is m; where the claim is true,
no betting turns 1 into 1/alpha with a probability of more than alpha, however long it continues (Ville 1939). The
means against which the bets have not won that much form an interval that holds at all looks together (Waudby-Smith and
Ramdas 2024, Journal of the Royal Statistical Society B 86; for policies STEP, arXiv:2503.10966)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

CONFIDENCE = 0.95
# Parts of the largest possible bet, and how much is placed so: most on what decides differences of 10 to 50 points
# soonest, some on small bets, which only hundreds of episodes repay, and without which no interval becomes narrow.
_BETS = np.array([0.2, 0.35, 0.5, 0.01, 0.03, 0.08, 0.7])
_STAKES = np.array([0.28, 0.28, 0.28, 0.04, 0.04, 0.04, 0.04])
_HALVINGS = 40

Side = Literal["above", "below"]


@dataclass(frozen=True)
class Outcomes:
    """Episodes by a bounded value, of which the mean is asked: {1: successes, 0: failures}, or in pairs of the same
    episode {1: only the first succeeded, 0: both or none, -1: only the second}.

    counts: by value. low, high: the least and the largest value that there can be.
    """

    counts: Mapping[float, int]
    low: float = 0.0
    high: float = 1.0

    @classmethod
    def of(cls, values: Iterable[bool]) -> Outcomes:
        """Episodes that succeeded or not."""
        found = list(values)
        return cls({1.0: sum(found), 0.0: len(found) - sum(found)})

    @classmethod
    def of_pairs(cls, pairs: Iterable[tuple[bool, bool]]) -> Outcomes:
        """Two policies in the same episodes: the first's success minus the second's."""
        found = [int(first) - int(second) for first, second in pairs]
        return cls({float(value): found.count(value) for value in (-1, 0, 1)}, low=-1.0)

    @property
    def n(self) -> int:
        """Their number."""
        return sum(self.counts.values())

    def evidence(self, mean: float, side: Side) -> float:
        """The logarithm of what bets have won that the true mean lies on that `side` of `mean`."""
        values, times = np.array(list(self.counts)), np.array(list(self.counts.values()))
        # With the values counted from the other end, below is above.
        if side == "above":
            return float(log_winnings(values - self.low, times, mean - self.low))
        return float(log_winnings(self.high - values, times, self.high - mean))

    def interval(self, confidence: float = CONFIDENCE) -> tuple[float, float]:
        """The means that the bets do not exclude; it may be looked at after every episode."""
        limit = -math.log((1.0 - confidence) / 2)
        return self._end("above", limit), self._end("below", limit)

    def _end(self, side: Side, limit: float) -> float:
        """How far from its end of all possible means `side` excludes them: the evidence falls towards the other end."""
        excluded, kept = (self.low, self.high) if side == "above" else (self.high, self.low)
        if not self.evidence(excluded + (kept - excluded) * 1e-9, side) >= limit:
            return excluded
        for _ in range(_HALVINGS):
            middle = (excluded + kept) / 2
            if self.evidence(middle, side) >= limit:
                excluded = middle
            else:
                kept = middle
        return excluded


def log_winnings(values: np.ndarray, times: np.ndarray, mean: float) -> np.ndarray:
    """The logarithm of what 1 has become by bets that the mean of values >= 0 is above `mean`, by _BETS together.

    values: (V,). times: (V, ...) how often each occurred. Returns (...).
    """
    if mean <= 0:
        return np.where(times.sum(0) > 0, -np.inf, 0.0)
    growth = np.log1p(_BETS[:, None] * (values / mean - 1.0))
    won = np.tensordot(growth, times, 1)
    total: np.ndarray = np.logaddexp.reduce(won + np.log(_STAKES).reshape(-1, *[1] * (won.ndim - 1)))
    return total


@dataclass(frozen=True)
class Question:
    """Whether a mean is above `threshold`; with `margin`, whether it is within that distance of it.

    two_sided: whether "neither" may be true (a is no better than b, nor b than a), so that a wrong "yes" and a wrong
    "no" are two ways to err.
    """

    threshold: float
    margin: float | None = None
    two_sided: bool = False
    confidence: float = CONFIDENCE

    def answer(self, outcomes: Outcomes) -> bool | None:
        """Yes, no, or None as long as it is not decided; wrong in at most 1 - confidence of all evaluations, whenever
        they are looked at."""
        alpha = 1.0 - self.confidence
        if self.margin is not None:
            low, high = outcomes.interval(self.confidence)
            if self.threshold - self.margin < low and high < self.threshold + self.margin:
                return True
            return False if low > self.threshold + self.margin or high < self.threshold - self.margin else None
        limit = -math.log(alpha / 2 if self.two_sided else alpha)
        for side, said in (("above", True), ("below", False)):
            if outcomes.evidence(self.threshold, side) >= limit:  # type: ignore[arg-type]
                return said
        return None

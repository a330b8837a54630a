"""Counted shares and their differences, with intervals that hold for few episodes, and for none or all of them.

Wilson 1927 for a share; Newcombe 1998 (Statistics in Medicine 17, methods 10) for the difference of two shares, of
separate episodes (p. 873) or of the same episodes seen twice (p. 2635).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

CONFIDENCE = 0.95


def quantile(confidence: float = CONFIDENCE) -> float:
    """The normal quantile of a two-sided interval: 1.96 for 0.95."""
    return NormalDist().inv_cdf(0.5 + confidence / 2)


@dataclass(frozen=True)
class Share:
    """`count` of `n`, with Wilson's score interval; with n = 0 nothing is known, so the interval is 0 to 1."""

    count: int
    n: int
    confidence: float = CONFIDENCE

    def __post_init__(self) -> None:
        if not 0 <= self.count <= self.n:
            raise ValueError(f"{self.count} of {self.n} is no share")

    @property
    def value(self) -> float | None:
        return self.count / self.n if self.n else None

    @property
    def low(self) -> float:
        return self._bound(self.count)

    @property
    def high(self) -> float:
        return 1.0 - self._bound(self.n - self.count)

    def _bound(self, count: int) -> float:
        """The lower bound for `count`. Exactly 0 for none, which rounding would miss."""
        if count == 0:
            return 0.0
        z, p = quantile(self.confidence), count / self.n
        spread = z * math.sqrt(p * (1 - p) / self.n + (z / (2 * self.n)) ** 2)
        return (p + z * z / (2 * self.n) - spread) / (1 + z * z / self.n)

    def to_json(self) -> dict[str, Any]:
        return {"count": self.count, "n": self.n, "share": self.value, "low": self.low, "high": self.high}


@dataclass(frozen=True)
class Difference:
    """A share minus another one, with its interval; `value` is None where one of them has no episodes.

    n: episodes that stand behind it, of the smaller share.
    """

    value: float | None
    low: float
    high: float
    n: int

    @property
    def shown(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0

    def to_json(self) -> dict[str, Any]:
        return {"difference": self.value, "low": self.low, "high": self.high, "n": self.n, "shown": self.shown}


def difference(first: Share, second: Share, correlation: float = 0.0) -> Difference:
    """`first` minus `second`. `correlation` is 0 for separate episodes."""
    n = min(first.n, second.n)
    if first.value is None or second.value is None:
        return Difference(None, -1.0, 1.0, n)
    p, q = first.value, second.value
    return Difference(
        p - q,
        p - q - _joined(p - first.low, second.high - q, correlation),
        p - q + _joined(first.high - p, q - second.low, correlation),
        n,
    )


def paired_difference(pairs: Sequence[tuple[bool, bool]]) -> Difference:
    """The share of `True` among the first of each pair minus that among the second, of the same episodes."""
    both = sum(a and b for a, b in pairs)
    only_first, only_second = sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)
    neither = len(pairs) - both - only_first - only_second
    first, second = Share(both + only_first, len(pairs)), Share(both + only_second, len(pairs))
    scale = math.sqrt(first.count * (first.n - first.count) * second.count * (second.n - second.count))
    excess: float = both * neither - only_first * only_second
    if excess > 0:  # Newcombe's continuity correction
        excess = max(excess - len(pairs) / 2, 0)
    return difference(first, second, excess / scale if scale else 0.0)


def _joined(a: float, b: float, correlation: float) -> float:
    return math.sqrt(max(a * a + b * b - 2 * correlation * a * b, 0.0))

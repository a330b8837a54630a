"""Shares, differences of shares, and intervals of both that hold for few episodes, and for none or all of them: Wilson
1927 for a share; Newcombe 1998 (Statistics in Medicine 17, methods 10) for the difference of two shares, of separate
episodes (p. 873) or of the same episodes seen twice (p. 2635)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, is_dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from toolkit.html_page import percent

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Share:
    """`count` of `n`, with Wilson's score interval; with n = 0 nothing is known, so the interval is 0 to 1."""

    count: int
    n: int
    confidence: float = CONFIDENCE

    @classmethod
    def of(cls, outcomes: Iterable[bool]) -> Share:
        """Of these the share that is true."""
        found = list(outcomes)
        return cls(sum(found), len(found))

    def __post_init__(self) -> None:
        if not 0 <= self.count <= self.n:
            raise ValueError(f"{self.count} of {self.n} is no share")

    @property
    def value(self) -> float | None:
        """count / n; None of no episodes."""
        return self.count / self.n if self.n else None

    @property
    def low(self) -> float:
        """The lower end of the interval."""
        return self._bound(self.count)

    @property
    def high(self) -> float:
        """The upper end of the interval."""
        return 1.0 - self._bound(self.n - self.count)

    def _bound(self, count: int) -> float:
        """The lower bound for `count`. Exactly 0 for none, which rounding would miss."""
        if count == 0:
            return 0.0
        z, p = NormalDist().inv_cdf(0.5 + self.confidence / 2), count / self.n
        spread = z * math.sqrt(p * (1 - p) / self.n + (z / (2 * self.n)) ** 2)
        return (p + z * z / (2 * self.n) - spread) / (1 + z * z / self.n)

    def __str__(self) -> str:
        """63 % (19/30, 45 to 78 %)."""
        if self.value is None:
            return "none (0/0)"
        return f"{percent(self.value)} ({self.count}/{self.n}, {self.interval})"

    @property
    def counts(self) -> str:
        """63 % (19/30)."""
        return "0/0" if self.value is None else f"{percent(self.value)} ({self.count}/{self.n})"

    @property
    def interval(self) -> str:
        """45 to 78 %."""
        return f"{100 * self.low:.0f} to {percent(self.high)}"


def together(shares: Iterable[Share]) -> Share:
    """One share of all their episodes."""
    found = list(shares)
    return Share(sum(share.count for share in found), sum(share.n for share in found))


@dataclass(frozen=True)
class Difference:
    """A share minus another one, with its interval; `value` is None where one has no episodes, `n` the smaller n."""

    value: float | None
    low: float
    high: float
    n: int

    @property
    def shown(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        """-45 points (-60 to -22)."""
        if self.value is None:
            return "unknown"
        return f"{100 * self.value:+.0f} points ({100 * self.low:+.0f} to {100 * self.high:+.0f})"


@dataclass(frozen=True)
class Quartiles:
    """Of n numbers, by linear interpolation."""

    n: int
    first_quartile: float
    median: float
    third_quartile: float


def quartiles(numbers: Sequence[float]) -> Quartiles | None:
    """Their quartiles; None where there are no values."""
    if not numbers:
        return None
    return Quartiles(len(numbers), *(float(q) for q in np.quantile(numbers, [0.25, 0.5, 0.75])))


def difference(first: Share, second: Share, correlation: float = 0.0) -> Difference:
    """`first` minus `second`. `correlation` is 0 for separate episodes."""
    n = min(first.n, second.n)
    if first.value is None or second.value is None:
        return Difference(None, -1.0, 1.0, n)
    p, q = first.value, second.value

    def joined(a: float, b: float) -> float:
        return math.sqrt(max(a * a + b * b - 2 * correlation * a * b, 0.0))

    below, above = joined(p - first.low, second.high - q), joined(first.high - p, q - second.low)
    return Difference(p - q, p - q - below, p - q + above, n)


def paired_difference(pairs: Sequence[tuple[bool, bool]]) -> Difference:
    """The share of `True` among the first of each pair minus that among the second, of the same episodes."""
    n = Counter(pairs)
    both, only_first, only_second, neither = n[True, True], n[True, False], n[False, True], n[False, False]
    first, second = Share(both + only_first, len(pairs)), Share(both + only_second, len(pairs))
    scale = math.sqrt(first.count * (first.n - first.count) * second.count * (second.n - second.count))
    excess: float = both * neither - only_first * only_second
    if excess > 0:  # Newcombe's continuity correction
        excess = max(excess - len(pairs) / 2, 0)
    return difference(first, second, excess / scale if scale else 0.0)


def many(count: int, name: str) -> str:
    """1 pick, 2 picks."""
    return f"{count} {name}{'s' * (count != 1)}"


def plain(value: Any) -> Any:
    """Anything that holds shares and differences as plain JSON, as the reports hold it."""
    if isinstance(value, Share):
        return {"count": value.count, "n": value.n, "share": value.value, "low": value.low, "high": value.high}
    if isinstance(value, Difference):
        return {"difference": value.value, "low": value.low, "high": value.high, "n": value.n, "shown": value.shown}
    if is_dataclass(value):
        value = vars(value)
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    return [plain(entry) for entry in value] if isinstance(value, tuple | list) else value

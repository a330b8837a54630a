"""What closed-loop episodes add up to: success, first picks and cue preference, per condition, part and factor.

Everything is computed from the episodes, without torch or a simulator, so that a report can be made again. Shares and
their differences have intervals that hold for few episodes, and for none or all of them: Wilson 1927 for a share;
Newcombe 1998 (Statistics in Medicine 17, methods 10) for the difference of two shares, of separate episodes (p. 873)
or of the same episodes seen twice (p. 2635)."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, is_dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from simulation.closed_loop import CONDITIONS, LURE, PICKS, TARGET, EpisodeOutcome, Evaluation
from simulation.scenes.plate_suite import FACTORS, split_factors
from toolkit.html_page import percent
from toolkit.shared_keys import PARTS

CONFIDENCE = 0.95
AS_IT_IS = "none"
BOTH_PARTS = "both"


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


@dataclass(frozen=True)
class Steps:
    """Control steps until the target was held, over the n successes; quartiles by linear interpolation."""

    n: int
    first_quartile: float
    median: float
    third_quartile: float


@dataclass(frozen=True)
class Counted:
    """What a number of episodes ended with.

    preference: of those in which target or lure was picked first, the share that picked the target.
    missed: of those that picked the target first, the share that ended without success (dropped, or not held still).
    steps: None without a success.
    """

    success: Share
    picks: dict[str, Share]
    preference: Share
    missed: Share
    steps: Steps | None


@dataclass(frozen=True)
class FactorTable:
    """One part's episodes, as they are, by one factor of the target, the lure or the plate."""

    part: str
    whose: str
    factor: str
    rows: dict[str, Counted]


@dataclass(frozen=True)
class WeakSpot:
    """A value of a factor with which the policy succeeds less often than with the others."""

    part: str
    whose: str
    factor: str
    value: str
    success: Share
    others: Share

    def __str__(self) -> str:
        return (
            f"{self.part}, {self.whose}'s {self.factor} {self.value}: success in {self.success}, with the other values "
            f"in {self.others}."
        )


@dataclass(frozen=True)
class Change:
    """What a condition changes, on the episodes that were played both ways (the same part and seed).

    part: of PARTS, or both. before, after: without and with the condition. success, target_picks: after minus before,
    paired. preference: the same of the cue preference, whose two shares rest on different episodes. other_pick:
    episodes in which something else was picked first.
    """

    condition: str
    part: str
    before: Counted
    after: Counted
    success: Difference
    target_picks: Difference
    preference: Difference
    other_pick: Share

    def __str__(self) -> str:
        return (
            f"With {CONDITIONS[self.condition]}, success goes from {self.before.success.counts} to "
            f"{self.after.success.counts}: {self.success}."
        )


@dataclass(frozen=True)
class Summary:
    """The numbers of one evaluation. counted: {condition: {part: Counted}}, only what was played."""

    cues: tuple[str, str]
    counted: dict[str, dict[str, Counted]]
    chance: dict[str, float]
    factors: tuple[FactorTable, ...]
    weak_spots: tuple[WeakSpot, ...]
    changes: tuple[Change, ...]

    def of(self, part: str, condition: str = AS_IT_IS) -> Counted:
        """One part under one condition; all zeros where it was not played."""
        return self.counted.get(condition, {}).get(part) or count([])

    def change(self, condition: str, part: str = BOTH_PARTS) -> Change | None:
        """What a condition changes in one part, or in both together; None where it was not played."""
        return next((c for c in self.changes if (c.condition, c.part) == (condition, part)), None)

    def each(self) -> Iterator[tuple[str, str, Counted]]:
        """(condition, part, what was counted) of everything that was played."""
        for condition, parts in self.counted.items():
            for part, counted in parts.items():
                yield condition, part, counted

    @property
    def preference(self) -> Share:
        """The cue preference: a over b, in the conflict part, as it is."""
        return self.of("conflict").preference


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


def summarize(evaluation: Evaluation) -> Summary:
    """The summary of an evaluation; an unknown split raises ToolkitError."""
    groups: dict[str, dict[str, list[EpisodeOutcome]]] = {}
    for condition, part in itertools.product(CONDITIONS, PARTS):
        found = [e for e in evaluation.episodes if (e.condition, e.part) == (condition, part)]
        if found:
            groups.setdefault(condition, {})[part] = found
    played = groups.get(AS_IT_IS, {})
    cues, tables = split_factors(evaluation.info["split"]), tuple(_factor_tables(played))
    return Summary(
        cues=cues,
        counted={c: {part: count(found) for part, found in parts.items()} for c, parts in groups.items()},
        # How often a policy would pick the target that picks an object, no matter which.
        chance={p: sum(1 / len(e.episode["objects"]) for e in found) / len(found) for p, found in played.items()},
        factors=tables,
        weak_spots=tuple(_weak_spots(tables, cues)),
        changes=tuple(_changes(groups)),
    )


def count(episodes: Sequence[EpisodeOutcome]) -> Counted:
    """Episodes of any kind, counted; of none of them too."""
    n, picked = len(episodes), {pick: sum(e.picked == pick for e in episodes) for pick in PICKS}
    # In train there is no lure to prefer: only conflict episodes count.
    by_cue = [e.picked for e in episodes if e.part == "conflict" and e.picked in (TARGET, LURE)]
    steps = [e.steps for e in episodes if e.success]
    return Counted(
        success=Share(len(steps), n),
        picks={pick: Share(picked[pick], n) for pick in PICKS},
        preference=Share(by_cue.count(TARGET), len(by_cue)),
        missed=Share(sum(e.picked == TARGET and not e.success for e in episodes), picked[TARGET]),
        steps=Steps(len(steps), *(float(q) for q in np.quantile(steps, [0.25, 0.5, 0.75]))) if steps else None,
    )


def _factor_tables(played: dict[str, list[EpisodeOutcome]]) -> Iterator[FactorTable]:
    """Every factor of target, lure and plate; each table holds every episode of its part once."""
    for part, episodes in played.items():
        for whose in ("target", "lure", "plate") if part == "conflict" else ("target", "plate"):
            for factor, values in FACTORS.items():
                rows = {v: count([e for e in episodes if (e.thing(whose) or {}).get(factor) == v]) for v in values}
                yield FactorTable(part, whose, factor, rows)


def _weak_spots(tables: Sequence[FactorTable], cues: tuple[str, str]) -> Iterator[WeakSpot]:
    """Values with which success is lower than with the rest of their table, at a joint confidence of 95 %.

    Bonferroni over all values compared: among sixty comparisons at 95 % each, three would stand out by chance. In the
    cues the plate has the target's or the lure's values, so these are not compared again.
    """
    apart = [table for table in tables if table.whose != "plate" or table.factor not in cues]
    rows = [(table, value) for table in apart for value in table.rows]
    confidence = 1 - (1 - CONFIDENCE) / max(len(rows), 1)
    for table, value in rows:
        here = table.rows[value].success
        rest = [counted.success for other, counted in table.rows.items() if other != value]
        others = Share(sum(s.count for s in rest), sum(s.n for s in rest))
        strict = difference(Share(here.count, here.n, confidence), Share(others.count, others.n, confidence))
        if strict.high < 0:
            yield WeakSpot(table.part, table.whose, table.factor, value, here, others)


def _changes(groups: dict[str, dict[str, list[EpisodeOutcome]]]) -> Iterator[Change]:
    """What each condition changes in each part, and in both together."""
    played = {(e.part, e.seed): e for episodes in groups.get(AS_IT_IS, {}).values() for e in episodes}
    for condition, parts in groups.items():
        if condition == AS_IT_IS:
            continue
        for part, episodes in {**parts, BOTH_PARTS: [e for found in parts.values() for e in found]}.items():
            pairs = [(e, played[e.part, e.seed]) for e in episodes if (e.part, e.seed) in played]
            after, before = count([a for a, _ in pairs]), count([b for _, b in pairs])
            yield Change(
                condition=condition,
                part=part,
                before=before,
                after=after,
                success=paired_difference([(a.success, b.success) for a, b in pairs]),
                target_picks=paired_difference([(a.picked == TARGET, b.picked == TARGET) for a, b in pairs]),
                preference=difference(after.preference, before.preference),
                other_pick=Share(sum(a.picked != b.picked for a, b in pairs), len(pairs)),
            )

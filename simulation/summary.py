"""What closed-loop episodes add up to: success, first picks and cue preference, per condition, part and factor.

Needs neither torch nor a simulator. Everything is computed from the episodes, so that a report can be made anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from simulation.factors import FACTORS, PARTS, split_factors
from simulation.outcomes import CONDITIONS, LURE, PICKS, TARGET, EpisodeOutcome, Evaluation
from simulation.shares import CONFIDENCE, Difference, Share, difference, paired_difference

AS_IT_IS = "none"
BOTH_PARTS = "both"
WHOSE = ("target", "lure", "plate")  # whose factors success is broken down by


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

    @property
    def n(self) -> int:
        return self.success.n


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

    @property
    def preference(self) -> Share:
        """The cue preference: a over b, in the conflict part, as it is."""
        return self.of("conflict").preference


def summarize(evaluation: Evaluation) -> Summary:
    """The summary of an evaluation; an unknown split raises ToolkitError."""
    episodes = evaluation.episodes
    plain = _under(episodes, AS_IT_IS)
    cues, tables = split_factors(evaluation.info["split"]), tuple(factor_tables(plain))
    return Summary(
        cues=cues,
        counted={
            condition: {part: count(_in(_under(episodes, condition), part)) for part in _parts(episodes, condition)}
            for condition in CONDITIONS
            if _parts(episodes, condition)
        },
        chance={part: _chance(_in(plain, part)) for part in _parts(episodes, AS_IT_IS)},
        factors=tables,
        weak_spots=tuple(weak_spots(tables, cues)),
        changes=tuple(_changes(episodes)),
    )


def count(episodes: Sequence[EpisodeOutcome]) -> Counted:
    """Episodes of any kind, counted; of none of them too."""
    n, picked = len(episodes), {pick: sum(e.picked == pick for e in episodes) for pick in PICKS}
    missed = sum(e.picked == TARGET and not e.success for e in episodes)
    return Counted(
        success=Share(sum(e.success for e in episodes), n),
        picks={pick: Share(picked[pick], n) for pick in PICKS},
        preference=_preference(episodes),
        missed=Share(missed, picked[TARGET]),
        steps=_steps([e.steps for e in episodes if e.success]),
    )


def _preference(episodes: Iterable[EpisodeOutcome]) -> Share:
    """In train there is no lure to prefer: only conflict episodes count."""
    picks = [e.picked for e in episodes if e.part == "conflict" and e.picked in (TARGET, LURE)]
    return Share(picks.count(TARGET), len(picks))


def _steps(steps: Sequence[int]) -> Steps | None:
    if not steps:
        return None
    return Steps(len(steps), *(float(q) for q in np.quantile(steps, [0.25, 0.5, 0.75])))


def _chance(episodes: Sequence[EpisodeOutcome]) -> float:
    """How often a policy would pick the target that picks an object, no matter which."""
    return sum(1 / len(e.episode["objects"]) for e in episodes) / len(episodes)


def _under(episodes: Iterable[EpisodeOutcome], condition: str) -> list[EpisodeOutcome]:
    return [e for e in episodes if e.condition == condition]


def _in(episodes: Iterable[EpisodeOutcome], part: str) -> list[EpisodeOutcome]:
    return [e for e in episodes if e.part == part]


def _parts(episodes: Iterable[EpisodeOutcome], condition: str) -> list[str]:
    """The parts that were played under a condition, in the usual order."""
    played = {e.part for e in episodes if e.condition == condition}
    return [part for part in PARTS if part in played]


# -- by factor ---------------------------------------------------------------------------------------------------------


def thing(outcome: EpisodeOutcome, whose: str) -> dict[str, Any] | None:
    """The factors and place of an episode's target, lure or plate; None for the lure of a train episode."""
    if whose == "plate":
        return outcome.episode["plate"]
    index = outcome.episode[whose]
    return None if index is None else outcome.episode["objects"][index]


def factor_tables(episodes: Sequence[EpisodeOutcome]) -> list[FactorTable]:
    """Every factor of target, lure and plate; each table holds every episode of its part once."""
    tables = []
    for part in PARTS:
        played = _in(episodes, part)
        for whose in WHOSE if part == "conflict" else ("target", "plate"):
            for factor, values in FACTORS.items() if played else ():
                rows = {v: count([e for e in played if (thing(e, whose) or {}).get(factor) == v]) for v in values}
                tables.append(FactorTable(part, whose, factor, rows))
    return tables


def weak_spots(tables: Iterable[FactorTable], cues: tuple[str, str]) -> list[WeakSpot]:
    """Values with which success is lower than with the rest of their table, at a joint confidence of 95 %.

    Bonferroni over all values compared: among sixty comparisons at 95 % each, three would stand out by chance. In the
    cues the plate has the target's or the lure's values, so these are not compared again.
    """
    apart = [table for table in tables if table.whose != "plate" or table.factor not in cues]
    rows = [(table, value) for table in apart for value in table.rows]
    confidence = 1 - (1 - CONFIDENCE) / max(len(rows), 1)
    found = []
    for table, value in rows:
        here = table.rows[value].success
        rest = [counted.success for other, counted in table.rows.items() if other != value]
        success = Share(here.count, here.n, confidence)
        others = Share(sum(s.count for s in rest), sum(s.n for s in rest), confidence)
        if difference(success, others).high < 0:
            plain = Share(here.count, here.n), Share(others.count, others.n)
            found.append(WeakSpot(table.part, table.whose, table.factor, value, *plain))
    return found


# -- ablations ---------------------------------------------------------------------------------------------------------


def _changes(episodes: Sequence[EpisodeOutcome]) -> list[Change]:
    found = []
    for condition in CONDITIONS:
        if condition == AS_IT_IS or not _parts(episodes, condition):
            continue
        pairs = _in_both(episodes, condition)
        for part in _parts(episodes, condition):
            found.append(change(condition, part, [(b, a) for b, a in pairs if a.part == part]))
        found.append(change(condition, BOTH_PARTS, pairs))
    return found


def change(condition: str, part: str, pairs: Sequence[tuple[EpisodeOutcome, EpisodeOutcome]]) -> Change:
    """What differs between the two outcomes of each pair (as it is, under the condition)."""
    before, after = count([b for b, _ in pairs]), count([a for _, a in pairs])
    return Change(
        condition=condition,
        part=part,
        before=before,
        after=after,
        success=paired_difference([(a.success, b.success) for b, a in pairs]),
        target_picks=paired_difference([(a.picked == TARGET, b.picked == TARGET) for b, a in pairs]),
        preference=difference(after.preference, before.preference),
        other_pick=Share(sum(b.picked != a.picked for b, a in pairs), len(pairs)),
    )


def _in_both(episodes: Sequence[EpisodeOutcome], condition: str) -> list[tuple[EpisodeOutcome, EpisodeOutcome]]:
    plain = {(e.part, e.seed): e for e in _under(episodes, AS_IT_IS)}
    return [(plain[key], e) for e in _under(episodes, condition) if (key := (e.part, e.seed)) in plain]

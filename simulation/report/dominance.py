"""Which factor dominates in the instruction suite, and what a ratio alone would hide.

The Factor Dominance Rate (FDR) of a against b is the share of a's object among the conflict episodes in which one of
the two objects was acted on first. It cannot tell a policy that follows neither from one that follows both, and mixes
how much a cue counts with how well it is seen: so beside it stand the shares over all episodes, how well each factor is
followed where it alone tells the objects apart, each value's own rate, and which verb was done to which object."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from simulation.closed_loop import LURE, NOTHING, TARGET, EpisodeOutcome
from simulation.report.shares import Share


@dataclass(frozen=True)
class Followed:
    """Scenes in which one factor alone tells the objects apart: picks of the target among those in which any object was
    acted on (of two, one half by chance), and over all."""

    among: Share
    over_all: Share


@dataclass(frozen=True)
class Dominance:
    """a against b. fdr: a's among the picks of a's or b's object. a_of_all, b_of_all, neither: of all conflict
    episodes. alone: by factor, only those that were played. values: by factor and value that is named, how often its
    object was picked, of the picks of a's or b's object."""

    a: str
    b: str
    fdr: Share
    a_of_all: Share
    b_of_all: Share
    neither: Share
    alone: dict[str, Followed]
    values: dict[str, dict[str, Share]]


@dataclass(frozen=True)
class Doing:
    """What was done in one part. table: by the verb that was asked for and the one that was done (`nothing`: none), how
    often to the target and how often to another object. The shares are of all episodes."""

    table: dict[str, dict[str, tuple[int, int]]]
    right: Share
    other_object: Share
    other_verb: Share


def dominance(cues: tuple[str, str], played: dict[str, list[EpisodeOutcome]]) -> Dominance | None:
    """Of the parts that were played; None without conflict episodes."""
    conflict = played.get("conflict")
    if not conflict:
        return None
    a, b = cues
    picks = Counter(outcome.picked for outcome in conflict)
    either, n = picks[TARGET] + picks[LURE], len(conflict)
    parts = {a: played.get("single_a", []), b: played.get("single_b", [])}
    return Dominance(
        a,
        b,
        Share(picks[TARGET], either),
        Share(picks[TARGET], n),
        Share(picks[LURE], n),
        Share(n - either, n),
        {factor: _followed(episodes) for factor, episodes in parts.items() if episodes},
        {a: _by_value(conflict, a, TARGET), b: _by_value(conflict, b, LURE)},
    )


def _followed(episodes: Sequence[EpisodeOutcome]) -> Followed:
    picks = Counter(outcome.picked for outcome in episodes)
    n = len(episodes)
    return Followed(Share(picks[TARGET], n - picks[NOTHING]), Share(picks[TARGET], n))


def _by_value(conflict: Sequence[EpisodeOutcome], factor: str, winner: str) -> dict[str, Share]:
    picks = Counter((o.episode["named"][factor], o.picked) for o in conflict if o.picked in (TARGET, LURE))
    values = sorted({value for value, _ in picks})
    return {value: Share(picks[value, winner], picks[value, TARGET] + picks[value, LURE]) for value in values}


def doing(episodes: Sequence[EpisodeOutcome]) -> Doing:
    """What was done in some episodes of the instruction suite."""
    table: dict[str, dict[str, tuple[int, int]]] = {}
    for outcome in episodes:
        asked, did = outcome.episode["named"].get("verb", "lift"), outcome.did or NOTHING
        row, target = table.setdefault(asked, {}), outcome.picked == TARGET
        before = row.get(did, (0, 0))
        row[did] = (before[0] + target, before[1] + (not target))
    cells = [(asked, did, *cell) for asked, row in table.items() for did, cell in row.items()]
    n = len(episodes)
    return Doing(
        table,
        Share(sum(target for asked, did, target, _ in cells if asked == did), n),
        Share(sum(other for asked, did, _, other in cells if asked == did), n),
        Share(sum(target for asked, did, target, _ in cells if asked != did), n),
    )

"""Which factor dominates in the instruction suite, and what a ratio alone would hide.

The Factor Dominance Rate (FDR) of a against b is the share of a's object among the conflict episodes in which one of
the two objects was acted on first. It cannot tell a policy that follows neither from one that follows both, and mixes
how much a cue counts with how well it is seen: so beside it stand the shares over all episodes, how well each factor is
followed where it alone tells the objects apart, each value's own rate, and which verb was done to which object. Of many
splits together a graph is drawn: an arrow leads from the factor that wins a conflict to the one that loses it."""

from __future__ import annotations

import cmath
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from simulation.closed_loop import LURE, NOTHING, TARGET, EpisodeOutcome
from simulation.report.proportions import Share, many
from toolkit.html_page import percent

A, B, NEITHER, UNKNOWN = "a", "b", "neither", "unknown"  # answers to which of two factors is followed
LEAST_PICKS = 10  # with fewer, Wilson's interval is too short: 4 of 4 leave out one half, but one time in 8 by chance
WIDTH, HEIGHT = 420, 330  # of the graph
_RADIUS, _NODE = 120, 32  # of the circle of factors, and of each
_BOW = 16  # how far the middle of an arrow lies beside the straight line, so that two in one place are seen
_HEAD = 11
_LABEL = 0.3  # of the way, where labels of crossing arrows lie apart


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
    picks = [outcome.picked for outcome in episodes]
    return Followed(Share.of(p == TARGET for p in picks if p != NOTHING), Share.of(p == TARGET for p in picks))


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


def verdict(share: Share, cues: tuple[str, str]) -> tuple[str, str]:
    """(answer, the same in few words) of a cue preference."""
    if share.n < LEAST_PICKS:
        return UNKNOWN, f"cannot be said with {many(share.n, 'pick')}"
    if share.low > 0.5:
        return A, f"follows {cues[0]}"
    if share.high < 0.5:
        return B, f"follows {cues[1]}"
    return NEITHER, "no preference shown"


# -- the graph, whose points are complex numbers -----------------------------------------------------------------------


@dataclass(frozen=True)
class Edge:
    """An arrow: an SVG path and its head's corners; `tone`: target or lure by which factor of the split won, nothing
    where no preference is shown. label: the winner's share, at (x, y); title: the numbers."""

    path: str
    head: str
    width: float
    tone: str
    label: str
    x: float
    y: float
    title: str


@dataclass(frozen=True)
class Graph:
    """nodes: (factor, x, y)."""

    name: str
    nodes: tuple[tuple[str, float, float], ...]
    edges: tuple[Edge, ...]


def graph(name: str, factors: Sequence[str], found: Mapping[tuple[str, str], Share]) -> Graph:
    """Of the cue preference, or FDR, of each pair (a, b), each of some picks."""
    used, places = [factor for factor in factors if any(factor in pair for pair in found)], dict[str, complex]()
    for number, factor in enumerate(used):
        on_circle = cmath.rect(_RADIUS, 2 * math.pi * number / len(used) - math.pi / 2)
        x, y = WIDTH / 2 + 1.3 * on_circle.real, HEIGHT / 2 + on_circle.imag
        places[factor] = complex(round(x, 1), round(y, 1))
    edges = (_edge(pair, share, places, _BOW if pair[::-1] in found else 0) for pair, share in found.items())
    return Graph(name, tuple((factor, at.real, at.imag) for factor, at in places.items()), tuple(edges))


def _edge(pair: tuple[str, str], share: Share, places: Mapping[str, complex], bow: float) -> Edge:
    (a, b), value, (answer, headline) = pair, share.count / share.n, verdict(share, pair)
    winner, loser = (places[a], places[b]) if value >= 0.5 else (places[b], places[a])
    aside = bow * 1j * _unit(loser - winner)
    middle = (winner + loser) / 2 + 2 * aside
    start, end = winner + _NODE * _unit(middle - winner), loser + (_NODE + 2) * _unit(middle - loser)
    back = _HEAD * _unit(middle - end)
    corners, label = (end, end + back * (1 - 0.6j), end + back * (1 + 0.6j)), winner + _LABEL * (loser - winner) + aside
    return Edge(
        path=f"M{_point(start, ' ')}Q{_point(middle, ' ')} {_point(end + back, ' ')}",
        head=" ".join(_point(corner, ",") for corner in corners),
        width=round(1.5 + 9 * abs(value - 0.5), 1),
        tone={A: "target", B: "lure"}.get(answer, "nothing"),
        label=percent(max(value, 1 - value)),
        x=round(label.real, 1),
        y=round(label.imag + 4, 1),
        title=f"{a} against {b}: {share} {a}, {headline}",
    )


def _unit(way: complex) -> complex:
    return way / abs(way)


def _point(at: complex, between: str) -> str:
    return f"{at.real:.1f}{between}{at.imag:.1f}"

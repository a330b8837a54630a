"""Factors as a graph: an arrow leads from the factor that wins a conflict to the one that loses it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from simulation.report.conclusions import A, B, verdict
from simulation.report.shares import Share
from toolkit.html_page import percent

WIDTH, HEIGHT = 420, 330  # of the drawing
_RADIUS, _NODE = 120, 32  # of the circle of factors, and of each
_BOW = 16  # how far the middle of an arrow lies beside the straight line, so that two in one place are seen
_HEAD = 11
_LABEL = 0.3  # of the way, where labels of crossing arrows lie apart


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
    """Of the cue preference, or FDR, of each pair (a, b)."""
    used = [factor for factor in factors if any(factor in pair for pair in found)]
    places = {factor: _place(number, len(used)) for number, factor in enumerate(used)}
    edges = tuple(
        _edge(pair, share, places, _BOW if pair[::-1] in found else 0) for pair, share in found.items() if share.n
    )
    return Graph(name, tuple((factor, *place) for factor, place in places.items()), edges)


def _place(number: int, count: int) -> tuple[float, float]:
    angle = 2 * math.pi * number / count - math.pi / 2
    return round(WIDTH / 2 + 1.3 * _RADIUS * math.cos(angle), 1), round(HEIGHT / 2 + _RADIUS * math.sin(angle), 1)


def _edge(pair: tuple[str, str], share: Share, places: Mapping[str, tuple[float, float]], bow: float) -> Edge:
    a, b = pair
    answer, headline = verdict(share, pair)
    wins = (share.value or 0.0) >= 0.5
    (x0, y0), (x1, y1) = (places[a], places[b]) if wins else (places[b], places[a])
    length = math.dist((x0, y0), (x1, y1))
    along = ((x1 - x0) / length, (y1 - y0) / length)
    aside = (-along[1], along[0])
    middle = ((x0 + x1) / 2 + 2 * bow * aside[0], (y0 + y1) / 2 + 2 * bow * aside[1])
    start, end = _toward((x0, y0), middle, _NODE), _toward((x1, y1), middle, _NODE + 2)
    neck = _toward(end, middle, _HEAD)
    direction = ((end[0] - neck[0]) / _HEAD, (end[1] - neck[1]) / _HEAD)
    corners = [end, *((neck[0] - s * direction[1], neck[1] + s * direction[0]) for s in (0.6 * _HEAD, -0.6 * _HEAD))]
    return Edge(
        path=f"M{start[0]:.1f} {start[1]:.1f}Q{middle[0]:.1f} {middle[1]:.1f} {neck[0]:.1f} {neck[1]:.1f}",
        head=" ".join(f"{x:.1f},{y:.1f}" for x, y in corners),
        width=round(1.5 + 9 * abs((share.value or 0.0) - 0.5), 1),
        tone={A: "target", B: "lure"}.get(answer, "nothing"),
        label=percent(max(share.value or 0.0, 1 - (share.value or 0.0))),
        x=round(x0 + _LABEL * (x1 - x0) + bow * aside[0], 1),
        y=round(y0 + _LABEL * (y1 - y0) + bow * aside[1] + 4, 1),
        title=f"{a} against {b}: {share} {a}, {headline}",
    )


def _toward(start: tuple[float, float], end: tuple[float, float], distance: float) -> tuple[float, float]:
    part = distance / math.dist(start, end)
    return start[0] + part * (end[0] - start[0]), start[1] + part * (end[1] - start[1])

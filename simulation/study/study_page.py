"""The page of a study: the rates of every point, taken together over seeds of training, and figures by axis."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from gr00t.errors import disk_errors
from gr00t.file_replacement import write_json, write_text
from simulation.report import Summary, summarize
from simulation.report.closed_loop_report import JSON_FILE, PAGE_FILE, read_evaluation
from simulation.report.shares import Share, plain
from simulation.report.training_seeds import measure
from simulation.study.grid import NUMBERS, PAGE, TRAINING_SEED, Point, Study
from simulation.study.study_run import DONE, Standing
from toolkit.html_page import percent, render_page

FORMAT = 1


@dataclass(frozen=True)
class Rate:
    """The mean rate of several trainings, and the range in which one more training is expected; n: all episodes."""

    value: float | None
    low: float
    high: float
    n: int
    trainings: int

    def __str__(self) -> str:
        """63 % (40 to 80 %, 2 trainings)."""
        if self.value is None:
            return "none (0/0)"
        several = f", {self.trainings} trainings" if self.trainings > 1 else ", one training"
        return f"{percent(self.value)} ({100 * self.low:.0f} to {percent(self.high)}{several})"


def over_trainings(shares: Sequence[Share]) -> Rate:
    """The trainings of one condition: their mean rate, and the 95 % interval for one more training; of a single one,
    the interval of its weights."""
    played = [share for share in shares if share.n]
    if not played:
        return Rate(None, 0.0, 1.0, 0, len(shares))
    found = measure(played)
    around = found.new or played[0]
    return Rate(found.rate, around.low, around.high, sum(share.n for share in played), len(played))


def rates_of(summary: Summary) -> dict[str, Share]:
    """What is shown of an evaluation, by its name."""
    parts = [part for part in summary.chance if part != "conflict"]
    found = {f"success, {part}": summary.of(part).success for part in parts}
    for part in parts:
        picks = summary.of(part).picks
        found[f"target, of first picks, {part}"] = Share(
            picks["target"].count, picks["target"].n - picks["nothing"].count
        )
    if summary.cues and "conflict" in summary.chance:
        found[f"FDR of {summary.cues[0]} against {summary.cues[1]}"] = summary.preference
    if summary.dominance:
        found["neither"] = summary.dominance.neither
        found |= {f"{factor} alone": followed.among for factor, followed in summary.dominance.alone.items()}
    return found


def draw(study: Study, standing: Standing) -> None:
    """Write study.html and study.json."""
    rates = [_rates(point, standing) for point in study.points]
    together = _together(study, rates)
    points = [_described(*of, standing) for of in zip(study.points, rates, strict=True)]
    conditions = [{"values": dict(zip(_axes(study), c, strict=True)), "rates": found} for c, found in together.items()]
    numbers = {"format": FORMAT, "kind": "study", "name": study.name, "axes": study.axes, "settings": study.settings}
    numbers |= {"seconds": standing.seconds, "points": plain(points), "conditions": plain(conditions)}
    values = {
        "title": f"Study: {study.name}",
        "study": study,
        "standing": standing,
        "names": list(dict.fromkeys(name for found in rates for name in found)),
        "points": points,
        "figures": {axis: _rows(study, together, axis) for axis in _axes(study) if len(study.axes[axis]) > 1},
        "settings": study.settings.items(),
    }
    with disk_errors(study.folder, "Choose another out=FOLDER."):
        study.folder.mkdir(parents=True, exist_ok=True)
        write_json(study.folder / NUMBERS, numbers)
        write_text(study.folder / PAGE, render_page("study.html", values))


def _axes(study: Study) -> list[str]:
    return [axis for axis in study.axes if axis != TRAINING_SEED]


def _rates(point: Point, standing: Standing) -> dict[str, Share]:
    """What the point's report shows, or what is kept of it; nothing of a point that is not done."""
    if point.evaluation in standing.done:
        return rates_of(summarize(read_evaluation(Path(point.evaluation.config.report_folder) / JSON_FILE)))
    kept = standing.kept_rates(point) or {}
    return {name: Share(share["count"], share["n"]) for name, share in kept.items()}


def _together(study: Study, rates: Sequence[dict[str, Share]]) -> dict[tuple[str, ...], dict[str, Rate]]:
    """The rates of each condition, over its trainings; conditions without any are left out."""
    found: dict[tuple[str, ...], dict[str, list[Share]]] = {}
    for point, own in zip(study.points, rates, strict=True):
        for name, share in own.items():
            found.setdefault(point.condition, {}).setdefault(name, []).append(share)
    return {condition: {n: over_trainings(s) for n, s in own.items()} for condition, own in found.items()}


def _rows(
    study: Study, together: dict[tuple[str, ...], dict[str, Rate]], axis: str
) -> list[tuple[str, dict[str, Rate]]]:
    """Conditions in words with their rates, those beside each other that differ in this axis only."""
    axes = _axes(study)
    place = axes.index(axis)

    def order(condition: tuple[str, ...]) -> list[int]:
        numbers = [study.axes[a].index(value) for a, value in zip(axes, condition, strict=True)]
        return [*numbers[:place], *numbers[place + 1 :], numbers[place]]

    named = {c: ", ".join(f"{a.rpartition('.')[2]} {v}" for a, v in zip(axes, c, strict=True)) for c in together}
    return [(named[condition], together[condition]) for condition in sorted(together, key=order)]


def _described(point: Point, rates: dict[str, Share], standing: Standing) -> dict[str, Any]:
    folder, left = Path(point.evaluation.config.report_folder), standing.left(point)
    page = os.path.relpath(folder / PAGE_FILE, standing.study.folder) if (folder / PAGE_FILE).is_file() else None
    state = standing.failure(point) or (f"left: {', '.join(task.label for task in left)}" if left else DONE)
    failed = standing.failure(point) is not None
    return {"values": point.values, "state": state, "failed": failed, "page": page and quote(page), "rates": rates}

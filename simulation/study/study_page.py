"""The page of a study: the rates of every point, taken together over seeds of training, and figures by axis."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from gr00t.data.meta_files import in_ranges
from gr00t.errors import disk_errors
from gr00t.file_replacement import write_json, write_text
from simulation.closed_loop import EpisodeOutcome, Evaluation
from simulation.report import AS_IT_IS, Summary, summarize
from simulation.report.closed_loop_report import JSON_FILE, PAGE_FILE, read_evaluation
from simulation.report.proportions import Difference, Share, paired_difference, plain
from simulation.report.training_seeds import Estimate, measure, setting_difference
from simulation.study.grid import NUMBERS, PAGE, TRAINING_SEED, Point, Study
from simulation.study.study_run import DONE, Standing, by_seed
from toolkit.html_page import percent, render_page

FORMAT = 1
_PICKS = {"target": "t", "lure": "l", "other": "o", "nothing": "n"}  # as study.json writes the picks of episodes
# By part: seeds of the episodes, in ranges, and in their order a letter each of success (1, 0) and picked (_PICKS).
Outcomes = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Rate:
    """The mean rate of several trainings; low, high: the range in which one more training is expected, mean: the
    interval of the mean over all trainings, None of a single one, whose low and high are of its weights; n: all
    episodes."""

    value: float | None
    low: float
    high: float
    n: int
    trainings: int
    mean: Estimate | None = None

    def __str__(self) -> str:
        """63 % (40 to 80 %, 2 trainings)."""
        if self.value is None:
            return "none (0/0)"
        return f"{percent(self.value)} ({100 * self.low:.0f} to {percent(self.high)}, {self.of})"

    @property
    def of(self) -> str:
        """2 trainings."""
        return f"{self.trainings} trainings" if self.trainings > 1 else "one training"

    @property
    def shown(self) -> Rate:
        """With the mean's interval in the place of one more training's."""
        return replace(self, low=self.mean.low, high=self.mean.high) if self.mean else self


@dataclass(frozen=True)
class Effect:
    """What one value of an axis changes against its first one, all else alike. paired: the weights are the same, and
    so are the episodes: the interval is of these weights; else that of the means over all trainings."""

    axis: str
    condition: tuple[str, ...]
    measure: str
    change: Difference
    paired: bool


def over_trainings(shares: Sequence[Share]) -> Rate:
    """The trainings of one condition: their mean rate, and the 95 % intervals of one more training and of the mean; of
    a single training, that of its weights."""
    played = [share for share in shares if share.n]
    if not played:
        return Rate(None, 0.0, 1.0, 0, len(shares))
    found = measure(played)
    around = found.new or played[0]
    return Rate(found.rate, around.low, around.high, sum(share.n for share in played), len(played), found.mean)


def rates_of(summary: Summary) -> dict[str, Share]:
    """What is shown of an evaluation, by its name."""
    parts = [part for part in summary.chance if part != "conflict"]
    found = {f"success, {part}": summary.of(part).success for part in parts}
    for part in parts:
        picks = summary.of(part).picks
        found[f"target, of first picks, {part}"] = Share(
            picks["target"].count, picks["target"].n - picks["nothing"].count
        )
        if (listened := summary.change("other_instruction", part)) and listened.switched.n:
            found[f"another pick with another instruction, {part}"] = listened.switched
    if summary.cues and "conflict" in summary.chance:
        found["success, conflict"] = summary.of("conflict").success
        found[f"FDR of {summary.cues[0]} against {summary.cues[1]}"] = summary.preference
    if summary.dominance:
        found["neither"] = summary.dominance.neither
        found |= {f"{factor} alone": followed.among for factor, followed in summary.dominance.alone.items()}
    return found


def draw(study: Study, standing: Standing) -> None:
    """Write study.html and study.json."""
    played = [_played(point, standing) for point in study.points]
    rates, outcomes, _ = zip(*played, strict=True)
    together = _together(study, rates)
    effects = list(_effects(study, rates, outcomes))
    points = [_described(point, *found, standing) for point, found in zip(study.points, played, strict=True)]
    conditions = [{"values": dict(zip(_axes(study), c, strict=True)), "rates": found} for c, found in together.items()]
    numbers = {"format": FORMAT, "kind": "study", "name": study.name, "axes": study.axes, "settings": study.settings}
    numbers |= {"seconds": standing.seconds, "points": plain(points), "conditions": plain(conditions)}
    numbers |= {"effects": plain(effects), "others": standing.others()}
    several = [axis for axis in _axes(study) if len(study.axes[axis]) > 1] or _axes(study)[:1]
    values = {
        "title": f"Study: {study.name}",
        "study": study,
        "standing": standing,
        "names": list(dict.fromkeys(name for found in rates for name in found)),
        "points": points,
        "figures": {axis: _rows(study, together, axis) for axis in several}
        or {"": [("all trainings", r) for r in together.values()]},
        "conditions": [(_named(study, condition), found) for condition, found in together.items()],
        "effects": [(effect, _named(study, effect.condition)) for effect in effects],
        "settings": study.settings.items(),
    }
    with disk_errors(study.folder, "Choose another out=FOLDER."):
        study.folder.mkdir(parents=True, exist_ok=True)
        write_json(study.folder / NUMBERS, numbers)
        write_text(study.folder / PAGE, render_page("study.html", values))


def _axes(study: Study) -> list[str]:
    return [axis for axis in study.axes if axis != TRAINING_SEED]


def _named(study: Study, condition: tuple[str, ...]) -> str:
    """strategy L_v3, guidance 2."""
    return ", ".join(f"{a.rpartition('.')[2]} {v}" for a, v in zip(_axes(study), condition, strict=True))


def _played(point: Point, standing: Standing) -> tuple[dict[str, Share], Outcomes, str | None]:
    """What the point's report shows, how each episode ended, and by what its checkpoint is known again; or what is kept
    of that. Nothing of a point that is not done."""
    if point.evaluation in standing.done:
        report = read_evaluation(Path(point.evaluation.config.report_folder) / JSON_FILE)
        return rates_of(summarize(report)), _outcomes(report), report.info.get("checkpoint_fingerprint")
    kept = standing.kept_of(point) or {"rates": {}}
    rates = {name: Share(share["count"], share["n"]) for name, share in kept["rates"].items()}
    return rates, kept.get("outcomes", {}), kept.get("checkpoint")


def _outcomes(report: Evaluation) -> Outcomes:
    parts: dict[str, list[EpisodeOutcome]] = {}
    for episode in sorted(report.episodes, key=lambda episode: episode.seed):
        if episode.condition == AS_IT_IS:
            parts.setdefault(episode.part, []).append(episode)
    return {
        part: {
            "seeds": in_ranges(episode.seed for episode in found),
            "success": "".join(str(int(episode.success)) for episode in found),
            "picked": "".join(_PICKS[episode.picked] for episode in found),
        }
        for part, found in parts.items()
    }


def _effects(study: Study, rates: Sequence[Mapping[str, Share]], outcomes: Sequence[Outcomes]) -> Iterator[Effect]:
    """Of each axis and measure, what each value changes against the first one."""
    axes = _axes(study)
    members: dict[tuple[str, ...], list[int]] = {}
    for index, point in enumerate(study.points):
        members.setdefault(point.condition, []).append(index)
    for place, axis in enumerate(axes):
        for condition, second in members.items():
            first = members[(*condition[:place], study.axes[axis][0], *condition[place + 1 :])]
            if first == second:
                continue
            if same := study.shares_weights(axis):
                changes = _paired([(outcomes[a], outcomes[b]) for a, b in zip(first, second, strict=True)])
            else:
                changes = _of_means([rates[a] for a in first], [rates[b] for b in second])
            yield from (Effect(axis, condition, name, change, same) for name, change in changes.items())


def _paired(trainings: Sequence[tuple[Outcomes, Outcomes]]) -> dict[str, Difference]:
    """Of the same weights, on the episodes that were played both ways."""
    pairs: dict[str, list[tuple[bool, bool]]] = {}
    for first, second in trainings:
        for part in (part for part in first if part in second):
            for name, kind, sign in (("success", "success", "1"), ("picks of the target", "picked", "t")):
                before, after = (by_seed(side[part], kind) for side in (first, second))
                both = [(after[seed] == sign, before[seed] == sign) for seed in before if seed in after]
                pairs.setdefault(f"{name}, {part}", []).extend(both)
    return {name: paired_difference(found) for name, found in pairs.items() if found}


def _of_means(first: Sequence[Mapping[str, Share]], second: Sequence[Mapping[str, Share]]) -> dict[str, Difference]:
    """Of the means over trainings, where both conditions have several."""
    names = dict.fromkeys(name for side in (first, second) for found in side for name in found)
    found = {}
    for name in names:
        before, after = ([rates[name] for rates in side if name in rates and rates[name].n] for side in (first, second))
        if min(len(before), len(after)) > 1:
            found[name] = setting_difference(before, after)[0]
    return found


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

    return [(_named(study, condition), together[condition]) for condition in sorted(together, key=order)]


def _described(
    point: Point, rates: dict[str, Share], outcomes: Outcomes, checkpoint: str | None, standing: Standing
) -> dict[str, Any]:
    folder, left = Path(point.evaluation.config.report_folder), standing.left(point)
    page = os.path.relpath(folder / PAGE_FILE, standing.study.folder) if (folder / PAGE_FILE).is_file() else None
    state = standing.failure(point) or (f"left: {', '.join(task.label for task in left)}" if left else DONE)
    failed = standing.failure(point) is not None
    found = {"values": point.values, "state": state, "failed": failed, "page": page and quote(page), "rates": rates}
    return {**found, "outcomes": outcomes, "checkpoint": checkpoint}

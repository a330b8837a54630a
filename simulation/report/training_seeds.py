"""What several trainings of one setting, which differ in their seed alone, say of a new one, and how settings compare.

A training has a rate of its own, drawn from a beta distribution with the setting's mean and the correlation rho of two
episodes of one training; its episodes are binomial (the beta-binomial model: Skellam 1948). The posterior is taken on a
grid: means uniform in 0 to 1, rho with a density proportional to rho^-1/2 in 0.001 to 0.5. Two settings are compared
with one rho for both, as an analysis of variance has one variance. How often the intervals hold where rates are drawn
otherwise: `python -m benchmarks.intervals`.

A checkpoint's evaluation holds the recipe that it was trained by; trainings of one setting have the same recipe but for
the seed, and were evaluated alike. Of others, and in older reports, folders `seed-0`, `seed-1`, ... say so. Weights
that are evaluated twice are one training, and so are two runs with one seed."""

from __future__ import annotations

import functools
import itertools
import json
import math
import os
import re
import statistics
import string
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.special import betainc, betaln

from finetune.recipe.recipe_identity import completed
from simulation.report import Result, compared
from simulation.report.proportions import CONFIDENCE, Difference, Share
from toolkit.html_page import percent

HOLDS_FOR = {
    "mean": "the mean over all trainings that the setting could have, not over those that were evaluated alone",
    "new": "the true rate of one more training of the setting, with another seed",
    "one": "one training: nothing can be said of a new one, the interval is of these weights only",
    "spread": "standard deviation of the trainings' true rates (between), and of a share around its training's rate, "
    "since it is of so many episodes only (within)",
    "difference_of_means": "the difference of the settings' means over all their trainings, at the joint level",
    "difference_of_new": "one more training of the second setting minus one more of the first",
    "group": "settings of one split and measure that share a letter cannot be told apart: the joint interval of their "
    "means' difference includes 0 (Bonferroni over all pairs; nominally, 5 % of such families have a false one)",
}
# What makes two evaluations tasks of different difficulty.
DIFFICULTY = ("n_action_steps", "max_steps", "instruction", "strategy", "no_distractor_prob")
PLAYED = ("split", *DIFFICULTY, "denoising_steps", "embodiment_tag", "image_size", "render")  # alike in one setting
SEED_FOLDER = re.compile(r"seed-(\d+)")
Seeded = tuple[Result, int | None]  # an evaluation, and the seed of the training
CELLS = 200  # of the interval 0 to 1: half a point each
RHO = np.geomspace(0.001, 0.5, 20)
PRIOR = np.sqrt(RHO)  # equal steps of log(rho) times rho^-1/2
MEANS = (np.arange(CELLS) + 0.5) / CELLS
ALPHA, BETA = MEANS[:, None] * (1 / RHO - 1), (1 - MEANS[:, None]) * (1 / RHO - 1)  # (CELLS, len(RHO))
NONE_YET = betaln(ALPHA, BETA)


@dataclass(frozen=True)
class Estimate:
    """A rate from n trainings, with its 95 % interval."""

    value: float
    low: float
    high: float
    n: int

    @property
    def interval(self) -> str:
        """45 to 78 %."""
        return f"{100 * self.low:.0f} to {percent(self.high)}"


@dataclass(frozen=True)
class Measure:
    """One measure of one setting, from each training's share. mean, new: what HOLDS_FOR says; None of one training.

    between: expected standard deviation of the trainings' true rates; within: of a training's share around its rate,
    since it has that many episodes only.
    """

    shares: tuple[Share, ...]
    mean: Estimate | None = None
    new: Estimate | None = None
    between: float | None = None
    within: float | None = None

    @property
    def rate(self) -> float:
        """The mean of the trainings' shares."""
        return statistics.fmean(_rates(self.shares))


def measure(shares: Sequence[Share]) -> Measure:
    """Of the trainings of one setting, each with an episode at least."""
    if len(shares) < 2:
        return Measure(tuple(shares))
    rates = _rates(shares)
    weights = _likelihood(tuple(shares)) * PRIOR
    weights /= weights.sum()
    edges = np.linspace(0.0, 1.0, CELLS + 1)
    found = (weights.sum(axis=1), _given(weights.T).sum(axis=0))
    mean, new = (Estimate(*_around(statistics.fmean(rates), p, edges, CONFIDENCE), len(rates)) for p in found)
    between = float((weights * np.sqrt(RHO * (MEANS * (1 - MEANS))[:, None])).sum())
    within = math.sqrt(statistics.fmean(p * (1 - p) / s.n for p, s in zip(rates, shares, strict=True)))
    return Measure(tuple(shares), mean, new, between, within)


def setting_difference(
    first: Sequence[Share], second: Sequence[Share], confidence: float = CONFIDENCE
) -> tuple[Difference, Difference]:
    """(of the means at `confidence`, of a new training of each at 95 %) of two settings, second minus first; n is the
    smaller number of trainings."""
    sides = [_likelihood(tuple(first)), _likelihood(tuple(second))]
    totals = [side.sum(axis=0) + np.finfo(float).tiny for side in sides]
    log_rho = np.log(PRIOR) + np.log(totals[0]) + np.log(totals[1])
    rho = np.exp(log_rho - log_rho.max())
    means = [(side / total).T for side, total in zip(sides, totals, strict=True)]  # of the mean, given each rho
    value = statistics.fmean(_rates(second)) - statistics.fmean(_rates(first))
    edges = (np.arange(2 * CELLS) - CELLS + 0.5) / CELLS

    def of(low: np.ndarray, high: np.ndarray, level: float) -> Difference:
        spectrum = rho @ (np.fft.rfft(high, 2 * CELLS) * np.fft.rfft(low[:, ::-1], 2 * CELLS))  # convolved
        chances = np.maximum(np.fft.irfft(spectrum)[:-1], 0.0)
        return Difference(*_around(value, chances, edges, level), min(len(first), len(second)))

    return of(means[0], means[1], confidence), of(_given(means[0]), _given(means[1]), CONFIDENCE)


def letters(names: Sequence[str], apart: Collection[tuple[str, str]]) -> dict[str, str]:
    """The compact letter display: two names share a letter unless they are `apart` (Piepho 2004, insert and absorb)."""
    groups = {frozenset(names)}
    for pair in apart:
        joint = {group for group in groups if group.issuperset(pair)}
        groups = groups - joint | {group - {name} for group in joint for name in pair}
        groups = {group for group in groups if not any(group < other for other in groups)}
    ordered = sorted(groups, key=lambda group: sorted(map(names.index, group)))
    signs = [f"{string.ascii_lowercase[i % 26]}{i // 26 or ''}" for i in range(len(ordered))]
    return {name: "".join(sign for sign, group in zip(signs, ordered, strict=True) if name in group) for name in names}


def _rates(shares: Sequence[Share]) -> list[float]:
    return [share.count / share.n for share in shares]


@functools.lru_cache(maxsize=128)  # a setting is compared with every other
def _likelihood(shares: tuple[Share, ...]) -> np.ndarray:
    """Of every mean and rho, up to a factor: (CELLS, len(RHO))."""
    log = sum(betaln(s.count + ALPHA, s.n - s.count + BETA) - NONE_YET for s in shares)
    return np.exp(log - np.max(log))


def _given(means: np.ndarray) -> np.ndarray:
    """The chance that a training's rate lies in each cell, by rho (len(RHO), CELLS), from those of (rho, mean)."""
    return (means[:, None] @ _cells())[:, 0]


@functools.cache
def _cells() -> np.ndarray:
    """The same given rho and the mean: (len(RHO), CELLS of the mean, CELLS)."""
    edges = np.linspace(0.0, 1.0, CELLS + 1)
    return np.diff(betainc(ALPHA.T[..., None], BETA.T[..., None], edges), axis=-1)


def _around(value: float, chances: np.ndarray, edges: np.ndarray, confidence: float) -> tuple[float, float, float]:
    """(value, low, high) of a distribution over cells with these edges; what was observed is never left out."""
    below = np.concatenate([[0.0], np.cumsum(chances)])
    low, high = np.interp([(1 - confidence) / 2, (1 + confidence) / 2], below / below[-1], edges)
    return value, min(float(low), value), max(float(high), value)


# -- settings ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """The trainings of one setting: (evaluation, seed) each; a single one's seed may be unknown. not_counted: why
    further evaluations are no further trainings."""

    name: str
    split: str
    trainings: tuple[tuple[str, int | None], ...]
    not_counted: tuple[str, ...]


@dataclass(frozen=True)
class SettingDifference:
    """`second` minus `first`. means: at the family's confidence; new: of one more training of each, at 95 %."""

    first: str
    second: str
    means: Difference
    new: Difference


@dataclass(frozen=True)
class Family:
    """One measure (success in a part, or cue preference) of a split's settings, the best first, by their names.

    differences: of all pairs of settings with several trainings, each at `confidence`, jointly 95 %; groups: their
    letters.
    """

    split: str
    measure: str
    settings: dict[str, Measure]
    differences: tuple[SettingDifference, ...]
    confidence: float
    groups: dict[str, str]


def compare_settings(results: Sequence[Result]) -> tuple[list[Setting], list[Family]]:
    """The settings of every split in which one has several trainings, and their comparison in each measure."""
    members: dict[str, list[Seeded]] = {}
    for result in results:
        setting, seed = _setting_of(result)
        members.setdefault(setting, []).append((result, seed))
    counted = [_counted(found) for found in members.values()]
    names = _names([[result.name for result, _ in kept] for kept, *_ in counted])
    settings, shares = [], dict[tuple[str, str], dict[str, list[Share]]]()
    for name, (kept, again, notes) in zip(names, counted, strict=True):
        split = kept[0][0].split
        settings.append(Setting(name, split, tuple((result.name, seed) for result, seed in kept), tuple(notes)))
        for measured, share in (each for result, _ in kept for each in _shares([result, *again.get(result.name, ())])):
            shares.setdefault((split, measured), {}).setdefault(name, []).append(share)
    several = {setting.split for setting in settings if len(setting.trainings) > 1}
    families = [_family(*key, found) for key, found in shares.items() if key[0] in several]
    return [setting for setting in settings if setting.split in several], families


def _family(split: str, measured: str, shares: dict[str, list[Share]]) -> Family:
    found = sorted(((name, measure(own)) for name, own in shares.items()), key=lambda each: -each[1].rate)
    several = {name: own.shares for name, own in found if own.mean}
    pairs = list(itertools.combinations(several, 2))
    confidence = 1 - (1 - CONFIDENCE) / max(len(pairs), 1)
    differences = [SettingDifference(*p, *setting_difference(several[p[0]], several[p[1]], confidence)) for p in pairs]
    apart = [(pair.first, pair.second) for pair in differences if pair.means.shown]
    return Family(split, measured, dict(found), tuple(differences), confidence, letters(list(several), apart))


def _shares(results: Sequence[Result]) -> Iterator[tuple[str, Share]]:
    """Every measure of a training as it is, from the first of its evaluations that has it; of no episode, none."""
    found: dict[str, Share] = {}
    for summary in (result.summary for result in results):
        own = [(f"success, {part}", summary.of(part).success) for part in summary.chance]
        for name, share in [*own, ("cue preference", summary.preference)]:
            if share.n:
                found.setdefault(name, share)
    return iter(found.items())


def _setting_of(result: Result) -> tuple[str, int | None]:
    """(a text that the trainings of one setting have in common, the seed); one of its own where nothing is known."""
    info, place = result.info, Path(result.name)
    said, alone = SEED_FOLDER.fullmatch(place.name), json.dumps([result.name])
    played = [*(compared(info, name) for name in PLAYED), result.guidance]
    if info.get("config", {}).get("stop") == "decided":  # the number of episodes follows from their outcomes
        return alone, None
    if "recipe" in info:
        recipe = completed(info["recipe"])
        step = info.get("training_step") if recipe.get("train.export") == "last" else None
        return json.dumps([played, recipe, step], sort_keys=True), info.get("training_seed")
    if said and ("checkpoint" in info or str(info["policy"]).startswith("server ")):
        return json.dumps([played, place.parent.as_posix()]), int(said[1])
    return alone, None


def _counted(found: Sequence[Seeded]) -> tuple[list[Seeded], dict[str, list[Result]], list[str]]:
    """(those that are trainings of their own, by seed; by their names further evaluations of the same weights, which
    may be of other parts; why others do not count); the one with most episodes is counted."""
    kept, again, notes = list[Seeded](), dict[str, list[Result]](), list[str]()
    for result, seed in sorted(found, key=lambda each: -len(each[0].evaluation.episodes)):
        if same := next((other.name for other, _ in kept if _weights(other) == _weights(result) is not None), None):
            notes.append(f"{result.name} has the weights of {same}: one training, evaluated twice")
            again.setdefault(same, []).append(result)
        elif same := next((other.name for other, theirs in kept if theirs == seed), None):
            notes.append(f"{result.name} has the seed {seed} of {same}: no further training")
        else:
            kept.append((result, seed))
    return sorted(kept, key=lambda each: each[1] or 0), again, notes


def _weights(result: Result) -> str | None:
    return result.info.get("checkpoint_fingerprint") or result.info.get("checkpoint")


def _names(groups: Sequence[Sequence[str]]) -> Iterator[str]:
    """What the names of each group begin with, then *; all of them where two groups would have one name."""
    begin = os.path.commonprefix  # of letters, as in lr_seed0, lr_seed1
    short = [begin(names).rstrip("0123456789") + "*" if names[1:] else names[0] for names in groups]
    count = Counter(short)
    return (name if count[name] == 1 else ", ".join(names) for name, names in zip(short, groups, strict=True))

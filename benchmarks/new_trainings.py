"""Intervals for one more training, and settings told apart, where rates are drawn otherwise than the model does.

    python -m benchmarks.new_trainings

Simulated evaluations of k trainings. `covered`: how often the true rate of one more lies in its 95 % interval, of a
mean `width` in points; `difference`: the same of one more training each of two settings that are alike. `false`: how
often the two are distinguished; `of 5`: how often any two of five are (every fifth run). `shared`: all play the same
scenes, some easy, some hard (a correlation of 0.5 on the normal scale).
On 30 November 2026: results/2026-11-30-new-trainings.md."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from scipy.special import expit, ndtri

from benchmarks.measuring import Columns, heading, line, say
from simulation.report.shares import CONFIDENCE, Share
from simulation.report.training_seeds import measure, setting_difference

RUNS, SETTINGS = 500, 5
Draw = Callable[[np.random.Generator, int], np.ndarray]
RATES: dict[str, Draw] = {
    "all 70 %": lambda random, n: np.full(n, 0.7),
    "uniform, 50 to 90 %": lambda random, n: random.uniform(0.5, 0.9, n),
    "logit-normal, 50 %, 1": lambda random, n: expit(random.normal(0, 1, n)),
    "logit-normal, 95 %, 1": lambda random, n: expit(random.normal(3, 1, n)),
    "40 or 80 %": lambda random, n: random.choice([0.4, 0.8], n),
    "90 %, one in ten 20 %": lambda random, n: random.choice([0.9, 0.2], n, p=[0.9, 0.1]),
}
COLUMNS: Columns = {
    "true rates": "{name}",
    "shared": "{shared}",
    "episodes": "{episodes}",
    "k": "{k}",
    "covered": "{covered:.1%}",
    "width": "{width:.0f}",
    "difference": "{difference:.1%}",
    "false": "{false:.1%}",
    "of 5": "{family:.1%}",
}


def evaluated(random: np.random.Generator, rates: np.ndarray, episodes: int, shared: float = 0.0) -> np.ndarray:
    """Successes of trainings with these true rates (any shape); `shared`: correlation of two trainings in a scene."""
    own = random.normal(size=(*rates.shape, episodes))
    return (shared**0.5 * random.normal(size=episodes) + (1 - shared) ** 0.5 * own < ndtri(rates)[..., None]).sum(-1)


def row(draw: Draw, k: int, episodes: int, shared: float = 0.0, runs: int = RUNS, settings: int = SETTINGS) -> dict:
    """What the intervals of `runs` simulated comparisons are worth."""
    random, pairs = np.random.default_rng(0), list(itertools.combinations(range(settings), 2))
    level, found, families = 1 - (1 - CONFIDENCE) / len(pairs), [], []
    for number in range(runs):
        counts = evaluated(random, draw(random, settings * k).reshape(settings, k), episodes, shared)
        shares = [[Share(int(count), episodes) for count in setting] for setting in counts]
        new, one, other = measure(shares[0]).new, draw(random, 50), draw(random, 50)
        means, difference = setting_difference(shares[0], shares[1])
        if number % 5 == 0:
            families.append(any(setting_difference(shares[a], shares[b], level)[0].shown for a, b in pairs))
        within = ((new.low <= one) & (one <= new.high)).mean()
        between = ((difference.low <= other - one) & (other - one <= difference.high)).mean()
        found.append((within, 100 * (new.high - new.low), between, means.shown))
    names = ("covered", "width", "difference", "false")
    return {**dict(zip(names, np.mean(found, axis=0), strict=True)), "family": np.mean(families)}


def rows() -> Iterator[dict[str, Any]]:
    """A row for each distribution, number of episodes and number of trainings."""
    cases = [(name, 0.0) for name in RATES] + [("all 70 %", 0.5), ("uniform, 50 to 90 %", 0.5)]
    for (name, shared), episodes, k in itertools.product(cases, (50, 200), (2, 3, 5)):
        said = {"name": name, "shared": "yes" if shared else "no", "episodes": episodes, "k": k}
        yield {**said, **row(RATES[name], k, episodes, shared)}


if __name__ == "__main__":
    say(heading(COLUMNS))
    for found in rows():
        say(line(COLUMNS, found))

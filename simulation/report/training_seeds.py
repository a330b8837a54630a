"""Several trainings of one setting as one result: what holds for a new training, and not only for these weights.

Episodes tell how well these weights do; another seed of training gives other weights. Each training's chance of success
is taken as drawn from a beta distribution of the setting, of which mean and spread are unknown (a beta-binomial model).
The spread's prior is wide enough that intervals of two trainings hold what they say, also where trainings differ much:
they are as wide as two trainings deserve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import betainc, betaln

from gr00t.errors import ToolkitError
from simulation.report.shares import Share

_MEANS = (np.arange(100) + 0.5) / 100
# Correlation of two episodes of one training, 0 where all trainings are alike; its prior is 1 / sqrt(correlation).
_ALIKE = np.geomspace(0.001, 0.5, 20)
_NEGLIGIBLE = 1e-5


@dataclass(frozen=True)
class Trainings:
    """What trainings of one setting have in common; all are shares of episodes, 0 to 1.

    mean: of all, with an interval (low, high) for the setting. new_low, new_high: between which the share of another
    training lies, apart from the chance of its own episodes. between, within: standard deviations, of trainings about
    their mean and of a share of so many episodes by chance alone.
    """

    runs: tuple[Share, ...]
    mean: float
    low: float
    high: float
    new_low: float
    new_high: float
    between: float
    within: float

    def __str__(self) -> str:
        """62 % of 3 trainings (48 to 74 %; a new one 37 to 83 %)."""
        spans = [f"{100 * a:.0f} to {100 * b:.0f} %" for a, b in ((self.low, self.high), (self.new_low, self.new_high))]
        return f"{100 * self.mean:.0f} % of {len(self.runs)} trainings ({spans[0]}; a new one {spans[1]})"


def join(runs: Sequence[Share]) -> Trainings:
    """Trainings that differ in their seed only, at the confidence of the first; ToolkitError for fewer than two."""
    if len(runs) < 2 or not all(run.n for run in runs):
        raise ToolkitError("What a new training does takes two trainings at least, each with episodes.")
    tail = (1.0 - runs[0].confidence) / 2
    mean, weight = _MEANS[:, None], 1.0 / _ALIKE[None, :] - 1.0
    a, b = mean * weight, (1.0 - mean) * weight
    likely = sum(betaln(a + run.count, b + run.n - run.count) - betaln(a, b) for run in runs)
    # The grid is in equal steps of the correlation's logarithm, hence the square root.
    likely = likely + 0.5 * np.log(_ALIKE)
    chance = np.exp(likely - likely.max())
    chance /= chance.sum()
    kept = chance > _NEGLIGIBLE
    new = betainc(a[kept], b[kept], _MEANS[:, None]) @ (chance[kept] / chance[kept].sum())
    shares = np.array([run.count / run.n for run in runs])
    by_chance = float(np.mean([share * (1 - share) / run.n for share, run in zip(shares, runs, strict=True)]))
    return Trainings(
        runs=tuple(runs),
        mean=float(shares.mean()),
        low=_where(chance.sum(1).cumsum(), tail),
        high=_where(chance.sum(1).cumsum(), 1.0 - tail),
        new_low=_where(new, tail),
        new_high=_where(new, 1.0 - tail),
        between=max(float(shares.var(ddof=1)) - by_chance, 0.0) ** 0.5,
        within=by_chance**0.5,
    )


def _where(cumulated: np.ndarray, at: float) -> float:
    """The share at which a distribution over _MEANS has reached `at`."""
    return float(np.interp(at, cumulated, _MEANS))

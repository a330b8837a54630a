"""What intervals and early answers are worth, by simulation; both tables are printed.

    python -m benchmarks.intervals

Answers: evaluations that end when their question is answered, beside those of 200 episodes: errors, episodes, power.
10,000 evaluations a row, looked at after every tenth episode. The test with a fixed number is the normal one at 5 %,
two-sided; of the last question two one-sided ones. `wrong`: upper 95 % limit of the share of wrong answers.

Trainings: intervals for one more training, and settings told apart, where rates are drawn otherwise than the model
does. Simulated evaluations of k trainings. `covered`: how often the true rate of one more lies in its 95 % interval, of
a mean `width` in points; `difference`: the same of one more training each of two settings that are alike. `false`: how
often the two are distinguished; `of 5`: how often any two of five are (every fifth run). `shared`: all play the same
scenes, some easy, some hard (a correlation of 0.5 on the normal scale).
On 30 November 2026: results/2026-11-30-new-trainings.md."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from scipy.special import expit, ndtri

from benchmarks.measuring import Columns, show
from simulation.closed_loop_evaluation import LOOK
from simulation.report.proportions import CONFIDENCE, Share
from simulation.report.sequential_test import Question, log_winnings
from simulation.report.training_seeds import measure, setting_difference

RUNS, EPISODES = 10_000, 200
WITHIN, MANY = 10, 1000  # points; a difference this small takes more episodes
ANSWERS: Columns = {
    "question": "{question}",
    "truth, points": "{truth}",
    "wrong": "{wrong:.1%}",
    "episodes": "{episodes:.0f}",
    "decided": "{decided:.1%}",
    "decided by a fixed number": "{fixed:.1%}",
}

COMPARISONS, SETTINGS = 500, 5
Draw = Callable[[np.random.Generator, int], np.ndarray]
RATES: dict[str, Draw] = {
    "all 70 %": lambda random, n: np.full(n, 0.7),
    "uniform, 50 to 90 %": lambda random, n: random.uniform(0.5, 0.9, n),
    "logit-normal, 50 %, 1": lambda random, n: expit(random.normal(0, 1, n)),
    "logit-normal, 95 %, 1": lambda random, n: expit(random.normal(3, 1, n)),
    "40 or 80 %": lambda random, n: random.choice([0.4, 0.8], n),
    "90 %, one in ten 20 %": lambda random, n: random.choice([0.9, 0.2], n, p=[0.9, 0.1]),
}
TRAININGS: Columns = {
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


# -- answers -----------------------------------------------------------------------------------------------------------


def first_answers(drawn: np.ndarray, question: Question, low: float, look: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """(answer, episodes) of each evaluation in `drawn` (evaluations, episodes), values from `low` to 1, that is looked
    at after every `look` episodes: 1 yes, -1 no, 0 where it stays open."""
    values, alpha = np.unique(drawn), 1.0 - CONFIDENCE
    times = np.stack([np.cumsum(drawn == value, axis=1)[:, look - 1 :: look] for value in values])
    two_ways = question.two_sided or question.margin is not None
    limit, margin = -np.log(alpha / 2 if two_ways else alpha), question.margin or 0.0

    def above(mean: float) -> np.ndarray:
        return log_winnings(values - low, times, mean - low) >= limit

    def below(mean: float) -> np.ndarray:
        return log_winnings(1.0 - values, times, 1.0 - mean) >= limit

    first, last = question.threshold - margin, question.threshold + margin
    if question.margin is None:
        yes, no = above(first), below(first)
    else:  # as the interval lies inside or outside
        yes, no = above(first) & below(last), above(last) | below(first)
    decided = yes | no
    when = np.where(decided.any(1), decided.argmax(1), decided.shape[1] - 1)
    rows = np.arange(len(drawn))
    return np.where(yes[rows, when], 1, np.where(no[rows, when], -1, 0)), look * (when + 1)


def answers() -> Iterator[dict[str, Any]]:
    """A row for each truth of the questions whether something is more than something else, or within WITHIN points of
    it; at that limit any answer is wrong."""
    random = np.random.default_rng(0)
    for name, low, question, base in (
        ("success above 60 %", 0.0, Question(0.6), 0.6),
        ("a preferred to b", 0.0, Question(0.5, two_sided=True), 0.5),
        ("better than another", -1.0, Question(0.0, two_sided=True), 0.5),
    ):
        for points in (0, 10, 20, 30):
            gap = points / 100
            if low < 0:
                drawn = _outcomes(random, base + gap / 2, EPISODES) - _outcomes(random, base - gap / 2, EPISODES)
            else:
                drawn = _outcomes(random, base + gap, EPISODES)
            said, looks = first_answers(drawn, question, low, LOOK)
            center = drawn.mean(1) - question.threshold
            certain = np.abs(center) > 1.96 * drawn.std(1) / EPISODES**0.5
            wrong = said < 0 if points else said != 0 if question.two_sided else said > 0
            decided, fixed = (said > 0, certain & (center > 0)) if points else (said != 0, certain)
            yield {"question": name, "truth": points, **_worth(wrong, looks, decided, fixed)}
    name, margin = f"within {WITHIN} of another, {MANY} episodes", WITHIN / 100
    for points in (0, WITHIN // 2, WITHIN, 2 * WITHIN):
        gap = points / 100
        drawn = _outcomes(random, 0.5 + gap / 2, MANY) - _outcomes(random, 0.5 - gap / 2, MANY)
        said, looks = first_answers(drawn, Question(0.0, margin=margin), -1.0, LOOK)
        wrong = said != 0 if points == WITHIN else said == np.sign(gap - margin)
        center, error = np.abs(drawn.mean(1)), 1.645 * drawn.std(1) / MANY**0.5
        fixed = (center + error < margin) | (center - error > margin)
        yield {"question": name, "truth": points, **_worth(wrong, looks, said != 0, fixed)}


def _worth(wrong: np.ndarray, looks: np.ndarray, decided: np.ndarray, fixed: np.ndarray) -> dict[str, float]:
    found = {"episodes": looks.mean(), "decided": decided.mean(), "fixed": fixed.mean()}
    return {"wrong": Share(int(wrong.sum()), RUNS, 0.9).high, **found}


def _outcomes(random: np.random.Generator, share: float, episodes: int) -> np.ndarray:
    """Of every evaluation (RUNS, episodes): 1 for success."""
    return (random.random((RUNS, episodes)) < share).astype(np.float32)


# -- one more training -------------------------------------------------------------------------------------------------


def evaluated(random: np.random.Generator, rates: np.ndarray, episodes: int, shared: float = 0.0) -> np.ndarray:
    """Successes of trainings with these true rates (any shape); `shared`: correlation of two trainings in a scene."""
    own = random.normal(size=(*rates.shape, episodes))
    return (shared**0.5 * random.normal(size=episodes) + (1 - shared) ** 0.5 * own < ndtri(rates)[..., None]).sum(-1)


def row(
    draw: Draw, k: int, episodes: int, shared: float = 0.0, runs: int = COMPARISONS, settings: int = SETTINGS
) -> dict:
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


def trainings() -> Iterator[dict[str, Any]]:
    """A row for each distribution, number of episodes and number of trainings."""
    cases = [(name, 0.0) for name in RATES] + [("all 70 %", 0.5), ("uniform, 50 to 90 %", 0.5)]
    for (name, shared), episodes, k in itertools.product(cases, (50, 200), (2, 3, 5)):
        said = {"name": name, "shared": "yes" if shared else "no", "episodes": episodes, "k": k}
        yield {**said, **row(RATES[name], k, episodes, shared)}


if __name__ == "__main__":
    show(ANSWERS, answers())
    show(TRAININGS, trainings())

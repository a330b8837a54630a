"""Evaluations that end when their question is answered, beside those of 200 episodes: errors, episodes, power.

    python -m benchmarks.early_stopping

Simulated outcomes, 10,000 evaluations a row, looked at after every tenth episode. The test with a fixed number is the
normal one at 5 %, two-sided; of the last question two one-sided ones. `wrong`: upper 95 % limit of the share of wrong
answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.measuring import Columns, heading, line, say
from simulation.closed_loop_evaluation import LOOK
from simulation.report.sequential_test import Question, log_winnings
from simulation.report.shares import CONFIDENCE, Share

RUNS, EPISODES = 10_000, 200
WITHIN, MANY = 10, 1000  # points; a difference this small takes more episodes
COLUMNS: Columns = {
    "question": "{question}",
    "truth, points": "{truth}",
    "wrong": "{wrong:.1%}",
    "episodes": "{episodes:.0f}",
    "decided": "{decided:.1%}",
    "decided by a fixed number": "{fixed:.1%}",
}


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


def compared(random: np.random.Generator) -> Iterator[dict[str, Any]]:
    """A row for each truth of the questions whether something is more than something else."""
    for name, low, question, base in (
        ("success above 60 %", 0.0, Question(0.6), 0.6),
        ("a preferred to b", 0.0, Question(0.5, two_sided=True), 0.5),
        ("better than another", -1.0, Question(0.0, two_sided=True), 0.5),
    ):
        for points in (0, 10, 20, 30):
            gap = points / 100
            paired = low < 0
            shares = (base + gap / 2, base - gap / 2) if paired else (base + gap,)
            first, *other = (outcomes(random, share, EPISODES) for share in shares)
            drawn = first - other[0] if paired else first
            answers, looks = first_answers(drawn, question, low, LOOK)
            center = drawn.mean(1) - question.threshold
            certain = np.abs(center) > 1.96 * drawn.std(1) / EPISODES**0.5
            wrong = answers < 0 if points else answers != 0 if question.two_sided else answers > 0
            yield {
                "question": name,
                "truth": points,
                "wrong": Share(int(wrong.sum()), RUNS, 0.9).high,
                "episodes": looks.mean(),
                "decided": (answers > 0).mean() if points else (answers != 0).mean(),
                "fixed": (certain & (center > 0)).mean() if points else certain.mean(),
            }


def within(random: np.random.Generator) -> Iterator[dict[str, Any]]:
    """A row for each truth of the question whether two are within WITHIN points; at that limit any answer is wrong."""
    margin = WITHIN / 100
    for points in (0, WITHIN // 2, WITHIN, 2 * WITHIN):
        gap = points / 100
        drawn = outcomes(random, 0.5 + gap / 2, MANY) - outcomes(random, 0.5 - gap / 2, MANY)
        answers, looks = first_answers(drawn, Question(0.0, margin=margin), -1.0, LOOK)
        wrong = answers != 0 if points == WITHIN else answers == np.sign(gap - margin)
        center, error = np.abs(drawn.mean(1)), 1.645 * drawn.std(1) / MANY**0.5
        yield {
            "question": f"within {WITHIN} of another, {MANY} episodes",
            "truth": points,
            "wrong": Share(int(wrong.sum()), RUNS, 0.9).high,
            "episodes": looks.mean(),
            "decided": (answers != 0).mean(),
            "fixed": ((center + error < margin) | (center - error > margin)).mean(),
        }


def outcomes(random: np.random.Generator, share: float, episodes: int) -> np.ndarray:
    """Of every evaluation (RUNS, episodes): 1 for success."""
    return (random.random((RUNS, episodes)) < share).astype(np.float32)


def rows() -> Iterator[dict[str, Any]]:
    """A row for each question and truth."""
    random = np.random.default_rng(0)
    yield from compared(random)
    yield from within(random)


if __name__ == "__main__":
    say(heading(COLUMNS))
    for row in rows():
        say(line(COLUMNS, row))

"""The question that an evaluation is to answer (question=...), by intervals and answers that hold at every look: it may
end as soon as the question is answered.

An interval for a fixed number of episodes is wrong more often than it says when one looks again and again and stops at
a pleasing moment. Here a bet is placed on each episode against the claim that the mean is m; where the claim is true,
no betting turns 1 into 1/alpha with a probability of more than alpha, however long it continues (Ville 1939). The
means against which the bets have not won that much form an interval that holds at all looks together (Waudby-Smith and
Ramdas 2024, Journal of the Royal Statistical Society B 86; for policies STEP, arXiv:2503.10966)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from gr00t.errors import ToolkitError
from simulation.closed_loop import LURE, TARGET, EpisodeOutcome, parse_question
from simulation.report import AS_IT_IS, same_scene
from simulation.report.closed_loop_report import JSON_FILE, read_evaluation
from simulation.report.proportions import CONFIDENCE

# Parts of the largest possible bet, and how much is placed so: most on what decides differences of 10 to 50 points
# soonest, some on small bets, which only hundreds of episodes repay, and without which no interval becomes narrow.
_BETS = np.array([0.2, 0.35, 0.5, 0.01, 0.03, 0.08, 0.7])
_STAKES = np.array([0.28, 0.28, 0.28, 0.04, 0.04, 0.04, 0.04])
_HALVINGS = 40

Side = Literal["above", "below"]


@dataclass(frozen=True)
class Outcomes:
    """Episodes by a bounded value, of which the mean is asked: {1: successes, 0: failures}, or in pairs of the same
    episode {1: only the first succeeded, 0: both or none, -1: only the second}.

    counts: by value. low, high: the least and the largest value that there can be.
    """

    counts: Mapping[float, int]
    low: float = 0.0
    high: float = 1.0

    @classmethod
    def of(cls, values: Iterable[bool]) -> Outcomes:
        """Episodes that succeeded or not."""
        found = list(values)
        return cls({1.0: sum(found), 0.0: len(found) - sum(found)})

    @classmethod
    def of_pairs(cls, pairs: Iterable[tuple[bool, bool]]) -> Outcomes:
        """Two policies in the same episodes: the first's success minus the second's."""
        found = [int(first) - int(second) for first, second in pairs]
        return cls({float(value): found.count(value) for value in (-1, 0, 1)}, low=-1.0)

    @property
    def n(self) -> int:
        """Their number."""
        return sum(self.counts.values())

    def evidence(self, mean: float, side: Side) -> float:
        """The logarithm of what bets have won that the true mean lies on that `side` of `mean`."""
        values, times = np.array(list(self.counts)), np.array(list(self.counts.values()))
        # With the values counted from the other end, below is above.
        if side == "above":
            return float(log_winnings(values - self.low, times, mean - self.low))
        return float(log_winnings(self.high - values, times, self.high - mean))

    def interval(self) -> tuple[float, float]:
        """The means that the bets do not exclude; it may be looked at after every episode."""
        limit = -math.log((1.0 - CONFIDENCE) / 2)
        return self._end("above", limit), self._end("below", limit)

    def _end(self, side: Side, limit: float) -> float:
        """How far from its end of all possible means `side` excludes them: the evidence falls towards the other end."""
        excluded, kept = (self.low, self.high) if side == "above" else (self.high, self.low)
        if not self.evidence(excluded + (kept - excluded) * 1e-9, side) >= limit:
            return excluded
        for _ in range(_HALVINGS):
            middle = (excluded + kept) / 2
            if self.evidence(middle, side) >= limit:
                excluded = middle
            else:
                kept = middle
        return excluded


def log_winnings(values: np.ndarray, times: np.ndarray, mean: float) -> np.ndarray:
    """The logarithm of what 1 has become by bets that the mean of values >= 0 is above `mean`, by _BETS together.

    values: (V,). times: (V, ...) how often each occurred. Returns (...).
    """
    if mean <= 0:
        return np.where(times.sum(0) > 0, -np.inf, 0.0)
    growth = np.log1p(_BETS[:, None] * (values / mean - 1.0))
    won = np.tensordot(growth, times, 1)
    total: np.ndarray = np.logaddexp.reduce(won + np.log(_STAKES).reshape(-1, *[1] * (won.ndim - 1)))
    return total


@dataclass(frozen=True)
class Question:
    """Whether a mean is above `threshold`; with `margin`, whether it is within that distance of it.

    two_sided: whether "neither" may be true (a is no better than b, nor b than a), so that a wrong "yes" and a wrong
    "no" are two ways to err.
    """

    threshold: float
    margin: float | None = None
    two_sided: bool = False

    def answer(self, outcomes: Outcomes) -> bool | None:
        """Yes, no, or None as long as it is not decided; wrong in at most 1 - CONFIDENCE of all evaluations, whenever
        they are looked at."""
        alpha = 1.0 - CONFIDENCE
        if self.margin is not None:
            low, high = outcomes.interval()
            if self.threshold - self.margin < low and high < self.threshold + self.margin:
                return True
            return False if low > self.threshold + self.margin or high < self.threshold - self.margin else None
        limit = -math.log(alpha / 2 if self.two_sided else alpha)
        for side, said in (("above", True), ("below", False)):
            if outcomes.evidence(self.threshold, side) >= limit:  # type: ignore[arg-type]
                return said
        return None


@dataclass(frozen=True)
class AskedQuestion:
    """A question of each part's episodes, as they are.

    question: what is asked of their mean. prefers: whether that is the share of the target among the picks of target or
    lure, instead of success. other: episodes of another evaluation by (part, seed), from whose success that of the same
    episode is taken; None where success itself is asked for.
    """

    text: str
    question: Question
    prefers: bool = False
    other: Mapping[tuple[str, int], EpisodeOutcome] | None = field(default=None, repr=False)

    @property
    def unit(self) -> str:
        """What one value of it is of."""
        return "pick" if self.prefers else "episode" if self.other is None else "pair"

    def check_scenes(
        self, parts: Sequence[str], planned: Callable[[str], Iterable[tuple[int, dict[str, Any]]]]
    ) -> None:
        """Refuse a part of which the other evaluation has no scene. planned: (seed, scene) of a part's episodes."""
        for part in parts if self.other is not None else ():
            theirs = {seed: o.episode for (of, seed), o in (self.other or {}).items() if of == part}
            if not any(seed in theirs and same_scene(theirs[seed], scene) for seed, scene in planned(part)):
                raise ToolkitError(
                    f"question={self.text}: no {part} episode of that report has the scene of one that is to be played "
                    "here, so there is nothing to compare. Evaluate both on the same split with the same strategy and "
                    "no_distractor_prob (of recordings both by policy=replay), or ask another question."
                )

    def outcomes(self, episodes: Sequence[EpisodeOutcome]) -> Outcomes:
        """What the question is asked of. Episodes that the other evaluation did not play are left out."""
        if self.prefers:
            return Outcomes.of(e.picked == TARGET for e in episodes if e.picked in (TARGET, LURE))
        if self.other is None:
            return Outcomes.of(e.success for e in episodes)
        both = ((e, self.other.get((e.part, e.seed))) for e in episodes)
        return Outcomes.of_pairs((e.success, o.success) for e, o in both if o and same_scene(o.episode, e.episode))

    def answered(self, episodes: Sequence[EpisodeOutcome]) -> bool:
        """Whether these episodes of one part have answered it."""
        return self.question.answer(self.outcomes(episodes)) is not None

    def told(self, episodes: Sequence[EpisodeOutcome], parts: Sequence[str], look: int) -> dict[str, Any]:
        """What the report states as plain JSON: of each part the answer, whether yes, and the interval of the mean
        after every `look` episodes, [episodes, low, high]; rests_on: how many pairs, picks or episodes (`unit`) decide.
        """
        found: dict[str, Any] = {}
        for part in parts:
            played = [e for e in episodes if (e.condition, e.part) == (AS_IT_IS, part)]
            looks = [*range(0, len(played), look), len(played)]
            looked = [(n, *self.outcomes(played[:n]).interval()) for n in looks]
            outcomes = self.outcomes(played)
            found[part] = {"answer": self.question.answer(outcomes), "rests_on": outcomes.n, "looks": looked}
        threshold, margin = self.question.threshold, self.question.margin
        return {"text": self.text, "unit": self.unit, "threshold": threshold, "margin": margin, "parts": found}


def read_question(text: str, parts: Sequence[str]) -> AskedQuestion:
    """The question that a text asks; ToolkitError where it cannot be asked of these parts."""
    form, number, folder = parse_question(text)
    if form == "prefers":
        if list(parts) != ["conflict"]:
            raise ToolkitError(
                f"question={text}: only conflict episodes show a preference. Write parts=[conflict] beside it."
            )
        return AskedQuestion(text, Question(0.5, two_sided=True), prefers=True)
    if form == "above":
        return AskedQuestion(text, Question(number))
    path = Path(folder) / JSON_FILE
    if not path.is_file():
        raise ToolkitError(f"question={text}: there is no {path}. Give the report folder of a closed-loop evaluation.")
    other = {(e.part, e.seed): e for e in read_evaluation(path).episodes if e.condition == AS_IT_IS}
    for part in parts:
        if part not in {of for of, _ in other}:
            raise ToolkitError(
                f"question={text}: {path} holds no episodes of {part}. Leave that part out: parts=[...]."
            )
    if form == "better":
        return AskedQuestion(text, Question(0.0, two_sided=True), other=other)
    return AskedQuestion(text, Question(0.0, margin=number), other=other)

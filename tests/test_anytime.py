"""Answers that hold at every look: how often they are wrong, and what they cost, by simulation and exactly."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from benchmarks.intervals import EPISODES, RUNS, first_answers
from simulation.report.proportions import Share
from simulation.report.sequential_test import Outcomes, Question


def drawn_shares(share: float, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).random((RUNS, EPISODES)) < share).astype(float)


def drawn_pairs(first: float, second: float, seed: int = 0) -> np.ndarray:
    return drawn_shares(first, seed) - drawn_shares(second, seed + 1)


def upper(count: int) -> float:
    """The upper 95 % limit of a share of all runs."""
    return Share(count, RUNS, 0.9).high


def test_the_functions_used_here_are_those_of_a_single_evaluation() -> None:
    drawn = drawn_pairs(0.7, 0.4)[:20]
    for question in (Question(0.0, two_sided=True), Question(0.1)):
        answers, whens = first_answers(drawn, question, -1.0)
        for run, answer, when in zip(drawn, answers, whens, strict=True):
            looks = [
                question.answer(Outcomes.of_pairs([(v > 0, v < 0) for v in run[:n]])) for n in range(1, EPISODES + 1)
            ]
            first = next((n for n, found in enumerate(looks, 1) if found is not None), EPISODES)
            assert (first, looks[first - 1]) == (when, {1: True, -1: False, 0: None}[answer])


@pytest.mark.parametrize("share", [0.05, 0.5, 0.6, 0.95])
def test_a_share_at_the_threshold_is_said_to_be_above_it_in_few_evaluations(share: float) -> None:
    answers, _ = first_answers(drawn_shares(share), Question(share), 0.0)
    assert upper(int((answers == 1).sum())) <= 0.055


@pytest.mark.parametrize(("first", "second"), [(0.5, 0.5), (0.05, 0.05), (0.9, 0.9)])
def test_of_two_equal_policies_neither_is_called_better_in_most_evaluations(first: float, second: float) -> None:
    answers, _ = first_answers(drawn_pairs(first, second), Question(0.0, two_sided=True), -1.0)
    assert upper(int((answers != 0).sum())) <= 0.055


def test_it_holds_for_episodes_that_are_not_alike() -> None:
    """Each episode's chance depends on those before, but given those it is no better than the threshold."""
    random = np.random.default_rng(3)
    drawn = np.zeros((RUNS, EPISODES))
    for n in range(EPISODES):
        lucky = drawn[:, :n].sum(1) > 0.5 * n
        drawn[:, n] = random.random(RUNS) < np.where(lucky, 0.5, 0.45 * (n % 2))
    answers, _ = first_answers(drawn, Question(0.5), 0.0)
    assert upper(int((answers == 1).sum())) <= 0.055


@pytest.mark.parametrize("difference", [0.2, -0.2])
def test_twenty_points_are_found_with_far_fewer_episodes_than_two_hundred(difference: float) -> None:
    share = drawn_shares(0.5 + difference)
    pairs = drawn_pairs(0.5 + difference / 2, 0.5 - difference / 2)
    right = 1 if difference > 0 else -1
    for drawn, low, threshold in ((share, 0.0, 0.5), (pairs, -1.0, 0.0)):
        answers, whens = first_answers(drawn, Question(threshold, two_sided=True), low)
        means = drawn.mean(1) - threshold
        fixed = np.sign(means) * (np.abs(means) > 1.96 * drawn.std(1) / EPISODES**0.5)
        assert whens.mean() <= 0.6 * EPISODES
        assert (answers == right).mean() >= (fixed == right).mean() - 0.10
        assert (answers == -right).mean() < 0.001


def test_the_interval_is_where_the_questions_change_their_answer() -> None:
    for ones, zeros in itertools.product((0, 1, 30, 100), repeat=2):
        found = Outcomes({1.0: ones, 0.0: zeros})
        low, high = found.interval()
        assert 0.0 <= low < high <= 1.0
        for mean in np.linspace(0.01, 0.99, 25):
            said = Question(float(mean), two_sided=True).answer(found)
            assert said is {(True, False): True, (False, True): False}.get((bool(mean < low), bool(mean > high)))
    assert Outcomes({1.0: 0, 0.0: 0}).interval() == (0.0, 1.0)


def test_within_a_margin_is_answered_when_the_interval_leaves_no_doubt() -> None:
    close = Question(0.0, margin=0.05)
    assert close.answer(Outcomes({1.0: 40, 0.0: 9920, -1.0: 40}, low=-1.0)) is True
    assert close.answer(Outcomes({1.0: 80, 0.0: 100, -1.0: 20}, low=-1.0)) is False
    assert close.answer(Outcomes({1.0: 20, 0.0: 60, -1.0: 20}, low=-1.0)) is None

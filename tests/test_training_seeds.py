"""Several trainings of one setting: intervals that hold for the setting and for a new training."""

from __future__ import annotations

import numpy as np
import pytest

from gr00t.errors import ToolkitError
from simulation.report.shares import Share
from simulation.report.training_seeds import join

EPISODES, SETTINGS = 200, 60


def logistic(value: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-value))


@pytest.mark.parametrize(("trainings", "spread"), [(2, 0.3), (3, 1.0), (5, 0.6)])
def test_both_intervals_hold_what_they_say(trainings: int, spread: float) -> None:
    """Drawn from another distribution than the model's: logits are normal."""
    random, of_setting, of_new = np.random.default_rng(7), 0, 0
    deviations = np.random.default_rng(8).normal(size=4000)
    for center in random.normal(0.5, 0.8, SETTINGS):
        truth = float(logistic(center + spread * deviations).mean())
        *chances, new = logistic(center + spread * random.normal(size=trainings + 1))
        found = join([Share(int(random.binomial(EPISODES, chance)), EPISODES) for chance in chances])
        of_setting += found.low <= truth <= found.high
        of_new += found.new_low <= new <= found.new_high
    slack = 2 * (SETTINGS * 0.95 * 0.05) ** 0.5
    assert of_setting >= 0.95 * SETTINGS - slack and of_new >= 0.95 * SETTINGS - slack


def test_more_trainings_and_those_alike_say_more() -> None:
    def width(*counts: int) -> float:
        found = join([Share(count, EPISODES) for count in counts])
        assert found.new_low <= found.low < found.mean < found.high <= found.new_high
        return found.new_high - found.new_low

    assert width(120, 121, 119, 120) < width(120, 121) and width(120, 121, 119) < width(60, 121, 180)
    one = Share(120, EPISODES)
    assert width(120, 120) > one.high - one.low


def test_the_spread_between_trainings_is_what_chance_does_not_explain() -> None:
    alike = join([Share(100, 200)] * 3)
    assert alike.between == 0.0 and alike.within == pytest.approx((0.25 / 200) ** 0.5)
    apart = join([Share(40, 200), Share(160, 200)])
    assert apart.between == pytest.approx((0.18 - 0.16 / 200) ** 0.5) and apart.mean == 0.5
    assert str(apart).startswith("50 % of 2 trainings (")
    with pytest.raises(ToolkitError, match="two trainings at least"):
        join([Share(1, 2)])
    with pytest.raises(ToolkitError, match="each with episodes"):
        join([Share(1, 2), Share(0, 0)])

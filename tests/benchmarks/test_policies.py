"""How policies are scored."""

from __future__ import annotations

import numpy as np

from benchmarks.policies import as_usual, interval, judge, share_of_gain, summary
from policies.evaluate import Played
from tests.simulators.worlds import busy_days, scenario


def played(returns: list[float], off: list[float]) -> Played:
    count = len(returns)
    served = np.full(count, 100.0)
    none = np.zeros(count)
    steps = np.zeros((1, count))
    return Played(np.array(returns), np.array(off), served, np.full(count, 0.7), none, steps, steps.astype(np.intp))


def test_shares_of_the_oracle_s_gain() -> None:
    best, oracle = np.array([10.0, 20.0, 30.0]), np.array([14.0, 28.0, 36.0])
    assert share_of_gain(oracle, best, oracle) == {"mean": 1.0, "low": 1.0, "high": 1.0}
    assert share_of_gain(best, best, oracle)["mean"] == 0
    assert share_of_gain((best + oracle) / 2, best, oracle) == {"mean": 0.5, "low": 0.5, "high": 0.5}


def test_intervals_are_student_s() -> None:
    # Of 1, 2, 3: deviation 1, and t of 2 degrees of freedom is 4.303.
    assert interval(np.array([1.0, 2.0, 3.0])) == {"mean": 2.0, "half_width": 2.48}


def test_days_kept_are_of_those_that_the_oracle_keeps() -> None:
    nights = {
        "a": [played([1, 1], [0, 3]), played([1, 1], [0, 0])],
        "b": [played([2, 2], [1, 1]), played([2, 2], [1, 1])],
        "threshold": [played([1, 1], [0, 0]), played([1, 1], [0, 0])],
        "pacing": [played([3, 3], [0, 0]), played([3, 3.5], [0, 1])],
        "price": [played([3.5, 3.5], [0, 0]), played([3.5, 3.5], [0, 0])],
        "oracle": [played([4, 4], [0, 5]), played([4, 4], [0, 0])],
    }
    found = summary(nights, ("a", "b"))
    assert found["best_fixed"] == "b" and found["days_the_oracle_keeps"] == 0.75
    kept = {name: row["days_kept"] for name, row in found["policies"].items()}
    assert kept == {"a": 1.0, "b": 0.0, "threshold": 1.0, "pacing": 0.6667, "price": 1.0, "oracle": 1.0}
    assert judge({**found, "decision_us": {}}) == 1  # pacing loses too many days


def test_a_plan_that_is_not_told_a_column_is_told_what_is_usual() -> None:
    training, lived = scenario(busy_days(5, 12)), scenario(busy_days(2, 12))
    found = as_usual(lived, training, ("requests",)).days
    np.testing.assert_allclose(found.requests, np.tile(training.days.requests.mean(0), (2, 1)))
    np.testing.assert_array_equal(found.charging, lived.days.charging)

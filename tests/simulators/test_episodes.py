"""Days as worlds take them."""

from __future__ import annotations

import numpy as np
import pytest

from caq.errors import ConfigError, TraceError
from simulators.episodes import COLUMNS, HOURLY, episodes
from tests.simulators import worlds


def test_a_device_has_its_day_in_whatever_company() -> None:
    many, two = episodes(5, seed=3), episodes(2, seed=3, first=2)
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(many, name)[2:4], getattr(two, name))
    assert not np.array_equal(many.requests[0], many.requests[1])
    assert not np.array_equal(episodes(5, seed=4).requests, many.requests)


def test_generated_days_are_what_was_asked_for() -> None:
    days = episodes(64, seed=0, step_s=600, requests_per_s=2.0)
    assert days.generated and (len(days), days.steps) == (64, 144)
    # 64 devices whose busyness has a deviation of 0.4: the mean is within three of its standard errors.
    assert days.requests.mean() / 600 == pytest.approx(2.0, abs=3 * 2 * 0.8 * 0.42 / 8)
    by_hour = days.requests.reshape(64, 24, 6).mean((0, 2))
    assert np.corrcoef(by_hour, HOURLY)[0, 1] > 0.95
    assert 0.05 < days.charging.mean() < 0.95 and 0 < days.screen_on.mean() < 0.9
    assert np.ptp(days.ambient_c, axis=1) == pytest.approx(np.full(64, 8.0), abs=0.1)


def test_days_are_selected() -> None:
    days = worlds.busy_days(4, 6)
    chosen = days.select(np.array([2, 0]))
    np.testing.assert_array_equal(chosen.requests, days.requests[[2, 0]])
    assert len(days.select(np.array([True, False, False, True]))) == 2


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("memory_available", np.nan, r"by hand: day 0, step 0, memory_available: nan is not 0..1"),
        ("charging", 2.0, r"charging: 2 is not 0..1"),
        ("ambient_c", 200.0, r"ambient_c: 200 is not -40..80"),
        ("requests", -1.0, r"requests: -1 is not 0.."),
    ],
)
def test_days_that_cannot_be_are_refused(column: str, value: float, message: str) -> None:
    with pytest.raises(TraceError, match=message):
        worlds.days((2, 3), **{column: value})


def test_the_first_bad_value_is_named() -> None:
    requests = np.zeros((2, 3))
    requests[1, 2] = np.inf
    with pytest.raises(TraceError, match="day 1, step 2, requests"):
        worlds.days((2, 3), requests=requests)


@pytest.mark.parametrize("arguments", [{"step_s": 90}, {"step_s": 7 * 60}, {"step_s": 0}, {"requests_per_s": 0}])
def test_impossible_days_are_not_generated(arguments: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        episodes(1, **arguments)
    with pytest.raises(ConfigError):
        episodes(0)

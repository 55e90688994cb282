"""Days as worlds take them."""

from __future__ import annotations

import numpy as np
import pytest

from caq.errors import ConfigError, TraceError
from simulators.envs import BatteryTraceEnv
from simulators.episodes import COLUMNS, HOURLY, episodes, of_traces
from simulators.traces import Trace
from tests.simulators import worlds


def test_a_device_has_its_day_in_whatever_company() -> None:
    many, two = episodes(5, seed=3), episodes(2, seed=3, first=2)
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(many, name)[2:4], getattr(two, name))
    assert not np.array_equal(many.requests[0], many.requests[1])
    assert not np.array_equal(episodes(5, seed=4).requests, many.requests)


def test_days_in_a_row_begin_with_the_first() -> None:
    one, three = episodes(3, seed=3), episodes(3, seed=3, days=3)
    assert three.steps == 3 * one.steps
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(three.cut(0, one.steps), name), getattr(one, name))
        assert name == "ambient_c" or not np.array_equal(getattr(three.cut(288, 576), name), getattr(one, name))
    assert three.cut(12, 24).start_s == 3600 and three.cut(288, 576).start_s == 0


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


def recorded(rows: int = 31, **columns: object) -> Trace:
    """Half an hour by the minute: on a charger from the tenth minute on."""
    given = {
        "charging": np.arange(rows) >= 10,
        "screen_brightness": np.linspace(0, 0.3, rows),
        "memory_available": np.full(rows, 0.5),
        "apps_load": np.full(rows, 0.25),
    }
    arrays = {name: np.asarray(c, float) for name, c in (given | columns).items() if c is not None}
    return Trace(60.0 * np.arange(rows), arrays, "half.csv")


def test_recorded_days_are_taken_as_they_are() -> None:
    requests = np.arange(12.0).reshape(2, 6)
    days = of_traces([recorded(31), recorded(26)], requests, start_s=6 * 3600.0, ambient_c=5.0)
    assert (len(days), days.steps, days.generated) == (2, 6, False)
    np.testing.assert_array_equal(days.charging[0], [0, 0, 1, 1, 1, 1])
    np.testing.assert_allclose(days.screen_brightness[0], np.arange(6) * 0.05)
    np.testing.assert_array_equal(days.screen_on[0], [0, 1, 1, 1, 1, 1])
    np.testing.assert_array_equal(days.requests, requests)
    row, _ = BatteryTraceEnv(worlds.scenario(days)).reset(seed=0)
    np.testing.assert_allclose(row[7:9], [1, 0], atol=1e-6)  # six in the morning
    assert row[2] == pytest.approx(25 / 80)


def test_load_that_is_not_told_apart_is_that_of_apps() -> None:
    requests, busy = np.zeros((1, 7)), np.full(31, 0.6)
    assert of_traces([recorded(cpu_load=busy)], requests).apps_load.tolist() == [[0.25] * 7]
    assert of_traces([recorded(cpu_load=busy, apps_load=None)], requests).apps_load.tolist() == [[0.6] * 7]


def test_gaps_are_filled_only_as_one_says() -> None:
    memory = np.full(31, 0.5)
    memory[12:20] = np.nan
    holed, requests = recorded(memory_available=memory), np.zeros((1, 7))
    with pytest.raises(TraceError, match=r"half.csv: no memory_available at 900 s; fill=.'memory_available': value"):
        of_traces([holed], requests)
    days = of_traces([holed], requests, fill={"memory_available": 0.9})
    np.testing.assert_array_equal(days.memory_available[0], [0.5, 0.5, 0.5, 0.9, 0.5, 0.5, 0.5])
    with pytest.raises(TraceError, match="no screen_brightness at 0 s"):
        of_traces([recorded(screen_brightness=None)], requests)
    assert of_traces([recorded(screen_brightness=None)], requests, fill={"screen_brightness": 0.0}).screen_on.max() == 0
    with pytest.raises(TraceError, match="no apps_load at 0 s"):
        of_traces([recorded(apps_load=None)], requests)
    with pytest.raises(TraceError, match=r"requests must have shape"):
        of_traces([recorded()], np.zeros((1, 3)))
    with pytest.raises(ConfigError, match="at least one"):
        of_traces([], requests)

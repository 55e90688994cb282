import numpy as np
import pytest

from caq.context import RecordedContext
from caq.errors import ConfigError
from simulators.traces import phone_days, read, write
from simulators.traces.days import APPS_LOAD, SCORES, _memory, level_class, value_of
from simulators.traces.model import load_model

COLUMNS = ("state_of_charge", "charging", "screen_brightness", "memory_available", "apps_load")
MODEL = load_model()


@pytest.fixture(scope="module")
def days():
    return phone_days(200, seed=5)


def test_shape_and_ranges(days):
    assert tuple(days.columns) == COLUMNS
    np.testing.assert_array_equal(days.times_s, np.arange(1440) * 60)
    for column in days.columns.values():
        assert column.shape == (200, 1440) and column.dtype == np.float32
        assert column.min() >= 0 and column.max() <= 1
    assert set(np.unique(days.columns["charging"])) == {0, 1}
    assert phone_days(2, days=3, seed=5).columns["charging"].shape == (2, 4320)


def test_a_device_is_the_same_in_any_company(days):
    for name, column in phone_days(3, seed=5, first=50).columns.items():
        np.testing.assert_array_equal(column, days.columns[name][50:53])
    for name, column in phone_days(2, days=2, seed=5).columns.items():
        np.testing.assert_array_equal(column[:, :1440], days.columns[name][:2])
    other = phone_days(3, seed=6).columns["state_of_charge"]
    assert not np.array_equal(other, days.columns["state_of_charge"][:3])
    assert len(np.unique(days.columns["state_of_charge"], axis=0)) == 200


def test_the_battery_goes_the_way_of_the_charger(days):
    level, charging = days.columns["state_of_charge"], days.columns["charging"]
    change = np.diff(level, axis=1)
    assert (change[charging[:, :-1] == 1] >= 0).all() and (change[charging[:, :-1] == 0] <= 0).all()
    steady = charging[:, 60:] == charging[:, :-60]
    up = np.diff(level[:, ::60], axis=1)[steady[:, ::60]]
    on = charging[:, :-60:60][steady[:, ::60]] == 1
    assert up[on].mean() > 0.02 and up[~on].mean() < -0.04


def test_apps_are_as_busy_as_the_battery_drains(days):
    load, screen = days.columns["apps_load"], days.columns["screen_brightness"] > 0
    assert load[screen].mean() / load[~screen].mean() == pytest.approx(MODEL.drain.screen, rel=0.15)
    assert np.median(load[~screen].mean()) == pytest.approx(APPS_LOAD, rel=0.15)
    level, off = days.columns["state_of_charge"], days.columns["charging"] == 0
    hours = level[:, :-60:60] - level[:, 60::60]
    whole = np.array([[off[d, h * 60 : h * 60 + 61].all() for h in range(hours.shape[1])] for d in range(len(level))])
    busy = load[:, :-60].reshape(len(load), -1, 60).mean(2)
    usual = whole & (level[:, :-60:60] < 0.95) & (level[:, 60::60] > 0.15)
    assert np.corrcoef(hours[usual], busy[usual])[0, 1] > 0.9


def test_nights_are_for_charging_and_days_for_screens(days):
    charging, screen = days.columns["charging"], days.columns["screen_brightness"] > 0
    night, day = slice(2 * 60, 6 * 60), slice(9 * 60, 20 * 60)
    assert charging[:, night].mean() > charging[:, day].mean() + 0.05
    assert screen[:, day].mean() > screen[:, night].mean() + 0.3


def test_brightness_stays_through_a_session(days):
    bright = days.columns["screen_brightness"]
    kept = (bright[:, 1:] == bright[:, :-1]) | (bright[:, 1:] == 0) | (bright[:, :-1] == 0)
    assert kept.all()


def test_a_trace_is_a_generated_recording(days, tmp_path):
    trace = days.trace(7)
    assert trace.generated and trace.device == "generated-5-7"
    assert phone_days(1, seed=5, first=7).trace(0).device == "generated-5-7"
    path = tmp_path / "day.csv"
    write(path, trace)
    found = read(path)
    assert found.generated and found.device == trace.device
    for name in COLUMNS:
        np.testing.assert_array_equal(found.columns[name], trace.columns[name])
        np.testing.assert_allclose(found.columns[name], days.columns[name][7], atol=6e-5)
    assert RecordedContext.from_file(path).duration_s == 1439 * 60


def test_a_marginal_is_what_is_drawn():
    rng = np.random.default_rng(0)
    marginal = MODEL.memory.marginal
    drawn = value_of(marginal, rng.standard_normal(4000), rng.standard_normal((50, 4000)))
    deciles = np.quantile(drawn, np.linspace(0.1, 0.9, 9))
    np.testing.assert_allclose(deciles, marginal.quantiles[2:-1:2], atol=0.01)
    assert value_of(marginal, np.zeros(1), np.array([SCORES[0] * 9]))[0] == marginal.quantiles[0]


def test_memory_forgets_as_it_was_fitted():
    rng = np.random.default_rng(0)
    found = _memory(MODEL.memory, np.zeros(300), rng.standard_normal((2000, 2, 300)).astype(np.float32))
    scores = np.interp(found, np.array(MODEL.memory.marginal.quantiles) + np.arange(21) * 1e-9, SCORES)
    scores -= scores.mean()
    for minutes in (5, 60):
        kept = (scores[minutes:] * scores[:-minutes]).mean() / (scores**2).mean()
        memory = MODEL.memory
        expected = memory.fast_share * np.exp(-minutes / memory.fast_min) + (1 - memory.fast_share) * np.exp(
            -minutes / memory.slow_min
        )
        assert kept == pytest.approx(expected, abs=0.05)


def test_level_classes():
    assert level_class(np.array([0.0, 0.0999, 0.1, 0.95, 0.994, 0.995, 1.0])).tolist() == [0, 0, 1, 9, 9, 10, 10]


@pytest.mark.parametrize("options", [{"devices": 0}, {"devices": 1, "days": 0}, {"devices": 1, "first": -1}])
def test_wrong_arguments(options):
    with pytest.raises(ConfigError, match="at least"):
        phone_days(**options)

import numpy as np
import pytest

from simulators.traces import phone_day

COLUMNS = [
    "t_s",
    "state_of_charge",
    "charging",
    "screen_brightness",
    "temperature_c",
    "memory_available",
]
DAYS = [phone_day(seed) for seed in range(12)]


@pytest.mark.parametrize("day", DAYS)
def test_shape_and_ranges(day):
    assert list(day) == COLUMNS
    np.testing.assert_array_equal(day["t_s"], np.arange(1440) * 60)
    for name in ("state_of_charge", "screen_brightness", "memory_available"):
        assert day[name].min() >= 0 and day[name].max() <= 1
    assert set(day["charging"].tolist()) == {0, 1}
    assert day["temperature_c"].min() > 15 and day["temperature_c"].max() < 48


@pytest.mark.parametrize("day", DAYS)
def test_the_story_of_the_day(day):
    charge, charging = day["state_of_charge"], day["charging"]
    assert charge[:360].min() > 0.9 and charging[:360].all()
    assert charging[480] == 0
    lowest = int(charge.argmin())
    assert charge[lowest] < 0.2 and lowest > 16 * 60
    # The level is rounded to 0.01, so the first lowest row can come some minutes before the plug.
    assert charging[lowest + 20 :].all() and charge[-1] > charge[lowest] + 0.3


def test_rates_are_those_of_real_phones():
    change = np.concatenate([np.diff(day["state_of_charge"]) for day in DAYS]) * 100
    level, charging, bright = (
        np.concatenate([day[name][:-1] for day in DAYS])
        for name in ("state_of_charge", "charging", "screen_brightness")
    )
    assert change[(charging == 1) & (level < 1)].mean() == pytest.approx(0.40, abs=0.05)
    assert change[charging == 0].mean() == pytest.approx(-0.19, abs=0.03)
    on, off = (change[(charging == 0) & screen].mean() for screen in (bright > 0, bright == 0))
    assert on < 2 * off < 0


def test_use_and_charging_warm_the_battery():
    day = DAYS[0]
    busy = day["screen_brightness"] > 0
    assert day["temperature_c"][busy].mean() > day["temperature_c"][~busy].mean() + 1
    evening = int(day["state_of_charge"].argmin())
    assert day["temperature_c"][evening + 30] > day["temperature_c"][:300].mean() + 3


def test_seeds():
    again, other = phone_day(3), phone_day(4)
    for name in COLUMNS:
        np.testing.assert_array_equal(again[name], DAYS[3][name])
    assert not np.array_equal(again["state_of_charge"], other["state_of_charge"])

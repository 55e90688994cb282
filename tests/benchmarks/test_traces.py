"""The comparison of generated days with recorded ones measures what it says."""

import numpy as np
import pytest

from benchmarks.traces import as_recorded, distances, halves, quantities, sessions, windows
from simulators.traces import Trace
from simulators.traces.fit import steps


def phone(level, charging, bright=None):
    rows = len(level)
    columns = {
        "state_of_charge": np.array(level, float),
        "charging": np.array(charging, float),
        "screen_brightness": np.full(rows, np.nan) if bright is None else np.array(bright, float),
    }
    return Trace(1.4e9 + 60.0 * np.arange(rows), columns, "a phone")


#: Off the charger for an hour, on it for two, off again for one; 12 % an hour down, 24 up.
WAY = [0] * 60 + [1] * 120 + [0] * 60
PHONE = phone(0.5 + np.cumsum([0, *np.where(np.array(WAY[:-1]) == 1, 0.24 / 60, -0.12 / 60)]), WAY)


def test_rates_and_sessions_of_a_phone():
    found = quantities([PHONE])
    assert found["charging session"][0].tolist() == [120]
    assert found["time between chargers"][0].tolist() == []
    assert found["charged"][0].tolist() == [12]
    assert len(found["state of charge"][0]) == 240 and found["screen session"] == []
    np.testing.assert_allclose(found["charge"][0], 24)
    np.testing.assert_allclose(-windows(steps([PHONE], [PHONE.columns["charging"]]), 0, 30, 2.0), 12)


def test_a_session_whose_beginning_was_not_seen_is_not_counted():
    found = steps([PHONE], [PHONE.columns["charging"]])
    assert sessions(found, 0).tolist() == [] and sessions(found, 1).tolist() == [120]


def test_generated_phones_are_looked_at_when_the_real_one_recorded():
    real = phone([0.5] * 30, [0] * 30, [0, 0.5] * 15)
    made = as_recorded([real], seed=0)
    assert len(made) > 1 and len({trace.columns["state_of_charge"].tobytes() for trace in made}) > 1
    for trace in made:
        assert set(trace.times_s) <= set(real.times_s) and (trace.columns["state_of_charge"] > 0).all()
        assert not np.isnan(trace.columns["screen_brightness"]).any()
    silent = as_recorded([phone([0.5] * 30, [0] * 30)], seed=0)
    assert all(np.isnan(trace.columns["screen_brightness"]).all() for trace in silent)


def test_distances():
    a, b = [np.arange(10.0), np.arange(10.0, 20)], [np.arange(20.0) + 5]
    assert distances(a, [np.arange(20.0)]) == {"ks": 0, "wasserstein": 0}
    assert distances(a, b) == {"ks": pytest.approx(0.25), "wasserstein": pytest.approx(5)}
    one, two = np.zeros(10), np.ones(10)
    # Two devices have one way to be halved.
    assert halves([one, two], 0)["ks"] == [1, 1]

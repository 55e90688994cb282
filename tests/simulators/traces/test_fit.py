"""The fit finds what made the data, and real data are read as they are."""

import os
from pathlib import Path

import numpy as np
import pytest

from caq.errors import TraceError
from simulators.traces import Trace, phone_days
from simulators.traces.fit import fit, marginal, scaled, steps
from simulators.traces.model import load_model
from simulators.traces.real import machines, phones, screen_on, train_and_held_out

MODEL = load_model()
FOLDER = Path(os.environ.get("CAQ_DATA", "/nonexistent"))


@pytest.fixture(scope="module")
def found():
    """The fit to generated phones, each recording most of the time, with gaps of 8 hours and more, which none fills."""
    days = phone_days(60, days=6, seed=1)
    rng = np.random.default_rng(0)
    traces = []
    for device in range(60):
        whole = days.trace(device)
        # A phone that is off records nothing.
        rows = np.repeat(rng.random(6 * 3) < 0.7, 480) & (whole.columns["state_of_charge"] > 0)
        columns = {name: column[rows] for name, column in whole.columns.items()}
        traces.append(Trace(whole.times_s[rows], columns, "generated"))
    weeks = phone_days(20, days=10, seed=2).columns["memory_available"][:, ::5]
    times_s = 300.0 * np.arange(weeks.shape[1])
    return fit(traces, [Trace(times_s, {"memory_available": week.astype(float)}, "generated") for week in weeks])


def test_drain_and_charge_are_found_again(found):
    assert found.drain.per_hour == pytest.approx(MODEL.drain.per_hour, rel=0.15)
    assert found.drain.screen == pytest.approx(MODEL.drain.screen, rel=0.1)
    assert found.drain.device_sigma == pytest.approx(MODEL.drain.device_sigma, abs=0.1)
    assert found.drain.noise_sigma == pytest.approx(MODEL.drain.noise_sigma, rel=0.25)
    np.testing.assert_allclose(found.charge.per_hour.quantiles[4:17], MODEL.charge.per_hour.quantiles[4:17], atol=0.12)
    assert found.charge.level[9] == pytest.approx(MODEL.charge.level[9], abs=0.1)


@pytest.mark.parametrize("name", ["plug", "unplug", "screen_on", "screen_off"])
def test_hazards_are_found_again(name, found):
    made, again = getattr(MODEL, name), getattr(found, name)
    # Base and factors may trade places, so the mean over all classes; the first of the time since has no level.
    logs = [
        np.log(h.per_min) + sum(np.mean(np.log(f)) for f in (h.hour, h.level, h.elapsed[1:])) for h in (made, again)
    ]
    assert np.exp(logs[1] - logs[0]) == pytest.approx(1, abs=0.3)
    assert np.corrcoef(np.log(made.hour), np.log(again.hour))[0, 1] > 0.9
    assert again.device_sigma == pytest.approx(made.device_sigma, abs=0.2)


def test_memory_is_found_again(found):
    made, again = MODEL.memory, found.memory
    np.testing.assert_allclose(again.marginal.quantiles[2:-2], made.marginal.quantiles[2:-2], atol=0.12)
    assert again.slow_min == pytest.approx(made.slow_min, rel=0.5)


def test_scaling_finds_exact_factors():
    rng = np.random.default_rng(0)
    hour, level, device = (rng.integers(0, n, 5000) for n in (4, 3, 5))
    by_hour, by_level, own = np.array([1, 2, 3, 4.0]), np.array([1, 0.5, 2]), np.array([1, 1.5, 0.5, 1, 1])
    exposure = rng.uniform(1000, 2000, 5000)
    events = exposure * 0.1 * by_hour[hour] * by_level[level] * own[device]
    base, factors, devices, alone = scaled(events, exposure, [(hour, 4), (level, 3)], device, 1.0)
    fitted = base * factors[0][:, None] * factors[1]
    np.testing.assert_allclose(fitted / fitted[0, 0], by_hour[:, None] * by_level, rtol=1e-3)
    np.testing.assert_allclose(devices / devices[0], own, rtol=1e-3)
    np.testing.assert_allclose(alone * devices, np.bincount(device, events), rtol=1e-3)


def test_steps_know_what_was_seen():
    times_s = np.array([0, 60, 120, 180, 2000, 2060, 2120.0])
    charging = np.array([0, 0, 1, 1, 1, 0, 0.0])
    columns = {
        "state_of_charge": np.array([0.5, 0.49, 0.49, 0.51, 0.8, 0.8, 0.79]),
        "screen_brightness": np.full(7, 0.5),
    }
    found = steps([Trace(times_s, columns, "me")], [charging])
    # The gap of half an hour is no step; what was there before the first change, or after the gap, was not seen.
    assert found.changed.tolist() == [False, True, False, True, False]
    assert found.seen.tolist() == [False, False, True, False, True]
    assert found.on.tolist() == [0, 0, 1, 1, 0]
    assert [rows.tolist() for rows in found.stretches(found.on == 0)] == [[0, 1], [4]]
    assert (found.screen == 2).all()
    filled = steps([Trace(times_s, columns, "me")], [charging], fill_s=3600)
    assert filled.minutes.sum() == pytest.approx(2120 / 60)
    np.testing.assert_allclose(filled.gained.sum(), 0.29)


def test_a_marginal_knows_what_is_between_devices():
    rng = np.random.default_rng(0)
    scores = np.sqrt(0.3) * rng.standard_normal((400, 1)) + np.sqrt(0.7) * rng.standard_normal((400, 200))
    found, within = marginal(list(np.exp(scores)))
    assert found.device_share == pytest.approx(0.3, abs=0.05)
    np.testing.assert_allclose(np.log(found.quantiles[5::5][:3]), [-0.674, 0, 0.674], atol=0.08)
    assert np.std(within) == pytest.approx(np.sqrt(0.7), abs=0.03)


def test_folders_without_the_data(tmp_path):
    for read in (phones, machines):
        with pytest.raises(TraceError, match=r"traces\.npz: cannot be read"):
            read(tmp_path)
    (tmp_path / "context_extrasensory").mkdir()
    np.savez(tmp_path / "context_extrasensory" / "traces.npz", t=np.arange(3))
    with pytest.raises(TraceError, match="no array level"):
        phones(tmp_path)


@pytest.mark.skipif(not (FOLDER / "context_extrasensory").is_dir(), reason="CAQ_DATA has no context_extrasensory")
def test_real_phones():
    traces = phones(FOLDER)
    train, out = train_and_held_out(traces)
    assert (len(train), len(out)) == (17, 8)
    for side in (train, out):
        assert sum(not np.isnan(screen_on(trace)).all() for trace in side) >= 2
    hours = np.concatenate([trace.times_s // 3600 % 24 for trace in traces])
    charging = np.concatenate([trace.columns["charging"] for trace in traces])
    # Local time: phones charge while people sleep.
    night, day = (hours >= 3) & (hours < 6), (hours >= 9) & (hours < 13)
    assert np.nanmean(charging[night]) > 0.6 and np.nanmean(charging[day]) < 0.3

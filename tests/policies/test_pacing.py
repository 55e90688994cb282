"""Pacing by the price of charge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from caq.errors import ConfigError, WeightsError
from policies.evaluate import fixed, of_policy, play
from policies.pacing import PacingPolicy, read_habits
from policies.train.habits import habits_of
from tests.policies.worlds import CAMERA, habits, seen
from tests.simulators.worlds import days, scenario

SHIPPED = Path(__file__).parents[2] / "policies" / "trained" / "camera-habits.npz"


def test_charge_is_dearer_the_less_there_is() -> None:
    policy = PacingPolicy(CAMERA, habits())
    prices = [policy.price(seen(state_of_charge=charge))[0] for charge in np.linspace(0, 1, 30)]
    assert (np.diff(prices) <= 0).all() and prices[0] > prices[-1]
    # What charge of nothing is worth: an answer, and what being off costs besides, for the energy of the cheapest.
    cheapest = CAMERA.hull()[0]
    full = PacingPolicy(CAMERA, habits(short=np.ones((2, 24, 12, 21)))).price(seen())[0]
    assert full == pytest.approx((CAMERA.accuracy[cheapest] + 1.0) / CAMERA.energy_j[cheapest])


def test_where_charge_is_sure_to_last_it_takes_the_most_accurate_point() -> None:
    policy = PacingPolicy(CAMERA, habits(short=np.zeros((2, 24, 12, 21))))
    assert CAMERA.names[policy.choose(seen(state_of_charge=0.01))[0]] == "full"


@pytest.mark.parametrize("busy", [0.5, 1.0, 3.0])
def test_it_measures_how_busy_the_device_is(busy: float) -> None:
    policy = PacingPolicy(CAMERA, habits(prior_s=1.0))
    for step in range(100):
        power = 0.006 + busy * 30 * CAMERA.energy_j[2]
        policy.choose(seen(power_w=power, time_s=300.0 * step, current=2))
    assert policy.load()[0] == pytest.approx(busy, rel=1e-3)


@pytest.mark.parametrize("unknown", [{"power_w": np.nan}, {"time_s": np.nan}, {"current": -1}])
def test_without_a_measurement_the_load_is_the_usual_one(unknown: dict[str, Any]) -> None:
    policy = PacingPolicy(CAMERA, habits())
    for step in range(5):
        policy.choose(seen(**{"power_w": 0.2, "time_s": 300.0 * step, **unknown}))
    assert policy.load()[0] == 1.0


def test_habits_are_counted() -> None:
    """30 requests/s all day, and a charge at 18 h: at noon, six hours have to be bridged."""
    charging = np.zeros(288)
    charging[216:] = 1
    s = scenario(days((20, 288), charging=charging, requests=9000.0))
    found = habits_of(s)
    assert found.rate == pytest.approx(np.full(24, 30.0))
    for energy_at in (3, 4):
        need_j = 6 * 3600 * (0.006 + 30 * found.energy_j[energy_at])
        charge = need_j / (0.95 * s.battery.energy_j)
        levels = np.linspace(0, 1, found.short.shape[3])
        row = found.short[0, 12, energy_at]
        assert row[levels > charge + 0.03].max() == 0
        assert row[levels < charge * 11 / 12 - 0.03].min() == 1
    assert found.short[1, 20].max() == 0


def test_pacing_outlasts_the_dear_points_and_answers_better_than_the_cheap_ones() -> None:
    charging = np.zeros(288)
    charging[108:] = 1
    s = scenario(days((20, 288), charging=charging, requests=9000.0))
    charge = np.full(20, 1.0)
    paced = play(s, charge, of_policy(PacingPolicy(CAMERA, habits_of(s))))
    assert not paced.off_steps.any()
    assert paced.returns.mean() > max(play(s, charge, fixed(i)).returns.mean() for i in range(len(CAMERA)))


def test_habits_survive_a_file(tmp_path: Path) -> None:
    habits().write(tmp_path / "h.npz")
    found = read_habits(tmp_path / "h.npz")
    np.testing.assert_allclose(found.short, habits().short, atol=5e-4)
    np.testing.assert_array_equal(found.energy_j, habits().energy_j)
    assert found.memory_s == 21600.0 and found.source == "made up"


def test_the_shipped_habits_are_read() -> None:
    found = read_habits(SHIPPED)
    assert found.rate.mean() == pytest.approx(30.0, rel=0.2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rate": np.zeros(24)}, "rate"),
        ({"rate": np.ones(23)}, "rate"),
        ({"energy_j": np.ones(12)}, "energy_j"),
        ({"short": np.full((2, 24, 12, 21), 1.5)}, "short"),
        ({"short": np.full((2, 24, 12, 21), np.nan)}, "short"),
        ({"short": np.zeros((2, 24, 11, 21))}, "short"),
        ({"memory_s": 0.0}, "memory_s"),
    ],
)
def test_impossible_habits(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        habits(**changes)


def test_impossible_habits_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "h.npz"
    habits().write(path)
    arrays = dict(np.load(path))
    np.savez(path, **arrays | {"rate": np.zeros(24)})
    with pytest.raises(WeightsError, match=r"h\.npz: habits: rate"):
        read_habits(path)
    del arrays["short"]
    np.savez(path, **arrays)
    with pytest.raises(WeightsError, match=r"h\.npz: short: is missing"):
        read_habits(path)

"""Devices in a world: what is served, drawn, and what remains of the battery."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from caq.errors import AssignmentError, ConfigError
from simulators.battery import Battery
from simulators.device import PointCosts
from simulators.scalar import ScalarBattery, Scalars, ScalarThermal
from simulators.thermal import Thermal, ThermalParameters
from simulators.world import serve
from tests.simulators import worlds

SLOW = PointCosts(
    ("slow",), "made up", np.array([0.5]), np.array([1.0]), np.array([1e-4]), np.array([1e5])
)  # a request takes a second


def test_more_requests_than_can_be_served() -> None:
    done = serve(Scalars, True, 1.0, 0.0, 600.0, 300.0, 100.0, 10.0)
    assert (done.served, done.queue, done.dropped) == (300.0, 100.0, 200.0)
    # The backlog grows in a line from 0 to 300, and all beyond 10 wait more than 10 s.
    assert done.late == pytest.approx(300 * 290 / 300, rel=1e-6)


def test_what_fits_is_served_at_once() -> None:
    done = serve(Scalars, True, 1.0, 0.0, 200.0, 300.0, 100.0, 10.0)
    assert done == (200.0, 0.0, 0.0, 0.0)


def test_a_backlog_that_stays_is_late() -> None:
    done = serve(Scalars, True, 1.0, 50.0, 300.0, 300.0, 100.0, 10.0)
    assert (done.served, done.late, done.queue) == (300.0, 300.0, 50.0)


def test_a_device_that_is_off_drops_what_waits() -> None:
    assert serve(Scalars, False, 1.0, 40.0, 2.0, 300.0, 100.0, 10.0) == (0.0, 0.0, 42.0, 0.0)


amounts = st.floats(0, 1e6)


@given(st.booleans(), st.floats(1e-4, 10), amounts, amounts, st.floats(1, 3600), amounts, st.floats(1e-3, 1e3))
def test_every_request_is_served_dropped_or_waits(
    on: bool, latency: float, queue: float, requests: float, duration: float, limit: float, deadline: float
) -> None:
    done = serve(Scalars, on, latency, queue, requests, duration, limit, deadline)
    assert done.served + done.dropped + done.queue == pytest.approx(queue + requests, rel=1e-9, abs=1e-6)
    assert 0 <= done.late <= done.served and done.dropped >= 0 and 0 <= done.queue <= limit
    arrays = serve(np, *(np.array([x]) for x in (on, latency, queue, requests)), duration, limit, deadline)
    assert [float(x[0]) for x in arrays] == list(done)


def test_the_battery_gives_what_is_drawn() -> None:
    s = worlds.scenario(worlds.days((1, 48), requests=9000.0))
    w = worlds.world(s)
    w.reset(np.array([0]), np.array([0.9]))
    drawn = 0.0
    for _ in range(48):
        outcome = w.step(np.array([3]))
        assert outcome.inference_j[0] == pytest.approx(9000 * s.costs.energy_j[3])
        assert outcome.power_w[0] == pytest.approx(s.device.idle_power_w + outcome.inference_j[0] / 300)
        drawn += outcome.power_w[0] * 300
    charge = w.state.battery.state_of_charge[0]
    from_0_9 = np.linspace(charge, 0.9, 1000)
    stored = np.interp(from_0_9, s.battery.state_of_charge, s.battery.ocv_v).mean() * (0.9 - charge)
    stored *= s.battery.capacity_ah * 3600
    assert 0.9 - charge > 0.3
    assert drawn < stored < 1.06 * drawn  # the rest is lost in the resistances


def test_a_drained_device_is_off_until_it_is_charged() -> None:
    charging = np.zeros(40)
    charging[20:] = 1
    s = worlds.scenario(worlds.days((1, 40), charging=charging, requests=2e4), restart_above=0.1)
    w = worlds.world(s)
    w.reset(np.array([0]), np.array([0.2]))
    off, charge = [], []
    for _ in range(40):
        outcome = w.step(np.array([0]))
        off.append(bool(outcome.off[0]))
        charge.append(w.state.battery.state_of_charge[0])
        if off[-1]:
            assert (outcome.served[0], outcome.power_w[0], outcome.dropped[0]) == (0, 0, 2e4)
    first = off.index(True)
    again = off.index(False, first)
    assert first < 20 < again
    assert charge[again - 1] >= 0.1 > charge[again - 2]
    assert not any(off[again:])


def test_memory_and_heat() -> None:
    s = worlds.scenario(worlds.days((2, 4), memory_available=[[0.9], [0.1]], ambient_c=[[20.0], [75.0]], requests=10.0))
    w = worlds.world(s)
    w.reset(np.array([0, 1]), np.array([1.0, 1.0]))
    w.step(np.array([0, 0]))
    outcome = w.step(np.array([0, 0]))
    assert outcome.over_memory.tolist() == [False, True]
    assert w.state.throttled.tolist() == [False, True]
    assert outcome.busy[1] == pytest.approx(outcome.busy[0] / s.thermal.throttle_factor)


def test_other_apps_draw_heat_and_load() -> None:
    given = worlds.days((3, 12), apps_load=[[0.0], [0.5], [1.0]], requests=9000.0)
    s = worlds.scenario(given, apps_power_w=0.1)
    w, rows = worlds.world(s), np.arange(3)
    w.reset(rows, np.full(3, 0.9))
    for _ in range(12):
        outcome = w.step(np.full(3, 3))
    np.testing.assert_allclose(np.diff(outcome.power_w), 0.05)
    np.testing.assert_allclose(outcome.load, outcome.busy[0] + [0, 0.5, 1])
    warmer = np.diff(w.state.temperature_c[0])
    np.testing.assert_allclose(warmer, 0.05 * s.thermal.resistance_k_per_w[0], rtol=0.05)
    charge = w.state.battery.state_of_charge
    np.testing.assert_allclose(-np.diff(charge), 0.05 * 3600 / s.battery.energy_j, rtol=0.1)


def test_other_apps_can_make_a_device_throttle() -> None:
    given = worlds.days((1, 24), apps_load=1.0, requests=9000.0)
    throttled = []
    for power_w in (0.0, 2.0):
        w = worlds.world(worlds.scenario(given, apps_power_w=power_w, battery_capacity_ah=4.0))
        w.reset(np.array([0]), np.array([1.0]))
        for _ in range(24):
            busy = w.step(np.array([3])).busy[0]
        throttled.append((bool(w.state.throttled[0]), busy))
    assert [hot for hot, _ in throttled] == [False, True] and throttled[1][1] > throttled[0][1]


def test_a_device_without_other_apps_has_none_of_their_load() -> None:
    w = worlds.world(worlds.scenario(worlds.days((1, 2), apps_load=0.7)))
    w.reset(np.array([0]), np.array([0.9]))
    outcome = w.step(np.array([0]))
    assert outcome.load[0] == 0 and outcome.power_w[0] == w.device.idle_power_w


def test_a_device_that_is_off_runs_no_apps() -> None:
    w = worlds.world(worlds.scenario(worlds.days((1, 2), apps_load=0.7), apps_power_w=0.1))
    w.reset(np.array([0]), np.array([0.0]))
    outcome = w.step(np.array([0]))
    assert outcome.off[0] and outcome.apps_load[0] == 0 and outcome.power_w[0] == 0


def test_the_queue_outlives_a_step() -> None:
    requests = np.array([[400.0, 100.0, 0.0]])
    w = worlds.world(worlds.scenario(worlds.days((1, 3), requests=requests), SLOW, queue_limit=150, deadline_s=1e4))
    w.reset(np.array([0]), np.array([1.0]))
    outcomes = [w.step(np.array([0])) for _ in range(3)]
    assert [o.served[0] for o in outcomes] == [300, 200, 0]
    assert sum(o.dropped[0] for o in outcomes) == sum(o.late[0] for o in outcomes) == 0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_devices_do_not_know_of_each_other(dtype: Any) -> None:
    s = worlds.scenario(worlds.busy_days(6, 72))
    points = np.random.default_rng(1).integers(len(s.costs), size=(72, 6))
    rows, charge = np.arange(6), np.linspace(0.1, 1, 6)

    def states(chosen: np.ndarray) -> np.ndarray:
        w = worlds.world(s, dtype)
        w.reset(rows[chosen], charge[chosen])
        for step in points:
            w.step(step[chosen])
        return np.stack([w.state.battery.state_of_charge, w.state.temperature_c[0], w.state.queue])

    np.testing.assert_array_equal(states(rows)[:, 2:4], states(np.array([2, 3])))


def test_half_the_precision_tells_the_same_story() -> None:
    s = worlds.scenario(worlds.busy_days(8, 144))
    points = np.random.default_rng(1).integers(len(s.costs), size=(144, 8))
    charges = []
    for dtype in (np.float32, np.float64):
        w = worlds.world(s, dtype)
        w.reset(np.arange(8), np.full(8, 0.8))
        for step in points:
            w.step(step)
        charges.append(w.state.battery.state_of_charge)
    np.testing.assert_allclose(*charges, atol=2e-3)


def test_the_scalar_battery_is_the_battery() -> None:
    parameters = worlds.scenario(worlds.days((1, 1))).battery
    rng = np.random.default_rng(0)
    one, many = ScalarBattery(parameters, 300.0), Battery(parameters)
    a, b = one.start(0.7), many.start(np.array([0.7]))
    for power, celsius in zip(rng.uniform(-0.8, 0.8, 400), rng.uniform(-20, 60, 400), strict=True):
        a, voltage = one.step(a, float(power), float(celsius), 300.0)
        b, voltages = many.step(b, np.array([power]), np.array([celsius]), 300.0)
        np.testing.assert_allclose([*a, voltage], [*(x[0] for x in b), voltages[0]], rtol=1e-9, atol=1e-12)
        assert one.cut_off(a, voltage) == many.cut_off(b, voltages)[0]


@pytest.mark.parametrize("nodes", [((20.0,), (30.0,)), ((3.0, 8.0), (20.0, 60.0))])
def test_the_scalar_board_is_the_board(nodes: tuple[tuple[float, ...], tuple[float, ...]]) -> None:
    parameters = ThermalParameters("board", "made up", *nodes, 20.0, 1.0, 40.0, 0.5, 5.0)
    rng = np.random.default_rng(0)
    one, many = ScalarThermal(parameters, 60.0), Thermal(parameters)
    a, b = one.start(20.0), many.start(np.array([20.0]), 0.0)
    slow, before = False, np.array([False])
    for power in rng.uniform(0, 6, 300):
        a, b = one.step(a, float(power), 20.0, 60.0), many.step(b, np.array([power]), 20.0, 60.0)
        np.testing.assert_allclose(a, b[:, 0], rtol=1e-9)
        slow, before = one.throttled(a, slow), many.throttled(b, before)
        assert slow == before[0] and one.speed(slow) == many.speed(before)[0]
    assert max(a) > 25


def test_misuse_is_told() -> None:
    w = worlds.world(worlds.scenario(worlds.days((2, 1))))
    with pytest.raises(ConfigError, match="call reset"):
        w.step(np.array([0]))
    with pytest.raises(ConfigError, match="rows of 2 days"):
        w.reset(np.array([2]), np.array([1.0]))
    w.reset(np.array([1]), np.array([1.0]))
    for wrong in (8, -1):
        with pytest.raises(AssignmentError, match="numbered 0 to 7"):
            w.step(np.array([wrong]))
    w.step(np.array([7]))
    with pytest.raises(ConfigError, match="the day is over"):
        w.step(np.array([0]))

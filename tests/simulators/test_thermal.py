from dataclasses import replace

import numpy as np
import pytest

from caq.errors import ConfigError
from simulators.thermal import Thermal, ThermalParameters

ONE = ThermalParameters("one", "made up", (5.0,), (100.0,), 20.0, 1.0, 80.0, 0.6, 5.0)
TWO = replace(ONE, title="two", resistance_k_per_w=(2.0, 5.0), heat_capacity_j_per_k=(4.0, 120.0))


def test_one_node_by_hand():
    found = Thermal(ONE).step(np.array([[20.0]]), 4.0, 20.0, 500.0)
    assert found[0, 0] == pytest.approx(20 + 4 * 5 * (1 - np.exp(-1)))


def test_steady_state_is_power_times_resistance():
    found = Thermal(TWO).step(np.array([[20.0, 90.0], [20.0, 0.0]]), np.array([3.0, 6.0]), np.array([20.0, 30.0]), 1e5)
    np.testing.assert_allclose(found, [[20 + 21, 30 + 42], [20 + 15, 30 + 30]])


def test_two_nodes_as_small_steps_of_the_equations_do():
    thermal, state = Thermal(TWO), np.array([[40.0], [30.0]])
    found = thermal.step(state, 6.0, 22.0, 30.0)
    chip, board, step = 40.0, 30.0, 1e-3
    for _ in range(30_000):
        flow = (chip - board) / 2.0
        chip, board = chip + step * (6.0 - flow) / 4.0, board + step * (flow - (board - 22.0) / 5.0) / 120.0
    np.testing.assert_allclose(found[:, 0], [chip, board], rtol=1e-4)


@pytest.mark.parametrize("parameters", [ONE, TWO])
def test_a_step_is_two_halves(parameters):
    thermal = Thermal(parameters)
    state = thermal.start(np.array([35.0, 60.0]), 2.0)
    whole = thermal.step(state, 5.0, 25.0, 60.0)
    halves = thermal.step(thermal.step(state, 5.0, 25.0, 30.0), 5.0, 25.0, 30.0)
    np.testing.assert_allclose(whole, halves)
    assert Thermal(parameters, np.float32).step(state.astype(np.float32), 5.0, 25.0, 60.0).dtype == np.float32


def test_a_start_is_in_balance_with_its_board():
    thermal = Thermal(TWO)
    start = thermal.start(np.array([50.0]), 4.0)
    np.testing.assert_allclose(start, [[50.0], [42.0]])
    steady = thermal.start(np.array([20 + 4 * 7.0]), 4.0)
    np.testing.assert_allclose(thermal.step(steady, 4.0, 20.0, 77.0), steady)


def test_throttling_waits_until_it_is_cooler():
    thermal = Thermal(TWO)
    before, seen = np.array([False]), []
    for celsius in (79.9, 80.0, 76.0, 75.1, 74.9, 79.9):
        before = thermal.throttled(np.array([[celsius], [0.0]]), before)
        seen.append(bool(before[0]))
    assert seen == [False, True, True, True, False, False]
    assert thermal.speed(np.array([True, False])).tolist() == [0.6, 1.0]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("resistance_k_per_w", ()),
        ("resistance_k_per_w", (1.0, 2.0, 3.0)),
        ("resistance_k_per_w", (-1.0,)),
        ("heat_capacity_j_per_k", (1.0, 2.0)),
        ("heat_capacity_j_per_k", (float("inf"),)),
        ("idle_power_w", -1.0),
        ("throttle_factor", 0.0),
        ("throttle_factor", 1.5),
        ("hysteresis_k", -1.0),
    ],
)
def test_impossible_parameters_are_named(field, value):
    with pytest.raises(ConfigError, match=f"'one': {field}"):
        replace(ONE, **{field: value})


def test_other_types_are_refused():
    with pytest.raises(ConfigError, match="dtype"):
        Thermal(ONE, np.int32)

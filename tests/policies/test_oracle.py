"""The oracle, beside what trying everything finds."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from caq.errors import ConfigError
from policies.evaluate import fixed, of_oracle, play
from policies.oracle import Oracle
from simulators.device import read_points
from simulators.envs import Scenario
from simulators.episodes import episodes
from tests.simulators import worlds

POINTS = read_points("camera").choose(["full", "w4a4", "w3a3"])


def hard_day(copies: int = 1) -> Scenario:
    """Two hours in steps of 900 s with more requests than the charge can answer well, and a little charging."""
    requests = np.array([2e4, 5e4, 3e4, 6e4, 2e4, 5e4, 4e4, 3e4])
    charging = np.array([0, 0, 0, 0.5, 0, 0, 0, 0])
    return worlds.scenario(worlds.days((copies, 8), 900.0, requests=requests, charging=charging), POINTS)


@pytest.mark.parametrize("charge", [0.15, 0.2, 0.3])
def test_it_finds_what_trying_everything_finds(charge: float) -> None:
    plans = np.array(list(product(range(3), repeat=8)))
    s = hard_day(len(plans))
    everything = play(s, np.full(len(plans), charge), lambda world, seen: plans[:, world.t])
    one = hard_day()
    oracle = Oracle(one, np.array([0]), 513)
    found = play(one, np.array([charge]), of_oracle(oracle)).returns[0]
    best = everything.returns.max()
    assert best - 0.02 <= found <= best + 1e-6
    assert oracle.value(np.array([charge]))[0] == pytest.approx(best, abs=0.05)
    assert best > max(play(one, np.array([charge]), fixed(i)).returns[0] for i in range(3)) + 0.02


def test_it_is_never_worse_than_a_fixed_point() -> None:
    s = worlds.scenario(episodes(8, requests_per_s=30.0))
    charge = np.linspace(0.3, 1, 8)
    best = np.max([play(s, charge, fixed(i)).returns for i in range(len(s.costs))], axis=0)
    oracle = Oracle(s, np.arange(8), 65)
    found = play(s, charge, of_oracle(oracle)).returns
    assert oracle.value(charge).mean() == pytest.approx(found.mean(), rel=0.01)
    assert (found >= best - 0.1).all() and (found > best + 0.5).any()


def test_its_plan_goes_by_the_days_it_is_given() -> None:
    s = worlds.scenario(worlds.busy_days(6, 48))
    charge = np.linspace(0.2, 1, 6)
    whole = Oracle(s, np.arange(6), 65).value(charge)
    np.testing.assert_allclose(Oracle(s, np.array([4, 1]), 65).value(charge[[4, 1]]), whole[[4, 1]], rtol=1e-6)


def test_levels() -> None:
    with pytest.raises(ConfigError, match="levels"):
        Oracle(hard_day(), np.array([0]), 1)

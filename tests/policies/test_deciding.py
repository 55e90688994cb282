"""Policies that decide for one device by its context, and for many in a world, with the same formula."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from caq.context import Context
from caq.errors import ConfigError
from caq.runtime import Runtime
from policies import LearnedPolicy, LyapunovPolicy, PacingPolicy, PricePolicy
from policies.evaluate import of_policy, play
from policies.seen import PointPolicy
from tests.fake_engine import FakeEngine, point
from tests.policies.worlds import CAMERA, habits, model, network, seen, through_contexts
from tests.simulators.worlds import busy_days, scenario

MAKERS: dict[str, Callable[..., PointPolicy]] = {
    "learned": lambda clock=None, **_: LearnedPolicy(network(), clock),
    "lyapunov": lambda clock=None, **_: LyapunovPolicy(CAMERA, 1300.0, 1.0, 2.0, clock),
    "pacing": lambda clock=None, **_: PacingPolicy(CAMERA, habits(), clock),
    "price": lambda clock=None, **_: PricePolicy(model(), clock),
}
OFFERED = tuple(point(name) for name in CAMERA.names)
NOW: dict[str, Any] = {
    "state_of_charge": 0.5, "charging": False, "power_w": 0.03, "memory_available": 0.9, "temperature_c": 20.0,
    "cpu_load": 0.1, "screen_brightness": 0.0, "time_s": 0.0,
}  # fmt: skip


@pytest.fixture(params=sorted(MAKERS))
def make(request: pytest.FixtureRequest) -> Callable[..., PointPolicy]:
    return MAKERS[request.param]


def test_one_by_one_and_all_at_once_decide_alike(make: Callable[..., PointPolicy]) -> None:
    s = scenario(busy_days(5, 72))
    charge = np.linspace(0.2, 1.0, 5)
    together = play(s, charge, of_policy(make(lambda: 0.0)))
    apart = play(s, charge, through_contexts(make, s))
    np.testing.assert_array_equal(together.points, apart.points)
    np.testing.assert_array_equal(together.returns, apart.returns)
    assert len(np.unique(together.points)) > 2


def test_in_a_runtime(make: Callable[..., PointPolicy]) -> None:
    class Source:
        def read(self) -> Context:
            return Context.from_values(**NOW)

    engine = FakeEngine(names=CAMERA.names)
    with Runtime(engine, make(lambda: 12.0), Source(), auto=False, min_dwell_s=0) as runtime:
        runtime.step()
        decision = make(lambda: 12.0).select(Context.from_values(**NOW), OFFERED, CAMERA.names[0])
        assert runtime.point == decision.point and decision.reason


def test_points_that_the_artifact_lacks(make: Callable[..., PointPolicy]) -> None:
    with pytest.raises(ConfigError, match="no operating point 'w2a2'"):
        make(lambda: 0.0).check(OFFERED[:-1])


@pytest.mark.parametrize("name", ["lyapunov", "pacing", "price"])
def test_without_charge_the_point_is_held(name: str) -> None:
    context = Context.from_values(**NOW | {"state_of_charge": None})
    decision = MAKERS[name](lambda: 0.0).select(context, OFFERED, "saver")
    assert decision.point == "saver" and "state_of_charge is missing" in decision.reason


def test_memory_that_runs_short_is_urgent(make: Callable[..., PointPolicy]) -> None:
    context = Context.from_values(**NOW | {"memory_available": 0.41})
    decision = make(lambda: 0.0).select(context, OFFERED, "full")
    assert decision.urgent and decision.trim
    assert CAMERA.memory[CAMERA.names.index(decision.point)] <= 0.41


def test_lyapunov_spends_more_with_more_charge() -> None:
    policy = MAKERS["lyapunov"](lambda: 0.0)
    charges = np.linspace(0, 1, 50)
    chosen = policy.choose(seen(state_of_charge=charges, memory_available=np.ones(50), current=np.zeros(50, int)))
    energy = CAMERA.energy_j[chosen]
    assert (np.diff(energy) >= 0).all() and energy[0] < energy[-1]
    assert CAMERA.names[chosen[-1]] == "full"


@pytest.mark.parametrize("values", [(0.0, 1.0, 1.0), (1.0, np.nan, 1.0), (1.0, 1.0, -1.0)])
def test_lyapunov_refuses_what_has_no_meaning(values: tuple[float, float, float]) -> None:
    with pytest.raises(ConfigError, match="finite and above 0"):
        LyapunovPolicy(CAMERA, *values)


def test_a_device_needs_neither_simulators_nor_torch() -> None:
    code = "import json, sys, policies; print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    loaded = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout)
    assert not {"simulators", "torch", "gymnasium", "stable_baselines3", "scipy", "matplotlib"} & set(loaded)

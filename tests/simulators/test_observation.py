"""A device's context as a policy sees it: the same row that a world shows."""

from __future__ import annotations

import math

import numpy as np
import pytest

from caq.context import Context
from caq.errors import AssignmentError
from simulators.envs import BatteryTraceEnv
from simulators.observation import FIELDS, HIGH, LOW, observe
from tests.simulators import worlds

EVERYTHING = {
    "state_of_charge": 0.4,
    "charging": True,
    "temperature_c": 20.0,
    "memory_available": 0.3,
    "power_w": 0.5,
    "cpu_load": 0.25,
    "screen_brightness": 0.6,
}


def test_a_context_becomes_a_row() -> None:
    row = observe(Context.from_values(**EVERYTHING), 6.0, 1, 5, power_high_w=2.0)
    assert row.dtype == np.float32 and row.shape == (len(FIELDS),)
    np.testing.assert_allclose(row, [0.4, 1, 0.5, 0.3, 0.25, 0.25, 0.6, 1, 0, 0.25], atol=1e-6)


def test_what_is_not_known_is_not_a_number() -> None:
    row = observe(Context.from_values(state_of_charge=0.5), 0.0, 0, 1, 1.0)
    known = [name for name, value in zip(FIELDS, row, strict=True) if not math.isnan(value)]
    assert known == ["state_of_charge", "hour_sin", "hour_cos", "point"]


def test_extremes_stay_within_bounds() -> None:
    for celsius, watts in ((-40.0, 0.0), (150.0, 9e4)):
        row = observe(Context.from_values(**EVERYTHING | {"temperature_c": celsius, "power_w": watts}), 23.9, 4, 5, 1.0)
        assert ((row >= LOW) & (row <= HIGH)).all()


def test_points_that_there_are_not() -> None:
    with pytest.raises(AssignmentError, match="operating point 5 of 5"):
        observe(Context.from_values(), 0.0, 5, 5, 1.0)


def test_a_world_shows_what_the_device_would_say_of_itself() -> None:
    s = worlds.scenario(worlds.busy_days(1, 48), apps_power_w=0.02)
    env = BatteryTraceEnv(s)
    env.reset(seed=0, options={"state_of_charge": 0.9})
    for step in range(40):
        row, _, _, _, info = env.step(np.int64(step % 8))
        day, at = s.days, step + 1
        context = Context.from_values(
            state_of_charge=env.state.battery.state_of_charge,
            charging=bool(day.charging[0, at] >= 0.5),
            temperature_c=env.state.temperature_c[0],
            memory_available=day.memory_available[0, at],
            power_w=info["caq/power_w"],
            cpu_load=min(info["caq/busy"] + info["caq/apps_load"], 1.0),
            apps_load=info["caq/apps_load"],
            screen_brightness=day.screen_brightness[0, at],
        )
        np.testing.assert_allclose(row, observe(context, at / 12, step % 8, 8, s.power_high_w), atol=1e-6)

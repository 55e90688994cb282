"""Small worlds for tests: days by hand, and devices that differ from the shipped one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from simulators.battery import scaled
from simulators.device import PointCosts, read_device, read_points
from simulators.envs.scenario import RewardWeights, Scenario
from simulators.episodes import COLUMNS, Episodes
from simulators.parameters import load_battery, load_thermal
from simulators.world import World

QUIET = {
    "charging": 0.0,
    "screen_on": 0.0,
    "screen_brightness": 0.0,
    "memory_available": 1.0,
    "apps_load": 0.0,
    "ambient_c": 20.0,
    "requests": 0.0,
}


def days(shape: tuple[int, int], step_s: float = 300.0, **columns: Any) -> Episodes:
    """Days of which only `columns` are not quiet; each broadcasts to `shape`, (days, steps)."""
    arrays = {name: np.broadcast_to(np.asarray(value, float), shape) for name, value in (QUIET | columns).items()}
    return Episodes(step_s, "by hand", True, *(arrays[name] for name in COLUMNS))


def busy_days(count: int, steps: int, seed: int = 0) -> Episodes:
    """Days in which everything happens, at random."""
    rng = np.random.default_rng(seed)
    shape = (count, steps)
    return days(
        shape,
        charging=np.repeat(rng.random((count, -(-steps // 12))) < 0.3, 12, axis=1)[:, :steps],
        screen_on=rng.random(shape),
        screen_brightness=rng.random(shape),
        memory_available=rng.random(shape),
        ambient_c=rng.uniform(-15, 70, shape),
        requests=rng.poisson(rng.choice([0.0, 9e3, 4e5], shape)),
        apps_load=rng.random(shape),
    )


def scenario(given: Episodes, costs: PointCosts | None = None, **changes: Any) -> Scenario:
    """The shipped camera with fields of `Device` changed."""
    device = replace(read_device("camera"), **changes)
    battery = scaled(load_battery(device.battery), device.battery_capacity_ah, device.title)
    return Scenario(
        costs or read_points("camera"), device, battery, load_thermal(device.thermal), given, RewardWeights()
    )


def world(s: Scenario, dtype: Any = np.float64) -> World:
    return World(s.costs, s.device, s.battery, s.thermal, s.days, dtype)

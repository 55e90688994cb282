"""Policies that choose for all devices of a simulated world at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from caq.cli.policies import Setting, named_policy
from caq.context import Context, Quality
from caq.context.reading import FIELDS, Reading, missing
from caq.governor import CheckedPolicy, FixedPolicy, Policy
from caq.graph import Cost
from caq.model import OperatingPoint
from simulators.envs.scenario import Scenario
from simulators.fleet import Active, Chooser
from simulators.world import World

#: Fields that no simulated device has.
_ABSENT = {name: missing(name, "simulation", "the world has none") for name in ("memory_pressure", "cpu_frequency_hz")}


def make_chooser(name: str, scenario: Scenario) -> Chooser:
    """The policy of a name for all days of a scenario, by their rows. Raises ConfigError, AssignmentError."""
    names = scenario.costs.names
    points = tuple(
        # A table of costs knows no counts of bits; policies here go by names.
        OperatingPoint(point, (), float(accuracy), "accuracy", 1, Cost(0, 0, 0))
        for point, accuracy in zip(names, scenario.costs.accuracy, strict=True)
    )
    setting = Setting(None, scenario.costs, scenario.device, lambda: 0.0)
    policies = [named_policy(name, setting) for _ in range(len(scenario.days))]
    if isinstance(policies[0], CheckedPolicy):
        policies[0].check(points)
    if isinstance(policies[0], FixedPolicy):
        return _fixed(names.index(policies[0].point))
    return _one_by_one(policies, points, scenario)


def _fixed(point: int) -> Chooser:
    return lambda world, active: np.full(len(active.points), point, np.intp)


def _one_by_one(policies: list[Policy], points: tuple[OperatingPoint, ...], scenario: Scenario) -> Chooser:
    """One policy object for each device, asked one after the other on contexts as a device has them."""
    names, clock = scenario.costs.names, scenario.clock()

    def choose(world: World, active: Active) -> NDArray[np.intp]:
        t = world.t
        columns = {
            "state_of_charge": world.state.battery.state_of_charge,
            "charging": clock.charging[:, t] == 1,
            "power_w": active.power_w,
            "available_bytes": world.given.available_bytes,
            "memory_available": clock.memory_available[:, t],
            "temperature_c": world.state.temperature_c[0],
            "cpu_load": np.minimum(active.busy, 1),
            "screen_brightness": clock.screen_brightness[:, t],
            "time_s": np.full(len(policies), t * world.days.step_s),
        }
        rows = zip(*(column.tolist() for column in columns.values()), strict=True)
        chosen = [
            names.index(policy.select(_context(columns, row), points, names[current]).point)
            for policy, row, current in zip(policies, rows, active.points.tolist(), strict=True)
        ]
        return np.array(chosen, np.intp)

    return choose


def _context(names: Iterable[str], values: Sequence[float]) -> Context:
    """Of values that a simulation made and need no check."""
    readings = {
        name: Reading(value, FIELDS[name].unit, "simulation", quality=Quality.SIMULATED)
        for name, value in zip(names, values, strict=True)
    }
    return Context(**_ABSENT, **readings)

"""Habits of devices for `policies.pacing`, counted in days of training devices."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from policies.other_draw import OtherDraw
from policies.pacing import HOURS, Habits
from simulators.envs import Scenario
from simulators.world import surroundings

#: Of the energy of the cheapest and of the dearest point: how far loads go beyond 1.
LOADS = (0.25, 4.0)
ENERGIES, LEVELS = 12, 41
#: Share of the energy of a charge that reaches the device; the rest is lost in resistances, or left at cut-off.
EFFICIENCY = 0.95


def habits_of(scenario: Scenario, memory_s: float = 21600.0, prior_s: float = 7200.0) -> Habits:
    """What is usual in the days of a scenario, at a load of 1: each day's requests are divided by how busy it was.

    `need` is what the battery must hold at the beginning of a step so that nothing is missing in the rest of the day:
    that of the next step, and what is drawn, less what is charged; at most what the battery can hold, since what goes
    beyond is missing whatever was saved.
    """
    days, device = scenario.days, scenario.device
    usual = days.requests.mean(0)
    busy = np.maximum(days.requests.sum(1) / usual.sum(), 1e-3)
    energies = scenario.costs.energy_j
    grid = np.geomspace(energies.min() * LOADS[0], energies.max() * LOADS[1], ENERGIES)
    capacity_j = scenario.battery.energy_j * EFFICIENCY
    charged_j = days.charging * device.charger_power_w * days.step_s
    other_j = surroundings(device, days).other_w * days.step_s
    need = np.zeros((ENERGIES, len(days)))
    levels = np.linspace(0, capacity_j, LEVELS)
    # A need of all there is may be of more: a full battery does not meet it.
    levels[-1] *= 1 - 1e-9
    hour_of = (((days.start_s + np.arange(days.steps) * days.step_s) // 3600) % HOURS).astype(int)
    plugged = days.charging >= 0.5
    too_little = np.zeros((2, HOURS, ENERGIES, LEVELS))
    counted = np.zeros((2, HOURS))
    for t in range(days.steps - 1, -1, -1):
        asked = days.requests[:, t] / busy
        need = np.clip(need + other_j[:, t] + asked * grid[:, None] - charged_j[:, t], 0, capacity_j)
        for on in (0, 1):
            those = plugged[:, t] == on
            too_little[on, hour_of[t]] += _above(need[:, those], levels)
            counted[on, hour_of[t]] += those.sum()
    short = too_little / np.maximum(counted, 1)[:, :, None, None]
    rate = np.bincount(hour_of, usual, HOURS) / np.bincount(hour_of, minlength=HOURS) / days.step_s
    weights = scenario.weights
    # A mean step of requests that are dropped costs what they are worth, and the device's being off besides.
    off_cost = weights.dropped + weights.off
    source = f"{len(days)} days: {days.source}"
    return Habits(source, rate, grid, short, OtherDraw.of(device), off_cost, memory_s, prior_s)


def _above(need: NDArray[np.float64], levels: NDArray[np.float64]) -> NDArray[np.float64]:
    """(E, S) how many of the needs (E, D) are above each level (S,)."""
    return np.stack([len(row) - np.searchsorted(np.sort(row), levels, "right") for row in need])

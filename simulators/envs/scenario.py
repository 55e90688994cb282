"""What BatteryTrace is played with: a device, its operating points, its days, and what each outcome is worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from caq.errors import ConfigError
from simulators.battery import BatteryParameters, scaled
from simulators.device import Device, PointCosts, read_device, read_points
from simulators.episodes import DAY_S, Episodes, episodes
from simulators.parameters import load_battery, load_thermal
from simulators.thermal import ThermalParameters
from simulators.world import Outcome

#: Charge at midnight where none is asked for, drawn evenly.
START_OF_CHARGE = (0.5, 1.0)


@dataclass(frozen=True)
class RewardWeights:
    """What is taken off, each >= 0. Raises ConfigError.

    In correct answers: dropped, late: for a request that is dropped, or answered after its deadline. In answers to all
    requests of a mean step: off, over_memory: for a step in which the device is off, or its point needs more memory
    than there is; switch: for a change of the point.
    """

    dropped: float = 0.5
    late: float = 0.5
    off: float = 0.5
    over_memory: float = 0.5
    switch: float = 0.01

    def __post_init__(self) -> None:
        for field in fields(self):
            if not 0 <= getattr(self, field.name) < np.inf:
                raise ConfigError(f"weights: {field.name} must be at least 0, not {getattr(self, field.name)}")


class Clock(NamedTuple):
    """What an observation says of each step beside the device's state, (T,) or (T, D)."""

    charging: NDArray[np.float64]
    memory_available: NDArray[np.float64]
    screen_brightness: NDArray[np.float64]
    hour_sin: NDArray[np.float64]
    hour_cos: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Scenario:
    """See `scenario`. power_high_w: the power that an observation shows as 1."""

    costs: PointCosts
    device: Device
    battery: BatteryParameters
    thermal: ThermalParameters
    days: Episodes
    weights: RewardWeights

    @property
    def power_high_w(self) -> float:
        """W: everything on, and four times the mean of requests at the point that takes most."""
        d = self.device
        inference_w = 4 * d.requests_per_s * float(self.costs.energy_j.max())
        return d.idle_power_w + d.screen_power_w + d.bright_power_w + d.apps_power_w + inference_w

    def clock(self) -> Clock:
        """What steps show: arrays (D, T), of the hour (T,)."""
        days = self.days
        angle = 2 * np.pi * (days.start_s + np.arange(days.steps) * days.step_s) / DAY_S
        charging = (days.charging >= 0.5).astype(np.float64)
        return Clock(charging, days.memory_available, days.screen_brightness, np.sin(angle), np.cos(angle))

    def reward(self, outcome: Outcome, switched: Any) -> Any:
        """Of a step, for numbers or (N,) arrays; see BatteryTraceEnv."""
        w = self.weights
        answers = (
            (outcome.served - outcome.late) * outcome.accuracy - w.dropped * outcome.dropped - w.late * outcome.late
        )
        reward = answers / (self.device.requests_per_s * self.days.step_s)
        return reward - w.off * outcome.off - w.over_memory * outcome.over_memory - w.switch * switched


def scenario(
    device: str | Path | Device = "camera",
    costs: str | Path | PointCosts = "camera",
    points: Sequence[str] | None = None,
    days: Episodes | int = 256,
    weights: RewardWeights | None = None,
) -> Scenario:
    """Reads what is given by name. Raises ConfigError that names file and field, AssignmentError on unknown points.

    device, costs: shipped ones by name, files, or objects. points: those to choose from, by default all of `costs`.
    days: to draw episodes from, or the number of devices that a day is generated for.
    """
    device = device if isinstance(device, Device) else read_device(device)
    costs = costs if isinstance(costs, PointCosts) else read_points(costs)
    if not isinstance(days, Episodes):
        days = episodes(days, requests_per_s=device.requests_per_s)
    battery = scaled(load_battery(device.battery), device.battery_capacity_ah, device.title)
    return Scenario(
        costs if points is None else costs.choose(points),
        device,
        battery,
        load_thermal(device.thermal),
        days,
        weights or RewardWeights(),
    )

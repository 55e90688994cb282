"""Lifetime pacing: the most accurate point with which the charge lasts until the next charge.

    need(p)  = seconds * idle_power_w + load * requests * energy_j(p)
    there is = (state_of_charge - reserve) * battery_energy_j

`seconds` and `requests` are what it takes until the next charge, by the hour, in all but a share of the days of devices
that the habits were fitted on. `load` is how busy this device is, of what is usual: requests measured, by the power
drawn beyond idle over the energy of the active point, over those usual at the same hours, both forgotten with a time
constant and drawn to 1 by a prior, as the mean of a gamma-Poisson model is (Gelman et al., "Bayesian Data Analysis",
3rd ed. 2013, sec. 2.6). The need is compared anew at each call, so errors of the forecast are made good as the charge
goes down. On a charger it takes the most accurate point.

Among points on the upper hull of accuracy over energy, one constant point, or two that are neighbours, is the best that
can be done with a given charge (accuracy is summed over requests, and so is energy): hence no price on time of day.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from caq.errors import ConfigError
from caq.strict_yaml import Fields, read
from policies.points import PointTable
from policies.seen import PointPolicy, Seen, local_hour

HOURS = 24
#: A load is no less, so that a quiet hour is not taken for a device that nobody asks anything.
LEAST_LOAD = 0.2
#: s: a silence of that length counts as one of no measurement.
LONGEST_GAP_S = 1800.0


@dataclass(frozen=True, eq=False)
class Habits:
    """What is usual on devices of a kind, and how the policy weighs it. Raises ConfigError that names the field.

    rate: (24,) requests per second by the hour. seconds, requests: (24,) until the next charge, from the beginning of
    each hour, off the charger. battery_energy_j: from full to empty, as it reaches the device. idle_power_w: drawn
    without requests. reserve: charge to be kept, 0..1. memory_s: time constant of the load's measurement. prior_s:
    seconds of usual requests that the usual load weighs as much as.
    """

    rate: NDArray[np.float64]
    seconds: NDArray[np.float64]
    requests: NDArray[np.float64]
    battery_energy_j: float
    idle_power_w: float
    reserve: float
    memory_s: float
    prior_s: float

    def __post_init__(self) -> None:
        for field in fields(self):
            value = np.array(getattr(self, field.name), np.float64)
            shape = (HOURS,) if field.name in ("rate", "seconds", "requests") else ()
            if value.shape != shape:
                raise ConfigError(f"habits: {field.name} must have shape {shape}, not {value.shape}")
            if not (np.isfinite(value) & (value >= 0)).all():
                raise ConfigError(f"habits: {field.name} must be finite and at least 0")
        for name in ("battery_energy_j", "memory_s", "prior_s"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"habits: {name} must be above 0, not {getattr(self, name)}")
        if self.reserve >= 1 or not self.rate.any():
            raise ConfigError("habits: reserve must be below 1, and rate above 0 in some hour")


def read_habits(path: str | Path) -> Habits:
    """Reads a YAML file with the fields of `Habits`; ConfigError names the file and the field."""
    strict, names = Fields(str(path)), [field.name for field in fields(Habits)]
    top = strict.mapping(read(path), "the file", ("source", *names), ("source", *names))
    strict.text(top["source"], "source")
    values = {
        name: np.array([strict.number(x, f"{name}[{i}]") for i, x in enumerate(strict.items(top[name], name))])
        if name in ("rate", "seconds", "requests")
        else strict.number(top[name], name)
        for name in names
    }
    try:
        return Habits(**values)  # type: ignore[arg-type]  # arrays and numbers, each where it belongs
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


class PacingPolicy(PointPolicy):
    """See the module. Without power or time the load stays what it was, at first the usual one."""

    needed = ("state_of_charge",)
    fields = ("state_of_charge", "charging", "power_w", "time_s", "memory_available")

    def __init__(self, points: PointTable, habits: Habits, clock: Callable[[], float] = local_hour) -> None:
        self.habits = habits
        super().__init__(points, clock)

    def start(self, devices: int) -> None:
        self._seen_s = np.full(devices, np.nan)
        self._measured = np.zeros(devices)
        self._usual = np.zeros(devices)

    def load(self) -> NDArray[np.float64]:
        """(N,) how busy the devices are: 1 is usual."""
        prior = self.habits.prior_s * self.habits.rate.mean()
        return np.maximum((prior + self._measured) / (prior + self._usual), LEAST_LOAD)

    def _measure(self, seen: Seen) -> None:
        h = self.habits
        passed = seen.time_s - self._seen_s
        energy = self.points.energy_j[np.maximum(seen.current, 0)]
        rate = np.maximum(seen.power_w - h.idle_power_w, 0.0) / energy
        good = (passed > 0) & (passed <= LONGEST_GAP_S) & np.isfinite(rate) & (seen.current >= 0)
        passed = np.where(good, passed, 0.0)
        kept = np.exp(-passed / h.memory_s)
        self._measured = kept * self._measured + np.where(good, rate, 0.0) * passed
        self._usual = kept * self._usual + by_hour(h.rate, seen.hour - passed / 3600) * passed
        self._seen_s = seen.time_s

    def need_j(self, seen: Seen) -> NDArray[np.float64]:
        """(N, P) energy until the next charge at each point."""
        h = self.habits
        until = by_hour(h.requests, seen.hour) * self.load()
        idle = by_hour(h.seconds, seen.hour) * h.idle_power_w
        return np.asarray(idle[:, None] + until[:, None] * self.points.energy_j)

    def choose(self, seen: Seen) -> NDArray[np.intp]:
        self._measure(seen)
        there = (seen.state_of_charge - self.habits.reserve) * self.habits.battery_energy_j
        lasts = self.need_j(seen) <= there[:, None]
        worth = np.where(lasts, self.points.accuracy, -self.points.energy_j)
        chosen = worth.argmax(1)
        best = int(self.points.accuracy.argmax())
        return self.points.fitting(np.where(seen.charging == 1, best, chosen), seen.memory_available)

    def reason(self, seen: Seen) -> str:
        if seen.charging[0] == 1:
            return "on a charger"
        hours = by_hour(self.habits.seconds, seen.hour)[0] / 3600
        return (
            f"charge {seen.state_of_charge[0]:.2f} is to last {hours:.1f} h at {self.load()[0]:.2f} of the usual load"
        )


def by_hour(table: NDArray[np.float64], hour: NDArray[np.float64]) -> NDArray[np.float64]:
    """(24,) values at full hours, at hours of the day (N,): a line between them, and around midnight."""
    low = np.floor(hour)
    at = low.astype(np.intp) % HOURS
    return np.asarray(table[at] + (hour - low) * (table[(at + 1) % HOURS] - table[at]))

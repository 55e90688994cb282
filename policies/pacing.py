"""Lifetime pacing: spend charge so that it lasts, as far as can be known, and answer as well as that allows.

How long charge has to last is not known, but habits are: `short` says in how many days of devices of that kind a state
of charge was too little, by the hour, on and off a charger, and by the energy that a usual request takes. So a joule
has a price, what it is likely to be missed for later:

    price = sum over points k on the hull, from the cheapest: (gain_k - gain_{k+1}) * short(energy_k * load)

gain_k is the accuracy that point k adds for each joule more than the point below it, and of the first one, what a joule
is worth to a device that would else be off. If even the cheapest point will run short, a joule is worth the most; if
only a dear one will, little. The policy takes the point that maximises `accuracy - price * energy`. That is the
newsvendor's rule (Arrow, Harris and Marschak, Econometrica 19, 1951) for each point, and the price the mean over days
of what it would be in hindsight.

`load` is what it controls by: requests measured, from the power beyond what the device draws besides
(`policies.other_draw`) over the energy of the active point, over those usual at the same hours; both are forgotten with
a time constant and drawn to 1 by a prior, as the mean of a gamma-Poisson model (Gelman et al., "Bayesian Data
Analysis", 3rd ed. 2013, sec. 2.6).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from caq.errors import ConfigError, WeightsError
from policies.arrays import read_arrays, write_arrays
from policies.numbers import Arrays
from policies.other_draw import DRAWS, OtherDraw
from policies.points import PointTable
from policies.seen import PointPolicy, Seen, local_hour

HOURS = 24
Floats = NDArray[np.float64]
#: A load is no less, so that a quiet hour is not taken for a device that nobody asks anything.
LEAST_LOAD = 0.2
#: s: a silence of that length counts as one of no measurement.
LONGEST_GAP_S = 1800.0
_SHAPES = {"rate": 1, "energy_j": 1, "short": 4}
_NUMBERS = ("off_cost", "memory_s", "prior_s")


@dataclass(frozen=True, eq=False)
class Habits:
    """What is usual on devices of a kind. Raises ConfigError that names the field.

    source: where it comes from. rate: (24,) requests per second in each hour. energy_j: (E,) ascending, of a usual
    request. short: (2, 24, E, S) share of days, 0..1, in which charge did not last: off and on a charger, by the hour,
    by energy, by state of charge on an even grid from 0 to 1. other: drawn without requests. off_cost: what a request
    costs that comes while the device is off, in correct answers, the lost answer apart. memory_s: time constant
    of the load's measurement. prior_s: seconds of usual requests that the usual load weighs as much as.
    """

    source: str
    rate: Floats
    energy_j: Floats
    short: Floats
    other: OtherDraw
    off_cost: float
    memory_s: float
    prior_s: float

    def __post_init__(self) -> None:
        for name, dimensions in _SHAPES.items():
            value = getattr(self, name)
            if value.ndim != dimensions or not (np.isfinite(value) & (value >= 0)).all():
                raise ConfigError(f"habits: {name} must be finite, at least 0, of {dimensions} dimensions")
        if self.rate.shape != (HOURS,) or not self.rate.any():
            raise ConfigError(f"habits: rate must have {HOURS} values, one of them above 0")
        if len(self.energy_j) < 2 or not (np.diff(self.energy_j) > 0).all() or self.energy_j[0] <= 0:
            raise ConfigError("habits: energy_j must ascend from above 0, two values at least")
        expected = (2, HOURS, len(self.energy_j))
        if self.short.shape[:3] != expected or self.short.shape[3] < 2 or self.short.max() > 1:
            raise ConfigError(f"habits: short must be {expected} by at least 2, 0..1; it is {self.short.shape}")
        for name in _NUMBERS:
            least = 0.0 if name == "off_cost" else 1e-9
            if not least <= getattr(self, name) < np.inf:
                raise ConfigError(f"habits: {name} must be at least {least:g}, not {getattr(self, name)}")

    def write(self, path: str | Path) -> None:
        """Writes a file that `read_habits` reads, an .npz of the fields; `short` to a thousandth and a half."""
        numbers = {name: np.float64(getattr(self, name)) for name in _NUMBERS} | self.other.arrays()
        short = self.short.astype(np.float16)
        write_arrays(path, source=np.array(self.source), rate=self.rate, energy_j=self.energy_j, short=short, **numbers)


def read_habits(path: str | Path) -> Habits:
    """Reads a file of `Habits.write`. Raises WeightsError that names the file and the array."""
    arrays = read_arrays(path)
    arrays.expect({"source", *_SHAPES, *DRAWS, *_NUMBERS})
    rate, energy, short = (arrays.floats(name).astype(np.float64) for name in _SHAPES)
    try:
        other, numbers = OtherDraw.read(arrays), (arrays.number(name) for name in _NUMBERS)
        return Habits(arrays.text("source"), rate, energy, short, other, *numbers)
    except ConfigError as error:
        raise WeightsError(f"{path}: {error}") from None


class PacingPolicy(PointPolicy):
    """See the module. Without power, time or charging it goes by the usual load, and as if off the charger."""

    needed = ("state_of_charge",)
    fields = ("state_of_charge", "charging", "power_w", "time_s", "memory_available", "screen_brightness", "apps_load")

    def __init__(self, points: PointTable, habits: Habits, clock: Callable[[], float] = local_hour) -> None:
        self.habits = habits
        self._hull = points.hull()
        gain = np.diff(points.accuracy[self._hull], prepend=-habits.off_cost) / np.diff(
            points.energy_j[self._hull], prepend=0.0
        )
        self._weights = -np.diff(np.minimum.accumulate(gain), append=0.0)
        self._log_energy = np.log(habits.energy_j)
        super().__init__(points, clock)

    def start(self, devices: int) -> None:
        self._seen_s = np.full(devices, np.nan)
        self._brightness = np.full(devices, np.nan)
        self._measured = np.zeros(devices)
        self._usual = np.zeros(devices)

    def load(self) -> Floats:
        """(N,) how busy the devices are: 1 is usual."""
        prior = self.habits.prior_s * self.habits.rate.mean()
        return np.maximum((prior + self._measured) / (prior + self._usual), LEAST_LOAD)

    def _measure(self, seen: Seen) -> None:
        h = self.habits
        passed = seen.time_s - self._seen_s
        other_w = h.other.watts(Arrays, seen, self._brightness)
        rate = np.maximum(seen.power_w - other_w, 0.0) / self.points.energy_j[seen.current]
        good = (passed > 0) & (passed <= LONGEST_GAP_S) & np.isfinite(rate) & (seen.current >= 0)
        passed = np.where(good, passed, 0.0)
        kept = np.exp(-passed / h.memory_s)
        self._measured = kept * self._measured + np.where(good, rate, 0.0) * passed
        hour = (seen.hour - passed / 7200) % HOURS  # in the middle of what passed
        self._usual = kept * self._usual + h.rate[hour.astype(np.intp)] * passed
        self._seen_s, self._brightness = seen.time_s, seen.screen_brightness

    def short(self, seen: Seen) -> Floats:
        """(N, K) chance that the charge does not last, at the energy of each point on the hull."""
        h = self.habits
        energy = np.log(self.load()[:, None] * self.points.energy_j[self._hull])
        at = np.clip(np.searchsorted(self._log_energy, energy) - 1, 0, len(self._log_energy) - 2)
        left = self._log_energy[at]
        part = np.clip((energy - left) / (self._log_energy[at + 1] - left), 0, 1)
        levels = h.short.shape[3] - 1
        charge = seen.state_of_charge[:, None] * levels
        low = np.minimum(charge.astype(np.intp), levels - 1)
        over = charge - low
        table = h.short[(seen.charging == 1).astype(np.intp), seen.hour.astype(np.intp) % HOURS]
        device = np.arange(len(energy))[:, None]
        (a, b), (c, d) = ((table[device, at + i, low + j] for j in (0, 1)) for i in (0, 1))
        return np.asarray((1 - part) * (a + over * (b - a)) + part * (c + over * (d - c)))

    def price(self, seen: Seen) -> Floats:
        """(N,) of a joule, in correct answers."""
        return np.asarray(self.short(seen) @ self._weights)

    def choose(self, seen: Seen) -> NDArray[np.intp]:
        self._measure(seen)
        worth = self.points.accuracy - self.price(seen)[:, None] * self.points.energy_j
        return self.points.fitting(worth.argmax(1), seen.memory_available)

    def reason(self, seen: Seen) -> str:
        short = self.short(seen)[0]
        cheapest, dearest = (self.points.names[i] for i in self._hull[[0, -1]])
        return (
            f"charge {seen.state_of_charge[0]:.2f} at {self.load()[0]:.2f} of the usual load: it would not last "
            f"in {short[0]:.0%} of days at {cheapest}, in {short[-1]:.0%} at {dearest}"
        )

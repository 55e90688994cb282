"""Days that happen to devices: what a world is given, whatever the device then does.

    days = episodes(256, seed=0)               # generated
    days = days.select(rows)                   # such as those of held-out devices

One day is a row, one step a column. Whoever has recordings makes `Episodes` of them; gaps must be filled before, since
a world needs a value in every step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caq.errors import ConfigError, TraceError
from simulators.traces import phone_day

DAY_S = 86400.0
#: Requests in an hour over the day's mean, from midnight: people's days. Assumed.
DIURNAL = np.repeat([0.1, 0.6, 1.4, 1.2, 1.5, 1.7, 0.8], [6, 2, 4, 2, 4, 4, 2])
_SHARES = ("charging", "screen_on", "screen_brightness", "memory_available")


@dataclass(frozen=True, eq=False)
class Episodes:
    """Inputs of D days in T steps each; arrays (D, T) float64. Raises TraceError that names column, day and step.

    step_s: seconds of a step, > 0. charging, screen_on: share of the step, 0..1. screen_brightness: mean over the step,
    0..1. memory_available: share of the device's memory that other programs leave, 0..1. ambient_c: -40..80. requests:
    inferences asked for in the step, >= 0. generated: whether a program made them up. Steps begin at midnight.
    """

    step_s: float
    source: str
    generated: bool
    charging: NDArray[np.float64]
    screen_on: NDArray[np.float64]
    screen_brightness: NDArray[np.float64]
    memory_available: NDArray[np.float64]
    ambient_c: NDArray[np.float64]
    requests: NDArray[np.float64]

    def __post_init__(self) -> None:
        if not (math.isfinite(self.step_s) and self.step_s > 0):
            raise ConfigError(f"step_s must be above 0, not {self.step_s}")
        for name in COLUMNS:
            column = np.array(getattr(self, name), dtype=np.float64)
            if column.ndim != 2 or not column.size or column.shape != np.shape(self.charging):
                raise TraceError(
                    f"{self.source}: {name} must have shape (days, steps) as charging has, not {column.shape}"
                )
            low, high = (0.0, 1.0) if name in _SHARES else (-40.0, 80.0) if name == "ambient_c" else (0.0, 1e9)
            bad = ~((column >= low) & (column <= high))  # NaN too
            if bad.any():
                day, step = np.argwhere(bad)[0]
                raise TraceError(
                    f"{self.source}: day {day}, step {step}, {name}: {column[day, step]:g} is not {low:g}..{high:g}"
                )
            column.flags.writeable = False
            object.__setattr__(self, name, column)

    def __len__(self) -> int:
        return len(self.charging)

    @property
    def steps(self) -> int:
        """Steps of a day, T."""
        return self.charging.shape[1]

    def select(self, days: NDArray[np.integer[Any]]) -> Episodes:
        """Only these days; indices or a mask."""
        return Episodes(self.step_s, self.source, self.generated, *(getattr(self, name)[days] for name in COLUMNS))


#: The columns of `Episodes`, in their order.
COLUMNS = tuple(f.name for f in fields(Episodes) if f.name not in ("step_s", "source", "generated"))


@lru_cache(maxsize=4)
def episodes(days: int, seed: int, step_s: float = 300.0, requests_per_s: float = 1.0) -> Episodes:
    """Generated days: charging, screen and memory of `phone_day`, requests and weather as below.

    requests_per_s: mean over days. Day i depends on `seed` and i alone, so more days leave the first ones as they are.
    Raises ConfigError unless `step_s` divides a day into whole minutes, days >= 1 and requests_per_s > 0.
    """
    minutes = step_s / 60
    if days < 1 or minutes < 1 or DAY_S % step_s or minutes != int(minutes) or not 0 < requests_per_s < math.inf:
        raise ConfigError(
            f"days >= 1, step_s of whole minutes that divide a day and requests_per_s > 0 are expected, "
            f"not {days}, {step_s:g} and {requests_per_s:g}"
        )
    rows: list[dict[str, NDArray[np.float64]]] = []
    for child in np.random.SeedSequence(seed).spawn(days):
        phone, own = child.spawn(2)
        rng = np.random.default_rng(own)
        day = _columns(phone_day(int(phone.generate_state(1)[0])), int(minutes))
        rows.append(day | {"ambient_c": _ambient(rng, step_s), "requests": _requests(rng, step_s, requests_per_s)})
    arrays = (np.stack([row[name] for row in rows]) for name in COLUMNS)
    return Episodes(step_s, f"{days} generated days, seed {seed}", True, *arrays)


def _columns(day: Mapping[str, NDArray[Any]], minutes: int) -> dict[str, NDArray[np.float64]]:
    """Means over steps of the columns of a day in minutes."""
    brightness = np.asarray(day["screen_brightness"], np.float64)
    columns = {
        "charging": day["charging"],
        "screen_on": brightness > 0,
        "screen_brightness": brightness,
        "memory_available": day["memory_available"],
    }
    return {name: np.asarray(c, np.float64).reshape(-1, minutes).mean(1) for name, c in columns.items()}


def _hours(step_s: float) -> NDArray[np.float64]:
    """Hour of day in the middle of each step."""
    return (np.arange(int(DAY_S / step_s)) + 0.5) * step_s / 3600


def _ambient(rng: np.random.Generator, step_s: float) -> NDArray[np.float64]:
    """Made up: a day's mean from 8 to 28 °C, 4 °C warmer at 15 h and colder at 3 h."""
    return rng.uniform(8, 28) + 4 * np.sin(2 * np.pi * (_hours(step_s) - 9) / 24)


def _requests(rng: np.random.Generator, step_s: float, mean_per_s: float) -> NDArray[np.float64]:
    """Counts of a Poisson process whose rate is the hour's, times the day's, times that of bursts.

    Days differ by a log-normal factor (sigma 0.4); bursts of 20 minutes in the mean, 5 % of the time, quadruple the
    rate: a two-state Markov-modulated Poisson process (Fischer and Meier-Hellstern, 1993). All of it assumed.
    """
    hours = _hours(step_s)
    rate = mean_per_s * DIURNAL[hours.astype(int)] / DIURNAL.mean() * rng.lognormal(-0.08, 0.4)
    share, length_s, height = 0.05, 1200.0, 4.0
    ends, begins = (1 - math.exp(-step_s / s) for s in (length_s, length_s * (1 - share) / share))
    draws, burst = rng.random(len(hours)), False
    for i, draw in enumerate(draws):
        burst = draw >= ends if burst else draw < begins
        rate[i] *= height if burst else 1.0
    return rng.poisson(rate * step_s / (1 + share * (height - 1))).astype(np.float64)

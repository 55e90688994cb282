"""Days that happen to devices: what a world is given, whatever the device then does.

    days = episodes(256, seed=0)               # generated: a day each of 256 devices
    unseen = episodes(64, seed=0, first=256)   # of other devices
    days = of_traces([read("monday.csv"), read("tuesday.csv")], requests, fill={"memory_available": 1.0})

One day is a row, one step a column.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caq.errors import ConfigError, TraceError
from simulators.traces import Trace, phone_days, resample
from simulators.workload import Bursts, Diurnal, device_counts, device_seeds, edges

DAY_S = 86400.0
#: Requests from midnight on, hour by hour, up to a factor: people's days. Assumed.
HOURLY = np.repeat([0.1, 0.6, 1.4, 1.2, 1.5, 1.7, 0.8], [6, 2, 4, 2, 4, 4, 2])
#: Mean lengths of bursts of requests, and of what lies between them. Assumed.
BURST_S, CALM_S = 1200.0, 13200.0
Seeds = Sequence[np.random.SeedSequence]
_SHARES = ("charging", "screen_on", "screen_brightness", "memory_available", "apps_load")


@dataclass(frozen=True, eq=False)
class Episodes:
    """Inputs of D days in T steps each; arrays (D, T) float64. Raises TraceError that names column, day and step.

    step_s: seconds of a step, > 0. charging, screen_on: share of the step, 0..1. screen_brightness: mean over the step,
    0..1. memory_available: share of the device's memory that other programs leave, 0..1. apps_load: share of its
    processor that they take, 0..1. ambient_c: -40..80. requests: inferences asked for in the step, >= 0. generated:
    whether a program made them up. start_s: when days begin, seconds after midnight.
    """

    step_s: float
    source: str
    generated: bool
    charging: NDArray[np.float64]
    screen_on: NDArray[np.float64]
    screen_brightness: NDArray[np.float64]
    memory_available: NDArray[np.float64]
    apps_load: NDArray[np.float64]
    ambient_c: NDArray[np.float64]
    requests: NDArray[np.float64]
    start_s: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.step_s) and self.step_s > 0):
            raise ConfigError(f"step_s must be above 0, not {self.step_s}")
        if not 0 <= self.start_s < DAY_S:
            raise ConfigError(f"start_s must be 0 to {DAY_S:g} s after midnight, not {self.start_s}")
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

    def cut(self, first: int, last: int) -> Episodes:
        """Steps `first` to `last`, without that one, of every day; 0 <= first < last <= steps."""
        columns: dict[str, Any] = {name: getattr(self, name)[:, first:last] for name in COLUMNS}
        return replace(self, **columns, start_s=(self.start_s + first * self.step_s) % DAY_S)

    def select(self, days: NDArray[np.integer[Any]]) -> Episodes:
        """Only these days; indices or a mask."""
        columns: dict[str, Any] = {name: getattr(self, name)[days] for name in COLUMNS}
        return replace(self, **columns)


#: The columns of `Episodes`, in their order.
COLUMNS = tuple(f.name for f in fields(Episodes) if f.name not in ("step_s", "source", "generated", "start_s"))


@lru_cache(maxsize=4)
def episodes(
    devices: int,
    seed: int = 0,
    step_s: float = 300.0,
    requests_per_s: float = 1.0,
    first: int = 0,
    days: int = 1,
) -> Episodes:
    """A generated day of each of the devices numbered from `first` on: other numbers are devices never seen.

    days: so many in a row of each, as one long row; the first ones are the same however many follow.

    Charging, screen, memory and load are those of `simulators.traces.phone_days`; requests and weather are made up, see
    below. requests_per_s: mean over devices and hours. A device's day depends on `seed` and its number alone. Raises
    ConfigError unless `step_s` is whole minutes that divide a day, and all else is as it should be.
    """
    minutes = step_s / 60
    if not minutes >= 1 or minutes != int(minutes) or DAY_S % step_s or not 0 < requests_per_s < math.inf:
        raise ConfigError(
            f"step_s of whole minutes that divide a day, and requests_per_s above 0, are expected, "
            f"not {step_s:g} and {requests_per_s:g}"
        )
    columns = phone_days(devices, days, seed, first).columns
    seeds = [child.spawn(4) for child in device_seeds(devices, seed, first)]
    weather, busyness, hourly, bursts = zip(*seeds, strict=True)

    def means(column: NDArray[Any]) -> NDArray[np.float64]:
        return column.reshape(devices, -1, int(minutes)).mean(2, dtype=np.float64)

    brightness = columns["screen_brightness"]
    return Episodes(
        step_s,
        f"days of generated devices {first} to {first + devices - 1}, seed {seed}",
        True,
        charging=means(columns["charging"]),
        screen_on=means(brightness > 0),
        screen_brightness=means(brightness),
        memory_available=means(columns["memory_available"]),
        apps_load=means(columns["apps_load"]),
        ambient_c=np.tile(_ambient(weather, step_s), days),
        requests=_requests(busyness, hourly, bursts, edges(days * DAY_S, step_s), requests_per_s),
    )


def of_traces(
    traces: Sequence[Trace],
    requests: NDArray[np.floating[Any]] | NDArray[np.integer[Any]],
    step_s: float = 300.0,
    *,
    fill: Mapping[str, float] | None = None,
    ambient_c: float = 20.0,
    start_s: float = 0.0,
) -> Episodes:
    """Recorded days, one of each trace: what it says of charging, screen_brightness, memory_available and apps_load at
    each step. Where a trace has no apps_load, its cpu_load is taken for it.

    requests: (D, T), for the D traces and the T steps of the shortest one. fill: by column, the value to take in gaps,
    and where a trace has no such column. Raises TraceError that names trace, column and time of a gap that is not
    filled, and ConfigError on no traces.
    """
    if not traces:
        raise ConfigError("traces: at least one is needed")
    even = [resample(trace, step_s) for trace in traces]
    steps = min(len(trace.times_s) for trace in even)

    def column(name: str) -> NDArray[np.float64]:
        rows = []
        for trace in even:
            row = recorded(trace, name)[:steps]
            if name in (fill or {}):
                row = np.where(np.isnan(row), (fill or {})[name], row)
            if np.isnan(row).any():
                at = trace.times_s[int(np.isnan(row).argmax())]
                raise TraceError(f"{trace.source}: no {name} at {at:g} s; fill={{{name!r}: value}} says what to take")
            rows.append(row)
        return np.stack(rows)

    brightness = column("screen_brightness")
    return Episodes(
        step_s,
        ", ".join(trace.source for trace in traces),
        any(trace.generated for trace in traces),
        charging=column("charging"),
        screen_on=(brightness > 0).astype(np.float64),
        screen_brightness=brightness,
        memory_available=column("memory_available"),
        apps_load=column("apps_load"),
        ambient_c=np.full(brightness.shape, ambient_c),
        requests=np.asarray(requests, np.float64),
        start_s=start_s,
    )


def recorded(trace: Trace, name: str) -> NDArray[np.float64]:
    """(T,) a column of a trace, NaN if it has none. If it has no apps_load, all of its cpu_load is that of apps."""
    if name == "apps_load" and name not in trace.columns:
        name = "cpu_load"
    return trace.columns.get(name, np.full(len(trace.times_s), np.nan))


def _ambient(seeds: Seeds, step_s: float) -> NDArray[np.float64]:
    """Made up: a day's mean from 8 to 28 °C, 4 °C warmer at 15 h and colder at 3 h."""
    hour = np.arange(step_s / 2, DAY_S, step_s) / 3600
    means_c = np.array([np.random.default_rng(seed).uniform(8, 28) for seed in seeds])
    return means_c[:, None] + 4 * np.sin(2 * np.pi * (hour - 9) / 24)


def request_times(device: int, seed: int, edges_s: NDArray[np.float64], mean_per_s: float = 1.0) -> NDArray[np.float64]:
    """When the requests of a device's generated day arrive, ascending seconds since midnight; edges_s (T+1,).

    Those of `episodes`, if the steps are the same. mean_per_s: mean over devices and the hours of a day.
    """
    _, busyness, hourly, bursts = device_seeds(1, seed, device)[0].spawn(4)
    usual, spells = _processes(busyness, mean_per_s)
    return np.sort(np.concatenate([usual.times(hourly, edges_s), spells.times(bursts, edges_s)]))


def _requests(
    busyness: Seeds, hourly: Seeds, bursts: Seeds, edges_s: NDArray[np.float64], mean_per_s: float
) -> NDArray[np.float64]:
    """Counts (D, T), edges_s (T+1,)."""
    usual = [_processes(own, mean_per_s)[0].counts(seed, edges_s) for own, seed in zip(busyness, hourly, strict=True)]
    spells = _processes(busyness[0], mean_per_s)[1]
    return (np.stack(usual) + device_counts(spells, bursts, edges_s)).astype(np.float64)


def _processes(busyness: np.random.SeedSequence, mean_per_s: float) -> tuple[Diurnal, Bursts]:
    """Two processes, assumed: people's hours, and bursts of 20 minutes every four hours.

    Bursts bring a fifth of all requests. How busy a device is by the hour is log-normal (sigma 0.4, mean 1): what a
    policy does not know of a day that begins.
    """
    by_hour = 0.8 * mean_per_s * HOURLY / HOURLY.mean()
    factor = np.exp(0.4 * np.random.default_rng(busyness).standard_normal() - 0.08)
    return Diurnal(tuple(factor * by_hour)), Bursts(
        0.0, 0.2 * mean_per_s * (BURST_S + CALM_S) / BURST_S, CALM_S, BURST_S
    )

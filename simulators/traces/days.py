"""Days of phones, generated minute by minute after recorded ones, thousands of devices at once.

A phone is on its charger or off it, its screen on or off. Each of the four ways to change has a hazard, that is a
chance per minute: a base, times a factor each of the hour, of the state of charge, of the time since the last change
and of the device. Charge drains at a rate of the device, faster with the screen on, and unevenly; it comes back at a
rate of the device and of the session, tapering near full. Memory is not of phones but has the shape of virtual
machines' memory: a Gaussian process of a fast and a slow part, bent to the recorded distribution. Apps are as busy as
the battery drains unevenly: nobody recorded their load, and their draw is most of what makes drain uneven. The numbers
are fitted by `simulators.traces.fit`; how close the days are: `benchmarks/traces.py`. There is no temperature: none was
recorded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from caq.errors import ConfigError
from simulators.traces.model import (
    ELAPSED_MIN,
    FULL,
    HOURS,
    LEVELS,
    QUANTILES,
    Hazard,
    Marginal,
    Memory,
    PhoneModel,
    load_model,
)
from simulators.traces.trace import Trace

STEP_S = 60.0
DAY_STEPS = 1440
#: Load of the apps of the median phone while its screen is off. Assumed.
APPS_LOAD = 0.1
#: How long a phone lives before its first row, so that no row knows how it began.
WARM_UP_STEPS = DAY_STEPS
#: Devices at a time: few enough for the processor's cache, many enough for numpy.
BLOCK = 1024

Floats = NDArray[np.float32]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Days:
    """What N generated devices report over T minutes.

    times_s: (T,) float64, seconds since the first midnight. columns: (N, T) float32 each: state_of_charge in steps of
    0.01, charging 0 or 1, screen_brightness 0 while off, memory_available, apps_load.
    """

    times_s: NDArray[np.float64]
    columns: Mapping[str, Floats]
    seed: int
    first: int = 0

    def trace(self, device: int) -> Trace:
        """One device's days, as `write` takes them; `device` counts from 0 within these."""
        columns = {name: np.round(column[device].astype(np.float64), 4) for name, column in self.columns.items()}
        name = f"generated-{self.seed}-{self.first + device}"
        metadata = {"device": name, "seed": str(self.seed)}
        return Trace(self.times_s, columns, "simulators.traces.phone_days", True, metadata)


def phone_days(devices: int, days: int = 1, seed: int = 0, first: int = 0, model: PhoneModel | None = None) -> Days:
    """Generates `days` whole days of the devices numbered from `first` on, beginning at midnight.

    A device depends on `seed` and its number alone: it is the same in whatever company it is generated, and its first
    days are the same however many follow.
    model: by default the one that comes with this package. Raises ConfigError if there is nothing to generate.
    """
    if devices < 1 or days < 1 or first < 0:
        raise ConfigError(f"devices and days must be at least 1, first at least 0, not {devices}, {days} and {first}")
    model = model or load_model()
    steps = days * DAY_STEPS
    columns = {
        name: np.empty((devices, steps), np.float32)
        for name in ("state_of_charge", "charging", "screen_brightness", "memory_available", "apps_load")
    }
    for start in range(0, devices, BLOCK):
        block = slice(start, min(start + BLOCK, devices))
        made = _block(model, range(first + block.start, first + block.stop), steps, seed)
        for name, column in columns.items():
            column[block] = made[name]
    return Days(STEP_S * np.arange(steps, dtype=np.float64), columns, seed, first)


def _block(model: PhoneModel, devices: range, steps: int, seed: int) -> dict[str, Floats]:
    """The columns of some devices, (devices, steps)."""
    n, total = len(devices), WARM_UP_STEPS + steps
    chance = np.empty((n, total, 2), np.float32)
    normal = np.empty((n, total, 5), np.float32)
    own = np.empty((n, 8))
    for at, device in enumerate(devices):
        # A stream each, so that the first of many days are those of fewer.
        streams = np.random.SeedSequence(seed, spawn_key=(device,)).spawn(3)
        first, second, third = (np.random.default_rng(stream) for stream in streams)
        own[at] = first.standard_normal(8)
        second.standard_exponential(dtype=np.float32, out=chance[at])
        third.standard_normal(dtype=np.float32, out=normal[at])
    # By minute first, so that the loops over minutes read whole rows.
    chance, normal = (np.ascontiguousarray(np.moveaxis(drawn, 0, -1)) for drawn in (chance, normal))
    own = own.T
    screen = _switched(model.screen_on, model.screen_off, own[:2], chance[:, 0])
    level, charging, load = _battery(model, screen, own[2:6], chance[:, 1], normal)
    columns = {
        "state_of_charge": np.round(level, 2),
        "charging": charging,
        "screen_brightness": np.where(screen, _brightness(model.brightness, screen, own[6], normal[:, 2]), 0),
        "memory_available": _memory(model.memory, own[7], normal[:, 3:]),
        "apps_load": load,
    }
    return {name: column[WARM_UP_STEPS:].T for name, column in columns.items()}


class _Hazards:
    """The hazards of being switched on and off, as tables: row 0 while off, row 1 while on."""

    def __init__(self, on: Hazard, off: Hazard, scores: NDArray[np.float64]) -> None:
        sigma = np.array([[on.device_sigma], [off.device_sigma]])
        self._own = (np.exp(sigma * scores - sigma**2 / 2) * [[on.per_min], [off.per_min]]).astype(np.float32)
        self._hour = np.array([on.hour, off.hour], np.float32)
        self._table = np.stack([_table(on), _table(off)]).ravel()
        self._on = np.zeros(scores.shape[1], np.bool_)
        self._since = np.full(scores.shape[1], ELAPSED_MIN[-1])

    def step(self, step: int, chance: Floats, level: NDArray[np.intp] | int = 0) -> tuple[Flags, Flags]:
        """Who is on now, and who changed; chance: exponential with mean 1, below the hazard as often as it happens."""
        own = self._own * self._hour[:, step // 60 % HOURS, None]
        rows = self._on * (ELAPSED_MIN[-1] + 1) + self._since
        changed = chance < np.where(self._on, own[1], own[0]) * self._table[rows * LEVELS + level]
        self._on = self._on ^ changed
        self._since = np.where(changed, 0, np.minimum(self._since + 1, ELAPSED_MIN[-1]))
        return self._on, changed


def _table(hazard: Hazard) -> Floats:
    """(minutes since the change, level classes) -> factor."""
    minutes = np.searchsorted(ELAPSED_MIN, np.arange(ELAPSED_MIN[-1] + 1), side="right")
    elapsed, level = np.array(hazard.elapsed)[minutes, None], np.array(hazard.level)
    return np.where(minutes[:, None] > 0, elapsed * level, elapsed).astype(np.float32)


def _switched(on: Hazard, off: Hazard, scores: NDArray[np.float64], chance: Floats) -> Flags:
    """(total, n) whether on, of a switch that knows no state of charge."""
    hazards = _Hazards(on, off, scores)
    return np.stack([hazards.step(step, row)[0] for step, row in enumerate(chance)])


def _battery(
    model: PhoneModel, screen: Flags, scores: NDArray[np.float64], chance: Floats, normal: Floats
) -> tuple[Floats, Floats, Floats]:
    """State of charge, charging and load, (total, n) each, of devices that begin half charged and off their chargers.

    The load is APPS_LOAD times what drain is over that of the median device with its screen off and its charge between
    low and full.
    """
    charge, drain = model.charge, model.drain
    hazards = _Hazards(model.plug, model.unplug, scores[:2])
    taper, saving = np.array(charge.level, np.float32), np.array(drain.level, np.float32)
    loss = drain.per_hour / 60 * np.exp(drain.device_sigma * scores[3] - drain.noise_sigma**2 / 2)
    loss = loss.astype(np.float32)
    keep = np.float32(np.exp(-1 / drain.noise_min))
    fresh = np.float32(drain.noise_sigma * np.sqrt(1 - keep**2))
    noise = np.float32(drain.noise_sigma) * normal[0, 0]
    level = np.full(len(noise), 0.5, np.float32)
    gain = np.zeros_like(level)
    levels, chargings, loads = np.empty_like(chance), np.empty_like(chance), np.empty_like(chance)
    load_of_loss = np.float32(APPS_LOAD * 60 / drain.per_hour)
    for step, (on, chances, normals) in enumerate(zip(screen, chance, normal, strict=True)):
        classes = level_class(level)
        charging, changed = hazards.step(step, chances, classes)
        levels[step], chargings[step] = level, charging
        # A session that begins draws its rate; one that ends does too, to no effect.
        if changed.any():
            gain[changed] = value_of(charge.per_hour, scores[2, changed], normals[1, changed]) / 60
        noise = keep * noise + fresh * normals[0]
        uneven, screened = loss * np.exp(noise), np.where(on, np.float32(drain.screen), np.float32(1))
        loads[step] = np.minimum(load_of_loss * uneven * screened, 1)
        lost = uneven * saving[classes] * screened
        level = np.clip(level + np.where(charging, gain * taper[classes], -lost), 0, 1)
    return levels, chargings, loads


def level_class(level: NDArray[np.floating]) -> NDArray[np.intp]:
    """The class of a state of charge, 0..LEVELS - 1."""
    return np.where(level >= FULL, LEVELS - 1, np.minimum(level * 10, LEVELS - 2)).astype(np.intp)


def _brightness(marginal: Marginal, screen: Flags, score: NDArray[np.float64], normal: Floats) -> NDArray[np.float64]:
    """(total, n), the same throughout a session."""
    began = np.maximum.accumulate(np.where(np.diff(screen, axis=0, prepend=False), np.arange(len(screen))[:, None], 0))
    return value_of(marginal, score, np.take_along_axis(normal, began, 0))


def _memory(memory: Memory, score: NDArray[np.float64], normal: Floats) -> NDArray[np.float64]:
    """(total, n)"""
    within = np.zeros_like(normal[:, 0])
    for part, (share, minutes) in enumerate(
        ((memory.fast_share, memory.fast_min), (1 - memory.fast_share, memory.slow_min))
    ):
        keep = np.float32(np.exp(-1 / minutes))
        fresh = np.float32(np.sqrt(1 - keep**2))
        state = normal[0, part]
        for step, innovation in enumerate(normal[:, part]):
            state = keep * state + fresh * innovation if step else state
            within[step] += np.float32(np.sqrt(share)) * state
    return value_of(memory.marginal, score, within)


#: Normal scores of the quantiles; beyond three deviations there is nothing.
SCORES = np.array([-3.0, *(NormalDist().inv_cdf(k / (QUANTILES - 1)) for k in range(1, QUANTILES - 1)), 3.0])


def value_of(marginal: Marginal, device: NDArray[np.floating], within: NDArray[np.floating]) -> NDArray[np.float64]:
    """Values of a distribution from the normal scores of devices (n,) and within them (..., n)."""
    score = np.sqrt(marginal.device_share) * device + np.sqrt(1 - marginal.device_share) * within
    return np.interp(score, SCORES, marginal.quantiles)

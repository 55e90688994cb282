"""A made-up day of a phone that always tells the same story, for the demo.

    t_s               seconds since midnight, every 60
    state_of_charge   0..1 in steps of 0.01, as a phone reports it
    charging          0 or 1
    screen_brightness 0..1, 0 while the screen is off
    temperature_c     of the battery
    memory_available  0..1 of what the phone has

Made up, and marked so in the file: the rates are tuned to +0.40 %/min while charging and -0.19 %/min otherwise,
the averages over recorded phones; the schedule is a plausible one, not anybody's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

STEP_S = 60
DAY_STEPS = 24 * 60
# Chance that a session starts in a minute with the screen off, for each hour from midnight.
SESSION_CHANCE = np.repeat([0.002, 0.04, 0.06, 0.05, 0.07, 0.09, 0.03], [6, 2, 4, 2, 4, 4, 2])
IDLE_DRAIN = 0.00095  # of the charge per minute
SCREEN_DRAIN = 0.0014  # more with the screen on, dark
BRIGHT_DRAIN = 0.0022  # more at full brightness
CHARGE_RATE = 0.0052
# Above this the charger tapers, as lithium cells need.
TAPER_FROM = 0.88
AMBIENT_C = 24.0


@dataclass
class _Plug:
    """When the phone is on its charger: overnight, at noon, and from a low battery in the evening on."""

    unplug_min: int
    noon_min: int
    noon_target: float
    low: float
    plugged: bool = True

    def update(self, minute: int, charge: float) -> bool:
        if minute == self.unplug_min:
            self.plugged = False
        elif minute == self.noon_min or (minute > 17 * 60 and charge <= self.low):
            self.plugged = True
        elif self.noon_min < minute <= 17 * 60 and charge >= self.noon_target:
            self.plugged = False
        return self.plugged


def phone_day(seed: int) -> dict[str, np.ndarray]:
    """Returns 1,440 rows by column name: t_s and charging int64, the others float64.

    The phone leaves the charger in the morning near full, is topped up at noon, falls below 20 % in the evening
    and charges again. The same seed gives the same day.
    """
    rng = np.random.default_rng(seed)
    plug = _Plug(
        unplug_min=int(rng.integers(400, 460)),
        noon_min=int(rng.integers(710, 750)),
        noon_target=float(rng.uniform(0.78, 0.85)),
        low=float(rng.uniform(0.08, 0.16)),
    )
    brightness = _screen(rng)
    charging = np.empty(DAY_STEPS, np.int64)
    level = np.empty(DAY_STEPS)
    temperature = np.empty(DAY_STEPS)
    charge, celsius = float(rng.uniform(0.96, 1.0)), AMBIENT_C + 1
    for minute in range(DAY_STEPS):
        charging[minute] = plug.update(minute, charge)
        level[minute], temperature[minute] = charge, celsius
        on = brightness[minute] > 0
        drain = IDLE_DRAIN + on * (SCREEN_DRAIN + BRIGHT_DRAIN * brightness[minute])
        gain = CHARGE_RATE * min(1.0, (1 - charge) / (1 - TAPER_FROM)) if charging[minute] else -drain
        charge = min(max(charge + gain * rng.uniform(0.8, 1.2), 0.0), 1.0)
        # Heat follows the power that flows, and leaves with a time constant of 20 minutes.
        target = AMBIENT_C + 6 * on + 5 * on * brightness[minute] + max(gain, 0.0) * 1800
        celsius += (target - celsius) / 20
    return {
        "t_s": np.arange(DAY_STEPS) * STEP_S,
        "state_of_charge": np.round(level, 2),
        "charging": charging,
        "screen_brightness": np.round(brightness, 3),
        "temperature_c": np.round(temperature + rng.normal(0, 0.1, DAY_STEPS), 1),
        "memory_available": np.round(_memory(rng, brightness > 0), 4),
    }


def _screen(rng: np.random.Generator) -> np.ndarray:
    """(1440,) brightness: sessions of some minutes, dimmer at night."""
    brightness = np.zeros(DAY_STEPS)
    minute = 0
    while minute < DAY_STEPS:
        hour = minute // 60
        if rng.random() >= SESSION_CHANCE[hour]:
            minute += 1
            continue
        length = 1 + int(rng.exponential(9))
        daylight = 0.55 if 8 <= hour < 18 else 0.3
        brightness[minute : minute + length] = np.clip(rng.normal(daylight, 0.12), 0.08, 1)
        minute += length + 1
    return brightness


def _memory(rng: np.random.Generator, on: np.ndarray) -> np.ndarray:
    """(1440,) share of memory free: sinks while apps are in use, jumps back when the system ends some."""
    available = np.empty(len(on))
    level = float(rng.uniform(0.45, 0.6))
    for minute, busy in enumerate(on):
        available[minute] = level
        level += rng.normal(-0.010 if busy else 0.002, 0.004)
        if level < 0.15:
            level += rng.uniform(0.12, 0.3)
        level = min(max(level, 0.05), 0.65)
    return available

"""Who policies are trained on, chosen on, and tested on: devices of three kinds that share none."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from simulators.envs.scenario import Scenario, scenario
from simulators.episodes import COLUMNS, episodes

#: The first device of each split; devices are numbered, and another number is another device.
FIRST = {"train": 0, "validation": 1_000_000, "held_out": 2_000_000}
#: Days follow from this and the device's number.
SEED_OF_DAYS = 0


#: A device that has lived for so long knows its habits.
HISTORY = 3


class Lives(NamedTuple):
    """Of the same devices: the days (D, T) to play, and the days (D, HISTORY * T) that came before them."""

    before: Scenario
    days: Scenario


def days_of(split: str, devices: int, block: int = 0) -> Scenario:
    """The camera's days of `devices` devices of a split, `train`, `validation` or `held_out`; blocks do not overlap."""
    return _scenario(split, devices, block, 1)


def lives_of(split: str, devices: int, block: int = 0) -> Lives:
    """Likewise; the day to play is the one after HISTORY others, the first of which is that of `days_of`."""
    whole = _scenario(split, devices, block, HISTORY + 1)
    now = HISTORY * whole.days.steps // (HISTORY + 1)
    parts = (whole.days.cut(0, now), whole.days.cut(now, whole.days.steps))
    return Lives(*(replace(whole, days=part) for part in parts))


def each_day(lives: Lives) -> Scenario:
    """All their days, those before too, as days of their own: the first of every device, then the second, and so on."""
    steps = lives.days.days.steps

    def rows(name: str) -> Any:
        whole = np.concatenate([getattr(part.days, name) for part in lives], axis=1)
        return np.concatenate(np.split(whole, whole.shape[1] // steps, axis=1))

    columns: dict[str, Any] = {name: rows(name) for name in COLUMNS}
    return replace(lives.days, days=replace(lives.days.days, **columns))


def _scenario(split: str, devices: int, block: int, days: int) -> Scenario:
    first = FIRST[split] + block * devices
    base = scenario(days=1)
    given = episodes(devices, SEED_OF_DAYS, requests_per_s=base.device.requests_per_s, first=first, days=days)
    return replace(base, days=given)

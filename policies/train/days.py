"""Who policies are trained on, chosen on, and tested on: devices of three kinds that share none."""

from __future__ import annotations

from simulators.envs.scenario import Scenario, scenario
from simulators.episodes import episodes

#: The first device of each split; devices are numbered, and another number is another device.
FIRST = {"train": 0, "validation": 1_000_000, "held_out": 2_000_000}
#: Days follow from this and the device's number.
SEED_OF_DAYS = 0


def days_of(split: str, devices: int, block: int = 0) -> Scenario:
    """The camera's days of `devices` devices of a split, `train`, `validation` or `held_out`; blocks do not overlap."""
    first = FIRST[split] + block * devices
    base = scenario(days=1)
    given = episodes(devices, SEED_OF_DAYS, requests_per_s=base.device.requests_per_s, first=first)
    return Scenario(base.costs, base.device, base.battery, base.thermal, given, base.weights)

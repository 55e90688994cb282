"""A day of one device with its requests one by one, generated or from a trace."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from caq.errors import ConfigError
from simulators.device import Device
from simulators.episodes import DAY_S, Episodes, episodes, of_traces, recorded, request_times
from simulators.traces import Trace, resample
from simulators.workload import Requests, edges
from simulators.world import apps_load

#: What a recorded day has where its trace says nothing.
UNRECORDED = {"charging": 0.0, "screen_brightness": 0.0, "memory_available": 1.0, "apps_load": 0.0}


@dataclass(frozen=True, eq=False)
class Day:
    """What happens to one device in T steps.

    inputs: one day of T steps. sensed: charging, screen_brightness, memory_available and apps_load as the device's
    sensors tell them, (T,), NaN where they tell nothing. requests: in seconds since the day's beginning.
    state_of_charge: 0..1, at the beginning. notes: what a reader should know of it.
    """

    inputs: Episodes
    sensed: Mapping[str, NDArray[np.float64]]
    requests: Requests
    state_of_charge: float
    notes: tuple[str, ...]


def generated_day(
    device: Device,
    number: int = 0,
    seed: int = 0,
    step_s: float = 60.0,
    requests_per_s: float | None = None,
    state_of_charge: float = 1.0,
    arrival_s: NDArray[np.float64] | None = None,
) -> Day:
    """The generated day of the device with this number (`simulators.episodes`). Raises ConfigError.

    requests_per_s: mean over devices and hours, by default the device's. arrival_s: (R,) recorded requests instead.
    """
    rate = device.requests_per_s if requests_per_s is None else requests_per_s
    inputs = episodes(1, seed, step_s, rate, first=number)
    sensed = {
        "charging": (inputs.charging[0] >= 0.5).astype(np.float64),
        "screen_brightness": inputs.screen_brightness[0],
        "memory_available": inputs.memory_available[0],
        "apps_load": apps_load(device, inputs)[0],
    }
    notes = [f"The day is generated (device {number}, seed {seed}), not recorded."]
    if arrival_s is None:
        arrivals = request_times(number, seed, edges(DAY_S, step_s), rate)
    else:
        arrivals = _within(arrival_s, inputs, notes)
        inputs = replace(inputs, requests=_counts(arrivals, inputs.steps, step_s))
    return Day(inputs, sensed, _asked(arrivals, device, seed), _share(state_of_charge), tuple(notes))


def recorded_day(
    trace: Trace,
    device: Device,
    seed: int = 0,
    step_s: float = 60.0,
    requests_per_s: float | None = None,
    state_of_charge: float | None = None,
    start_s: float = 0.0,
    ambient_c: float = 20.0,
    arrival_s: NDArray[np.float64] | None = None,
) -> Day:
    """The day of a trace: its charging, screen_brightness, memory_available and apps_load, as in `of_traces`; requests
    are made up, or recorded.

    state_of_charge: by default the trace's first. start_s: time of the day at which the trace begins, 0..86400.
    arrival_s: (R,) recorded requests, ascending seconds since the trace began. Where the trace has a gap, sensors tell
    nothing, and the device has what UNRECORDED says. Raises ConfigError if neither the trace nor an argument gives a
    charge.
    """
    even = resample(trace, step_s)
    steps = len(even.times_s)
    rate = device.requests_per_s if requests_per_s is None else requests_per_s
    if arrival_s is None:
        arrivals = request_times(0, seed, edges(steps * step_s, step_s, start_s), rate) - start_s
    else:
        arrivals = arrival_s
    inputs = of_traces(
        [trace],
        _counts(arrivals, steps, step_s),
        step_s,
        fill=UNRECORDED,
        ambient_c=ambient_c,
        start_s=start_s,
    )
    sensed = {name: recorded(even, name) for name in UNRECORDED}
    if not device.apps_power_w:  # it knows that there are no other apps
        sensed["apps_load"] = apps_load(device, inputs)[0]
    if state_of_charge is None:
        known = even.columns.get("state_of_charge", np.empty(0))
        known = known[~np.isnan(known)]
        if not len(known):
            raise ConfigError(f"{trace.source}: has no state_of_charge to begin with; give one")
        state_of_charge = float(known[0])
    notes = [
        f"{trace.source} is {'generated' if trace.generated else 'recorded'}; of it charging, screen, memory and load "
        f"are used, and the charge at the beginning. Requests are {'made up' if arrival_s is None else 'recorded'}, "
        "battery and heat simulated."
    ]
    if arrival_s is not None:
        arrivals = _within(arrivals, inputs, notes)
    for name, column in sensed.items():
        if gaps := int(np.isnan(column).sum()):
            notes.append(
                f"{name} is unknown in {gaps} of {steps} steps: the policy is told so, the device has "
                f"{UNRECORDED[name]:g}."
            )
    return Day(inputs, sensed, _asked(arrivals, device, seed), _share(state_of_charge), tuple(notes))


def _counts(arrival_s: NDArray[np.float64], steps: int, step_s: float) -> NDArray[np.float64]:
    """(1, T) requests in each step."""
    return np.diff(np.searchsorted(arrival_s, edges(steps * step_s, step_s)))[None].astype(np.float64)


def _within(arrival_s: NDArray[np.float64], inputs: Episodes, notes: list[str]) -> NDArray[np.float64]:
    """Those before the day's end; a note says so. Raises ConfigError if there are none."""
    within = arrival_s[arrival_s < inputs.steps * inputs.step_s]
    if not len(within):
        raise ConfigError(f"requests: all {len(arrival_s)} come after the day, of {inputs.steps * inputs.step_s:g} s")
    notes.append(f"Requests are recorded: {len(within)} of {len(arrival_s)} come before the day ends.")
    return within


def _asked(arrival_s: NDArray[np.float64], device: Device, seed: int) -> Requests:
    within_s = (device.deadline_s, device.deadline_s)
    return Requests.drawn(arrival_s, np.random.SeedSequence(seed), within_s)


def _share(state_of_charge: float) -> float:
    if not 0 <= state_of_charge <= 1:
        raise ConfigError(f"state_of_charge must be from 0 to 1, not {state_of_charge}")
    return float(state_of_charge)

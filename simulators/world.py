"""N devices that serve requests at operating points of their choice, through a day at once.

In each step a device, at one point:

    serves      requests wait in a queue that is worked off at the point's latency; what waits past the deadline is
                late, what finds the queue full, or the device off, is dropped
    draws       idle power, the screen's, that of other apps, and the point's energy for each request served; a charger
                gives its power
    heats       by what it draws; above a limit it throttles, and latency grows
    drains      its battery; cut off, it is off until it is charged to `restart_above`

The queue is a fluid: arrivals are even within a step and the backlog moves in a line (Kleinrock, "Queueing Systems"
vol. 2, 1976, ch. 2), so waiting by chance among few requests is not seen. A device works to the end of the step in
which its battery is cut off.

`advance` is the one place where this is computed; `react` is its part that follows from what was served, for a queue
that is no fluid (`simulators.simulate`). They take arrays, or with `simulators.scalar` plain numbers: the
single environment needs no numpy for one device.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from caq.errors import AssignmentError, ConfigError
from simulators.battery import Battery, BatteryParameters
from simulators.device import Device, PointCosts
from simulators.episodes import Episodes
from simulators.thermal import Thermal, ThermalParameters


class Choice(NamedTuple):
    """What an operating point costs: columns of PointCosts, (N,) of the points chosen."""

    accuracy: Any
    latency_s: Any
    energy_j: Any
    resident_bytes: Any


class Surroundings(NamedTuple):
    """What a step is given, (N,): W, °C, bytes and counts; or (T, D) of all steps of all days.

    other_w: drawn beside inference while the device is on. apps_load: share of the processor that other apps take.
    """

    charger_w: Any
    other_w: Any
    ambient_c: Any
    available_bytes: Any
    requests: Any
    apps_load: Any


class OtherPower(NamedTuple):
    """Of what a device draws beside inference while it is on, W: idle, a number; screen with its brightness, and other
    apps, (D, T)."""

    idle: Any
    screen: Any
    apps: Any


class State(NamedTuple):
    """Of N devices between two steps. battery: BatteryState; temperature_c: (nodes, N); throttled, on: (N,) bool;
    queue: (N,) requests that wait."""

    battery: Any
    temperature_c: Any
    throttled: Any
    on: Any
    queue: Any


class Served(NamedTuple):
    """What became of requests in a step, (N,) counts; the late are among the served. queue: those that still wait."""

    served: Any
    late: Any
    dropped: Any
    queue: Any


class Outcome(NamedTuple):
    """What a step did, (N,).

    accuracy: of the point, 0..1. served, late (among the served), dropped: requests. busy: share of the step that
    inference took, 0..1. inference_j: its energy. power_w: drawn by all together, the mean. over_memory: the point
    needed more than there was. off: the device was off. apps_load: share of the processor that other apps took, 0..1.
    """

    accuracy: Any
    served: Any
    late: Any
    dropped: Any
    busy: Any
    inference_j: Any
    power_w: Any
    over_memory: Any
    off: Any
    apps_load: Any

    @property
    def load(self) -> Any:
        """What other apps and inference took together, (N,); may be above 1 where inference does not run on the
        processor that apps do."""
        return self.busy + self.apps_load


def serve(
    xp: Any,
    on: Any,
    latency_s: Any,
    queue: Any,
    requests: Any,
    duration_s: float,
    limit: float,
    deadline_s: float,
) -> Served:
    """Works off `queue` and new `requests` for `duration_s`, `latency_s` each; a device that is not `on` drops all."""
    pending = queue + requests
    served = xp.minimum(pending, on * (duration_s / latency_s))
    left = pending - served
    kept = on * xp.minimum(left, limit)
    # The backlog moves in a line from `queue` to `left`; who meets more than is done by the deadline is late.
    over = (xp.maximum(queue, left) - deadline_s / latency_s) / (abs(left - queue) + 1e-6)
    late = served * xp.minimum(xp.maximum(over, 0.0), 1.0)
    return Served(served, late, left - kept, kept)


def advance(
    xp: Any,
    battery: Any,
    thermal: Any,
    device: Device,
    duration_s: float,
    state: State,
    choice: Choice,
    given: Surroundings,
) -> tuple[State, Outcome]:
    """One step. xp, battery, thermal: numpy, Battery and Thermal; or their scalar twins in `simulators.scalar`."""
    latency = choice.latency_s / thermal.speed(state.throttled)
    done = serve(xp, state.on, latency, state.queue, given.requests, duration_s, device.queue_limit, device.deadline_s)
    return react(xp, battery, thermal, device, duration_s, state, choice, given, latency, done)


def react(
    xp: Any,
    battery: Any,
    thermal: Any,
    device: Device,
    duration_s: float,
    state: State,
    choice: Choice,
    given: Surroundings,
    latency_s: Any,
    done: Served,
) -> tuple[State, Outcome]:
    """What requests that were served, `latency_s` each, do to a device in a step; `given.requests` has no say."""
    on = state.on
    inference_j = done.served * choice.energy_j
    power = on * given.other_w + inference_j / duration_s
    charge, voltage = battery.step(state.battery, power - given.charger_w, state.temperature_c[0], duration_s)
    temperature = thermal.step(state.temperature_c, power, given.ambient_c, duration_s)
    stays = battery.cut_off(charge, voltage) == 0
    after = State(
        charge,
        temperature,
        thermal.throttled(temperature, state.throttled),
        xp.where(on, stays, charge.state_of_charge >= device.restart_above),
        done.queue,
    )
    over_memory = on & (choice.resident_bytes > given.available_bytes)
    busy = done.served * latency_s / duration_s
    served = choice.accuracy, done.served, done.late, done.dropped
    outcome = Outcome(*served, busy, inference_j, power, over_memory, on == 0, on * given.apps_load)
    return after, outcome


def surroundings(device: Device, days: Episodes) -> Surroundings:
    """Episodes in the units of a device, (D, T) float64."""
    other = other_power(device, days)
    return Surroundings(
        days.charging * device.charger_power_w,
        other.idle + other.screen + other.apps,
        days.ambient_c,
        days.memory_available * device.memory_bytes,
        days.requests,
        apps_load(device, days),
    )


def other_power(device: Device, days: Episodes) -> OtherPower:
    """What a device draws beside inference in episodes, by part."""
    screen = device.screen_power_w * days.screen_on + device.bright_power_w * days.screen_brightness
    return OtherPower(device.idle_power_w, screen, device.apps_power_w * days.apps_load)


def apps_load(device: Device, days: Episodes) -> NDArray[np.float64]:
    """(D, T) load of other apps: none on a device that has no other apps, whatever the days say of phones."""
    return days.apps_load * (device.apps_power_w > 0)


class World:
    """N devices of one kind: `reset` starts a day for each, `step` moves all of them on.

    state: State. given: Surroundings of the step to come; after the last one, those of that. t: steps done; steps:
    those of a day. Arrays have `dtype`, float32 or float64; charge is always float64.
    """

    def __init__(
        self,
        costs: PointCosts,
        device: Device,
        battery: BatteryParameters,
        thermal: ThermalParameters,
        days: Episodes,
        dtype: Any = np.float32,
    ) -> None:
        self.costs, self.device, self.days = costs, device, days
        self.battery, self.thermal = Battery(battery, dtype), Thermal(thermal, dtype)
        self.dtype: np.dtype[Any] = np.dtype(dtype)
        self.steps, self.t = days.steps, days.steps
        # (T, D): a step's row lies together, and devices pick from it what their days have.
        self._rows = Surroundings(*(np.ascontiguousarray(c.T, dtype) for c in surroundings(device, days)))
        self._chosen: NDArray[np.intp]
        self.given: Surroundings
        self._table = np.array([costs.accuracy, costs.latency_s, costs.energy_j, costs.resident_bytes], dtype)
        self.state: State

    def reset(self, days: NDArray[np.integer[Any]], state_of_charge: NDArray[np.float64]) -> None:
        """Starts: device i at midnight of day `days[i]`, charged to `state_of_charge[i]`, as warm as the air, idle.

        days: (N,) rows of the episodes. state_of_charge: (N,) 0..1. Raises ConfigError.
        """
        if days.ndim != 1 or not len(days) or days.min() < 0 or days.max() >= len(self.days):
            raise ConfigError(f"days: (N,) rows of {len(self.days)} days are expected, not {days}")
        self._chosen, self.t = days.astype(np.intp), 0
        self.given = self._surroundings()
        ambient = self.given.ambient_c
        off, count = np.zeros(len(days), bool), len(days)
        battery = self.battery.start(state_of_charge)
        on = battery.state_of_charge >= self.device.restart_above
        self.state = State(battery, self.thermal.start(ambient, 0.0), off, on, np.zeros(count, self.dtype))

    def _surroundings(self) -> Surroundings:
        row = min(self.t, self.steps - 1)
        return Surroundings(*(column[row].take(self._chosen) for column in self._rows))

    def step(self, points: NDArray[np.integer[Any]]) -> Outcome:
        """Moves on by one step with the operating points (N,), rows of `costs`.

        Raises ConfigError after the day's end, AssignmentError on points that there are not.
        """
        if self.t >= self.steps:
            raise ConfigError("the day is over, or has not begun: call reset")
        if points.min() < 0 or points.max() >= len(self.costs):
            raise AssignmentError(f"operating points are numbered 0 to {len(self.costs) - 1}, not {points}")
        choice = Choice(*self._table.take(points, axis=1))
        self.state, outcome = advance(
            np, self.battery, self.thermal, self.device, self.days.step_s, self.state, choice, self.given
        )
        self.t += 1
        self.given = self._surroundings()
        return outcome

"""The oracle: knows the whole day beforehand, and finds the best points by dynamic programming (Bellman 1957).

    oracle = Oracle(scenario, days)                # (N,) rows of scenario.days
    oracle.value(state_of_charge)                  # (N,) what the days can return
    oracle.choose(world, current)                  # (N,) points, in a world that has come to step world.t

The state is charge on an even grid, whether the device is on, and the active point, for a switch costs. Between grid
points the value is a line. What else a world's state has is not searched but put where it settles: the RC pair and the
queue at rest, since both take far less than a step; temperature where the point's power brings it, since it moves
resistance a little and throttling is far; ageing none, since it takes months. The step itself is
`simulators.world.advance`, the world's own. In following its plan the oracle looks one step ahead from the true state,
so what that returns is no estimate, but what a policy that knew the day did return: the score that others are held
against. How far it is from the plan's own value, and from that of a finer grid, is measured in `benchmarks.policies`.

Where devices throttle, or requests wait from one step to the next, its plan need not be the best: on days of 70 °C or
of far more requests than a device can serve, a fixed point may beat it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from caq.errors import ConfigError
from simulators.battery import Battery
from simulators.envs.scenario import Scenario
from simulators.thermal import Thermal
from simulators.world import Choice, State, Surroundings, World, advance, surroundings

Floats = NDArray[np.float32]


class Oracle:
    """Plans for N days of a scenario. levels: of charge, at least 2. Memory: 8 * steps * N * levels * P bytes."""

    def __init__(self, scenario: Scenario, days: NDArray[np.integer[Any]], levels: int = 257) -> None:
        if levels < 2:
            raise ConfigError(f"levels must be at least 2, not {levels}")
        self.scenario = scenario
        self._battery = Battery(scenario.battery, np.float32)
        self._thermal = Thermal(scenario.thermal, np.float32)
        rows = surroundings(scenario.device, scenario.days)
        # (T, N): a step's row lies together.
        self._rows = Surroundings(*(np.ascontiguousarray(c[days].T, np.float32) for c in rows))
        costs = scenario.costs
        table = np.array([costs.accuracy, costs.latency_s, costs.energy_j, costs.resident_bytes], np.float32)
        self._table = Choice(*table)
        self._plan(len(days), levels)

    def _plan(self, days: int, levels: int) -> None:
        steps, points = self.scenario.days.steps, len(self.scenario.costs)
        grid = np.linspace(0, 1, levels)
        # (T+1, off or on, N, levels, P): what is still to come, by the point that was active last.
        self._value = np.zeros((steps + 1, 2, days, levels, points), np.float32)
        day, charge = np.repeat(np.arange(days), levels), np.tile(grid, days)
        for t in range(steps - 1, -1, -1):
            for on in (0, 1):
                worth = self._ahead(t, self._settled(t, day, charge, on), day)
                stay_or_switch = np.maximum(worth, worth.max(1, keepdims=True) - self.scenario.weights.switch)
                self._value[t, on] = stay_or_switch.reshape(days, levels, points)

    def _settled(self, t: int, day: NDArray[np.intp], charge: NDArray[np.float64], on: int) -> State:
        """States (M * P,) in which each point has been active for long."""
        points = len(self.scenario.costs)
        day, charge = np.repeat(day, points), np.repeat(charge, points)
        given = Surroundings(*(c[t].take(day) for c in self._rows))
        asked_w = given.requests * np.tile(self._table.energy_j, len(day) // points) / self.scenario.days.step_s
        power = on * (given.other_w + asked_w)
        warm = given.ambient_c + self._thermal.parameters.resistance_k_per_w[0] * power
        cold = self._thermal.start(warm, power)
        never = np.zeros(len(day), bool)
        return State(self._battery.start(charge), cold, never, never | bool(on), np.zeros(len(day), np.float32))

    def _ahead(self, t: int, state: State, day: NDArray[np.intp]) -> Floats:
        """(M, P): what each point is worth at step t of days (M,), from states (M * P,), but for the switch to it."""
        s, points = self.scenario, len(self.scenario.costs)
        given = Surroundings(*(np.repeat(c[t].take(day), points) for c in self._rows))
        choice = Choice(*(np.tile(column, len(day)) for column in self._table))
        physics = np, self._battery, self._thermal, s.device, s.days.step_s
        after, outcome = advance(*physics, state, choice, given)
        worth = s.reward(outcome, 0.0) + self._interpolate(t + 1, after, np.repeat(day, points))
        return np.asarray(worth, np.float32).reshape(len(day), points)

    def _interpolate(self, t: int, state: State, day: NDArray[np.intp]) -> Floats:
        value = self._value[t]
        _, days, levels, points = value.shape
        at = state.battery.state_of_charge * (levels - 1)
        low = np.minimum(at.astype(np.intp), levels - 2)
        part = (at - low).astype(np.float32)
        row = ((state.on.astype(np.intp) * days + day) * levels + low) * points
        row += np.tile(np.arange(points), len(day) // points)
        left, right = value.reshape(-1).take(row), value.reshape(-1).take(row + points)
        return np.asarray(left + part * (right - left))

    def value(self, state_of_charge: NDArray[np.float64]) -> NDArray[np.float64]:
        """(N,) what the plan returns from the days' beginning at the first point, by its own reckoning."""
        at = self._battery.start(state_of_charge)
        on = at.state_of_charge >= self.scenario.device.restart_above
        points = len(self.scenario.costs)
        none = np.zeros(1)
        state = State(
            at._replace(state_of_charge=np.repeat(at.state_of_charge, points)), none, none, np.repeat(on, points), none
        )
        return (
            self._interpolate(0, state, np.repeat(np.arange(len(at.state_of_charge)), points))
            .reshape(-1, points)[:, 0]
            .astype(float)
        )

    def choose(self, world: World, current: NDArray[np.intp]) -> NDArray[np.intp]:
        """(N,) the best points for the step to come of a world with the same days; current: (N,) active ones."""
        points, days = len(self.scenario.costs), np.arange(len(current))
        s = world.state
        battery = type(s.battery)(*(np.repeat(part, points) for part in s.battery))
        rest = (np.repeat(part, points, axis=-1) for part in (s.temperature_c, s.throttled, s.on, s.queue))
        worth = self._ahead(world.t, State(battery, *rest), days)
        worth -= self.scenario.weights.switch
        worth[days, current] += self.scenario.weights.switch
        return worth.argmax(1)

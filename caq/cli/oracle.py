"""The oracle on one device, request by request: its plan is made on the fluid day, and followed from the true state."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from caq.context import Context
from caq.governor import Decision
from caq.model import OperatingPoint
from policies.oracle import Oracle
from simulators.battery import BatteryState
from simulators.envs.scenario import Scenario
from simulators.simulate import Simulation
from simulators.world import State


class OraclePolicy:
    """Knows the scenario's one day beforehand, and the simulation's state; no device can have it."""

    def __init__(self, scenario: Scenario, simulation: Simulation) -> None:
        self._oracle, self._simulation = Oracle(scenario, np.arange(1)), simulation
        self._names = scenario.costs.names

    def select(self, context: Context, points: Sequence[OperatingPoint], current: str) -> Decision:
        """The first point of the plan from here."""
        at = np.array([self._names.index(current)])
        chosen = int(self._oracle.choose(self._world(), at)[0])
        return Decision(self._names[chosen], "the day is known")

    def _world(self) -> Any:
        """The simulation as a world of one device."""
        s = self._simulation.state
        battery = BatteryState(*(np.array([value]) for value in s.battery))
        temperature = np.array(s.temperature_c, np.float32)[:, None]
        throttled, on, queue = np.array([s.throttled]), np.array([s.on]), np.array([s.queue], np.float32)
        return SimpleNamespace(t=self._simulation.t, state=State(battery, temperature, throttled, on, queue))

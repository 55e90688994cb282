"""Battery and Thermal for one device in plain numbers: numpy's calls would take ten times as long as their work.

The same formulas as in `simulators.battery` and `simulators.thermal`, in float64; tests hold the twins together.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from simulators.battery import ZERO_CELSIUS_K, Battery, BatteryParameters
from simulators.thermal import Thermal, ThermalParameters


class Scalars:
    """What `simulators.world.advance` needs of numpy, for numbers."""

    minimum = staticmethod(min)
    maximum = staticmethod(max)

    @staticmethod
    def where(condition: bool, a: bool, b: bool) -> bool:
        return a if condition else b


class ScalarBatteryState(NamedTuple):
    """BatteryState of one device."""

    state_of_charge: float
    polarization_v: float
    capacity_ah: float
    resistance_factor: float


class ScalarBattery:
    """Twin of Battery; see there."""

    def __init__(self, parameters: BatteryParameters, duration_s: float) -> None:
        twin, p = Battery(parameters, np.float64), parameters
        self.parameters = parameters
        self._ocv, self._ocv_slope = (table.tolist() for table in twin._ocv)
        self._r1, self._r1_slope = (table.tolist() for table in twin._r1)
        self._fade, self._growth = twin._fade, twin._growth
        self._entries = len(self._ocv) - 1
        self._reference = p.activation_k / (p.reference_temperature_c + ZERO_CELSIUS_K)
        self._decay = math.exp(duration_s / -p.tau1_s)
        self._cutoff_v = p.cutoff_v * p.cells_in_series

    def start(self, state_of_charge: float) -> ScalarBatteryState:
        """A rested new battery."""
        return ScalarBatteryState(state_of_charge, 0.0, self.parameters.capacity_ah, 1.0)

    def step(
        self, state: ScalarBatteryState, power_w: float, temperature_c: float, duration_s: float
    ) -> tuple[ScalarBatteryState, float]:
        """As Battery.step, always for the duration that was given at the start."""
        p, decay = self.parameters, self._decay
        charge, polarization_v, capacity_ah, factor = state
        at = charge * self._entries
        index = int(at)
        part = at - index
        r1 = self._r1_slope[index] * part + self._r1[index]
        r1 *= math.exp(p.activation_k / (temperature_c + ZERO_CELSIUS_K) - self._reference) * factor
        resistance = factor * p.r0_ohm + r1 * (1 - decay)
        source_v = self._ocv_slope[index] * part + self._ocv[index] - decay * polarization_v
        half = source_v * 0.5
        square = half * half
        drop = min(resistance * power_w / p.cells_in_series, square)
        voltage = math.sqrt(square - drop) + half
        current = drop / resistance / voltage
        if voltage > p.max_v:
            if current < 0:
                current = max(current, min((source_v - p.max_v) / resistance, 0.0))
            voltage = source_v - current * resistance
        used = current * (duration_s / 3600.0) / capacity_ah
        cycles = max(used, 0.0)
        after = ScalarBatteryState(
            min(max(charge - used, 0.0), 1.0),
            r1 * (1 - decay) * current + decay * polarization_v,
            capacity_ah * (1 - self._fade * cycles),
            factor * (1 + self._growth * cycles),
        )
        return after, voltage * p.cells_in_series

    def cut_off(self, state: ScalarBatteryState, voltage_v: float) -> bool:
        """As Battery.cut_off."""
        return voltage_v < self._cutoff_v or state.state_of_charge <= 0


class ScalarThermal:
    """Twin of Thermal; see there."""

    def __init__(self, parameters: ThermalParameters, duration_s: float) -> None:
        twin = Thermal(parameters, np.float64)
        self.parameters = parameters
        self._rise: list[float] = twin._rise[:, 0].tolist()
        self._decay: list[list[float]] = ((twin._left * np.exp(twin._rates * duration_s)) @ twin._right).tolist()
        self._released_c = parameters.throttle_above_c - parameters.hysteresis_k

    def start(self, ambient_c: float) -> list[float]:
        """All nodes as warm as the air."""
        return [ambient_c] * len(self._rise)

    def step(self, temperature_c: list[float], power_w: float, ambient_c: float, duration_s: float) -> list[float]:
        """As Thermal.step, always for the duration that was given at the start."""
        steady = [rise * power_w + ambient_c for rise in self._rise]
        if len(steady) == 1:
            return [(temperature_c[0] - steady[0]) * self._decay[0][0] + steady[0]]
        first, second = temperature_c[0] - steady[0], temperature_c[1] - steady[1]
        (a, b), (c, d) = self._decay
        return [a * first + b * second + steady[0], c * first + d * second + steady[1]]

    def throttled(self, temperature_c: list[float], before: bool) -> bool:
        """As Thermal.throttled."""
        at = temperature_c[0]
        return at >= self.parameters.throttle_above_c or (before and at > self._released_c)

    def speed(self, throttled: bool) -> float:
        """As Thermal.speed."""
        return self.parameters.throttle_factor if throttled else 1.0

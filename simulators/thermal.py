"""The temperature of a board under power, and throttling, for N devices at once.

A ladder of one or two nodes (a Cauer network: chip, then board and heat sink), each with a heat capacity, each joined
to the next by a resistance, the last to the air:

    c[0] dT[0]/dt = power - (T[0] - T[1]) / r[0]
    c[1] dT[1]/dt = (T[0] - T[1]) / r[0] - (T[1] - ambient) / r[1]

The sensor is on node 0. A step is exact for power and ambient that hold during it, whatever its duration: the
deviation from the steady state decays by the matrix exponential.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from caq.errors import ConfigError

Array: TypeAlias = np.ndarray[Any, Any]


@dataclass(frozen=True)
class ThermalParameters:
    """One board in still air, as it is mounted. Raises ConfigError that names the field."""

    title: str
    source: str  # where the figures come from
    resistance_k_per_w: tuple[float, ...]  # from each node to the next, the last one's to the air
    heat_capacity_j_per_k: tuple[float, ...]  # of each node
    ambient_c: float  # where nothing else is known
    idle_power_w: float  # of the whole board, with nothing to do
    throttle_above_c: float  # the sensor's temperature from which the device slows down
    throttle_factor: float  # its speed then, 0..1 of the full one
    hysteresis_k: float  # it speeds up again that much below

    def __post_init__(self) -> None:
        if not 1 <= len(self.resistance_k_per_w) <= 2:
            self._fail("resistance_k_per_w", f"must have one or two nodes, not {len(self.resistance_k_per_w)}")
        if len(self.heat_capacity_j_per_k) != len(self.resistance_k_per_w):
            count, nodes = len(self.heat_capacity_j_per_k), len(self.resistance_k_per_w)
            self._fail("heat_capacity_j_per_k", f"has {count} nodes, and resistance_k_per_w {nodes}")
        for field in ("resistance_k_per_w", "heat_capacity_j_per_k"):
            for i, value in enumerate(getattr(self, field)):
                if not 0 < value < np.inf:
                    self._fail(f"{field}[{i}]", f"must be finite and above 0, not {value}")
        if not self.idle_power_w >= 0:
            self._fail("idle_power_w", f"must be at least 0, not {self.idle_power_w}")
        if not 0 < self.throttle_factor <= 1:
            self._fail("throttle_factor", f"must be above 0 and at most 1, not {self.throttle_factor}")
        if not self.hysteresis_k >= 0:
            self._fail("hysteresis_k", f"must be at least 0, not {self.hysteresis_k}")

    def _fail(self, field: str, what: str) -> None:
        raise ConfigError(f"board {self.title!r}: {field}: {what}")


class Thermal:
    """N boards of one kind. Temperatures of the nodes are arrays (nodes, N); row 0 is what the sensor shows."""

    def __init__(self, parameters: ThermalParameters, dtype: Any = np.float64) -> None:
        if np.dtype(dtype) not in (np.float32, np.float64):
            raise ConfigError(f"board {parameters.title!r}: dtype must be float32 or float64, not {np.dtype(dtype)}")
        self.parameters = parameters
        self.dtype: np.dtype[Any] = np.dtype(dtype)
        resistance = np.asarray(parameters.resistance_k_per_w)
        # K over ambient for a watt, at each node: all the resistances that it has still to pass.
        self._rise = np.cumsum(resistance[::-1])[::-1].astype(dtype)[:, None]
        capacity = np.asarray(parameters.heat_capacity_j_per_k)
        conductance = np.diag(1 / resistance)
        conductance[1:, 1:] += np.diag(1 / resistance[:-1])
        conductance -= np.diag(1 / resistance[:-1], 1) + np.diag(1 / resistance[:-1], -1)
        # Scaled by the roots of the capacities the matrix is symmetric, so its eigenvalues are real, and negative.
        root = np.sqrt(capacity)
        self._rates, vectors = np.linalg.eigh(-conductance / root[:, None] / root)
        self._left, self._right = vectors / root[:, None], vectors.T * root
        self._decay: tuple[float, Array] = (0.0, np.eye(len(root), dtype=dtype))

    def start(self, temperature_c: Array, power_w: Array | float) -> Array:
        """(nodes, N): sensors at these temperatures (N,), C; the board cooler by what this power (N,), W, takes."""
        sensor = np.asarray(temperature_c, self.dtype)
        below = self._rise[0] - self._rise
        return np.asarray(sensor - below * np.asarray(power_w, self.dtype))

    def step(self, temperature_c: Array, power_w: Array | float, ambient_c: Array | float, duration_s: float) -> Array:
        """Holds power and ambient, (N,) or one for all, for a duration > 0. Returns the temperatures (nodes, N)."""
        if duration_s != self._decay[0]:
            decay = (self._left * np.exp(self._rates * duration_s)) @ self._right
            self._decay = (duration_s, decay.astype(self.dtype))
        steady = self._rise * np.asarray(power_w, self.dtype)
        steady += np.asarray(ambient_c, self.dtype)
        deviation = np.subtract(temperature_c, steady)
        if len(deviation) == 1:
            deviation *= self._decay[1][0, 0]
        else:
            deviation = self._decay[1] @ deviation
        deviation += steady
        return deviation

    def throttled(self, temperature_c: Array, before: Array) -> Array:
        """(N,) bool: slowed down from now on, if `before` (N,) says which were until now."""
        limit = self.dtype.type(self.parameters.throttle_above_c)
        released = self.dtype.type(self.parameters.throttle_above_c - self.parameters.hysteresis_k)
        return np.asarray((temperature_c[0] >= limit) | (before & (temperature_c[0] > released)))

    def speed(self, throttled: Array) -> Array:
        """(N,) factor of the speed: 1, or `throttle_factor`."""
        return np.where(throttled, self.dtype.type(self.parameters.throttle_factor), self.dtype.type(1))

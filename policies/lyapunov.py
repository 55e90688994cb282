"""Lyapunov drift-plus-penalty: no forecast, charge alone sets the price of energy.

The battery is a queue of the joules that are missing below a level `target`: Q = (target - state_of_charge) *
battery_energy_j, at least 0. Each step the policy maximises, over points,

    v_j2 * accuracy - Q * energy_j

which is the bound on drift plus penalty, with a penalty of wrong answers, divided by the requests of the step (Neely,
"Stochastic Network Optimization with Application to Communication and Queueing Systems", 2010, sec. 3.1 and 4.1; for
batteries that are charged: Huang and Neely, "Utility Optimal Scheduling in Energy Harvesting Networks", 2011). A
greater v_j2 trades charge for accuracy: the mean accuracy is within O(1/v) of the best, the queue grows as O(v).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from caq.errors import ConfigError
from policies.points import PointTable
from policies.seen import PointPolicy, Seen, local_hour


class LyapunovPolicy(PointPolicy):
    """target: state of charge, above 0, may be above 1. v_j2: > 0, J². battery_energy_j: > 0, from full to empty.

    Has no state. Raises ConfigError.
    """

    fields = ("state_of_charge", "memory_available")

    def __init__(
        self,
        points: PointTable,
        battery_energy_j: float,
        target: float,
        v_j2: float,
        clock: Callable[[], float] = local_hour,
    ) -> None:
        for name, value in (("battery_energy_j", battery_energy_j), ("target", target), ("v_j2", v_j2)):
            if not 0 < value < np.inf:
                raise ConfigError(f"{name} must be finite and above 0, not {value}")
        super().__init__(points, clock)
        self.battery_energy_j, self.target, self.v_j2 = battery_energy_j, target, v_j2

    def queue_j(self, seen: Seen) -> NDArray[np.float64]:
        """(N,) joules that are missing."""
        return np.maximum(self.target - seen.state_of_charge, 0.0) * self.battery_energy_j

    def choose(self, seen: Seen) -> NDArray[np.intp]:
        worth = self.v_j2 * self.points.accuracy - self.queue_j(seen)[:, None] * self.points.energy_j
        return self.points.fitting(worth.argmax(1), seen.memory_available)

    def reason(self, seen: Seen) -> str:
        charge = seen.state_of_charge[0]
        return f"charge {charge:.2f} is {self.queue_j(seen)[0]:.0f} J below {self.target:g}"

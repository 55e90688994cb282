"""What a policy looks at, for one device or for N at once, and the base of policies that are computed from it.

On a device `select` reads a context and asks `choose` about one device; in a simulated world `choose` is asked about
all of them. So there is one implementation of the decision.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from caq.context import Context
from caq.errors import ConfigError, nearest
from caq.governor import Decision
from caq.model import OperatingPoint
from policies.points import PointTable


class Seen(NamedTuple):
    """Of N devices, arrays (N,) float64, NaN where unknown. Units are those of `caq.context.Context`.

    hour: 0..24, local time. current: (N,) index of the active point, -1 if the policy does not know it.
    """

    state_of_charge: NDArray[Any]
    charging: NDArray[Any]
    temperature_c: NDArray[Any]
    memory_available: NDArray[Any]
    power_w: NDArray[Any]
    cpu_load: NDArray[Any]
    apps_load: NDArray[Any]
    screen_brightness: NDArray[Any]
    time_s: NDArray[Any]
    hour: NDArray[Any]
    current: NDArray[np.intp]


#: Those of them that a context has.
FROM_CONTEXT = Seen._fields[:-2]


def see(context: Context, hour: float, current: int) -> Seen:
    """One device, arrays (1,)."""
    values = (context.value(name) for name in FROM_CONTEXT)
    numbers = [math.nan if value is None else value for value in values]
    return Seen._make((*np.array([*numbers, hour], np.float64)[:, None], np.array([current], np.intp)))


def local_hour() -> float:
    """0..24, by this machine's clock and time zone, to the minute."""
    return _hour_of(int(time.time()) // 60)


@lru_cache(maxsize=1)  # localtime looks for the time zone's file: as long as a whole decision
def _hour_of(minute: int) -> float:
    now = time.localtime(minute * 60)
    return now.tm_hour + now.tm_min / 60


class PointPolicy(ABC):
    """A policy over a table of points, which an artifact must have by these names.

    needed: context fields without which it does not decide; it then holds the active point and says so. clock: tells
    the hour. One object serves one runtime, or one run in a world of N devices after `start(N)`.
    """

    needed: tuple[str, ...] = ("state_of_charge",)
    fields: tuple[str, ...] = ("state_of_charge",)

    def __init__(self, points: PointTable, clock: Callable[[], float] = local_hour) -> None:
        self.points = points
        self._clock = clock
        self._checked: Sequence[OperatingPoint] = ()
        self.start(1)

    def start(self, devices: int) -> None:  # noqa: B027  most policies have no state
        """Forgets everything, for so many devices."""

    @abstractmethod
    def choose(self, seen: Seen) -> NDArray[np.intp]:
        """Points (N,), rows of the table."""

    @abstractmethod
    def reason(self, seen: Seen) -> str:
        """Why the last choice, for the first device."""

    def check(self, points: Sequence[OperatingPoint]) -> None:
        """Raises ConfigError if a point of the table is not among `points`."""
        names = [point.name for point in points]
        for name in self.points.names:
            if name not in names:
                raise ConfigError(f"the policy's table: no operating point {name!r}{nearest(name, names)}")

    def select(self, context: Context, points: Sequence[OperatingPoint], current: str) -> Decision:
        """See `caq.governor.Policy`."""
        if points is not self._checked:
            self.check(points)
            self._checked = points
        names = self.points.names
        seen = see(context, self._clock(), names.index(current) if current in names else -1)
        absent = [name for name in self.needed if math.isnan(getattr(seen, name)[0])]
        if absent:
            return Decision(current, f"{current} is held: {', '.join(absent)} is missing or stale")
        chosen = int(self.choose(seen)[0])
        short = self.points.memory[seen.current[0]] > seen.memory_available[0] if seen.current[0] >= 0 else False
        return Decision(names[chosen], self.reason(seen), urgent=bool(short), trim=bool(short))

"""Operating points as a policy sees them on a device: what each is worth and what it takes, in arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from caq.errors import ConfigError


class Costs(Protocol):
    """Columns of `simulators.device.PointCosts`, which a device need not have."""

    @property
    def names(self) -> Sequence[str]: ...
    @property
    def accuracy(self) -> NDArray[Any]: ...
    @property
    def energy_j(self) -> NDArray[Any]: ...
    @property
    def resident_bytes(self) -> NDArray[Any]: ...


@dataclass(frozen=True, eq=False)
class PointTable:
    """P operating points: accuracy (P,) 0..1; energy_j (P,) > 0, of an inference; memory (P,) share of the device's
    memory that the point needs, > 0. Raises ConfigError that names the column and the point."""

    names: tuple[str, ...]
    accuracy: NDArray[np.float64]
    energy_j: NDArray[np.float64]
    memory: NDArray[np.float64]

    def __post_init__(self) -> None:
        if not self.names or len(set(self.names)) != len(self.names):
            raise ConfigError(f"points: at least one, each name once; there are {', '.join(self.names) or 'none'}")
        for field in fields(self)[1:]:
            column = np.array(getattr(self, field.name), dtype=np.float64)
            if column.shape != (len(self.names),):
                raise ConfigError(f"points: {field.name} has shape {column.shape}, there are {len(self.names)} names")
            good = np.isfinite(column) & (column > 0)
            if field.name == "accuracy":
                good = (column >= 0) & (column <= 1)
            if not good.all():
                at = int(np.argmin(good))
                raise ConfigError(f"points: {field.name} of {self.names[at]!r} cannot be {column[at]:g}")
            column.flags.writeable = False
            object.__setattr__(self, field.name, column)

    @classmethod
    def of(cls, costs: Costs, memory_bytes: float) -> PointTable:
        """From a table of costs, on a device of so much memory, > 0."""
        memory = np.asarray(costs.resident_bytes) / memory_bytes
        return cls(tuple(costs.names), np.asarray(costs.accuracy), np.asarray(costs.energy_j), memory)

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def _instead(self) -> NDArray[np.intp]:
        """(P, P): for each point what to take instead, best first: itself, then by accuracy those of no more energy,
        then the others by energy."""
        rows = []
        for i in range(len(self)):
            cheaper = self.energy_j <= self.energy_j[i]
            rows.append(
                np.lexsort((np.where(cheaper, -self.accuracy, self.energy_j), ~cheaper, np.arange(len(self)) != i))
            )
        return np.stack(rows)

    def hull(self) -> NDArray[np.intp]:
        """Rows on the upper hull of accuracy over energy, from the cheapest to the most accurate: with a given charge
        nothing is better than one of these all the time, or two that are neighbours."""
        found: list[int] = []
        for i in np.lexsort((-self.accuracy, self.energy_j)).tolist():
            if found and self.accuracy[i] <= self.accuracy[found[-1]]:
                continue
            while len(found) > 1 and self._slope(found[-1], i) >= self._slope(found[-2], found[-1]):
                found.pop()
            found.append(i)
        return np.array(found)

    def _slope(self, low: int, high: int) -> float:
        rise = self.accuracy[high] - self.accuracy[low]
        return float(rise / (self.energy_j[high] - self.energy_j[low]))

    def fitting(self, wanted: NDArray[np.intp], memory_available: NDArray[Any]) -> NDArray[np.intp]:
        """What to take where the points wanted (N,) need more memory than there is, (N,) share, NaN: unknown, enough.

        The most accurate point that fits and takes no more energy, else the cheapest that fits, else the smallest.
        """
        short = self.memory[wanted] > memory_available
        if not short.any():
            return wanted
        order = self._instead[wanted]
        fits = self.memory[order] <= memory_available[:, None]
        instead = np.take_along_axis(order, fits.argmax(1)[:, None], 1)[:, 0]
        return np.where(short, np.where(fits.any(1), instead, int(self.memory.argmin())), wanted)

"""The range of inputs that a network was trained on, and the point to take outside it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from caq.errors import ConfigError, nearest
from policies.points import PointTable

Floats = NDArray[np.float32]


def check_fallback(fallback: str, points: PointTable) -> None:
    """Raises ConfigError unless a point of the table has this name."""
    if fallback not in points.names:
        raise ConfigError(f"fallback: no operating point {fallback!r}{nearest(fallback, points.names)}")


def check_range(low: Floats, high: Floats, inputs: int) -> None:
    """Raises ConfigError unless these are the ends (inputs,) of ranges, finite float32."""
    for name, array in (("low", low), ("high", high)):
        if array.dtype != np.float32 or array.shape != (inputs,) or not np.isfinite(array).all():
            raise ConfigError(f"{name}: ({inputs},) finite float32 are expected")
    if (low > high).any():
        raise ConfigError("low, high: low <= high is expected")


class Fallback:
    """name: of the point to take where an input lies outside of low..high, (inputs,) each, or is NaN; names: of the
    inputs."""

    def __init__(self, name: str, points: PointTable, names: Sequence[str], low: Floats, high: Floats) -> None:
        self.name, self.point = name, points.names.index(name)
        self._names, self._low, self._high = names, low, high
        self._inside: NDArray[np.bool_]
        self._inputs: Floats

    def replace(self, chosen: NDArray[np.intp], inputs: Floats) -> NDArray[np.intp]:
        """The points chosen (N,), in place, or this one where the inputs (N, inputs) lie outside."""
        self._inputs, self._inside = inputs, (inputs >= self._low) & (inputs <= self._high)
        if np.count_nonzero(self._inside) < inputs.size:  # much faster than all()
            chosen[~self._inside.all(1)] = self.point
        return chosen

    def reason(self) -> str | None:
        """Why the last points were replaced, for the first device; None if its was not."""
        if self._inside[0].all():
            return None
        outside = [
            f"{name} {value:.2f} ({low:.2f}..{high:.2f})"
            for name, value, low, high in zip(self._names, self._inputs[0], self._low, self._high, strict=True)
            if not low <= value <= high
        ]
        return f"outside of what it was trained on: {', '.join(outside)}; {self.name} is the fallback"

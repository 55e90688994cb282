"""One device in plain numbers, many in arrays, by the same formulas: numpy's calls on an array of one number take ten
times as long as the work in them.

    xp = kind(devices)
    x = xp.of(column)    # a number where there is one device, else the array (N,)
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Numbers:
    """What formulas need of numpy, for the numbers of one device."""

    exp = staticmethod(math.exp)
    log = staticmethod(math.log)
    log1p = staticmethod(math.log1p)
    sin = staticmethod(math.sin)
    cos = staticmethod(math.cos)
    whole = int

    @staticmethod
    def where(condition: bool, a: Any, b: Any) -> Any:
        return a if condition else b

    @staticmethod
    def clip(x: float, low: float, high: float) -> float:
        return min(max(x, low), high)

    @staticmethod
    def of(column: NDArray[Any]) -> Any:
        """The number in a column (1,)."""
        return column.item()

    @staticmethod
    def table(values: NDArray[Any]) -> Any:
        """Values (M,) to be looked up by `whole` numbers."""
        return values.tolist()


class Arrays:
    """The same for arrays (N,)."""

    exp, log, log1p, sin, cos, where, clip = np.exp, np.log, np.log1p, np.sin, np.cos, np.where, np.clip

    @staticmethod
    def whole(x: NDArray[Any]) -> NDArray[np.intp]:
        return x.astype(np.intp)

    @staticmethod
    def of(column: NDArray[Any]) -> Any:
        return column

    @staticmethod
    def table(values: NDArray[Any]) -> Any:
        return values


def kind(devices: int) -> type[Numbers] | type[Arrays]:
    """What to compute with for so many devices."""
    return Numbers if devices == 1 else Arrays

"""Samples that were calibrated with before their label was known, and wait for it.

The room is bounded: who came first leaves first. A sample whose label came is learnt from in the next step by the rungs
that need labels, and by those alone, and leaves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from caq.calibration.core import UNLABELLED
from caq.errors import StateFormatError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from caq.calibration.state import Arrays


@dataclass(frozen=True, eq=False)
class WaitingRoom:
    """x (N, H, W, C) int8, input codes; y (N,) int16, UNLABELLED until it is known; ids (N,) int64, ascending."""

    x: NDArray[np.int8]
    y: NDArray[np.int16]
    ids: NDArray[np.int64]

    @classmethod
    def empty(cls, shape: tuple[int, ...]) -> WaitingRoom:
        """For samples of that shape."""
        return cls(np.zeros((0, *shape), np.int8), np.zeros(0, np.int16), np.zeros(0, np.int64))

    def __len__(self) -> int:
        return len(self.x)

    def with_samples(self, x: NDArray[np.int8], ids: NDArray[np.int64], size: int) -> WaitingRoom:
        """With samples x (M, H, W, C) that have no label, of which, and of those that wait, the last `size` stay."""
        y = np.concatenate([self.y, np.full(len(x), UNLABELLED, np.int16)])
        stay = slice(max(len(y) - size, 0), None)
        return WaitingRoom(np.concatenate([self.x, x])[stay], y[stay], np.concatenate([self.ids, ids])[stay])

    def with_label(self, sample_id: int, y: int) -> WaitingRoom:
        """With the label of a sample, if it is here."""
        return WaitingRoom(self.x, np.where(self.ids == sample_id, np.int16(y), self.y), self.ids)

    def take(self, known: bool) -> WaitingRoom:
        """Those whose label is known, or those that still wait for one."""
        chosen = (self.y != UNLABELLED) == known
        return WaitingRoom(self.x[chosen], self.y[chosen], self.ids[chosen])

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """For `caq.calibration.state`."""
        return {"x": self.x, "y": self.y, "ids": self.ids}

    @classmethod
    def from_arrays(cls, arrays: Arrays, shape: tuple[int, ...], classes: int) -> WaitingRoom:
        """What `to_arrays` gave. Raises StateFormatError on anything else."""
        try:
            x, y, ids = arrays["x"], arrays["y"], arrays["ids"]
        except KeyError as e:
            raise StateFormatError(f"waiting room: {e} is missing") from None
        if x.dtype != np.int8 or y.dtype != np.int16 or ids.dtype != np.int64 or x.shape != (len(y), *shape):
            raise StateFormatError(f"waiting room: samples of {shape} int8 with labels and ids are expected")
        if ids.shape != y.shape or (np.diff(ids) <= 0).any() or ((y < UNLABELLED) | (y >= classes)).any():
            raise StateFormatError("waiting room: labels or ids are none that it can have")
        return cls(x, y, ids)

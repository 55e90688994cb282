"""An engine whose logits tell at which operating point they were made."""

from __future__ import annotations

from types import MappingProxyType

import numpy as np

from caq.errors import AssignmentError
from caq.graph import Cost
from caq.model import OperatingPoint

NAMES = ("saver", "balanced", "full")


def point(name: str, bit_macs: int = 1) -> OperatingPoint:
    return OperatingPoint(name, (), 0.9, "accuracy", 100, Cost(bit_macs, bit_macs, bit_macs))


class FakeEngine:
    """Three points; the logits of the one at index i are largest at class i."""

    def __init__(self, label_names=("a", "b", "c"), names=NAMES):
        self.points = MappingProxyType({name: point(name, at + 1) for at, name in enumerate(names)})
        self.label_names = tuple(label_names)
        self.point = names[0]
        self.selected = []
        self.trimmed = []

    def select(self, name):
        if name not in self.points:
            raise AssignmentError(name)
        self.selected.append(name)
        self.point = name

    def trim(self):
        self.trimmed.append(self.point)

    def run_at(self, x):
        pinned = self.point
        logits = np.full(len(self.points), -5, dtype=np.int16)
        logits[list(self.points).index(pinned)] = 7
        return (logits if np.ndim(x) == 1 else np.tile(logits, (len(x), 1))), pinned

    def run(self, x):
        return self.run_at(x)[0]

"""Optional sections of a `.caq` file: what calibration on a device needs, and inference does not.

A section is a tensor of bytes behind the planes (caq.artifact), so that who only runs a model reads as much as without.
N samples, W widths of weights, [H, W, C] the shape that the graph eats.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from caq.errors import SchemaError
from caq.graph import Graph

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: In the file's order.
SECTIONS = ("core",)
_LABEL = np.dtype("<i2")


class StoredCore(NamedTuple):
    """Samples of the training data that stand for all of it: caq.calibration.core says which.

    x: (N, H, W, C) int8, input codes; y: (N,) int16, classes; misses: (N, W) uint8, of each width, ascending.
    """

    x: NDArray[np.int8]
    y: NDArray[np.int16]
    misses: NDArray[np.uint8]

    def check(self, graph: Graph, task: str) -> None:
        """Raises SchemaError unless the arrays have their dtypes, fit `graph` and each other, and classes exist."""
        count = len(self.x)
        shapes = {"x": (count, *graph.input_shape), "y": (count,), "misses": (count, len(graph.widths))}
        for (name, shape), dtype in zip(shapes.items(), (np.int8, np.int16, np.uint8), strict=True):
            found = getattr(self, name)
            if found.shape != shape or found.dtype != dtype:
                raise SchemaError(
                    f"core.{name}: {np.dtype(dtype).name} {shape} is expected, not {found.dtype} {found.shape}"
                )
        if task != "classify":
            raise SchemaError(f"core: a model that is to {task} has no classes that a core set could cover")
        if not count:
            raise SchemaError("core: no sample; a model without a core set has none at all")
        classes = math.prod(graph.shapes[-1])
        if self.y.min() < 0 or self.y.max() >= classes:
            raise SchemaError(f"core.y: classes 0 to {classes - 1} are expected, not {self.y.min()} to {self.y.max()}")

    def to_rows(self) -> NDArray[np.uint8]:
        """As the file has it: (N, core_row_bytes), of each sample its class, its misses and its codes."""
        labels = self.y.astype(_LABEL).view(np.uint8).reshape(-1, _LABEL.itemsize)
        return np.concatenate([labels, self.misses, self.x.reshape(len(self.x), -1).view(np.uint8)], axis=1)

    @classmethod
    def from_rows(cls, rows: NDArray[np.uint8], graph: Graph) -> StoredCore:
        """What `to_rows` gave, of (N, core_row_bytes(graph)); not checked."""
        first = _LABEL.itemsize + len(graph.widths)
        y = np.ascontiguousarray(rows[:, : _LABEL.itemsize]).view(_LABEL)[:, 0].astype(np.int16)
        x = np.ascontiguousarray(rows[:, first:]).view(np.int8).reshape(-1, *graph.input_shape)
        return cls(x, y, np.ascontiguousarray(rows[:, _LABEL.itemsize : first]))


def core_row_bytes(graph: Graph) -> int:
    """What a sample of a core set takes in a file."""
    return _LABEL.itemsize + len(graph.widths) + math.prod(graph.input_shape)

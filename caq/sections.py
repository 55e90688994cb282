"""Optional sections of a `.caq` file: what calibration on a device needs, and inference does not.

A section is a tensor of bytes behind the planes (caq.artifact), so that who only runs a model reads as much as without.
N samples, W widths of weights, [H, W, C] the shape that the graph eats, D codes that its last layer reads.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from caq.errors import SchemaError
from caq.graph import Graph
from caq.quant import activation_range

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: In the file's order.
SECTIONS = ("core", "flips", "features")
_LABEL = np.dtype("<i2")
#: What the flip network knows of a weight (caq.calibration.flips.FEATURES); its hidden units at most.
FLIP_FEATURES, MAX_HIDDEN = 8, 256


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


class StoredFlips(NamedTuple):
    """The network that decides on bit flips, and the feedback that it needs: caq.calibration.flips computes with it.

    w1: (W, H, FLIP_FEATURES) int8; b1: (W, H) int16; w2: (W, H) int8; b2: (W,) int16; feedback: (C, K) int8, C channels
    of all layers and K outputs.
    """

    w1: NDArray[np.int8]
    b1: NDArray[np.int16]
    w2: NDArray[np.int8]
    b2: NDArray[np.int16]
    feedback: NDArray[np.int8]

    def check(self, graph: Graph, task: str) -> None:
        """Raises SchemaError unless the arrays have their dtypes, fit `graph` and each other, and there are classes."""
        hidden = self.w2.shape[-1] if self.w2.ndim else 0
        if task != "classify" or not 0 < hidden <= MAX_HIDDEN:
            raise SchemaError(f"flips: classes, and 1 to {MAX_HIDDEN} hidden units, are expected, not {task}, {hidden}")
        for name, (dtype, shape) in _flip_arrays(graph, hidden).items():
            found = getattr(self, name)
            if found.shape != shape or found.dtype != dtype.newbyteorder("="):
                raise SchemaError(f"flips.{name}: {dtype.name} {shape} is expected, not {found.dtype} {found.shape}")

    def to_row(self, graph: Graph) -> NDArray[np.uint8]:
        """As the file has it: (flip_bytes,), the arrays one after the other, little-endian."""
        arrays = _flip_arrays(graph, self.w2.shape[1]).values()
        own: tuple[NDArray[Any], ...] = tuple(self)
        raw = b"".join(found.astype(dtype).tobytes() for (dtype, _), found in zip(arrays, own, strict=True))
        return np.frombuffer(raw, np.uint8)

    @classmethod
    def from_row(cls, row: NDArray[np.uint8], graph: Graph) -> StoredFlips:
        """What `to_row` gave, of a row that `hidden_units` found right."""
        found: list[NDArray[Any]] = []
        start, raw = 0, row.tobytes()
        for dtype, shape in _flip_arrays(graph, hidden_units(len(row), graph)).values():
            count = math.prod(shape)
            array: NDArray[Any] = np.frombuffer(raw, dtype, count, start)
            found.append(array.reshape(shape).astype(dtype.newbyteorder("=")))
            start += count * dtype.itemsize
        return cls(*found)


class StoredFeatures(NamedTuple):
    """What the last layer reads of samples of the training data, with that width everywhere: caq.calibration.head fits
    a classifier to it, where a core set of as many bytes would be far fewer samples.

    codes: (W, N, D) uint8, int8 if they are signed; y: (N,) int16, classes.
    """

    codes: NDArray[np.uint8] | NDArray[np.int8]
    y: NDArray[np.int16]

    def check(self, graph: Graph, task: str) -> None:
        """Raises SchemaError unless the arrays have their dtypes, fit `graph` and each other, and classes exist."""
        count, signed, classes = len(self.y), _reads_signed(graph), math.prod(graph.shapes[-1])
        dtype, shape = np.dtype(np.int8 if signed else np.uint8), (len(graph.widths), count, features_read(graph))
        if self.codes.dtype != dtype or self.codes.shape != shape:
            raise SchemaError(
                f"features.codes: {dtype.name} {shape} is expected, not {self.codes.dtype} {self.codes.shape}"
            )
        if self.y.dtype != np.int16 or self.y.ndim != 1:
            raise SchemaError(f"features.y: int16 (N,) is expected, not {self.y.dtype} {self.y.shape}")
        if task != "classify" or not count:
            raise SchemaError(f"features: classes, and 1 sample or more, are expected, not {task}, {count}")
        if self.y.min() < 0 or self.y.max() >= classes:
            raise SchemaError(
                f"features.y: classes 0 to {classes - 1} are expected, not {self.y.min()} to {self.y.max()}"
            )
        for codes, width in zip(self.codes, _read_widths(graph), strict=True):
            low, high = activation_range(width, signed)
            if codes.min() < low or codes.max() > high:
                raise SchemaError(
                    f"features.codes: {low} to {high} are expected at {width} bits, not {codes.min()} to {codes.max()}"
                )

    def to_rows(self, graph: Graph) -> NDArray[np.uint8]:
        """As the file has it: (N, feature_row_bytes), of each sample its class, then its codes at each width."""
        parts = [self.y.astype(_LABEL).view(np.uint8).reshape(-1, _LABEL.itemsize)]
        for codes, width in zip(self.codes, _read_widths(graph), strict=True):
            bits = codes.view(np.uint8)[..., None] >> np.arange(width, dtype=np.uint8) & 1
            parts.append(np.packbits(bits.reshape(len(bits), -1), axis=1, bitorder="little"))
        return np.concatenate(parts, axis=1)

    @classmethod
    def from_rows(cls, rows: NDArray[np.uint8], graph: Graph) -> StoredFeatures:
        """What `to_rows` gave, of (N, feature_row_bytes(graph)); not checked."""
        start, count, signed = _LABEL.itemsize, features_read(graph), _reads_signed(graph)
        y = np.ascontiguousarray(rows[:, :start]).view(_LABEL)[:, 0].astype(np.int16)
        found: list[NDArray[Any]] = []
        for width in _read_widths(graph):
            end = start + -(-count * width // 8)
            bits = np.unpackbits(rows[:, start:end], axis=1, count=count * width, bitorder="little")
            codes = np.packbits(bits.reshape(len(rows), count, width), axis=2, bitorder="little")[..., 0]
            found.append((codes << (8 - width)).view(np.int8) >> (8 - width) if signed else codes)
            start = end
        return cls(np.stack(found), y)


def _read_widths(graph: Graph) -> list[int]:
    """How many bits the last layer reads, with each width everywhere."""
    return [graph.uniform(width)[-1].activation for width in graph.widths]


def _reads_signed(graph: Graph) -> bool:
    return graph.signed(graph.ops[graph.layers[-1].op].inputs[0])


def features_read(graph: Graph) -> int:
    """How many codes the last layer reads for each of its outputs."""
    return graph.layers[-1].weights // graph.layers[-1].channels


def feature_row_bytes(graph: Graph) -> int:
    """What the features of a sample take in a file."""
    return _LABEL.itemsize + sum(-(-features_read(graph) * width // 8) for width in _read_widths(graph))


def _flip_arrays(graph: Graph, hidden: int) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
    widths, byte, two = len(graph.widths), np.dtype(np.int8), np.dtype("<i2")
    return {
        "w1": (byte, (widths, hidden, FLIP_FEATURES)),
        "b1": (two, (widths, hidden)),
        "w2": (byte, (widths, hidden)),
        "b2": (two, (widths,)),
        "feedback": (byte, (graph.channels, math.prod(graph.shapes[-1]))),
    }


def hidden_units(nbytes: int, graph: Graph) -> int:
    """Hidden units of a flip network of so many bytes. Raises SchemaError if there is none of that size."""
    fixed = graph.channels * math.prod(graph.shapes[-1]) + 2 * len(graph.widths)
    hidden, rest = divmod(nbytes - fixed, len(graph.widths) * (FLIP_FEATURES + 3))
    if rest or not 0 < hidden <= MAX_HIDDEN:
        raise SchemaError(f"flips: {nbytes} bytes are no network of 1 to {MAX_HIDDEN} hidden units for this graph")
    return hidden


def core_row_bytes(graph: Graph) -> int:
    """What a sample of a core set takes in a file."""
    return _LABEL.itemsize + len(graph.widths) + math.prod(graph.input_shape)

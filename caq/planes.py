"""Bit planes with codes of a parameter set's own, over planes that all sets share: a device's state, in no artifact.

flips: (S, n) int8, for each parameter set and each of the n weights of all layers -1, 0 or 1: codes of the width that
the set reads, to be added.

head: (S, m) int8, for each parameter set the codes of the m weights of the last layer, of the width that the set reads
it at. Flips of that layer are added to them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from caq.errors import SchemaError
from caq.graph import Assignment, Graph
from caq.quant import TOP_WIDTH, pack, plane_bytes, unpack

if TYPE_CHECKING:
    from numpy.typing import NDArray


def check_flips(flips: NDArray[np.int8], sets: int, weights: int) -> None:
    """Raises SchemaError unless flips are (sets, weights) int8 of -1, 0 and 1."""
    if flips.dtype != np.int8 or flips.shape != (sets, weights):
        raise SchemaError(f"flips is {flips.dtype} {flips.shape}, the model asks for int8 {(sets, weights)}")
    if ((flips < -1) | (flips > 1)).any():
        raise SchemaError("flips: a code changes by -1, 0 or 1")


def check_head(head: NDArray[np.int8], sets: int, weights: int) -> None:
    """Raises SchemaError unless a head is (sets, weights of the last layer) int8."""
    if head.dtype != np.int8 or head.shape != (sets, weights):
        raise SchemaError(f"head is {head.dtype} {head.shape}, the model asks for int8 {(sets, weights)}")


def own_planes(
    graph: Graph,
    planes: NDArray[np.uint8],
    assignment: Assignment,
    parameter_set: int | None,
    flips: NDArray[np.int8] | None,
    head: NDArray[np.int8] | None,
) -> NDArray[np.uint8]:
    """Planes (w, graph.plane_bytes) in which each layer has, at its width, the codes of its parameter set.

    planes: (>= widest weight width of the assignment, graph.plane_bytes). parameter_set: as of an operating point; None
    for the sets of the layers' widths. Codes with flips are clamped to their range. Bits below a layer's width stay,
    and mean nothing there. The planes themselves if no code is another. Raises SchemaError on a head whose codes are
    none of its width.
    """
    found, start = planes, 0
    if flips is None and head is None:
        return planes
    for layer, pair in zip(graph.layers, assignment, strict=True):
        row = graph.widths.index(pair.weight) if parameter_set is None else parameter_set
        span, width = slice(layer.first_byte, layer.first_byte + plane_bytes(layer.weights)), pair.weight
        limit = 1 << (width - 1)
        change = None if flips is None else flips[row, start : start + layer.weights]
        start += layer.weights
        own = head[row] if head is not None and layer.index == len(graph.layers) - 1 else None
        if own is not None and ((own < -limit) | (own >= limit)).any():
            raise SchemaError(f"layer {layer.name!r}: set {row} of the head has codes of more than {width} bits")
        if own is None and (change is None or not change.any()):
            continue
        codes = unpack(planes[:width, span], layer.weights) if own is None else own
        if change is not None:
            codes = np.clip(codes + change.astype(np.int16), -limit, limit - 1)
        found = planes.copy() if found is planes else found
        found[:width, span] = pack((codes.astype(np.int16) << (TOP_WIDTH - width)).astype(np.int8))[:width]
    return found


def pack_flips(flips: NDArray[np.int8]) -> NDArray[np.uint8]:
    """(2, S, ceil(n / 8)) uint8: where a code goes up, and where it goes down; two bits a weight."""
    return np.stack([np.packbits(flips > 0, axis=1), np.packbits(flips < 0, axis=1)])


def unpack_flips(packed: NDArray[np.uint8], weights: int) -> NDArray[np.int8]:
    """What `pack_flips` gave. Raises SchemaError on a code that is to go up and down."""
    up, down = np.unpackbits(packed, axis=2, count=weights).astype(np.int8)
    if (up & down).any():
        raise SchemaError("flips: a code is to go up and down")
    return up - down

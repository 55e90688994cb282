"""The packed `.caq` file: the same model in fewer bytes, to be sent or stored. This docstring specifies it.

    8 bytes      b"caqpack1", which caq.artifact writes and reads
    4 bytes      little-endian length n of what stands before the bit planes in the `.caq` file
    4 bytes      w, the number of planes
    4 bytes      P, the bytes of a plane
    4 * w bytes  bytes of each plane as it stands here: P if it is not coded
    n bytes      the `.caq` file up to its planes, as they are
    ...          the planes, most significant first
    the rest     what stands behind the planes in the `.caq` file, as it is

Small weights are many, so after the sign the next bits are not evenly spread: planes 1 to 4 may be coded, the others
are as in the file. A coded plane is taken exclusive-or with the sign plane, so that its bits are those of a magnitude;
in blocks of 2**20 codes the bits are ordered by the magnitude's bits before them, stably and from small to large; each
block is filled up with 0 to a whole byte; and all blocks together are one raw DEFLATE stream (RFC 1951). Bits stand in
bytes as in the planes, least significant first.

Nothing here is under a checksum of its own: the `.caq` file that comes out is under its own. It is at most eight times
as long as the packed one, since the sign plane is not coded; that is what a hostile file can make a reader allocate.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from caq.errors import FormatError

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_PLANES = 8
#: Planes that may be coded. What is below them is noise.
CODED = range(1, 5)
#: Bytes of a plane in a block.
BLOCK = 2**17
_HEAD = struct.Struct("<III")


def pack(head: bytes, planes: NDArray[np.uint8], tail: bytes = b"") -> bytes:
    """What follows the first 8 bytes of the packed form of a file: of its `head`, planes (w, P) uint8, and `tail`."""
    rows = [_coded(planes, i) if i in CODED else planes[i].tobytes() for i in range(len(planes))]
    rows = [row if len(row) < planes.shape[1] else plane.tobytes() for row, plane in zip(rows, planes, strict=True)]
    sizes = struct.pack(f"<{len(rows)}I", *map(len, rows))
    return b"".join([_HEAD.pack(len(head), *planes.shape), sizes, head, *rows, tail])


def unpack(data: bytes) -> bytes:
    """The `.caq` file, its content not checked, from what `pack` returns. Raises FormatError on anything else."""
    if len(data) < _HEAD.size:
        raise FormatError("a packed file of fewer bytes than its own header")
    length, count, size = _HEAD.unpack_from(data)
    start = _HEAD.size + 4 * count
    if not 0 < count <= MAX_PLANES or size == 0 or len(data) < start:
        raise FormatError(f"a packed file of {len(data)} bytes cannot hold {count} planes of {size} bytes")
    sizes = struct.unpack_from(f"<{count}I", data, _HEAD.size)
    if start + length + sum(sizes) > len(data):
        raise FormatError(f"{length} bytes and packed planes of {sum(sizes)} do not fit a file of {len(data)}")
    planes = np.empty((count, size), np.uint8)
    position = start + length
    for i, stored in enumerate(sizes):
        row = memoryview(data)[position : position + stored]
        position += stored
        if stored == size:
            planes[i] = np.frombuffer(row, np.uint8)
        elif stored < size and i in CODED:
            _decode(row, planes, i)
        else:
            raise FormatError(f"plane {i}: {stored} bytes, where {size} are due")
    return data[start : start + length] + planes.tobytes() + data[position:]


def _coded(planes: NDArray[np.uint8], i: int) -> bytes:
    """Plane i as a DEFLATE stream."""
    # Bits in the order of their contexts have no strings to find: Huffman's code alone is as short, and faster.
    deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, 9, zlib.Z_HUFFMAN_ONLY)
    parts = []
    for block, contexts in _blocks(planes, i):
        bits = np.unpackbits(planes[i, block] ^ planes[0, block], bitorder="little")
        ordered = np.concatenate([bits[chosen] for chosen in contexts])
        parts.append(deflate.compress(np.packbits(ordered, bitorder="little").tobytes()))
    return b"".join([*parts, deflate.flush()])


def _decode(row: memoryview, planes: NDArray[np.uint8], i: int) -> None:
    """Writes plane i from its DEFLATE stream."""
    size = planes.shape[1]
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        raw = inflate.decompress(row, size + 1)
    except zlib.error as e:
        raise FormatError(f"plane {i}: {e}") from None
    if len(raw) != size or not inflate.eof or inflate.unused_data:
        raise FormatError(f"plane {i}: what is coded is not one stream of {size} bytes")
    for block, contexts in _blocks(planes, i):
        coded = np.frombuffer(raw, np.uint8)[block]
        ordered = np.unpackbits(coded, bitorder="little")
        bits = np.empty_like(ordered)
        start = 0
        for chosen in contexts:
            end = start + np.count_nonzero(chosen)
            bits[chosen] = ordered[start:end]
            start = end
        planes[i, block] = np.packbits(bits, bitorder="little") ^ planes[0, block]


def _blocks(planes: NDArray[np.uint8], i: int) -> Iterator[tuple[slice, list[NDArray[np.bool_]]]]:
    """Blocks of plane i, and in each where the magnitude's bits in the planes before i are 0, 1, 2, ... as a number."""
    for start in range(0, planes.shape[1], BLOCK):
        block = slice(start, start + BLOCK)
        before = np.zeros(8 * planes[0, block].size, np.uint8)
        for plane in planes[1:i, block]:
            before = 2 * before + np.unpackbits(plane ^ planes[0, block], bitorder="little")
        yield block, [before == value for value in range(2 ** (i - 1))]

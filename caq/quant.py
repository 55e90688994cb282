"""Nested weight codes and fixed-point requantization: the integer contract that training, reference and kernels share.

Nested codes
    A weight is stored once, as an 8-bit code q in [-128, 127] with one scale per output channel. The model of width b
    reads the top b bits, `q >> (8 - b)`; no lower bit can carry into them, so lower bit planes need not be read.
    What a layer multiplies with (its *multiplicand*) is the middle of the interval that the remaining bits span:

        width 8     m = q                          one unit is  scale
        width b < 8 m = 2 * (q >> (8 - b)) + 1     one unit is  scale * 2**(7 - b)

    Every multiplicand fits int8. At width 8 the odd number would not, and the plain code, rounded to nearest,
    has no bias to correct (docs/adr/0001-nested-codes.md has the measurements).

Bit planes
    A layer's codes, flattened in the order (output channel, row, column, input channel), become 8 planes, most
    significant (sign) first. Bit i of byte j of a plane belongs to code 8 * j + i; the last byte is filled with zeros.

Requantization
    Accumulators (int32) become codes (8 bits, or 16 for the network's output) by 32-bit integer arithmetic only:

        t = saturate_int16((accumulator + bias) >> pre_shift)
        y = clamp((t * multiplier + offset) >> post_shift, low, high)

    with arithmetic shifts and |multiplier| < 2**15. `fixed_point` derives the five integers from a real scale and a
    real bias in double precision, by single IEEE operations, so that every machine derives the same ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from caq.errors import AssignmentError, SchemaError
from caq.record import NamedTuple

if TYPE_CHECKING:
    from numpy.typing import NDArray

TOP_WIDTH = 8
MIN_WIDTH = 2
#: Largest accumulator magnitude that may occur: half of int32, so that adding a bias of the same size cannot overflow.
ACCUMULATOR_LIMIT = 2**30


def check_widths(widths: tuple[int, ...]) -> tuple[int, ...]:
    """Returns `widths` sorted. Raises AssignmentError unless they are distinct integers of 2..8."""
    good = all(isinstance(w, int | np.integer) and MIN_WIDTH <= w <= TOP_WIDTH for w in widths)
    if not widths or not good or len(set(widths)) != len(widths):
        raise AssignmentError(f"widths {widths}: give distinct bit widths from {MIN_WIDTH} to {TOP_WIDTH}")
    return tuple(sorted(widths))


def activation_range(width: int, signed: bool) -> tuple[int, int]:
    """Lowest and highest activation code of a width: [0, 2**w - 1], or [-2**(w-1), 2**(w-1) - 1] when signed."""
    return (-(1 << (width - 1)), (1 << (width - 1)) - 1) if signed else (0, (1 << width) - 1)


def multiplicand_limit(width: int) -> int:
    """Largest magnitude of a multiplicand at this width."""
    return 1 << (TOP_WIDTH - 1) if width == TOP_WIDTH else (1 << width) - 1


def multiplicands(codes: NDArray[np.int8], width: int) -> NDArray[np.int8]:
    """What a layer multiplies with at `width`, from the `width`-bit codes (int8, any shape) that `unpack` returns."""
    return codes if width == TOP_WIDTH else (2 * codes + 1).astype(np.int8)


def multiplicand_unit(width: int) -> float:
    """The real value of one multiplicand unit, in units of the weight scale."""
    return 1.0 if width == TOP_WIDTH else 2.0 ** (TOP_WIDTH - 1 - width)


def plane_bytes(count: int) -> int:
    """Bytes of one bit plane of `count` codes."""
    return -(-count // 8)


def pack(codes: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Packs 8-bit codes (n,) int8 into bit planes (8, ceil(n / 8)) uint8, most significant first.

    Raises SchemaError on another dtype, whose bytes would be packed as if they were codes.
    """
    if codes.dtype != np.int8:
        raise SchemaError(f"codes are int8, not {codes.dtype}")
    bits = np.unpackbits(codes.reshape(-1, 1).view(np.uint8), axis=1)
    return np.packbits(bits.T, axis=1, bitorder="little")


def unpack(planes: NDArray[np.uint8], count: int) -> NDArray[np.int8]:
    """Reads the top `len(planes)` bits of `count` codes: planes (w, ceil(count / 8)) uint8 -> codes (count,) int8."""
    width = len(planes)
    bits = np.unpackbits(planes, axis=1, count=count, bitorder="little")
    top = np.zeros(count, np.uint8)
    for i, plane in enumerate(bits):
        top |= plane << (TOP_WIDTH - 1 - i)
    return top.view(np.int8) >> (TOP_WIDTH - width)


class FixedPoint(NamedTuple):
    """The five integers of a requantization, one each per channel; see the module's docstring.

    bias, offset: (C,) int32; multiplier: (C,) int16; pre_shift: (C,) 0..31 and post_shift: (C,) 0..30, uint8.
    """

    bias: NDArray[np.int32]
    pre_shift: NDArray[np.uint8]
    multiplier: NDArray[np.int16]
    offset: NDArray[np.int32]
    post_shift: NDArray[np.uint8]


def fixed_point(
    scale: NDArray[np.float64], bias: NDArray[np.float64], accumulator_limit: int, output_bits: int = 8
) -> FixedPoint:
    """Derives the integers that compute `round(accumulator * scale + bias)`.

    scale, bias: (C,) float64, in output codes per accumulator unit and in output codes; a scale of 0 gives a constant.
    accumulator_limit: largest magnitude of the accumulator. output_bits: 8, or 16 for the network's output.
    Raises SchemaError when the accumulator could overflow, or a value is not finite or far outside any sensible range,
    or a bias and the accumulators that cancel it are both far outside the output's range.
    """
    if accumulator_limit > ACCUMULATOR_LIMIT:
        raise SchemaError(f"accumulators up to {accumulator_limit} do not fit: at most {ACCUMULATOR_LIMIT}")
    if not (np.isfinite(scale).all() and np.isfinite(bias).all()):
        raise SchemaError("requantization scale or bias is not finite")
    if (np.abs(scale) >= 2**14).any() or (np.abs(bias) > 2**24).any():
        raise SchemaError("requantization scale or bias is out of range: |scale| < 2**14, |bias| <= 2**24")
    # |scale| = mantissa * 2**-total, with a mantissa of 15 bits.
    fraction, exponent = np.frexp(np.abs(scale))
    mantissa = np.floor(fraction * 2**15 + 0.5)
    carry = mantissa == 2**15
    mantissa = np.where(carry, 2**14, mantissa)
    total = 15 - exponent - carry

    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        shifted = np.where(scale == 0, 0.0, bias / scale)
    # A channel whose scale is so small that its bias leaves the accumulator's range gets the bias after the multiply;
    # one whose scale is smaller than the shifts reach moves the output by less than a rounding, so it gets no scale.
    widest = 20 if output_bits == 8 else 14
    vanishing = (scale == 0) | (total > 31 + widest)
    late = vanishing | (np.abs(shifted) >= 2**31 - 1 - accumulator_limit)
    early = np.where(late, 0.0, np.floor(shifted))
    remainder = np.where(late, 0.0, shifted - early)

    # Where the accumulator fits int16 anyway, t never saturates. Elsewhere 15 bits of t span at least the output's
    # range, so that a t that saturates is an output that is clamped.
    narrow = ~late & (accumulator_limit + np.abs(early) < 2**15)
    post = np.where(late, widest, np.minimum(total, np.where(narrow, 30, widest)))
    pre = np.where(vanishing, 0, total - post)
    mantissa = np.where(vanishing, 0.0, np.where(narrow, np.floor(mantissa / 2.0**pre), mantissa))
    pre = np.where(narrow, 0, pre)
    multiplier = np.copysign(mantissa, scale)

    # `>> pre_shift` rounds down: add back the mean of what it drops, and the fraction that `early` dropped.
    dropped = np.ldexp(remainder, -pre) + (1.0 - np.ldexp(1.0, -pre)) / 2
    # The product takes half of int32; the other half holds the late bias, `half` and what `dropped` adds. A bias beyond
    # that leaves the output clamped whatever the accumulator is, so its channel is a constant.
    limit = 2.0**30 - 2.0**20
    constant = np.where(late, np.ldexp(bias, post), 0.0)
    beyond = np.abs(constant) > limit
    if (beyond & (np.abs(bias) - accumulator_limit * np.abs(scale) < (256 if output_bits == 8 else 2**15))).any():
        raise SchemaError("a requantization bias and the accumulators that cancel it are both out of range")
    multiplier = np.where(beyond, 0.0, multiplier)
    constant = np.clip(constant, -limit, limit)
    half = np.where(post > 0, np.ldexp(1.0, post - 1), 0.0)
    offset = half + np.floor(multiplier * dropped + constant + 0.5)
    return FixedPoint(
        early.astype(np.int32),
        pre.astype(np.uint8),
        multiplier.astype(np.int16),
        offset.astype(np.int32),
        post.astype(np.uint8),
    )


def requantize(accumulator: NDArray[np.int32], f: FixedPoint, low: int, high: int) -> NDArray[np.int32]:
    """Applies `f` along the last axis of `accumulator` (..., C) int32 and clamps to [low, high]; returns int32."""
    t = np.clip((accumulator + f.bias) >> f.pre_shift.astype(np.int32), -(2**15), 2**15 - 1)
    y = (t * f.multiplier.astype(np.int32) + f.offset) >> f.post_shift.astype(np.int32)
    return np.clip(y, low, high)

"""Every kernel in numpy: the definition of right, for all engines.

Activations are (N, H, W, C) int32 arrays that hold 8-bit codes. Sums are exact: a product of matrices runs in float32
or float64 only where every partial sum is an integer that the type represents, so the order of summation is free.
"""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Codes = NDArray[np.int32]
Pair = tuple[int, int]


def windows(x: Codes, kernel: Pair, stride: Pair, dilation: Pair) -> Codes:
    """Views x (N, H, W, C) as windows (N, H', W', C, rows, columns) without a copy."""
    extent = ((kernel[0] - 1) * dilation[0] + 1, (kernel[1] - 1) * dilation[1] + 1)
    view = sliding_window_view(x, extent, axis=(1, 2))
    return view[:, :: stride[0], :: stride[1], :, :: dilation[0], :: dilation[1]]


def pad(x: Codes, padding: tuple[int, int, int, int], value: int = 0) -> Codes:
    """Pads height and width by (top, bottom, left, right)."""
    top, bottom, left, right = padding
    return np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=value) if any(padding) else x


def conv_accumulate(
    x: Codes,
    m: NDArray[np.int8],
    stride: Pair,
    padding: tuple[int, int, int, int],
    dilation: Pair,
    groups: int,
    limit: int,
) -> Codes:
    """Accumulators (N, H', W', O) of x (N, H, W, C) with multiplicands m (O, rows, columns, C / groups).

    limit: a bound on the magnitude of any partial sum.
    """
    exact = np.float32 if limit < 2**24 else np.float64
    view = windows(pad(x, padding), m.shape[1:3], stride, dilation)
    n, h, w = view.shape[:3]
    out_channels, rows, columns, per_group = m.shape
    if per_group == 1 and groups == x.shape[3]:
        taps = m.reshape(groups, out_channels // groups, rows, columns).astype(np.int32)
        total = np.zeros((n, h, w, groups, out_channels // groups), np.int32)
        for i in range(rows):
            for j in range(columns):
                total += view[..., i, j, None] * taps[:, :, i, j]
        return total.reshape(n, h, w, out_channels)
    parts = []
    for g in range(groups):
        chunk = view[:, :, :, g * per_group : (g + 1) * per_group]
        a = chunk.transpose(0, 1, 2, 4, 5, 3).reshape(n * h * w, rows * columns * per_group).astype(exact)
        b = m[g * (out_channels // groups) : (g + 1) * (out_channels // groups)].reshape(-1, a.shape[1]).astype(exact)
        parts.append((a @ b.T).astype(np.int32))
    return np.concatenate(parts, axis=1).reshape(n, h, w, out_channels)


def add(inputs: list[Codes], multipliers: tuple[int, ...], offset: int, shift: int, low: int, high: int) -> Codes:
    """clamp((sum of x_i * multiplier_i + offset) >> shift)."""
    total = sum((x * np.int32(k) for x, k in zip(inputs, multipliers, strict=True)), np.int32(offset))
    return np.clip(total >> np.int32(shift), low, high)


def max_pool(x: Codes, kernel: Pair, stride: Pair, padding: tuple[int, int, int, int], dilation: Pair) -> Codes:
    """Largest code of each window; padding never wins."""
    return windows(pad(x, padding, value=-(2**31)), kernel, stride, dilation).max(axis=(4, 5))


def sum_pool(x: Codes, kernel: Pair, stride: Pair, padding: tuple[int, int, int, int], dilation: Pair) -> Codes:
    """Sum of each window; an average pool is this and a requantization."""
    return windows(pad(x, padding), kernel, stride, dilation).sum(axis=(4, 5), dtype=np.int32)


def reshape(x: Codes, shape: tuple[int, int, int]) -> Codes:
    """Reshapes (N, H, W, C) to (N, *shape) in channels-first order."""
    h, w, c = shape
    return x.transpose(0, 3, 1, 2).reshape(len(x), c, h, w).transpose(0, 2, 3, 1)


#: 2**-f for f of 0..1 is about 1 + f (a + f (b + f c)): within 8e-5, and exact at both ends.
SOFTMAX_POLYNOMIAL = (-742647152, 248266870, -42490630)  # in units of 2**-30


def softmax_factor(step: float) -> int:
    """What `softmax` takes for output codes of `step`: log2(e) * step in units of 2**-32, at most 2**46."""
    return int(min(np.floor(step * np.log2(np.e) * 2.0**32 + 0.5), 2.0**46))


def softmax(codes: NDArray[np.int16], factor: int) -> NDArray[np.uint16]:
    """Probabilities (N, C) of output codes (N, C), in units of 1/65535; by integers, so the same on every CPU.

    e_i = 2**-((largest - code_i) * factor * 2**-32) by a cubic polynomial, then e_i / sum(e), rounded. Within 2e-4 of
    the softmax in real numbers.
    """
    below = codes.max(axis=1, keepdims=True).astype(np.int64) - codes
    exponent = below * factor >> 16
    whole, f = exponent >> 16, exponent & 0xFFFF
    a, b, c = SOFTMAX_POLYNOMIAL
    power = 2**30 + ((a + ((b + ((c * f) >> 16)) * f >> 16)) * f >> 16)
    power = np.where(whole < 31, power >> np.minimum(whole, 31), 0)
    total = power.sum(axis=1, keepdims=True)
    return ((power * 65535 + total // 2) // total).astype(np.uint16)

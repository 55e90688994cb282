"""The reference kernels against loops over single codes, in Python's integers."""

from __future__ import annotations

import itertools
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caq.kernels import reference

EXAMPLES = 4000 if os.environ.get("CAQ_SOAK") else 120


@st.composite
def problems(draw, channels):
    """Codes (N, H, W, C) and a window that fits at least once."""
    kernel = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    stride = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    dilation = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    padding = draw(st.tuples(*[st.integers(0, 3)] * 4))
    least = [
        max(1, (kernel[0] - 1) * dilation[0] + 1 - padding[0] - padding[1]),
        max(1, (kernel[1] - 1) * dilation[1] + 1 - padding[2] - padding[3]),
    ]
    shape = (
        draw(st.integers(1, 2)),
        least[0] + draw(st.integers(0, 3)),
        least[1] + draw(st.integers(0, 3)),
        draw(channels),
    )
    low, high = draw(st.sampled_from([(-128, 127), (0, 255), (0, 3), (-2, 1)]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    x = rng.choice([low, high], shape) if draw(st.booleans()) else rng.integers(low, high + 1, shape)
    return x.astype(np.int32), kernel, stride, padding, dilation, rng


def output_size(x, kernel, stride, padding, dilation):
    h, w = x.shape[1] + padding[0] + padding[1], x.shape[2] + padding[2] + padding[3]
    return [(n - (k - 1) * d - 1) // s + 1 for n, k, s, d in zip((h, w), kernel, stride, dilation, strict=True)]


def taps(x, n, i, j, c, kernel, stride, padding, dilation):
    """(row, column of the kernel, code) of one window; None for padding."""
    for a, b in itertools.product(range(kernel[0]), range(kernel[1])):
        y, z = i * stride[0] + a * dilation[0] - padding[0], j * stride[1] + b * dilation[1] - padding[2]
        inside = 0 <= y < x.shape[1] and 0 <= z < x.shape[2]
        yield a, b, int(x[n, y, z, c]) if inside else None


@pytest.mark.soak
@settings(max_examples=EXAMPLES, deadline=None)
@given(st.data(), st.integers(1, 3), st.integers(1, 3), st.integers(1, 2), st.booleans())
def test_convolution(data, groups, per_group, outputs, double):
    x, kernel, stride, padding, dilation, rng = data.draw(problems(st.just(groups * per_group)))
    m = rng.integers(-128, 128, (groups * outputs, *kernel, per_group)).astype(np.int8)
    if rng.integers(2):
        m[:] = -128
    # Either type of float must give the same integers.
    limit = 2**24 if double else int(np.abs(m.astype(int)).sum(axis=(1, 2, 3)).max()) * 255
    got = reference.conv_accumulate(x, m, stride, padding, dilation, groups, limit)
    size = output_size(x, kernel, stride, padding, dilation)
    assert got.shape == (len(x), *size, groups * outputs) and got.dtype == np.int32
    for n, i, j, o in np.ndindex(*got.shape):
        total = 0
        for c in range(per_group):
            source = o // outputs * per_group + c
            for a, b, code in taps(x, n, i, j, source, kernel, stride, padding, dilation):
                total += (code or 0) * int(m[o, a, b, c])
        assert got[n, i, j, o] == total


def test_sums_beyond_float32_are_exact():
    x = np.full((1, 1, 1, 2001), 255, np.int32)
    x[..., -1] = 1
    m = np.full((1, 1, 1, 2001), 127, np.int8)
    m[..., -1] = 1
    limit = 255 * 127 * 2000 + 255
    got = reference.conv_accumulate(x, m, (1, 1), (0, 0, 0, 0), (1, 1), 1, limit)
    assert got.tolist() == [[[[255 * 127 * 2000 + 1]]]]


@pytest.mark.soak
@settings(max_examples=EXAMPLES, deadline=None)
@given(problems(st.integers(1, 4)))
def test_pools(problem):
    x, kernel, stride, padding, dilation, _ = problem
    largest = reference.max_pool(x, kernel, stride, padding, dilation)
    total = reference.sum_pool(x, kernel, stride, padding, dilation)
    size = output_size(x, kernel, stride, padding, dilation)
    assert largest.shape == total.shape == (len(x), *size, x.shape[3])
    assert largest.dtype == total.dtype == np.int32
    for n, i, j, c in np.ndindex(*total.shape):
        inside = [code for _, _, code in taps(x, n, i, j, c, kernel, stride, padding, dilation) if code is not None]
        assert total[n, i, j, c] == sum(inside)
        # A window of padding only cannot occur: the graph refuses it.
        if inside:
            assert largest[n, i, j, c] == max(inside)


@pytest.mark.soak
@settings(max_examples=EXAMPLES, deadline=None)
@given(st.integers(2, 8), st.integers(1, 30), st.integers(0, 2**32 - 1))
def test_add(count, shift, seed):
    rng = np.random.default_rng(seed)
    inputs = [rng.integers(-128, 256, (2, 2, 1, 3)).astype(np.int32) for _ in range(count)]
    multipliers = tuple(int(v) for v in rng.integers(0, 2**15, count))
    offset = 1 << (shift - 1)
    got = reference.add(inputs, multipliers, offset, shift, -100, 200)
    assert got.dtype == np.int32
    for at in np.ndindex(2, 2, 1, 3):
        total = sum(int(x[at]) * k for x, k in zip(inputs, multipliers, strict=True)) + offset
        assert got[at] == min(max(total >> shift, -100), 200)


@given(st.permutations([2, 3, 4]), st.permutations([2, 3, 4]))
def test_reshape_counts_channels_first(before, after):
    h, w, c = before
    x = np.arange(2 * h * w * c, dtype=np.int32).reshape(2, h, w, c)
    got = reference.reshape(x, tuple(after))
    assert got.shape == (2, *after)
    for n in range(2):
        flat = [int(x[n, i, j, k]) for k in range(c) for i in range(h) for j in range(w)]
        again = [int(got[n, i, j, k]) for k in range(after[2]) for i in range(after[0]) for j in range(after[1])]
        assert flat == again

"""Codes, bit planes and requantization against bit strings, integers and fractions of Python."""

from __future__ import annotations

import math
import os
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from caq.errors import AssignmentError, SchemaError
from caq.quant import (
    ACCUMULATOR_LIMIT,
    FixedPoint,
    activation_range,
    check_widths,
    fixed_point,
    multiplicand_limit,
    multiplicand_unit,
    multiplicands,
    pack,
    plane_bytes,
    requantize,
    unpack,
)

MANY = 20 if os.environ.get("CAQ_SOAK") else 1
WIDTHS = st.integers(2, 8)
CODES = hnp.arrays(np.int8, st.integers(1, 70), elements=st.integers(-128, 127))
EVERY_CODE = np.arange(-128, 128).astype(np.int8)


@given(CODES, WIDTHS)
def test_the_top_planes_are_the_narrower_model(codes, width):
    planes = pack(codes)
    assert planes.dtype == np.uint8 and planes.shape == (8, plane_bytes(len(codes)))
    np.testing.assert_array_equal(unpack(planes, len(codes)), codes)
    top = unpack(planes[:width], len(codes))
    assert top.dtype == np.int8
    assert top.tolist() == [c >> (8 - width) for c in codes.tolist()]


@given(CODES)
def test_plane_layout_bit_by_bit(codes):
    planes = pack(codes)
    for p in range(8):
        for j in range(planes.shape[1]):
            for i in range(8):
                n = 8 * j + i
                wanted = (int(codes[n]) & 0xFF) >> (7 - p) & 1 if n < len(codes) else 0
                assert planes[p, j] >> i & 1 == wanted


def test_plane_layout_golden():
    codes = np.array([-128, 127, 0, -1, 1, 2, 64, -64, 85, -86], np.int8)
    assert pack(codes).tobytes().hex(" ", 2) == "8902 ca01 0a02 0a01 0a02 0a01 2a02 1a01"


@pytest.mark.parametrize("width", range(2, 9))
def test_multiplicands_are_midpoints(width):
    m = multiplicands(unpack(pack(EVERY_CODE)[:width], 256), width)
    assert m.dtype == np.int8
    assert int(np.abs(m.astype(int)).max()) == multiplicand_limit(width)
    unit = Fraction(multiplicand_unit(width))
    for code, value in zip(EVERY_CODE.tolist(), m.tolist(), strict=True):
        span = 1 << (8 - width)
        # Codes that share the top bits cover [low, low + span); at width 8 the code itself is kept.
        low = code // span * span
        assert value * unit == (code if width == 8 else low + Fraction(span, 2))


def test_activation_ranges():
    assert [activation_range(w, True) for w in (2, 4, 8)] == [(-2, 1), (-8, 7), (-128, 127)]
    assert [activation_range(w, False) for w in (2, 4, 8)] == [(0, 3), (0, 15), (0, 255)]


def test_check_widths():
    assert check_widths((8, 2, 4)) == (2, 4, 8)
    for bad in ((), (1,), (9,), (2, 2), (2.5,), ("4",), (-4,)):
        with pytest.raises(AssignmentError, match="widths"):
            check_widths(bad)


def test_pack_refuses_what_are_no_codes():
    with pytest.raises(SchemaError, match="int16"):
        pack(np.zeros(4, np.int16))


def requantize_exactly(accumulator: int, f: FixedPoint, channel: int, low: int, high: int) -> int:
    """The module's formula in Python's integers, refusing any step that leaves int32."""

    def int32(value: int) -> int:
        assert -(2**31) <= value < 2**31, value
        return value

    pre, multiplier, offset, post = (int(a[channel]) for a in (f.pre_shift, f.multiplier, f.offset, f.post_shift))
    assert 0 <= pre <= 31 and 0 <= post <= 30 and abs(multiplier) < 2**15
    t = min(max(int32(accumulator + int(f.bias[channel])) >> pre, -(2**15)), 2**15 - 1)
    return min(max(int32(int32(t * multiplier) + offset) >> post, low), high)


def accumulators(limit: int, seed: int, around: int) -> list[int]:
    """The ends, random ones, and those around where the output is 0."""
    rng = np.random.default_rng(seed)
    near = np.clip(around + rng.integers(-3000, 3001, 40), -limit, limit)
    return [
        -limit,
        1 - limit,
        -1,
        0,
        1,
        limit - 1,
        limit,
        *near.tolist(),
        *rng.integers(-limit, limit + 1, 40).tolist(),
    ]


SCALES = st.builds(
    lambda m, e, s: s * math.ldexp(m, e),
    st.floats(0.5, 1, exclude_max=True),
    st.integers(-60, -1),
    st.sampled_from([-1, 1]),
)
LIMITS = st.one_of(st.integers(1, 2**15), st.integers(1, 2**29))


@pytest.mark.soak
@settings(max_examples=300 * MANY, deadline=None)
@given(SCALES, st.floats(-400, 400), LIMITS, st.sampled_from([(-128, 127), (0, 255), (-100, 7)]), st.integers(0, 99))
@example(2.0**-21, 300.0, 2**29, (0, 255), 0)
@example(2.0**-52, 100.5, 2**29, (0, 255), 0)
def test_8_bit_requantization_is_exact_rounding(scale, bias, limit, bounds, seed):
    check_against_fractions(scale, bias, limit, bounds, 8, Fraction(52, 100), seed)


@pytest.mark.soak
@settings(max_examples=300 * MANY, deadline=None)
@given(SCALES, st.floats(-30000, 30000), LIMITS, st.integers(0, 99))
@example(2.0**-31, 0.0, 2**29, 0)
def test_16_bit_requantization(scale, bias, limit, seed):
    check_against_fractions(scale, bias, limit, (-(2**15), 2**15 - 1), 16, Fraction(2), seed)


def check_against_fractions(scale, bias, limit, bounds, bits, tolerance, seed):
    f = fixed_point(np.array([scale]), np.array([bias]), limit, bits)
    values = accumulators(limit, seed, int(min(max(-bias / scale, -limit), limit)))
    got = requantize(np.array(values, np.int32)[:, None], f, *bounds)[:, 0]
    assert got.dtype == np.int32
    low, high = bounds
    for a, y in zip(values, got.tolist(), strict=True):
        assert y == requantize_exactly(a, f, 0, low, high)
        true = min(max(a * Fraction(scale) + Fraction(bias), low), high)
        assert abs(y - true) <= tolerance, (a, y, float(true))


@pytest.mark.soak
@settings(max_examples=400 * MANY, deadline=None)
@given(
    st.floats(-(2.0**14), 2.0**14, exclude_min=True, exclude_max=True),
    st.integers(-80, 0),
    st.floats(-(2.0**24), 2.0**24),
    st.integers(1, ACCUMULATOR_LIMIT),
    st.sampled_from([8, 16]),
)
@example(32767.0, -35, 1023.9, ACCUMULATOR_LIMIT, 8)
@example(1023.9, -30, 1023.9, ACCUMULATOR_LIMIT, 8)
@example(-1023.9, -30, -1023.9, ACCUMULATOR_LIMIT, 8)
@example(-32767.0 / 4, -33, -1000.0, ACCUMULATOR_LIMIT, 8)
@example(16383.999, 0, 2.0**24, ACCUMULATOR_LIMIT, 8)
@example(1.0, 0, -(2.0**24), ACCUMULATOR_LIMIT, 16)
@example(1.0, -46, 65471.0, ACCUMULATOR_LIMIT, 16)
def test_no_step_leaves_int32(mantissa, exponent, bias, limit, bits):
    scale = math.ldexp(mantissa, exponent)
    try:
        f = fixed_point(np.array([scale]), np.array([bias]), limit, bits)
    except SchemaError:
        # The only refusal of values in range: a bias that only the largest accumulators could cancel.
        assert abs(bias) > 1000 and abs(bias) - limit * abs(scale) < 2**15
        return
    low, high = (-128, 255) if bits == 8 else (-(2**15), 2**15 - 1)
    values = accumulators(limit, 1, 0)
    got = requantize(np.array(values, np.int32)[:, None], f, low, high)[:, 0].tolist()
    assert got == [requantize_exactly(a, f, 0, low, high) for a in values]
    # Far outside the output's range the output is clamped, whatever happens inside.
    tolerance = 0 if bits == 8 else 2
    for a, y in zip(values, got, strict=True):
        true = a * Fraction(scale) + Fraction(bias)
        if true > high * 1.1 + 2:
            assert high - y <= tolerance
        if true < low * 1.1 - 2:
            assert y - low <= tolerance


@pytest.mark.parametrize("bits", [8, 16])
def test_a_scale_of_zero_gives_a_constant(bits):
    bias = np.array([0.0, 2.4, -7.6, 1000.0, -5000.0, 2.0**24])
    f = fixed_point(np.zeros(6), bias, ACCUMULATOR_LIMIT, bits)
    assert f.pre_shift.max() <= 31 and f.post_shift.max() <= 30  # a kernel in C may not shift by more
    low, high = (-128, 127) if bits == 8 else (-(2**15), 2**15 - 1)
    for a in (-ACCUMULATOR_LIMIT, 0, ACCUMULATOR_LIMIT):
        y = requantize(np.full((1, 6), a, np.int32), f, low, high)[0]
        assert y.tolist() == [min(max(math.floor(b + 0.5), low), high) for b in bias]


@pytest.mark.parametrize("scale", [5e-324, -5e-324, 1e-310, 2.0**-1022])
def test_denormal_scales_give_the_bias(scale):
    f = fixed_point(np.full(2, scale), np.array([0.0, 20.3]), ACCUMULATOR_LIMIT)
    assert requantize(np.full((1, 2), 2**30, np.int32), f, -128, 127).tolist() == [[0, 20]]


def test_a_bias_beyond_the_output_clamps_where_nothing_cancels_it():
    f = fixed_point(np.array([2.0**-20, -(2.0**-20)]), np.array([1e6, -1e6]), 2**26)
    for a in (-(2**26), 0, 2**26):
        assert requantize(np.full((1, 2), a, np.int32), f, -128, 127).tolist() == [[127, -128]]


@pytest.mark.parametrize(
    ("scale", "bias", "limit", "message"),
    [
        (math.nan, 0.0, 1, "not finite"),
        (math.inf, 0.0, 1, "not finite"),
        (1.0, math.nan, 1, "not finite"),
        (1.0, -math.inf, 1, "not finite"),
        (2.0**14, 0.0, 1, "out of range"),
        (-(2.0**14), 0.0, 1, "out of range"),
        (1.0, 2.0**24 + 2, 1, "out of range"),
        (1.0, 0.0, ACCUMULATOR_LIMIT + 1, "do not fit"),
        (2.0**-20, -1025.0, ACCUMULATOR_LIMIT, "cancel"),
    ],
)
def test_what_has_no_fixed_point(scale, bias, limit, message):
    with pytest.raises(SchemaError, match=message):
        fixed_point(np.array([scale]), np.array([bias]), limit)


def test_channels_are_independent():
    scales = np.array([0.5, 2.0**-30, 0.0, -0.01, 100.0])
    bias = np.array([1.0, 300.0, -3.0, 40.0, 0.2])
    whole = fixed_point(scales, bias, 2**20)
    for i in range(5):
        one = fixed_point(scales[i : i + 1], bias[i : i + 1], 2**20)
        for name in ("bias", "pre_shift", "multiplier", "offset", "post_shift"):
            assert getattr(one, name)[0] == getattr(whole, name)[i]
            assert getattr(one, name).dtype == getattr(whole, name).dtype

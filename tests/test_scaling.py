import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from caq.data import load
from caq.errors import DataError, SchemaError
from caq.scaling import RAW_RANGES, InputScaling, Moments

ONE = np.ones(1, np.float32)
SHAPES = hnp.array_shapes(min_dims=2, max_dims=3, min_side=1, max_side=6)


def samples(dtype):
    limits = {"allow_nan": False, "allow_infinity": False} if dtype == "float32" else {}
    return hnp.arrays(dtype, SHAPES, elements=hnp.from_dtype(np.dtype(dtype), **limits))


def exact_raw16(x, resolution):
    """The raw16 of one scalar, by rational arithmetic alone."""
    if not isinstance(x, float):
        return x
    # The contract takes the product in float64 and only then adds the half, also in float64.
    scaled = math.floor(np.float64(x) * np.float64(resolution) + 0.5)
    return min(max(scaled, -32768), 32767)


def check_against_rationals(x, scaling):
    codes = scaling.encode(x)
    assert codes.dtype == np.int8 and codes.shape == x.shape
    for c in range(x.shape[-1]):
        resolution = float(scaling.resolution[c])
        raw = [exact_raw16(v, resolution) for v in x[..., c].ravel().tolist()]
        mean = Fraction(sum(raw), len(raw))
        variance = sum((r - mean) ** 2 for r in raw) / len(raw)
        got = codes[..., c].ravel().tolist()
        if variance == 0:
            assert set(got) == {0} and scaling.multiplier[c] == 0
            continue
        unit = Fraction(math.sqrt(variance)) * Fraction(scaling.step)
        for r, code in zip(raw, got, strict=True):
            exact = min(max(math.floor((r - mean) / unit + Fraction(1, 2)), -128), 127)
            assert abs(code - exact) <= 1


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(list(RAW_RANGES)).flatmap(samples))
def test_codes_match_the_rational_formula(x):
    check_against_rationals(x, InputScaling.fit(x))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(list(RAW_RANGES)).flatmap(samples))
def test_nothing_overflows_int32(x):
    scaling = InputScaling.fit(x)
    low, high = RAW_RANGES[scaling.dtype]
    for m, o, s in zip(*(scaling.to_arrays()[k].tolist() for k in ("multiplier", "offset", "shift")), strict=True):
        assert 0 <= m < 2**15 and abs(o) < 2**30 and 0 <= s <= 30
        assert all(-(2**31) <= raw * m + o < 2**31 for raw in (low, high))


@settings(max_examples=30, deadline=None)
@given(samples("float32"))
def test_training_samples_do_not_clip_in_raw16(x):
    scaling = InputScaling.fit(x)
    scaled = np.floor(x.astype(np.float64) * scaling.resolution + 0.5)
    assert np.abs(scaled).max() <= 32767


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
def test_codes_are_nearly_always_exact(dtype):
    """One code of slack is for ties; at 15 bits of multiplier almost none is used."""
    rng = np.random.default_rng(1)
    x = np.clip(rng.normal([40, 90, 200], [9, 30, 4], (500, 7, 3)), 0, 255).astype(dtype)
    scaling = InputScaling.fit(x)
    assert (scaling.multiplier >= 2**14).all()
    raw = np.floor(x.astype(np.float64) * scaling.resolution + 0.5)
    z = (raw - raw.mean((0, 1))) / raw.std((0, 1))
    exact = np.clip(np.floor(z / scaling.step + 0.5), -128, 127)
    codes = scaling.encode(x)
    assert (codes != exact).mean() < 0.002
    real = codes.astype(np.float64) * scaling.step
    np.testing.assert_allclose(real.mean((0, 1)), 0, atol=0.01)
    np.testing.assert_allclose(real.std((0, 1)), 1, atol=0.01)


def test_step_reaches_the_percentile():
    x = np.zeros((20_000, 1), np.int16)
    x[::2], x[1::2] = 1, -1
    x[2:17] = 2_000  # common enough to be inside
    x[17] = 30_000  # one in 20,000 lies beyond the 99.99th percentile
    scaling = InputScaling.fit(x)
    deviation = x.astype(np.float64).std()
    assert scaling.step == pytest.approx((2_000 - x.mean()) / deviation / 127, rel=1e-6)
    assert scaling.encode(x[16:18]).ravel().tolist() == [127, 127]


def test_rounds_half_up():
    scaling = InputScaling(
        "int16", 1.0, np.array([2**14], np.int16), np.array([2**14], np.int32), np.array([15], np.uint8), ONE
    )
    x = np.array([[-3], [-2], [-1], [0], [1], [2], [3], [32767], [-32768]], np.int16)
    assert scaling.encode(x).ravel().tolist() == [-1, -1, 0, 0, 1, 1, 2, 127, -128]


def test_constant_channel_is_zero():
    x = np.full((9, 2), 5.0, np.float32)
    x[:, 1] = np.arange(9)
    scaling = InputScaling.fit(x)
    assert scaling.multiplier[0] == 0
    assert not scaling.encode(np.full((3, 2), 70, np.float32))[:, 0].any()
    assert not InputScaling.fit(np.zeros((4, 3), np.float32)).multiplier.any()


def test_digits_survive_scaling():
    pytest.importorskip("sklearn")
    data = load("digits")
    scaling = InputScaling.fit(data.x_train)
    assert scaling.channels == 1
    levels = scaling.encode(np.arange(17, dtype=np.uint8)[:, None]).ravel()
    assert len(set(levels.tolist())) == 17 and levels.max() == 127


def test_chunks_do_not_show():
    x = np.random.default_rng(0).integers(0, 256, (700_001, 2), dtype=np.uint8)
    scaling = InputScaling.fit(x)
    np.testing.assert_array_equal(scaling.encode(x)[-5:], scaling.encode(x[-5:]))
    assert scaling.step == InputScaling.fit(x[::-1]).step


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((2, 3), np.int16), "must be a float32 array, not int16"),
        (np.zeros((2, 4), np.float32), "must have 3 channels"),
        (np.float32(1), "must be a float32 array"),
        (np.array([[0, np.nan, 0]], np.float32), r"1 value\(s\) .* index \(0, 1\)"),
        (np.array([[0, 0, -np.inf]], np.float32), r"1 value\(s\) .* index \(0, 2\)"),
    ],
)
def test_encode_refuses(x, message):
    scaling = InputScaling.fit(np.arange(6, dtype=np.float32).reshape(2, 3))
    with pytest.raises(DataError, match=message):
        scaling.encode(x)


@pytest.mark.parametrize("x", [np.zeros((2, 3)), np.zeros((0, 3), np.uint8), np.full((2, 3), np.nan, np.float32)])
def test_fit_refuses(x):
    with pytest.raises(DataError, match="training samples"):
        InputScaling.fit(x)


def test_arrays_round_trip():
    scaling = InputScaling.fit(np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32))
    again = InputScaling.from_arrays(scaling.dtype, scaling.step, scaling.to_arrays())
    x = np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32)
    np.testing.assert_array_equal(again.encode(x), scaling.encode(x))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "float64"}, "dtype"),
        ({"step": 0.0}, "step"),
        ({"step": math.nan}, "step"),
        ({"step": math.inf}, "step"),
        ({"step": "1"}, "step"),
        ({"step": 0.1}, "not a float32"),
        ({"multiplier": np.array([-1], np.int16)}, "negative"),
        ({"multiplier": np.array([1], np.int32)}, "multiplier"),
        ({"multiplier": np.empty(0, np.int16)}, "multiplier"),
        ({"multiplier": [1]}, "multiplier"),
        ({"offset": np.array([1, 2], np.int32)}, "offset"),
        ({"offset": np.array([2**30], np.int32)}, "overflow"),
        ({"offset": np.array([-(2**30)], np.int32)}, "overflow"),
        ({"offset": np.array([-(2**31)], np.int32)}, "overflow"),
        ({"shift": np.array([31], np.uint8)}, "shift"),
        ({"resolution": np.array([0], np.float32)}, "resolution"),
        ({"resolution": np.array([np.inf], np.float32)}, "resolution"),
        ({"dtype": "int16", "resolution": np.array([2], np.float32)}, "resolution 1"),
        ({"zero_point": np.zeros(1, np.int8)}, "arrays must be"),
    ],
)
def test_from_arrays_refuses(changes, message):
    given_ = {
        "dtype": "float32",
        "step": 0.5,
        "multiplier": np.array([2**14], np.int16),
        "offset": np.zeros(1, np.int32),
        "shift": np.array([15], np.uint8),
        "resolution": ONE,
    }
    merged = {**given_, **changes}
    with pytest.raises(SchemaError, match=message):
        InputScaling.from_arrays(merged.pop("dtype"), merged.pop("step"), merged)


def test_largest_legal_numbers_do_not_wrap():
    arrays = {
        "multiplier": np.array([2**15 - 1], np.int16),
        "offset": np.array([2**30 - 1], np.int32),
        "shift": np.array([24], np.uint8),
        "resolution": ONE,
    }
    scaling = InputScaling.from_arrays("int16", 1.0, arrays)
    x = np.array([[-32768], [32767]], np.int16)
    assert scaling.encode(x).ravel().tolist() == [0, 127]
    negative = InputScaling.from_arrays("int16", 1.0, {**arrays, "offset": -arrays["offset"]})
    assert negative.encode(x).ravel().tolist() == [-128, -1]


@pytest.mark.parametrize(
    ("x", "moments", "wanted"),
    [
        (np.arange(256, dtype=np.uint8), Moments((0,), (1,)), lambda x, step: x / step),
        (np.arange(256, dtype=np.uint8), Moments((100,), (50,)), lambda x, step: (x - 100) / 50 / step),
        (np.arange(-900, 901, 3).astype(np.int16), Moments((200,), (7,)), lambda x, step: (x - 200) / 7 / step),
        (np.linspace(-3, 5, 999).astype(np.float32), Moments((0.5,), (2,)), lambda x, step: (x - 0.5) / 2 / step),
    ],
)
def test_given_moments_instead_of_the_datas_own(x, moments, wanted):
    scaling = InputScaling.fit(x[:, None], moments)
    exact = wanted(x.astype(np.float64), scaling.step)
    inside = np.abs(exact) < 126
    assert inside.mean() > 0.9
    assert np.abs(scaling.encode(x[:, None])[inside, 0] - exact[inside]).max() <= 0.52
    assert np.abs(exact).max() == pytest.approx(127, rel=1e-3)


def test_zero_stays_zero_where_the_network_pads_with_it():
    scaling = InputScaling.fit(np.arange(256, dtype=np.uint8)[:, None], Moments((0.0,), (1.0,)))
    assert scaling.encode(np.zeros((1, 1), np.uint8)).item() == 0


def test_moments_per_channel():
    x = np.random.default_rng(0).integers(0, 256, (500, 2)).astype(np.uint8)
    scaling = InputScaling.fit(x, Moments((100.0, 50.0), (30.0, 60.0)))
    exact = (x - np.array([100.0, 50.0])) / np.array([30.0, 60.0]) / scaling.step
    assert np.abs(scaling.encode(x) - exact.clip(-128, 127)).max() <= 0.52


@pytest.mark.parametrize(
    "moments",
    [
        Moments((0.0, 1.0, 2.0), (1.0,)),
        Moments((), (1.0,)),
        Moments((math.nan,), (1.0,)),
        Moments((0.0,), (0.0,)),
        Moments((0.0,), (-1.0,)),
        Moments((0.0,), (math.inf,)),
    ],
)
def test_moments_that_fit_no_channels(moments):
    with pytest.raises(DataError, match="one or 2"):
        InputScaling.fit(np.zeros((4, 2), np.uint8), moments)

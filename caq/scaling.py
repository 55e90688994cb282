"""How raw samples become the int8 codes that a plan eats, by integers only.

    raw     a uint8, int16 or float32 sample, channels last
    raw16   int32 holding an int16:  uint8, int16:  raw
                                     float32:       clamp(floor(raw * resolution[c] + 0.5), -32768, 32767)
    code    int8:                    clamp((raw16 * multiplier[c] + offset[c]) >> shift[c], -128, 127)

The network sees `code * step`, a value standardised by the training set's mean and deviation of each channel.
There is one step for all channels, so the first layer needs no scale per input channel. `offset` holds the
mean and the rounding half, so `>>` (floor) rounds half up. The product with `resolution` is taken in float64;
everything after it fits int32 without overflow, because the constructor bounds the offset.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from caq.errors import DataError, SchemaError
from caq.record import NamedTuple, Record

# The range of raw16 for each dtype that a sample may have.
RAW_RANGES: dict[str, tuple[int, int]] = {
    "uint8": (0, 255),
    "int16": (-(2**15), 2**15 - 1),
    "float32": (-(2**15), 2**15 - 1),
}
MAX_SHIFT = 30
# |raw16 * multiplier| <= 2^15 * (2^15 - 1) < 2^30, so an offset below 2^30 keeps every sum inside int32.
OFFSET_BOUND = 2**30
_ARRAY_DTYPES = {"multiplier": np.int16, "offset": np.int32, "shift": np.uint8, "resolution": np.float32}
# Elements converted at once: bounds the int32 and int64 temporaries on a device and while fitting.
_CHUNK = 1 << 20


class Moments(NamedTuple):
    """What samples are standardised by, (x - mean) / deviation: one number for all channels, or one each."""

    mean: Sequence[float]
    deviation: Sequence[float]


class InputScaling(Record):
    """The integers of the module's formula, one of each per channel (C: the last axis of a sample).

    dtype       "uint8", "int16" or "float32": what `encode` accepts
    step        real value of one code, the same for every channel; a float32 value
    multiplier  (C,) int16, 0 for a channel that was constant in training, else in [2^14, 2^15) where possible
    offset      (C,) int32, magnitude below 2^30
    shift       (C,) uint8, 0..30
    resolution  (C,) float32, raw16 per unit of a float32 sample; 1 for integer samples

    Raises SchemaError where a field is impossible or raw16 * multiplier + offset could leave int32.
    """

    dtype: str
    step: float
    multiplier: np.ndarray
    offset: np.ndarray
    shift: np.ndarray
    resolution: np.ndarray

    def __post_init__(self) -> None:
        if self.dtype not in RAW_RANGES:
            raise SchemaError(f"input scaling: dtype {self.dtype!r} is none of {', '.join(RAW_RANGES)}")
        step = self.step
        if not isinstance(step, (float, int, np.floating)) or not 0 < step <= np.finfo(np.float32).max:
            raise SchemaError(f"input scaling: step must be a finite number above 0, not {step!r}")
        if float(np.float32(step)) != step:
            raise SchemaError(f"input scaling: step {step!r} is not a float32 value")
        object.__setattr__(self, "step", float(step))
        for name, dtype in _ARRAY_DTYPES.items():
            array = getattr(self, name)
            if not isinstance(array, np.ndarray) or array.dtype != dtype or array.ndim != 1:
                raise SchemaError(f"input scaling: {name} must be a 1-D {np.dtype(dtype).name} array")
            if array.size == 0 or array.size != self.multiplier.size:
                raise SchemaError(f"input scaling: {name} must have one entry per channel, not {array.size}")
            array = array.copy()
            array.flags.writeable = False
            object.__setattr__(self, name, array)
        if (self.multiplier < 0).any():
            raise SchemaError("input scaling: a multiplier is negative")
        if (self.shift > MAX_SHIFT).any():
            raise SchemaError(f"input scaling: a shift is above {MAX_SHIFT}")
        if not (np.isfinite(self.resolution) & (self.resolution >= np.finfo(np.float32).tiny)).all():
            raise SchemaError("input scaling: a resolution is not a finite number above 0, or is a denormal one")
        if self.dtype != "float32" and (self.resolution != 1).any():
            raise SchemaError(f"input scaling: {self.dtype} samples have resolution 1")
        # int64, because the magnitude of -2^31 has no int32.
        if (np.abs(self.offset.astype(np.int64)) >= OFFSET_BOUND).any():
            raise SchemaError("input scaling: an offset reaches 2^30, so int32 could overflow")

    @property
    def channels(self) -> int:
        """C, the length of the last axis of every sample."""
        return self.multiplier.size

    @classmethod
    def fit(cls, x_train: np.ndarray, moments: Moments | None = None, step: float | None = None) -> InputScaling:
        """Learns mean, deviation and step from `x_train` (N, ..., C) uint8, int16 or float32.

        moments: what to standardise by instead, for a network that is trained already and expects it. step: the real
        value of a code; unless given, 127 steps reach the 99.99th percentile of the absolute standardised values. What
        lies beyond clips. Sums are exact integers.
        Raises DataError on another dtype, no samples, NaN or infinity, and on moments that fit no channels.
        """
        dtype = x_train.dtype.name
        if dtype not in RAW_RANGES:
            raise DataError(f"training samples must be {', '.join(RAW_RANGES)}, not {dtype}")
        check_finite(x_train, "training samples")
        if x_train.ndim < 2 or x_train.size == 0:
            raise DataError(f"training samples must be a non-empty (N, ..., C) array, not {x_train.shape}")
        resolution = np.ones(x_train.shape[-1], np.float32)
        if dtype == "float32":
            resolution = _resolution(x_train)
        columns = [_histogram(x_train[..., c], dtype, resolution[c : c + 1]) for c in range(resolution.size)]
        if moments is None:
            pairs = [_mean_and_deviation(values, counts) for values, counts in columns]
        else:
            pairs = _given_moments(moments, resolution)
        step = _step(columns, pairs) if step is None else float(np.float32(step))
        parts = [_fixed_point(mean, deviation, step) for mean, deviation in pairs]
        multiplier, offset, shift = zip(*parts, strict=True)
        return cls(
            dtype,
            step,
            np.array(multiplier, np.int16),
            np.array(offset, np.int32),
            np.array(shift, np.uint8),
            resolution,
        )

    def encode(self, x: np.ndarray) -> np.ndarray:
        """Returns the int8 codes of samples `x` (..., C) of this scaling's dtype, in the same shape.

        Raises DataError on another dtype or number of channels, and on NaN or infinity.
        """
        self.check(x)
        check_finite(x, "samples")
        multiplier, offset = self.multiplier.astype(np.int32), self.offset
        shift = self.shift.astype(np.int32)
        rows = x.reshape(-1, self.channels)
        codes = np.empty(rows.shape, np.int8)
        chunk = max(1, _CHUNK // self.channels)
        for start in range(0, len(rows), chunk):
            part = slice(start, start + chunk)
            raw16 = _raw16(rows[part], self.resolution)
            codes[part] = np.clip((raw16 * multiplier + offset) >> shift, -128, 127)
        return codes.reshape(x.shape)

    def check(self, x: np.ndarray) -> None:
        """Raises DataError on another dtype or number of channels."""
        if not isinstance(x, np.ndarray) or x.dtype != self.dtype:
            found = x.dtype if isinstance(x, np.ndarray) else type(x).__name__
            raise DataError(f"samples must be a {self.dtype} array, not {found}")
        if x.ndim == 0 or x.shape[-1] != self.channels:
            raise DataError(f"the last axis must have {self.channels} channels; the shape is {x.shape}")

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Returns the arrays per channel by name; with `dtype` and `step` they are all of it."""
        return {name: getattr(self, name) for name in _ARRAY_DTYPES}

    @classmethod
    def from_arrays(cls, dtype: str, step: float, arrays: Mapping[str, np.ndarray]) -> InputScaling:
        """The inverse of `to_arrays`, for values that nobody has checked yet.

        Raises SchemaError on a missing or unknown array, and on everything that the constructor refuses.
        """
        if set(arrays) != set(_ARRAY_DTYPES):
            raise SchemaError(f"input scaling: arrays must be {sorted(_ARRAY_DTYPES)}, not {sorted(arrays)}")
        return cls(dtype, step, **arrays)


def check_finite(x: np.ndarray, where: str) -> None:
    """Raises DataError that counts NaN and infinity in `x` and says where the first one is."""
    if x.dtype.kind != "f":
        return
    bad = ~np.isfinite(x)
    count = int(np.count_nonzero(bad))
    if count:
        first = tuple(int(i) for i in np.unravel_index(int(bad.argmax()), bad.shape))
        raise DataError(f"{where}: {count} value(s) are NaN or infinite, the first at index {first}")


def _raw16(x: np.ndarray, resolution: np.ndarray) -> np.ndarray:
    """Samples whose last axis broadcasts with `resolution`, as int32."""
    if x.dtype.kind != "f":
        return x.astype(np.int32)
    low, high = RAW_RANGES["float32"]
    scaled = x.astype(np.float64) * resolution.astype(np.float64) + 0.5
    return np.clip(np.floor(scaled), low, high).astype(np.int32)


def _resolution(x: np.ndarray) -> np.ndarray:
    """(C,) float32 that puts the largest magnitude of each channel of float32 `x` (N, ..., C) at 32767."""
    axes = tuple(range(x.ndim - 1))
    largest = np.maximum(x.max(axes), -x.min(axes)).astype(np.float64)
    limits = np.finfo(np.float32)
    wanted = 32767 / np.where(largest == 0, 32767, largest)
    return np.minimum(wanted, float(limits.max)).astype(np.float32)


def _histogram(channel: np.ndarray, dtype: str, resolution: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct raw16 of one channel (N, ...) in rising order, and how often each occurs; both int64.

    `resolution` (1,) float32.
    """
    low, high = RAW_RANGES[dtype]
    counts = np.zeros(high - low + 1, np.int64)
    chunk = max(1, _CHUNK * len(channel) // channel.size)
    for start in range(0, len(channel), chunk):
        raw16 = _raw16(channel[start : start + chunk], resolution)
        counts += np.bincount(raw16.ravel() - low, minlength=counts.size)
    present = np.flatnonzero(counts)
    return present + low, counts[present]


def _mean_and_deviation(values: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation of a histogram; exact up to the last division, so a constant gives 0."""
    n = int(counts.sum())
    total = int((values * counts).sum())
    squares = int((values * values * counts).sum())
    return total / n, math.sqrt(n * squares - total * total) / n


def _given_moments(moments: Moments, resolution: np.ndarray) -> list[tuple[float, float]]:
    """Mean and deviation of each channel in units of raw16."""
    channels = resolution.size
    columns = []
    for name, values in zip(Moments._fields, moments, strict=True):
        array = np.array(values, np.float64)
        if (
            array.size not in (1, channels)
            or not np.isfinite(array).all()
            or (name == "deviation" and array.min() <= 0)
        ):
            kind = "numbers above 0" if name == "deviation" else "finite numbers"
            raise DataError(f"{name} {tuple(values)}: one or {channels} (a channel each) {kind} are expected")
        columns.append(np.broadcast_to(array, channels) * resolution)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def _step(columns: list[tuple[np.ndarray, np.ndarray]], moments: list[tuple[float, float]]) -> float:
    """The float32 value of one code: a 127th of the 99.99th percentile over all channels that vary."""
    pairs = [
        (np.abs(values - mean) / deviation, counts)
        for (values, counts), (mean, deviation) in zip(columns, moments, strict=True)
        if deviation > 0
    ]
    if not pairs:
        return 1.0
    size = np.concatenate([magnitudes for magnitudes, _ in pairs])
    count = np.concatenate([counts for _, counts in pairs])
    order = np.argsort(size, kind="stable")
    running = np.cumsum(count[order])
    # In integers: the first magnitude at or below which 9,999 of 10,000 values lie.
    reach = size[order][np.searchsorted(running, -(-int(running[-1]) * 9999 // 10000))]
    if reach == 0:  # all but a few values equal the mean exactly
        reach = size.max()
    return float(np.float32(reach / 127))


def _fixed_point(mean: float, deviation: float, step: float) -> tuple[int, int, int]:
    """(multiplier, offset, shift) for one channel, with mean and deviation in units of raw16."""
    if deviation == 0:
        return 0, 0, 0
    gain = 1 / (deviation * step)
    # The line is exact at the integer nearest to the mean; rounding the multiplier only tilts it there.
    anchor = round(mean)
    # Beyond 512 codes of anchor the neighbours of the anchor clip on both sides whatever its code is.
    anchor_code = min(max((anchor - mean) * gain, -512.0), 512.0)
    for shift in range(min(max(15 - math.frexp(gain)[1], 0), MAX_SHIFT), -1, -1):
        multiplier = min(round(gain * 2**shift), 2**15)
        if multiplier == 2**15 and shift > 0:  # rounded up past int16: one bit less
            continue
        multiplier = min(multiplier, 2**15 - 1)
        offset = math.floor((anchor_code + 0.5) * 2**shift + 0.5) - anchor * multiplier
        if abs(offset) < OFFSET_BOUND:
            return multiplier, offset, shift
    raise AssertionError("at shift 0 the offset is below 2^15 * (2^15 - 1) + 513, which always fits")

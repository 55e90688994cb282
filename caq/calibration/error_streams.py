"""Detectors of drift in a stream of numbers, such as errors when labels come; see `caq.calibration.drift`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from caq.calibration.state import Arrays, array_in, floats_in
from caq.errors import ConfigError, DataError, StateFormatError

if TYPE_CHECKING:
    from numpy.typing import NDArray


class DDM:
    """Drift of an error rate upwards (Gama et al., "Learning with drift detection", 2004).

    Drift where the rate p and its deviation s reach the least p + s so far plus `level` times the s of then. p counts
    one error and one success more than there were, so that a first error after none is not a drift. warm_start: updates
    before it speaks. After a drift it begins anew. With the paper's 3 and 30, a quarter of streams of 500 with a tenth
    of errors, and no drift, raise an alarm; with these defaults, 7 %.
    """

    def __init__(self, level: float = 3.5, warm_start: int = 60) -> None:
        if not level > 0 or warm_start < 1:
            raise ConfigError(f"level {level} and warm_start {warm_start} must be positive")
        self.level, self.warm_start = level, warm_start
        self.reset()

    def reset(self) -> None:
        """See Detector."""
        self.drift_detected = False
        self._count, self._errors = 0.0, 0.0
        self._least, self._deviation = math.inf, 0.0

    def update(self, x: float) -> None:
        """x: 1 for an error, 0 for none."""
        if x not in (0, 1):
            raise DataError(f"an error is 0 or 1, not {x!r}")
        if self.drift_detected:
            self.reset()
        self._count += 1
        self._errors += float(x)
        p = (self._errors + 1) / (self._count + 2)
        s = math.sqrt(p * (1 - p) / self._count)
        if self._count >= self.warm_start:
            if p + s < self._least + self._deviation:
                self._least, self._deviation = p, s
            self.drift_detected = p + s > self._least + self.level * self._deviation

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """See Detector."""
        least = 2.0 if math.isinf(self._least) else self._least  # no rate is that high
        return {"ddm": np.array([self._count, self._errors, least, self._deviation, self.drift_detected])}

    def load_arrays(self, arrays: Arrays) -> None:
        """See Detector."""
        count, errors, least, deviation, detected = floats_in(arrays, "ddm", 5)
        if not (0 <= errors <= count and least > 0 and deviation >= 0):
            raise StateFormatError("ddm: these are no counts and rates")
        self._count, self._errors, self._deviation = count, errors, deviation
        self._least = math.inf if least == 2.0 else least
        self.drift_detected = bool(detected)


class PageHinkley:
    """Drift of a mean upwards (Page, "Continuous inspection schemes", 1954; sequential form of Mouss et al., 2004).

    Drift where the sum of x - mean - delta exceeds its least value by `threshold`. delta: a rise that is no drift, in
    units of x. warm_start: updates before it speaks. After a drift it begins anew.
    """

    def __init__(self, threshold: float = 15.0, delta: float = 0.05, warm_start: int = 30) -> None:
        if not threshold > 0 or not delta >= 0 or warm_start < 1:
            raise ConfigError(
                f"threshold {threshold} and warm_start {warm_start} are positive, delta {delta} is not below 0"
            )
        self.threshold, self.delta, self.warm_start = threshold, delta, warm_start
        self.reset()

    def reset(self) -> None:
        """See Detector."""
        self.drift_detected = False
        self._count, self._mean, self._sum, self._least = 0.0, 0.0, 0.0, 0.0

    def update(self, x: float) -> None:
        """x: a finite number."""
        x = _number(x)
        if self.drift_detected:
            self.reset()
        self._count += 1
        self._mean += (x - self._mean) / self._count
        self._sum += x - self._mean - self.delta
        self._least = min(self._least, self._sum)
        self.drift_detected = self._count >= self.warm_start and self._sum - self._least > self.threshold

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """See Detector."""
        return {"page_hinkley": np.array([self._count, self._mean, self._sum, self._least, self.drift_detected])}

    def load_arrays(self, arrays: Arrays) -> None:
        """See Detector."""
        count, mean, total, least, detected = floats_in(arrays, "page_hinkley", 5)
        if count < 0 or least > total:
            raise StateFormatError("page_hinkley: these are no counts and sums")
        self._count, self._mean, self._sum, self._least = count, mean, total, least
        self.drift_detected = bool(detected)


class ADWIN:
    """Drift of a mean, up or down, by a window that shrinks when its parts differ (Bifet and Gavaldà, 2007).

    The window is kept in buckets of 1, 2, 4, ... values, a few of each size; where the means of its older and its newer
    part differ by more than chance, at confidence 1 - delta, the oldest bucket goes, and that is drift. Values should
    lie in 0..1. clock: updates between two checks.
    """

    BUCKETS = 5
    SHORTEST = 5
    #: Of 2**k values each, so windows are of up to 2**40.
    LARGEST = 2.0**40

    def __init__(self, delta: float = 0.002, clock: int = 8) -> None:
        if not 0 < delta < 1 or clock < 1:
            raise ConfigError(f"delta {delta} lies between 0 and 1, clock {clock} is positive")
        self.delta, self.clock = delta, clock
        self.reset()

    def reset(self) -> None:
        """See Detector."""
        self.drift_detected = False
        self._updates = 0.0
        #: Size, sum, and sum of squares of deviations from the bucket's mean; the oldest first.
        self._buckets: list[tuple[float, float, float]] = []

    @property
    def width(self) -> int:
        """Values in the window."""
        return int(sum(size for size, _, _ in self._buckets))

    def update(self, x: float) -> None:
        """x: a finite number."""
        self._buckets.append((1.0, _number(x), 0.0))
        self._updates += 1
        self._compress()
        self.drift_detected = False
        if self._updates % self.clock == 0:
            while self._differs():
                self.drift_detected = True
                del self._buckets[0]

    def _compress(self) -> None:
        """Merges the two oldest buckets of a size that has too many; sizes never rise from old to new."""
        size = 1.0
        while size < self.LARGEST:
            same = [i for i, bucket in enumerate(self._buckets) if bucket[0] == size]
            if len(same) <= self.BUCKETS:
                return
            i = same[0]
            self._buckets[i : i + 2] = [_merged(self._buckets[i], self._buckets[i + 1])]
            size *= 2

    def _differs(self) -> bool:
        if not self._buckets:
            return False
        whole = self._buckets[0]
        for bucket in self._buckets[1:]:
            whole = _merged(whole, bucket)
        n, total, squares = whole
        confidence = math.log(2 * math.log(max(n, 3.0)) / self.delta)
        n0 = sum0 = 0.0
        for size, part, _ in self._buckets[:-1]:
            n0, sum0 = n0 + size, sum0 + part
            n1 = n - n0
            if min(n0, n1) < self.SHORTEST:
                continue
            m = 1 / (1 / n0 + 1 / n1)
            bound = math.sqrt(2 / m * squares / n * confidence) + 2 / (3 * m) * confidence
            if abs(sum0 / n0 - (total - sum0) / n1) > bound:
                return True
        return False

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """See Detector."""
        return {
            "adwin": np.array([self._updates, self.drift_detected]),
            "buckets": np.array(self._buckets, np.float64).reshape(-1, 3),
        }

    def load_arrays(self, arrays: Arrays) -> None:
        """See Detector."""
        updates, detected = floats_in(arrays, "adwin", 2)
        buckets = array_in(arrays, "buckets", (None, 3))
        sizes = buckets[:, 0]
        powers = np.exp2(np.arange(41))
        if not np.isin(sizes, powers).all() or (np.diff(sizes) > 0).any() or (buckets[:, 2] < 0).any() or updates < 0:
            raise StateFormatError("buckets: these are no sizes, sums and squares")
        self._updates, self.drift_detected = updates, bool(detected)
        self._buckets = [(size, total, squares) for size, total, squares in buckets.tolist()]


def _merged(a: tuple[float, float, float], b: tuple[float, float, float]) -> tuple[float, float, float]:
    """One bucket of two: size, sum, and squares by the parallel formula of Chan et al. (1979)."""
    size = a[0] + b[0]
    gap = a[1] / a[0] - b[1] / b[0]
    return size, a[1] + b[1], a[2] + b[2] + gap * gap * a[0] * b[0] / size


def _number(x: float) -> float:
    if not math.isfinite(x):
        raise DataError(f"a finite number is expected, not {x!r}")
    return float(x)

"""Detectors of drift: they see a stream value by value, and say after which value the world is another.

    detector.update(x)
    if detector.drift_detected: ...      # of this very update

as in river, whose contract this is. `StatisticsShift` sees vectors and needs no labels: `caq.calibration.signals` makes
them. `caq.calibration.error_streams` has those that see numbers, such as errors, when labels come. `Debounced` makes of
any detector an alarm that does not chatter.

Every detector is deterministic, takes a constant amount of memory (ADWIN: a logarithm of its window), and goes on after
`load_arrays` where it was at `to_arrays`, bit for bit; what it was constructed with is not part of that.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from caq.calibration.state import Arrays, array_in, floats_in
from caq.errors import ConfigError, DataError, StateFormatError

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Detector(Protocol):
    """What all detectors do."""

    #: Whether the last update ended in drift.
    drift_detected: bool

    def update(self, x: Any) -> None:
        """Takes the stream's next value. Raises DataError on NaN, infinity and other shapes, and then is unchanged."""

    def reset(self) -> None:
        """Forgets the stream."""

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """What it knows of the stream, for `caq.calibration.state`."""

    def load_arrays(self, arrays: Arrays) -> None:
        """Takes up what `to_arrays` gave. Raises StateFormatError on anything else."""


class StatisticsShift:
    """Drift of a vector of signals from a reference, without labels.

    A multivariate exponentially weighted moving average (Lowry et al., 1992) with a diagonal covariance:

        e = (1 - decay) e + decay z        z = clip((x - mean) / deviation, -LIMIT, LIMIT)
        statistic = mean(e**2) / var(e)    var(e) = decay / (2 - decay) (1 - (1 - decay)**(2 n)), that of independent z

    which is 1 on average where samples are independent and as in the reference, and varies less, the more signals there
    are; `drift_detected` as long as it is above `threshold`. Samples of a real stream are not independent, so the
    threshold is to be chosen on streams without drift (`highest_statistic`). mean, deviation: (F,) float64, `fit` takes
    them from samples; a signal with a deviation of 0 is left out. decay: 1 / decay samples are
    remembered, and seen before it speaks.
    """

    #: One broken sample is not a drift.
    LIMIT = 8.0

    def __init__(
        self, mean: NDArray[np.float64], deviation: NDArray[np.float64], threshold: float, decay: float = 1 / 32
    ) -> None:
        if not threshold > 0 or not 0 < decay < 1:
            raise ConfigError(f"threshold {threshold} is positive, decay {decay} lies between 0 and 1")
        self.threshold, self.decay = threshold, decay
        self._mean, self._deviation = _reference(mean, deviation, DataError)
        self.reset()

    @classmethod
    def fit(
        cls, x: NDArray[np.floating], threshold: float, decay: float = 1 / 32, least_deviation: float = 0.0
    ) -> StatisticsShift:
        """With the mean and deviation of signals x (N, F) for a reference. Raises DataError, ConfigError.

        least_deviation: taken for signals that vary less: changes below it are of no interest, and a signal that never
        changed in the reference, such as a saturation of 0, still counts when it does.
        """
        if x.ndim != 2 or len(x) < 2:
            raise DataError(f"signals (N, F) of 2 samples or more are expected, not {x.shape}")
        if not least_deviation >= 0:
            raise ConfigError(f"least_deviation {least_deviation} is below 0")
        mean, deviation = x.mean(axis=0, dtype=np.float64), x.std(axis=0, dtype=np.float64)
        return cls(mean, np.maximum(deviation, least_deviation), threshold, decay)

    def reset(self) -> None:
        """See Detector. The reference stays."""
        self.drift_detected = False
        self._count = 0.0
        self._average = np.zeros(len(self._mean))

    @property
    def statistic(self) -> float:
        """How far the stream is from the reference; 1 is as expected, 0 before the first update."""
        if not self._count:
            return 0.0
        variance = self.decay / (2 - self.decay) * (1 - (1 - self.decay) ** (2 * self._count))
        used = max(np.count_nonzero(self._deviation), 1)
        return float((self._average**2).sum()) / (used * variance)

    def update(self, x: NDArray[np.floating]) -> None:
        """x: (F,) signals of one sample."""
        x = np.asarray(x, np.float64)
        if x.shape != self._mean.shape or not np.isfinite(x).all():
            raise DataError(f"{self._mean.shape} finite signals are expected, not {x.shape}")
        z = np.zeros(x.shape)
        np.divide(x - self._mean, self._deviation, out=z, where=self._deviation > 0)
        z = np.minimum(np.maximum(z, -self.LIMIT), self.LIMIT)  # half of what np.clip takes
        self._average = (1 - self.decay) * self._average + self.decay * z
        self._count += 1
        self.drift_detected = self._count >= 1 / self.decay and self.statistic > self.threshold

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """See Detector. The reference is part of it, since calibration takes a new one."""
        return {
            "shift": np.array([self._count, self.drift_detected]),
            "mean": self._mean,
            "deviation": self._deviation,
            "average": self._average,
        }

    def load_arrays(self, arrays: Arrays) -> None:
        """See Detector."""
        count, detected = floats_in(arrays, "shift", 2)
        shape = self._mean.shape
        mean, deviation, average = (array_in(arrays, name, shape) for name in ("mean", "deviation", "average"))
        if count < 0:
            raise StateFormatError("shift: this is no count")
        self._mean, self._deviation = _reference(mean, deviation, StateFormatError)
        self._average, self._count, self.drift_detected = average.copy(), count, bool(detected)


class Debounced:
    """Drift only after `hits` updates in a row on which `detector` says so, and then not again for `cooldown` updates.

    An alarm resets the detector, so that what follows is judged by itself; during the cooldown it sees nothing.
    """

    def __init__(self, detector: Detector, hits: int = 8, cooldown: int = 100) -> None:
        if hits < 1 or cooldown < 0:
            raise ConfigError(f"hits {hits} is positive, cooldown {cooldown} is not below 0")
        self.detector, self.hits, self.cooldown = detector, hits, cooldown
        self.reset()

    def reset(self) -> None:
        """See Detector."""
        self.detector.reset()
        self.drift_detected = False
        self._hits, self._silent = 0.0, 0.0

    def update(self, x: Any) -> None:
        """x: what the detector takes."""
        if self._silent:
            self._silent -= 1
            self.drift_detected = False
            return
        self.detector.update(x)
        self._hits = self._hits + 1 if self.detector.drift_detected else 0.0
        self.drift_detected = self._hits >= self.hits
        if self.drift_detected:
            self.detector.reset()
            self._hits, self._silent = 0.0, float(self.cooldown)

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """See Detector."""
        return {**self.detector.to_arrays(), "debounced": np.array([self._hits, self._silent, self.drift_detected])}

    def load_arrays(self, arrays: Arrays) -> None:
        """See Detector."""
        hits, silent, detected = floats_in(arrays, "debounced", 3)
        if min(hits, silent) < 0:
            raise StateFormatError("debounced: these are no counts")
        self.detector.load_arrays(arrays)
        self._hits, self._silent, self.drift_detected = hits, silent, bool(detected)


def highest_statistic(detector: StatisticsShift, streams: Iterable[NDArray[np.floating]]) -> list[float]:
    """The highest statistic on each of some streams (n, F) after the warm-up: what a threshold has to stay above.

    `detector` is reset before each stream and in the end. Raises DataError on a stream shorter than the warm-up.
    """
    highest = []
    for stream in streams:
        detector.reset()
        seen = []
        for x in stream:
            detector.update(x)
            seen.append(detector.statistic)
        judged = seen[math.ceil(1 / detector.decay) - 1 :]
        if not judged:
            raise DataError(f"a stream of {len(seen)} samples says nothing: 1 / decay is {1 / detector.decay:.0f}")
        highest.append(max(judged))
    detector.reset()
    return highest


def _reference(
    mean: NDArray[np.float64], deviation: NDArray[np.float64], error: type[DataError] | type[StateFormatError]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    mean, deviation = np.array(mean, np.float64), np.array(deviation, np.float64)
    good = mean.ndim == 1 and mean.shape == deviation.shape and len(mean) > 0
    if not good or not np.isfinite([mean, deviation]).all() or (deviation < 0).any():
        raise error(f"a reference has (F,) finite means and deviations, not {mean.shape} and {deviation.shape}")
    return mean, deviation

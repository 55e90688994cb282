"""The calibrator's watch: whether the stream's input drifts from what the factory's core set has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from caq.calibration.drift import Debounced, StatisticsShift, highest_statistic
from caq.calibration.signals import channel_statistics
from caq.calibration.state import Arrays

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Samples that the detector remembers, and samples in a row that make an alarm: as benchmarks.drift chose them.
_MEMORY, _HITS = 64, 8
#: The threshold, over the highest statistic on streams drawn from the core set; real ones are less kind.
_MARGIN = 1.2
_STREAMS, _LENGTH = 20, 200


class Watch:
    """A debounced StatisticsShift of the input's channel statistics.

    anchor: (N, H, W, C) int8, input codes of source samples, 2 or more; their order, and so the threshold, is drawn
    from `seed`.
    """

    def __init__(self, anchor: NDArray[np.int8], seed: int) -> None:
        signals, rng = channel_statistics(anchor), np.random.default_rng(seed)
        shift = StatisticsShift.fit(signals, 1.0, 1 / _MEMORY)
        streams = (signals[rng.integers(len(signals), size=_LENGTH)] for _ in range(_STREAMS))
        # The moving average varies as the mean of 2 * memory - 1 samples does; so does the reference, as that of N.
        reference_error = 1 + (2 * _MEMORY - 1) / len(signals)
        highest = max(highest_statistic(shift, streams))
        shift.threshold = max(_MARGIN * reference_error * highest, np.finfo(np.float64).tiny)
        self._detector = Debounced(shift, _HITS)

    def alarm(self, sample: NDArray[np.int8]) -> bool:
        """Takes the codes (H, W, C) of the stream's next sample; says whether they raise an alarm."""
        self._detector.update(channel_statistics(sample[None])[0])
        return self._detector.drift_detected

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """For `caq.calibration.state`."""
        return self._detector.to_arrays()

    def load_arrays(self, arrays: Arrays) -> None:
        """Takes up what `to_arrays` gave. Raises StateFormatError on anything else."""
        self._detector.load_arrays(arrays)

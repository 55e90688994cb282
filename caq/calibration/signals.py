"""What drift shows itself in, for each sample, without labels: channel statistics, saturation and output entropy.

N samples, P positions, C channels. All signals are float64, to be fed to `caq.calibration.drift` sample by sample.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from caq.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray


def channel_statistics(codes: NDArray[np.integer]) -> NDArray[np.float64]:
    """Mean and deviation over positions of each channel: codes (N, ..., C) of any tensor -> (N, 2 C), means first.

    Raises DataError on what are no codes.
    """
    flat = _positions(codes).astype(np.float64)
    return np.concatenate([flat.mean(axis=1), flat.std(axis=1)], axis=1)


def saturation(codes: NDArray[np.integer], low: int, high: int) -> NDArray[np.float64]:
    """Share (N, 1) of codes (N, ..., C) that lie at the ends of their range, where what is beyond is clamped.

    Of an unsigned tensor (low = 0) only the upper end counts: 0 is where a ReLU is off. Raises DataError.
    """
    flat = _positions(codes)
    ends = flat >= high if low == 0 else (flat >= high) | (flat <= low)
    return ends.mean(axis=(1, 2))[:, None]


def entropy(probabilities: NDArray[np.floating]) -> NDArray[np.float64]:
    """Entropy (N, 1) of (N, classes) as `Engine.probabilities` gives them, 0..1: 1 where all classes are as likely.

    Raises DataError on another shape, or fewer than two classes.
    """
    if probabilities.ndim != 2 or probabilities.shape[1] < 2:
        raise DataError(f"probabilities (N, 2 classes or more) are expected, not {probabilities.shape}")
    p = probabilities.astype(np.float64)
    logs = np.log(np.where(p > 0, p, 1.0))
    return -(p * logs).sum(axis=1, keepdims=True) / np.log(p.shape[1])


def _positions(codes: NDArray[Any]) -> NDArray[Any]:
    """(N, ..., C) as (N, P, C)."""
    if codes.dtype.kind not in "iu" or codes.ndim < 2 or not codes.size:
        raise DataError(f"codes (N, ..., C) of integers are expected, not {codes.shape} {codes.dtype}")
    return codes.reshape(len(codes), -1, codes.shape[-1])

"""What devices remember of their charger and of their requests: a few numbers that fade, each at a speed of its own.

    recall = Recall(usual, devices)
    recall.note(passed_s, hour, charging, requests_per_s, measured)    # at each decision
    recall.inputs()                                                    # (9, N)

Only the past goes into it. It is kept from one day to the next, and takes as much memory after a year as at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caq.errors import ConfigError

HOURS = 24
Floats = NDArray[np.float64]
#: Time constants of the share of time on a charger, and of requests, s. Chosen on validation devices.
CHARGER_S = np.array([[1.0], [4.0], [12.0], [60.0]]) * 3600
REQUESTS_S = np.array([[0.25], [2.0], [8.0], [72.0]]) * 3600
_MINUS_RATE = -1 / np.concatenate([CHARGER_S, REQUESTS_S, REQUESTS_S])
#: Requests that are assumed beside those counted, as a share of what is usual in a time constant.
PRIOR = 0.2
#: s since the charger was last plugged in or out where nobody knows, and of which changes are seen on a log scale.
UNKNOWN_S, RECENT_S = 3600.0, 600.0
#: s: what happened in a longer silence is not known.
LONGEST_GAP_S = 1800.0
NAMES = (
    "since_change",
    *(f"charger_{s / 3600:g}h" for s in CHARGER_S[:, 0]),
    *(f"load_{s / 3600:g}h" for s in REQUESTS_S[:, 0]),
)


@dataclass(frozen=True, eq=False)
class Usual:
    """Of devices of a kind. rate: (24,) requests per second in each hour, >= 0, not all 0. charging: share of time on a
    charger, 0..1. Raises ConfigError that names the field."""

    rate: Floats
    charging: float

    def __post_init__(self) -> None:
        if self.rate.shape != (HOURS,) or not (np.isfinite(self.rate) & (self.rate >= 0)).all() or not self.rate.any():
            raise ConfigError(f"rate: {HOURS} finite values of at least 0, one of them above 0, are expected")
        if not 0 <= self.charging <= 1:
            raise ConfigError(f"charging: must be from 0 to 1, not {self.charging}")


class Recall:
    """Of N devices that remember nothing yet, so that all is as usual."""

    def __init__(self, usual: Usual, devices: int) -> None:
        self.usual = usual
        self._rate = np.tile(usual.rate, 2)
        # (12, N): shares of time on a charger; requests counted; requests usual at the same hours. As time passes they
        # fade towards what the charger is at, and towards requests that are assumed.
        prior = PRIOR * usual.rate.mean() * REQUESTS_S
        self._towards = np.tile(np.concatenate([np.zeros_like(CHARGER_S), prior, prior]), devices)
        self._kept = self._towards.copy()
        self._kept[: len(CHARGER_S)] = usual.charging
        self._since_s = np.full(devices, UNKNOWN_S)
        self._charging, self._new = np.full(devices, np.nan), True

    def note(
        self, passed_s: Floats, hour: Floats, charging: Floats, requests_per_s: Floats, measured: NDArray[np.bool_]
    ) -> None:
        """Goes on by `passed_s` (N,) seconds, NaN or 0 where nobody knows, up to `hour` (N,), 0..24.

        charging: (N,) 0 or 1, now; until now it was what was noted last. requests_per_s: (N,) finite, while time
        passed. measured: (N,) whether that is known.
        """
        passed_s = np.fmax(passed_s, 0.0)
        passed_s *= passed_s <= LONGEST_GAP_S
        before = self._charging
        if self._new:
            before = np.where(np.isnan(before), charging, before)
            self._new = False
        kept, towards, count = self._kept, self._towards, len(CHARGER_S)
        towards[:count] = before
        kept -= towards
        kept *= np.exp(passed_s * _MINUS_RATE)
        kept += towards
        counted_s = passed_s * measured
        kept[count : 2 * count] += requests_per_s * counted_s
        # In the middle of what passed, which may be yesterday.
        kept[2 * count :] += self._rate[(hour - (passed_s / 7200 - HOURS)).astype(np.intp)] * counted_s
        self._since_s += passed_s
        self._since_s[charging != before] = 0.0
        self._charging = charging

    def inputs(self, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """(9, N) rows as in NAMES, float64 or written to `out`: log(1 + time since the charger was plugged in or out /
        600 s), shares of time on it, and logs of requests over those usual at the same hours."""
        count, kept = len(CHARGER_S), self._kept
        if out is None:
            out = np.empty((len(NAMES), kept.shape[1]))
        out[0] = np.log1p(self._since_s / RECENT_S)
        out[1 : 1 + count] = kept[:count]
        out[1 + count :] = np.log(kept[count : 2 * count] / kept[2 * count :])
        return out

    def take(self, other: Recall, those: NDArray[np.bool_]) -> None:
        """Remembers of `those` devices (N,) what another one does."""
        self._kept[:, those] = other._kept[:, those]
        self._since_s[those] = other._since_s[those]
        self._charging[those] = other._charging[those]
        self._new = True

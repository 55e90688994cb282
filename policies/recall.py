"""What devices remember of their charger and of their requests: a few numbers that fade, each at a speed of its own.

    recall = Recall(usual, devices)
    recall.note(passed_s, hour, charging, requests_per_s, measured)    # at each decision
    recall.rows()                                                      # of NAMES

Only the past goes into it. It is kept from one day to the next, and takes as much memory after a year as at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caq.errors import ConfigError
from policies.numbers import kind

HOURS = 24
Floats = NDArray[np.float64]
#: Time constants of the share of time on a charger, and of requests, s. Chosen on validation devices.
CHARGER_S = (3600.0, 14400.0, 43200.0, 216000.0)
REQUESTS_S = (900.0, 7200.0, 28800.0, 259200.0)
#: Requests that are assumed beside those counted, as a share of what is usual in a time constant.
PRIOR = 0.2
#: s since the charger was last plugged in or out where nobody knows, and of which changes are seen on a log scale.
UNKNOWN_S, RECENT_S = 3600.0, 600.0
#: A charger that is shared is plugged in when something else on it runs down, say the owner's phone: its charge per
#: hour off and on the charger, the latter up to and beyond 0.9, and where nobody knows. About the means of
#: `simulators/traces/phone.yaml`.
OTHER_OFF, OTHER_ON, OTHER_UNKNOWN = -0.115, (0.45, 0.18), 0.6
#: s: what happened in a longer silence is not known.
LONGEST_GAP_S = 1800.0
NAMES = (
    "since_change",
    "spell_before",
    "other_charge",
    *(f"charger_{s / 3600:g}h" for s in CHARGER_S),
    *(f"load_{s / 3600:g}h" for s in REQUESTS_S),
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
    """Of N devices that remember nothing yet, so that all is as usual. What it takes and gives are arrays (N,), or
    numbers if there is one device: `xp.of` makes them."""

    def __init__(self, usual: Usual, devices: int) -> None:
        self.usual = usual
        self.xp = xp = kind(devices)
        self._rate = xp.table(np.tile(usual.rate, 2))
        # Shares of time on a charger; requests counted, and usual at the same hours. As time passes they fade towards
        # what the charger is at, and towards requests that are assumed.
        self._prior = [float(PRIOR * usual.rate.mean() * s) for s in REQUESTS_S]
        self._charged = [self._all(usual.charging, devices) for _ in CHARGER_S]
        self._counted = [self._all(prior, devices) for prior in self._prior]
        self._expected = [self._all(prior, devices) for prior in self._prior]
        self._since_s, self._before_s = self._all(UNKNOWN_S, devices), self._all(UNKNOWN_S, devices)
        self._other = self._all(OTHER_UNKNOWN, devices)
        self._charging = self._all(np.nan, devices)

    def _all(self, value: float, devices: int) -> Any:
        return self.xp.of(np.full(devices, float(value)))

    def note(self, passed_s: Any, hour: Any, charging: Any, requests_per_s: Any, measured: Any) -> None:
        """Goes on by `passed_s` seconds, NaN or 0 where nobody knows, up to `hour`, 0..24.

        charging: 0 or 1, now; until now it was what was noted last. requests_per_s: finite, while time passed.
        measured: whether that is known.
        """
        xp = self.xp
        passed_s = xp.where((passed_s > 0) & (passed_s <= LONGEST_GAP_S), passed_s, 0.0)
        before = xp.where(self._charging >= 0, self._charging, charging)  # not NaN
        self._charged = [
            before + (kept - before) * xp.exp(passed_s / -s) for kept, s in zip(self._charged, CHARGER_S, strict=True)
        ]
        counted_s = passed_s * measured
        requests = requests_per_s * counted_s
        # In the middle of what passed, which may be yesterday.
        usual = self._rate[xp.whole(hour - (passed_s / 7200 - HOURS))] * counted_s
        for i, (prior, s) in enumerate(zip(self._prior, REQUESTS_S, strict=True)):
            fades = xp.exp(passed_s / -s)
            self._counted[i] = prior + (self._counted[i] - prior) * fades + requests
            self._expected[i] = prior + (self._expected[i] - prior) * fades + usual
        gain = xp.where(before > 0, xp.where(self._other > 0.9, OTHER_ON[1], OTHER_ON[0]), OTHER_OFF)
        self._other = xp.clip(self._other + gain * passed_s / 3600, 0.0, 1.0)
        since_s, same = self._since_s + passed_s, charging == before
        self._before_s = xp.where(same, self._before_s, since_s)
        self._since_s = xp.where(same, since_s, 0.0)
        self._charging = charging

    def rows(self) -> list[Any]:
        """As in NAMES: log(1 + time since the charger was plugged in or out / 600 s), and likewise for the spell before
        that; the guessed charge of what else is on it, 0..1; shares of time on it; and logs of requests over those
        usual at the same hours."""
        xp = self.xp
        load = (xp.log(counted / usual) for counted, usual in zip(self._counted, self._expected, strict=True))
        spells = (xp.log1p(spell_s / RECENT_S) for spell_s in (self._since_s, self._before_s))
        return [*spells, self._other, *self._charged, *load]

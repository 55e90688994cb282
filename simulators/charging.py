"""Charging power over time, W >= 0: from the wall by a schedule, from the sun, or as a recorded trace says.

Hand its negative to `Battery.step`, which takes less where the battery is full. Gaps stay NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from caq.errors import ConfigError, TraceError, nearest
from simulators.recording import Array, Recording

DAY_S = 86_400.0


def scheduled(times_s: Array, windows_s: Sequence[tuple[float, float]], power_w: float) -> Array:
    """(T,) W: `power_w` while plugged in.

    times_s: (T,), of which 0 is a midnight. windows_s: from and until, in seconds of the day, 0..86400; one that ends
    before it starts goes on after midnight. Raises ConfigError for other windows and for a power below 0.
    """
    if not power_w >= 0:
        raise ConfigError(f"power_w: must be at least 0, not {power_w}")
    of_day = np.mod(times_s, DAY_S)
    plugged = np.zeros(np.shape(times_s), bool)
    for i, (start, end) in enumerate(windows_s):
        if not (0 <= start <= DAY_S and 0 <= end <= DAY_S) or start == end:
            raise ConfigError(f"windows_s[{i}]: must be two different times from 0 to 86400 s, not {start}, {end}")
        after, before = of_day >= start, of_day < end
        plugged |= after & before if start < end else after | before
    return plugged * float(power_w)


def recorded(charging: Array, power_w: float) -> Array:
    """(T,) W of a trace's `charging` column (T,) of 0, 1 and NaN. Raises TraceError that names the row."""
    values = np.asarray(charging, np.float64)
    if rows := np.flatnonzero(~(np.isnan(values) | (values == 0) | (values == 1))).tolist():
        raise TraceError(f"charging, row {rows[0]}: must be 0 or 1, not {values[rows[0]]}")
    return values * power_w


class Irradiance(NamedTuple):
    """A year at one place; arrays (T,)."""

    times_s: Array  # since January 1, local standard time; the middle of the interval that a value stands for
    ghi_w_m2: Array  # global, on the horizontal
    air_c: Array


def read_irradiance(path: Path, site: str) -> Irradiance:
    """A site of solar_harvest/solar.npz: arrays (T, 4) of one year, with the names of the columns in `columns`.

    Raises TraceError that names file, array and row: see `simulators.recording`; an irradiance outside 0..1500 W/m2.
    """
    file = Recording(path, ("columns", site))
    table, columns = file.series(site, 2), [str(name) for name in file["columns"]]
    for name in ("ghi_w_m2", "air_temp_c"):
        if name not in columns:
            raise TraceError(f"{path}: columns: {name!r} is missing{nearest(name, columns)}")
    if table.shape[1] != len(columns):
        file.fail(site, None, f"has {table.shape[1]} columns, and `columns` names {len(columns)}")
    ghi, air = (table[:, columns.index(name)] for name in ("ghi_w_m2", "air_temp_c"))
    file.check(site, (ghi >= 0) & (ghi <= 1500), ghi, "ghi_w_m2 must be from 0 to 1500")
    step_s = 365 * DAY_S / len(ghi)
    return Irradiance((np.arange(len(ghi)) + 0.5) * step_s, ghi, air)


def solar(irradiance: Irradiance, times_s: Array, area_m2: float, efficiency: float) -> Array:
    """(T,) W of a flat panel: irradiance, linear between its values, times area and efficiency.

    times_s: (T,) since January 1; the year repeats. efficiency: 0..1, of panel and charger together, the same at any
    light and temperature. Raises ConfigError for other figures.
    """
    if not area_m2 > 0:
        raise ConfigError(f"area_m2: must be above 0, not {area_m2}")
    if not 0 < efficiency <= 1:
        raise ConfigError(f"efficiency: must be above 0 and at most 1, not {efficiency}")
    light = np.interp(np.asarray(times_s, np.float64), irradiance.times_s, irradiance.ghi_w_m2, period=365 * DAY_S)
    return light * (area_m2 * efficiency)

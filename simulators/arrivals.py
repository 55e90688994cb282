"""Recorded times of requests, as a CSV file: a header `t_s`, then a line for each request.

    t_s
    0.25
    0.25        two at once
    17.5

Seconds since the day began, ascending.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from caq.errors import TraceError

HEADER = "t_s"


def read_arrivals(path: str | Path) -> NDArray[np.float64]:
    """(R,) float64, at least 0 and ascending. Raises TraceError that names the file and the line (counted from 1)."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise TraceError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise TraceError(f"{path}: is not UTF-8 text") from error
    if not lines or lines[0].strip() != HEADER:
        raise TraceError(f"{path}: line 1 must be the header {HEADER!r}, not {lines[0] if lines else ''!r}")
    times_s: list[float] = []
    for number, line in enumerate(lines[1:], 2):
        if line.strip():
            times_s.append(_time(f"{path}: line {number}", line, times_s[-1] if times_s else 0.0))
    if not times_s:
        raise TraceError(f"{path}: has a header but no requests")
    return np.array(times_s)


def _time(where: str, text: str, before_s: float) -> float:
    try:
        time_s = float(text)
    except ValueError:
        raise TraceError(f"{where}: {text!r} is not a number") from None
    if not (math.isfinite(time_s) and time_s >= 0):
        raise TraceError(f"{where}: must be a finite number of at least 0, not {text.strip()}")
    if time_s < before_s:
        raise TraceError(f"{where}: {time_s:g} s is before the request above it, {before_s:g} s; sort the file")
    return time_s

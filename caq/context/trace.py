"""A recorded context, replayed from a file (its format: `caq.context.recording`) or from arrays.

At time t the replay shows the last row at or before t, and counts ages from it: a gap in the recording stays a gap, in
which values first grow old and then stale.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from caq.context.reading import FIELDS, Context, Quality, Reading, field_spec, missing
from caq.context.recording import TIME, Recording, checked_columns, default_stale_after_s, read, read_csv
from caq.errors import ConfigError


class RecordedContext:
    """Replays columns of a recording; reads like a `ContextMonitor`.

    columns: `t_s`, ascending seconds, and context fields, all of shape (rows,); NaN is a missing value.
    generated: whether a program made the values up; their quality is then simulated instead of recorded.
    stale_after_s: age beyond which a value is stale; by default three median intervals, and at least 5 s.
    name: the source that readings name. clock: monotonic seconds, for `start`.
    Raises TraceError that names the row (counted from 0) and the column.

    Simulated time moves by `seek` and `advance`; `start` lets it follow the clock.
    """

    def __init__(
        self,
        columns: Mapping[str, NDArray[np.generic] | Sequence[float]],
        generated: bool = False,
        *,
        stale_after_s: float | None = None,
        name: str = "recording",
        metadata: Mapping[str, str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._columns = checked_columns(columns, name)
        self._times_s = self._columns.pop(TIME)
        if stale_after_s is None:
            stale_after_s = default_stale_after_s(self._times_s)
        if not stale_after_s > 0:
            raise ConfigError(f"stale_after_s must be above 0, not {stale_after_s}")
        self.metadata: Mapping[str, str] = MappingProxyType(dict(metadata or {}))
        self.generated = generated
        self._quality = Quality.SIMULATED if generated else Quality.RECORDED
        self._stale_after_s = stale_after_s
        self._name = name
        self._clock = clock
        self._lock = threading.Lock()
        self._position_s = float(self._times_s[0])
        self._speed = 0.0
        self._started_s = 0.0

    @classmethod
    def from_file(cls, path: str | Path, *, stale_after_s: float | None = None) -> RecordedContext:
        """Reads a CSV file or a `.npz`; raises TraceError that names the file, the row and the column."""
        return cls._of(read(path), stale_after_s)

    @classmethod
    def from_csv(cls, path: str | Path, *, stale_after_s: float | None = None) -> RecordedContext:
        """Reads a CSV file; raises TraceError that names the file, the line (counted from 1) and the column."""
        return cls._of(read_csv(path), stale_after_s)

    @classmethod
    def _of(cls, recording: Recording, stale_after_s: float | None) -> RecordedContext:
        return cls(
            recording.columns,
            recording.generated,
            stale_after_s=stale_after_s,
            name=recording.path.name,
            metadata=recording.metadata,
        )

    @property
    def fields(self) -> tuple[str, ...]:
        """The context fields that the recording holds."""
        return tuple(self._columns)

    @property
    def times_s(self) -> NDArray[np.float64]:
        """Times of the rows in seconds, (rows,), read-only."""
        return self._times_s

    @property
    def duration_s(self) -> float:
        """Seconds from the first row to the last."""
        return float(self._times_s[-1] - self._times_s[0])

    @property
    def position_s(self) -> float:
        """The time that `read` shows, on the scale of `t_s`."""
        with self._lock:
            return self._now_s()

    @property
    def finished(self) -> bool:
        """Whether the replay stands at the last row or beyond it."""
        return self.position_s >= float(self._times_s[-1])

    def seek(self, t_s: float) -> Context:
        """Moves to the time `t_s` and returns the context there. ConfigError if it is not a finite number."""
        if not math.isfinite(t_s):
            raise ConfigError(f"t_s must be a finite number, not {t_s}")
        with self._lock:
            self._move(t_s)
        return self._at(t_s)

    def advance(self, dt_s: float) -> Context:
        """Moves on by `dt_s` >= 0 seconds and returns the context there. ConfigError if it is negative."""
        if not (math.isfinite(dt_s) and dt_s >= 0):
            raise ConfigError(f"dt_s must be a finite number of at least 0, not {dt_s}")
        with self._lock:
            t_s = self._now_s() + dt_s
            self._move(t_s)
        return self._at(t_s)

    def start(self, speed: float = 1.0) -> RecordedContext:
        """Lets time follow the clock, `speed` recorded seconds a second. ConfigError if that is not positive."""
        if not (math.isfinite(speed) and speed > 0):
            raise ConfigError(f"speed must be above 0, not {speed}")
        with self._lock:
            self._move(self._now_s())
            self._speed = speed
        return self

    def stop(self) -> None:
        """Holds time where it is."""
        with self._lock:
            self._move(self._now_s())
            self._speed = 0.0

    def read(self) -> Context:
        """The context at `position_s`."""
        return self._at(self.position_s)

    def _move(self, t_s: float) -> None:
        self._position_s = t_s
        self._started_s = self._clock()

    def _now_s(self) -> float:
        return self._position_s + self._speed * (self._clock() - self._started_s if self._speed else 0.0)

    def _at(self, t_s: float) -> Context:
        row = int(np.searchsorted(self._times_s, t_s, side="right")) - 1
        readings = {name: self._reading(name, row, t_s) for name in self._columns}
        readings["time_s"] = Reading(t_s, field_spec("time_s").unit, self._name, quality=self._quality)
        return Context.from_readings(readings)

    def _reading(self, name: str, row: int, t_s: float) -> Reading:
        if row < 0:
            return missing(name, self._name, f"the recording begins at {self._times_s[0]:g} s")
        value = float(self._columns[name][row])
        if math.isnan(value):
            return missing(name, self._name, "the recording has no value here")
        age_s = t_s - float(self._times_s[row])
        stale = age_s > self._stale_after_s
        spec = FIELDS[name]
        reason = f"the last row is {age_s:g} s old" if stale else ""
        value = bool(value) if spec.boolean else min(value, spec.high)
        return Reading(value, spec.unit, self._name, age_s, self._quality, stale, reason)

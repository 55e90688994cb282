"""A recorded context, replayed from a CSV file or from arrays.

    # generated: true                     optional lines `# key: value` before the header
    t_s,state_of_charge,charging          t_s first or anywhere, and any context fields
    0,0.83,0
    60,0.82,0
    120,,1                                an empty cell is missing

Times ascend. At time t the replay shows the last row at or before t, and counts ages from it: a gap in the recording
stays a gap, in which values first grow old and then stale.
"""

from __future__ import annotations

import csv
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from caq.context.reading import FIELDS, Context, Quality, Reading, field_spec, missing
from caq.errors import ConfigError, TraceError, nearest

TIME = "t_s"
COLUMNS = (TIME, *(name for name in FIELDS if name != "time_s"))


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
        self._columns = _validated({key: _as_column(name, key, column) for key, column in columns.items()}, name)
        self._times_s = self._columns.pop(TIME)
        if stale_after_s is None:
            rows = len(self._times_s)
            stale_after_s = max(5.0, 3 * float(np.median(np.diff(self._times_s)))) if rows > 1 else 5.0
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
    def from_csv(cls, path: str | Path, *, stale_after_s: float | None = None) -> RecordedContext:
        """Reads a CSV file; raises TraceError that names the file, the line (counted from 1) and the column."""
        path = Path(path)
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines(keepends=True)
        except OSError as error:
            raise TraceError(f"{path}: cannot be read: {error.strerror or error}") from error
        except UnicodeDecodeError as error:
            raise TraceError(f"{path}: is not UTF-8 text") from error
        comments = next((at for at, line in enumerate(lines) if not line.startswith("#")), len(lines))
        metadata = {
            key.strip(): value.strip()
            for line in lines[:comments]
            for key, colon, value in (line[1:].partition(":"),)
            if colon
        }
        generated = metadata.get("generated", "false").lower()
        if generated not in ("true", "false"):
            raise TraceError(f"{path}: '# generated:' must be true or false, not {generated!r}")
        columns = _parsed(path, lines, comments)
        return cls(columns, generated == "true", stale_after_s=stale_after_s, name=path.name, metadata=metadata)

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


def _parsed(path: Path, lines: list[str], comments: int) -> dict[str, NDArray[np.float64]]:
    """The columns of the CSV text after its comment lines; empty cells become NaN."""
    reader = csv.reader(lines[comments:], strict=True)
    cells: list[list[float]] = []
    numbers: list[int] = []
    header: list[str] | None = None
    try:
        for row in reader:
            number = comments + reader.line_num
            if header is None:
                header = _header(row, f"{path}: line {number}")
            elif row:
                if len(row) != len(header):
                    raise TraceError(f"{path}: line {number} has {len(row)} cells, the header has {len(header)}")
                cells.append([_cell(path, number, *pair) for pair in zip(header, row, strict=True)])
                numbers.append(number)
    except csv.Error as error:
        raise TraceError(f"{path}: line {comments + reader.line_num} is not CSV: {error}") from error
    if header is None:
        raise TraceError(f"{path}: is empty; the first line must name the columns, such as t_s,state_of_charge")
    if not cells:
        raise TraceError(f"{path}: has a header but no rows")
    table = np.array(cells, dtype=np.float64)
    columns = {name: table[:, at] for at, name in enumerate(header)}
    return _validated(columns, str(path), numbers)


def _header(row: list[str], where: str) -> list[str]:
    header = [cell.strip() for cell in row]
    for at, name in enumerate(header):
        if name not in COLUMNS:
            raise TraceError(f"{where}: unknown column {name!r}{nearest(name, COLUMNS)}")
        if name in header[:at]:
            raise TraceError(f"{where}: column {name!r} stands there twice")
    return header


def _cell(path: Path, number: int, name: str, text: str) -> float:
    if not text.strip():
        return math.nan
    try:
        value = float(text)
    except ValueError:
        raise TraceError(f"{path}: line {number}, column {name}: {text!r} is not a number") from None
    if math.isnan(value):
        raise TraceError(f"{path}: line {number}, column {name}: NaN; leave the cell empty if there is no value")
    return value


def _as_column(source: str, name: str, column: NDArray[np.generic] | Sequence[float]) -> NDArray[np.float64]:
    try:
        # A copy, so that nobody changes the recording afterwards.
        return np.array(column, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TraceError(f"{source}: column {name} does not hold numbers: {error}") from error


def _validated(
    columns: dict[str, NDArray[np.float64]], source: str, numbers: Sequence[int] | None = None
) -> dict[str, NDArray[np.float64]]:
    """Returns `columns`, read-only; raises TraceError. `numbers` are the rows' lines in the file."""

    def where(row: int, name: str) -> str:
        return f"{source}: {f'line {numbers[row]}' if numbers else f'row {row}'}, column {name}"

    for name in columns:
        if name not in COLUMNS:
            raise TraceError(f"{source}: unknown column {name!r}{nearest(name, COLUMNS)}")
    if TIME not in columns:
        raise TraceError(f"{source}: there is no column {TIME}")
    if len(columns) == 1:
        raise TraceError(f"{source}: there is no context column beside {TIME}; known: {', '.join(COLUMNS[1:])}")
    times_s = columns[TIME]
    if times_s.ndim != 1 or not len(times_s):
        raise TraceError(f"{source}: column {TIME} must have shape (rows,) and at least one row")
    for name, column in columns.items():
        if column.shape != times_s.shape:
            raise TraceError(f"{source}: column {name} has shape {column.shape}, {TIME} has {times_s.shape}")
        if (row := _first(np.isinf(column))) is not None:
            raise TraceError(f"{where(row, name)}: the value is infinite")
        column.flags.writeable = False
    if (row := _first(np.isnan(times_s))) is not None:
        raise TraceError(f"{where(row, TIME)}: every row needs a time")
    if (row := _first(np.diff(times_s) <= 0)) is not None:
        kind = "twice" if times_s[row] == times_s[row + 1] else "out of order"
        raise TraceError(f"{where(row + 1, TIME)}: the time {times_s[row + 1]:g} s stands there {kind}")
    for name, column in columns.items():
        if name == TIME:
            continue
        spec = FIELDS[name]
        known = ~np.isnan(column)
        within = (column >= spec.low) & (column <= spec.high + spec.slack)
        good = np.isin(column, (0, 1)) if spec.boolean else within
        if (row := _first(known & ~good)) is not None:
            allowed = "0 or 1" if spec.boolean else f"{spec.low:g}..{spec.high:g} {spec.unit}"
            raise TraceError(f"{where(row, name)}: {column[row]:g} is not {allowed}")
    return columns


def _first(bad: NDArray[np.bool_]) -> int | None:
    return int(np.argmax(bad)) if bad.any() else None

"""Files of recorded contexts: one reader and one writer for all that record, generate, replay or simulate them.

CSV, for people:

    # generated: true                     optional lines `# key: value` before the header
    t_s,state_of_charge,charging          t_s first or anywhere, and any context fields
    0,0.83,0
    60,0.82,0
    120,,1                                an empty cell is missing

`.npz`, for programs: an array of shape (rows,) for each column, NaN is missing; a text of shape () for each comment.

Times are in seconds and ascend. Values are in the units and ranges of `caq.context.reading.FIELDS`.
"""

from __future__ import annotations

import csv
import math
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caq.context.reading import FIELDS
from caq.errors import TraceError, nearest

TIME = "t_s"
COLUMNS = (TIME, *(name for name in FIELDS if name != "time_s"))

Columns = Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True, eq=False)
class Recording:
    """What a file holds: columns of shape (rows,), float64, read-only, `t_s` among them; NaN is a missing value."""

    path: Path
    columns: Columns
    metadata: Mapping[str, str]

    @property
    def generated(self) -> bool:
        """Whether a program made the values up."""
        return self.metadata.get("generated", "false").lower() == "true"


def read(path: str | Path) -> Recording:
    """Reads a `.npz`, or CSV under any other name. Raises TraceError that names the file, the row and the column."""
    return read_npz(path) if Path(path).suffix == ".npz" else read_csv(path)


def read_csv(path: str | Path) -> Recording:
    """Raises TraceError that names the file, the line (counted from 1) and the column."""
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
    return Recording(path, _parsed(path, lines, comments), _checked_metadata(path, metadata))


def read_npz(path: str | Path) -> Recording:
    """Raises TraceError that names the file, the row (counted from 0) and the column."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            arrays = np.load(file, allow_pickle=False)
            if not isinstance(arrays, np.lib.npyio.NpzFile):
                raise TraceError(f"{path}: is a single array, not a .npz; write it with numpy.savez")
            found = {name: arrays[name] for name in arrays.files}
    except OSError as error:
        raise TraceError(f"{path}: cannot be read: {error.strerror or error}") from error
    except TraceError:
        raise
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise TraceError(f"{path}: is not a .npz of plain arrays: {error}") from error
    if odd := next((name for name, array in found.items() if not isinstance(array, np.ndarray)), None):
        raise TraceError(f"{path}: holds {odd!r}, which is no array; write it with numpy.savez")
    metadata = {name: str(array) for name, array in found.items() if array.dtype.kind == "U" and array.ndim == 0}
    columns = {name: array for name, array in found.items() if name not in metadata}
    if not columns:
        raise TraceError(f"{path}: is empty; it must hold arrays such as t_s and state_of_charge")
    return Recording(path, checked_columns(columns, str(path)), _checked_metadata(path, metadata))


def write(
    path: str | Path,
    columns: Mapping[str, NDArray[np.generic] | Sequence[float]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes columns of equal length with their comments: a `.npz`, or CSV under any other name.

    A row without a time and out-of-range values are refused as `read` refuses them: TraceError names row and column.
    """
    path = Path(path)
    table = checked_columns(columns, str(path))
    metadata = _checked_metadata(path, dict(metadata or {}))
    for key, value in metadata.items():
        if key in COLUMNS or ":" in key or not f"{key}{value}".isprintable():
            raise TraceError(f"{path}: the comment {key!r}: {value!r} is no line `# key: value`")
    if path.suffix == ".npz":
        with path.open("wb") as file:
            arrays: dict[str, Any] = {**table, **{key: np.array(value) for key, value in metadata.items()}}
            np.savez_compressed(file, **arrays)
        return
    with path.open("w", newline="", encoding="utf-8") as file:
        file.write(head(table, metadata))
        file.writelines(map(line, zip(*(column.tolist() for column in table.values()), strict=True)))


def head(columns: Iterable[str], metadata: Mapping[str, str]) -> str:
    """The lines of a CSV file before its rows."""
    return "".join(f"# {key}: {value}\n" for key, value in metadata.items()) + ",".join(columns) + "\n"


def line(values: Sequence[float | None]) -> str:
    """One row of a CSV file: the shortest digits that give the same number, None and NaN as an empty cell."""
    return ",".join("" if value is None or math.isnan(value) else _digits(value) for value in values) + "\n"


def _digits(value: float) -> str:
    return str(int(value)) if float(value).is_integer() and abs(value) < 2**53 else repr(float(value))


def default_stale_after_s(times_s: NDArray[np.float64]) -> float:
    """The age beyond which values of a recording are stale: three median intervals, and at least 5 s."""
    return max(5.0, 3 * float(np.median(np.diff(times_s)))) if len(times_s) > 1 else 5.0


def _checked_metadata(path: Path, metadata: Mapping[str, str]) -> Mapping[str, str]:
    generated = metadata.get("generated", "false").lower()
    if generated not in ("true", "false"):
        raise TraceError(f"{path}: '# generated:' must be true or false, not {generated!r}")
    return metadata


def checked_columns(
    columns: Mapping[str, NDArray[np.generic] | Sequence[float]], source: str
) -> dict[str, NDArray[np.float64]]:
    """Copies of `columns`, float64 and read-only. Raises TraceError that names the row (counted from 0) and column."""
    return _validated({name: _as_column(source, name, column) for name, column in columns.items()}, source)


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
    if np.asarray(column).dtype.kind not in "biufO":
        raise TraceError(f"{source}: column {name} does not hold numbers but {np.asarray(column).dtype}")
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

"""Writes a context row by row into a CSV file that `RecordedContext` replays.

Each row is handed to the system in one piece as soon as it is there, so the file of a recording that was killed reads
up to its last row. A power cut may take what the system had not yet put on the disk.
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType

from caq.context import recording
from caq.context.reading import Context
from caq.errors import TraceError

#: Comment: when `t_s` was 0, by the clock on the wall.
STARTED = "started"


class Recorder:
    """Appends contexts to a CSV file with a column for every context field.

    `t_s` is seconds since the start of the recording, by a clock that nobody sets. A field that is missing or stale is
    an empty cell. append: goes on with a file of an earlier recording; the time in between stays a gap, as long as the
    clock on the wall says.
    clock, wall: seconds, monotonic and since 1970.
    Raises TraceError if the file exists (and `append` is not asked for), or cannot be gone on with.
    """

    def __init__(
        self,
        path: str | Path,
        append: bool = False,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.path = Path(path)
        if self.path.suffix == ".npz":
            raise TraceError(f"{self.path}: rows are recorded as CSV; give another name")
        #: Rows written, and the time of the last row in the file.
        self.rows = 0
        self.last_s = -1.0
        self._clock = clock
        offset_s = 0.0
        if append and self.path.exists():
            started_s = self._resumable()
            # A wall clock that went back must not bring times out of order.
            offset_s = max(wall() - started_s, self.last_s + 1)
        try:
            # Unbuffered: a row is one write.
            self._file = io.FileIO(self.path, "a" if append else "x")
        except FileExistsError:
            raise TraceError(f"{self.path}: exists already; append to it (--append), or give another name") from None
        except OSError as error:
            raise TraceError(f"{self.path}: cannot be written: {error.strerror or error}") from error
        if not os.fstat(self._file.fileno()).st_size:
            started = datetime.fromtimestamp(wall(), timezone.utc).isoformat(timespec="milliseconds")
            self._write(recording.head(recording.COLUMNS, {"generated": "false", STARTED: started}))
        self._zero_s = clock() - offset_s

    def add(self, context: Context) -> float:
        """Writes one row with the time now; returns its `t_s`. Nothing is written within 1 ms of the row before."""
        t_s = round(self._clock() - self._zero_s, 3)
        if t_s <= self.last_s:
            return self.last_s
        values = [context.value(name) for name in recording.COLUMNS[1:]]
        self._write(recording.line([t_s, *values]))
        self.last_s = t_s
        self.rows += 1
        return t_s

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, text: str) -> None:
        content = text.encode()
        try:
            complete = self._file.write(content) == len(content)
        except OSError as error:
            raise TraceError(f"{self.path}: cannot be written: {error.strerror or error}") from error
        if not complete:
            raise TraceError(f"{self.path}: the disk is full; delete the last line, which is not complete")

    def _resumable(self) -> float:
        """When the recording in the file was started, in seconds since 1970; notes its last time."""
        found = recording.read_csv(self.path)
        if tuple(found.columns) != recording.COLUMNS or found.generated:
            raise TraceError(f"{self.path}: was not written by a recorder of this version; give another name")
        with self.path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            if file.read() != b"\n":
                raise TraceError(f"{self.path}: the last line has no end, as if cut off; delete that line")
        self.last_s = float(found.columns[recording.TIME][-1])
        try:
            started = datetime.fromisoformat(found.metadata[STARTED])
            return started.timestamp()
        except (KeyError, ValueError):
            raise TraceError(f"{self.path}: has no line '# {STARTED}: DATE'; give another name") from None

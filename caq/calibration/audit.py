"""The audit log of calibration: a line of JSON for each change that was judged, in a file that does not grow for ever.

{"time": "2026-01-31T12:00:00Z", "step": 7, "what": "statistics", "promoted": true, "reasons": [], "samples": 31,
 "accuracy_before": {"w8a8": 0.81}, "accuracy_after": {"w8a8": 0.87}, "bytes": 1536, "ms": 31.2, "sets": ["w8a8"]}
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any


class AuditLog:
    """Appends records to `path`; call it with each. OSErrors pass through.

    max_bytes: a file that has grown beyond is renamed to `path` with `.1` at its end, over an older one, so both
    together stay below twice that and a record. clock: seconds since 1970.
    """

    def __init__(self, path: str | os.PathLike[str], max_bytes: int = 1_000_000, clock: Any = time.time) -> None:
        self.path, self._max_bytes, self._clock = Path(path), max_bytes, clock

    def __call__(self, entry: dict[str, Any]) -> None:
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._clock()))
        if self.path.exists() and self.path.stat().st_size > self._max_bytes:
            self.path.replace(f"{self.path}.1")
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"time": now, **entry}) + "\n")

"""What can be sensed on this device, for `caq doctor`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from caq.context.monitor import ContextMonitor
from caq.context.reading import FIELDS
from caq.context.sources import Source, default_sources


@dataclass(frozen=True)
class ProbeRow:
    """One context field: its value or, if it is missing, the reason in words."""

    what: str
    value: float | bool | None
    unit: str
    source: str
    quality: str
    reason: str


def probe(
    root: Path = Path("/"), sources: Sequence[Source] | None = None, *, interval_s: float = 0.1, deadline_s: float = 1.0
) -> tuple[ProbeRow, ...]:
    """Asks every source twice, `interval_s` apart since loads and counters need an interval; one row a field."""
    monitor = ContextMonitor(deadline_s=deadline_s, sources=default_sources(root) if sources is None else sources)
    monitor.poll()
    time.sleep(interval_s)
    monitor.poll()
    context = monitor.read()
    return tuple(
        ProbeRow(name, reading.value, reading.unit, reading.source, reading.quality.value, reading.reason)
        for name in FIELDS
        if name != "time_s"
        for reading in (context.reading(name),)
    )

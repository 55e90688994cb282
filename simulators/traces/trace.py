"""Traces of devices: read, written, put on a fixed step, and split into devices to train on and devices held out."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from caq.context import recording
from caq.context.recording import TIME, checked_columns, default_stale_after_s
from caq.errors import ConfigError


@dataclass(frozen=True, eq=False)
class Trace:
    """What one device recorded, or what a program made up.

    times_s: (T,) float64, ascending. columns: context fields by name, (T,) float64, NaN is a missing value; times and
    columns are read-only copies of what is given. source: the file, or what made it. generated: whether made up.
    metadata: the comments of the file; `device`, if there, names the device.
    Raises TraceError that names row and column: times out of order, values out of range, unknown columns.
    """

    times_s: NDArray[np.float64]
    columns: Mapping[str, NDArray[np.float64]]
    source: str
    generated: bool = False
    metadata: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        columns = checked_columns({TIME: self.times_s, **self.columns}, self.source)
        object.__setattr__(self, "times_s", columns.pop(TIME))
        object.__setattr__(self, "columns", columns)

    @property
    def device(self) -> str:
        """The device's id: the comment `# device: id`, or else the file's name without its ending."""
        return self.metadata.get("device") or Path(self.source).stem


class Split(NamedTuple):
    """Device ids, each in the order given."""

    train: tuple[str, ...]
    held_out: tuple[str, ...]


def read(path: str | Path) -> Trace:
    """Reads a CSV file or a `.npz` (the formats: `caq.context.recording`); gaps stay gaps.

    Raises TraceError that names file, row and column.
    """
    found = recording.read(path)
    columns = {name: column for name, column in found.columns.items() if name != TIME}
    return Trace(found.columns[TIME], columns, str(path), found.generated, found.metadata)


def write(path: str | Path, trace: Trace) -> None:
    """Writes what `read` gives back: a `.npz`, or CSV under any other name."""
    metadata = {**trace.metadata, "generated": str(trace.generated).lower()}
    recording.write(path, {TIME: trace.times_s, **trace.columns}, metadata)


def resample(trace: Trace, step_s: float, max_gap_s: float | None = None) -> Trace:
    """The trace at its first time and every `step_s` seconds from there on, as a replay shows it.

    Each value is that of the last row at or before; where that row is more than `max_gap_s` old, or had no value, it
    is NaN: a gap stays a gap. By default three median intervals of the trace, and at least 5 s.
    Raises ConfigError if `step_s` or `max_gap_s` is not a finite number above 0.
    """
    if max_gap_s is None:
        max_gap_s = default_stale_after_s(trace.times_s)
    for name, value in (("step_s", step_s), ("max_gap_s", max_gap_s)):
        if not 0 < value < math.inf:
            raise ConfigError(f"{name} must be a finite number above 0, not {value}")
    first_s, last_s = trace.times_s[0], trace.times_s[-1]
    times_s = first_s + step_s * np.arange(math.floor((last_s - first_s) / step_s) + 1)
    row = np.searchsorted(trace.times_s, times_s, side="right") - 1
    fresh = times_s - trace.times_s[row] <= max_gap_s
    columns = {name: np.where(fresh, column[row], np.nan) for name, column in trace.columns.items()}
    return Trace(times_s, columns, trace.source, trace.generated, trace.metadata)


def split(devices: Iterable[str], held_out: float = 0.3, seed: int = 0) -> Split:
    """Splits device ids by a hash of seed and id: about the share `held_out` of them is held out.

    A device stays on its side whatever other devices there are, so nothing learned before a device was added ever
    touches a device held out. Raises ConfigError if `held_out` is not within 0..1, an id stands there twice, or one
    side is empty.
    """
    devices = tuple(devices)
    if not 0 < held_out < 1:
        raise ConfigError(f"held_out must be above 0 and below 1, not {held_out}")
    if len(set(devices)) < len(devices):
        twice = next(device for at, device in enumerate(devices) if device in devices[:at])
        raise ConfigError(f"the device {twice!r} stands there twice")
    out = {device for device in devices if _unit_hash(f"{seed}:{device}") < held_out}
    if not 0 < len(out) < len(devices):
        side = "held-out" if not out else "train"
        raise ConfigError(f"no {side} device among {len(devices)}; give more devices, another share or another seed")
    return Split(tuple(d for d in devices if d not in out), tuple(d for d in devices if d in out))


def _unit_hash(text: str) -> float:
    """0..1, the same on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64

"""What a source is, and the sources of a Linux device."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from caq.context.battery import BatterySource, psutil_battery
from caq.context.cpu import FrequencySource, LoadSource, ScreenSource, os_load
from caq.context.memory import MemorySource, PressureSource, psutil_room
from caq.context.power import PowerSource
from caq.context.reading import Reading
from caq.context.thermal import TemperatureSource


class Source(Protocol):
    """Something that senses one or more context fields.

    `read` returns a reading for each of `fields`. A sensor that does not exist is a missing reading, not an error; a
    sensor that exists but fails now may raise: whoever polls keeps its last value and lets it age. `read` is never
    called by two threads at once, and may block: only its own readings grow old.
    """

    @property
    def name(self) -> str: ...

    @property
    def fields(self) -> tuple[str, ...]: ...

    def read(self) -> Mapping[str, Reading]: ...


def default_sources(root: Path = Path("/")) -> tuple[Source, ...]:
    """Every source of this device. Under another `root`, such as a test's, nothing but that tree is asked."""
    here = root == Path("/")
    return (
        BatterySource(root, psutil_battery if here else None),
        PowerSource(root),
        MemorySource(root, psutil_room if here else None),
        PressureSource(root),
        TemperatureSource(root),
        LoadSource(root, os_load if here else None),
        FrequencySource(root),
        ScreenSource(root),
    )

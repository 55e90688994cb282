"""The temperature of one zone.

A device has many zones and their numbers change between boots. The source chooses one zone, the processor's where it
can tell, and stays with it: a temperature that jumps between sensors would look like a device that heats and cools.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from caq.context.files import children, read_int, read_text
from caq.context.reading import Reading, missing, sensed

# Labels of processor sensors, best first; the others come after them in the order of the kernel.
PREFERRED = ("x86_pkg_temp", "package id 0", "tctl", "cpu", "soc", "coretemp", "k10temp", "acpitz")


class Zone(NamedTuple):
    label: str
    path: Path


def zones(root: Path = Path("/")) -> list[Zone]:
    """Every temperature in thermal zones and hwmon, the processor's first."""
    return sorted((*_thermal_zones(root), *_hwmon(root)), key=lambda zone: _rank(zone.label))


def _rank(label: str) -> int:
    return next((rank for rank, word in enumerate(PREFERRED) if word in label.lower()), len(PREFERRED))


def _thermal_zones(root: Path) -> Iterator[Zone]:
    for folder in children(root / "sys/class/thermal", "thermal_zone*"):
        yield Zone(read_text(folder / "type") or folder.name, folder / "temp")


def _hwmon(root: Path) -> Iterator[Zone]:
    for folder in children(root / "sys/class/hwmon", "hwmon*"):
        chip = read_text(folder / "name") or folder.name
        # One-wire probes hang on a cable outside the device and take most of a second to answer.
        if chip.startswith("w1_"):
            continue
        for path in children(folder, "temp*_input"):
            own = read_text(path.with_name(path.name.replace("_input", "_label"))) or path.name
            yield Zone(f"{chip} {own}", path)


class TemperatureSource:
    """Degrees Celsius of one zone, pinned at the first reading that is believable.

    `read` raises OSError when the pinned zone, which was there before, cannot be read now.
    """

    name = "temperature"
    fields = ("temperature_c",)

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._pinned: Zone | None = None

    def read(self) -> Mapping[str, Reading]:
        if self._pinned is None:
            return {"temperature_c": self._pin()}
        if not self._pinned.path.exists():
            # A driver that was loaded anew gives the same label under another number.
            again = (zone for zone in zones(self._root) if self._pinned.label == zone.label)
            self._pinned = next(again, self._pinned)
        return {"temperature_c": _reading(self._pinned, self._pinned.path.read_text())}

    def _pin(self) -> Reading:
        found = zones(self._root)
        for zone in found:
            millidegrees = read_int(zone.path)
            # 0 is what most disabled zones report; a zone that is truly at 0 °C is not the processor's.
            if millidegrees and (reading := _reading(zone, str(millidegrees))).value is not None:
                self._pinned = zone
                return reading
        reason = (
            f"none of the {len(found)} temperature sensors gives a believable value"
            if found
            else "this device shows no temperature sensor (no thermal zone, no hwmon temperature)"
        )
        return missing("temperature_c", "sys/class/thermal", reason)


def _reading(zone: Zone, text: str) -> Reading:
    source = f"{zone.label} ({zone.path.parent.name})"
    try:
        return sensed("temperature_c", int(text) / 1000, source)
    except ValueError:
        return missing("temperature_c", source, f"the sensor gave {text.strip()!r}, which is not a number")

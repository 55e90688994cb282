"""Charge and power from /sys/class/power_supply.

The folder lists every battery that the kernel knows, also those of keyboards and headsets (`scope` = Device), in units
that differ by driver: energy in uWh with power in uW, or charge in uAh with current in uA. Units are never mixed: a
charge is compared with a charge, and a current is multiplied by its own voltage.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import psutil

from caq.context.files import children, read_int, read_text
from caq.context.reading import Quality, Reading, missing, sensed

POWER_SUPPLY = "sys/class/power_supply"

# A freshly calibrated full battery may report a little more than its last full charge; anything above is broken.
OVERFULL = 1.05


def batteries(root: Path = Path("/")) -> list[Path]:
    """The folders of the batteries that feed this device; empty if it has none."""
    return [
        folder
        for folder in children(root / POWER_SUPPLY)
        if read_text(folder / "type") == "Battery"
        and read_text(folder / "scope") != "Device"
        and read_int(folder / "present") != 0
    ]


def drawn_power_w(battery: Path) -> float | None:
    """The power that the battery delivers, in W; None if its driver does not say. Some drivers give it a sign."""
    power_uw = read_int(battery / "power_now")
    if power_uw is not None:
        return abs(power_uw) * 1e-6
    current_ua, voltage_uv = read_int(battery / "current_now"), read_int(battery / "voltage_now")
    return None if current_ua is None or voltage_uv is None else abs(current_ua) * voltage_uv * 1e-12


def psutil_battery() -> dict[str, Reading]:
    """Where there is no sysfs. psutil has no such function on some platforms, and None for what it does not know."""
    source = "psutil"
    try:
        found = psutil.sensors_battery()
    except (AttributeError, NotImplementedError, OSError, RuntimeError) as error:
        return _no_battery(source, f"psutil cannot read a battery here ({error})")
    if found is None:
        return _no_battery(source, "the operating system reports no battery")
    charging = found.power_plugged
    if charging is None and found.secsleft == psutil.POWER_TIME_UNLIMITED:
        charging = True
    return {
        "state_of_charge": sensed("state_of_charge", found.percent / 100, source),
        "charging": missing("charging", source, "the operating system does not know whether power is plugged in")
        if charging is None
        else sensed("charging", charging, source),
    }


class BatterySource:
    """State of charge, and whether external power is there.

    Several batteries of one device count as one: by energy where all of them report it, else by the mean share.
    `fallback` answers where the kernel offers no power_supply folder at all.
    """

    name = "battery"
    fields = ("state_of_charge", "charging")

    def __init__(self, root: Path = Path("/"), fallback: Callable[[], Mapping[str, Reading]] | None = None) -> None:
        self._root = root
        self._fallback = fallback

    def read(self) -> Mapping[str, Reading]:
        if not (self._root / POWER_SUPPLY).is_dir():
            if self._fallback is not None:
                return self._fallback()
            return _no_battery(POWER_SUPPLY, "this kernel lists no power supplies (no /sys/class/power_supply)")
        found = batteries(self._root)
        if not found:
            return _no_battery(POWER_SUPPLY, "no battery of this device in /sys/class/power_supply")
        return {"state_of_charge": _state_of_charge(found), "charging": self._charging(found)}

    def _charging(self, found: list[Path]) -> Reading:
        states = {read_text(battery / "status") for battery in found}
        source = _names(found)
        if "Charging" in states:
            return sensed("charging", True, source)
        if "Discharging" in states:
            return sensed("charging", False, source)
        # "Full", "Not charging" and "Unknown" say nothing about the plug: ask the supplies themselves.
        online = [
            state
            for folder in children(self._root / POWER_SUPPLY)
            if read_text(folder / "type") not in ("Battery", None) and read_text(folder / "scope") != "Device"
            if (state := read_int(folder / "online")) is not None
        ]
        if online:
            return sensed("charging", any(online), POWER_SUPPLY)
        if states == {"Full"}:
            return sensed("charging", True, source, Quality.ESTIMATED)
        told = ", ".join(sorted(state or "nothing" for state in states))
        return missing("charging", source, f"the battery's status is {told}, and no power supply is listed")


def _state_of_charge(found: list[Path]) -> Reading:
    source = _names(found)
    energies = [_energy_uwh(battery) for battery in found]
    if len(found) > 1 and all(energies):
        now, full = (sum(column) for column in zip(*(pair for pair in energies if pair), strict=True))
        return sensed("state_of_charge", min(now / full, 1.0), source)
    shares = [share for battery in found if (share := _share(battery)) is not None]
    if not shares:
        return missing("state_of_charge", source, "the battery reports neither energy, nor charge, nor capacity")
    quality = Quality.MEASURED if len(found) == 1 else Quality.ESTIMATED
    return sensed("state_of_charge", sum(shares) / len(shares), source, quality)


def _share(battery: Path) -> float | None:
    """Share of the last full charge. `capacity` comes last: it is the same figure, rounded to whole percents."""
    for pair in (_pair(battery, "energy"), _pair(battery, "charge")):
        if pair is not None:
            return min(pair[0] / pair[1], 1.0)
    percent = read_int(battery / "capacity")
    return None if percent is None else percent / 100


def _pair(battery: Path, what: str) -> tuple[int, int] | None:
    """`what`_now and `what`_full, if both are there and believable."""
    now, full = read_int(battery / f"{what}_now"), read_int(battery / f"{what}_full")
    if now is None or full is None or full <= 0 or not 0 <= now <= OVERFULL * full:
        return None
    return now, full


def _energy_uwh(battery: Path) -> tuple[float, float] | None:
    """(now, full) in uWh; a charge in uAh becomes energy with the design voltage, the same for both."""
    energy = _pair(battery, "energy")
    if energy is not None:
        return energy
    charge, volt_uv = _pair(battery, "charge"), read_int(battery / "voltage_min_design")
    if charge is None or volt_uv is None or volt_uv <= 0:
        return None
    return charge[0] * volt_uv * 1e-6, charge[1] * volt_uv * 1e-6


def _names(found: list[Path]) -> str:
    return f"{POWER_SUPPLY}/" + "+".join(battery.name for battery in found)


def _no_battery(source: str, reason: str) -> dict[str, Reading]:
    return {name: missing(name, source, reason) for name in BatterySource.fields}

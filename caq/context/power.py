"""The power that the device draws, in W, from the best instrument there is.

1. a discharging battery: the whole device, measured
2. an INA monitor on the supply rail, through hwmon: the whole board, measured
3. RAPL energy counters: the processor package only, hence estimated; readable by root only on most systems
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from caq.context.battery import batteries, drawn_power_w
from caq.context.files import children, read_int, read_text
from caq.context.reading import Quality, Reading, missing, sensed

# A counter of 65 kJ, the smallest in use, cannot wrap twice within this time below 1 kW.
LONGEST_INTERVAL_S = 60.0


class PowerSource:
    """Power in W; keeps the last RAPL counters between two calls of `read`."""

    name = "power"
    fields = ("power_w",)

    def __init__(self, root: Path = Path("/"), clock: Callable[[], float] = time.monotonic) -> None:
        self._root = root
        self._clock = clock
        self._before: tuple[float, dict[Path, int]] | None = None

    def read(self) -> Mapping[str, Reading]:
        return {"power_w": self._battery() or self._hwmon() or self._rapl()}

    def _battery(self) -> Reading | None:
        """None unless the battery feeds the device: while it charges, its power is not what the device draws."""
        feeding = [battery for battery in batteries(self._root) if read_text(battery / "status") == "Discharging"]
        powers = [power for battery in feeding if (power := drawn_power_w(battery)) is not None]
        return sensed("power_w", sum(powers), "battery") if powers else None

    def _hwmon(self) -> Reading | None:
        for folder in children(self._root / "sys/class/hwmon", "hwmon*"):
            chip = read_text(folder / "name") or ""
            # Other chips report the power of one part, such as a graphics card.
            if not chip.startswith("ina"):
                continue
            microwatts = read_int(folder / "power1_input")
            if microwatts is not None:
                return sensed("power_w", microwatts * 1e-6, f"hwmon {chip}")
            milliamperes, millivolts = read_int(folder / "curr1_input"), read_int(folder / "in1_input")
            if milliamperes is not None and millivolts is not None:
                return sensed("power_w", milliamperes * millivolts * 1e-6, f"hwmon {chip}")
        return None

    def _rapl(self) -> Reading:
        domains = self._domains()
        if not domains:
            reason = "no discharging battery, power monitor (INA219, INA226) or RAPL counter on this device"
            return missing("power_w", "none", reason)
        counters = {path: energy_uj for path in domains if (energy_uj := read_int(path / "energy_uj")) is not None}
        if not counters:
            return missing("power_w", "RAPL", "the RAPL energy counter is readable by root only")
        before, self._before = self._before, (self._clock(), counters)
        elapsed_s = self._before[0] - before[0] if before else 0.0
        if before is None or before[1].keys() != counters.keys() or not 0 < elapsed_s <= LONGEST_INTERVAL_S:
            return missing("power_w", "RAPL", "an energy counter needs two readings shortly after one another")
        spent_uj = 0
        for path, now in counters.items():
            spent_uj += now - before[1][path]
            if now < before[1][path]:
                span_uj = read_int(path / "max_energy_range_uj")
                if span_uj is None:
                    return missing("power_w", "RAPL", "the energy counter wrapped at a value that it does not tell")
                spent_uj += span_uj
        return sensed("power_w", spent_uj * 1e-6 / elapsed_s, "RAPL", Quality.ESTIMATED)

    def _domains(self) -> list[Path]:
        """The platform's counter if there is one, since it holds the packages; else every package."""
        named = [
            (folder, read_text(folder / "name") or "")
            for folder in children(self._root / "sys/class/powercap", "intel-rapl:*")
        ]
        platform = [folder for folder, name in named if name == "psys"]
        return platform or [folder for folder, name in named if name.startswith("package-")]

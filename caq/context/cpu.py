"""Processor load and frequency, and the brightness of the screen."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from caq.context.files import children, read_int, read_text
from caq.context.reading import Quality, Reading, missing, sensed

#: The unit of /proc/stat (USER_HZ, proc(5)).
TICKS_PER_S = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


def os_load() -> float | None:
    """The load average of the last minute where there is no /proc/loadavg."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return None


class LoadSource:
    """Busy share of all cores since the reading before, and of that what other processes took than this one.

    Until there are two readings, and where /proc/stat may not be read (Android refuses it), the load average over the
    number of cores stands in and is marked as estimated; nothing then tells this process from others.
    """

    name = "load"
    fields = ("cpu_load", "apps_load")

    def __init__(
        self,
        root: Path = Path("/"),
        fallback: Callable[[], float | None] | None = None,
        own_s: Callable[[], float] = time.process_time,
    ) -> None:
        self._root = root
        self._fallback = fallback
        self._own_s = own_s
        self._before: tuple[float, float, float] | None = None

    def read(self) -> Mapping[str, Reading]:
        before, self._before = self._before, self._ticks()
        if before and self._before:
            total, idle, own = (now - then for now, then in zip(self._before, before, strict=True))
            # Counters step back when a core goes offline; then this interval says nothing.
            if total > 0 and 0 <= idle <= total:
                busy = 1 - idle / total
                others = max(0.0, busy - own / total)
                return {
                    "cpu_load": sensed("cpu_load", busy, "proc/stat"),
                    "apps_load": sensed("apps_load", others, "proc/stat"),
                }
        unknown = "it takes two readings of /proc/stat to tell this process from others"
        return {"cpu_load": self._average(), "apps_load": missing("apps_load", "proc/stat", unknown)}

    def _ticks(self) -> tuple[float, float, float] | None:
        """(all, idle) ticks since boot, and those of this process."""
        lines = (read_text(self._root / "proc/stat") or "").splitlines()
        # user nice system idle iowait irq softirq steal; the guest columns after them are already within user.
        columns = lines[0].split()[1:9] if lines and lines[0].startswith("cpu ") else []
        if len(columns) < 4 or not all(column.isdigit() for column in columns):
            return None
        ticks = [int(column) for column in columns]
        return sum(ticks), sum(ticks[3:5]), self._own_s() * TICKS_PER_S

    def _average(self) -> Reading:
        words = (read_text(self._root / "proc/loadavg") or "").split()
        try:
            average = float(words[0]) if words else None
        except ValueError:
            average = None
        source = "proc/loadavg"
        if average is None and self._fallback is not None:
            average, source = self._fallback(), "load average"
        if average is None:
            return missing("cpu_load", "proc/stat", "this system lets nobody read /proc/stat or the load average")
        return sensed("cpu_load", min(1.0, average / (os.cpu_count() or 1)), source, Quality.ESTIMATED)


class FrequencySource:
    """The present frequency of the fastest core, in Hz."""

    name = "frequency"
    fields = ("cpu_frequency_hz",)

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root

    def read(self) -> Mapping[str, Reading]:
        cores = self._root / "sys/devices/system/cpu"
        for pattern in ("cpufreq/policy*/scaling_cur_freq", "cpu[0-9]*/cpufreq/scaling_cur_freq"):
            kilohertz = [value for path in children(cores, pattern) if (value := read_int(path))]
            if kilohertz:
                return {"cpu_frequency_hz": sensed("cpu_frequency_hz", max(kilohertz) * 1000, "cpufreq")}
        megahertz = [
            line.partition(":")[2].strip()
            for line in (read_text(self._root / "proc/cpuinfo") or "").splitlines()
            if line.startswith("cpu MHz")
        ]
        try:
            fastest = max((float(text) for text in megahertz), default=0.0)
        except ValueError:
            fastest = 0.0
        if fastest > 0:
            # On a virtual machine this is the nominal frequency, whatever the host does.
            reading = sensed("cpu_frequency_hz", fastest * 1e6, "proc/cpuinfo", Quality.ESTIMATED)
        else:
            reading = missing("cpu_frequency_hz", "cpufreq", "the kernel does not report a processor frequency")
        return {"cpu_frequency_hz": reading}


class ScreenSource:
    """Brightness of the first backlight as a share of its maximum."""

    name = "screen"
    fields = ("screen_brightness",)

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root

    def read(self) -> Mapping[str, Reading]:
        for folder in children(self._root / "sys/class/backlight"):
            now, most = read_int(folder / "brightness"), read_int(folder / "max_brightness")
            if now is not None and most:
                return {"screen_brightness": sensed("screen_brightness", now / most, f"backlight {folder.name}")}
        reason = "this device shows no screen with a backlight (no /sys/class/backlight)"
        return {"screen_brightness": missing("screen_brightness", "sys/class/backlight", reason)}

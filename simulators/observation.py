"""What a policy sees, in a simulated world and on a device: one row of numbers, made from what `caq.context` can tell.

    observe(context, hour, current, points, power_high_w)     # on a device; (F,) float32

| | field | from | at 0 | at 1 |
|---|---|---|---|---|
| 0 | state_of_charge | Context.state_of_charge | empty | full |
| 1 | charging | Context.charging | on battery | on a charger |
| 2 | temperature | Context.temperature_c | -20 °C | 60 °C |
| 3 | memory_available | Context.memory_available | none | all |
| 4 | power | Context.power_w | 0 W | `power_high_w` of the device |
| 5 | cpu_load | Context.cpu_load | idle | busy |
| 6 | screen_brightness | Context.screen_brightness | off | full |
| 7 | hour_sin | the hour of the day, local time | sin(2 pi hour / 24), -1..1 | |
| 8 | hour_cos | likewise | cos(2 pi hour / 24), -1..1 | |
| 9 | point | index of the active operating point, over P - 1 | first point | last point |

Values beyond an end are put at the end. In a world, power and load are those of the last step, the mean over it, and
load is the share of the time that inference took, and other apps where there are any; the rest is of the moment.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caq.context import Context
from caq.errors import AssignmentError

FIELDS = (
    "state_of_charge",
    "charging",
    "temperature",
    "memory_available",
    "power",
    "cpu_load",
    "screen_brightness",
    "hour_sin",
    "hour_cos",
    "point",
)
LOW = np.array([-1.0 if name.startswith("hour") else 0.0 for name in FIELDS], np.float32)
HIGH = np.ones(len(FIELDS), np.float32)
#: °C at 0 and at 1.
COLDEST_C, HOTTEST_C = -20.0, 60.0


def observe(context: Context, hour: float, current: int, points: int, power_high_w: float) -> NDArray[np.float32]:
    """The observation on a device, (F,) float32; NaN where the context has no value, or only a stale one.

    hour: 0..24, local time, which a context does not know. current: index of the active point among `points`.
    power_high_w: that the policy was trained with. Raises AssignmentError on an index that there is not.
    """
    if not 0 <= current < points:
        raise AssignmentError(f"operating point {current} of {points}")

    def value(name: str) -> float:
        found = context.value(name)
        return math.nan if found is None else float(found)

    angle = 2 * math.pi * hour / 24
    row = (
        value("state_of_charge"),
        value("charging"),
        (value("temperature_c") - COLDEST_C) / (HOTTEST_C - COLDEST_C),
        value("memory_available"),
        value("power_w") / power_high_w,
        value("cpu_load"),
        value("screen_brightness"),
        math.sin(angle),
        math.cos(angle),
        current / max(points - 1, 1),
    )
    return np.clip(np.array(row, np.float32), LOW, HIGH)


def scaled_temperature(xp: Any, temperature_c: Any) -> Any:
    """Field 2 of temperatures in °C; `xp` as in `simulators.world.advance`."""
    return xp.minimum(xp.maximum((temperature_c - COLDEST_C) / (HOTTEST_C - COLDEST_C), 0.0), 1.0)

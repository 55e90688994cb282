"""Recorded devices that the generator is fitted to, each as a Trace. Their folders are not part of caq.

context_extrasensory/traces.npz: 25 phones of ExtraSensory (Vaizman, Ellis, Lanckriet 2017), about a row a minute while
the app ran. memory_bitbrains/traces.npz: 80 virtual machines of GWA-T-12 (Shen et al. 2015), a row in five minutes.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

from caq.errors import TraceError
from simulators.traces.trace import Trace, split

#: Where the phones' owners lived: times are of their clocks, because people charge by the hour of the day.
ZONE = ZoneInfo("America/Los_Angeles")
MISSING = 255
#: Of all devices about this share is held out: the first seed that leaves both sides two phones that tell when the
#: screen is off.
HELD_OUT, SPLIT_SEED = 0.4, 1
#: A phone that reports a brightness of 0 in a smaller share of its rows does not do so because its screen is off.
TELLS_OFF = 0.08
DAY_S = 86400


def phones(folder: Path) -> list[Trace]:
    """Columns state_of_charge, charging, screen_brightness; `t_s` is local time, in seconds since 1970.

    folder: the one that holds context_extrasensory. Raises TraceError if the file is not there, or is another.
    """
    path = folder / "context_extrasensory" / "traces.npz"
    file = _arrays(path, ("t", "level", "batt_state", "batt_state_names", "screen_brightness", "device_offsets"))
    charging_states = [at for at, name in enumerate(file["batt_state_names"]) if name in ("charging", "full")]
    traces = []
    for device, rows in _devices(file["device_offsets"], file["device_ids"]):
        level, state, bright = (
            np.where(file[name][rows] == MISSING, np.nan, file[name][rows])
            for name in ("level", "batt_state", "screen_brightness")
        )
        columns = {
            "state_of_charge": level / 100,
            "charging": np.where(np.isnan(state), np.nan, np.isin(state, charging_states)),
            "screen_brightness": bright / 100,
        }
        traces.append(Trace(_local(file["t"][rows]), columns, str(path), metadata={"device": device}))
    return traces


def machines(folder: Path) -> list[Trace]:
    """The column memory_available of virtual machines; folder: the one that holds memory_bitbrains."""
    path = folder / "memory_bitbrains" / "traces.npz"
    file = _arrays(path, ("t_s", "mem_used_frac_q16", "vm_offsets", "vm_ids"))
    return [
        Trace(
            file["t_s"][rows].astype(np.float64),
            {"memory_available": 1 - file["mem_used_frac_q16"][rows] / 65535},
            str(path),
            metadata={"device": device},
        )
        for device, rows in _devices(file["vm_offsets"], file["vm_ids"])
    ]


def train_and_held_out(traces: Sequence[Trace]) -> tuple[list[Trace], list[Trace]]:
    """The devices to fit and train on, and those that only a last measurement may look at."""
    sides = split([trace.device for trace in traces], HELD_OUT, SPLIT_SEED)
    by_device = {trace.device: trace for trace in traces}
    return [by_device[device] for device in sides.train], [by_device[device] for device in sides.held_out]


def screen_on(trace: Trace) -> NDArray[np.float64]:
    """(T,) 1 or 0, and NaN throughout where the phone does not tell: most report a brightness with the screen off."""
    bright = trace.columns["screen_brightness"]
    on = np.where(np.isnan(bright), np.nan, bright > 0)
    return on if (bright == 0).mean() >= TELLS_OFF else np.full(len(on), np.nan)


def _arrays(path: Path, names: tuple[str, ...]) -> dict[str, NDArray[Any]]:
    try:
        with np.load(path) as file:
            found = {name: file[name] for name in file.files}
    except (OSError, ValueError) as error:
        raise TraceError(f"{path}: cannot be read: {error}") from error
    for name in names:
        if name not in found:
            raise TraceError(f"{path}: there is no array {name}")
    return found


def _devices(offsets: NDArray[Any], ids: NDArray[Any]) -> list[tuple[str, slice]]:
    bounds = [int(offset) for offset in offsets]
    return [(str(device), slice(*pair)) for device, pair in zip(ids, pairwise(bounds), strict=True)]


def _local(times_s: NDArray[Any]) -> NDArray[np.float64]:
    """Unix seconds as local ones; the offset is that of noon, so the night in which clocks change is an hour off."""
    utc = times_s.astype(np.int64)
    days, which = np.unique(utc // DAY_S, return_inverse=True)
    noons = [datetime.fromtimestamp(int(day) * DAY_S + 20 * 3600, ZONE).utcoffset() for day in days]
    offsets_s = np.array([0 if offset is None else offset.total_seconds() for offset in noons])
    return utc + offsets_s[which]

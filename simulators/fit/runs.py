"""Power and temperature of boards under load: thermal_power_tiansuan/thermal_power.npz under the data folder.

Source: R. Xing et al., "Deciphering the Enigma of Satellite Computing with COTS Devices: Measurement and Analysis",
MobiCom 2024, arXiv 2401.03435, the ground runs: a load for an hour or three, then idle. `pi` is a Raspberry Pi 4B under
four loads; `pi_infer` another mounting of one, running three detectors; `atlas` an Atlas 200 DK under four loads. The
temperature of the room was not recorded.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from caq.errors import TraceError
from simulators.fit.npz import Array, Recording

FILE = Path("thermal_power_tiansuan") / "thermal_power.npz"
BOARDS = {
    "pi": tuple(f"pi_ground1_{k}" for k in range(1, 5)),
    "pi_infer": tuple(f"gnd_pi_infer_{name}" for name in ("yolofastest", "yolov3_544", "yolov5lite")),
    "atlas": tuple(f"atlas_ground2_{k}" for k in range(1, 5)),
}
STEP_S = 20.0
#: What the infer recordings write where nothing was read.
_MISSING = -1.0


class Run(NamedTuple):
    """One recording on a grid of STEP_S; arrays (S,)."""

    name: str
    power_w: Array  # mean over the step, of the whole board
    temperature_c: Array  # at the step's end; NaN where it was not read
    start_c: float


def read(folder: Path, board: str) -> list[Run]:
    """The runs of one board. Raises TraceError that names file, array and row: see `simulators.fit.npz`; times that do
    not increase, power outside 0..100 W, temperatures outside -40..150 C."""
    names = BOARDS[board]
    columns = [f"{name}_columns" for name in names] if board == "pi_infer" else []
    file = Recording(folder / FILE, (*names, *columns))
    return [_infer(file, name) if columns else _ground(file, name) for name in names]


def _ground(file: Recording, name: str) -> Run:
    table = file.series(name, 2)
    if table.shape[1] != 3:
        file.fail(name, None, f"must have the columns time, power and temperature, not {table.shape[1]} columns")
    minutes, watts, celsius = table.T
    return _run(file, name, minutes * 60, watts, celsius)


def _infer(file: Recording, name: str) -> Run:
    table, columns = file.series(name, 2), [str(column) for column in file[f"{name}_columns"]]
    needed = ("TIME", "Main(mA)", "Main Voltage(V)", "TEMP")
    if len(columns) != table.shape[1] or any(column not in columns for column in needed):
        file.fail(f"{name}_columns", None, f"must name {table.shape[1]} columns, {', '.join(needed)} among them")
    seconds, milliampere, volt, celsius = (table[:, columns.index(column)] for column in needed)
    watts = np.where((milliampere == _MISSING) | (volt == _MISSING), np.nan, milliampere * volt / 1000)
    return _run(file, name, seconds, watts, np.where(celsius == _MISSING, np.nan, celsius))


def _run(file: Recording, name: str, seconds: Array, watts: Array, celsius: Array) -> Run:
    file.check(name, np.diff(seconds, prepend=seconds[0] - 1) > 0, seconds, "times must increase")
    file.check(name, np.isnan(watts) | ((watts >= 0) & (watts <= 100)), watts, "power must be from 0 to 100 W")
    file.check(name, np.isnan(celsius) | ((celsius >= -40) & (celsius <= 150)), celsius, "must be from -40 to 150 C")
    both = np.flatnonzero(np.isfinite(watts) & np.isfinite(celsius))
    if not len(both) or seconds[both[-1]] - seconds[both[0]] < 10 * STEP_S:
        raise TraceError(f"{file.path}: {name}: less than {10 * STEP_S:g} s with power and temperature")
    known = slice(both[0], both[-1] + 1)
    seconds, watts, celsius = seconds[known] - seconds[both[0]], watts[known], celsius[known]
    step = (seconds / STEP_S).astype(int)
    steps = step[-1]  # the last one may be incomplete
    return Run(name, _means(step, watts, steps), _at_ends(seconds, celsius, steps), float(celsius[0]))


def _means(step: Array, watts: Array, steps: int) -> Array:
    """Mean power of each step; a step without a reading has that of its neighbours."""
    good = np.isfinite(watts) & (step < steps)
    count = np.bincount(step[good], minlength=steps)
    total = np.bincount(step[good], watts[good], minlength=steps)
    found = np.flatnonzero(count)
    return np.interp(np.arange(steps), found, total[found] / count[found])


def _at_ends(seconds: Array, celsius: Array, steps: int) -> Array:
    """Temperature at each step's end: the mean of readings up to a quarter of a step away, NaN where there is none."""
    nearest = np.rint(seconds / STEP_S).astype(int)
    good = np.isfinite(celsius) & (np.abs(seconds - nearest * STEP_S) <= STEP_S / 4) & (nearest <= steps)
    count = np.bincount(nearest[good], minlength=steps + 1)[1:]
    total = np.bincount(nearest[good], celsius[good], minlength=steps + 1)[1:]
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)

"""Power and temperature of boards under load: thermal_power_tiansuan/thermal_power.npz under the data folder.

Source: R. Xing et al., "Deciphering the Enigma of Satellite Computing with COTS Devices: Measurement and Analysis",
MobiCom 2024, arXiv 2401.03435, the ground runs: a load for an hour or three, then idle. `pi` is a Raspberry Pi 4B under
four loads; `pi_infer` another mounting of one, running three detectors; `atlas` an Atlas 200 DK under four loads. The
temperature of the room was not recorded.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from caq.errors import TraceError
from simulators.recording import Array, Recording

FILE = Path("thermal_power_tiansuan") / "thermal_power.npz"
BOARDS = {
    "pi": tuple(f"pi_ground1_{k}" for k in range(1, 5)),
    "pi_infer": tuple(f"gnd_pi_infer_{name}" for name in ("yolofastest", "yolov3_544", "yolov5lite")),
    "atlas": tuple(f"atlas_ground2_{k}" for k in range(1, 5)),
}
STEP_S = 20.0
#: What the infer recordings write where nothing was read.
_MISSING = -1.0


class Runs(NamedTuple):
    """R recordings of one board on one grid of steps of STEP_S; the shorter ones end in NaN temperatures."""

    names: tuple[str, ...]
    power_w: Array  # (S, R) mean over the step, of the whole board
    temperature_c: Array  # (S, R) at the step's end; NaN where it was not read
    start_c: Array  # (R,)

    def select(self, chosen: Sequence[int]) -> Runs:
        """Some of the runs."""
        at = list(chosen)
        return Runs(tuple(self.names[i] for i in at), self.power_w[:, at], self.temperature_c[:, at], self.start_c[at])


def read(folder: Path, board: str) -> Runs:
    """The runs of one board.

    Raises TraceError that names file, array and row: see `simulators.recording`; times that do not increase, power
    outside 0..100 W, temperatures outside -40..150 C, less than ten steps.
    """
    names = BOARDS[board]
    columns = [f"{name}_columns" for name in names] if board == "pi_infer" else []
    file = Recording(folder / FILE, (*names, *columns))
    power, temperature, start = zip(
        *(_infer(file, name) if columns else _ground(file, name) for name in names), strict=True
    )
    steps = max(map(len, power))
    held = [np.pad(watts, (0, steps - len(watts)), mode="edge") for watts in power]
    gone = [np.pad(celsius, (0, steps - len(celsius)), constant_values=np.nan) for celsius in temperature]
    return Runs(names, np.stack(held, 1), np.stack(gone, 1), np.array(start))


def _ground(file: Recording, name: str) -> tuple[Array, Array, float]:
    table = file.series(name, 2)
    if table.shape[1] != 3:
        file.fail(name, None, f"must have the columns time, power and temperature, not {table.shape[1]} columns")
    minutes, watts, celsius = table.T
    return _run(file, name, minutes * 60, watts, celsius)


def _infer(file: Recording, name: str) -> tuple[Array, Array, float]:
    table, columns = file.series(name, 2), [str(column) for column in file[f"{name}_columns"]]
    needed = ("TIME", "Main(mA)", "Main Voltage(V)", "TEMP")
    if len(columns) != table.shape[1] or any(column not in columns for column in needed):
        file.fail(f"{name}_columns", None, f"must name {table.shape[1]} columns, {', '.join(needed)} among them")
    seconds, milliampere, volt, celsius = (table[:, columns.index(column)] for column in needed)
    watts = np.where((milliampere == _MISSING) | (volt == _MISSING), np.nan, milliampere * volt / 1000)
    return _run(file, name, seconds, watts, np.where(celsius == _MISSING, np.nan, celsius))


def _run(file: Recording, name: str, seconds: Array, watts: Array, celsius: Array) -> tuple[Array, Array, float]:
    """Power (S,), temperature (S,) and first temperature of a recording."""
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
    return _means(step, watts, steps), _at_ends(seconds, celsius, steps), float(celsius[0])


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

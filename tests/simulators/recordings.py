"""Recordings like the real ones, made by the models themselves, so that what a fit should find is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from simulators.battery import Battery
from simulators.fit import li_ion, runs
from simulators.parameters import load_battery
from simulators.thermal import Thermal, ThermalParameters

CELL = replace(load_battery("nasa-18650"), capacity_fade_per_cycle=0.0, resistance_growth_per_cycle=0.0)
#: Capacity, Ah, and resistance factor of the first discharge of each cell, and what each further one keeps and adds.
CELLS = {"A": (2.0, 1.0), "B": (1.8, 1.15)}
FADE, GROWTH = 0.02, 0.03
BOARD = ThermalParameters("board", "made up", (4.0, 3.0), (5.0, 150.0), 22.0, 2.5, 80.0, 0.6, 2.0)
ROOMS = (20.0, 22.0, 24.0)


def discharge_arrays(discharges: int = 3, load_a: float = 2.0, until_v: float = 2.5) -> dict[str, np.ndarray]:
    """The arrays of li_ion_nasa/discharge.npz, sampled every 10 s: a rest, the load, a rest."""
    battery, rows, cells, sizes = Battery(CELL), [], [], []
    for cell, (capacity, factor) in enumerate(CELLS.values()):
        for cycle in range(discharges):
            state = battery.start(np.ones(1), capacity * (1 - FADE) ** cycle, factor * (1 + GROWTH) ** cycle)
            t, volt, found = 0.0, CELL.ocv_v[-1], []
            found.append((t, volt, 0.0))
            found.append((t := t + 10.0, volt, load_a))
            while volt > until_v:
                state, v = battery.step_current(state, load_a, 25.0, 10.0)
                volt = float(v[0])
                found.append((t := t + 10.0, volt, load_a))
            for _ in range(20):
                state, v = battery.step_current(state, 0.0, 25.0, 10.0)
                found.append((t := t + 10.0, float(v[0]), 0.0))
            rows += found
            cells.append((cell, cycle))
            sizes.append(len(found))
    t, volt, ampere = np.array(rows).T
    return {
        "t_s": t.astype(np.float32),
        "voltage_mv": np.rint(volt * 1000).astype(np.int16),
        "current_ma": np.rint(-ampere * 1000).astype(np.int16),
        "temp_c_x100": np.full(len(t), 2500, np.int16),
        "cycle_offsets": np.append(0, np.cumsum(sizes)),
        "cycle_cell": np.array(cells)[:, 0],
        "cycle_index": np.array(cells)[:, 1],
        "ambient_c": np.full(len(cells), 24),
        "cell_names": np.array(list(CELLS)),
    }


def thermal_arrays() -> dict[str, np.ndarray]:
    """Runs of the Atlas of thermal_power_tiansuan/thermal_power.npz; every second: 50 min of load, 50 min idle."""
    thermal, found = Thermal(BOARD), {}
    for k, (name, room) in enumerate(zip(runs.BOARDS["atlas"], (*ROOMS, 21.0), strict=True)):
        power = np.repeat([4.0 + k, 2.5], 3000)
        state, celsius = thermal.start(np.array([room + 15.0]), power[0]), np.empty(len(power))
        for i, watts in enumerate(power):
            celsius[i] = state[0, 0]
            state = thermal.step(state, watts, room, 1.0)
        found[name] = np.stack([np.arange(len(power)) / 60, power, celsius], axis=1)
    return found


def save(folder: Path, file: Path, arrays: dict[str, np.ndarray]) -> Path:
    path = folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **arrays)
    return folder


def save_discharges(folder: Path, arrays: dict[str, np.ndarray]) -> Path:
    return save(folder, li_ion.FILE, arrays)


def save_runs(folder: Path, arrays: dict[str, np.ndarray]) -> Path:
    return save(folder, runs.FILE, arrays)

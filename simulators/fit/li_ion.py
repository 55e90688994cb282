"""Discharges of Li-ion cells: li_ion_nasa/discharge.npz under the data folder.

Source: B. Saha and K. Goebel, "Battery Data Set", NASA Prognostics Data Repository, NASA Ames, 2007: 18650 cells,
charged at 1.5 A to 4.2 V and discharged at a constant current until they are worn out; three at 24 C and 2 A (B0005 to
7), three at 43 C and 4 A (B0029 to 31), three at 4 C and 1 A (B0045 to 47).
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import NamedTuple

import numpy as np

from simulators.recording import Array, Recording

FILE = Path("li_ion_nasa") / "discharge.npz"
#: V under load at which a discharge counts as over, the highest at which NASA stopped a cell; below it voltage falls by
#: some 0.5 V/min.
CUTOFF_V = 2.7
#: A above which the load counts as on; the currents are 1, 2 and 4 A, and noise stays below 0.02 A.
LOADED_A = 0.3
LOAD_STEPS, TAIL_STEPS, REST_STEPS = 80, 4, 12
REST_S = 400.0
_NAMES = ("cycle_offsets", "cycle_cell", "cycle_index", "ambient_c", "cell_names")
_SERIES = ("t_s", "voltage_mv", "current_ma", "temp_c_x100")


class Discharges(NamedTuple):
    """C discharges, each on a grid of S steps of its own: LOAD_STEPS from the start of the load to the cut-off voltage,
    TAIL_STEPS to its end, REST_STEPS of REST_S together without load."""

    names: tuple[str, ...]
    cell: Array  # (C,) int, index into names
    cycle: Array  # (C,) discharges that the cell had before
    ambient_c: Array  # (C,)
    load_a: Array  # (C,) median current
    cutoff_s: Array  # (C,) from the start of the load to CUTOFF_V
    duration_s: Array  # (S, C) of each step
    current_a: Array  # (S, C) in the middle of the step, discharge > 0
    temperature_c: Array  # (S, C) mean of the step's ends
    voltage_v: Array  # (S, C) at the step's end; NaN in the rest where a record ends before it

    def select(self, chosen: Array) -> Discharges:
        """Some of the discharges, by a mask or indices."""
        names, *arrays = self
        return Discharges(names, *(array[..., chosen] for array in arrays))


def read(folder: Path) -> tuple[Discharges, list[str]]:
    """The discharges that reach CUTOFF_V, and a line about each that does not.

    Raises TraceError that names file, array and row: not readable, NaN, times that do not increase, voltages outside
    0..5 V, currents beyond 20 A, temperatures outside -40..120 C, offsets that do not fit.
    """
    file = Recording(folder / FILE, (*_NAMES, *_SERIES))
    t, mv, ma, temp = (file.series(name) for name in _SERIES)
    for name, values in zip(_SERIES, (t, mv, ma, temp), strict=True):
        if len(values) != len(t):
            file.fail(name, None, f"has {len(values)} rows, and t_s {len(t)}")
    file.check("voltage_mv", (mv > 0) & (mv < 5000), mv, "must be from 0 to 5000 mV")
    file.check("current_ma", np.abs(ma) <= 20_000, ma, "must be within 20000 mA")
    file.check("temp_c_x100", (temp >= -4000) & (temp <= 12_000), temp, "must be from -4000 to 12000")
    offsets = file.series("cycle_offsets").astype(np.int64)
    names = tuple(str(name) for name in file["cell_names"])
    cells, index, ambient = (file.series(name).astype(np.int64) for name in ("cycle_cell", "cycle_index", "ambient_c"))
    file.check("cycle_offsets", np.diff(offsets, prepend=0) >= 0, offsets, "must not decrease, from 0 on")
    if offsets[0] != 0 or offsets[-1] != len(t):
        file.fail("cycle_offsets", None, f"must go from 0 to {len(t)}, the rows of t_s")
    for name, values in (("cycle_cell", cells), ("cycle_index", index), ("ambient_c", ambient)):
        if len(values) != len(offsets) - 1:
            file.fail(name, None, f"has {len(values)} rows for {len(offsets) - 1} discharges")
    file.check("cycle_cell", (cells >= 0) & (cells < len(names)), cells, f"must be below {len(names)}")
    rising = np.diff(t, prepend=t[0] - 1) > 0
    rising[offsets[:-1][offsets[:-1] < len(t)]] = True
    file.check("t_s", rising, t, "must increase within a discharge")

    kept, rows, skipped = [], [], []
    for k, (a, b) in enumerate(itertools.pairwise(offsets.tolist())):
        grid = _grid(t[a:b], mv[a:b] / 1000, -ma[a:b] / 1000, temp[a:b] / 100)
        if isinstance(grid, str):
            skipped.append(f"{names[cells[k]]} discharge {index[k]} (rows {a} to {b - 1}): {grid}")
        else:
            kept.append(k)
            rows.append(grid)
    if not rows:
        file.fail("cycle_offsets", None, f"no discharge reaches {CUTOFF_V} V")
    load, cutoff, *steps = (np.array(values) for values in zip(*rows, strict=True))
    at = np.array(kept)
    return Discharges(names, cells[at], index[at], ambient[at], load, cutoff, *(s.T.copy() for s in steps)), skipped


def _grid(t: Array, volt: Array, ampere: Array, celsius: Array) -> tuple[float | Array, ...] | str:
    """Load, time of the cut-off and the four (S,) series of one discharge, or why it has none."""
    on = np.flatnonzero(ampere > LOADED_A)
    if len(on) < 20 or on[0] == 0:
        return "no load after a rest"
    # The load came on somewhere between two samples, 9 to 19 s apart; the later one is taken.
    start, end = on[0], on[-1]
    low = np.flatnonzero((volt < CUTOFF_V) & (ampere > LOADED_A))
    if not len(low) or low[0] <= start + 1:
        return f"stops above {CUTOFF_V} V, or starts below"
    i = low[0]
    cutoff = float(np.interp(-CUTOFF_V, [-volt[i - 1], -volt[i]], [t[i - 1], t[i]]))
    edges = np.concatenate(
        [
            np.linspace(t[start], cutoff, LOAD_STEPS + 1),
            np.linspace(cutoff, t[end], TAIL_STEPS + 1)[1:],
            np.linspace(t[end], t[end] + REST_S, REST_STEPS + 1)[1:],
        ]
    )
    middle = (edges[1:] + edges[:-1]) / 2
    load = float(np.median(ampere[start : end + 1]))
    current = np.interp(middle, t, ampere)
    current[LOAD_STEPS + TAIL_STEPS :] = 0.0
    warm = np.interp(edges, t, celsius)
    return (
        load,
        cutoff - t[start],
        np.maximum(np.diff(edges), 1e-3),
        current,
        (warm[1:] + warm[:-1]) / 2,
        np.interp(edges[1:], t, volt, right=np.nan),
    )

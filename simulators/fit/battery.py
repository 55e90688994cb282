"""Fits the battery on NASA's cells, and measures how far off it is on cells, and conditions, that were left out.

What is known of a new cell matters more than the circuit does, so errors are stated for three cases:

    population          how many discharges it had, and at which ambient temperature: the mean of the other cells there
    first_discharge     its capacity and resistance, from its first discharge; ageing of the other cells there
    previous_discharge  both from the discharge before, as a fuel gauge learns them

The circuit never saw the cell. Current and temperature are the recorded ones; the time to the cut-off is also predicted
with the temperature of the start held. `own_discharge` takes capacity and resistance from the very discharge: no
prediction, but the part of the error that is the circuit's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from caq.errors import TraceError
from caq.progress import progress
from simulators.battery import Battery, BatteryParameters
from simulators.fit import circuit
from simulators.fit.circuit import Own, fit_own
from simulators.fit.li_ion import CUTOFF_V, LOAD_STEPS, Discharges
from simulators.recording import Array

CASES = ("population", "first_discharge", "previous_discharge", "own_discharge")
#: Discharges of each cell that the circuit is fitted on, from new to worn out.
PER_CELL = 12
_STEP_S = 10.0
SOURCE = (
    "fitted by `python -m simulators.fit battery` on 9 cells of B. Saha and K. Goebel, Battery Data Set, NASA "
    "Prognostics Data Repository, 2007: 18650, constant 1 A at 4 C, 2 A at 24 C and 4 A at 43 C, from full to below "
    "2.7 V, until worn out. Samples are 9 to 19 s apart, so how the resistance divides into r0 and r1 is in part a "
    "guess. Ageing is that of full discharges at these loads, faster than in a phone"
)


class Prediction(NamedTuple):
    """Of C discharges, arrays (C,) but for the voltages (S, C)."""

    discharges: Discharges
    voltage_v: Array
    rmse_v: Array  # from the start of the load to the measured cut-off
    cutoff_s: Array  # predicted time to the cut-off
    cutoff_held_s: Array  # the same with the temperature of the start

    @property
    def cell(self) -> str:
        """The name of the first discharge's cell."""
        return self.discharges.names[self.discharges.cell[0]]

    @property
    def cutoff_error(self) -> Array:
        """Predicted over measured, less 1."""
        return np.asarray(self.cutoff_s / self.discharges.cutoff_s - 1)

    @property
    def cutoff_held_error(self) -> Array:
        return np.asarray(self.cutoff_held_s / self.discharges.cutoff_s - 1)


class Ageing(NamedTuple):
    """How a new cell starts and how it ages, as a mean of cells."""

    capacity_ah: float
    resistance_factor: float
    fade: float  # of the capacity, per discharge
    growth: float  # of the resistance, per discharge


class Population(NamedTuple):
    circuit: BatteryParameters  # without ageing
    ageing: dict[int, Ageing]  # of the cells at an ambient temperature, C
    everywhere: Ageing  # of all cells

    def at(self, ambient_c: int) -> Ageing:
        """Of the cells used at that temperature; where there are none, of all."""
        return self.ageing.get(ambient_c, self.everywhere)

    def parameters(self, ambient_c: int, title: str) -> BatteryParameters:
        """A new cell that ages as those at that temperature did."""
        found = self.at(ambient_c)
        return replace(
            self.circuit,
            title=title,
            source=SOURCE,
            capacity_ah=found.capacity_ah,
            r0_ohm=self.circuit.r0_ohm * found.resistance_factor,
            r1_ohm=self.circuit.r1_ohm * found.resistance_factor,
            capacity_fade_per_cycle=max(found.fade, 0.0),
            resistance_growth_per_cycle=max(found.growth, 0.0),
        )


def fit(discharges: Discharges) -> Population:
    """The circuit that all cells share, and their ageing. Raises TraceError if a cell has a single discharge."""
    cells = [np.flatnonzero(discharges.cell == cell) for cell in np.unique(discharges.cell)]
    for at in cells:
        if len(at) < 2:
            raise TraceError(f"cell {discharges.names[discharges.cell[at[0]]]}: ageing needs two discharges, not one")
    fitted = circuit.fit(discharges.select(np.concatenate([_spread(at) for at in cells])))
    own = fit_own(fitted.parameters, discharges)
    # Logarithms over discharges are lines: (cells, slope and start, capacity and resistance).
    lines = np.stack([np.polyfit(discharges.cycle[at], np.log(np.stack(own, 1)[at]), 1) for at in cells])
    ambient = np.array([discharges.ambient_c[at[0]] for at in cells])

    def mean(chosen: Array) -> Ageing:
        (fade, growth), (capacity, factor) = lines[chosen].mean(0).tolist()
        return Ageing(float(np.exp(capacity)), float(np.exp(factor)), float(-np.expm1(fade)), float(np.expm1(growth)))

    ageing = {int(celsius): mean(ambient == celsius) for celsius in np.unique(ambient)}
    return Population(fitted.parameters, ageing, mean(np.full(len(cells), True)))


def leave_out(discharges: Discharges, groups: Array) -> Iterator[tuple[Population, dict[str, Prediction]]]:
    """For each value of `groups` (C,): fits on the others, predicts the discharges of this one in all CASES.

    A cell's first discharge is not predicted in the second and third case. Raises TraceError for a single group.
    """
    values = np.unique(groups)
    if len(values) < 2:
        raise TraceError("nothing is left to fit: all discharges are of one cell, or at one temperature")
    with progress("fits with something left out", len(values)) as advance:
        for value in values:
            population = fit(discharges.select(groups != value))
            yield population, predict(population, discharges.select(groups == value))
            advance(str(value))


def predict(population: Population, discharges: Discharges) -> dict[str, Prediction]:
    """All CASES, for cells that the population does not know."""
    own = np.stack(fit_own(population.circuit, discharges), 1)
    # log of what is left of capacity and of how the resistances grew, after one discharge in these conditions
    rates = np.array([np.log([1 - (a := population.at(int(c))).fade, 1 + a.growth]) for c in discharges.ambient_c])
    new = np.array([population.at(int(c))[:2] for c in discharges.ambient_c])
    firsts = np.array([np.flatnonzero(discharges.cell == cell)[0] for cell in discharges.cell])
    everything, count = np.arange(len(firsts)), discharges.cycle
    later = everything[everything != firsts]

    def aged(at: Array, known: Array, cycles: Array) -> Prediction:
        sizes = known * np.exp(rates[at] * cycles[:, None])
        return _predicted(population.circuit, discharges.select(at), Own(*sizes.T))

    return {
        "population": aged(everything, new, count),
        "first_discharge": aged(later, own[firsts[later]], (count - count[firsts])[later]),
        "previous_discharge": aged(later, own[later - 1], count[later] - count[later - 1]),
        "own_discharge": aged(everything, own, np.zeros(len(everything))),
    }


def summary(predictions: list[Prediction]) -> dict[str, Any]:
    """Errors over all discharges of several predictions."""
    rmse = np.concatenate([p.rmse_v for p in predictions]) * 1000
    error, held = (
        np.abs(np.concatenate([getattr(p, name) for p in predictions])) * 100
        for name in ("cutoff_error", "cutoff_held_error")
    )
    return {
        "discharges": len(rmse),
        "voltage_rmse_mv": {
            "median": _short(np.median(rmse)),
            "p90": _short(np.percentile(rmse, 90)),
            "pooled": _short(np.sqrt(np.mean(rmse**2))),
        },
        "time_to_cutoff_error_percent": {"median": _short(np.median(error)), "p90": _short(np.percentile(error, 90))},
        "with_the_starts_temperature_percent": {
            "median": _short(np.median(held)),
            "p90": _short(np.percentile(held, 90)),
        },
    }


def check(discharges: Discharges) -> dict[str, list[dict[str, Prediction]]]:
    """Predictions with each cell left out, and with all cells at one ambient temperature left out."""
    groups = {"cell": discharges.cell, "condition": discharges.ambient_c}
    return {left: [found for _, found in leave_out(discharges, by)] for left, by in groups.items()}


def report(checked: dict[str, list[dict[str, Prediction]]]) -> dict[str, Any]:
    """Errors in all CASES by what was left out; with a cell left out also by cell."""
    errors: dict[str, Any] = {
        left: {case: summary([fold[case] for fold in folds]) for case in CASES} for left, folds in checked.items()
    }
    errors["by_cell"] = {
        fold["population"].cell: {case: summary([fold[case]]) for case in CASES} for fold in checked["cell"]
    }
    return errors


def _predicted(parameters: BatteryParameters, discharges: Discharges, own: Own) -> Prediction:
    modelled = circuit.voltages(parameters, discharges, own)
    error = (modelled - discharges.voltage_v)[:LOAD_STEPS]
    times = (time_to_cutoff(parameters, discharges, own, held) for held in (False, True))
    return Prediction(discharges, modelled, np.sqrt((error**2).mean(0)), *times)


def time_to_cutoff(parameters: BatteryParameters, discharges: Discharges, own: Own, held: bool) -> Array:
    """(C,) s until the load, held at its median, brings the voltage below CUTOFF_V.

    The temperature is that of the start if `held`, else the recorded one, and after the record its last under load.
    """
    battery = Battery(replace(parameters, cutoff_v=CUTOFF_V))
    count = len(discharges.cell)
    ends = np.cumsum(discharges.duration_s[:LOAD_STEPS], axis=0)
    # No cell outlives what it holds, so this many steps are enough.
    steps = int(np.ceil((own.capacity_ah / discharges.load_a).max() * 3600 / _STEP_S)) + 2
    times = _STEP_S * (np.arange(steps) + 0.5)
    celsius = np.stack([np.interp(times, ends[:, c], discharges.temperature_c[:LOAD_STEPS, c]) for c in range(count)])
    state, reached = battery.start(np.ones(count), *own), np.full(count, np.nan)
    before = np.full(count, parameters.ocv_v[-1])
    for k in range(steps):
        temperature = celsius[:, 0] if held else celsius[:, k]
        state, voltage = battery.step_current(state, discharges.load_a, temperature, _STEP_S)
        now = np.isnan(reached) & battery.cut_off(state, voltage)
        part = np.clip((before - CUTOFF_V) / np.maximum(before - voltage, 1e-9), 0, 1)
        reached[now] = ((k + part) * _STEP_S)[now]
        before = voltage
    return reached


def _spread(at: Array) -> Array:
    return at[np.linspace(0, len(at) - 1, min(PER_CELL, len(at))).astype(int)]


def _short(value: Any) -> float:
    return float(f"{float(value):.3g}")

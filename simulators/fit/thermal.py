"""Fits the flow of heat to runs of a board, and measures how far off it is on runs that were left out.

The room's temperature was not recorded, so it is fitted, one for each run. Of a run left out, power and the sensor's
first temperature are given, and of the room either of

    mean_room        the mean of the other runs' rooms
    first_half_hour  what fits the run's first half hour best; scored on what follows
    own_room         what fits the whole run best: no prediction, but the part of the error that is the model's

A first temperature is that of a chip in balance with its board.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import least_squares

from simulators.fit.npz import Array
from simulators.fit.runs import STEP_S, Run
from simulators.thermal import Thermal, ThermalParameters

CASES = ("mean_room", "first_half_hour", "own_room")
_KNOWN_STEPS = round(1800 / STEP_S)
#: First values: K/W from chip to board and from board to air; J/K of chip and board.
_FIRST = (2.0, 4.0, 20.0, 150.0)


class Prediction(NamedTuple):
    run: Run
    temperature_c: Array  # (S,)
    scored: slice  # the steps that count

    @property
    def error(self) -> Array:
        """K, modelled less measured, where it was measured."""
        error = (self.temperature_c - self.run.temperature_c)[self.scored]
        return np.asarray(error[np.isfinite(error)])


def modelled(parameters: ThermalParameters, run: Run, ambient_c: float) -> Array:
    """(S,) C of the sensor at the steps' ends."""
    thermal = Thermal(parameters)
    state = thermal.start(np.array([run.start_c]), run.power_w[0])
    found = np.empty(len(run.power_w))
    for k, power in enumerate(run.power_w):
        state = thermal.step(state, power, ambient_c, STEP_S)
        found[k] = state[0, 0]
    return found


def fit(runs: Sequence[Run], blank: ThermalParameters) -> ThermalParameters:
    """`blank` with resistances, heat capacities, the mean room and the idle power of these runs."""

    def residuals(theta: Array) -> Array:
        parameters = _with(blank, theta)
        errors = [_error(parameters, run, room) for run, room in zip(runs, theta[4:], strict=True)]
        return np.concatenate([error / np.sqrt(len(error)) for error in errors])

    first = np.concatenate([np.log(_FIRST), np.full(len(runs), 23.0)])
    theta = least_squares(residuals, first, x_scale="jac").x
    idle = np.mean([np.percentile(run.power_w, 10) for run in runs])
    return replace(_with(blank, theta), ambient_c=float(theta[4:].mean()), idle_power_w=float(idle))


def leave_out(runs: Sequence[Run], blank: ThermalParameters) -> list[dict[str, Prediction]]:
    """For each run: fits on the others, predicts this one in all CASES."""
    return [predict(fit([run for run in runs if run is not left], blank), left) for left in runs]


def predict(parameters: ThermalParameters, run: Run) -> dict[str, Prediction]:
    """All CASES, for a run that the parameters do not know."""
    whole, start, rest = slice(0, None), slice(0, _KNOWN_STEPS), slice(_KNOWN_STEPS, None)
    rooms = {
        "mean_room": (parameters.ambient_c, whole),
        "first_half_hour": (_room(parameters, run, start), rest),
        "own_room": (_room(parameters, run, whole), whole),
    }
    return {case: Prediction(run, modelled(parameters, run, room), scored) for case, (room, scored) in rooms.items()}


def report(folds: Sequence[dict[str, Prediction]]) -> dict[str, Any]:
    """Errors in all CASES, of all runs together and of each."""
    found: dict[str, Any] = {}
    for case in CASES:
        errors = {fold[case].run.name: fold[case].error for fold in folds}
        rmse = {name: _short(np.sqrt(np.mean(error**2))) for name, error in errors.items()}
        every = np.concatenate(list(errors.values()))
        found[case] = {
            "rmse_k": _short(np.sqrt(np.mean(every**2))),
            "worst_k": _short(np.abs(every).max()),
            "rmse_k_by_run": rmse,
        }
    return found


def _with(blank: ThermalParameters, theta: Array) -> ThermalParameters:
    values = np.exp(theta[:4]).tolist()
    return replace(blank, resistance_k_per_w=tuple(values[:2]), heat_capacity_j_per_k=tuple(values[2:]))


def _error(parameters: ThermalParameters, run: Run, ambient_c: float) -> Array:
    error = modelled(parameters, run, ambient_c) - run.temperature_c
    return np.asarray(error[np.isfinite(error)])


def _room(parameters: ThermalParameters, run: Run, known: slice) -> float:
    """The ambient temperature that fits some steps best; the model is linear in it."""
    at_zero, at_one = (modelled(parameters, run, ambient) for ambient in (0.0, 1.0))
    slope, gap = (at_one - at_zero)[known], (run.temperature_c - at_zero)[known]
    good = np.isfinite(gap)
    return float(slope[good] @ gap[good] / (slope[good] @ slope[good]))


def _short(value: Any) -> float:
    return float(f"{float(value):.3g}")

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

from caq.errors import MissingExtraError, TraceError
from caq.progress import progress
from simulators.fit.runs import STEP_S, Runs
from simulators.recording import Array
from simulators.thermal import Thermal, ThermalParameters

CASES = ("mean_room", "first_half_hour", "own_room")
_KNOWN_STEPS = round(1800 / STEP_S)
_RUNS = (
    "fitted by `python -m simulators.fit thermal` on ground runs of R. Xing et al., MobiCom 2024, arXiv 2401.03435 "
    "(a load for hours, then idle). The room was not recorded: ambient is a fit too. The chip settles within a step of "
    "20 s, so its heat capacity is little more than a guess. "
)
_PI_LIMIT = (
    "Throttling begins at 80 C (Raspberry Pi documentation, frequency management); its factor and hysteresis are "
    "assumed, for no run became hot enough"
)


def _blank(title: str, source: str, above_c: float, factor: float, hysteresis_k: float) -> ThermalParameters:
    return ThermalParameters(title, source, (1.0, 1.0), (1.0, 1.0), 23.0, 0.0, above_c, factor, hysteresis_k)


#: By board: what is not fitted.
BLANKS = {
    "pi": _blank("Raspberry Pi 4B, as mounted in the runs", _RUNS + _PI_LIMIT, 80.0, 0.67, 2.0),
    "pi_infer": _blank("Raspberry Pi 4B, in another mounting", _RUNS + _PI_LIMIT, 80.0, 0.67, 2.0),
    "atlas": _blank(
        "Atlas 200 DK, as mounted in the runs",
        _RUNS + "Throttling is assumed throughout: no run became hot enough",
        85.0,
        0.5,
        5.0,
    ),
}
#: First values: K/W from chip to board and from board to air; J/K of chip and board.
_FIRST = (2.0, 4.0, 20.0, 150.0)
#: J/K at least: a chip settles faster than a step, so the recordings do not bound its heat capacity from below.
_LEAST = (1.0, 10.0)


class Prediction(NamedTuple):
    """Of one run."""

    run: Runs
    temperature_c: Array  # (S,)
    scored: slice  # the steps that count

    @property
    def error(self) -> Array:
        """K, modelled less measured, where it was measured."""
        error = (self.temperature_c - self.run.temperature_c[:, 0])[self.scored]
        return np.asarray(error[np.isfinite(error)])


def modelled(parameters: ThermalParameters, runs: Runs, ambient_c: Array | float) -> Array:
    """(S, R) C of the sensors at the steps' ends, in rooms of these temperatures (R,)."""
    thermal = Thermal(parameters)
    state = thermal.start(runs.start_c, runs.power_w[0])
    found = np.empty_like(runs.power_w)
    for k, power in enumerate(runs.power_w):
        state = thermal.step(state, power, ambient_c, STEP_S)
        found[k] = state[0]
    return found


def fit(runs: Runs, blank: ThermalParameters) -> ThermalParameters:
    """`blank` with resistances, heat capacities, the mean room and the idle power of these runs.

    Raises MissingExtraError without scipy.
    """
    try:
        from scipy.optimize import least_squares
    except ImportError as error:
        raise MissingExtraError("scipy", "sim") from error

    weight = 1 / np.sqrt(np.isfinite(runs.temperature_c).sum(0))

    def residuals(theta: Array) -> Array:
        parameters = _with(blank, theta)
        _, error = _rooms(parameters, runs, slice(None))
        return np.nan_to_num(error * weight).ravel()

    bounds = (np.concatenate([np.full(2, -np.inf), np.log(_LEAST)]), np.inf)
    fitted = _with(blank, least_squares(residuals, np.log(_FIRST), bounds=bounds, x_scale="jac", xtol=1e-6).x)
    rooms, _ = _rooms(fitted, runs, slice(None))
    idle = np.percentile(runs.power_w, 10, axis=0).mean()
    return replace(fitted, ambient_c=float(rooms.mean()), idle_power_w=float(idle))


def leave_out(runs: Runs, blank: ThermalParameters) -> list[dict[str, Prediction]]:
    """For each run: fits on the others, predicts this one in all CASES. Raises TraceError for a single run."""
    if len(runs.names) < 2:
        raise TraceError(f"nothing is left to fit: there is one run, {runs.names[0]}")
    every, folds = range(len(runs.names)), []
    with progress("fits with a run left out", len(every)) as advance:
        for left in every:
            fitted = fit(runs.select([i for i in every if i != left]), blank)
            folds.append(predict(fitted, runs.select([left])))
            advance(runs.names[left])
    return folds


def predict(parameters: ThermalParameters, run: Runs) -> dict[str, Prediction]:
    """All CASES, for a run (Runs of one) that the parameters do not know."""
    whole, start, rest = slice(0, None), slice(0, _KNOWN_STEPS), slice(_KNOWN_STEPS, None)
    rooms: dict[str, tuple[Array | float, slice]] = {
        "mean_room": (parameters.ambient_c, whole),
        "first_half_hour": (_rooms(parameters, run, start)[0], rest),
        "own_room": (_rooms(parameters, run, whole)[0], whole),
    }
    return {
        case: Prediction(run, modelled(parameters, run, room)[:, 0], scored) for case, (room, scored) in rooms.items()
    }


def report(folds: Sequence[dict[str, Prediction]]) -> dict[str, Any]:
    """Errors in all CASES, of all runs together and of each."""
    found: dict[str, Any] = {}
    for case in CASES:
        errors = {fold[case].run.names[0]: fold[case].error for fold in folds}
        rmse = {name: _short(np.sqrt(np.mean(error**2))) for name, error in errors.items()}
        every = np.concatenate(list(errors.values()))
        found[case] = {
            "rmse_k": _short(np.sqrt(np.mean(every**2))),
            "worst_k": _short(np.abs(every).max()),
            "rmse_k_by_run": rmse,
        }
    return found


def _with(blank: ThermalParameters, theta: Array) -> ThermalParameters:
    values = np.exp(theta).tolist()
    return replace(blank, resistance_k_per_w=tuple(values[:2]), heat_capacity_j_per_k=tuple(values[2:]))


def _rooms(parameters: ThermalParameters, runs: Runs, known: slice) -> tuple[Array, Array]:
    """The ambient temperatures (R,) that fit these steps best, for the model is linear in them; and the errors, (S, R),
    of all steps."""
    count = len(runs.names)
    ambient = np.array([0.0] * count + [1.0] * count)
    at_zero, at_one = np.split(modelled(parameters, runs.select([*range(count)] * 2), ambient), 2, axis=1)
    slope, gap = at_one - at_zero, runs.temperature_c - at_zero
    seen = np.where(np.isfinite(gap), slope, 0.0)[known]
    rooms = (seen * np.nan_to_num(gap[known])).sum(0) / (seen**2).sum(0)
    return rooms, rooms * slope - gap


def _short(value: Any) -> float:
    return float(f"{float(value):.3g}")

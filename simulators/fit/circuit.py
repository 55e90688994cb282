"""Fits one circuit to many discharges, each of which has a capacity and a resistance of its own.

Residuals are of the voltage under load and, with less weight, of the recovery after it, which tells the open-circuit
voltage from the resistances. The discharges' own two figures are projected out of each Gauss-Newton step (variable
projection: G. Golub and V. Pereyra, "Separable nonlinear least squares", Inverse Problems 19, 2003), so the step is as
small as the number of shared parameters; Levenberg-Marquardt damping keeps it from overshooting.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from simulators.battery import Battery, BatteryParameters
from simulators.fit.li_ion import CUTOFF_V, LOAD_STEPS, TAIL_STEPS, Discharges
from simulators.recording import Array

KNOTS = (0.0, 0.02, 0.04, 0.07, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
#: The charge at which the resistances' factor over charge is 1.
_UNIT = KNOTS.index(0.5)
#: V at rest after a charge to MAX_V, as measured.
FULL_V, MAX_V = 4.19, 4.2
REFERENCE_C = 25.0
#: A volt of the recovery counts as this much under load.
_REST_WEIGHT = 0.2
#: V of misfit that count as much as: a second difference of 1 of the logarithm of r1 over charge; a factor e between a
#: discharge's own capacity, and resistance, and their guess; a factor e between a parameter and its first value (of the
#: activation, 1000 K). All small: they decide what the voltages leave open.
_SMOOTH_V = 0.01
_GUESS_V = (0.002, 0.02)
_PRIOR_V = 0.005
_STEP = 1e-4


class Own(NamedTuple):
    """What each of C discharges has of its own, arrays (C,)."""

    capacity_ah: Array
    resistance_factor: Array


class Fitted(NamedTuple):
    parameters: BatteryParameters  # without ageing
    own: Own
    rmse_v: float  # under load, of the discharges fitted


def voltages(parameters: BatteryParameters, discharges: Discharges, own: Own) -> Array:
    """(S, C) V at the ends of the steps, from full cells at rest, with the recorded currents and temperatures."""
    battery = Battery(parameters)
    state = battery.start(np.ones(len(discharges.cell)), *own)
    modelled = np.empty_like(discharges.voltage_v)
    series = zip(discharges.current_a, discharges.temperature_c, discharges.duration_s, strict=True)
    for k, (current, celsius, duration) in enumerate(series):
        state, modelled[k] = battery.step_current(state, current, celsius, duration)
    return modelled


def residuals(parameters: BatteryParameters, discharges: Discharges, own: Own) -> Array:
    """(S, C): modelled less measured, so weighted that the squares of a discharge add to its mean square, V^2."""
    error = voltages(parameters, discharges, own) - discharges.voltage_v
    error[:LOAD_STEPS] /= np.sqrt(LOAD_STEPS)
    error[LOAD_STEPS : LOAD_STEPS + TAIL_STEPS] = 0.0  # below the cut-off, where no device goes
    error[LOAD_STEPS + TAIL_STEPS :] *= _REST_WEIGHT / np.sqrt(len(error) - LOAD_STEPS - TAIL_STEPS)
    return np.nan_to_num(error, copy=False)  # the record had ended


def guess(discharges: Discharges) -> Own:
    """Somewhat more than what came out until the cut-off, and the resistance of a new cell."""
    used = (discharges.current_a * discharges.duration_s)[:LOAD_STEPS].sum(0) / 3600
    return Own(used * 1.03, np.ones(len(used)))


def fit_own(parameters: BatteryParameters, discharges: Discharges) -> Own:
    """Capacity and resistance of each discharge, the circuit being known.

    A cell that ends early lacks charge, or has a high resistance: both are tried, and the better one is kept.
    """
    lacking = guess(discharges)
    starts = Own(*(np.concatenate([v, v * more]) for v, more in zip(lacking, (1.25, 1.5), strict=True)))
    own, cost = _improved(parameters, _repeated(discharges, 2), starts, 12)
    first = np.less_equal(*np.split(cost, 2))
    return Own(*(np.where(first, *np.split(values, 2)) for values in own))


def _improved(parameters: BatteryParameters, discharges: Discharges, own: Own, rounds: int) -> tuple[Own, Array]:
    """Damped Gauss-Newton on all discharges at once; also returns what is left of the squares, (C,)."""
    prior, three = guess(discharges), _repeated(discharges, 3)
    damping = np.full(len(discharges.cell), 1e-3)
    error, slopes = _linear(parameters, three, own, prior)
    for _ in range(rounds):
        matrix = np.einsum("sci,scj->cij", slopes, slopes)
        matrix *= 1 + damping[:, None, None] * np.eye(2)
        move = -np.linalg.solve(matrix, np.einsum("sci,sc->ci", slopes, error)[..., None])[..., 0]
        tried = _moved(own, np.clip(move, -0.3, 0.3))
        new, new_slopes = _linear(parameters, three, tried, prior)
        better = (new**2).sum(0) < (error**2).sum(0)
        own = Own(*(np.where(better, a, b) for a, b in zip(tried, own, strict=True)))
        error, slopes = np.where(better, new, error), np.where(better[:, None], new_slopes, slopes)
        damping = np.clip(np.where(better, damping / 5, damping * 5), 1e-8, 1e6)
    return own, (error**2).sum(0)


def _repeated(discharges: Discharges, times: int) -> Discharges:
    return discharges.select(np.tile(np.arange(len(discharges.cell)), times))


def _linear(parameters: BatteryParameters, three: Discharges, own: Own, prior: Own) -> tuple[Array, Array]:
    """Residuals with the guess (S + 2, C), and their slopes (S + 2, C, 2) by the logarithms of capacity and resistance.

    `three` holds the discharges three times, so that one simulation serves.
    """
    count = len(own.capacity_ah)
    moved = [_moved(own, np.broadcast_to(by, (count, 2))) for by in ((0.0, 0.0), (_STEP, 0.0), (0.0, _STEP))]
    every = Own(*map(np.concatenate, zip(*moved, strict=True)))
    priors = Own(*(np.tile(values, 3) for values in prior))
    error, *others = np.split(_with_guess(residuals(parameters, three, every), every, priors), 3, axis=1)
    return error, np.stack([(other - error) / _STEP for other in others], axis=-1)


def fit(discharges: Discharges, rounds: int = 12) -> Fitted:
    """The circuit that fits all the discharges best, by least squares."""
    theta, prior = _first(), guess(discharges)
    own = fit_own(_parameters(theta), discharges)
    damping = 1e-2
    cost = _cost(theta, discharges, own, prior)
    error, slopes = _projected(theta, discharges, own, prior)
    for _ in range(rounds):
        matrix = slopes.T @ slopes
        move = -np.linalg.solve(matrix + damping * np.diag(np.diag(matrix) + 1e-12), slopes.T @ error)
        tried = theta + np.clip(move, -0.5, 0.5)
        tried_own, _ = _improved(_parameters(tried), discharges, own, rounds=4)
        found = _cost(tried, discharges, tried_own, prior)
        if found >= cost:
            damping *= 4
            continue
        gain = 1 - found / cost
        theta, own, cost, damping = tried, tried_own, found, max(damping / 4, 1e-8)
        if gain < 1e-3:
            break
        error, slopes = _projected(theta, discharges, own, prior)
    parameters = _parameters(theta)
    under_load = residuals(parameters, discharges, own)[:LOAD_STEPS]
    return Fitted(parameters, own, float(np.sqrt((under_load**2).sum(0).mean())))


def _first() -> Array:
    """Textbook values of a cell of LiCoO2 or NCA, as the vector that is fitted (see `_parameters`)."""
    ocv = np.interp(KNOTS, [0, 0.05, 0.1, 0.2, 0.5, 0.8, 1], [2.9, 3.3, 3.45, 3.55, 3.75, 3.98, FULL_V])
    over_charge = np.interp([z for k, z in enumerate(KNOTS) if k != _UNIT], [0, 0.1, 0.2, 1], [4, 1.5, 1, 1])
    return np.concatenate([np.log(np.diff(ocv)), np.log(over_charge), np.log([0.06, 0.07, 60.0]), [3.0]])


def _parameters(theta: Array) -> BatteryParameters:
    """theta: log rises of the voltage between knots, log resistances at knots but one, log r0, r1, tau1; activation in
    1000 K."""
    n = len(KNOTS)
    rises, over_charge, (r0, r1, tau) = np.exp(theta[: n - 1]), theta[n - 1 : 2 * n - 2], np.exp(theta[-4:-1])
    return BatteryParameters(
        title="fit",
        source="fit",
        capacity_ah=2.0,
        cutoff_v=CUTOFF_V,
        max_v=MAX_V,
        state_of_charge=KNOTS,
        ocv_v=tuple((FULL_V - np.append(np.cumsum(rises[::-1])[::-1], 0.0)).tolist()),
        r1_over_charge=tuple(np.exp(np.insert(over_charge, _UNIT, 0.0)).tolist()),
        r0_ohm=float(r0),
        r1_ohm=float(r1),
        tau1_s=float(tau),
        reference_temperature_c=REFERENCE_C,
        activation_k=float(theta[-1]) * 1000,
        capacity_fade_per_cycle=0.0,
        resistance_growth_per_cycle=0.0,
    )


def _moved(own: Own, by: Array) -> Own:
    return Own(own.capacity_ah * np.exp(by[:, 0]), own.resistance_factor * np.exp(by[:, 1]))


def _with_guess(error: Array, own: Own, prior: Own) -> Array:
    """Two rows more: how far each discharge is from the guess."""
    return np.concatenate([error, [w * np.log(a / b) for w, a, b in zip(_GUESS_V, own, prior, strict=True)]])


def _penalty(theta: Array) -> Array:
    n = len(KNOTS)
    bends = np.diff(np.insert(theta[n - 1 : 2 * n - 2], _UNIT, 0.0), 2)
    return np.concatenate([_SMOOTH_V * bends, _PRIOR_V * (theta - _first())])


def _cost(theta: Array, discharges: Discharges, own: Own, prior: Own) -> float:
    error = _with_guess(residuals(_parameters(theta), discharges, own), own, prior)
    return float((error**2).sum() / len(discharges.cell) + (_penalty(theta) ** 2).sum())


def _projected(theta: Array, discharges: Discharges, own: Own, prior: Own) -> tuple[Array, Array]:
    """Residuals (R,) and slopes by theta (R, P), less what the discharges' own parameters can take up."""
    parameters = _parameters(theta)
    error, own_slopes = _linear(parameters, _repeated(discharges, 3), own, prior)
    basis, _ = np.linalg.qr(np.moveaxis(own_slopes, 0, 1))  # (C, S + 2, 2)

    def rest(values: Array) -> Array:
        values = values.T[..., None]
        return np.asarray((values - basis @ (np.swapaxes(basis, 1, 2) @ values)).ravel())

    columns = []
    for unit in np.eye(len(theta)):
        moved = _with_guess(residuals(_parameters(theta + unit * _STEP), discharges, own), own, prior)
        columns.append((rest((moved - error) / _STEP), (_penalty(theta + unit * _STEP) - _penalty(theta)) / _STEP))
    scale = 1 / np.sqrt(len(discharges.cell))
    slopes = np.stack([np.concatenate([scale * a, b]) for a, b in columns], axis=1)
    return np.concatenate([scale * rest(error), _penalty(theta)]), slopes

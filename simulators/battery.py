"""A Li-ion battery as an equivalent circuit, for N devices at once.

    terminal voltage = ocv(z) - i * r0 * age - v1            z: state of charge, 0..1; i: current, A, discharge > 0
    v1 over time:     tau1 * dv1/dt = i * r1 * k * age - v1  polarization: one RC pair
    charge over time: dz/dt = -i / (3600 * capacity)
    k = r1_over_charge(z) * exp(activation * (1/T - 1/T_ref))

That is the first-order Thevenin model (Plett, "Battery Management Systems" vol. 1, 2015, ch. 2). The ohmic part depends
on age alone; the polarization, of charge transfer and diffusion, also on charge and temperature (Arrhenius). An
equivalent full cycle, a discharge of one capacity, leaves `1 - capacity_fade_per_cycle` of the capacity and multiplies
the resistances (`age`) by `1 + resistance_growth_per_cycle`.

A step is exact for the RC pair, implicit in its polarization, so that no duration makes it unstable; ocv and k are
those of the charge at its start. Not modelled: self-discharge, hysteresis, loss in charging beyond the resistances, and
ageing by time and by heat.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from caq.errors import ConfigError

#: Float arrays of shape (N,) unless said otherwise.
Array: TypeAlias = np.ndarray[Any, Any]

ZERO_CELSIUS_K = 273.15
#: Entries of the uniform tables over charge. Knots are met to within 1 mV by this.
_TABLE = 512


@dataclass(frozen=True)
class BatteryParameters:
    """A battery of equal cells in series; all figures are of one cell, new. Raises ConfigError that names the field.

    Two cells in parallel are one of twice the capacity: see `scaled`.
    """

    title: str
    source: str  # where the figures come from
    capacity_ah: float  # between state of charge 1 and 0
    cutoff_v: float  # below this the load is cut off
    max_v: float  # the charger holds this voltage at most
    state_of_charge: tuple[float, ...]  # knots, from 0 to 1, increasing
    ocv_v: tuple[float, ...]  # open-circuit voltage at the knots, increasing
    r0_ohm: float
    r1_ohm: float
    r1_over_charge: tuple[float, ...]  # factor of r1 at the knots
    tau1_s: float
    reference_temperature_c: float  # at which r1 holds
    activation_k: float  # of r1, activation energy over gas constant; 0: no effect of temperature
    capacity_fade_per_cycle: float  # 0..0.1
    resistance_growth_per_cycle: float  # 0..0.1
    cells_in_series: int = 1

    def __post_init__(self) -> None:
        for field in ("capacity_ah", "cutoff_v", "r0_ohm", "tau1_s", "cells_in_series"):
            if not getattr(self, field) > 0:
                self._fail(field, f"must be above 0, not {getattr(self, field)}")
        if not self.r1_ohm >= 0:
            self._fail("r1_ohm", f"must be at least 0, not {self.r1_ohm}")
        if not self.max_v > self.cutoff_v:
            self._fail("max_v", f"must be above cutoff_v, {self.cutoff_v}, not {self.max_v}")
        if not self.reference_temperature_c > -ZERO_CELSIUS_K:
            self._fail("reference_temperature_c", "must be above absolute zero")
        if not abs(self.activation_k) <= 20_000:
            self._fail("activation_k", f"must be from -20000 to 20000, not {self.activation_k}")
        for field in ("capacity_fade_per_cycle", "resistance_growth_per_cycle"):
            if not 0 <= getattr(self, field) <= 0.1:
                self._fail(field, f"must be from 0 to 0.1, not {getattr(self, field)}")
        self._check_knots()

    def _check_knots(self) -> None:
        knots = np.asarray(self.state_of_charge)
        if len(knots) < 2 or knots[0] != 0 or knots[-1] != 1 or not (np.diff(knots) > 0).all():
            self._fail("state_of_charge", "must increase from 0 to 1")
        for field in ("ocv_v", "r1_over_charge"):
            values = np.asarray(getattr(self, field))
            if len(values) != len(knots):
                self._fail(field, f"has {len(values)} values, and state_of_charge {len(knots)}")
            if not (np.isfinite(values) & (values > 0)).all():
                self._fail(field, "must be finite and above 0")
        if not (np.diff(self.ocv_v) > 0).all():
            self._fail("ocv_v", "must increase with charge")
        if self.ocv_v[-1] > self.max_v:
            self._fail("ocv_v", f"ends at {self.ocv_v[-1]} V, above max_v, {self.max_v}")

    def _fail(self, field: str, what: str) -> None:
        raise ConfigError(f"battery {self.title!r}: {field}: {what}")

    @property
    def energy_j(self) -> float:
        """J from full to empty at no load: the integral of the open-circuit voltage over charge, all cells."""
        return float(np.trapezoid(self.ocv_v, self.state_of_charge)) * self.capacity_ah * 3600 * self.cells_in_series


def scaled(parameters: BatteryParameters, capacity_ah: float, title: str) -> BatteryParameters:
    """The same chemistry with more or less of it: resistances go with the inverse of the capacity, `source` says so."""
    if not capacity_ah > 0:
        raise ConfigError(f"battery {title!r}: capacity_ah: must be above 0, not {capacity_ah}")
    ratio = parameters.capacity_ah / capacity_ah
    return replace(
        parameters,
        title=title,
        source=f"scaled to {capacity_ah:g} Ah from {parameters.title!r}: {parameters.source}",
        capacity_ah=capacity_ah,
        r0_ohm=parameters.r0_ohm * ratio,
        r1_ohm=parameters.r1_ohm * ratio,
    )


class BatteryState(NamedTuple):
    """Of N devices, arrays (N,). Charge and age are sums of many small steps, so they are always float64."""

    state_of_charge: Array  # 0..1, of the present capacity
    polarization_v: Array  # of one cell, across the RC pair; the battery's dtype
    capacity_ah: Array  # of one cell, now: fades
    resistance_factor: Array  # of both resistances, 1 when new: grows


class Battery:
    """N batteries of one kind; `dtype` is that of voltages and currents, float32 or float64."""

    def __init__(self, parameters: BatteryParameters, dtype: Any = np.float64) -> None:
        if np.dtype(dtype) not in (np.float32, np.float64):
            raise ConfigError(f"battery {parameters.title!r}: dtype must be float32 or float64, not {np.dtype(dtype)}")
        self.parameters = parameters
        self.dtype: np.dtype[Any] = np.dtype(dtype)
        grid = np.linspace(0, 1, _TABLE + 1)
        # (value at the left end, slope per entry): one gather each, where np.interp would search.
        self._ocv = self._table(np.interp(grid, parameters.state_of_charge, parameters.ocv_v))
        over_charge = np.interp(grid, parameters.state_of_charge, parameters.r1_over_charge)
        self._r1 = self._table(over_charge * parameters.r1_ohm)
        # So that many small parts of a cycle multiply to the stated rates.
        self._fade = -float(np.log1p(-parameters.capacity_fade_per_cycle))
        self._growth = float(np.log1p(parameters.resistance_growth_per_cycle))

    def start(
        self, state_of_charge: Array, capacity_ah: Array | float | None = None, resistance_factor: Array | float = 1.0
    ) -> BatteryState:
        """Rested batteries; new ones unless their capacity (Ah of one cell) or resistance is given.

        Raises ConfigError for a charge outside 0..1, a capacity or a factor that is not above 0, and NaN.
        """
        charge = np.array(state_of_charge, np.float64, ndmin=1)
        capacity = self.parameters.capacity_ah if capacity_ah is None else capacity_ah
        sizes = {"capacity_ah": capacity, "resistance_factor": resistance_factor}
        if bad := np.flatnonzero(~((charge >= 0) & (charge <= 1))).tolist():
            raise ConfigError(f"state_of_charge[{bad[0]}]: must be from 0 to 1, not {charge[bad[0]]}")
        full = {}
        for name, value in sizes.items():
            full[name] = np.array(np.broadcast_to(value, charge.shape), np.float64)
            if bad := np.flatnonzero(~((full[name] > 0) & np.isfinite(full[name]))).tolist():
                raise ConfigError(f"{name}[{bad[0]}]: must be finite and above 0, not {full[name][bad[0]]}")
        return BatteryState(charge, np.zeros(charge.shape, self.dtype), **full)

    def step(
        self, state: BatteryState, power_w: Array | float, temperature_c: Array | float, duration_s: Array | float
    ) -> tuple[BatteryState, Array]:
        """Holds a power for a while. Returns the state and the terminal voltages (N,) at the end of the step.

        power_w: of the whole battery, discharge > 0, charge < 0. A charger that would exceed `max_v` holds that
        voltage, so it delivers less. A load beyond what the battery can deliver gets the most it can, at half the
        voltage: check `cut_off` after every step. temperature_c: of the cells. duration_s: above 0.
        Inputs are not checked here: NaN in, NaN out.
        """
        source_v, resistance, r1, decay = self._circuit(state, temperature_c, duration_s)
        half = source_v * self.dtype.type(0.5)
        square = half * half
        # v = e - p/v * r, solved for v; drop = p * r, at most what the circuit can deliver.
        drop = np.multiply(resistance, power_w, dtype=self.dtype)
        drop /= self.dtype.type(self.parameters.cells_in_series)
        np.minimum(drop, square, out=drop)
        square -= drop
        voltage = np.sqrt(square, out=square)
        voltage += half
        current = drop
        current /= resistance
        current /= voltage
        max_v = self.dtype.type(self.parameters.max_v)
        if voltage.max() > max_v:
            held = voltage > max_v
            limit = np.minimum((source_v - max_v) / resistance, 0)
            current = np.where(held & (current < 0), np.maximum(current, limit), current)
            voltage = source_v - current * resistance
        return self._after(state, current, r1, decay, duration_s), self._all_cells(voltage)

    def step_current(
        self, state: BatteryState, current_a: Array | float, temperature_c: Array | float, duration_s: Array | float
    ) -> tuple[BatteryState, Array]:
        """Like `step` with a current, A, discharge > 0, that is held whatever the voltage."""
        source_v, resistance, r1, decay = self._circuit(state, temperature_c, duration_s)
        current = np.asarray(current_a, self.dtype)
        voltage = source_v - current * resistance
        return self._after(state, current, r1, decay, duration_s), self._all_cells(voltage)

    def cut_off(self, state: BatteryState, voltage_v: Array) -> Array:
        """(N,) bool: below the cut-off voltage, or empty. The load is to be 0 from then on, until charged."""
        low = voltage_v < self.dtype.type(self.parameters.cutoff_v * self.parameters.cells_in_series)
        low |= state.state_of_charge <= 0
        return np.asarray(low)

    def _circuit(
        self, state: BatteryState, temperature_c: Array | float, duration_s: Array | float
    ) -> tuple[Array, Array, Array, Array]:
        """Of one cell: the source's voltage and resistance as seen at the end of a step; r1; the RC pair's decay."""
        p, kind = self.parameters, self.dtype.type
        at = np.multiply(state.state_of_charge, _TABLE, dtype=np.float64)
        index = at.astype(np.intp)
        part = np.subtract(at, index).astype(self.dtype)
        factor = state.resistance_factor.astype(self.dtype)
        kelvin = np.add(temperature_c, kind(ZERO_CELSIUS_K), dtype=self.dtype)
        exponent = np.divide(kind(p.activation_k), kelvin)
        exponent -= kind(p.activation_k / (p.reference_temperature_c + ZERO_CELSIUS_K))
        r1 = self._look_up(self._r1, index, part)
        r1 *= np.exp(exponent)
        r1 *= factor
        decay = np.exp(np.divide(duration_s, -p.tau1_s)).astype(self.dtype)
        resistance = factor * kind(p.r0_ohm)
        resistance += r1 * (1 - decay)
        source_v = self._look_up(self._ocv, index, part)
        source_v -= decay * state.polarization_v
        return source_v, resistance, r1, decay

    def _after(
        self, state: BatteryState, current: Array, r1: Array, decay: Array, duration_s: Array | float
    ) -> BatteryState:
        r1 *= 1 - decay
        r1 *= current
        r1 += decay * state.polarization_v
        used = np.multiply(current, np.divide(duration_s, 3600.0), dtype=np.float64)
        used /= state.capacity_ah
        charge = np.clip(state.state_of_charge - used, 0.0, 1.0)
        cycles = np.maximum(used, 0.0, out=used)
        capacity = state.capacity_ah * (1 - self._fade * cycles)
        factor = state.resistance_factor * (1 + self._growth * cycles)
        return BatteryState(charge, r1, capacity, factor)

    def _table(self, values: Array) -> tuple[Array, Array]:
        # The last entry stands for charge 1 exactly.
        return values.astype(self.dtype), np.append(np.diff(values), 0.0).astype(self.dtype)

    def _look_up(self, table: tuple[Array, Array], index: Array, part: Array) -> Array:
        values, slopes = table
        found = slopes.take(index)
        found *= part
        found += values.take(index)
        return np.asarray(found)

    def _all_cells(self, voltage: Array) -> Array:
        return (
            voltage
            if self.parameters.cells_in_series == 1
            else voltage * self.dtype.type(self.parameters.cells_in_series)
        )

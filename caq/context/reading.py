"""What the device knows now: readings, and the context that gathers them.

A reading is never a bare number. It carries its unit, the source it came from, its age and its quality, so that a
policy can say why it trusted it or why it did not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from enum import Enum
from typing import Any

from caq.errors import ConfigError, nearest


class Quality(str, Enum):
    """How a value came to be."""

    MEASURED = "measured"
    ESTIMATED = "estimated"
    SIMULATED = "simulated"
    RECORDED = "recorded"
    MISSING = "missing"


@dataclass(frozen=True)
class FieldSpec:
    """What a context field may hold: `low <= value <= high` in `unit`, or a bool where `boolean`.

    A value above `high` by no more than `slack` counts as `high`.
    """

    unit: str
    low: float
    high: float
    boolean: bool = False
    slack: float = 0.0


# Temperatures outside -40..150 °C are what disconnected and disabled sensors report (-274, 0xffff, 255), not weather.
# A load is time over time, taken from two clocks: machines under full load report a few percent above 1.
FIELDS: Mapping[str, FieldSpec] = {
    "state_of_charge": FieldSpec("1", 0.0, 1.0),
    "charging": FieldSpec("bool", 0.0, 1.0, boolean=True),
    "power_w": FieldSpec("W", 0.0, 1e5),
    "available_bytes": FieldSpec("B", 0.0, 2.0**62),
    "memory_available": FieldSpec("1", 0.0, 1.0),
    "memory_pressure": FieldSpec("1", 0.0, 1.0),
    "temperature_c": FieldSpec("°C", -40.0, 150.0),
    "cpu_load": FieldSpec("1", 0.0, 1.0, slack=0.1),
    "apps_load": FieldSpec("1", 0.0, 1.0, slack=0.1),
    "cpu_frequency_hz": FieldSpec("Hz", 1.0, 1e11),
    "screen_brightness": FieldSpec("1", 0.0, 1.0),
    "time_s": FieldSpec("s", -math.inf, math.inf),
}


def field_spec(name: str) -> FieldSpec:
    """The specification of a field; ConfigError names the nearest one if there is no such field."""
    try:
        return FIELDS[name]
    except KeyError:
        raise ConfigError(f"no context field {name!r}{nearest(name, FIELDS)}") from None


@dataclass(frozen=True)
class Reading:
    """One value with its provenance.

    `value` is in `unit`, or None when `quality` is missing; `reason` then says why in words. `stale` marks a value
    that is too old to act upon: it is kept, because it is still the last thing that the device knew.
    """

    value: float | bool | None
    unit: str
    source: str
    age_s: float = 0.0
    quality: Quality = Quality.MEASURED
    stale: bool = False
    reason: str = ""

    @property
    def usable(self) -> bool:
        """Whether there is a value that is not stale."""
        return self.value is not None and not self.stale


def missing(name: str, source: str, reason: str) -> Reading:
    """A reading of the field `name` that is not there, with the reason in words."""
    return Reading(None, field_spec(name).unit, source, quality=Quality.MISSING, reason=reason)


def sensed(name: str, value: Any, source: str, quality: Quality = Quality.MEASURED) -> Reading:
    """A reading of the field `name`; a value that cannot be true (NaN, out of range) becomes a missing one."""
    return checked(name, Reading(value, field_spec(name).unit, source, quality=quality))


def checked(name: str, reading: Reading) -> Reading:
    """Returns `reading` with its value as a plain float or bool, or a missing one if the value cannot be true."""
    spec = field_spec(name)
    if reading.value is None:
        return reading if reading.quality is Quality.MISSING else _refused(reading, "the sensor gave no value")
    try:
        value = float(reading.value)
    except (TypeError, ValueError, OverflowError):
        return _refused(reading, f"the sensor gave {reading.value!r}, which is not a number")
    if math.isnan(value):
        return _refused(reading, "the sensor gave NaN")
    if math.isinf(value):
        return _refused(reading, "the sensor gave an infinite value")
    if spec.boolean:
        if value not in (0.0, 1.0):
            return _refused(reading, f"the sensor gave {value:g} where only 0 and 1 have a meaning")
        return replace(reading, value=bool(value))
    if not spec.low <= value <= spec.high + spec.slack:
        return _refused(reading, f"the sensor gave {value:g}, outside {spec.low:g}..{spec.high:g} {spec.unit}")
    return replace(reading, value=min(value, spec.high))


def _refused(reading: Reading, reason: str) -> Reading:
    return replace(reading, value=None, quality=Quality.MISSING, stale=False, reason=reason)


@dataclass(frozen=True)
class Context:
    """Everything that the device knows at one moment; every field is a `Reading`.

    | field | unit | range |
    |---|---|---|
    | state_of_charge | 1 | 0..1 |
    | charging | bool | True while external power keeps the battery from draining |
    | power_w | W | drawn by the device, >= 0 |
    | available_bytes | B | memory that this process may still take |
    | memory_available | 1 | 0..1, `available_bytes` as a share of the limit that binds |
    | memory_pressure | 1 | 0..1, share of the last 10 s in which some task waited for memory |
    | temperature_c | °C | -40..150 |
    | cpu_load | 1 | 0..1, busy share of all cores |
    | apps_load | 1 | 0..1, the part of `cpu_load` that other processes take |
    | cpu_frequency_hz | Hz | of the fastest core |
    | screen_brightness | 1 | 0..1 |
    | time_s | s | monotonic clock, or the time of a trace; only differences have a meaning |
    """

    state_of_charge: Reading
    charging: Reading
    power_w: Reading
    available_bytes: Reading
    memory_available: Reading
    memory_pressure: Reading
    temperature_c: Reading
    cpu_load: Reading
    apps_load: Reading
    cpu_frequency_hz: Reading
    screen_brightness: Reading
    time_s: Reading

    @classmethod
    def from_readings(cls, readings: Mapping[str, Reading]) -> Context:
        """A context of these readings; the fields not named are missing. ConfigError for an unknown field."""
        for name in readings:
            field_spec(name)
        absent = {name: missing(name, "none", "no source gives it") for name in FIELDS if name not in readings}
        return cls(**absent, **readings)

    @classmethod
    def from_values(
        cls, *, quality: Quality = Quality.SIMULATED, source: str = "values", **values: float | bool | None
    ) -> Context:
        """A context of plain values, such as a simulator has; None is missing. ConfigError for an unknown field."""
        return cls.from_readings(
            {
                name: missing(name, source, "no value was given")
                if value is None
                else sensed(name, value, source, quality)
                for name, value in values.items()
            }
        )

    def reading(self, name: str) -> Reading:
        """The reading of the field `name`; ConfigError if there is no such field."""
        field_spec(name)
        reading: Reading = getattr(self, name)
        return reading

    def value(self, name: str) -> float | bool | None:
        """The value of the field `name`, or None when it is missing or stale."""
        reading = self.reading(name)
        return reading.value if reading.usable else None

    def to_dict(self) -> dict[str, dict[str, float | bool | str | None]]:
        """Plain types only, for JSON: `{field: {value, unit, source, age_s, quality, stale, reason}}`."""
        return {
            field.name: {
                part.name: plain.value if isinstance(plain := getattr(reading, part.name), Quality) else plain
                for part in fields(Reading)
            }
            for field in fields(self)
            for reading in (self.reading(field.name),)
        }

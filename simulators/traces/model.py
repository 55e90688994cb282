"""The numbers behind generated days: what they mean, and the YAML file that holds them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from caq.strict_yaml import Fields, read

#: Classes of the state of charge: tenths, and full (from 0.995 on).
LEVELS = 11
FULL = 0.995
#: Ends of the classes of time since the last change, in minutes; the last class has none.
ELAPSED_MIN = (2, 10, 30, 120, 480)
HOURS = 24
#: Quantiles of a distribution are given at as many even steps from 0 to 1.
QUANTILES = 21

PHONE = Path(__file__).with_name("phone.yaml")


@dataclass(frozen=True)
class Hazard:
    """The chance of a change per minute: per_min, times one factor each by class, times the device's own.

    In the first class of time since the last change, where plugs wobble, the level has no say. The device's factor is
    lognormal with mean 1 and `device_sigma` the deviation of its logarithm.
    """

    per_min: float
    hour: tuple[float, ...]
    level: tuple[float, ...]
    elapsed: tuple[float, ...]
    device_sigma: float


@dataclass(frozen=True)
class Marginal:
    """A distribution by its quantiles; of the variance of its normal scores, `device_share` is between devices."""

    quantiles: tuple[float, ...]
    device_share: float


@dataclass(frozen=True)
class Charge:
    """Charge gained on the charger: each session has a rate per hour, times a factor of the state of charge up to 1."""

    per_hour: Marginal
    level: tuple[float, ...]


@dataclass(frozen=True)
class Drain:
    """Charge lost off the charger: per_hour of the median device with the screen off, `screen` times that with it on.

    level: factors by the state of charge; near empty, phones save, and the first percent lasts longer than others.
    device_sigma: deviation of the logarithm between devices. Within one, the drain is multiplied by a lognormal process
    of mean 1 whose logarithm has the deviation noise_sigma and is forgotten with the time constant noise_min.
    """

    per_hour: float
    screen: float
    level: tuple[float, ...]
    device_sigma: float
    noise_sigma: float
    noise_min: float


@dataclass(frozen=True)
class Memory:
    """Memory available: a distribution, and within a device a fast and a slow process with their time constants."""

    marginal: Marginal
    fast_share: float
    fast_min: float
    slow_min: float


@dataclass(frozen=True)
class PhoneModel:
    """Everything that `phone_days` draws from. source: what it was fitted to."""

    source: str
    plug: Hazard
    unplug: Hazard
    screen_on: Hazard
    screen_off: Hazard
    charge: Charge
    drain: Drain
    brightness: Marginal
    memory: Memory


@lru_cache(maxsize=8)
def load_model(path: Path = PHONE) -> PhoneModel:
    """Reads a model. Raises ConfigError that names file and field."""
    fields = Fields(str(path))

    def mapping(data: object, at: str, kind: type) -> dict[str, Any]:
        names = tuple(kind.__dataclass_fields__)  # type: ignore[attr-defined]
        return dict(fields.mapping(data, at, names, names))

    def number(data: object, at: str) -> float:
        value = fields.number(data, at)
        return value if value >= 0 else fields.fail(at, f"must be at least 0, not {value}")

    def numbers(data: object, at: str, count: int) -> tuple[float, ...]:
        items = fields.items(data, at)
        if len(items) != count:
            fields.fail(at, f"must have {count} numbers, not {len(items)}")
        return tuple(number(item, f"{at}[{place}]") for place, item in enumerate(items))

    def plain(data: object, at: str, kind: type, lists: dict[str, int]) -> Any:
        given = mapping(data, at, kind)
        return kind(
            **{
                name: numbers(value, f"{at}.{name}", lists[name]) if name in lists else number(value, f"{at}.{name}")
                for name, value in given.items()
            }
        )

    def hazard(data: object, at: str) -> Hazard:
        found: Hazard = plain(data, at, Hazard, {"hour": HOURS, "level": LEVELS, "elapsed": len(ELAPSED_MIN) + 1})
        return found

    def marginal(data: object, at: str) -> Marginal:
        found: Marginal = plain(data, at, Marginal, {"quantiles": QUANTILES})
        if list(found.quantiles) != sorted(found.quantiles) or found.device_share > 1:
            fields.fail(at, "quantiles must ascend, and device_share is at most 1")
        return found

    def share(data: object, at: str) -> Marginal:
        found = marginal(data, at)
        return found if found.quantiles[-1] <= 1 else fields.fail(at, "quantiles must be at most 1")

    def charge(data: object, at: str) -> Charge:
        given = mapping(data, at, Charge)
        return Charge(marginal(given["per_hour"], f"{at}.per_hour"), numbers(given["level"], f"{at}.level", LEVELS))

    def memory(data: object, at: str) -> Memory:
        given = mapping(data, at, Memory)
        numbers_ = {name: number(value, f"{at}.{name}") for name, value in given.items() if name != "marginal"}
        return Memory(marginal=share(given["marginal"], f"{at}.marginal"), **numbers_)

    readers: dict[str, Callable[[object, str], object]] = {
        "source": fields.text,
        **dict.fromkeys(("plug", "unplug", "screen_on", "screen_off"), hazard),
        "charge": charge,
        "drain": lambda data, at: plain(data, at, Drain, {"level": LEVELS}),
        "brightness": share,
        "memory": memory,
    }
    given = mapping(read(path), "the file", PhoneModel)
    return PhoneModel(**{name: reader(given[name], name) for name, reader in readers.items()})  # type: ignore[arg-type]

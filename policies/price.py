"""A learned price of charge: what a joule is likely to be worth later, by a small network, and the best point at it.

    policy = PricePolicy.load("camera-price.npz")
    with caq.Runtime("x.caq", policy) as runtime: ...

Each step the policy takes the point that maximises `accuracy - price * energy`, as pacing does; the price is learned
(`policies.train.price`). It is the mean, over training devices in situations like this one, of what a joule more would
have returned in the rest of the day: the costate of optimal control (Bertsekas, "Dynamic Programming and Optimal
Control", 4th ed. 2017, sec. 3.3). A situation is what a device can know: charge, charger, hour, and what it remembers
of its charger and its requests (`policies.recall`).

Requests are measured by the power beyond what the device draws besides (`policies.other_draw`) over the energy of the
active point. Points that do not fit in memory are not considered. A point is kept unless another one gains more, of the
requests that are usual at the hour, than the change costs. Where a situation lies outside of those it was trained on,
the fallback is taken, and the reason says why.

The file is an uncompressed .npz without pickled objects, of the arrays in `_KEYS` and the layers, as in
`policies.learned`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from caq.errors import ConfigError
from policies.arrays import read_network_file, write_arrays
from policies.fallback import Fallback, check_fallback, check_range
from policies.mlp import Floats, check_layers, forward, named
from policies.numbers import kind
from policies.other_draw import DRAWS, OtherDraw
from policies.points import PointTable
from policies.recall import HOURS, NAMES, Recall, Usual
from policies.seen import PointPolicy, Seen, local_hour

VERSION = 3
INPUTS = ("state_of_charge", "charging", "hour_sin", "hour_cos", "hour", *NAMES)
#: A situation may be that far beyond those of training, of the width of an input's range.
SLACK = 0.05
#: Of the mean rate of requests, so that a quiet hour does not hold a point for ever.
LEAST_BUSY = 0.05
_NUMBERS = ("charging", *DRAWS, "switch_cost")
_KEYS = (
    "version", "source", "activation", "low", "high", "fallback", "points", "accuracy", "energy_j", "memory", "rate",
    *_NUMBERS,
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class PriceModel:
    """weights, biases: of each layer, (inputs, outputs) and (outputs,) float32, from the inputs to the price of a
    millijoule in correct answers. activation: tanh or relu, between layers. low, high: (16,) range of the inputs in
    training. usual: of the devices it was trained on. other: drawn without requests. switch_cost: of a change of the
    point, >= 0, in correct answers over those asked for in the mean time between two decisions. fallback: name of the
    point to take outside the range. Raises ConfigError that names the array."""

    source: str
    points: PointTable
    weights: tuple[Floats, ...]
    biases: tuple[Floats, ...]
    activation: str
    low: Floats
    high: Floats
    usual: Usual
    other: OtherDraw
    switch_cost: float
    fallback: str

    def __post_init__(self) -> None:
        check_fallback(self.fallback, self.points)
        if not 0 <= self.switch_cost < np.inf:
            raise ConfigError(f"switch_cost: must be at least 0, not {self.switch_cost}")
        check_layers(self.weights, self.biases, self.activation, len(INPUTS), 1)
        check_range(self.low, self.high, len(INPUTS))

    def price(self, inputs: Floats) -> Floats:
        """(N,) of a millijoule, in correct answers, at least 0; inputs (N, 16)."""
        return np.maximum(forward(inputs, self.weights, self.biases, self.activation)[:, 0], np.float32(0))

    def save(self, path: str | Path) -> None:
        """Writes a file that `read_price` reads."""
        points = self.points
        write_arrays(
            path,
            version=np.int64(VERSION),
            source=np.array(self.source),
            activation=np.array(self.activation),
            fallback=np.array(self.fallback),
            points=np.array(points.names),
            accuracy=points.accuracy,
            energy_j=points.energy_j,
            memory=points.memory,
            low=self.low,
            high=self.high,
            rate=self.usual.rate,
            charging=np.float64(self.usual.charging),
            **self.other.arrays(),
            switch_cost=np.float64(self.switch_cost),
            **named(self.weights, self.biases),
        )


def read_price(path: str | Path) -> PriceModel:
    """Reads a file of `PriceModel.save`. Raises WeightsError that names the file and the array, VersionError on a file
    of another version."""
    with read_network_file(path, VERSION, _KEYS) as arrays:
        return PriceModel(
            arrays.text("source"),
            arrays.points(),
            *arrays.layers(),
            arrays.text("activation"),
            arrays.floats("low"),
            arrays.floats("high"),
            Usual(arrays.floats("rate"), arrays.number("charging")),
            OtherDraw.read(arrays),
            arrays.number("switch_cost"),
            arrays.text("fallback"),
        )


def inputs(
    state_of_charge: NDArray[np.float64], charging: NDArray[np.float64], hour: NDArray[np.float64], recall: Recall
) -> Floats:
    """(N, 16) float32 rows of INPUTS; charge and charger 0..1, hour 0..24, (N,) each."""
    xp = recall.xp
    hours = xp.of(hour)
    angle = hours * (2 * np.pi / 24)
    rows = (xp.of(state_of_charge), xp.of(charging), xp.sin(angle), xp.cos(angle), hours / 24, *recall.rows())
    return np.array(rows, np.float32).reshape(len(INPUTS), -1).T


class PricePolicy(PointPolicy):
    """See the module. Without power or time it goes by what it remembers."""

    needed = ("state_of_charge", "charging")
    fields = ("state_of_charge", "charging", "power_w", "time_s", "memory_available", "screen_brightness", "apps_load")

    def __init__(self, model: PriceModel, clock: Callable[[], float] = local_hour) -> None:
        self.model = model
        slack = SLACK * (model.high - model.low)
        self._fallback = Fallback(model.fallback, model.points, INPUTS, model.low - slack, model.high + slack)
        self._minus_mj = model.points.energy_j * -1e3
        # (25, P + 1, P) accuracy, and what it gains to stay at the active point, by the hour: the fewer requests are
        # usual, the less another one could gain instead. The last row is for a point that is not known.
        rate = model.usual.rate[np.arange(HOURS + 1) % HOURS]
        busy = np.maximum(rate / model.usual.rate.mean(), LEAST_BUSY)
        stay = (model.switch_cost / busy)[:, None, None] * np.eye(len(model.points) + 1)[:, :-1]
        self._base = model.points.accuracy + stay
        super().__init__(model.points, clock)

    @classmethod
    def load(cls, path: str | Path, clock: Callable[[], float] = local_hour) -> PricePolicy:
        """Raises what `read_price` raises."""
        return cls(read_price(path), clock)

    def start(self, devices: int) -> None:
        self._xp = kind(devices)
        self._energy_j = self._xp.table(self.points.energy_j)
        self._recall = Recall(self.model.usual, devices)
        self._seen_s = self._brightness = self._xp.of(np.full(devices, np.nan))
        self._inputs: Floats
        self._price: Floats

    def _remember(self, seen: Seen) -> None:
        xp, other = self._xp, self.model.other
        current, power_w = xp.of(seen.current), xp.of(seen.power_w)
        beyond = power_w - other.watts(xp, seen, self._brightness)
        # Less than idle is drawn by a device that is off: what was asked of it then, it does not know.
        measured = (power_w >= 0.5 * other.idle_power_w) & (current >= 0) & (beyond > -np.inf)  # nor NaN
        rate = xp.where(beyond > 0, beyond, 0.0) / self._energy_j[current]
        time_s = xp.of(seen.time_s)
        self._recall.note(time_s - self._seen_s, xp.of(seen.hour), xp.of(seen.charging), rate, measured)
        self._seen_s, self._brightness = time_s, xp.of(seen.screen_brightness)

    def choose(self, seen: Seen) -> NDArray[np.intp]:
        self._remember(seen)
        self._inputs = x = inputs(seen.state_of_charge, seen.charging, seen.hour, self._recall)
        self._price = self.model.price(x)
        worth = self._price[:, None] * self._minus_mj
        worth += self._base[self._xp.whole(self._xp.of(seen.hour)), self._xp.of(seen.current)]
        short = self.points.memory > seen.memory_available[:, None]
        lacks = np.count_nonzero(short)  # much faster than any()
        if lacks:
            worth[short] = -np.inf
        chosen = self._fallback.replace(worth.argmax(1), x)
        return self.points.fitting(chosen, seen.memory_available) if lacks else chosen

    def reason(self, seen: Seen) -> str:
        worth = f"charge {seen.state_of_charge[0]:.2f}: a millijoule is worth {self._price[0]:.2f} answers later"
        return self._fallback.reason() or worth

"""A learned policy as a small network in numpy: what `python -m policies.train` writes, and a device runs.

    policy = LearnedPolicy.load("camera-ppo.npz")
    with caq.Runtime("x.caq", policy) as runtime: ...

The network is a multilayer perceptron over the row of `simulators.observation` (which a device need not have), one
output for each operating point; the largest one wins. Two things are not left to it. A point that needs more memory
than there is is replaced, see `PointTable.fitting`, in training as on the device. And where a context lies outside
the range of those that it was trained on, or is missing, it has nothing to say: the fallback is taken, and the reason
says why.

The file is an uncompressed .npz without pickled objects, of the arrays in `_KEYS` and for each layer i `weight_i`
(inputs, outputs) and `bias_i` (outputs,), float32.
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
from policies.points import PointTable
from policies.seen import PointPolicy, Seen, local_hour

VERSION = 1
INPUTS = (
    "state_of_charge",
    "charging",
    "temperature",
    "memory_available",
    "power",
    "cpu_load",
    "screen_brightness",
    "hour_sin",
    "hour_cos",
    "point",
)
#: °C at 0 and at 1.
COLDEST_C, HOTTEST_C = -20.0, 60.0
#: A context may be that far beyond those of training, of a field's 0..1.
SLACK = 0.02
_KEYS = (
    "version", "source", "activation", "power_high_w", "low", "high", "fallback",
    "points", "accuracy", "energy_j", "memory",
)  # fmt: skip


def rows(seen: Seen, points: int, power_high_w: float) -> Floats:
    """(N, 10) inputs of the network, as `simulators.observation.observe` makes them; NaN where unknown."""
    angle = seen.hour * (2 * np.pi / 24)
    found = np.empty((len(INPUTS), len(seen.hour)), np.float32)
    found[0] = seen.state_of_charge
    found[1] = seen.charging
    found[2] = (seen.temperature_c - COLDEST_C) / (HOTTEST_C - COLDEST_C)
    found[3] = seen.memory_available
    found[4] = seen.power_w / power_high_w
    found[5] = seen.cpu_load
    found[6] = seen.screen_brightness
    np.sin(angle, out=found[7], casting="same_kind")
    np.cos(angle, out=found[8], casting="same_kind")
    found[9] = seen.current / max(points - 1, 1)
    np.maximum(found[:7], np.float32(0), out=found[:7])
    np.minimum(found, np.float32(1), out=found)
    return found.T


@dataclass(frozen=True, eq=False)
class Network:
    """weights, biases: of each layer, (inputs, outputs) and (outputs,) float32, the last one with an output for each
    point. activation: tanh or relu, between layers. low, high: (10,) range of the inputs in training. power_high_w: the
    power that the input `power` shows as 1. fallback: name of the point to take outside the range."""

    source: str
    points: PointTable
    weights: tuple[Floats, ...]
    biases: tuple[Floats, ...]
    activation: str
    low: Floats
    high: Floats
    power_high_w: float
    fallback: str

    def __post_init__(self) -> None:
        """Raises ConfigError that names the array."""
        check_fallback(self.fallback, self.points)
        if not 0 < self.power_high_w < np.inf:
            raise ConfigError(f"power_high_w: must be above 0, not {self.power_high_w}")
        check_layers(self.weights, self.biases, self.activation, len(INPUTS), len(self.points))
        check_range(self.low, self.high, len(INPUTS))

    def values(self, inputs: Floats) -> Floats:
        """(N, P) outputs of inputs (N, 10)."""
        return forward(inputs, self.weights, self.biases, self.activation)

    def save(self, path: str | Path) -> None:
        """Writes a file that `read_network` reads."""
        points = self.points
        text = {"source": self.source, "activation": self.activation, "fallback": self.fallback}
        numbers = {"accuracy": points.accuracy, "energy_j": points.energy_j, "memory": points.memory}
        write_arrays(
            path,
            version=np.int64(VERSION),
            power_high_w=np.float64(self.power_high_w),
            points=np.array(points.names),
            **{name: np.array(value) for name, value in text.items()},
            **numbers,
            **named(self.weights, self.biases),
            low=self.low,
            high=self.high,
        )


def read_network(path: str | Path) -> Network:
    """Reads a file of `Network.save`. Raises WeightsError that names the file and the array, VersionError on a file of
    another version."""
    with read_network_file(path, VERSION, _KEYS) as arrays:
        return Network(
            arrays.text("source"),
            arrays.points(),
            *arrays.layers(),
            arrays.text("activation"),
            arrays.floats("low"),
            arrays.floats("high"),
            arrays.number("power_high_w"),
            arrays.text("fallback"),
        )


class LearnedPolicy(PointPolicy):
    """See the module. Decisions depend on the present alone; where a field is missing, the fallback is taken."""

    needed = ()
    fields = (
        "state_of_charge",
        "charging",
        "temperature_c",
        "memory_available",
        "power_w",
        "cpu_load",
        "screen_brightness",
    )

    def __init__(self, network: Network, clock: Callable[[], float] = local_hour) -> None:
        super().__init__(network.points, clock)
        self.network = network
        low, high = network.low - np.float32(SLACK), network.high + np.float32(SLACK)
        self._fallback = Fallback(network.fallback, network.points, INPUTS, low, high)

    @classmethod
    def load(cls, path: str | Path, clock: Callable[[], float] = local_hour) -> LearnedPolicy:
        """Raises what `read_network` raises."""
        return cls(read_network(path), clock)

    def choose(self, seen: Seen) -> NDArray[np.intp]:
        inputs = rows(seen, len(self.points), self.network.power_high_w)
        chosen = self._fallback.replace(self.network.values(inputs).argmax(1), inputs)
        return self.points.fitting(chosen, seen.memory_available)

    def reason(self, seen: Seen) -> str:
        return self._fallback.reason() or "learned"

"""Days, tables and policies for tests."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np

from policies.evaluate import Chooser, one_by_one
from policies.learned import INPUTS, Network
from policies.other_draw import OtherDraw
from policies.pacing import Habits
from policies.points import PointTable
from policies.price import INPUTS as SITUATION
from policies.price import PriceModel
from policies.recall import Usual
from policies.seen import PointPolicy, Seen
from simulators.device import read_device, read_points
from simulators.envs import Scenario
from simulators.world import World

CAMERA = PointTable.of(read_points("camera"), read_device("camera").memory_bytes)


def seen(**values: Any) -> Seen:
    """One device off the charger at noon; `values` change fields."""
    usual = dict.fromkeys(Seen._fields, 0.0) | {"state_of_charge": 0.5, "memory_available": 1.0, "hour": 12.0}
    usual |= {"temperature_c": 20.0, "power_w": 0.03, "current": 0}
    arrays = {name: np.atleast_1d(value) for name, value in (usual | values).items()}
    return Seen(**arrays)


def network(seed: int = 0, **changes: Any) -> Network:
    """Random weights, trained on everything that an observation can be."""
    rng = np.random.default_rng(seed)
    sizes = (len(INPUTS), 16, len(CAMERA))
    low = np.array([-1.0 if name.startswith("hour") else 0.0 for name in INPUTS], np.float32)
    made: dict[str, Any] = {
        "source": "random",
        "points": CAMERA,
        "weights": tuple(rng.standard_normal(shape).astype(np.float32) for shape in pairwise(sizes)),
        "biases": tuple(rng.standard_normal(size).astype(np.float32) for size in sizes[1:]),
        "activation": "tanh",
        "low": low,
        "high": np.ones(len(INPUTS), np.float32),
        "power_high_w": 0.27,
        "fallback": "w4a4",
    }
    return Network(**made | changes)


def model(seed: int = 0, **changes: Any) -> PriceModel:
    """Prices of random weights, dearer the less charge there is; trained on everything that a device can meet."""
    rng = np.random.default_rng(seed)
    sizes = (len(SITUATION), 16, 1)
    weights = [0.3 * rng.standard_normal(shape).astype(np.float32) for shape in pairwise(sizes)]
    weights[0][0], weights[1] = -0.5, 0.1 * np.abs(weights[1])
    made: dict[str, Any] = {
        "source": "random",
        "points": CAMERA,
        "weights": tuple(weights),
        "biases": (np.full(16, 0.5, np.float32), np.zeros(1, np.float32)),
        "activation": "relu",
        "low": np.full(len(SITUATION), -10, np.float32),
        "high": np.full(len(SITUATION), 10, np.float32),
        "usual": Usual(np.full(24, 30.0), 0.4),
        "other": OtherDraw(0.006),
        "switch_cost": 0.01,
        "fallback": "w4a4",
    }
    return PriceModel(**made | changes)


def habits(**changes: Any) -> Habits:
    """Charge lasts in a share of days that grows with it, and falls with the energy of a request."""
    energy = np.geomspace(1e-4, 1e-2, 12)
    charge = np.linspace(0, 1, 21)
    short = np.clip(1 - charge + 0.3 * np.log10(energy / 1e-3)[:, None], 0, 1)
    made: dict[str, Any] = {
        "source": "made up",
        "rate": np.full(24, 30.0),
        "energy_j": energy,
        "short": np.broadcast_to(short, (2, 24, *short.shape)).copy(),
        "other": OtherDraw(0.006),
        "off_cost": 1.0,
        "memory_s": 21600.0,
        "prior_s": 7200.0,
    }
    return Habits(**made | changes)


def through_contexts(make: Callable[[Callable[[], float]], PointPolicy], scenario: Scenario) -> Chooser:
    """A policy per device, asked by `select`; `make` is given their clock."""
    hour = [0.0]
    choose = one_by_one(lambda: make(lambda: hour[0]), scenario)

    def at_its_hour(world: World, now: Seen) -> Any:
        hour[0] = float(now.hour[0])
        return choose(world, now)

    return at_its_hour

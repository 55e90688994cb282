"""The learned policy: its inputs, its file, and what it does with what it does not know."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from caq.context import Context
from caq.errors import ConfigError, VersionError, WeightsError
from policies import LearnedPolicy
from policies.evaluate import play
from policies.learned import INPUTS, read_network, rows
from policies.seen import Seen, see
from simulators.envs import BatteryTraceVectorEnv
from simulators.observation import FIELDS, observe
from simulators.world import World
from tests.policies.worlds import CAMERA, network, seen
from tests.simulators.worlds import busy_days, scenario

TRAINED = Path(__file__).parents[2] / "policies" / "trained"


def test_its_inputs_are_the_environment_s_observations() -> None:
    s = scenario(busy_days(6, 72))
    points = np.random.default_rng(2).integers(len(CAMERA), size=(72, 6))
    env = BatteryTraceVectorEnv(6, s)
    charge = np.linspace(0.1, 1, 6)
    shown = [env.reset(options={"day": np.arange(6), "state_of_charge": charge})[0]]
    shown += [env.step(row)[0] for row in points[:-1]]
    found: list[Any] = []

    def choose(world: World, now: Seen) -> Any:
        found.append(rows(now, len(CAMERA), s.power_high_w))
        return points[len(found) - 1]

    play(s, charge, choose)
    assert INPUTS == FIELDS
    np.testing.assert_allclose(found, shown, atol=2e-6)


def test_its_inputs_are_those_of_a_context() -> None:
    context = Context.from_values(
        state_of_charge=0.4, charging=True, temperature_c=71.0, memory_available=0.3, power_w=0.5, cpu_load=0.2,
        screen_brightness=0.6,
    )  # fmt: skip
    ours = rows(see(context, 17.5, 3), 8, 0.27)[0]
    np.testing.assert_allclose(ours, observe(context, 17.5, 3, 8, 0.27), atol=1e-6)
    empty = rows(see(Context.from_values(), 17.5, 3), 8, 0.27)[0]
    np.testing.assert_allclose(empty, observe(Context.from_values(), 17.5, 3, 8, 0.27), atol=1e-6)


def why(policy: LearnedPolicy, now: Seen) -> str:
    policy.choose(now)
    return policy.reason(now)


def test_outside_of_its_range_it_takes_the_fallback_and_says_so() -> None:
    low = np.array([0.3, *network().low[1:]], np.float32)
    policy = LearnedPolicy(network(low=low))
    assert why(policy, seen(state_of_charge=0.29)) == "learned"  # within the slack
    below = seen(state_of_charge=0.1)
    assert CAMERA.names[policy.choose(below)[0]] == "w4a4"
    assert "state_of_charge 0.10 (0.28..1.02)" in policy.reason(below)


@pytest.mark.parametrize("unknown", ["state_of_charge", "charging", "temperature_c", "power_w", "cpu_load"])
def test_what_is_missing_is_outside_too(unknown: str) -> None:
    policy = LearnedPolicy(network())
    assert CAMERA.names[policy.choose(seen(**{unknown: np.nan}))[0]] == "w4a4"
    assert unknown.removesuffix("_c").removesuffix("_w") in why(policy, seen(**{unknown: np.nan}))


def test_an_unknown_active_point_is_outside() -> None:
    assert "point" in why(LearnedPolicy(network()), seen(current=-1))


def test_a_network_survives_a_file(tmp_path: Path) -> None:
    made = network()
    made.save(tmp_path / "n.npz")
    found = read_network(tmp_path / "n.npz")
    inputs = np.random.default_rng(1).random((50, len(INPUTS)), np.float32)
    np.testing.assert_array_equal(found.values(inputs), made.values(inputs))
    assert (found.points.names, found.fallback, found.activation) == (CAMERA.names, "w4a4", "tanh")


def test_layers_by_hand() -> None:
    weights = (np.zeros((10, 1), np.float32), np.array([[1, -1] + [0] * 6], np.float32))
    biases = (np.array([-0.5], np.float32), np.zeros(8, np.float32))
    inputs = np.ones((1, 10), np.float32)
    assert network(weights=weights, biases=biases).values(inputs)[0, :2] == pytest.approx(
        [np.tanh(-0.5), -np.tanh(-0.5)]
    )
    assert network(weights=weights, biases=biases, activation="relu").values(inputs)[0].tolist() == [0] * 8


@pytest.mark.parametrize(
    "file", sorted(f for f in TRAINED.glob("camera-*.npz") if f.stem not in ("camera-habits", "camera-price")), ids=str
)
def test_shipped_networks_are_read(file: Path) -> None:
    policy = LearnedPolicy.load(file)
    assert policy.points.names == CAMERA.names
    np.testing.assert_array_equal(policy.points.energy_j, CAMERA.energy_j)


BAD = {
    "weights": (np.zeros((9, 8), np.float32),),
    "biases": (np.zeros(16, np.float32), np.full(8, np.nan, np.float32)),
    "activation": "gelu",
    "fallback": "w1a1",
    "power_high_w": 0.0,
    "low": np.full(10, 2, np.float32),
}


@pytest.mark.parametrize("name", BAD)
def test_impossible_networks(name: str) -> None:
    with pytest.raises(ConfigError):
        network(**{name: BAD[name]})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight_0": None}, "bias_1: is unknown"),
        ({"low": None}, "low: is missing"),
        ({"more": np.zeros(1)}, "more: is unknown"),
        ({"weight_0": np.zeros((9, 16), np.float32)}, "weight_0"),
        ({"weight_0": np.zeros((10, 16))}, "weight_0: finite float32"),
        ({"points": np.arange(8)}, "points: a list of texts"),
        ({"fallback": np.array("nowhere")}, "no operating point 'nowhere'"),
        ({"power_high_w": np.array("much")}, "power_high_w: one number"),
        ({"source": np.zeros(3)}, "source: one text"),
        ({"accuracy": np.zeros(8, int)}, "accuracy: floats"),
        ({"low": np.array([{}] * 10)}, "is no file of a policy"),  # a pickle
        ({"more": np.zeros(1 << 20)}, "larger than"),
    ],
)
def test_files_that_lie(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = tmp_path / "n.npz"
    network().save(path)
    arrays = {name: array for name, array in (dict(np.load(path)) | changes).items() if array is not None}
    np.savez(path, **arrays)
    with pytest.raises(WeightsError, match=message) as caught:
        read_network(path)
    assert str(path) in str(caught.value)


def test_other_versions_and_other_files(tmp_path: Path) -> None:
    path = tmp_path / "n.npz"
    network().save(path)
    np.savez(path, **dict(np.load(path)) | {"version": np.int64(2)})
    with pytest.raises(VersionError, match="version 2"):
        read_network(path)
    path.write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(WeightsError, match="is no file of a policy"):
        read_network(path)
    with pytest.raises(WeightsError, match="cannot be read"):
        read_network(tmp_path / "none.npz")


def test_every_cut_of_a_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "n.npz"
    network().save(path)
    whole = path.read_bytes()
    for length in range(0, len(whole), 97):
        path.write_bytes(whole[:length])
        with pytest.raises(WeightsError):
            read_network(path)


def test_gymnasium_s_environment_takes_its_points() -> None:
    env = gymnasium.make("simulators:caq/BatteryTrace-v0", scenario=scenario(busy_days(1, 12)))
    env.reset(seed=0)
    env.step(LearnedPolicy(network()).choose(seen())[0])
    env.close()

"""The learned price of charge: what it remembers, its file, and what it does with what it does not know."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from caq.errors import ConfigError, VersionError, WeightsError
from policies.evaluate import of_policy, play
from policies.price import INPUTS, PriceModel, PricePolicy, read_price
from policies.recall import CHARGER_S, NAMES, UNKNOWN_S, Recall, Usual
from policies.seen import Seen
from simulators.world import World
from tests.policies.worlds import CAMERA, model, seen
from tests.simulators.worlds import busy_days, scenario

SHIPPED = Path(__file__).parents[2] / "policies" / "trained" / "camera-price.npz"
USUAL = Usual(np.full(24, 30.0), 0.4)


def constant(price: float, **changes: Any) -> PriceModel:
    """A millijoule is worth the same everywhere."""
    weights = (np.zeros((len(INPUTS), 1), np.float32),)
    return model(weights=weights, biases=(np.array([price], np.float32),), **changes)


def lived(charging: list[float], requests_per_s: list[float], step_s: float = 300.0) -> Recall:
    recall = Recall(USUAL, 1)
    for i, (plugged, rate) in enumerate(zip(charging, requests_per_s, strict=True)):
        known = bool(np.isfinite(rate))
        recall.note(step_s if i else 0.0, 12.0, plugged, rate if known else 0.0, known)
    return recall


def recalled(recall: Recall) -> dict[str, Any]:
    return dict(zip(NAMES, recall.rows(), strict=True))


def test_shares_of_time_on_a_charger_fade() -> None:
    found = recalled(lived([1.0] * 13, [30.0] * 13))
    for tau_s in CHARGER_S:
        expected = 1 - 0.6 * np.exp(-3600 / tau_s)
        assert found[f"charger_{tau_s / 3600:g}h"] == pytest.approx(expected)
    assert found["load_2h"] == pytest.approx(0)


def test_time_since_the_charger_was_plugged_in() -> None:
    assert lived([0.0], [30.0]).rows()[0] == pytest.approx(np.log1p(UNKNOWN_S / 600))
    assert lived([0.0, 1.0], [30.0] * 2).rows()[0] == 0
    assert lived([0.0, 1.0, 1.0, 1.0], [30.0] * 4).rows()[0] == pytest.approx(np.log1p(1))


@pytest.mark.parametrize("busy", [0.5, 3.0])
def test_it_remembers_how_busy_the_device_is(busy: float) -> None:
    recall = lived([0.0] * 2000, [30.0 * busy] * 2000)
    found = recalled(recall)["load_2h"]
    # Usual requests of a fifth of the two hours are assumed beside those counted.
    assert found == pytest.approx(np.log((busy + 0.2) / 1.2), abs=0.02)
    assert not any(lived([0.0] * 50, [np.nan] * 50).rows()[NAMES.index("load_0.25h") :])  # off, or nobody knows


def test_a_long_silence_is_no_measurement() -> None:
    recall = lived([0.0] * 10, [90.0] * 10)
    before = recall.rows()
    recall.note(7200.0, 14.0, 0.0, 1.0, True)
    assert recall.rows() == before


def test_a_phone_on_the_same_charger_runs_down_and_fills() -> None:
    down, up = (recalled(lived([plugged] * 25, [30.0] * 25)) for plugged in (0.0, 1.0))
    assert down["other_charge"] == pytest.approx(0.6 - 2 * 0.115)
    assert up["other_charge"] == pytest.approx(1.0)


def test_the_spell_before() -> None:
    found = recalled(lived([0.0] * 3 + [1.0] * 3, [30.0] * 6))
    assert found["spell_before"] == pytest.approx(np.log1p((UNKNOWN_S + 900) / 600))
    assert found["since_change"] == pytest.approx(np.log1p(1))


def test_the_dearer_charge_is_the_cheaper_the_point() -> None:
    chosen = [PricePolicy(constant(price, switch_cost=0.0)).choose(seen())[0] for price in (0.0, 0.1, 0.3, 0.6, 5.0)]
    energy = CAMERA.energy_j[chosen]
    assert CAMERA.names[chosen[0]] == "full" and CAMERA.names[chosen[-1]] == "w2a2"
    assert (np.diff(energy) <= 0).all() and len(set(chosen)) > 3


def test_a_point_is_kept_for_a_small_gain() -> None:
    at = CAMERA.names.index("w6a6")
    assert CAMERA.names[PricePolicy(constant(0.0, switch_cost=0.0)).choose(seen(current=at))[0]] == "full"
    assert CAMERA.names[PricePolicy(constant(0.0, switch_cost=0.01)).choose(seen(current=at))[0]] == "w6a6"


def test_outside_of_its_range_it_takes_the_fallback_and_says_so() -> None:
    low, high = (np.array([end, *rest], np.float32) for end, rest in ((0.3, model().low[1:]), (1.0, model().high[1:])))
    policy = PricePolicy(constant(0.0, low=low, high=high))
    assert CAMERA.names[policy.choose(seen(state_of_charge=0.1))[0]] == "w4a4"
    assert "state_of_charge 0.10 (0.2" in policy.reason(seen())
    policy.choose(seen(state_of_charge=0.29))
    assert "a millijoule is worth 0.00" in policy.reason(seen())


@pytest.mark.parametrize("unknown", [{"power_w": np.nan}, {"time_s": np.nan}, {"current": -1}, {"power_w": 0.0}])
def test_what_is_not_measured_is_not_remembered(unknown: dict[str, Any]) -> None:
    policy = PricePolicy(constant(0.1))
    for step in range(5):
        policy.choose(seen(**{"power_w": 0.2, "time_s": 300.0 * step, **unknown}))
    assert not policy._inputs[0, INPUTS.index("load_2h")]


def test_days_before_are_remembered() -> None:
    policy, s = PricePolicy(model()), scenario(busy_days(3, 24))
    shown: list[Any] = []

    def note(world: World, now: Seen) -> Any:
        chosen = remembers(world, now)
        shown.append(policy._inputs)
        return chosen

    remembers = of_policy(policy, s)
    play(s, np.full(3, 0.9), note)
    alone = play(s, np.full(3, 0.9), of_policy(policy))
    assert len(shown) == 24 and len(alone.points) == 24
    assert not np.allclose(shown[0][:, 5:], policy._inputs[:, 5:])
    assert (shown[0][:, INPUTS.index("load_2h")] != 0).any()


def test_a_model_survives_a_file(tmp_path: Path) -> None:
    made = model()
    made.save(tmp_path / "p.npz")
    found = read_price(tmp_path / "p.npz")
    rows = np.random.default_rng(1).random((50, len(INPUTS)), np.float32)
    np.testing.assert_array_equal(found.price(rows), made.price(rows))
    assert (found.points.names, found.fallback, found.switch_cost) == (CAMERA.names, "w4a4", 0.01)
    np.testing.assert_array_equal(found.usual.rate, made.usual.rate)


def test_the_shipped_model_is_read() -> None:
    policy = PricePolicy.load(SHIPPED)
    assert policy.points.names == CAMERA.names
    np.testing.assert_array_equal(policy.points.energy_j, CAMERA.energy_j)
    late = [policy.model.price(inputs_at(policy, charge))[0] for charge in (0.1, 0.5, 0.95)]
    assert late[0] > late[1] > late[2] >= 0


def inputs_at(policy: PricePolicy, charge: float) -> Any:
    """A usual device that was just switched on, at noon."""
    policy.start(1)
    policy.choose(seen(state_of_charge=charge))
    return policy._inputs


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": (np.zeros((9, 1), np.float32),), "biases": (np.zeros(1, np.float32),)}, "weight_0"),
        ({"biases": (np.zeros(16, np.float32), np.full(1, np.nan, np.float32))}, "bias_1"),
        ({"activation": "gelu"}, "activation"),
        ({"fallback": "w1a1"}, "fallback"),
        ({"switch_cost": -1.0}, "switch_cost"),
        ({"low": np.full(len(INPUTS), 20, np.float32)}, "low"),
        ({"high": np.ones(3, np.float32)}, "high"),
    ],
)
def test_impossible_models(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        model(**changes)


@pytest.mark.parametrize(("rate", "charging"), [(np.zeros(24), 0.4), (np.ones(23), 0.4), (np.ones(24), 1.5)])
def test_impossible_habits(rate: Any, charging: float) -> None:
    with pytest.raises(ConfigError):
        Usual(rate, charging)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight_0": None}, "bias_1: is unknown"),
        ({"low": None}, "low: is missing"),
        ({"weight_0": np.zeros((9, 16), np.float32)}, "weight_0"),
        ({"rate": np.zeros(24)}, "rate"),
        ({"charging": np.float64(2)}, "charging"),
        ({"low": np.array([{}] * len(INPUTS))}, "is no file of a policy"),  # a pickle
    ],
)
def test_files_that_lie(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = tmp_path / "p.npz"
    model().save(path)
    arrays = {name: array for name, array in (dict(np.load(path)) | changes).items() if array is not None}
    np.savez(path, **arrays)
    with pytest.raises(WeightsError, match=message) as caught:
        read_price(path)
    assert str(path) in str(caught.value)


def test_other_versions(tmp_path: Path) -> None:
    path = tmp_path / "p.npz"
    model().save(path)
    np.savez(path, **dict(np.load(path)) | {"version": np.int64(1)})
    with pytest.raises(VersionError, match="version 1 is"):
        read_price(path)

"""caq/LayerBits-v0: the budget holds, and the score is the engine's."""

from __future__ import annotations

import warnings
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import caq
from caq.costs import cost_table
from caq.data import load
from caq.errors import ConfigError
from caq.graph import parse_assignment
from caq.measure import score
from simulators.envs import LayerBitsEnv
from simulators.envs.layer_bits import DIGITS, FEATURES

ID = "simulators:caq/LayerBits-v0"
WIDEST = np.array([5, 5])


@pytest.fixture(scope="module")
def env() -> LayerBitsEnv:
    return LayerBitsEnv(samples=100)


def episode(env: LayerBitsEnv, budget: float, actions: Any) -> tuple[list[np.ndarray], float, dict[str, Any]]:
    observation, _ = env.reset(seed=0, options={"budget": budget})
    shown = [observation]
    for action in actions:
        observation, reward, terminated, truncated, info = env.step(action)
        shown.append(observation)
        assert not truncated and terminated == ("caq/accuracy" in info)
        if terminated:
            return shown, reward, info
        assert reward == 0
    raise AssertionError("the episode did not end")


def random_actions(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 6, (20, 2))


def test_gymnasiums_checker_has_nothing_to_say() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gymnasium.make(ID).unwrapped)


@pytest.mark.parametrize("budget", [0.0, 0.1, 0.37, 1.0])
def test_the_budget_holds_whatever_is_asked_for(env: LayerBitsEnv, budget: float) -> None:
    model = caq.load(DIGITS)
    table = cost_table(model.graph, "bit_macs")
    allowed = table.least + budget * (1 - table.least)
    for actions in (np.tile(WIDEST, (20, 1)), random_actions(1)):
        shown, _, info = episode(env, budget, actions)
        assignment = model.graph.check_assignment(parse_assignment(info["caq/assignment"]))
        assert table.of(model.graph, assignment) == pytest.approx(info["caq/cost"])
        assert info["caq/cost"] <= allowed + 1e-6
        assert all(env.observation_space.contains(row) for row in shown)
    assert shown[0][FEATURES.index("budget_left")] == pytest.approx(allowed - table.fixed)


def test_what_is_affordable_is_granted(env: LayerBitsEnv) -> None:
    _, reward, info = episode(env, 1.0, np.tile(WIDEST, (20, 1)))
    assert set(info["caq/assignment"].split(",")) == {"w8a8"}
    assert reward == 0 and info["caq/cost"] == pytest.approx(1)
    _, reward, info = episode(env, 1.0, np.zeros((20, 2), int))
    assert {pair[:2] for pair in info["caq/assignment"].split(",")} == {"w2"}
    assert reward < 0 and not info["caq/lowered"]


def test_the_reward_is_measured_in_integers(env: LayerBitsEnv) -> None:
    _, reward, info = episode(env, 0.3, random_actions(4))
    data, engine = load("digits"), caq.Engine(DIGITS)
    rows = data.split_validation(100 / len(data.y_train), 0)[1]
    plans = (engine.build(parse_assignment(info["caq/assignment"])), engine.build(engine.model.graph.uniform(8)))
    chosen, widest = (score(engine, plan, data.x_train[rows], data.y_train[rows]) for plan in plans)
    assert info["caq/accuracy"] == chosen and reward == chosen - widest


def test_a_seed_draws_the_budget() -> None:
    env = LayerBitsEnv(samples=20)
    budgets = [env.reset(seed=seed)[0][FEATURES.index("budget_left")] for seed in (1, 1, 2)]
    assert budgets[0] == budgets[1] != budgets[2]
    fixed = LayerBitsEnv(samples=20, budget=0.2)
    assert fixed.reset(seed=1)[0].tolist() == fixed.reset(seed=2)[0].tolist()


def test_the_shipped_network_makes_it_a_choice() -> None:
    points = {point.name: point.score for point in caq.load(DIGITS).points}
    assert points["w8a8"] > 0.95 and points["w8a8"] - points["w2a2"] > 0.05


def test_pictures_show_the_widths() -> None:
    env = gymnasium.make(ID, samples=20, render_mode="rgb_array")
    env.reset(seed=0)
    before = env.render()
    env.step(env.action_space.sample())
    after: Any = env.render()
    assert after.shape == (480, 720, 3) and after.std() > 10 and (after != before).any()
    env.close()


def test_misuse_is_told(env: LayerBitsEnv) -> None:
    episode(env, 0.5, random_actions(0))
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(WIDEST)
    for budget in (-0.1, 1.1, float("nan")):
        with pytest.raises(ConfigError, match="budget"):
            env.reset(options={"budget": budget})
        with pytest.raises(ConfigError, match="budget"):
            LayerBitsEnv(budget=budget)
    with pytest.raises(ConfigError, match="samples"):
        LayerBitsEnv(samples=10**6)
    with pytest.raises(ConfigError, match="nowhere"):
        LayerBitsEnv(cost="energy@nowhere")

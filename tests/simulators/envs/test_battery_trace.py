"""caq/BatteryTrace-v0: Gymnasium's contract, and that one device is N devices."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from caq.errors import AssignmentError, ConfigError
from simulators.envs import BatteryTraceEnv, BatteryTraceVectorEnv, RewardWeights, scenario
from simulators.episodes import episodes
from simulators.world import Outcome
from tests.simulators import worlds

ID = "simulators:caq/BatteryTrace-v0"
DAYS = episodes(4, seed=1, requests_per_s=30.0)


@pytest.fixture(autouse=True)
def warnings_are_errors() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_gymnasiums_checker_has_nothing_to_say() -> None:
    env = gymnasium.make(ID, days=DAYS)
    check_env(env.unwrapped)
    assert env.spec is not None and env.spec.id == "caq/BatteryTrace-v0"


def test_the_environment_can_be_made_as_it_is_registered() -> None:
    env: Any = gymnasium.make(ID)
    assert len(env.unwrapped.scenario.days) == 256
    assert env.reset(seed=1)[0].shape == (10,)


def test_importing_registers_once_and_does_without_gymnasium() -> None:
    code = "import simulators, gymnasium; print(*(n for n in gymnasium.registry if n.startswith('caq/')))"
    out = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["caq/BatteryTrace-v0", "caq/LayerBits-v0"]
    missing = "import sys; sys.modules['gymnasium'] = None; import simulators.world; import simulators.envs"
    out = subprocess.run([sys.executable, "-c", missing], capture_output=True, text=True, check=False)
    assert out.stderr.endswith("this needs gymnasium, which is not installed: pip install 'caq[sim]'\n")


def play(env: Any, seed: int, steps: int = 60) -> list[Any]:
    env.action_space.seed(seed)
    found: list[Any] = [env.reset(seed=seed)[0]]
    for _ in range(steps):
        observation, reward, _, _, info = env.step(env.action_space.sample())
        found += [observation, reward, info["caq/served"]]
    return found


def test_a_seed_is_a_story() -> None:
    first, again, other = (play(BatteryTraceEnv(days=DAYS), seed) for seed in (5, 5, 6))
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert any(not np.array_equal(a, b) for a, b in zip(first, other, strict=True))
    one, two = (play(BatteryTraceVectorEnv(3, days=DAYS), 5) for _ in range(2))
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("days", [DAYS, worlds.busy_days(4, 96)], ids=["generated", "everything"])
@pytest.mark.parametrize("draws", [{}, {"screen_power_w": 0.01, "bright_power_w": 0.02, "apps_power_w": 0.05}])
def test_one_device_is_what_each_of_many_is(days: Any, draws: dict[str, float]) -> None:
    s = worlds.scenario(days, restart_above=0.1, **draws)
    count, charge = len(days), np.linspace(0.05, 1, len(days))
    many, one = BatteryTraceVectorEnv(count, s, np.float64), BatteryTraceEnv(s)
    actions = np.random.default_rng(0).integers(len(s.costs), size=(days.steps, count))
    shown, _ = many.reset(seed=0, options={"day": np.arange(count), "state_of_charge": charge})
    steps = [many.step(row) for row in actions]
    assert any(info["caq/off"].any() for *_, info in steps), "no device ran dry: this says too little"
    for device in range(count):
        first, _ = one.reset(seed=0, options={"day": device, "state_of_charge": charge[device]})
        np.testing.assert_allclose(first, shown[device], atol=1e-6)
        for action, (observations, rewards, _, truncated, info) in zip(actions[:, device], steps, strict=True):
            observation, reward, _, ended, own = one.step(action)
            np.testing.assert_allclose(observation, observations[device], atol=1e-6)
            assert reward == pytest.approx(rewards[device], rel=1e-9, abs=1e-9)
            assert ended == truncated[device]
            assert set(own) == {name for name in info if not name.startswith("_")}
            for name, value in own.items():
                assert value == pytest.approx(info[name][device], rel=1e-9, abs=1e-9), name


def test_observations_keep_their_bounds() -> None:
    s = worlds.scenario(worlds.busy_days(8, 96))
    env, many = BatteryTraceEnv(s), BatteryTraceVectorEnv(8, s)
    for seed in range(4):
        env.reset(seed=seed)
        for _ in range(96):
            observation, reward, *_ = env.step(env.action_space.sample())
            assert env.observation_space.contains(observation) and type(reward) is float
    many.reset(seed=0)
    for _ in range(200):
        assert many.observation_space.contains(many.step(many.action_space.sample())[0])


def test_days_begin_anew_by_themselves() -> None:
    s = worlds.scenario(worlds.busy_days(9, 7))
    env = gymnasium.make_vec(ID, 5, vectorization_mode="vector_entry_point", scenario=s)
    env.reset(seed=0)
    for t in range(1, 24):
        observations, rewards, terminated, truncated, info = env.step(np.zeros(5, int))
        assert truncated.all() == truncated.any() == (t % 8 == 7)
        assert not terminated.any()
        if t % 8 == 0:
            assert not rewards.any() and info["caq/day"].shape == (5,)
            assert (observations[:, 0] >= 0.5).all()
    env.close()


def test_observations_are_not_used_again() -> None:
    env = BatteryTraceVectorEnv(2, worlds.scenario(worlds.busy_days(2, 9)))
    first, _ = env.reset(seed=0)
    kept = first.copy()
    second = env.step(np.zeros(2, int))[0]
    held = second.copy()
    env.step(np.ones(2, int))
    np.testing.assert_array_equal(first, kept)
    np.testing.assert_array_equal(second, held)


def test_the_reward_is_what_the_docstring_says() -> None:
    s = worlds.scenario(worlds.days((1, 2)), requests_per_s=2.0)
    outcome = Outcome(0.75, 500.0, 100.0, 40.0, 0.1, 1.0, 0.1, True, False, 0.0)
    in_answers = (400 * 0.75 - 0.5 * 40 - 0.5 * 100) / 600
    assert s.reward(outcome, True) == pytest.approx(in_answers - 0.5 - 0.01)
    assert s.reward(outcome._replace(over_memory=False, off=True), False) == pytest.approx(in_answers - 0.5)


def test_the_battery_makes_it_a_choice() -> None:
    """On the shipped scenario the most accurate point runs dry, and neither end of the points is best."""
    s = scenario(days=episodes(48, seed=2, requests_per_s=30.0))
    returns, dry = [], []
    for point in range(len(s.costs)):
        env = BatteryTraceVectorEnv(48, s)
        env.reset(seed=0, options={"day": np.arange(48)})
        steps = [env.step(np.full(48, point)) for _ in range(s.days.steps)]
        returns.append(np.sum([rewards for _, rewards, *_ in steps], 0).mean())
        dry.append(np.any([info["caq/off"] for *_, info in steps], 0).mean())
    assert dry[0] > 0.5 and dry[-1] < 0.2
    assert 0 < int(np.argmax(returns)) < len(returns) - 1


def test_pictures_show_the_day() -> None:
    env = gymnasium.make(ID, days=DAYS, render_mode="rgb_array")
    env.reset(seed=0)
    before = env.render()
    for _ in range(100):
        env.step(env.action_space.sample())
    after: Any = env.render()
    assert after.shape == (480, 720, 3) and after.dtype == np.uint8
    assert after.std() > 10 and (after != before).mean() > 0.01
    env.close()


def test_human_draws_without_a_display(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPLBACKEND", "agg")
    env = gymnasium.make(ID, days=DAYS, render_mode="human")
    env.reset(seed=0)
    env.step(0)
    assert env.render() is None
    assert "opens no window" in caplog.text
    env.close()


def test_misuse_is_told() -> None:
    env = BatteryTraceEnv(worlds.scenario(worlds.busy_days(2, 1)))
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(np.int64(0))
    for options in ({"day": 2}, {"state_of_charge": 1.5}, {"state_of_charge": float("nan")}):
        with pytest.raises(ConfigError, match="options"):
            env.reset(options=options)
    env.reset(seed=0)
    for wrong in (-1, 8):
        with pytest.raises(AssignmentError):
            env.step(np.int64(wrong))
    env.step(np.int64(7))
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(np.int64(0))
    many = BatteryTraceVectorEnv(2, env.scenario)
    with pytest.raises(gymnasium.error.ResetNeeded):
        many.step(np.zeros(2, int))
    with pytest.raises(ConfigError, match=r"have shape \(2,\)"):
        many.reset(options={"day": np.zeros(3, int)})
    with pytest.raises(ConfigError, match="not both"):
        BatteryTraceEnv(env.scenario, days=DAYS)
    with pytest.raises(ConfigError, match="num_envs"):
        BatteryTraceVectorEnv(0, env.scenario)
    with pytest.raises(ConfigError, match="no render_mode 'rgb'; known: human, rgb_array"):
        BatteryTraceEnv(env.scenario, render_mode="rgb")
    with pytest.raises(AssignmentError, match="did you mean 'full'"):
        scenario(points=["ful"], days=DAYS)
    with pytest.raises(ConfigError, match="weights: late"):
        RewardWeights(late=-1)

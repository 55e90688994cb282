"""Training by stable-baselines3: what it learns from, what it writes, and that it goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from caq.errors import TrainingError
from policies.learned import INPUTS, LearnedPolicy, read_network
from policies.train.__main__ import main
from policies.train.days import FIRST, days_of
from tests.policies.worlds import CAMERA, seen

pytest.importorskip("stable_baselines3", reason="pip install 'caq[rl]'")

from policies.train import dqn, learn, ppo
from policies.train.vec_env import DaysVecEnv

SMALL = {
    ppo: ppo.Arguments(devices=2, batch_size=288, epochs=1),
    dqn: dqn.Arguments(devices=2, buffer_size=2000, updates=1),
}


def run(steps: int = 1152, **changes: Any) -> learn.Run:
    made = {"steps": steps, "seed": 0, "train_devices": 8, "evaluate_every": 576} | changes
    return learn.Run(**made)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learn, "VALIDATION_DEVICES", 4)
    monkeypatch.setattr(ppo, "IMITATION_EPOCHS", 1)


def test_splits_share_no_device() -> None:
    assert min(b - a for a, b in zip(sorted(FIRST.values()), sorted(FIRST.values())[1:], strict=False)) >= 1_000_000
    train, unseen, other = days_of("train", 4), days_of("held_out", 4), days_of("held_out", 4, block=1)
    assert not (train.days.requests == unseen.days.requests).all(1).any()
    assert not (other.days.requests == unseen.days.requests).all(1).any()


def test_rewards_are_the_environment_s_less_what_no_action_changes() -> None:
    s = days_of("train", 8)
    env = DaysVecEnv(s, 3, seed=0)
    env.reset()
    total = np.zeros(3)
    best = s.costs.accuracy.max()
    asked = np.zeros(3)
    for t in range(s.days.steps):
        asked += env._env.world.given.requests
        _, rewards, done, infos = env.step(np.full(3, 4))
        total += rewards
        assert done.all() == (t == s.days.steps - 1)
    returns = np.array([info["episode"]["r"] for info in infos])
    flawless = asked * best / (s.device.requests_per_s * s.days.step_s)
    np.testing.assert_allclose(total, returns - flawless, atol=1e-3)
    assert all("TimeLimit.truncated" not in info and "terminal_observation" in info for info in infos)


def test_points_that_do_not_fit_are_replaced_in_training_too() -> None:
    s = days_of("train", 64)
    env = DaysVecEnv(s, 64, seed=0)
    observations = env.reset()
    env.step_async(np.zeros(64, int))
    np.testing.assert_array_equal(env._actions, CAMERA.fitting(np.zeros(64, int), observations[:, 3]))


@pytest.mark.parametrize("algorithm", SMALL, ids=["ppo", "dqn"])
def test_the_network_decides_as_the_model_it_came_from(algorithm: Any) -> None:
    s = days_of("train", 8)
    model = algorithm.make(DaysVecEnv(s, 2, 0), 0, None, SMALL[algorithm])
    network = learn.export(algorithm, model, s, "test")
    inputs = np.random.default_rng(0).random((200, len(INPUTS)), np.float32)
    np.testing.assert_array_equal(network.values(inputs).argmax(1), model.predict(inputs, deterministic=True)[0])


@pytest.mark.parametrize("algorithm", SMALL, ids=["ppo", "dqn"])
def test_the_same_seed_and_going_on(algorithm: Any, tmp_path: Path) -> None:
    one, curve = learn.train(algorithm, run(), SMALL[algorithm])
    two, _ = learn.train(algorithm, run(), SMALL[algorithm])
    for a, b in zip(one.weights, two.weights, strict=True):
        np.testing.assert_array_equal(a, b)
    assert [steps for steps, _ in curve][:2] == [0, 576]
    file = tmp_path / "c.zip"
    learn.train(algorithm, run(576, checkpoint=file), SMALL[algorithm])
    _, after = learn.train(algorithm, run(1152, checkpoint=file), SMALL[algorithm])
    assert after[0][0] == 576 and after[-1][0] >= 1152
    with pytest.raises(TrainingError, match="ask for more"):
        learn.train(algorithm, run(1152, checkpoint=file), SMALL[algorithm])
    file.write_bytes(b"nothing")
    with pytest.raises(TrainingError, match="cannot be resumed from"):
        learn.train(algorithm, run(2000, checkpoint=file), SMALL[algorithm])


def test_the_range_is_that_of_the_training_days() -> None:
    network, _ = learn.train(ppo, run(576), SMALL[ppo])
    assert 0 <= network.low[0] < network.high[0] <= 1
    assert (network.low[-1], network.high[-1]) == (0, 1)
    assert network.fallback in ("w4a4", "w3a3", "saver")
    hot = seen(temperature_c=55.0)
    assert LearnedPolicy(network).choose(hot)[0] == CAMERA.names.index(network.fallback)


def test_imitation_takes_what_it_was_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ppo, "IMITATION_BATCH", 256)
    s = days_of("train", 8)
    model = ppo.make(DaysVecEnv(s, 2, 0), 0, None, SMALL[ppo])
    inputs = np.random.default_rng(0).random((4096, len(INPUTS)), np.float32)
    actions = (inputs[:, 0] > 0.5).astype(np.intp)
    losses = [ppo.imitate(model, inputs, actions, seed) for seed in range(10)]
    assert losses[-1] < 0.1 < losses[0]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "h.npz"
    assert main(["habits", "--out", str(out), "--train-devices", "8", "--held-out", "4"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result["held_out"]) == {"devices", "habits", *CAMERA.names} and out.exists()
    with pytest.raises(SystemExit):
        main(["ppo", "--out", str(out), "--steps", "0"])


def test_the_command_trains(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ppo, "Arguments", lambda: SMALL[ppo])
    out = tmp_path / "p.npz"
    few = ["--steps", "576", "--train-devices", "8", "--held-out", "4", "--evaluate-every", "576"]
    assert main(["ppo", "--out", str(out), *few, "--tensorboard", str(tmp_path / "runs")]) == 0
    assert json.loads(capsys.readouterr().out)["validation"][0][0] == 0
    assert read_network(out).source == "PPO, seed 0"
    assert list((tmp_path / "runs").rglob("events.*"))

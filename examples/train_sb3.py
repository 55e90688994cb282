"""Trains PPO of stable-baselines3 on caq/BatteryTrace-v0, and compares it with every fixed operating point.

pip install -c constraints.txt 'caq[rl]'
python examples/train_sb3.py [--steps 200000]
"""

import argparse

import numpy as np
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env

from simulators.envs import BatteryTraceVectorEnv, scenario
from simulators.episodes import episodes


def day_return(env, policy):
    """Mean over the environment's devices of a day's reward."""
    observations, _ = env.reset(seed=0, options={"day": np.arange(env.num_envs)})
    total = 0.0
    for _ in range(env.scenario.days.steps):
        observations, rewards, *_ = env.step(policy(observations))
        total += rewards.mean()
    return total


parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=200_000)
steps = parser.parse_args().steps

train = make_vec_env("simulators:caq/BatteryTrace-v0", 16, seed=0)
model = PPO("MlpPolicy", train, n_steps=144, batch_size=256, learning_rate=2e-3, gamma=0.98, seed=0, device="cpu")
model.learn(steps)

unseen = scenario(days=episodes(64, first=10_000, requests_per_s=30.0))  # devices that it was not trained on
env = BatteryTraceVectorEnv(64, unseen)
for point, name in enumerate(unseen.costs.names):
    print(f"{name:10s} {day_return(env, lambda o, point=point: np.full(len(o), point)):7.1f}")
print(f"{'PPO':10s} {day_return(env, lambda o: model.predict(o, deterministic=True)[0]):7.1f}")

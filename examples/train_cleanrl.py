"""Advantage actor-critic in one file, in CleanRL's style, on the vector environment with 512 devices.

pip install -c constraints.txt 'caq[rl]'
python examples/train_cleanrl.py [--days 20]
"""

import argparse

import gymnasium
import numpy as np
import torch
from torch import nn
from torch.distributions import Categorical

DEVICES, ROLLOUT, GAMMA, LAMBDA = 512, 16, 0.99, 0.95
parser = argparse.ArgumentParser()
parser.add_argument("--days", type=int, default=20)
days = parser.parse_args().days

torch.manual_seed(0)
env = gymnasium.make_vec("simulators:caq/BatteryTrace-v0", DEVICES, vectorization_mode="vector_entry_point")
inputs, points = env.single_observation_space.shape[0], int(env.single_action_space.n)
actor = nn.Sequential(nn.Linear(inputs, 64), nn.Tanh(), nn.Linear(64, points))
critic = nn.Sequential(nn.Linear(inputs, 64), nn.Tanh(), nn.Linear(64, 1))
parameters = [*actor.parameters(), *critic.parameters()]
optimizer = torch.optim.Adam(parameters, lr=3e-3)

shown = torch.as_tensor(env.reset(seed=0)[0])
ended, daily = torch.zeros(DEVICES), []
for update in range(days * 289 // ROLLOUT):
    seen, chosen, rewards, real, ends = [], [], [], [], []
    for _ in range(ROLLOUT):
        action = Categorical(logits=actor(shown)).sample()
        after, reward, _, truncated, _ = env.step(action.numpy())
        seen.append(shown)
        chosen.append(action)
        rewards.append(torch.as_tensor(reward, dtype=torch.float32))
        real.append(1 - ended)  # the step after a day's end begins another one, whatever was chosen
        ended = torch.as_tensor(truncated, dtype=torch.float32)
        ends.append(ended)
        shown = torch.as_tensor(after)
    daily.append(torch.stack(rewards).mean().item() * 289)

    states, mask = torch.stack([*seen, shown]), torch.stack(real)
    values = critic(states).squeeze(-1)
    known, advantage, advantages = values.detach(), torch.zeros(DEVICES), []
    for t in reversed(range(ROLLOUT)):  # generalized advantage estimation; a day's end is not the world's
        delta = rewards[t] + GAMMA * known[t + 1] - known[t]
        advantage = real[t] * (delta + GAMMA * LAMBDA * (1 - ends[t]) * advantage)
        advantages.insert(0, advantage)
    gain = torch.stack(advantages)
    policy = Categorical(logits=actor(states[:-1]))
    score = (gain - gain.mean()) / (gain.std() + 1e-8)
    loss = -(mask * (policy.log_prob(torch.stack(chosen)) * score + 0.01 * policy.entropy())).mean()
    loss = loss + 0.5 * (mask * (values[:-1] - (gain + known[:-1])) ** 2).mean()
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(parameters, 0.5)
    optimizer.step()
    if update % 18 == 0:
        print(f"day {update * ROLLOUT / 289:5.1f}   reward a day {np.mean(daily[-18:]):7.1f}")

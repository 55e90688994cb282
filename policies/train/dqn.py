"""DQN (Mnih et al. 2015, Nature 518) by stable-baselines3."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from policies.train.sb3 import DQN
from policies.train.vec_env import DaysVecEnv

ALGORITHM: type[DQN] = DQN
ACTIVATION = "relu"


@dataclass(frozen=True)
class Arguments:
    """First guesses, not tuned."""

    devices: int = 128  #: that are played side by side
    rate: float = 1e-3  #: of learning, falls to a tenth in a line
    batch_size: int = 512
    buffer_size: int = 500_000
    gamma: float = 0.995
    updates: int = 8  #: for each step of all devices
    explore: float = 0.2  #: share of the training in which random actions become fewer, down to 2 %


def make(env: DaysVecEnv, seed: int, tensorboard: Path | None, arguments: Arguments) -> DQN:
    """A new learner."""
    a = arguments
    return DQN(
        "MlpPolicy",
        env,
        learning_rate=lambda left: a.rate * (0.1 + 0.9 * left),
        buffer_size=a.buffer_size,
        learning_starts=20_000,
        batch_size=a.batch_size,
        gamma=a.gamma,
        train_freq=1,
        gradient_steps=a.updates,
        target_update_interval=10_000,
        exploration_fraction=a.explore,
        exploration_final_eps=0.02,
        policy_kwargs={"net_arch": [64, 64]},
        tensorboard_log=str(tensorboard) if tensorboard else None,
        seed=seed,
        device="cpu",
    )


def layers(model: Any) -> list[Any]:
    """The linear layers from observation to values, in order."""
    import torch

    return [part for part in model.policy.q_net.q_net if isinstance(part, torch.nn.Linear)]

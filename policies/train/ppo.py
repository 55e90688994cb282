"""PPO (Schulman et al. 2017, arXiv 1707.06347) by stable-baselines3."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from policies.train.sb3 import PPO
from policies.train.vec_env import DaysVecEnv

ALGORITHM: type[PPO] = PPO
ACTIVATION = "tanh"


@dataclass(frozen=True)
class Arguments:
    """Chosen on validation devices."""

    devices: int = 128  #: that are played side by side
    rate: float = 6e-4  #: of learning, falls to 0 in a line
    batch_size: int = 1024
    epochs: int = 8  #: over the samples of a day of all devices
    gamma: float = 0.998  #: a day has 288 steps
    gae_lambda: float = 0.95
    entropy: float = 0.0005  #: its weight; rewards are a few hundredths a step


def make(env: DaysVecEnv, seed: int, tensorboard: Path | None, arguments: Arguments) -> PPO:
    """A new learner."""
    a = arguments
    return PPO(
        "MlpPolicy",
        env,
        learning_rate=lambda left: a.rate * left,
        n_steps=288,
        batch_size=a.batch_size,
        n_epochs=a.epochs,
        gamma=a.gamma,
        gae_lambda=a.gae_lambda,
        ent_coef=a.entropy,
        policy_kwargs={"net_arch": {"pi": [64, 64], "vf": [128, 128]}},
        tensorboard_log=str(tensorboard) if tensorboard else None,
        seed=seed,
        device="cpu",
    )


def layers(model: Any) -> list[Any]:
    """The linear layers from observation to action, in order."""
    import torch

    hidden = [part for part in model.policy.mlp_extractor.policy_net if isinstance(part, torch.nn.Linear)]
    return [*hidden, model.policy.action_net]

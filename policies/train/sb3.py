"""What is used of stable-baselines3, or an error that says how to get it."""

from __future__ import annotations

from caq.errors import MissingExtraError

try:
    from stable_baselines3 import DQN, PPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.vec_env import VecEnv
except ImportError:
    raise MissingExtraError("stable-baselines3", "rl") from None

__all__ = ["DQN", "PPO", "BaseCallback", "VecEnv"]

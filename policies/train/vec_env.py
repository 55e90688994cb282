"""BatteryTrace's vector environment as stable-baselines3 wants it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policies.points import PointTable
from policies.train.sb3 import VecEnv
from simulators.envs import BatteryTraceVectorEnv, Scenario
from simulators.observation import FIELDS

MEMORY = FIELDS.index("memory_available")


class DaysVecEnv(VecEnv):
    """N devices, day after day; days are drawn from the scenario's.

    As LearnedPolicy does, it replaces points that do not fit in memory. From each reward is taken what the best point
    would have earned with the same requests, which no action changes: the sum of what is left is by how much a day was
    worse than flawless, and its variance is far less. A day ends the episode: charge that is left is worth nothing.
    Episodes that are logged have BatteryTrace's own return.
    """

    def __init__(self, scenario: Scenario, devices: int, seed: int) -> None:
        self._env = BatteryTraceVectorEnv(devices, scenario)
        self.render_mode, self.num_envs = None, devices  # the base class asks for them
        super().__init__(devices, self._env.single_observation_space, self._env.single_action_space)
        self._table = PointTable.of(scenario.costs, scenario.device.memory_bytes)
        s = scenario
        self._best = float(s.costs.accuracy.max()) / (s.device.requests_per_s * s.days.step_s)
        self._next_seed: int | None = seed
        self._started = time.time()
        self._actions: NDArray[np.intp]
        self._observations: NDArray[np.float32]
        self._returns = np.zeros(devices)

    def reset(self) -> NDArray[np.float32]:
        self._observations, _ = self._env.reset(seed=self._next_seed)
        self._next_seed = None
        self._returns = np.zeros(self.num_envs)
        return self._observations

    def step_async(self, actions: NDArray[Any]) -> None:
        self._actions = self._table.fitting(np.asarray(actions, np.intp), self._observations[:, MEMORY])

    def step_wait(self) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_], list[dict[str, Any]]]:
        flawless = self._env.world.given.requests * self._best
        observations, rewards, _, ended, _ = self._env.step(self._actions)
        self._returns += rewards
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        if ended[0]:
            passed, length = time.time() - self._started, self._env.world.steps
            for i, info in enumerate(infos):
                info["terminal_observation"] = observations[i]
                info["episode"] = {"r": self._returns[i], "l": length, "t": passed}
            observations = self.reset()
        self._observations = observations
        return observations, (rewards - flawless).astype(np.float32), ended, infos

    def close(self) -> None:
        self._env.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [getattr(self, attr_name)] * len(list(self._get_indices(indices)))

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        setattr(self, attr_name, value)

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        return [getattr(self, method_name)(*args, **kwargs)]

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        return [False] * len(list(self._get_indices(indices)))

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        self._next_seed = seed
        return [seed] * self.num_envs

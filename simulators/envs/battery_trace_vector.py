"""caq/BatteryTrace-v0 for thousands of devices at once, in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import error, spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from caq.errors import ConfigError
from simulators.envs.battery_trace import given_scenario
from simulators.envs.scenario import START_OF_CHARGE, Scenario
from simulators.observation import FIELDS, HIGH, LOW, scaled_temperature
from simulators.world import World

Observations = NDArray[np.float32]
Actions = NDArray[np.integer[Any]]


class BatteryTraceVectorEnv(VectorEnv[Observations, Actions, NDArray[Any]]):
    """N devices that go through N days side by side; each is a BatteryTraceEnv, see there for all that it means.

    All days end in the same step, and the next step starts new ones, whatever its actions, with rewards 0
    (`AutoresetMode.NEXT_STEP`). Days and states of charge are drawn from the one generator of the environment, or given
    by `reset(options={"day": (N,) rows, "state_of_charge": (N,)})`.

    Observations (N, 10) float32, actions (N,) integers, rewards (N,) float64, `info` as there with arrays (N,) and the
    masks that Gymnasium's wrappers read. Voltages, temperatures and requests are computed in float32, or in `dtype`.
    """

    metadata = {"render_modes": [], "autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012  gymnasium's convention

    def __init__(
        self, num_envs: int = 1, scenario: Scenario | None = None, dtype: Any = np.float32, **arguments: Any
    ) -> None:
        if num_envs < 1:
            raise ConfigError(f"num_envs must be at least 1, not {num_envs}")
        self.num_envs = num_envs
        self.scenario = given_scenario(scenario, arguments)
        s = self.scenario
        self.single_action_space = spaces.Discrete(len(s.costs))
        self.single_observation_space = spaces.Box(LOW, HIGH, dtype=np.float32)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self._world = World(s.costs, s.device, s.battery, s.thermal, s.days, dtype)
        # (T, D) of each field that is not the state's, and (T,) of the hour's.
        self._clock = [np.ascontiguousarray(c.T, np.float32) for c in s.clock()]
        self._days = np.zeros(num_envs, np.intp)
        self._points = np.zeros(num_envs, np.intp)
        self._scale = np.float32(1 / s.power_high_w), np.float32(1 / max(len(s.costs) - 1, 1))
        self._all, self._never = np.ones(num_envs, bool), np.zeros(num_envs, bool)

    @property
    def world(self) -> World:
        """The devices, to look at."""
        return self._world

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observations, dict[str, Any]]:
        super().reset(seed=seed)
        options = options or {}
        count, total = self.num_envs, len(self.scenario.days)
        days = np.asarray(options.get("day", self.np_random.integers(total, size=count)))
        charge = np.asarray(options.get("state_of_charge", self.np_random.uniform(*START_OF_CHARGE, count)), np.float64)
        if days.shape != (count,) or charge.shape != (count,):
            raise ConfigError(
                f"options: day and state_of_charge have shape ({count},), not {days.shape}, {charge.shape}"
            )
        self._world.reset(days, charge)
        self._days = days.astype(np.intp)
        self._points = np.zeros(count, np.intp)
        given = self._world.given
        return self._observations(given.other_w, given.apps_load), self._info({"caq/day": days})

    def step(
        self, actions: Actions
    ) -> tuple[Observations, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        world = self._world
        if world.t == world.steps:
            if not hasattr(world, "state"):
                raise error.ResetNeeded("no day has begun; call reset")
            observations, info = self.reset()
            return observations, np.zeros(self.num_envs), self._never.copy(), self._never.copy(), info
        points = np.asarray(actions, np.intp)
        switched = points != self._points
        outcome = world.step(points)
        self._points = points
        rewards = self.scenario.reward(outcome, switched)
        ended = self._all if world.t == world.steps else self._never
        info = self._info(
            {
                "caq/served": outcome.served,
                "caq/late": outcome.late,
                "caq/dropped": outcome.dropped,
                "caq/accuracy": outcome.accuracy,
                "caq/inference_j": outcome.inference_j,
                "caq/power_w": outcome.power_w,
                "caq/busy": outcome.busy,
                "caq/off": outcome.off,
                "caq/over_memory": outcome.over_memory,
                "caq/apps_load": outcome.apps_load,
            }
        )
        return self._observations(outcome.power_w, outcome.load), rewards, self._never.copy(), ended.copy(), info

    def _observations(self, power_w: NDArray[Any], load: NDArray[Any]) -> Observations:
        state, row = self._world.state, min(self._world.t, self._world.steps - 1)
        *of_day, sine, cosine = (column[row] for column in self._clock)
        charging, memory, brightness = (column.take(self._days) for column in of_day)
        fields = np.empty((len(FIELDS), self.num_envs), np.float32)  # a field's numbers lie together
        fields[0] = state.battery.state_of_charge
        fields[1] = charging
        fields[2] = scaled_temperature(np, state.temperature_c[0])
        fields[3] = memory
        np.minimum(power_w * self._scale[0], 1, out=fields[4], casting="same_kind")
        np.minimum(load, 1, out=fields[5], casting="same_kind")
        fields[6] = brightness
        fields[7] = sine
        fields[8] = cosine
        np.multiply(self._points, self._scale[1], out=fields[9], casting="same_kind")
        return fields.T

    def _info(self, info: dict[str, Any]) -> dict[str, Any]:
        return info | {f"_{name}": self._all for name in info}

"""caq/BatteryTrace-v0: choose the operating point of one device through a day."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from caq.errors import AssignmentError, ConfigError
from simulators.envs.drawing import Canvas, check_render_mode
from simulators.envs.scenario import START_OF_CHARGE, Scenario, scenario
from simulators.observation import HIGH, LOW, scaled_temperature
from simulators.scalar import ScalarBattery, Scalars, ScalarThermal
from simulators.world import Choice, State, Surroundings, advance, surroundings


class BatteryTraceEnv(gymnasium.Env[NDArray[np.float32], np.int64]):
    """One device that answers requests through a day on its battery, until and after the next charge.

    By default a body-worn camera with 0.1 Ah and a ResNet-8 (CIFAR-10) on a bit-serial accelerator: accuracies are
    measured, latency and energy modelled (`simulators/profiles`, with the source of each figure). Days are generated.

    ## Action space
    `Discrete(P)`: the operating point for the step to come, in the order of `scenario.costs.names`. While the device is
    off, it answers nothing, whatever the action.

    ## Observation space
    `Box(float32)` of 10 numbers, each 0..1 but for the hour's sine and cosine, -1..1:

    | | name | low | high |
    |---|---|---|---|
    | 0 | state_of_charge | 0: empty | 1: full |
    | 1 | charging | 0 | 1: on a charger for most of the step to come |
    | 2 | temperature | 0: -20 °C | 1: 60 °C |
    | 3 | memory_available | 0 | 1: all of the device's memory |
    | 4 | power | 0 W | 1: `scenario.power_high_w` and more; mean of the last step |
    | 5 | cpu_load | 0 | 1: inference and other apps took all of the last step |
    | 6 | screen_brightness | 0: off | 1 |
    | 7 | hour_sin | -1 | 1 |
    | 8 | hour_cos | -1 | 1 |
    | 9 | point | 0: first | 1: last point, as active in the last step |

    A device knows all of it: `simulators.observation.observe` makes the same row of a `caq.context.Context`.

    ## Reward
    In answers to all requests of a mean step (`device.requests_per_s * step_s` of them), so that a day of flawless
    service is worth about the number of its steps:

        ((served - late) * accuracy - 0.5 * dropped - 0.5 * late) / requests of a mean step
        - 0.5 if the device was off - 0.5 if the point needed more memory than there was - 0.01 if the point changed

    `accuracy` is the point's measured one, so (served - late) * accuracy is the expected number of correct answers in
    time. The weights are `RewardWeights`.

    ## Start
    The beginning, by default midnight, of a day drawn from `scenario.days`; state of charge even in 0.5..1, or both by
    `reset(options={"day": row, "state_of_charge": x})`; as warm as the air, nothing waits, at the first point.

    ## End
    `truncated` after the last step of the day (288 of 300 s by default). Never `terminated`: a device whose battery is
    cut off is off until it is charged. Charge that is left then is worth nothing in a day's return; since the day was
    truncated, algorithms that bootstrap value it all the same.

    ## Info
    `caq/served`, `caq/late`, `caq/dropped` (requests), `caq/accuracy`, `caq/busy` (0..1), `caq/inference_j`,
    `caq/power_w`, `caq/off`, `caq/over_memory`, `caq/apps_load` (0..1) of the step; after `reset`, `caq/day`.

    ## Arguments
    Those of `simulators.envs.scenario.scenario` by name, or `scenario` itself; `render_mode`.

    ## Version history
    v0: first version.
    """

    metadata = {"render_modes": ["human", "rgb_array"], "render_fps": 4}  # noqa: RUF012  gymnasium's convention

    def __init__(self, scenario: Scenario | None = None, render_mode: str | None = None, **arguments: Any) -> None:
        self.render_mode = check_render_mode(render_mode, self.metadata)
        self.scenario = given_scenario(scenario, arguments)
        s, step_s = self.scenario, self.scenario.days.step_s
        self.action_space = spaces.Discrete(len(s.costs))
        self.observation_space = spaces.Box(LOW, HIGH, dtype=np.float32)
        self._battery, self._thermal = ScalarBattery(s.battery, step_s), ScalarThermal(s.thermal, step_s)
        columns = (s.costs.accuracy, s.costs.latency_s, s.costs.energy_j, s.costs.resident_bytes)
        self._choices = [Choice(*row) for row in np.stack(columns, 1).tolist()]
        self._surroundings, self._clock = surroundings(s.device, s.days), s.clock()
        self._power_high_w, self._last = s.power_high_w, max(len(s.costs) - 1, 1)
        self._t = s.days.steps
        self._point = 0
        self._given: list[Surroundings] = []
        self._shown: list[tuple[float, ...]] = []
        self._state: State
        self._canvas: Canvas | None = None
        self._drawn: list[tuple[float, ...]] = []

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        super().reset(seed=seed)
        days, options = self.scenario.days, options or {}
        day = int(options.get("day", self.np_random.integers(len(days))))
        charge = float(options.get("state_of_charge", self.np_random.uniform(*START_OF_CHARGE)))
        if not 0 <= day < len(days) or not 0 <= charge <= 1:
            raise ConfigError(f"options: day of {len(days)} and state_of_charge 0..1, not {day} and {charge:g}")
        self._given = [Surroundings(*row) for row in zip(*(c[day].tolist() for c in self._surroundings), strict=True)]
        of_day = (c[day].tolist() if c.ndim == 2 else c.tolist() for c in self._clock)
        self._shown = list(zip(*of_day, strict=True))
        ambient = self._given[0].ambient_c
        on = charge >= self.scenario.device.restart_above
        self._state = State(self._battery.start(charge), self._thermal.start(ambient), False, on, 0.0)
        self._t, self._point, self._drawn = 0, 0, []
        if self.render_mode == "human":
            self.render()
        first = self._given[0]
        return self._observation(first.other_w, first.apps_load), {"caq/day": day}

    def step(self, action: np.int64) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        t = self._t
        if t >= len(self._given):
            raise gymnasium.error.ResetNeeded("the day is over, or has not begun; call reset")
        s, point, given = self.scenario, int(action), self._given[t]
        if not 0 <= point < len(self._choices):
            raise AssignmentError(f"operating points are numbered 0 to {len(self._choices) - 1}, not {action}")
        physics = Scalars, self._battery, self._thermal, s.device, s.days.step_s
        state, outcome = advance(*physics, self._state, self._choices[point], given)
        reward = s.reward(outcome, point != self._point)
        self._state, self._point, self._t = state, point, t + 1
        if self.render_mode is not None:
            self._drawn.append((state.battery.state_of_charge, given.charger_w, point, reward, *outcome))
            if self.render_mode == "human":
                self.render()
        info = {
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
        return self._observation(outcome.power_w, outcome.load), reward, False, t + 1 == len(self._given), info

    def _observation(self, power_w: float, load: float) -> NDArray[np.float32]:
        state = self._state
        charging, memory, brightness, sine, cosine = self._shown[min(self._t, len(self._shown) - 1)]
        row = (
            state.battery.state_of_charge,
            charging,
            scaled_temperature(Scalars, state.temperature_c[0]),
            memory,
            min(power_w / self._power_high_w, 1.0),
            min(load, 1.0),
            brightness,
            sine,
            cosine,
            self._point / self._last,
        )
        return np.array(row, np.float32)

    @property
    def state(self) -> State:
        """The device, to look at: plain numbers."""
        return self._state

    def render(self) -> NDArray[np.uint8] | None:
        """The day so far, (480, 720, 3) uint8 in the mode rgb_array; in the mode human it is shown in a window."""
        if self.render_mode is None:
            gymnasium.logger.warn('render needs a mode: gymnasium.make(..., render_mode="rgb_array")')
            return None
        self._canvas = self._canvas or Canvas(self.render_mode)
        return self._canvas.day(self._drawn, self.scenario)

    def close(self) -> None:
        if self._canvas is not None:
            self._canvas.close()
            self._canvas = None


def given_scenario(given: Scenario | None, arguments: dict[str, Any]) -> Scenario:
    """The scenario of an environment's arguments. Raises ConfigError if there are both."""
    if given is not None and arguments:
        raise ConfigError(f"give a scenario, or {', '.join(arguments)}: not both")
    return scenario(**arguments) if given is None else given

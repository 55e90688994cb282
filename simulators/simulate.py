"""One device through a day, request by request, with the runtime that a real device has.

    day = generated_day(read_device("camera"))
    simulation = Simulation(scenario("camera", costs, days=day.inputs), day)
    log = simulation.run(engine, policy)                                    # accuracies are looked up in `costs`
    log = simulation.run(engine, policy, samples=Samples(x, y, seed=0))     # or every inference really runs

Battery, heat and draw are those of `simulators.world`; requests are no fluid here but come one by one and wait in the
queue of `simulators.workload`. The policy is asked by `caq.Runtime` at the beginning of each step, on a context that is
made of the device's state, and the operating point holds until the next. A device that is off asks nobody.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from caq.context import Context
from caq.errors import AssignmentError, ConfigError, nearest
from caq.governor import Policy, Switch
from caq.runtime import InferenceEngine, Runtime
from simulators.day import Day
from simulators.envs.scenario import Scenario
from simulators.scalar import ScalarBattery, Scalars, ScalarThermal
from simulators.workload import Queue, Server, edges
from simulators.world import Choice, OtherPower, Outcome, Served, State, Surroundings, other_power, react, surroundings

#: States of charge below which time is counted.
LIMITS = (0.5, 0.2, 0.1, 0.05)


class Samples:
    """Real samples for requests: x (N, ...) with labels y (N,). Request i gets the same one whatever the policy."""

    def __init__(self, x: NDArray[np.generic], y: NDArray[np.int64], requests: int, seed: int) -> None:
        self._x, self._y = x, y
        self._picks = np.random.default_rng(seed).integers(0, len(y), requests)

    def right(self, runtime: Runtime, requests: NDArray[np.int64]) -> int:
        """Runs those of the requests, numbers (k,), at the runtime's point; how many labels are right."""
        chosen = self._picks[requests]
        return int((runtime(self._x[chosen]).argmax(1) == self._y[chosen]).sum())


class Step(NamedTuple):
    """What a log holds of a step; `Log` has an array (T,) of each.

    state_of_charge: 0..1, at its end. temperature_c: likewise. point: index of the operating point. queue: requests
    that wait at its end. requests: that came. served, late (among them), dropped: requests. accuracy: of the point,
    0..1. executed, right: inferences that really ran, and gave the label. inference_j, idle_j, screen_j, apps_j: energy
    of inference, of the idle device, of its screen, of other apps. power_w: mean, drawn by all. charging: share of the
    step. off, throttled, over_memory: bool. reward: that of caq/BatteryTrace-v0.
    """

    state_of_charge: float
    temperature_c: float
    point: int
    queue: int
    requests: int
    served: int
    late: int
    dropped: int
    accuracy: float
    executed: int
    right: int
    inference_j: float
    idle_j: float
    screen_j: float
    apps_j: float
    power_w: float
    charging: float
    off: bool
    throttled: bool
    over_memory: bool
    reward: float


@dataclass(frozen=True, eq=False)
class Log:
    """How a day went: `steps.NAME` is an array (T,) of that field of `Step`, for steps of step_s seconds.

    switches: of the operating point. failures: of the policy, which kept the point.
    """

    points: tuple[str, ...]
    step_s: float
    steps: Any
    switches: tuple[Switch, ...]
    failures: tuple[Switch, ...]


class Simulation:
    """A device of a scenario, at the beginning of a day; `run` goes through it, once.

    It is the source of contexts for the runtime. Raises ConfigError if the scenario's day is not this one.
    """

    def __init__(self, scenario: Scenario, day: Day) -> None:
        if scenario.days is not day.inputs:
            raise ConfigError("the scenario must have the day's inputs: scenario(..., days=day.inputs)")
        self._scenario, self._day, s = scenario, day, scenario
        step_s = s.days.step_s
        self._battery, self._thermal = ScalarBattery(s.battery, step_s), ScalarThermal(s.thermal, step_s)
        self._given = [
            Surroundings(*row) for row in zip(*(c[0].tolist() for c in surroundings(s.device, s.days)), strict=True)
        ]
        idle, screen, apps = other_power(s.device, s.days)
        self._other = [OtherPower(idle, *row) for row in zip(screen[0].tolist(), apps[0].tolist(), strict=True)]
        on = day.state_of_charge >= s.device.restart_above
        temperature = self._thermal.start(self._given[0].ambient_c)
        self._state = State(self._battery.start(day.state_of_charge), temperature, False, on, 0)
        self._t, self._power_w, self._load = 0, self._given[0].other_w, self._given[0].apps_load

    @property
    def t(self) -> int:
        """Steps done."""
        return self._t

    @property
    def state(self) -> State:
        """The device now, plain numbers."""
        return self._state

    @property
    def time_s(self) -> float:
        """Seconds since the beginning of the day."""
        return self._t * self._scenario.days.step_s

    def hour(self) -> float:
        """Local time, 0..24: the clock for policies that need one."""
        return (self._scenario.days.start_s + self.time_s) / 3600 % 24

    def read(self) -> Context:
        """What the device's sensors tell now; power and load are means of the last step."""
        last = max(self._t - 1, 0)
        sensed = {
            name: float(column[last if name == "apps_load" else self._t]) for name, column in self._day.sensed.items()
        }
        known: dict[str, Any] = {name: None if math.isnan(value) else value for name, value in sensed.items()}
        memory = known["memory_available"]
        return Context.from_values(
            source="simulation",
            state_of_charge=self._state.battery.state_of_charge,
            power_w=self._power_w,
            temperature_c=self._state.temperature_c[0],
            cpu_load=min(self._load, 1.0),
            available_bytes=None if memory is None else memory * self._scenario.device.memory_bytes,
            time_s=self.time_s,
            **known,
        )

    def run(
        self,
        engine: InferenceEngine,
        policy: Policy | str,
        *,
        samples: Samples | None = None,
        min_dwell_s: float = 5.0,
        advance: Callable[[str], None] = lambda text: None,
    ) -> Log:
        """Goes through the day. engine: serves the scenario's points, and begins with one of them.

        samples: run these, one for each request served. advance: called after each step with the point's name. Raises
        ConfigError when called again, AssignmentError if the engine lacks a point, and what `caq.Runtime` raises.
        """
        s, requests = self._scenario, self._day.requests
        if self._t:
            raise ConfigError("the day is over: make another Simulation")
        names = s.costs.names
        for name in names:
            if name not in engine.points:
                raise AssignmentError(f"the model has no operating point {name!r}{nearest(name, engine.points)}")
        if engine.point not in names:
            engine.select(names[0])
        columns = (s.costs.accuracy, s.costs.latency_s, s.costs.energy_j, s.costs.resident_bytes)
        choices = {name: Choice(*row) for name, row in zip(names, np.stack(columns, 1).tolist(), strict=True)}
        server = Server(Queue(drop_late=False, capacity=int(s.device.queue_limit)), requests)
        edges_s = edges(s.days.steps * s.days.step_s, s.days.step_s)
        asked = np.diff(np.searchsorted(requests.arrival_s, edges_s)).tolist()
        switches: list[Switch] = []
        steps: list[Step] = []
        before: str | None = None
        with Runtime(engine, policy, self, min_dwell_s=min_dwell_s, on_switch=switches.append, auto=False) as runtime:
            for t, until_s in enumerate(edges_s[1:].tolist()):
                if self._state.on:
                    runtime.step(self.time_s)
                name = runtime.point
                if name not in choices:
                    raise AssignmentError(f"the point {name!r} has no costs here; known: {', '.join(names)}")
                begun, outcome = self._serve(server, until_s, asked[t], choices[name])
                ran = 0 if samples is None else len(begun)
                right = samples.right(runtime, begun) if samples is not None and ran else 0
                reward = float(s.reward(outcome, before is not None and name != before))
                steps.append(self._logged(outcome, names.index(name), asked[t], ran, right, reward))
                before = name
                advance(name)
            failures = tuple(entry for entry in runtime.history if entry.kept)
        table = Step._make(np.array(column) for column in zip(*steps, strict=True))
        return Log(names, s.days.step_s, table, tuple(switches), failures)

    def _serve(self, server: Server, until_s: float, asked: int, choice: Choice) -> tuple[NDArray[np.int64], Outcome]:
        """One step: the numbers of the requests begun in it, and what it did."""
        s, state, given = self._scenario, self._state, self._given[self._t]
        latency_s = choice.latency_s / self._thermal.speed(state.throttled)
        if state.on:
            begun = server.run(until_s, lambda number: latency_s)
        else:
            begun = np.empty(0, np.int64)
            server.turn_away(until_s)
        late = server.late(begun)
        dropped = state.queue + asked - len(begun) - server.waiting
        done = Served(len(begun), late, dropped, server.waiting)
        physics = Scalars, self._battery, self._thermal, s.device, s.days.step_s
        self._state, outcome = react(*physics, state, choice, given, latency_s, done)
        self._power_w, self._load = outcome.power_w, outcome.load
        return begun, outcome

    def _logged(self, outcome: Outcome, point: int, asked: int, ran: int, right: int, reward: float) -> Step:
        """Goes on to the next step."""
        state, given = self._state, self._scenario.days
        t, self._t = self._t, self._t + 1
        other, on_s = self._other[t], 0.0 if outcome.off else given.step_s
        return Step(
            state.battery.state_of_charge,
            state.temperature_c[0],
            point,
            state.queue,
            asked,
            outcome.served,
            outcome.late,
            outcome.dropped,
            outcome.accuracy,
            ran,
            right,
            outcome.inference_j,
            other.idle * on_s,
            other.screen * on_s,
            other.apps * on_s,
            outcome.power_w,
            float(given.charging[0, t]),
            bool(outcome.off),
            bool(state.throttled),
            bool(outcome.over_memory),
            reward,
        )


def summary(log: Log) -> dict[str, Any]:
    """What a day came to, plain types only.

    | key | |
    |---|---|
    | lifetime_s | until the device first went off; None if it never did |
    | on_share | of the day, 0..1 |
    | requests, served, late, dropped, waiting | counts; the late are among the served, waiting at the day's end |
    | accuracy | looked up, mean over what was served; None if nothing was |
    | observed | inferences that really ran: executed, right, accuracy, and low, high of its 95 % interval; or None |
    | inference_j, idle_j, screen_j, apps_j | energy of inference, the idle device, its screen, other apps |
    | energy_j | of all of these |
    | switches, failures | of the operating point; of the policy |
    | below_s | seconds with less charge than each of LIMITS |
    | off_s, throttled_s, over_memory_s | seconds |
    | point_shares | of the time that the device was on, by point |
    | reward | that of caq/BatteryTrace-v0, the sum over the day |
    """
    s, step_s = log.steps, log.step_s
    served, ran, right = int(s.served.sum()), int(s.executed.sum()), int(s.right.sum())
    on = ~s.off
    return {
        "lifetime_s": float(s.off.argmax() * step_s) if s.off.any() else None,
        "on_share": float(on.mean()),
        "requests": int(s.requests.sum()),
        "served": served,
        "late": int(s.late.sum()),
        "dropped": int(s.dropped.sum()),
        "waiting": int(s.queue[-1]),
        "accuracy": float((s.served * s.accuracy).sum() / served) if served else None,
        "observed": {"executed": ran, "right": right, "accuracy": right / ran, **_wilson(right, ran)} if ran else None,
        **{part: float(getattr(s, part).sum()) for part in ("inference_j", "idle_j", "screen_j", "apps_j")},
        "energy_j": float(s.power_w.sum() * step_s),
        "switches": len(log.switches),
        "failures": len(log.failures),
        "below_s": {f"{limit:g}": float((s.state_of_charge < limit).sum() * step_s) for limit in LIMITS},
        "off_s": float(s.off.sum() * step_s),
        "throttled_s": float(s.throttled.sum() * step_s),
        "over_memory_s": float(s.over_memory.sum() * step_s),
        "point_shares": {
            name: float((on & (s.point == at)).sum() / max(on.sum(), 1)) for at, name in enumerate(log.points)
        },
        "reward": float(s.reward.sum()),
    }


def _wilson(right: int, ran: int, z: float = 1.959964) -> dict[str, float]:
    """The 95 % interval of a binomial share (Wilson 1927)."""
    share = right / ran
    middle = (share + z**2 / (2 * ran)) / (1 + z**2 / ran)
    half = z * math.sqrt(share * (1 - share) / ran + z**2 / (4 * ran**2)) / (1 + z**2 / ran)
    return {"low": middle - half, "high": middle + half}

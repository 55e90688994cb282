"""Plays policies through days of a simulated world, N devices at once, and keeps what matters of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caq.context import Context
from caq.governor import Policy
from caq.graph import Cost
from caq.model import OperatingPoint
from policies.oracle import Oracle
from policies.seen import FROM_CONTEXT, PointPolicy, Seen
from simulators.envs.scenario import START_OF_CHARGE, Clock, Scenario
from simulators.world import World

#: Points (N,) for the step to come, of a world and of what devices see of it.
Chooser = Callable[[World, Seen], NDArray[np.intp]]


@dataclass(frozen=True, eq=False)
class Played:
    """Of N days, (N,): returns, the sums of rewards; off_steps; served requests in time, and the mean accuracy of
    these; switches. state_of_charge: (T+1, N). points: (T, N)."""

    returns: NDArray[np.float64]
    off_steps: NDArray[np.float64]
    served: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    switches: NDArray[np.float64]
    state_of_charge: NDArray[np.float64]
    points: NDArray[np.intp]


def starts(scenario: Scenario, seed: int) -> NDArray[np.float64]:
    """(N,) charge at the beginning of each day, drawn as the environments draw it."""
    return np.random.default_rng(seed).uniform(*START_OF_CHARGE, len(scenario.days))


def look(
    world: World,
    clock: Clock,
    power_w: NDArray[Any],
    busy: NDArray[Any],
    apps_load: NDArray[Any],
    current: NDArray[np.intp],
) -> Seen:
    """What devices know before step `world.t`, as BatteryTrace shows it; all days of the clock, in their order.

    power_w, busy, apps_load: (N,) means of the last step; shares of it that inference and other apps took.
    """
    t, count = world.t, len(current)
    time_s = t * world.days.step_s
    return Seen(
        world.state.battery.state_of_charge,
        clock.charging[:, t],
        world.state.temperature_c[0].astype(np.float64),
        clock.memory_available[:, t],
        power_w.astype(np.float64),
        np.minimum(busy + apps_load, 1.0).astype(np.float64),
        apps_load.astype(np.float64),
        clock.screen_brightness[:, t],
        np.full(count, time_s),
        np.full(count, (world.days.start_s + time_s) / 3600 % 24),
        current,
    )


def play(scenario: Scenario, state_of_charge: NDArray[np.float64], choose: Chooser) -> Played:
    """Every day of the scenario once, from the charges (N,), 0..1."""
    s, count = scenario, len(scenario.days)
    world = World(s.costs, s.device, s.battery, s.thermal, s.days)
    world.reset(np.arange(count), state_of_charge)
    clock = s.clock()
    current = np.zeros(count, np.intp)
    power, busy, load = world.given.other_w, np.zeros(count, np.float32), world.given.apps_load
    sums = np.zeros((5, count))
    charge, points = [world.state.battery.state_of_charge], []
    while world.t < world.steps:
        chosen = choose(world, look(world, clock, power, busy, load, current))
        switched = chosen != current
        outcome = world.step(chosen)
        good = outcome.served - outcome.late
        sums += s.reward(outcome, switched), outcome.off, good, good * outcome.accuracy, switched
        power, busy, load, current = outcome.power_w, outcome.busy, outcome.apps_load, chosen
        charge.append(world.state.battery.state_of_charge)
        points.append(chosen)
    accuracy = sums[3] / np.maximum(sums[2], 1)
    return Played(sums[0], sums[1], sums[2], accuracy, sums[4], np.stack(charge), np.stack(points))


def fixed(point: int) -> Chooser:
    """Always the same."""
    return lambda world, seen: np.full(len(seen.current), point, np.intp)


def of_policy(policy: PointPolicy, before: Scenario | None = None) -> Chooser:
    """A policy of ours, over all devices at once, from a new start, or with the memory of the days that came before,
    which it plays from full batteries."""

    def choose(world: World, seen: Seen) -> NDArray[np.intp]:
        if world.t == 0:
            policy.start(len(seen.current))
            if before is not None:
                play(before, np.ones(len(seen.current)), lambda world, seen: policy.choose(seen))
        return policy.choose(seen)

    return choose


def one_by_one(make: Callable[[], Policy], scenario: Scenario) -> Chooser:
    """Policies that know contexts only, one for each device, asked one after the other."""
    offered = tuple(
        OperatingPoint(name, (), float(accuracy), "accuracy", 1, Cost(0, 0, 0))
        for name, accuracy in zip(scenario.costs.names, scenario.costs.accuracy, strict=True)
    )
    names = scenario.costs.names
    policies = [make() for _ in range(len(scenario.days))]

    def choose(world: World, seen: Seen) -> NDArray[np.intp]:
        columns = zip(*(getattr(seen, field).tolist() for field in FROM_CONTEXT), strict=True)
        chosen = []
        for policy, values, current in zip(policies, columns, seen.current.tolist(), strict=True):
            context = Context.from_values(**dict(zip(FROM_CONTEXT, values, strict=True)))
            chosen.append(names.index(policy.select(context, offered, names[current]).point))
        return np.array(chosen, np.intp)

    return choose


def of_oracle(oracle: Oracle) -> Chooser:
    """The oracle of the scenario's days, all of them in their order."""
    return lambda world, seen: oracle.choose(world, seen.current)

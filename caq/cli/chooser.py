"""Policies that choose for all devices of a simulated world at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

import policies.evaluate
from caq.cli.policies import Setting, named_policy
from caq.errors import ConfigError
from caq.governor import FixedPolicy
from policies.evaluate import fixed, look, of_oracle, of_policy, one_by_one
from policies.oracle import Oracle
from policies.seen import PointPolicy
from simulators.envs.scenario import Scenario
from simulators.fleet import Active, Chooser
from simulators.world import World

ORACLE = "oracle"


def make_chooser(name: str, scenario: Scenario) -> Chooser:
    """The policy of a name, or the oracle, for all days of a scenario in their order. Raises ConfigError,
    AssignmentError on a point that there is not."""
    choose, clock = _of_name(name, scenario), scenario.clock()

    def chooser(world: World, active: Active) -> NDArray[np.intp]:
        seen = look(world, clock, active.power_w, active.busy, active.apps_load, active.points)
        return choose(world, seen)

    return chooser


def _of_name(name: str, scenario: Scenario) -> policies.evaluate.Chooser:
    if name == ORACLE:
        return of_oracle(Oracle(scenario, np.arange(len(scenario.days))))
    names = scenario.costs.names
    setting = Setting(None, scenario, None)  # a table of costs has no operating points of a model
    policy = named_policy(name, setting)
    if isinstance(policy, PointPolicy):
        if tuple(policy.points.names) != names:
            made_for = ", ".join(policy.points.names)
            raise ConfigError(f"{name}: is for the points {made_for}, in that order, and there are {', '.join(names)}")
        return of_policy(policy)
    if isinstance(policy, FixedPolicy):
        scenario.costs.choose([policy.point])  # raises what tells the nearest name
        return fixed(names.index(policy.point))
    return one_by_one(lambda: named_policy(name, setting), scenario)

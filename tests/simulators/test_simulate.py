"""One device's day under the runtime, against the fluid world and against counts by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest

from caq.context import Quality
from caq.engine import Engine
from caq.errors import AssignmentError, ConfigError, TraceError
from caq.governor import Decision
from simulators.day import Day, generated_day, recorded_day
from simulators.device import PointCosts, read_device
from simulators.episodes import episodes, request_times
from simulators.simulate import Samples, Simulation, summary
from simulators.traces import Trace
from simulators.workload import Requests, edges
from simulators.world import World
from tests import models
from tests.fake_engine import FakeEngine
from tests.simulators import worlds

NAMES = ("saver", "balanced", "full")
COSTS = PointCosts(
    NAMES,
    "by hand",
    np.array([0.6, 0.8, 0.9]),
    np.array([0.5, 1.0, 2.0]),
    np.array([0.5, 1.0, 2.0]),
    np.array([1e4, 2e4, 3e4]),
)


def day_of(arrivals, steps, step_s=60.0, charge=1.0, sensed=None, deadline_s=10.0, **columns):
    """A quiet day by hand, with these requests."""
    counts = np.histogram(arrivals, np.arange(steps + 1) * step_s)[0]
    inputs = worlds.days((1, steps), step_s, requests=counts, **columns)
    told = {
        name: np.broadcast_to(getattr(inputs, name)[0], (steps,))
        for name in ("charging", "screen_brightness", "memory_available", "apps_load")
    }
    requests = Requests.drawn(arrivals, np.random.SeedSequence(0), (deadline_s, deadline_s))
    return Day(inputs, told | (sensed or {}), requests, charge, ())


def simulate(day, policy="balanced", engine=None, costs=COSTS, samples=None, min_dwell_s=5.0, **device):
    scenario = worlds.scenario(day.inputs, costs, **device)
    return Simulation(scenario, day).run(engine or FakeEngine(), policy, samples=samples, min_dwell_s=min_dwell_s)


class Scripted:
    """Wants the points of a list, one after the other, and keeps the contexts that it was asked with."""

    def __init__(self, points):
        self.points, self.contexts = list(points), []

    def select(self, context, points, current):
        self.contexts.append(context)
        return Decision(self.points[min(len(self.contexts), len(self.points)) - 1], "the script says so")


def test_requests_by_hand():
    # 1 s each: of four at once two wait too long for 2.5 s, and with room for two one is turned away.
    log = simulate(day_of([5, 5, 5, 5, 70], 3, deadline_s=2.5), queue_limit=2)
    assert log.steps.requests.tolist() == [4, 1, 0]
    assert log.steps.served.tolist() == [3, 1, 0]
    assert log.steps.late.tolist() == [1, 0, 0]
    assert log.steps.dropped.tolist() == [1, 0, 0]
    np.testing.assert_allclose(log.steps.inference_j, [3, 1, 0])
    found = summary(log)
    assert (found["served"], found["late"], found["dropped"], found["waiting"]) == (4, 1, 1, 0)
    assert found["accuracy"] == pytest.approx(0.8) and found["observed"] is None and found["lifetime_s"] is None


def test_a_queue_goes_on_at_the_next_point():
    # 100 at once: 60 begin in the first minute at 1 s each, the others in the next at 0.5 s.
    log = simulate(day_of([0.0] * 100, 3, deadline_s=1e4), Scripted(["balanced", "saver"]), queue_limit=1000)
    assert log.steps.served.tolist() == [60, 40, 0] and log.steps.queue.tolist() == [40, 0, 0]
    assert [NAMES[at] for at in log.steps.point] == ["balanced", "saver", "saver"]
    assert len(log.switches) == 2  # to balanced, where the engine did not begin, and to saver


def test_every_request_is_accounted_for():
    rng = np.random.default_rng(0)
    log = simulate(day_of(np.sort(rng.uniform(0, 6000, 9000)), 100), "full", queue_limit=30)
    found = summary(log)
    assert found["requests"] == found["served"] + found["dropped"] + found["waiting"] == 9000
    assert found["dropped"] > 0


def test_close_to_the_fluid_world():
    device, step_s = read_device("camera"), 300.0
    day = generated_day(device, number=3, seed=1, step_s=step_s, requests_per_s=2.0, state_of_charge=0.7)
    costs = PointCosts(("full",), "by hand", *(np.array([value]) for value in (0.9, 0.02, 0.02, 1e4)))
    scenario = worlds.scenario(day.inputs, costs)
    log = Simulation(scenario, day).run(FakeEngine(names=("full", "saver")), "full")
    world = World(costs, scenario.device, scenario.battery, scenario.thermal, day.inputs, np.float64)
    world.reset(np.array([0]), np.array([0.7]))
    charge, served = [], []
    for _ in range(world.steps):
        served.append(world.step(np.array([0])).served[0])
        charge.append(world.state.battery.state_of_charge[0])
    assert min(charge) < 0.5
    np.testing.assert_allclose(log.steps.state_of_charge, charge, atol=1e-4)
    assert abs(np.array(served) - log.steps.served).max() <= 1.5  # one may be at work when a step ends


def test_requests_are_those_of_the_episode():
    inputs = episodes(2, seed=5, step_s=300.0, requests_per_s=0.2, first=7)
    times = request_times(8, 5, edges(86400.0, 300.0), 0.2)
    np.testing.assert_array_equal(np.histogram(times, edges(86400.0, 300.0))[0], inputs.requests[1])


def test_a_device_that_goes_off_asks_nobody_and_drops_all():
    policy = Scripted(["full"])
    arrivals = np.arange(0, 3600, 2.0)
    log = simulate(day_of(arrivals, 60, charge=0.06), policy)
    found = summary(log)
    assert found["lifetime_s"] is not None and 0 < found["lifetime_s"] < 3600
    on = int(found["lifetime_s"] / 60)
    assert len(policy.contexts) == on and found["on_share"] == pytest.approx(on / 60)
    assert log.steps.off[on:].all() and not log.steps.off[:on].any()
    assert log.steps.served[on:].sum() == 0 and log.steps.dropped[on + 1 :].tolist() == [30] * (59 - on)


def test_a_day_that_begins_empty_at_a_point_that_is_not_used():
    costs = COSTS.choose(["balanced", "full"])
    log = simulate(day_of([1.0, 70.0], 2, charge=0.0), Scripted(["full"]), FakeEngine(), costs)
    found = summary(log)
    assert found["lifetime_s"] == 0 and found["dropped"] == 2 and found["accuracy"] is None
    assert log.steps.point.tolist() == [0, 0]


def test_the_policy_sees_a_simulated_context_and_gaps():
    memory = np.array([0.5, math.nan, 0.25])
    policy = Scripted(["full"])
    simulate(day_of([1.0], 3, sensed={"memory_available": memory}), policy)
    first, second, third = policy.contexts
    assert first.state_of_charge.quality is Quality.SIMULATED and first.value("state_of_charge") == 1.0
    assert [c.value("memory_available") for c in policy.contexts] == [0.5, None, 0.25]
    assert second.memory_available.quality is Quality.MISSING and second.value("available_bytes") is None
    assert third.value("available_bytes") == 0.25 * read_device("camera").memory_bytes
    assert [c.value("time_s") for c in policy.contexts] == [0, 60, 120]
    assert first.value("charging") is False
    # 1 request of 2 J in 60 s, 2 s long, beside the device's 6 mW.
    assert second.value("power_w") == pytest.approx(2 / 60 + 0.006) and second.value("cpu_load") == pytest.approx(
        2 / 60
    )


def test_other_apps_are_seen_and_their_energy_told_apart():
    load = np.array([0.5, 1.0, 0.0])
    day, policy = (
        day_of([1.0], 3, apps_load=load, screen_on=[[1, 0, 0]], screen_brightness=[[0.5, 0, 0]]),
        Scripted(["full"]),
    )
    log = simulate(day, policy, apps_power_w=0.2, screen_power_w=0.1, bright_power_w=0.04)
    found = summary(log)
    assert found["apps_j"] == pytest.approx(60 * 0.2 * 1.5) and found["screen_j"] == pytest.approx(60 * 0.12)
    assert found["idle_j"] == pytest.approx(180 * 0.006) and found["inference_j"] == 2
    parts = sum(found[f"{part}_j"] for part in ("inference", "idle", "screen", "apps"))
    assert parts == pytest.approx(found["energy_j"])
    assert [c.value("apps_load") for c in policy.contexts] == [0.5, 0.5, 1.0]  # of the last step, as the power
    assert policy.contexts[1].value("cpu_load") == pytest.approx(2 / 60 + 0.5)
    assert policy.contexts[2].value("power_w") == pytest.approx(0.006 + 0.2)


def test_a_device_that_is_off_spends_nothing():
    log = simulate(day_of([], 4, charge=0.0, apps_load=1.0), apps_power_w=0.2)
    assert log.steps.off.all() and not log.steps.idle_j.any() and not log.steps.apps_j.any()


def test_the_governor_holds_a_point_for_its_dwell():
    log = simulate(day_of([1.0], 6), Scripted(["full", "saver", "saver", "saver"]), min_dwell_s=150)
    assert [NAMES[at] for at in log.steps.point] == ["full"] * 3 + ["saver"] * 3


def test_a_policy_that_fails_keeps_its_point():
    log = simulate(day_of([1.0], 3), Scripted(["nonsense"]))
    assert len(log.failures) == 1 and summary(log)["failures"] == 1
    assert {NAMES[at] for at in log.steps.point} == {"saver"}


def test_executed_inferences_are_those_of_the_engine():
    model = models.model(0)
    engine = Engine(model)
    names = tuple(engine.points)
    x = models.samples(model, 50)
    engine.select("w8a8")
    y = engine.run(x).argmax(1)
    y[::3] = (y[::3] + 1) % 3
    costs = PointCosts(names, "by hand", *(np.full(len(names), value) for value in (0.5, 0.1, 0.1, 1e4)))
    day = day_of(np.arange(0, 600, 1.5), 10)
    samples = Samples(x, y, len(day.requests), seed=3)
    log = simulate(day, "w8a8", engine, costs, samples)
    picks = np.random.default_rng(3).integers(0, 50, 400)
    found = summary(log)["observed"]
    assert found["executed"] == 400 and found["right"] == int((picks % 3 != 0).sum())
    assert found["low"] < found["accuracy"] < found["high"] and found["high"] - found["low"] < 0.1
    again = simulate(day, "w2a2", engine, costs, samples)
    engine.select("w2a2")
    assert again.steps.right.sum() == (engine.run(x).argmax(1) == y)[picks].sum()


def test_same_seed_same_day():
    def once():
        day = generated_day(read_device("camera"), 1, 4, 300.0, 0.5)
        return simulate(day, Scripted(["full", "saver"]))

    for one, other in zip(once().steps, once().steps, strict=True):
        np.testing.assert_array_equal(one, other)


def trace(**columns):
    times = np.arange(0, 1200, 60.0)
    return Trace(times, {name: np.broadcast_to(value, times.shape) for name, value in columns.items()}, "monday.csv")


def test_a_recorded_day():
    memory = np.r_[np.full(10, 0.5), np.full(10, np.nan)]
    given = trace(state_of_charge=0.4, charging=np.arange(20) >= 15, memory_available=memory)
    day = recorded_day(given, read_device("camera"), requests_per_s=1.0, start_s=12 * 3600.0)
    assert day.state_of_charge == 0.4 and day.inputs.steps == 20 and day.inputs.start_s == 12 * 3600
    assert np.isnan(day.sensed["memory_available"]).sum() == 10 and np.isnan(day.sensed["screen_brightness"]).all()
    assert day.inputs.memory_available[0].tolist() == [0.5] * 10 + [1.0] * 10
    assert day.inputs.requests.sum() == len(day.requests) > 500
    assert day.requests.arrival_s[0] >= 0 and day.requests.arrival_s[-1] < 1200
    assert any("memory_available is unknown in 10 of 20 steps" in note for note in day.notes)
    log = simulate(day, "saver")
    assert log.steps.charging.tolist() == [0.0] * 15 + [1.0] * 5


def test_recorded_load_is_that_of_apps():
    camera = read_device("camera")
    given = trace(state_of_charge=0.4, cpu_load=np.r_[np.full(10, 0.5), np.full(10, np.nan)])
    day = recorded_day(given, replace(camera, apps_power_w=0.1), requests_per_s=1.0)
    assert day.inputs.apps_load[0].tolist() == [0.5] * 10 + [0.0] * 10 and np.isnan(day.sensed["apps_load"]).sum() == 10
    assert any("apps_load is unknown in 10 of 20 steps" in note for note in day.notes)
    alone = recorded_day(given, camera, requests_per_s=1.0)
    assert not alone.sensed["apps_load"].any() and not any("apps_load" in note for note in alone.notes)


def test_bad_input():
    device = read_device("camera")
    with pytest.raises(ConfigError, match=r"monday\.csv: has no state_of_charge"):
        recorded_day(trace(charging=0), device)
    with pytest.raises(ConfigError, match="state_of_charge must be from 0 to 1"):
        generated_day(device, state_of_charge=1.5)
    with pytest.raises(TraceError, match=r"row 1.*out of order"):
        Trace(np.array([1.0, 0.0]), {"charging": np.zeros(2)}, "bad.csv")
    day = day_of([1.0], 2)
    with pytest.raises(AssignmentError, match="no operating point 'balanced'"):
        simulate(day, "saver", FakeEngine(names=("saver", "full")))
    with pytest.raises(ConfigError, match=r"days=day\.inputs"):
        Simulation(worlds.scenario(day_of([1.0], 2).inputs, COSTS), day)
    simulation = Simulation(worlds.scenario(day.inputs, COSTS), day)
    simulation.run(FakeEngine(), "saver")
    with pytest.raises(ConfigError, match="the day is over"):
        simulation.run(FakeEngine(), "saver")

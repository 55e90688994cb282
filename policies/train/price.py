"""Learns the price of charge for `policies.price` from days of training devices, by policy iteration in hindsight.

What happens to a device, its charger and its requests, does not depend on what it does. So a day that is known tells
what *any* charge would have returned in it under a policy, not only the charge that the policy came to have (Sinclair
et al., "Hindsight Learning for MDPs with Exogenous Inputs", ICML 2023, arXiv 2207.06272). Each round goes through all
days backwards on a grid of charge, with the policy of the round before, and takes down by how much a little more charge
would have returned more. The mean of that, given what the device can know at the time, is the price: a network is
fitted to it by least squares (Longstaff and Schwartz, Review of Financial Studies 14, 2001; Puterman, "Markov Decision
Processes", 1994, sec. 6.4). A device's days are all learned from; on the first one it remembers nothing.

The mean says nothing of how often charge runs out: the price is then raised by CAUTION, which keeps more days for a
little less return.

On the grid all requests of a step are served in time, and temperature is that of the air; the networks are compared on
validation devices in the world itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caq.errors import CaqError, TrainingError
from caq.progress import progress
from policies.arrays import read_arrays, write_arrays
from policies.evaluate import fixed, of_policy, play, starts
from policies.mlp import named
from policies.other_draw import OtherDraw
from policies.points import PointTable
from policies.price import INPUTS, PriceModel, PricePolicy, inputs
from policies.recall import HOURS, Recall, Usual
from policies.train.days import Lives, each_day, lives_of
from simulators.battery import Battery
from simulators.envs import Scenario
from simulators.world import surroundings

Floats = NDArray[np.float32]
LEVELS = 31
#: Half of the charge over which a slope is taken.
AROUND = 0.03
WIDTH, BATCH, RATES = 32, 8192, (3e-3, 1.5e-4)
VALIDATION_DEVICES = 512
#: Of the price learned. Chosen on validation devices, of which it keeps 95.9 % of the days that can be kept; a price as
#: learned keeps 92.6 % (docs/policies.md).
CAUTION = np.float32(1.3)


@dataclass(frozen=True)
class Run:
    """rounds: of policy iteration. train_devices: of whose days it learns. steps: of the fit in each round.
    checkpoint: a file to go on from if it is there, and to write."""

    rounds: int
    seed: int
    train_devices: int
    checkpoint: Path | None = None
    steps: int = 3000


def usual_of(scenario: Scenario) -> Usual:
    """What is usual in the days of a scenario."""
    days = scenario.days
    hours = _hours(scenario).astype(np.intp)
    rate = np.bincount(hours, days.requests.mean(0), HOURS) / np.bincount(hours, minlength=HOURS) / days.step_s
    return Usual(rate, float((days.charging >= 0.5).mean()))


def _hours(scenario: Scenario) -> NDArray[np.float64]:
    days = scenario.days
    return np.asarray((days.start_s + np.arange(days.steps) * days.step_s) / 3600 % 24)


def situations(lives: Lives, usual: Usual) -> Floats:
    """(T, D, 16) inputs of the network at each step of `each_day`, state of charge 0."""
    recall = Recall(usual, len(lives.days.days))
    steps = [row for part in lives for row in _live(part, recall)]
    return np.concatenate(np.split(np.stack(steps), len(steps) // lives.days.days.steps), axis=1)


def _live(scenario: Scenario, recall: Recall) -> list[Floats]:
    """Inputs (D, 16) of each step; `recall` goes on."""
    days, plugged = scenario.days, scenario.clock().charging
    count, found, always = len(days), [], np.ones(len(days), bool)
    for t, hour in enumerate(_hours(scenario)):
        hours, passed = np.full(count, hour), np.full(count, days.step_s if t else 0.0)
        rate = days.requests[:, t - 1] / days.step_s
        recall.note(*map(recall.xp.of, (passed, hours, plugged[:, t], rate, always)))
        found.append(inputs(np.zeros(count), plugged[:, t], hours, recall))
    return found


class Hindsight:
    """What charge would have returned in each of D days, by levels of it."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.points = PointTable.of(scenario.costs, scenario.device.memory_bytes)
        self.grid = np.linspace(0, 1, LEVELS, dtype=np.float32)
        self._battery = Battery(scenario.battery, np.float32)
        self._given = surroundings(scenario.device, scenario.days)
        self._start = self._battery.start(np.tile(self.grid.astype(np.float64), len(scenario.days)))
        self._scale = scenario.device.requests_per_s * scenario.days.step_s

    def slopes(self, choose: Callable[[int], NDArray[np.intp]]) -> NDArray[np.float16]:
        """(T, D, L) what a millijoule more after step t would have returned, in correct answers, if from t on `choose`
        had chosen the points (D, L) of each step for each level of charge."""
        s, days = self.scenario, self.scenario.days
        count = len(days)
        on, off = np.zeros((2, count, LEVELS), np.float32)
        found = np.empty((days.steps, count, LEVELS), np.float16)
        per_mj = np.float32(self._scale / (1e3 * s.battery.energy_j))
        accuracy, energy = (c.astype(np.float32) for c in (self.points.accuracy, self.points.energy_j))
        for t in range(days.steps - 1, -1, -1):
            requests = self._given.requests[:, t, None].astype(np.float32)
            point = choose(t)
            power = self._given.other_w[:, t, None].astype(np.float32) + energy[point] * requests / days.step_s
            after, cut = self._move(t, power)
            low, high = np.maximum(after - AROUND, 0), np.minimum(after + AROUND, 1)
            slope = (self._at(on, high) - np.where(low > 0, self._at(on, low), self._at(off, low))) / (high - low)
            found[t] = slope * per_mj
            worth = requests / self._scale
            served = worth * accuracy[point] + np.where(cut, self._at(off, after), self._at(on, after))
            charged, _ = self._move(t, np.zeros((count, LEVELS), np.float32))
            again = np.where(charged >= s.device.restart_above, self._at(on, charged), self._at(off, charged))
            on, off = served, again - s.weights.dropped * worth - s.weights.off
        return found

    def _move(self, t: int, power_w: Floats) -> tuple[Floats, NDArray[np.bool_]]:
        """(D, L) charge after a step that draws a power, and whether it was cut off."""
        net = (power_w - self._given.charger_w[:, t, None].astype(np.float32)).reshape(-1)
        air = np.repeat(self._given.ambient_c[:, t].astype(np.float32), LEVELS)
        state, voltage = self._battery.step(self._start, net, air, self.scenario.days.step_s)
        cut = self._battery.cut_off(state, voltage)
        return state.state_of_charge.astype(np.float32).reshape(power_w.shape), cut.reshape(power_w.shape)

    def _at(self, value: Floats, charge: Floats) -> Floats:
        """(D, L) values (D, L) at charges (D, L), lines between levels."""
        at = charge * np.float32(LEVELS - 1)
        low = np.minimum(at.astype(np.int32), LEVELS - 2)
        row = np.arange(len(value), dtype=np.int32)[:, None] * LEVELS + low
        left = value.reshape(-1).take(row)
        left += (at - low.astype(np.float32)) * (value.reshape(-1).take(row + 1) - left)
        return left


def priced(hindsight: Hindsight, situation: Floats, model: PriceModel) -> Callable[[int], NDArray[np.intp]]:
    """The points (D, L) that a model takes in each step, by levels of charge; changes of the point cost nothing."""
    points, available = hindsight.points, hindsight.scenario.days.memory_available
    energy, count = (points.energy_j * 1e3).astype(np.float32), situation.shape[1]

    def choose(t: int) -> NDArray[np.intp]:
        rows = np.repeat(situation[t], LEVELS, axis=0)
        rows[:, 0] = np.tile(hindsight.grid, count)
        worth = points.accuracy.astype(np.float32) - model.price(rows)[:, None] * energy
        short = points.memory > available[:, t, None]
        worth[np.repeat(short, LEVELS, axis=0)] = -np.inf
        chosen = points.fitting(worth.argmax(1), np.repeat(available[:, t], LEVELS))
        return chosen.reshape(count, LEVELS)

    return choose


def fit(layers: Any, situation: Floats, slopes: NDArray[np.float16], steps: int, seed: int) -> float:
    """Fits the layers to the slopes. The mean squared error of the second half of the steps."""
    import torch

    rng = np.random.default_rng(seed)
    optimizer = torch.optim.Adam(layers.parameters(), RATES[0])
    falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, RATES[1] / RATES[0], steps)
    losses = []
    shape = slopes.shape
    for _ in range(steps):
        t, day, level = (rng.integers(n, size=BATCH) for n in shape)
        rows = situation[t, day]
        rows[:, 0] = level / (LEVELS - 1)
        wanted = torch.from_numpy(slopes[t, day, level].astype(np.float32))
        loss = torch.nn.functional.mse_loss(layers(torch.from_numpy(rows))[:, 0], wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        falling.step()
        losses.append(loss.item())
    return float(np.mean(losses[steps // 2 :]))


def new_layers(situation: Floats, seed: int) -> Any:
    """A network of which the first layer also brings the inputs to mean 0 and deviation 1."""
    import torch

    torch.manual_seed(seed)
    sizes = (len(INPUTS), WIDTH, WIDTH, 1)
    parts: list[Any] = []
    for i, (width, outputs) in enumerate(pairwise(sizes)):
        parts += [torch.nn.Linear(width, outputs)] + ([torch.nn.ReLU()] if i < len(sizes) - 2 else [])
    mean, deviation = situation.mean((0, 1)), situation.std((0, 1))
    mean[0], deviation[0] = 0.5, np.float32(12**-0.5)  # levels of charge are even
    first = parts[0]
    with torch.no_grad():
        first.weight /= torch.from_numpy(np.maximum(deviation, 1e-6))
        first.bias -= first.weight @ torch.from_numpy(mean)
    return torch.nn.Sequential(*parts)


def export(layers: Any, scenario: Scenario, situation: Floats, usual: Usual, fallback: str, source: str) -> PriceModel:
    """The model of layers, with the range of the situations it was fitted to."""
    linear = [part for part in layers if hasattr(part, "weight")]
    low, high = situation.min((0, 1)), situation.max((0, 1))
    low[0], high[0] = 0.0, 1.0
    return PriceModel(
        source,
        PointTable.of(scenario.costs, scenario.device.memory_bytes),
        tuple(np.ascontiguousarray(part.weight.detach().numpy().T) for part in linear),
        tuple(part.bias.detach().numpy().copy() for part in linear),
        "relu",
        low,
        high,
        usual,
        OtherDraw.of(scenario.device),
        scenario.weights.switch,
        fallback,
    )


def cautious(model: PriceModel) -> PriceModel:
    """The same with all prices CAUTION times as high."""
    *weights, weight = model.weights
    *biases, bias = model.biases
    return replace(model, weights=(*weights, weight * CAUTION), biases=(*biases, bias * CAUTION))


def train(run: Run) -> tuple[PriceModel, list[tuple[int, float]]]:
    """The model after all rounds, and (round, return on validation devices) of each round.

    A run that goes on from its checkpoint ends as one that was never cut. Raises TrainingError on a checkpoint that is
    of another run, done, or cannot be read.
    """
    lives, validation = lives_of("train", run.train_devices), lives_of("validation", VALIDATION_DEVICES)
    charge, scenario = starts(validation.days, seed=0), each_day(lives)
    usual = usual_of(scenario)
    situation, hindsight = situations(lives, usual), Hindsight(scenario)
    layers = new_layers(situation, run.seed)
    done, curve = _resume(run, layers)
    points = hindsight.points
    returns = [play(lives.days, starts(lives.days, 0), fixed(i)).returns.mean() for i in range(len(points))]
    best = int(np.argmax(returns))
    always = np.full((len(scenario.days), LEVELS), best)
    source = f"policies.train.price, seed {run.seed}, {run.train_devices} devices"
    model = export(layers, scenario, situation, usual, points.names[best], source)
    with progress("training prices", run.rounds - done) as advance:
        for number in range(done, run.rounds):
            choose = priced(hindsight, situation, model) if number else lambda t: always
            loss = fit(layers, situation, hindsight.slopes(choose), run.steps, run.seed * 1000 + number)
            model = export(layers, scenario, situation, usual, points.names[best], source)
            policy = PricePolicy(cautious(model))
            returned = float(play(validation.days, charge, of_policy(policy, validation.before)).returns.mean())
            curve.append((number + 1, round(returned, 3)))
            if run.checkpoint is not None:
                _save(run, number + 1, curve, model)
            advance(f"round {number + 1}, loss {loss:.4f}, return {returned:.1f}")
    return cautious(model), curve


def _fingerprint(run: Run) -> NDArray[np.int64]:
    return np.array([run.steps, run.seed, run.train_devices], np.int64)


def _save(run: Run, rounds: int, curve: list[tuple[int, float]], model: PriceModel) -> None:
    assert run.checkpoint is not None
    fresh = run.checkpoint.with_name(run.checkpoint.name + ".new")
    write_arrays(
        fresh,
        run=_fingerprint(run),
        rounds=np.float64(rounds),
        curve=np.array(curve, np.float64),
        **named(model.weights, model.biases),
    )
    fresh.replace(run.checkpoint)


def _resume(run: Run, layers: Any) -> tuple[int, list[tuple[int, float]]]:
    """Rounds done and their returns; puts the checkpoint's weights into the layers."""
    if run.checkpoint is None or not run.checkpoint.exists():
        return 0, []
    import torch

    try:
        arrays = read_arrays(run.checkpoint)
        rounds, curve = int(arrays.number("rounds")), arrays.floats("curve")
        same = np.array_equal(arrays.integers("run"), _fingerprint(run))
        linear = [part for part in layers if hasattr(part, "weight")]
        with torch.no_grad():
            for i, part in enumerate(linear):
                part.weight.copy_(torch.from_numpy(arrays.floats(f"weight_{i}").T))
                part.bias.copy_(torch.from_numpy(arrays.floats(f"bias_{i}")))
    except (CaqError, RuntimeError) as error:
        raise TrainingError(f"{run.checkpoint}: cannot be resumed from: {error}") from error
    if not same:
        raise TrainingError(f"{run.checkpoint}: is of a run with other steps, seed or devices")
    if rounds >= run.rounds:
        raise TrainingError(f"{run.checkpoint}: has {rounds} rounds; ask for more than that")
    return rounds, [(int(number), float(value)) for number, value in curve]

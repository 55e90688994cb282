"""What all algorithms share: a run with checkpoints, evaluation on validation devices, and the network for a device."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caq.errors import TrainingError
from caq.progress import Advance, progress
from policies.evaluate import fixed, of_policy, play, starts
from policies.learned import LearnedPolicy, Network, rows
from policies.pacing import PacingPolicy
from policies.points import PointTable
from policies.seen import Seen
from policies.train.days import days_of
from policies.train.habits import habits_of
from policies.train.sb3 import BaseCallback
from policies.train.vec_env import DaysVecEnv
from simulators.envs import Scenario
from simulators.world import World

VALIDATION_DEVICES = 256


@dataclass(frozen=True)
class Run:
    """steps: of all devices together. train_devices: of whose days is drawn. evaluate_every: steps between two looks at
    the validation devices. checkpoint: a file to go on from if it is there, and to write; tensorboard: a folder."""

    steps: int
    seed: int
    train_devices: int
    evaluate_every: int
    checkpoint: Path | None = None
    tensorboard: Path | None = None


class _Look(BaseCallback):
    """Plays the validation devices now and then, keeps the best network, saves the checkpoint, moves the bar."""

    def __init__(self, algorithm: ModuleType, run: Run, validation: Scenario, advance: Advance) -> None:
        super().__init__()
        self.algorithm, self.run_, self.validation, self.advance = algorithm, run, validation, advance
        self.best: tuple[float, Network] | None = None
        self.curve: list[tuple[int, float]] = []
        self._charge = starts(validation, seed=0)
        self._due = 0

    def _on_training_start(self) -> None:
        self.look()

    def _on_step(self) -> bool:
        if self.num_timesteps >= self._due:
            self.look()
        return True

    def _on_training_end(self) -> None:
        self.look()

    def look(self) -> None:
        self._due = self.num_timesteps + self.run_.evaluate_every
        network = export(
            self.algorithm,
            self.model,
            self.validation,
            f"{self.algorithm.__name__.rpartition('.')[2].upper()}, seed {self.run_.seed}",
        )
        played = play(self.validation, self._charge, of_policy(LearnedPolicy(network)))
        mean = float(played.returns.mean())
        self.curve.append((self.num_timesteps, mean))
        self.logger.record("validation/return", mean)
        self.logger.record("validation/days_with_no_gap", float((played.off_steps == 0).mean()))
        if self.best is None or mean > self.best[0]:
            self.best = mean, network
        self.advance(f"{self.num_timesteps:,} steps, return {mean:.1f}")
        if self.run_.checkpoint is not None:
            save(self.model, self.run_.checkpoint)


def save(model: Any, path: Path) -> None:
    """Writes a checkpoint so that a kill leaves the old one or the new one."""
    fresh = path.with_name(path.name + ".new.zip")
    model.save(fresh)
    fresh.replace(path)


def train(algorithm: ModuleType, run: Run, arguments: Any = None) -> tuple[Network, list[tuple[int, float]]]:
    """The network that did best on the validation devices in this run, and (steps, return) of each look at them.

    A run that goes on keeps weights, optimizer and step count; its days are drawn anew, and DQN's memory starts empty.
    Raises TrainingError on a checkpoint that is done, or cannot be read.
    """
    scenario = days_of("train", run.train_devices)
    arguments = arguments or algorithm.Arguments()
    env = DaysVecEnv(scenario, arguments.devices, run.seed)
    resumed = run.checkpoint is not None and run.checkpoint.exists()
    if resumed:
        try:
            model = algorithm.ALGORITHM.load(run.checkpoint, env=env, device="cpu")
        except Exception as error:  # a zip of pickles and tensors: anything can be wrong with it
            raise TrainingError(f"{run.checkpoint}: cannot be resumed from: {error}") from error
        if model.num_timesteps >= run.steps:
            raise TrainingError(f"{run.checkpoint}: has {model.num_timesteps} steps; ask for more than that")
        env.seed(run.seed + model.num_timesteps)
    else:
        model = algorithm.make(env, run.seed, run.tensorboard, arguments)
        if hasattr(algorithm, "imitate"):
            algorithm.imitate(model, *paced(scenario), run.seed)
    done = model.num_timesteps
    looks = 2 + (run.steps - done) // run.evaluate_every
    with progress(f"training {model.__class__.__name__}", looks) as advance:
        look = _Look(algorithm, run, days_of("validation", VALIDATION_DEVICES), advance)
        model.learn(run.steps - done, callback=look, reset_num_timesteps=not resumed, log_interval=1)
    assert look.best is not None  # it looks at the start
    return with_range(look.best[1], scenario), look.curve


def paced(scenario: Scenario) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
    """Inputs (M, 10) and points (M,) of pacing in the scenario's days."""
    policy = PacingPolicy(PointTable.of(scenario.costs, scenario.device.memory_bytes), habits_of(scenario))
    inputs: list[NDArray[np.float32]] = []
    choose = of_policy(policy)

    def note(world: World, seen: Seen) -> NDArray[np.intp]:
        inputs.append(rows(seen, len(policy.points), scenario.power_high_w))
        return choose(world, seen)

    played = play(scenario, starts(scenario, seed=0), note)
    return np.concatenate(inputs), played.points.reshape(-1)


def export(algorithm: ModuleType, model: Any, scenario: Scenario, source: str) -> Network:
    """The network of a model of stable-baselines3; its range is still all that an observation can be."""
    space = model.observation_space
    linear = algorithm.layers(model)
    points = PointTable.of(scenario.costs, scenario.device.memory_bytes)
    return Network(
        source,
        points,
        tuple(np.ascontiguousarray(part.weight.detach().numpy().T) for part in linear),
        tuple(part.bias.detach().numpy().copy() for part in linear),
        algorithm.ACTIVATION,
        np.asarray(space.low, np.float32),
        np.asarray(space.high, np.float32),
        scenario.power_high_w,
        points.names[0],
    )


def with_range(network: Network, scenario: Scenario) -> Network:
    """The same with the range of contexts in the days of the scenario, played by it, and as fallback the fixed point
    that does best in them."""
    charge = starts(scenario, seed=0)
    policy = LearnedPolicy(network)
    low, high = np.full(network.low.shape, np.inf), np.full(network.low.shape, -np.inf)

    def choose(world: World, seen: Seen) -> Any:
        inputs = rows(seen, len(network.points), network.power_high_w)
        np.minimum(low, inputs.min(0), out=low)
        np.maximum(high, inputs.max(0), out=high)
        return policy.choose(seen)

    play(scenario, charge, choose)
    returns = [play(scenario, charge, fixed(i)).returns.mean() for i in range(len(network.points))]
    # Any point may be the active one when a policy starts, also one that it never takes.
    low[-1], high[-1] = 0.0, 1.0
    return Network(
        network.source,
        network.points,
        network.weights,
        network.biases,
        network.activation,
        low.astype(np.float32),
        high.astype(np.float32),
        network.power_high_w,
        network.points.names[int(np.argmax(returns))],
    )

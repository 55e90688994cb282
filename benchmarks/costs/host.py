"""Rows of this machine: how long the engine takes for each step of a network's native plan, and for all of them.

Networks have random weights (benchmarks.models_onnx). Whole inferences are timed at 8 bits everywhere, at each narrower
width, and with only the weights or only the activations narrow; steps at 8 bits. A time is the least of ROUNDS means.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from benchmarks.models_onnx import calibrated, our_model
from benchmarks.topologies import GEMV, LARGE, TINY, Topology
from caq.engine import AnyPlan, Engine
from caq.graph import Assignment, Graph, LayerWidths
from caq.native import NativePlan
from caq.progress import progress

ROUNDS = 25
#: Seconds that one round of an assignment takes, at least.
ROUND_S = 2e-3
NETWORKS = (
    *TINY,
    Topology("mlp", "MLP", (784,), 10),
    *LARGE,
    *GEMV,
)


class Step(NamedTuple):
    """A step of a network at 8 bits: the operations that it carries out, and seconds."""

    ops: tuple[int, ...]
    seconds: float


class Timed(NamedTuple):
    """A network on this machine: its steps at 8 bits, and seconds of an inference at each assignment by name."""

    name: str
    graph: Graph
    steps: tuple[Step, ...]
    inference: Mapping[str, float]


def assignments(graph: Graph) -> Iterator[tuple[str, Assignment]]:
    """Widths everywhere, of the weights only, and of the activations only, by name; w8a8 first."""
    yield "w8a8", graph.uniform(8)
    for width in (w for w in graph.widths if w < 8):
        uniform = graph.uniform(width)
        yield f"w{width}a{width}", uniform
        yield f"w{width}a8", tuple(LayerWidths(width, 8) for _ in uniform)
        yield f"w8a{width}", tuple(LayerWidths(8, pair.activation) for pair in uniform)


class Subject:
    """A network with a plan for each assignment, and the least times so far."""

    def __init__(self, topology: Topology, seed: int) -> None:
        data, prepared = calibrated(topology, seed)
        model = our_model(topology, data, prepared, topology.widths, seed)
        engine = Engine(model)
        assert engine.program is not None
        self.name, self.graph, self.program, self.sample = topology.name, model.graph, engine.program, data.x_test[0]
        self.plans = {name: engine.build(assignment) for name, assignment in assignments(model.graph)}
        self.steps = np.full(len(self.program.order), np.inf)
        self.inference = dict.fromkeys(self.plans, math.inf)
        self.repeat = math.ceil(ROUND_S / _mean(self.plans["w8a8"], self.sample, 1))

    def turn(self) -> None:
        """Times everything once."""
        eight = self.plans["w8a8"]
        assert isinstance(eight, NativePlan)
        self.steps = np.minimum(self.steps, eight.time_steps(self.sample, self.repeat, 1))
        for name, plan in self.plans.items():
            self.inference[name] = min(self.inference[name], _mean(plan, self.sample, self.repeat))

    def timed(self) -> Timed:
        steps = tuple(Step(self.program.ops_of(i), float(seconds)) for i, seconds in enumerate(self.steps))
        return Timed(self.name, self.graph, steps, self.inference)


def measure(seed: int) -> list[Timed]:
    """Makes the networks and times them; networks take turns, as do their assignments."""
    shown = sys.stderr.isatty()
    with progress("networks", len(NETWORKS), shown) as advance:
        subjects = []
        for topology in NETWORKS:
            subjects.append(Subject(topology, seed))
            advance(topology.name)
    with progress("rounds", ROUNDS, shown) as advance:
        for _ in range(ROUNDS):
            for subject in subjects:
                subject.turn()
            advance("")
    return [subject.timed() for subject in subjects]


def _mean(plan: AnyPlan, x: np.ndarray, repeat: int) -> float:
    """CPU seconds of an inference, after one that warms the caches: another process may have the CPU in between."""
    plan.run_sample(x)
    start = time.thread_time()
    for _ in range(repeat):
        plan.run_sample(x)
    return (time.thread_time() - start) / repeat

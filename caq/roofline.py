"""Where the time of an inference goes, step by step, and how far each step is from what this machine can do.

A step's *roof* is the larger of two times: its multiply-accumulates at the machine's peak, and its bytes at the
machine's bandwidth (Williams, Waterman and Patterson, "Roofline", CACM 52(4), 2009). Both are measured first, with the
engine's own kernels on layers that are made up to suit them:

    peak        of the instruction set in use: the fastest of a few layers whose weights and activations fit the caches
    bandwidth   a matrix times a vector, of 16 KiB, four times that and so on, up to twice the last-level cache (at most
                128 MiB); with the best instruction set, because others wait for their arithmetic, not for memory

A step is timed over and over, so its bytes come from the cache that holds them: its bandwidth is that of a matrix of as
many bytes, between the measured sizes interpolated over their logarithm (Ilic, Pratas and Sousa, "Cache-aware Roofline
model", IEEE CAL 13(1), 2014). So a share of the roof compares a step with the best that these kernels reach, not with a
data sheet; noise, and a kernel that beats the made-up layers, can bring it above 1.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from caq.context.files import children, read_text
from caq.engine import Engine
from caq.errors import ConfigError
from caq.graph import Graph, LayerWidths, Op, Shape
from caq.model import Model, OperatingPoint
from caq.native import NativePlan, Tables
from caq.plan import Parameters
from caq.program import Program, isa_names
from caq.quant import plane_bytes
from caq.scaling import InputScaling

#: Of each kind of timing: long beside a clock's reading, short beside what disturbs it. The least of many counts.
ROUND_SECONDS = 0.002
FEWEST_ROUNDS = 3
#: Input shape and output channels of the layers of which the fastest shows the peak.
PEAK_LAYERS: tuple[tuple[Shape, int], ...] = (((6, 8, 256), 64), ((6, 8, 1024), 64), ((1, 1, 1024), 64))
PEAK_ROUNDS = 20
SMALLEST_MATRIX, LARGEST_MATRIX = 2**14, 2**27
CACHE_IF_UNKNOWN = 2**25


class Roof(NamedTuple):
    """The least time that a step could take, and whether "compute" or "memory" bounds it."""

    time_s: float
    bound: str


@dataclass(frozen=True)
class Machine:
    """What one core can do at most.

    isa: name of the instruction set in use, whose peak `macs_per_s` is; bandwidths: (bytes, bytes/s), ascending sizes.
    """

    isa: str
    macs_per_s: float
    bandwidths: tuple[tuple[int, float], ...]

    def roof(self, macs: int, moved_bytes: int) -> Roof:
        """For `macs` multiply-accumulates on `moved_bytes` bytes, which are read or written once."""
        sizes, bandwidths = zip(*self.bandwidths, strict=True)
        bandwidth = float(np.interp(math.log(max(1, moved_bytes)), np.log(sizes), bandwidths))
        return max(Roof(macs / self.macs_per_s, "compute"), Roof(moved_bytes / bandwidth, "memory"))


@dataclass(frozen=True)
class StepProfile:
    """One step of a program.

    widths: of its layer; None of a step without weights. unpack_s: the part of `time_s` that a lean plan unpacks its
    weights in. plane_bytes: of its weights as they are stored at their width; panel_bytes: as the kernel reads them;
    tensor_bytes: of the tensors that it reads and writes.
    """

    name: str
    kind: str
    widths: LayerWidths | None
    time_s: float
    unpack_s: float
    macs: int
    plane_bytes: int
    panel_bytes: int
    tensor_bytes: int
    roof: Roof


@dataclass(frozen=True)
class Profile:
    """One operating point on one core.

    inference_s: of an inference in a batch: the steps, encoding the sample, and caches that other steps have used.
    run_s: of `Engine.run` with one sample: what it takes longer is the call from Python. panel_bytes: of all panels
    that the plan holds, 0 if it is lean. arena_bytes: of the memory of one inference; peak_bytes: of its tensors as
    they were placed; lower_bound_bytes: of the most that are alive at once. gate_s: of a conditional point's gate, with
    its call from Python; 0 where there is none.
    """

    machine: Machine
    lean: bool
    steps: tuple[StepProfile, ...]
    inference_s: float
    run_s: float
    panel_bytes: int
    arena_bytes: int
    peak_bytes: int
    lower_bound_bytes: int
    gate_s: float = 0.0

    @property
    def steps_s(self) -> float:
        """Sum of the steps, each timed on its own."""
        return sum(step.time_s for step in self.steps)

    @property
    def roof_s(self) -> float:
        """Sum of the steps' roofs."""
        return sum(step.roof.time_s for step in self.steps)


def profile(engine: Engine, seconds: float = 1.0, branch: int = 0) -> Profile:
    """Measures this machine, then times the engine's operating point, at one of its branches, for about `seconds`.

    Each figure is the least of the rounds that this leaves time for. The sample is random: no kernel's time depends on
    the codes. Raises ConfigError on an engine of reference kernels, and on a branch that there is not.
    """
    plan, program = engine.plan, engine.program
    if program is None or not isinstance(plan, NativePlan):
        raise ConfigError("kernels: only native ones are profiled, not 'reference'; leave kernels='reference' out")
    if not 0 <= branch < len(plan.assignments):
        raise ConfigError(f"branch {branch}: point {engine.point!r} has {len(plan.assignments)}, counted from 0")
    whole = plan
    plan = plan.branches[branch]
    machine = measure_machine(list(isa_names())[program.isa])
    model = engine.model
    x = np.random.default_rng(0).integers(0, 128, model.sample_shape).astype(model.scaling.dtype)

    def run(count: int) -> None:
        for _ in range(count):
            engine.run_plan(plan, x)

    run(1)
    repeat = _repeats(_seconds(run, 1))
    batch = np.stack([x] * repeat)
    times = unpacking = [math.inf] * len(program.order)
    run_s = inference_s = gate_s = math.inf
    rounds, start = 0, time.perf_counter()
    while rounds < FEWEST_ROUNDS or time.perf_counter() - start < seconds:
        rounds += 1
        times = list(map(min, times, plan.time_steps(x, repeat, 1)))
        unpacking = list(map(min, unpacking, plan.time_unpacking(repeat, 1)))
        inference_s = min(inference_s, _seconds(plan.run, batch) / repeat)
        run_s = min(run_s, _seconds(run, repeat) / repeat)
        gate_s = min(gate_s, whole.time_gate(repeat))
    return Profile(
        machine,
        program.lean,
        tuple(_step(program, plan, machine, i, times[i], unpacking[i]) for i in range(len(times))),
        inference_s,
        run_s,
        plan.weight_bytes,
        program.arena_bytes,
        program.peak_bytes,
        program.lower_bound_bytes,
        gate_s,
    )


def _repeats(once_s: float) -> int:
    """How often to do in a round what takes about `once_s`."""
    return max(1, math.ceil(ROUND_SECONDS / once_s))


def _seconds(call: Callable[..., object], *args: object) -> float:
    start = time.perf_counter()
    call(*args)
    return time.perf_counter() - start


def _step(program: Program, plan: NativePlan, machine: Machine, at: int, time_s: float, unpack_s: float) -> StepProfile:
    graph, index = program.model.graph, program.order[at]
    op, tensors = graph.ops[index], program.tensor_bytes_of(at)
    layer = next((layer for layer in graph.layers if layer.op == index), None)
    if layer is None:
        return StepProfile(program.name_of(at), op.kind, None, time_s, 0.0, 0, 0, 0, tensors, machine.roof(0, tensors))
    widths = plan.assignment[layer.index]
    planes = widths.weight * plane_bytes(layer.weights)
    panel = program.panel_bytes_of(at, widths.weight)
    roof = machine.roof(layer.macs, tensors + panel + (planes if program.lean else 0))
    kind = _kind(op, graph.shapes[op.inputs[0]], graph.shapes[index + 1])
    return StepProfile(program.name_of(at), kind, widths, time_s, unpack_s, layer.macs, planes, panel, tensors, roof)


def _kind(conv: Op, source: Shape, target: Shape) -> str:
    if conv.groups > 1 and conv.groups == source[2] == conv.channels:
        return "depthwise"
    if conv.kernel != (1, 1):
        return "conv"
    return "linear" if target[:2] == (1, 1) else "pointwise"


def measure_machine(isa: str) -> Machine:
    """Measures one core: the peak of the instruction set `isa`, and the bandwidth of every cache and of the memory.

    Takes about a second, and three times the largest matrix in memory. Raises ConfigError if `isa` does not run here.
    """
    best = [name for name, reason in isa_names().items() if not reason][-1]
    return Machine(
        isa,
        max(_ideal(isa, shape, channels)[0] for shape, channels in PEAK_LAYERS),
        tuple(_ideal(best, (1, 1, fan_in), size // fan_in)[1] for size, fan_in in _matrices(last_level_cache())),
    )


def _matrices(cache_bytes: int) -> list[tuple[int, int]]:
    """Bytes of the matrices that show the bandwidth, ascending, and their fan-in: long rows need little else."""
    largest = min(max(2 * cache_bytes, 4 * SMALLEST_MATRIX), LARGEST_MATRIX)
    sizes = [SMALLEST_MATRIX]
    while 4 * sizes[-1] < largest:
        sizes.append(4 * sizes[-1])
    return [(size, min(8192, size // 64)) for size in (*sizes, largest)]


def last_level_cache(root: Path = Path("/")) -> int:
    """Bytes of the first core's largest cache, by /sys; 32 MiB where it does not tell."""
    texts = [read_text(path) or "" for path in children(root / "sys/devices/system/cpu/cpu0/cache", "index*/size")]
    sizes = [int(text[:-1]) << 10 for text in texts if text[:-1].isdigit() and text.endswith("K")]
    return max(sizes, default=CACHE_IF_UNKNOWN)


def _ideal(isa: str, shape: Shape, channels: int) -> tuple[float, tuple[int, float]]:
    """Times one pointwise layer at w8a8: its multiply-accumulates per second, and its (bytes, bytes per second)."""
    graph = Graph(shape, (Op("conv", (0,), "made-up", channels=channels),), (8,))
    assignment, inputs = graph.uniform(8), shape[2]
    parameters = Parameters(
        np.full((1, channels), 2**14, np.int16),
        np.full((1, 1), -26, np.int8),
        np.zeros((1, channels), np.int16),
        np.zeros((1, 1), np.int8),
        np.ones(2, np.float32),
        np.ones((1, 1), np.float32),
    )
    scaling = InputScaling(
        "uint8",
        1.0,
        np.full(inputs, 2**14, np.int16),
        np.full(inputs, -128 * 2**14, np.int32),
        np.full(inputs, 14, np.uint8),
        np.ones(inputs, np.float32),
    )
    rng = np.random.default_rng(0)
    planes = rng.integers(0, 256, (8, graph.plane_bytes), np.uint8)
    point = OperatingPoint("w8a8", assignment, 0.0, "accuracy", 1, graph.cost(assignment))
    program = Program(Model(graph, parameters, planes, scaling, shape, (point,), (), "classify", {}), isa=isa)
    plan = NativePlan(program, Tables(program, assignment, None))
    x = rng.integers(0, 256, shape, np.uint8)
    [once] = plan.time_steps(x, 1, 2)
    [time_s] = plan.time_steps(x, _repeats(once), PEAK_ROUNDS)
    moved = program.panel_bytes_of(0, 8) + program.tensor_bytes_of(0)
    return graph.layers[0].macs / time_s, (moved, moved / time_s)

"""Small models made from a seed, without torch: what the tests of graph, plan, artifact and engine run on."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from caq.graph import Assignment, Graph, LayerWidths, Op, Shape
from caq.model import TASKS, Model, OperatingPoint
from caq.plan import Parameters
from caq.quant import activation_range, multiplicand_unit, pack
from caq.scaling import InputScaling
from caq.sections import FLIP_FEATURES, StoredCore, StoredFeatures, StoredFlips, features_read

WIDTHS = (2, 4, 8)


def model(seed: int, dtype: str = "uint8", widths: tuple[int, ...] = WIDTHS, task: str = "classify") -> Model:
    """A model with every kind of operation, a point for each width, and a mixed one with its own parameter set."""
    rng = np.random.default_rng(seed)
    return from_graph(random_graph(rng, widths), rng, dtype, task)


def with_core(model: Model, count: int = 6) -> Model:
    """With a core set of random samples, of every class."""
    rng, graph = np.random.default_rng(count), model.graph
    x = rng.integers(-128, 128, (count, *graph.input_shape)).astype(np.int8)
    y = (np.arange(count) % math.prod(graph.shapes[-1])).astype(np.int16)
    return model.replace(core=StoredCore(x, y, rng.integers(0, 9, (count, len(graph.widths))).astype(np.uint8)))


def with_features(model: Model, count: int = 7) -> Model:
    """With random features of so many samples, of every class."""
    rng, graph = np.random.default_rng(count), model.graph
    last, size = graph.layers[-1], features_read(graph)
    signed = graph.signed(graph.ops[last.op].inputs[0])
    codes = []
    for width in graph.widths:
        low, high = activation_range(graph.uniform(width)[-1].activation, signed)
        codes.append(rng.integers(low, high + 1, (count, size)).astype(np.int8 if signed else np.uint8))
    y = (np.arange(count) % math.prod(graph.shapes[-1])).astype(np.int16)
    return model.replace(features=StoredFeatures(np.stack(codes), y))


def with_flip_network(model: Model, hidden: int = 3) -> Model:
    """With a flip network that moves each latent along the evidence, and random feedback."""
    rng, graph = np.random.default_rng(hidden), model.graph
    widths, outputs = len(graph.widths), math.prod(graph.shapes[-1])
    w1, w2 = np.zeros((widths, hidden, FLIP_FEATURES), np.int8), np.zeros((widths, hidden), np.int8)
    w1[:, 0, 0], w2[:, 0] = 32, 32
    feedback = rng.integers(-127, 128, (graph.channels, outputs)).astype(np.int8)
    b1, b2 = np.zeros((widths, hidden), np.int16), np.full(widths, 300, np.int16)
    return model.replace(flip_network=StoredFlips(w1, b1, w2, b2, feedback))


def tiny(seed: int = 0, dtype: str = "uint8") -> Model:
    """One conv and one linear layer: the smallest file that still has all tensors, for tests of every bit."""
    rng = np.random.default_rng(seed)
    ops = (
        Op("conv", (0,), "c", channels=2, kernel=(2, 2), low=0, high=255),
        Op("avg_pool", (1,), "p", kernel=(2, 2)),
        Op("conv", (2,), "f", channels=2, low=-(2**15), high=2**15 - 1),
    )
    return from_graph(Graph((3, 3, 1), ops, (2, 8)), rng, dtype)


def from_graph(graph: Graph, rng: np.random.Generator, dtype: str = "uint8", task: str = "classify") -> Model:
    """A model of `graph` with random weights, and parameters that keep its activations within their ranges."""
    planes = np.concatenate(
        [pack(rng.integers(-128, 128, layer.weights).astype(np.int8)) for layer in graph.layers], axis=1
    )
    assignments: list[tuple[str, Assignment, int | None]] = [
        (f"w{w}a{w}", graph.uniform(w), None) for w in graph.widths
    ]
    assignments.append(("mixed", mixed(graph, rng), len(graph.widths)))
    points = tuple(
        OperatingPoint(name, a, float(rng.integers(0, 101)) / 100, TASKS[task], 50, graph.cost(a), own)
        for name, a, own in assignments
    )
    scaling = random_scaling(rng, dtype, graph.input_shape[2])
    outputs = math.prod(graph.shapes[-1])
    labels = tuple(f"class {i}" for i in range(outputs)) if task == "classify" else ()
    provenance: dict[str, str | int | float] = {"seed": 1, "note": "random"}
    parameters = random_parameters(graph, rng, scaling.step, [a for _, a, _ in assignments])
    return Model(graph, parameters, planes, scaling, graph.input_shape, points, labels, task, provenance)


def mixed(graph: Graph, rng: np.random.Generator) -> Assignment:
    """Any widths that the graph serves."""
    return tuple(
        LayerWidths(int(rng.choice(graph.widths)), 8 if layer.reads_input else int(rng.choice(graph.widths)))
        for layer in graph.layers
    )


def samples(m: Model, count: int, seed: int = 0) -> NDArray[np.generic]:
    """A batch of random samples in the model's dtype and layout."""
    rng = np.random.default_rng(seed)
    shape = (count, *m.sample_shape)
    if m.scaling.dtype == "uint8":
        return rng.integers(0, 256, shape).astype(np.uint8)
    return rng.normal(0, 1, shape).astype(m.scaling.dtype)


def random_graph(rng: np.random.Generator, widths: tuple[int, ...] = WIDTHS) -> Graph:
    """A general conv; depthwise, grouped, residual, pooling and clamping blocks in any order; a head."""
    b = _Builder(rng, (int(rng.integers(5, 9)), int(rng.integers(5, 9)), int(rng.integers(1, 4))))
    b.conv(0, channels=4, kernel=(3, 2), stride=b.pair(1, 2), padding=b.padding(1), relu=True)
    blocks = [b.depthwise, b.grouped, b.residual, b.pools, b.clamp]
    for i in rng.permutation(len(blocks)):
        blocks[i]()
    last = b.last
    h, w, c = b.shapes[last]
    b.add(Op("reshape", (last,), "flat", shape=(1, 1, h * w * c)), (1, 1, h * w * c))
    b.add(Op("conv", (b.last,), "head", channels=3, low=-(2**15), high=2**15 - 1), (1, 1, 3))
    return Graph(b.shapes[0], tuple(b.ops), widths)


class _Builder:
    def __init__(self, rng: np.random.Generator, input_shape: Shape) -> None:
        self.rng = rng
        self.ops: list[Op] = []
        self.shapes: list[Shape] = [input_shape]

    @property
    def last(self) -> int:
        return len(self.ops)

    def pair(self, low: int, high: int) -> tuple[int, int]:
        return int(self.rng.integers(low, high + 1)), int(self.rng.integers(low, high + 1))

    def padding(self, most: int) -> tuple[int, int, int, int]:
        top, bottom, left, right = (int(v) for v in self.rng.integers(0, most + 1, 4))
        return top, bottom, left, right

    def add(self, op: Op, shape: Shape) -> int:
        self.ops.append(op)
        self.shapes.append(shape)
        return self.last

    def conv(
        self,
        source: int,
        channels: int,
        kernel: tuple[int, int] = (1, 1),
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int, int, int] = (0, 0, 0, 0),
        dilation: tuple[int, int] = (1, 1),
        groups: int = 1,
        relu: bool = False,
    ) -> int:
        h, w, _ = self.shapes[source]
        low, high = (0, 255) if relu else (-128, 127)
        shape = (
            (h + padding[0] + padding[1] - dilation[0] * (kernel[0] - 1) - 1) // stride[0] + 1,
            (w + padding[2] + padding[3] - dilation[1] * (kernel[1] - 1) - 1) // stride[1] + 1,
            channels,
        )
        name = f"conv{self.last}"
        op = Op("conv", (source,), name, channels, kernel, stride, padding, dilation, groups, low, high)
        return self.add(op, shape)

    def depthwise(self) -> None:
        c = self.shapes[self.last][2]
        # Padding as long as the dilated kernel's reach, split unevenly, keeps the size.
        self.conv(self.last, c, (3, 1), (1, 1), (3, 1, 0, 0), (2, 1), groups=c)

    def grouped(self) -> None:
        relu = bool(self.rng.integers(2))
        self.conv(self.last, 4, (1, 2), (1, 1), (0, 0, 0, 1), groups=2, relu=relu)

    def residual(self) -> None:
        start = self.last
        branch = self.conv(start, self.shapes[start][2], (3, 3), (1, 1), (1, 1, 1, 1))
        inputs = (start, branch) if self.rng.integers(2) else (start, branch, start)
        self.add(Op("add", inputs, f"add{self.last}", low=-128, high=127), self.shapes[start])

    def pools(self) -> None:
        start = self.last
        h, w, c = self.shapes[start]
        shape = ((h - 1) // 2 + 1, w, c)
        window = {"kernel": (2, 2), "stride": (2, 1), "padding": (0, 1, 1, 0)}
        parts = [self.add(Op("max_pool", (start,), "max", **window), shape)]  # type: ignore[arg-type]
        parts.append(self.add(Op("avg_pool", (start,), "avg", low=-100, high=90, **window), shape))  # type: ignore[arg-type]
        self.add(Op("concat", tuple(parts), "cat"), (*shape[:2], 2 * c))

    def clamp(self) -> None:
        self.add(Op("clamp", (self.last,), f"clamp{self.last}", low=0, high=200), self.shapes[self.last])


def random_parameters(
    graph: Graph, rng: np.random.Generator, input_step: float, assignments: list[Assignment]
) -> Parameters:
    """A set an assignment: mantissas of every sign, some of them 0, and exponents that fit the fan-in."""
    sets, layers = len(assignments), len(graph.layers)
    gain = rng.integers(9000, 32768, (sets, graph.channels)) * rng.choice(
        [-1, 0, 1], graph.channels, p=[0.3, 0.05, 0.65]
    )
    bias = rng.integers(-32767, 32768, (sets, graph.channels))
    gain_exponent, bias_exponent = np.zeros((2, sets, layers), np.int8)
    for layer in graph.layers:
        wide = graph.ops[layer.op].high > 255
        for s in range(sets):
            unit = multiplicand_unit(assignments[s][layer.index].weight)
            # Weights have a deviation of 74, which this makes up for, so that signals neither die out nor saturate.
            scale = unit / (32 * math.sqrt(layer.fan_in)) * (2**7 if wide else 1)
            gain_exponent[s, layer.index] = math.floor(math.log2(scale)) - 15
            bias_exponent[s, layer.index] = -3 if wide else -11
    steps = np.zeros(len(graph.shapes), np.float32)
    steps[0] = input_step
    for i, op in enumerate(graph.ops):
        own = op.kind not in ("max_pool", "reshape")
        steps[i + 1] = rng.uniform(0.01, 0.03) if own else steps[op.inputs[0]]
    ratios = np.array([[2.0 ** (8 - w) * rng.uniform(0.2, 0.5) if w < 8 else 1.0 for w in graph.widths]] * layers)
    return Parameters(
        gain.astype(np.int16),
        gain_exponent,
        bias.astype(np.int16),
        bias_exponent,
        steps,
        ratios.astype(np.float32),
    )


def random_scaling(rng: np.random.Generator, dtype: str, channels: int) -> InputScaling:
    """Puts the whole range of uint8, or three deviations of a normal float32, on the range of the codes."""
    integer = dtype == "uint8"
    return InputScaling(
        dtype,
        0.0234375,
        rng.integers(16384, 32768, channels).astype(np.int16),
        (rng.integers(-140, -100, channels) * 2**14 if integer else rng.integers(-(2**20), 2**20, channels)).astype(
            np.int32
        ),
        np.full(channels, 14 if integer else 22, np.uint8),
        np.ones(channels, np.float32) if integer else rng.uniform(5000, 8000, channels).astype(np.float32),
    )

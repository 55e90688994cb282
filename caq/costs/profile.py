"""The device cost model: latency and energy of each operation of a graph at an assignment, linear in what it does.

An operation is counted in TERMS, and a profile has a price for each, in seconds and in joules:

    compute  = sum of price x count over mac_*, output, element, unpacked_weight and unpacked_bit
    memory   = bytes of weights x price of their level + activation_byte x its price
    latency  = compute + memory (combine: sum), or max(compute, memory) (combine: max); + op
    energy   = the same sum in joules + power x latency
    an inference: the sum over its operations, + input + inference

It is the roofline (Williams et al., "Roofline: an insightful visual performance model", CACM 2009) with an overhead an
operation, split by kinds of layer as in nn-Meter (Zhang et al., MobiSys 2021); energy by MACs and by bytes of each
memory level follows Horowitz ("Computing's energy problem", ISSCC 2014).

How widths enter: `arithmetic: byte` is a CPU without sub-byte arithmetic, where a MAC takes the same at every width;
`arithmetic: bit_serial` multiplies one bit of a weight by one bit of an activation at a time, so a MAC takes w x a / 64
of one at 8 x 8 bits (Umuroglu et al., "BISMO", FPL 2018). `weights: packed` reads w bits a weight, and where arithmetic
is in bytes unpacks those below 8 bits first; `unpacked` reads a byte a weight, as from panels that were made before;
`panels` likewise, but 4 or 2 bits in linear layers of at most so many, as caq's AVX-512 kernels do.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from caq.conditional import Branch, gate_cost
from caq.graph import Assignment, Graph, Layer, LayerWidths
from caq.quant import TOP_WIDTH, plane_bytes

ARITHMETIC = ("byte", "bit_serial")
WEIGHTS = ("packed", "unpacked", "panels")
COMBINE = ("sum", "max")
#: What kind a source is of.
SOURCES = ("measured", "fitted", "literature", "assumed")

#: What is computed; each is a count of an operation.
COMPUTE_TERMS = {
    "mac_conv": "multiply-accumulates of a convolution, in whole tiles",
    "mac_pointwise": "of a convolution of 1 x 1 at more than one position",
    "mac_depthwise": "of a convolution with a filter a channel",
    "mac_linear": "of a layer with one position, which uses every weight once",
    "output": "codes written, each requantized",
    "element": "codes read by an operation without weights, once for each output",
    "unpacked_weight": "weights below 8 bits of a layer, where weights are packed and arithmetic is in bytes",
    "unpacked_bit": "bits of these",
    "narrowed": "codes narrowed to a layer's activation width below 8 bits, where arithmetic is in bytes",
}
#: All that has a price, but the bytes of weights, whose price belongs to a level of memory.
TERMS = {
    **COMPUTE_TERMS,
    "activation_byte": "bytes of codes read and written: a byte each, or read at their own width if bit-serial",
    "op": "operations",
    "input": "values of a sample, encoded",
    "inference": "inferences",
}


class Source(NamedTuple):
    """Where a figure is from: a kind of SOURCES, and a text that lets others find or repeat it."""

    kind: str
    text: str


class Quantity(NamedTuple):
    """A figure in SI units (s, J, W, Hz) or bytes; `source` is a key of the profile's `sources`."""

    value: float
    source: str


class Level(NamedTuple):
    """A level of memory where weights lie: capacity in bytes, latency (s) and energy (J) to read a byte."""

    name: str
    capacity: Quantity
    latency: Quantity
    energy: Quantity


class Tile(NamedTuple):
    """MACs are done in whole tiles of this many output channels x positions x terms of a sum, full or not."""

    outputs: int = 1
    positions: int = 1
    fan_in: int = 1


class LayerCost(NamedTuple):
    """What one operation costs, modelled."""

    name: str
    latency_s: float
    energy_j: float
    weight_bytes: int
    activation_bytes: float


class DeviceCost(NamedTuple):
    """What one inference costs, modelled: the operations together, and the overhead of an inference."""

    latency_s: float
    energy_j: float
    weight_bytes: int
    activation_bytes: float


@dataclass(frozen=True)
class Profile:
    """A device; see `caq.costs.read` for its file. `latency` (s) and `energy` (J) are prices of TERMS; what is left out
    costs nothing. `power` (W) is drawn as long as an inference takes.
    """

    name: str
    title: str
    arithmetic: str
    weights: str
    combine: str
    tile: Tile
    memory: tuple[Level, ...]
    latency: Mapping[str, Quantity]
    energy: Mapping[str, Quantity]
    power: Quantity
    sources: Mapping[str, Source]

    def layer_costs(self, graph: Graph, assignment: Assignment) -> list[LayerCost]:
        """What each operation of `graph` costs, in the order of execution; convs are its layers.

        Raises AssignmentError on an assignment that the graph cannot serve.
        """
        graph.check_assignment(assignment)
        level = self.level(graph, assignment)
        layers = {layer.op: (layer, pair) for layer, pair in zip(graph.layers, assignment, strict=True)}
        return [self.op_cost(graph, i, level, *layers.get(i, ())) for i in range(len(graph.ops))]

    def cost(self, graph: Graph, assignment: Assignment) -> DeviceCost:
        """What one inference costs. Raises AssignmentError on an assignment that the graph cannot serve."""
        costs = [self.overhead(graph), *self.layer_costs(graph, assignment)]
        return DeviceCost(
            math.fsum(c.latency_s for c in costs),
            math.fsum(c.energy_j for c in costs),
            sum(c.weight_bytes for c in costs),
            math.fsum(c.activation_bytes for c in costs),
        )

    def point_cost(
        self, graph: Graph, branches: Sequence[Branch], shares: Sequence[float], tensor: int | None
    ) -> DeviceCost:
        """What an inference costs on average when each branch of an operating point is taken by its share of them.

        tensor: that the gate reads, None where there is none. Bytes of weights are rounded.
        """
        costs = [self.cost(graph, branch.assignment) for branch in branches]
        mean = [math.fsum(map(operator.mul, shares, values)) for values in zip(*costs, strict=True)]
        if tensor is not None:
            level = max((self.level(graph, b.assignment) for b in branches), key=self.memory.index)
            own = self.gate_cost(graph, level, tensor, len(branches))
            mean = [a + b for a, b in zip(mean, own[1:], strict=True)]
        return DeviceCost(mean[0], mean[1], round(mean[2]), mean[3])

    def overhead(self, graph: Graph) -> LayerCost:
        """What an inference costs beside its operations."""
        counts = self.beside(graph)
        latency = _sum(self.latency, counts)
        return LayerCost("inference", latency, _sum(self.energy, counts) + self.power.value * latency, 0, 0.0)

    def beside(self, graph: Graph) -> dict[str, float]:
        """Counts of an inference's own terms."""
        return {"input": float(math.prod(graph.input_shape)), "inference": 1.0}

    def level(self, graph: Graph, assignment: Assignment) -> Level:
        """The first level of memory that holds all weights at `assignment`, or else the last."""
        return self.fitting(sum(self.weight_bytes(graph, *pair) for pair in zip(graph.layers, assignment, strict=True)))

    def fitting(self, needed: int) -> Level:
        """The first level of memory that holds so many bytes, or else the last."""
        return next((level for level in self.memory if needed <= level.capacity.value), self.memory[-1])

    def weight_bytes(self, graph: Graph, layer: Layer, pair: LayerWidths) -> int:
        """Bytes of weights that an inference reads for a layer."""
        bits = pair.weight if self.weights == "packed" else TOP_WIDTH
        if self.weights == "panels" and pair.weight <= 4 and kind(graph, layer) == "linear":
            bits = 4 if pair.weight > 2 else 2
        return plane_bytes(layer.weights) * bits

    def op_cost(
        self, graph: Graph, op: int, level: Level, layer: Layer | None = None, pair: LayerWidths | None = None
    ) -> LayerCost:
        """What operation `op` costs; `layer` and its `pair` of widths for a conv, None for others."""
        weight_bytes = self.weight_bytes(graph, layer, pair) if layer is not None and pair is not None else 0
        name = graph.ops[op].name or graph.ops[op].kind
        return self._priced(name, self.counts(graph, op, layer, pair), weight_bytes, level)

    def gate_cost(self, graph: Graph, level: Level, tensor: int, branches: int) -> LayerCost:
        """What a conditional gate costs: the sums of the tensor's channels, and a linear layer on them."""
        codes, own = float(math.prod(graph.shapes[tensor])), gate_cost(graph, tensor, branches)
        counts = {"op": 2.0, "output": float(graph.shapes[tensor][2] + branches), "element": codes}
        counts |= {"activation_byte": codes, "mac_linear": float(own.macs)}
        return self._priced("gate", counts, own.weight_bytes, level)

    def _priced(self, name: str, counts: Mapping[str, float], weight_bytes: int, level: Level) -> LayerCost:
        activation_bytes = counts["activation_byte"]
        memory_counts = {"activation_byte": activation_bytes}
        compute_counts = {term: count for term, count in counts.items() if term in COMPUTE_TERMS}

        def parts(prices: Mapping[str, Quantity], per_byte: float) -> tuple[float, float]:
            return _sum(prices, compute_counts), weight_bytes * per_byte + _sum(prices, memory_counts)

        compute, memory = parts(self.latency, level.latency.value)
        latency = max(compute, memory) if self.combine == "max" else compute + memory
        calls = {"op": counts["op"]}
        latency += _sum(self.latency, calls)
        energy = sum(parts(self.energy, level.energy.value)) + _sum(self.energy, calls)
        return LayerCost(name, latency, energy + self.power.value * latency, weight_bytes, activation_bytes)

    def counts(
        self, graph: Graph, op: int, layer: Layer | None = None, pair: LayerWidths | None = None
    ) -> dict[str, float]:
        """How often each of TERMS occurs in operation `op`; terms that are left out do not. Bytes of weights are none
        of them.
        """
        spec, outputs = graph.ops[op], math.prod(graph.shapes[op + 1])
        inputs = sum(math.prod(graph.shapes[t]) for t in spec.inputs)
        counts = {"output": float(outputs), "op": 1.0, "activation_byte": float(inputs + outputs)}
        if layer is None or pair is None:
            window = math.prod(spec.kernel) if spec.kind in ("max_pool", "avg_pool") else len(spec.inputs)
            counts["element"] = float(outputs * (1 if spec.kind == "concat" else window))
            return counts
        serial = self.arithmetic == "bit_serial"
        share = pair.weight * pair.activation / TOP_WIDTH**2 if serial else 1.0
        counts[f"mac_{kind(graph, layer)}"] = share * self._tiled_macs(graph, layer)
        if serial:
            counts["activation_byte"] = inputs * pair.activation / TOP_WIDTH + outputs
            return counts
        if self.weights == "packed" and pair.weight < TOP_WIDTH:
            counts["unpacked_weight"] = float(layer.weights)
            counts["unpacked_bit"] = float(layer.weights * pair.weight)
        if pair.activation < TOP_WIDTH:
            counts["narrowed"] = float(inputs)
        return counts

    def _tiled_macs(self, graph: Graph, layer: Layer) -> float:
        groups = graph.ops[layer.op].groups
        rows, columns, _ = graph.shapes[layer.op + 1]
        sizes = zip((layer.channels // groups, rows * columns, layer.fan_in), self.tile, strict=True)
        return float(groups * math.prod(-(-size // step) * step for size, step in sizes))


def kind(graph: Graph, layer: Layer) -> str:
    """`linear`, `depthwise`, `pointwise` or `conv`: the mac_ term of a layer."""
    rows, columns, _ = graph.shapes[layer.op + 1]
    if rows * columns == 1:
        return "linear"
    if graph.ops[layer.op].groups > 1 and layer.weight_shape[3] == 1:
        return "depthwise"
    return "pointwise" if graph.ops[layer.op].kernel == (1, 1) else "conv"


def _sum(prices: Mapping[str, Quantity], counts: Mapping[str, float]) -> float:
    return sum(prices[term].value * count for term, count in counts.items() if term in prices)

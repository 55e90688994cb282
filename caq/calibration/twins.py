"""A calibration: parameters of each set, and twins of sets, which inputs of another domain take.

A set's *twin* is a second row of parameters with the same widths. A gate, as that of a conditional point
(caq.conditional), tells by channel sums of an early tensor whether an input is of the source or of the domain that
streams now; what is before that tensor, both have alike. So a set can follow the stream without forgetting the source,
and an inference still takes one native call.

S sets of the factory, C channels of the tensor. Twins are sets S to 2 S - 1 of the parameters that run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from caq.calibration.sets import CODES, ROWS, ParameterSet, with_rows
from caq.calibration.state import Arrays
from caq.conditional import SCORE_LIMIT, Branch, ConditionalGate, check_gate, check_prefix
from caq.errors import SchemaError, StateFormatError
from caq.graph import Cost, Graph, Layer
from caq.model import Model, OperatingPoint
from caq.plan import Parameters
from caq.planes import check_head

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: The most that may be computed before the gate, of all multiply-accumulates: both domains share its statistics.
_BEFORE = 0.25


def gate_tensor(graph: Graph) -> int:
    """What gates read: the first tensor of 8 bits that several operations read, if little is before it; or the input.

    What one operation alone reads may be written at that one's width, which says less. All that is made before the
    tensor is read before it.
    """
    total, spent = sum(layer.macs for layer in graph.layers), 0
    macs = {layer.op: layer.macs for layer in graph.layers}
    for t in range(1, len(graph.ops)):
        spent += macs.get(t - 1, 0)
        if spent > _BEFORE * total:
            break
        low, high = graph.ranges[t]
        read = {made for op in graph.ops[:t] for made in op.inputs}
        if not set(range(1, t)) <= read:
            continue
        if low >= -128 and high <= 255 and sum(t in op.inputs for op in graph.ops) > 1:
            return t
    return 0


def layers_before(graph: Graph) -> list[Layer]:
    """What a set and its twin have alike."""
    tensor = gate_tensor(graph)
    return [layer for layer in graph.layers if layer.op < tensor]


def gate_shift(graph: Graph) -> int:
    """By how much channel sums of that tensor are shifted, so that no score can leave 32 bits."""
    tensor = gate_tensor(graph)
    rows, columns, channels = graph.shapes[tensor]
    largest = rows * columns * max(map(abs, graph.ranges[tensor]))
    return max(0, math.ceil(math.log2(largest / (SCORE_LIMIT // (8 * 128 * channels)))))


def gate_of(graph: Graph, which: ParameterSet, sets: int, weights: NDArray[np.integer], bias: int) -> ConditionalGate:
    """The gate of a set, of `sets`, and its twin: an input takes the twin where weights (C,) x sums + bias > 0."""
    row = tuple(int(w) for w in weights)
    branches = Branch(which.assignment, which.row), Branch(which.assignment, sets + which.row)
    return ConditionalGate(gate_tensor(graph), gate_shift(graph), ((0,) * len(row), row), (0, int(bias)), branches)


@dataclass(frozen=True, eq=False)
class Twins:
    """parameters: of the twins, in the rows of their sets, with a head; gates: of those sets that have one in force."""

    parameters: Parameters
    gates: Mapping[ParameterSet, ConditionalGate]

    def with_sets(self, sets: tuple[ParameterSet, ...], other: Twins) -> Twins:
        """With some sets of `other`."""
        gates = {which: gate for which, gate in self.gates.items() if which not in sets}
        gates |= {which: gate for which, gate in other.gates.items() if which in sets}
        return Twins(with_rows(self.parameters, sets, other.parameters), gates)

    def to_arrays(self, channels: int) -> dict[str, NDArray[Any]]:
        """For `caq.calibration.state`; channels: of the gates' tensor."""
        sets = len(self.parameters.gain)
        weights, bias, on = np.zeros((sets, channels), np.int8), np.zeros(sets, np.int32), np.zeros(sets, np.uint8)
        for which, gate in self.gates.items():
            weights[which.row], bias[which.row], on[which.row] = gate.weights[1], gate.bias[1], 1
        rows = {name: getattr(self.parameters, name) for name in (*ROWS, "head")}
        return {**rows, "gate_weights": weights, "gate_bias": bias, "on": on}

    @classmethod
    def from_arrays(cls, arrays: Arrays, model: Model, sets: tuple[ParameterSet, ...]) -> Twins:
        """What `to_arrays` gave. Raises StateFormatError on anything else."""
        factory, graph = model.parameters, model.graph
        count, channels = len(factory.gain), graph.shapes[gate_tensor(graph)][2]
        weights = _typed(arrays, "gate_weights", (count, channels), np.int8)
        bias, on = _typed(arrays, "gate_bias", (count,), np.int32), _typed(arrays, "on", (count,), np.uint8)
        rows = {n: _typed(arrays, n, getattr(factory, n).shape, getattr(factory, n).dtype.type).copy() for n in ROWS}
        parameters = factory.replace(**rows)
        try:
            parameters.check(graph)
            head = _typed(arrays, "head", (count, graph.layers[-1].weights), np.int8)
            check_head(head, count, graph.layers[-1].weights)
            parameters = parameters.replace(head=head.copy())
            found = {w: gate_of(graph, w, count, weights[w.row], int(bias[w.row])) for w in sets if on[w.row]}
            both = side_by_side(factory, parameters.replace(head=None))
            for gate in found.values():
                check_gate(graph, gate)
                check_prefix(graph, both, gate)
        except SchemaError as e:
            raise StateFormatError(f"domain: {e}") from None
        return cls(parameters, found)


def _typed(arrays: Arrays, name: str, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    found = arrays.get(name)
    if found is None or found.shape != shape or found.dtype != dtype:
        raise StateFormatError(f"domain: {name} is expected as {np.dtype(dtype).name} {shape}")
    return found


class Calibration(NamedTuple):
    """Parameters of each set, and the twins that some have."""

    parameters: Parameters
    twins: Twins | None = None

    def with_sets(self, sets: tuple[ParameterSet, ...], other: Calibration) -> Calibration:
        """With some sets of `other`, and their twins."""
        if len(sets) == len(self.parameters.gain):
            return Calibration(other.parameters, other.twins or self.twins)
        twins = other.twins if self.twins is None or other.twins is None else self.twins.with_sets(sets, other.twins)
        return Calibration(with_rows(self.parameters, sets, other.parameters), twins)

    def is_same(self, other: Calibration) -> bool:
        """Whether the other is of the very same objects."""
        return self.parameters is other.parameters and self.twins is other.twins

    @property
    def gates(self) -> Mapping[ParameterSet, ConditionalGate]:
        """Of sets whose inputs take them or their twins."""
        return {} if self.twins is None else self.twins.gates

    def of(self, model: Model) -> Model:
        """A `coded` model with these parameters, and a point by its set's name for each gate."""
        if not self.gates or self.twins is None:
            return model.replace(parameters=self.parameters, points=())
        points = [
            OperatingPoint(which.name, which.assignment, 0.0, "accuracy", 0, Cost(0, 0, 0), which.row, gate)
            for which, gate in self.gates.items()
        ]
        both = side_by_side(self.parameters, self.twins.parameters)
        return model.replace(parameters=both, points=tuple(points))

    def of_points(self, model: Model) -> Model:
        """A model with these parameters; points that run at a set with a gate have that gate."""
        if not self.gates or self.twins is None:
            return model.replace(parameters=self.parameters)
        by_row, widths = {which.row: gate for which, gate in self.gates.items()}, model.graph.widths
        points = []
        for p in model.points:
            row = p.parameter_set
            if row is None and p.assignment in (uniform := [model.graph.uniform(w) for w in widths]):
                row = uniform.index(p.assignment)
            gate = None if p.gate is not None or row is None else by_row.get(row)
            fits = gate is not None and gate.branches[0].assignment == p.assignment  # a set may have several points
            points.append(p._replace(gate=gate) if fits else p)
        if not any(p.gate is not None for p in points):
            return model.replace(parameters=self.parameters)
        both = side_by_side(self.parameters, self.twins.parameters)
        return model.replace(parameters=both, points=tuple(points))


def side_by_side(parameters: Parameters, twins: Parameters) -> Parameters:
    """(2 S, ...) of both."""
    names = [*ROWS, *(name for name in CODES if getattr(parameters, name) is not None)]
    return parameters.replace(**{n: np.concatenate([getattr(parameters, n), getattr(twins, n)]) for n in names})

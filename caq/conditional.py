"""Conditional gates: an inference decides, from what it has computed so far, at which widths it computes the rest.

The operations up to a tensor of the graph, the *prefix*, run as in the first branch. Then the gate sums each channel of
that tensor over all positions, multiplies the sums with a small matrix of integers, and the largest score picks the
*branch* whose assignment and parameter set the remaining operations run with. All of it is exact:

    x_c = (sum over positions of the codes of channel c) >> shift
    score_b = sum over c of weights[b, c] * x_c + bias[b]
    branch = the lowest b whose score is the largest

What the prefix writes must not depend on the branch. Besides the prefix's own widths and parameters that are the
activation widths of layers after it that say what one of its layers writes (caq.plan.written).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from caq.errors import AssignmentError, SchemaError
from caq.graph import Assignment, Cost, Graph, Layer
from caq.plan import Parameters, only_readers
from caq.record import NamedTuple

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_BRANCHES = 16
#: Bits of the gate's weights and of the sums that they are multiplied with, as bit-MACs count them.
GATE_WIDTHS = (8, 32)
#: Scores, and sums before they are shifted, stay below this.
SCORE_LIMIT = 2**31


class Branch(NamedTuple):
    """One way to compute an inference. taken: by how many of the samples that the point's score is of."""

    assignment: Assignment
    parameter_set: int | None
    taken: int = 0


class ConditionalGate(NamedTuple):
    """What picks a branch.

    tensor: that the gate reads; 0 is the network's input. weights: (B, C), from -128 to 127; bias: (B,) of 32 bits;
    both in the order of `branches`, of which there are 2 to MAX_BRANCHES.
    """

    tensor: int
    shift: int
    weights: tuple[tuple[int, ...], ...]
    bias: tuple[int, ...]
    branches: tuple[Branch, ...]


def check_gate(graph: Graph, gate: ConditionalGate) -> None:
    """Raises SchemaError unless the gate fits `graph`, its branches agree on the prefix, and no score can overflow."""
    count, t = len(gate.branches), gate.tensor
    if not 2 <= count <= MAX_BRANCHES:
        raise SchemaError(f"a gate has 2 to {MAX_BRANCHES} branches, not {count}")
    if not 0 <= t < len(graph.ops) or graph.ranges[t][1] > 255 or graph.ranges[t][0] < -128:
        raise SchemaError(f"the gate reads tensor {t}; it may read those of 8 bits from 0 to {len(graph.ops) - 1}")
    rows, columns, channels = graph.shapes[t]
    if len(gate.weights) != count or len(gate.bias) != count or any(len(row) != channels for row in gate.weights):
        raise SchemaError(f"weights are not {count} rows of {channels}, the channels of tensor {t}, with a bias each")
    if not all(-128 <= w <= 127 for row in gate.weights for w in row) or not 0 <= gate.shift < 32:
        raise SchemaError("weights are -128 to 127, and the shift is 0 to 31")
    largest = rows * columns * max(graph.ranges[t][1], -graph.ranges[t][0])
    most = (largest >> gate.shift) + 1  # a negative sum may grow by one when it is shifted
    scores = [sum(map(abs, row)) * most + abs(bias) for row, bias in zip(gate.weights, gate.bias, strict=True)]
    if largest >= SCORE_LIMIT or max(scores) >= SCORE_LIMIT:
        raise SchemaError("a score may leave 32 bits: shift the sums further, or scale weights and bias down")
    first = gate.branches[0].assignment
    fixed = _fixed_activations(graph, t)
    for at, branch in enumerate(gate.branches):
        try:
            graph.check_assignment(branch.assignment)
        except AssignmentError as e:
            raise SchemaError(f"branch {at}: {e}") from None
        for layer, one, other in zip(graph.layers, first, branch.assignment, strict=True):
            if (layer.op < t and one != other) or (layer.index in fixed and one.activation != other.activation):
                raise SchemaError(
                    f"branch {at}: layer {layer.name!r} is {other} there and {one} in branch 0, but it decides what is "
                    "computed before the gate, so all branches must have it alike"
                )


def check_prefix(graph: Graph, parameters: Parameters, gate: ConditionalGate) -> None:
    """Raises SchemaError unless the branches of a gate that `check_gate` passed have the prefix's parameters alike."""
    for at, branch in enumerate(gate.branches):
        if branch.parameter_set is not None and not 0 <= branch.parameter_set < len(parameters.gain):
            raise SchemaError(f"branch {at}: no parameter set {branch.parameter_set}")
    for layer in graph.layers:
        if layer.op >= gate.tensor:
            break
        span = slice(layer.first_channel, layer.first_channel + layer.channels)
        rows = _rows(graph, gate, layer)
        for values, where in (
            (parameters.gain, span),
            (parameters.bias, span),
            (parameters.gain_exponent, layer.index),
            (parameters.bias_exponent, layer.index),
        ):
            if (values[rows, where] != values[rows[0], where]).any():
                raise SchemaError(f"layer {layer.name!r}: is before the gate, but its branches' gains or biases differ")


def prefix_rows(graph: Graph, parameters: Parameters, gates: Iterable[ConditionalGate]) -> NDArray[np.bool_]:
    """Which layers (sets, layers) are before some gate that takes branches with this set: alike in all of them."""
    found = np.zeros((len(parameters.gain), len(graph.layers)), bool)
    for gate in gates:
        for layer in graph.layers:
            if layer.op < gate.tensor:
                found[_rows(graph, gate, layer), layer.index] = True
    return found


def _rows(graph: Graph, gate: ConditionalGate, layer: Layer) -> list[int]:
    """The parameter set of a layer in each branch."""
    return [
        graph.widths.index(b.assignment[layer.index].weight) if b.parameter_set is None else b.parameter_set
        for b in gate.branches
    ]


def _fixed_activations(graph: Graph, tensor: int) -> set[int]:
    """Layers after the gate whose activation width is what a layer before it writes."""
    return {
        reader
        for writer, reader in only_readers(graph).items()
        if graph.layers[writer].op < tensor <= graph.layers[reader].op
    }


def free_layers(graph: Graph, tensor: int) -> tuple[list[int], list[int]]:
    """Layers whose weight width may differ between branches of a gate that reads `tensor`, and whose activation's may.

    Where the network's input is read the activation width is 8 bits anyway.
    """
    after = [layer.index for layer in graph.layers if layer.op >= tensor]
    fixed = _fixed_activations(graph, tensor)
    return after, [i for i in after if i not in fixed and not graph.layers[i].reads_input]


def crossing(graph: Graph, tensor: int) -> set[int]:
    """Tensors that are made before a gate on `tensor` and read after it; the gate's own is one of them."""
    return {t for op in graph.ops[tensor:] for t in op.inputs if t <= tensor}


def choose(gate: ConditionalGate, codes: NDArray[np.int32]) -> NDArray[np.int64]:
    """The branch (N,) of each sample, by the codes (N, H, W, C) of the gate's tensor: the definition of right."""
    sums = codes.sum(axis=(1, 2), dtype=np.int64) >> gate.shift
    scores = sums @ np.array(gate.weights, np.int64).T + np.array(gate.bias, np.int64)
    return scores.argmax(axis=1)


def gate_cost(graph: Graph, tensor: int, branches: int) -> Cost:
    """What a gate itself costs: a byte a weight, 4 a bias, and multiply-accumulates at GATE_WIDTHS."""
    macs = branches * graph.shapes[tensor][2]
    return Cost(macs + 4 * branches, macs * GATE_WIDTHS[0] * GATE_WIDTHS[1], macs)


def mean_cost(graph: Graph, gate: ConditionalGate) -> Cost:
    """The mean cost of an inference, rounded, over the samples that were scored; of all branches alike if none were."""
    taken = [b.taken for b in gate.branches] if any(b.taken for b in gate.branches) else [1] * len(gate.branches)
    costs = [graph.cost(b.assignment) for b in gate.branches]
    own, total = gate_cost(graph, gate.tensor, len(gate.branches)), sum(taken)
    means = [
        (2 * sum(n * value for n, value in zip(taken, values, strict=True)) + total) // (2 * total)
        for values in zip(*costs, strict=True)
    ]
    return Cost(*(mean + extra for mean, extra in zip(means, own, strict=True)))

"""Models with conditional points, made from a seed: any tensor that a gate may read, any branches."""

from __future__ import annotations

import numpy as np

from caq.conditional import Branch, ConditionalGate, crossing, free_layers, mean_cost
from caq.graph import Assignment, Graph
from caq.model import Model, OperatingPoint
from caq.plan import Parameters, build_plan
from caq.reference import run_steps
from tests import models


def readable(graph: Graph) -> list[int]:
    """Tensors that a gate may read: those of 8 bits before the output."""
    return [t for t in range(len(graph.ops)) if graph.ranges[t][0] >= -128 and graph.ranges[t][1] <= 255]


def with_gate(m: Model, seed: int, tensor: int, branches: int = 3, name: str = "conditional") -> Model:
    """`m` with one more point, whose gate sends random samples of `models.samples` to every branch."""
    rng = np.random.default_rng([seed, tensor])
    first, sets = models.mixed(m.graph, rng), len(m.parameters.gain)
    assignments = [first, *(_variant(m.graph, tensor, first, rng) for _ in range(branches - 1))]
    # The first branch takes the widths' own parameters where it can.
    own = [None if seed % 2 else sets, *range(sets + 1, sets + branches)]
    parameters = _with_sets(m, tensor, assignments, own)
    x = models.samples(m, 64, seed)
    plan = build_plan(m.graph, parameters, m.planes, first, own[0])
    codes = run_steps(plan, {0: m.encode(x)[0].astype(np.int32)}, 0, tensor)[tensor]
    shift = int(rng.integers(0, 4))
    sums = codes.sum((1, 2)) >> shift
    weights = rng.integers(-128, 128, (branches, sums.shape[1]))
    scores = sums @ weights.T
    # Scores that are centred and of one deviation each win about as often.
    weights = np.rint(weights * scores.std(0).min() / np.maximum(scores.std(0), 1)[:, None]).astype(int)
    bias = -np.rint((sums @ weights.T).mean(0)).astype(int)
    taken = rng.multinomial(m.points[0].samples, [1 / branches] * branches).tolist()
    gate = ConditionalGate(
        tensor,
        shift,
        tuple(map(tuple, weights.tolist())),
        tuple(bias.tolist()),
        tuple(map(Branch, assignments, own, taken)),
    )
    point = OperatingPoint(
        name, first, 0.5, m.points[0].metric, m.points[0].samples, mean_cost(m.graph, gate), own[0], gate
    )
    return m.replace(parameters=parameters, points=(*m.points, point))


def _variant(graph: Graph, tensor: int, first: Assignment, rng: np.random.Generator) -> Assignment:
    """Other widths where a branch may have them."""
    other = list(first)
    for_weights, for_activations = free_layers(graph, tensor)
    for i in for_weights:
        other[i] = other[i]._replace(weight=int(rng.choice(graph.widths)))
    for i in for_activations:
        other[i] = other[i]._replace(activation=int(rng.choice(graph.widths)))
    return tuple(other)


def _with_sets(m: Model, tensor: int, assignments: list[Assignment], own: list[int | None]) -> Parameters:
    """Parameters with a set for each branch, and one to spare; before the gate each is that of the first branch."""
    p, graph, rng = m.parameters, m.graph, np.random.default_rng(tensor)
    fresh = models.random_parameters(graph, rng, float(p.steps[0]), [assignments[0], *assignments[1:]])
    parts = {
        key: np.concatenate([getattr(p, key), getattr(fresh, key)])
        for key in ("gain", "gain_exponent", "bias", "bias_exponent")
    }
    for layer in graph.layers:
        if layer.op < tensor:
            row = own[0] if own[0] is not None else graph.widths.index(assignments[0][layer.index].weight)
            span = slice(layer.first_channel, layer.first_channel + layer.channels)
            for key, values in parts.items():
                where = layer.index if key.endswith("exponent") else span
                values[len(p.gain) :, where] = values[row, where]
    return p.replace(**parts)


def gated(m: Model, seed: int) -> Model:
    """`m` with a conditional point on every tensor that a gate may read, as long as there are few."""
    tensors = readable(m.graph)
    rng = np.random.default_rng(seed)
    for t in sorted(rng.permutation(tensors)[:4].tolist()):
        m = with_gate(m, seed, t, branches=int(rng.integers(2, 5)), name=f"gate {t}")
        assert t in crossing(m.graph, t)
    return m

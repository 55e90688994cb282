"""Prices of this machine, from the times of steps and of whole inferences together.

A row is the sum of its operations, and an operation that takes the longer of its computing and its memory is linear
once it is known which is longer: with `combine: max` that follows from the prices so far, and both are found in turn.

A level of memory costs what the faster one does, and an extra (caq.costs.profile has their sum for each level).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from benchmarks.costs.fit import RIDGE, Left, Row, Terms, dot, fit
from benchmarks.costs.host import Timed, assignments
from caq.costs import Profile
from caq.costs.profile import COMPUTE_TERMS
from caq.graph import Assignment, Graph

TURNS = 12
FREE = ("mac", "output", "element", "narrowed", "weight_byte", "activation_byte", "op", "input", "inference")
KINDS = ("mac_conv", "mac_pointwise", "mac_depthwise", "mac_linear")
Counts = Mapping[str, float]


class Part(NamedTuple):
    """What one operation does, or an inference beside its operations: counts that compete, and others."""

    compute: Counts
    memory: Counts
    other: Counts


class Sum(NamedTuple):
    """One measurement: of a whole inference at an assignment, or of a step."""

    model: str
    name: str
    parts: tuple[Part, ...]
    seconds: float
    weight: float
    whole: bool


def terms(profile: Profile, ridge: float) -> Terms:
    return Terms(FREE, (*KINDS, *(beyond(level.name) for level in profile.memory[:-1])), ridge)


def beyond(level: str) -> str:
    """The term of bytes of weights that lie in a slower level than this."""
    return f"weight_byte beyond {level}"


def sums(profile: Profile, timed: Timed) -> list[Sum]:
    """Steps weigh as much together as all inferences, each by its share of the time."""
    graph, eight = timed.graph, timed.graph.uniform(8)
    total = sum(step.seconds for step in timed.steps)
    found = []
    for i, step in enumerate(timed.steps):
        parts = tuple(_part(profile, graph, op, eight, alone=True) for op in step.ops)
        found.append(Sum(timed.name, f"step {i}", parts, step.seconds, step.seconds / total, False))
    named = dict(assignments(graph))
    for name, seconds in timed.inference.items():
        parts = tuple(_part(profile, graph, op, named[name], alone=False) for op in range(len(graph.ops)))
        beside = Part({}, {}, profile.beside(graph))
        found.append(Sum(timed.name, name, (*parts, beside), seconds, 1 / len(timed.inference), True))
    return found


def _part(profile: Profile, graph: Graph, op: int, assignment: Assignment, alone: bool) -> Part:
    """alone: the step runs again and again, and its weights lie where they fit by themselves."""
    layer = next((layer for layer in graph.layers if layer.op == op), None)
    pair = assignment[layer.index] if layer is not None else None
    counts = profile.counts(graph, op, layer, pair)
    memory = {"activation_byte": counts["activation_byte"]}
    if layer is not None and pair is not None:
        needed = profile.weight_bytes(graph, layer, pair)
        level = profile.fitting(needed) if alone else profile.level(graph, assignment)
        faster = profile.memory[: profile.memory.index(level)]
        memory |= dict.fromkeys(("weight_byte", *(beyond(other.name) for other in faster)), float(needed))
    compute = {term: n for term, n in counts.items() if term in COMPUTE_TERMS}
    compute["mac"] = sum(compute.get(term, 0.0) for term in KINDS)
    return Part(compute, memory, {"op": counts["op"]})


def fit_sums(rows: Sequence[Sum], profile: Profile, ridge: float = RIDGE) -> Mapping[str, float]:
    """The price of each term in seconds."""
    names = terms(profile, ridge)
    prices = fit([_row(row, None) for row in rows], names).prices
    for _ in range(TURNS if profile.combine == "max" else 0):
        prices = fit([_row(row, prices) for row in rows], names).prices
    return prices


def _row(row: Sum, prices: Mapping[str, float] | None) -> Row:
    """Linear in its terms. prices: where given, the shorter of an operation's computing and its memory is left out."""
    counts: dict[str, float] = {}
    for part in row.parts:
        kept = [part.other, part.compute, part.memory]
        if prices is not None:
            compute, memory = dot(prices, part.compute), dot(prices, part.memory)
            kept = [part.other, part.compute if compute > memory else part.memory]
        for chosen in kept:
            for term, count in chosen.items():
                counts[term] = counts.get(term, 0.0) + count
    return Row("this machine", row.model, counts, row.seconds, row.weight)


def predict(row: Sum, prices: Mapping[str, float], combine: str) -> float:
    total = 0.0
    for part in row.parts:
        compute, memory = dot(prices, part.compute), dot(prices, part.memory)
        total += dot(prices, part.other) + (max(compute, memory) if combine == "max" else compute + memory)
    return total


def leave_model_out(rows: Sequence[Sum], profile: Profile, ridge: float = RIDGE) -> tuple[list[Left], list[Left]]:
    """Whole inferences, and steps, of each network, with prices from all the others."""
    wholes, steps = [], []
    for model in sorted({row.model for row in rows}):
        prices = fit_sums([row for row in rows if row.model != model], profile, ridge)
        for row in (row for row in rows if row.model == model):
            left = Left(model, row.name, model, row.seconds, predict(row, prices, profile.combine))
            (wholes if row.whole else steps).append(left)
    return wholes, steps

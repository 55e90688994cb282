"""The manifest of a `.caq` file (its fields: caq.artifact), read and written with every field checked."""

from __future__ import annotations

import math
import reprlib
from typing import Any

from caq.conditional import MAX_BRANCHES, Branch, ConditionalGate, check_gate, mean_cost
from caq.errors import CaqError, SchemaError
from caq.graph import MAX_DIM, MAX_OPS, Assignment, Graph, LayerWidths, Op
from caq.model import TASKS, OperatingPoint
from caq.plan import naming
from caq.quant import TOP_WIDTH
from caq.record import NamedTuple
from caq.scaling import RAW_RANGES
from caq.sections import SECTIONS
from caq.strict_json import as_choice, as_count, as_ints, as_list, as_object, as_real, as_row, as_text, dump, with_keys

MAX_POINTS = 1024
MAX_SETS = 1024
MAX_NAME = 256
MAX_LABELS = 2**16


class Manifest(NamedTuple):
    """What the manifest says; `from_json` checks it, the constructor does not.

    sets: number of parameter sets. sha256: of the parameters, then of the planes that each width adds, ascending.
    sections: SHA-256 of the optional sections that there are (caq.sections), in their order.
    """

    task: str
    sample_shape: tuple[int, ...]
    dtype: str
    graph: Graph
    sets: int
    points: tuple[OperatingPoint, ...]
    labels: tuple[str, ...]
    provenance: dict[str, str | int | float]
    sha256: tuple[str, ...]
    sections: dict[str, str] = {}  # noqa: RUF012  # nobody changes it

    def to_bytes(self) -> bytes:
        """The manifest as it is stored: one model has one notation, padded to a multiple of 8 bytes.

        Raises SchemaError on a value that is not JSON, and on points that differ in what the file holds once.
        """
        graph, first = self.graph, self.points[:1]
        for p in self.points:
            if p.samples != first[0].samples:
                raise SchemaError(
                    f"point {p.name!r}: measured on {p.samples} samples, {first[0].name!r} on {first[0].samples}; "
                    "a file holds one number"
                )
        source: dict[str, Any] = {"sample": list(self.sample_shape), "dtype": self.dtype}
        if graph.input_shape != _image_shape(self.sample_shape):
            source["shape"] = list(graph.input_shape)
        data = {
            "task": self.task,
            "input": source,
            "widths": list(graph.widths),
            "sets": self.sets,
            "ops": [op.to_json(i) for i, op in enumerate(graph.ops)],
            "samples": first[0].samples if first else 0,
            "points": [_point_to_json(p, graph) for p in self.points],
            "labels": list(self.labels),
            "provenance": self.provenance,
            "sha256": list(self.sha256),
            **({"sections": self.sections} if self.sections else {}),
        }
        try:
            return dump(data)
        except (TypeError, ValueError, RecursionError) as e:
            raise SchemaError(f"a score or a value of the provenance is not JSON: {e}") from None

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Manifest:
        """Reads what `to_bytes` wrote. Raises SchemaError that names the field."""
        keys = {"task", "input", "widths", "sets", "ops", "samples", "points", "labels", "provenance", "sha256"}
        with_keys(data, "manifest", keys, optional=("sections",))
        task = as_choice(data["task"], "task", TASKS)
        source = with_keys(data["input"], "input", {"sample", "dtype"}, optional=("shape",))
        sample_shape = as_ints(source["sample"], "input.sample")
        usual = _image_shape(sample_shape)
        shape = as_ints(source["shape"], "input.shape") if "shape" in source else usual
        if "shape" in source and shape == usual:
            raise SchemaError(f"input.shape: {shape} follows from the sample's and is left out")
        if not all(size > 0 for size in sample_shape) or math.prod(shape) != math.prod(sample_shape):
            raise SchemaError(f"input: samples {sample_shape} do not fill {shape}")
        dtype = as_choice(source["dtype"], "input.dtype", RAW_RANGES)
        ops = tuple(Op.from_json(f"ops[{i}]", i, op) for i, op in enumerate(as_list(data["ops"], "ops", MAX_OPS)))
        for i, op in enumerate(ops):
            if op.name:
                as_text(op.name, f"ops[{i}].{op.kind[:40]}", MAX_NAME)
        graph = Graph(shape, ops, as_ints(data["widths"], "widths"))  # type: ignore[arg-type]  # it checks the length
        sets = as_count(data["sets"], "sets")
        if not len(graph.widths) <= sets <= MAX_SETS:
            raise SchemaError(f"sets: {sets} parameter sets, not {len(graph.widths)} to {MAX_SETS}")
        samples = as_count(data["samples"], "samples")
        rows = as_list(data["points"], "points", MAX_POINTS)
        if (branches := sum(map(_branches_in, rows))) > MAX_POINTS:
            raise SchemaError(f"points: {branches} branches in all, at most {MAX_POINTS}")
        points = tuple(_point_from_json(f"points[{i}]", p, graph, task, samples, sets) for i, p in enumerate(rows))
        if not points or len({p.name for p in points}) != len(points):
            raise SchemaError("points: at least one, and each of its own name")
        labels = tuple(as_text(v, "labels", MAX_NAME) for v in as_list(data["labels"], "labels", MAX_LABELS))
        if labels and len(labels) != math.prod(graph.shapes[-1]):
            raise SchemaError(f"labels: {len(labels)} for {math.prod(graph.shapes[-1])} outputs")
        provenance = as_object(data["provenance"], "provenance")
        if not all(isinstance(v, str) or type(v) in (int, float) for v in provenance.values()):
            raise SchemaError("provenance: strings and numbers only")
        count = 1 + len(graph.widths)
        sha256 = tuple(as_text(v, "sha256", 43) for v in as_list(data["sha256"], "sha256", count))
        if len(sha256) != count:
            raise SchemaError(f"sha256: {len(sha256)} digests, not {count}: the parameters' and one a width")
        sections = _sections_from_json(data["sections"]) if "sections" in data else {}
        return cls(task, sample_shape, dtype, graph, sets, points, labels, provenance, sha256, sections)


def _sections_from_json(data: object) -> dict[str, str]:
    """Checksums by section, in the file's order. Raises SchemaError."""
    found = {name: as_text(v, f"sections.{name[:40]}", 43) for name, v in as_object(data, "sections").items()}
    if not found or list(found) != [name for name in SECTIONS if name in found]:
        raise SchemaError(f"sections: some of {', '.join(SECTIONS)} are expected, in this order, or no such key")
    return found


def _image_shape(sample: tuple[int, ...]) -> tuple[int, ...]:
    """(H, W, C) of a sample, as the graph eats it unless the file says otherwise."""
    return (*[1] * (3 - len(sample)), *sample)


def _point_to_json(p: OperatingPoint, graph: Graph) -> list[Any]:
    """An operating point as the manifest has it. Raises SchemaError on widths that `graph` does not serve."""
    with naming(f"point {p.name!r}"):
        if p.gate is not None:
            return [p.name, _gate_to_json(p.gate, graph), p.score]
        return [p.name, *_branch_to_json(p.assignment, graph, p.score, p.parameter_set)]


def _gate_to_json(gate: ConditionalGate, graph: Graph) -> dict[str, Any]:
    return {
        "reads": gate.tensor,
        "shift": gate.shift,
        "weights": [list(row) for row in gate.weights],
        "bias": list(gate.bias),
        "branches": [_branch_to_json(b.assignment, graph, b.taken, b.parameter_set) for b in gate.branches],
    }


def _branch_to_json(
    assignment: Assignment, graph: Graph, measured: float | int, parameter_set: int | None
) -> list[Any]:
    """w and a, what was measured, and the parameter set if it is an own one."""
    try:
        graph.check_assignment(assignment)  # only then every width is one digit
    except CaqError as e:
        raise SchemaError(str(e)) from None
    pairs = list(zip(assignment, graph.layers, strict=True))
    # Layers that read the network's input have no choice, so they do not keep the others from being alike.
    free = [pair.activation for pair, layer in pairs if not layer.reads_input] or [TOP_WIDTH]
    activations = free if len(set(free)) == 1 else [pair.activation for pair in assignment]
    row = [_digits([pair.weight for pair in assignment]), _digits(activations), measured]
    return row if parameter_set is None else [*row, parameter_set]


def _digits(widths: list[int]) -> str:
    """One digit each, or one for all where they are alike."""
    return "".join(map(str, widths[:1] if len(set(widths)) == 1 else widths))


def _point_from_json(at: str, data: object, graph: Graph, task: str, samples: int, sets: int) -> OperatingPoint:
    row = as_list(data, at, 5)
    conditional = len(row) == 3 and isinstance(row[1], dict)
    if len(row) < 4 and not conditional:
        wanted = "name, w, a, score and perhaps set, or name, gate, score"
        raise SchemaError(f"{at}: {wanted} are expected, not {len(row)} values")
    name = as_text(row[0], f"{at}.name", MAX_NAME)
    if conditional:
        gate = _gate_from_json(f"{at}.gate", row[1], graph, samples, sets)
        (assignment, own_set, _), cost = gate.branches[0], mean_cost(graph, gate)
    else:
        gate, (assignment, own_set) = None, _branch_from_json(at, row[1:3], row[4:], graph, sets)
        cost = graph.cost(assignment)
    score = as_real(row[2 if conditional else 3], f"{at}.score")
    if score > 1 or (score < 0 and task == "classify"):
        raise SchemaError(f"{at}.score: {score} is no {TASKS[task]}")
    return OperatingPoint(name, assignment, score, TASKS[task], samples, cost, own_set, gate)


def _branches_in(row: object) -> int:
    """How many ways to compute an inference a point claims to have, before anything of it is checked."""
    match row:
        case [_, {"branches": [*branches]}, _]:
            return len(branches)
    return 1


def _gate_from_json(at: str, data: object, graph: Graph, samples: int, sets: int) -> ConditionalGate:
    """Reads what `_gate_to_json` wrote. Raises SchemaError that names the field."""
    fields = with_keys(data, at, {"reads", "shift", "weights", "bias", "branches"})
    branches = []
    for i, value in enumerate(as_list(fields["branches"], f"{at}.branches", MAX_BRANCHES)):
        here = f"{at}.branches[{i}]"
        row = as_list(value, here, 4)
        if len(row) < 3:
            raise SchemaError(f"{here}: w, a, taken and perhaps set are expected, not {len(row)} values")
        taken = as_count(row[2], f"{here}.taken")
        branches.append(Branch(*_branch_from_json(here, row[:2], row[3:], graph, sets), taken))
    if (total := sum(branch.taken for branch in branches)) != samples:
        raise SchemaError(f"{at}.branches: taken by {total} samples, while scores are of {samples}")
    rows = as_list(fields["weights"], f"{at}.weights", MAX_BRANCHES)
    gate = ConditionalGate(
        as_count(fields["reads"], f"{at}.reads"),
        as_count(fields["shift"], f"{at}.shift"),
        tuple(as_row(row, f"{at}.weights[{i}]", MAX_DIM) for i, row in enumerate(rows)),
        as_row(fields["bias"], f"{at}.bias", MAX_BRANCHES),
        tuple(branches),
    )
    with naming(at):
        check_gate(graph, gate)
    return gate


def _branch_from_json(
    at: str, widths: list[Any], own: list[Any], graph: Graph, sets: int
) -> tuple[Assignment, int | None]:
    """The assignment of [w, a] and the parameter set of [] or [set]."""
    assignment = _assignment(at, widths[0], widths[1], graph)
    try:
        graph.check_assignment(assignment)
    except CaqError as e:
        raise SchemaError(f"{at}: {e}") from None
    own_set = as_count(own[0], f"{at}.set") if own else None
    if own_set is not None and not len(graph.widths) <= own_set < sets:
        raise SchemaError(f"{at}.set: no parameter set {own_set} of a point's own")
    shortest = _branch_to_json(assignment, graph, 0, own_set)
    for found, wanted, key in zip(widths, shortest, "wa", strict=False):
        if found != wanted:
            raise SchemaError(f"{at}.{key}: {reprlib.repr(found)} is written {reprlib.repr(wanted)}")
    return assignment, own_set


def _assignment(at: str, w: object, a: object, graph: Graph) -> Assignment:
    """One digit a layer; a single digit is that of every layer but that the network's input is read at 8 bits."""
    weight, activation = as_text(w, f"{at}.w", MAX_OPS), as_text(a, f"{at}.a", MAX_OPS)
    layers = graph.layers
    if not (weight + activation).isascii() or not (weight + activation).isdigit():
        raise SchemaError(f"{at}: w and a are digits, one a layer or one for all")
    if len(weight) == 1:
        weight *= len(layers)
    if len(activation) == 1:
        activation = "".join(str(TOP_WIDTH) if layer.reads_input else activation for layer in layers)
    if not len(weight) == len(activation) == len(layers):
        raise SchemaError(f"{at}: the model has {len(layers)} layers, w {len(weight)} digits and a {len(activation)}")
    return tuple(LayerWidths(int(x), int(y)) for x, y in zip(weight, activation, strict=True))

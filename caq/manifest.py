"""The manifest of a `.caq` file (its fields: caq.artifact), read and written with every field checked."""

from __future__ import annotations

import math
import reprlib
from typing import Any

from caq.errors import CaqError, SchemaError, VersionError
from caq.graph import MAX_OPS, Graph, LayerWidths, Op
from caq.model import TASKS, OperatingPoint
from caq.scaling import RAW_RANGES
from caq.strict_json import as_choice, as_count, as_ints, as_list, as_number, as_object, as_text, dump, with_keys

VERSION = 1
MAX_POINTS = 1024
MAX_NAME = 256
MAX_LABELS = 2**16


class Manifest:
    """The manifest's fields, checked. Raises SchemaError that names the field, VersionError on another version."""

    def __init__(self, data: dict[str, Any]) -> None:
        keys = {"version", "task", "input", "widths", "ops", "points", "labels", "provenance", "sha256"}
        # First, because another version may have other keys.
        if "version" in data and (type(data["version"]) is not int or data["version"] != VERSION):
            raise VersionError(f"manifest version {reprlib.repr(data['version'])}; this caq reads version {VERSION}")
        with_keys(data, "manifest", keys)
        self.task = as_choice(data["task"], "task", TASKS)
        source = with_keys(data["input"], "input", {"sample", "shape", "dtype", "step"})
        shape, self.sample_shape = as_ints(source["shape"], "input.shape"), as_ints(source["sample"], "input.sample")
        if not all(size > 0 for size in self.sample_shape) or math.prod(shape) != math.prod(self.sample_shape):
            raise SchemaError(f"input: samples {self.sample_shape} do not fill {shape}")
        self.dtype = as_choice(source["dtype"], "input.dtype", RAW_RANGES)
        self.step = as_number(source["step"], "input.step")
        ops = tuple(Op.from_json(f"ops[{i}]", op) for i, op in enumerate(as_list(data["ops"], "ops", MAX_OPS)))
        for i, op in enumerate(ops):
            if op.name:
                as_text(op.name, f"ops[{i}].name", MAX_NAME)
        self.graph = Graph(shape, ops, as_ints(data["widths"], "widths"))  # type: ignore[arg-type]  # it checks the length
        points = as_list(data["points"], "points", MAX_POINTS)
        self.points = tuple(self._point(f"points[{i}]", p) for i, p in enumerate(points))
        if not points or len({p.name for p in self.points}) != len(points):
            raise SchemaError("points: at least one, and each of its own name")
        self.labels = tuple(as_text(v, "labels", MAX_NAME) for v in as_list(data["labels"], "labels", MAX_LABELS))
        if self.labels and len(self.labels) != math.prod(self.graph.shapes[-1]):
            raise SchemaError(f"labels: {len(self.labels)} for {math.prod(self.graph.shapes[-1])} outputs")
        self.provenance = as_object(data["provenance"], "provenance")
        if not all(isinstance(v, str) or type(v) in (int, float) for v in self.provenance.values()):
            raise SchemaError("provenance: strings and numbers only")
        self.sha256 = as_object(data["sha256"], "sha256")

    def _point(self, at: str, data: object) -> OperatingPoint:
        p = as_object(data, at)
        with_keys({k: v for k, v in p.items() if k != "set"}, at, {"name", "w", "a", "score", "samples", "cost"})
        name = as_text(p["name"], f"{at}.name", MAX_NAME)
        weight, activation = (as_text(p[k], f"{at}.{k}", MAX_OPS) for k in ("w", "a"))
        if len(weight) != len(activation) or not (weight + activation).isascii() or not (weight + activation).isdigit():
            raise SchemaError(f"{at}: w and a are as many digits as the model has layers")
        assignment = tuple(LayerWidths(int(w), int(a)) for w, a in zip(weight, activation, strict=True))
        try:
            self.graph.check_assignment(assignment)
        except CaqError as e:
            raise SchemaError(f"{at}: {e}") from None
        cost = self.graph.cost(assignment)
        if as_ints(p["cost"], f"{at}.cost") != (cost.weight_bytes, cost.bit_macs):
            raise SchemaError(f"{at}.cost: {p['cost']}, the graph costs {[cost.weight_bytes, cost.bit_macs]}")
        score, samples = as_number(p["score"], f"{at}.score"), as_count(p["samples"], f"{at}.samples")
        if score > 1 or (score < 0 and self.task == "classify"):
            raise SchemaError(f"{at}.score: {score} is no {TASKS[self.task]}")
        own_set = as_count(p["set"], f"{at}.set") if "set" in p else None
        return OperatingPoint(name, assignment, score, TASKS[self.task], samples, cost, own_set)


def point_to_json(p: OperatingPoint, graph: Graph) -> dict[str, Any]:
    """An operating point as the manifest has it. Raises SchemaError on widths that `graph` does not serve."""
    try:
        graph.check_assignment(p.assignment)  # only then every width is one digit
    except CaqError as e:
        raise SchemaError(f"point {p.name!r}: {e}") from None
    data: dict[str, Any] = {
        "name": p.name,
        "w": "".join(str(v.weight) for v in p.assignment),
        "a": "".join(str(v.activation) for v in p.assignment),
        "score": p.score,
        "samples": p.samples,
        "cost": [p.cost.weight_bytes, p.cost.bit_macs],
    }
    return data if p.parameter_set is None else {**data, "set": p.parameter_set}


def manifest_bytes(manifest: dict[str, Any]) -> bytes:
    """The manifest as it is stored. Raises SchemaError on a value that is not JSON."""
    try:
        return dump(manifest)
    except (TypeError, ValueError, RecursionError) as e:
        raise SchemaError(f"a score or a value of the provenance is not JSON: {e}") from None

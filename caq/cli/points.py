"""How commands describe operating points."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from caq.cli.output import Output, number, percent
from caq.conditional import gate_cost
from caq.graph import Cost, Graph, LayerWidths
from caq.model import Model, OperatingPoint
from caq.quant import TOP_WIDTH
from caq.sections import core_row_bytes, feature_row_bytes


def widest_cost(graph: Graph) -> Cost:
    """What w8a8 costs, whether or not the model serves it: the cost that others are compared with."""
    return graph.cost((LayerWidths(TOP_WIDTH, TOP_WIDTH),) * len(graph.layers))


def describe(graph: Graph, p: OperatingPoint) -> dict[str, Any]:
    """A point with its score and its mean cost, as JSON has it."""
    return {
        "point": p.name,
        "metric": p.metric,
        "score": p.score,
        "samples": p.samples,
        **_describe_cost(graph, p.cost),
        **describe_widths(graph, p),
    }


def _describe_cost(graph: Graph, cost: Cost) -> dict[str, Any]:
    widest = widest_cost(graph)
    return {
        "weight_bytes": cost.weight_bytes,
        "weight_bytes_share": cost.weight_bytes / widest.weight_bytes,
        "bit_macs": cost.bit_macs,
        "bit_macs_share": cost.bit_macs / widest.bit_macs,
    }


def describe_widths(graph: Graph, p: OperatingPoint) -> dict[str, Any]:
    """`widths`, one pair a layer, of the first branch if the point is conditional; then `gate` has those of all."""
    found: dict[str, Any] = {"widths": [str(pair) for pair in p.assignment]}
    if p.gate is not None:
        own = gate_cost(graph, p.gate.tensor, len(p.branches))
        branches = [
            {
                "share": share,
                **_describe_cost(graph, graph.cost(branch.assignment)),
                "widths": [str(pair) for pair in branch.assignment],
            }
            for branch, share in zip(p.branches, p.shares, strict=True)
        ]
        found["gate"] = {"reads": p.gate.tensor, **own._asdict(), "branches": branches}
    return found


def describe_points(graph: Graph, points: Sequence[OperatingPoint]) -> list[dict[str, Any]]:
    """Operating points with the scores that the artifact holds."""
    return [describe(graph, p) for p in points]


def print_points(output: Output, title: str, records: Sequence[dict[str, Any]]) -> None:
    """A table of what `describe` made."""
    rows = []
    for r in records:
        measured = {"point": r["point"], r["metric"]: f"{r['score']:.4f}", "samples": r["samples"]}
        rows.append({**measured, **_cost_cells(r), **bits_by_layer(r)})
        for i, branch in enumerate(r["gate"]["branches"] if "gate" in r else ()):
            of = {"point": f"  branch {i}", r["metric"]: "-", "samples": percent(branch["share"])}
            rows.append({**of, **_cost_cells(branch), **bits_by_layer(branch)})
    output.table(title, rows)


def _cost_cells(record: dict[str, Any]) -> dict[str, str]:
    return {
        "weights KB": f"{record['weight_bytes'] / 1000:.1f}",
        "bit-MACs": number(record["bit_macs"]),
        "of w8a8": percent(record["bit_macs_share"]),
    }


def explain_points(output: Output, graph: Graph, points: Sequence[OperatingPoint]) -> None:
    """A line that says which points are gates: `full` is one, and not w8a8."""
    uniform = {graph.uniform(width) for width in graph.widths}
    static = [p for p in points if p.gate is None]
    gates = [p.name for p in static if p.parameter_set is not None]
    same = [p.name for p in static if p.parameter_set is None and p.assignment in uniform]
    conditional = [p.name for p in points if p.gate is not None]
    parts = [
        f"gates, each layer's widths chosen for a budget: {', '.join(gates)}" if gates else "",
        f"conditional gates, each inference takes one of the branches: {', '.join(conditional)}" if conditional else "",
        f"one width everywhere (the input always has {TOP_WIDTH} bits): {', '.join(same)}" if same else "",
    ]
    if any(parts):
        output.say("; ".join(filter(None, parts)))


def bits_by_layer(record: dict[str, Any]) -> dict[str, str]:
    """Columns of bits, one digit a layer in the order of execution: widths ["w8a8", "w4a8"] as 84 and 88."""
    if "gate" in record:
        return {"weight bits": "by branch", "activation bits": "by branch"}
    pairs = [LayerWidths.parse(text) for text in record["widths"]]
    return {
        "weight bits": "".join(str(p.weight) for p in pairs),
        "activation bits": "".join(str(p.activation) for p in pairs),
    }


def describe_core(model: Model) -> dict[str, Any] | None:
    """The core set of an artifact: samples, bytes in the file, samples of each class, and misses at each width."""
    if (core := model.core) is None:
        return None
    classes = np.bincount(core.y, minlength=int(np.prod(model.graph.shapes[-1])))
    return {
        "samples": len(core.y),
        "bytes": len(core.y) * core_row_bytes(model.graph),
        "by_class": classes.tolist(),
        "misses_by_width": {
            str(w): int(n) for w, n in zip(model.graph.widths, core.misses.sum(0, dtype=np.int64), strict=True)
        },
    }


def describe_features(model: Model) -> dict[str, int] | None:
    """Samples of which an artifact has features, and their bytes in the file."""
    if (features := model.features) is None:
        return None
    return {"samples": len(features.y), "bytes": len(features.y) * feature_row_bytes(model.graph)}


def explain_features(features: dict[str, int]) -> str:
    """A line of what `describe_features` found."""
    return f"features: of {features['samples']} more samples, {features['bytes']} bytes"


def describe_flip_network(model: Model) -> dict[str, int] | None:
    """Hidden units of an artifact's flip network, and its bytes in the file."""
    if (network := model.flip_network) is None:
        return None
    return {"hidden": network.w2.shape[1], "bytes": len(network.to_row(model.graph))}


def explain_core(core: dict[str, Any]) -> str:
    """A line of what `describe_core` found."""
    misses = ", ".join(f"{n} at {w}" for w, n in core["misses_by_width"].items())
    classes = f"{sum(n > 0 for n in core['by_class'])} of {len(core['by_class'])} classes"
    return f"core set: {core['samples']} samples of {classes}, {core['bytes']} bytes; misses by width: {misses}"

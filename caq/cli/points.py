"""How commands describe operating points."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from caq.cli.output import Output, number, percent
from caq.graph import Assignment, Cost, Graph, LayerWidths
from caq.model import OperatingPoint
from caq.quant import TOP_WIDTH


def widest_cost(graph: Graph) -> Cost:
    """What w8a8 costs, whether or not the model serves it: the cost that others are compared with."""
    return graph.cost((LayerWidths(TOP_WIDTH, TOP_WIDTH),) * len(graph.layers))


def describe(
    graph: Graph, name: str, assignment: Assignment, score: float, metric: str, samples: int
) -> dict[str, Any]:
    """An assignment with its score and its cost, as JSON has it; `widths` are one pair a layer."""
    cost, widest = graph.cost(assignment), widest_cost(graph)
    return {
        "point": name,
        "metric": metric,
        "score": score,
        "samples": samples,
        "weight_bytes": cost.weight_bytes,
        "weight_bytes_share": cost.weight_bytes / widest.weight_bytes,
        "bit_macs": cost.bit_macs,
        "bit_macs_share": cost.bit_macs / widest.bit_macs,
        "widths": [str(pair) for pair in assignment],
    }


def describe_points(graph: Graph, points: Sequence[OperatingPoint]) -> list[dict[str, Any]]:
    """Operating points with the scores that the artifact holds."""
    return [describe(graph, p.name, p.assignment, p.score, p.metric, p.samples) for p in points]


def print_points(output: Output, title: str, records: Sequence[dict[str, Any]]) -> None:
    """A table of what `describe` made."""
    rows = [
        {
            "point": r["point"],
            r["metric"]: f"{r['score']:.4f}",
            "samples": r["samples"],
            "weights KB": f"{r['weight_bytes'] / 1000:.1f}",
            "bit-MACs": number(r["bit_macs"]),
            "of w8a8": percent(r["bit_macs_share"]),
            **bits_by_layer(r["widths"]),
        }
        for r in records
    ]
    output.table(title, rows)


def explain_points(output: Output, graph: Graph, points: Sequence[OperatingPoint]) -> None:
    """A line that says which points are gates: `full` is one, and not w8a8."""
    uniform = {graph.uniform(width) for width in graph.widths}
    gates = [p.name for p in points if p.parameter_set is not None]
    same = [p.name for p in points if p.parameter_set is None and p.assignment in uniform]
    parts = [
        f"gates, each layer's widths chosen for a budget: {', '.join(gates)}" if gates else "",
        f"one width everywhere (the input always has {TOP_WIDTH} bits): {', '.join(same)}" if same else "",
    ]
    if any(parts):
        output.say("; ".join(filter(None, parts)))


def bits_by_layer(widths: Sequence[str]) -> dict[str, str]:
    """Columns of bits, one digit a layer in the order of execution: ["w8a8", "w4a8"] as 84 and 88."""
    pairs = [LayerWidths.parse(text) for text in widths]
    return {
        "weight bits": "".join(str(p.weight) for p in pairs),
        "activation bits": "".join(str(p.activation) for p in pairs),
    }

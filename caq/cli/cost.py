"""`caq cost`: what each operating point costs on a device, modelled."""

from __future__ import annotations

import argparse
from typing import Any

from caq.artifact import load
from caq.cli.arguments import add_artifact
from caq.cli.output import Output, number
from caq.cli.points import bits_by_layer, describe_widths
from caq.costs import Profile, load_profile, profile_names
from caq.errors import AssignmentError, nearest
from caq.graph import Assignment, Graph
from caq.model import OperatingPoint

HELP = "model the latency, energy and bytes of an artifact's operating points on a device"


def configure(parser: argparse.ArgumentParser) -> None:
    add_artifact(parser)
    parser.add_argument(
        "--profile",
        required=True,
        metavar="NAME|FILE.yaml",
        help=f"{', '.join(profile_names())}, or a file of your own",
    )
    parser.add_argument("--layers", metavar="POINT", help="also what each operation costs at this point")


def execute(args: argparse.Namespace, output: Output) -> dict[str, Any]:
    profile, model = load_profile(args.profile), load(args.artifact)
    points = {point.name: point for point in model.points}
    if args.layers is not None and args.layers not in points:
        raise AssignmentError(f"no operating point {args.layers!r}{nearest(args.layers, points)}")
    records = [_record(profile, model.graph, point) for point in model.points]
    output.say(f"{args.artifact} on {profile.title}: modelled, not measured")
    output.table("operating points (modelled)", [_row(record) for record in records])
    result: dict[str, Any] = {"artifact": args.artifact, "profile": profile.name, "title": profile.title}
    result |= {"modelled": True, "points": records}
    if args.layers is not None:
        point, result["layers"] = points[args.layers], []
        for i, branch in enumerate(point.branches):
            costs = _operations(profile, model.graph, point, branch.assignment)
            result["layers"] += costs if point.gate is None else [{"branch": i, **cost} for cost in costs]
            at = point.name if point.gate is None else f"{point.name}, branch {i}"
            output.table(f"operations at {at} (modelled)", [_row(cost) for cost in costs])
    output.table("where the figures are from", [{"kind": s.kind, "source": s.text} for s in profile.sources.values()])
    result["sources"] = {name: source._asdict() for name, source in profile.sources.items()}
    return result


def _record(profile: Profile, graph: Graph, point: OperatingPoint) -> dict[str, Any]:
    """The mean cost of a point's branches, in the shares of the samples that its score is of."""
    tensor = None if point.gate is None else point.gate.tensor
    cost = profile.point_cost(graph, point.branches, point.shares, tensor)
    return {"point": point.name, **cost._asdict(), **describe_widths(graph, point)}


def _operations(profile: Profile, graph: Graph, point: OperatingPoint, assignment: Assignment) -> list[dict[str, Any]]:
    """What each operation costs at an assignment, then the gate if there is one, then what is beside them."""
    costs = [*profile.layer_costs(graph, assignment)]
    if point.gate is not None:
        level = profile.level(graph, assignment)
        costs.append(profile.gate_cost(graph, level, point.gate.tensor, len(point.branches)))
    return [cost._asdict() for cost in (*costs, profile.overhead(graph))]


def _row(record: dict[str, Any]) -> dict[str, object]:
    name = record.get("point", record.get("name"))
    row: dict[str, object] = {
        "point" if "point" in record else "operation": name,
        "latency ms": number(record["latency_s"] * 1e3),
        "energy mJ": number(record["energy_j"] * 1e3),
        "weight bytes": record["weight_bytes"],
        "activation bytes": round(record["activation_bytes"]),
    }
    return row | (bits_by_layer(record) if "widths" in record else {})

"""`caq eval`: scores of an artifact on data, in integers."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caq.cli.arguments import add_artifact, add_data, add_domain, whole
from caq.cli.inputs import test_samples
from caq.cli.output import Output
from caq.cli.points import describe, print_points
from caq.engine import AnyPlan, Engine
from caq.errors import AssignmentError, nearest
from caq.graph import parse_assignment
from caq.measure import score_routed
from caq.model import TASKS, OperatingPoint

HELP = "measure operating points, or any other widths, on the test split of a data set"


def configure(parser: argparse.ArgumentParser) -> None:
    add_artifact(parser)
    add_data(parser)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--point", metavar="NAME", help="only this operating point; default: all")
    which.add_argument("--assignment", metavar="w8a8,w4a8,...", help="these widths, one pair a layer")
    which.add_argument("--widths", type=whole(1, 8), metavar="N", help="N bits in every layer")
    add_domain(parser)
    parser.add_argument("--samples", type=whole(1), metavar="N", help="at most N samples, spread evenly over the split")
    parser.add_argument(
        "--max-width", type=whole(1, 8), default=8, metavar="N", help="read no more bits of the weights"
    )


def execute(args: argparse.Namespace, output: Output) -> dict[str, Any]:
    engine = Engine(args.artifact, max_width=args.max_width)
    plans = list(_plans(engine, args))
    x, y = test_samples(args.data, engine.model, args.domain, args.samples)
    graph = engine.model.graph
    records = [describe(graph, _measured(engine, name, plan, x, y)) for name, plan in plans]
    print_points(output, f"{args.artifact} on {args.data}", records)
    return {
        "artifact": args.artifact,
        "data": args.data,
        "domain": args.domain,
        "layers": [layer.name for layer in graph.layers],
        "points": records,
    }


def _measured(
    engine: Engine, name: str, plan: AnyPlan, x: NDArray[np.generic], y: NDArray[np.integer]
) -> OperatingPoint:
    """What ran, not what was asked for, with its score and how often each branch was taken."""
    graph, (score, taken) = engine.model.graph, score_routed(engine, plan, x, y)
    if len(taken) > 1:
        return engine.points[name]._replace(score=score, samples=len(x)).measured(graph, taken)
    cost = graph.cost(plan.assignment)
    return OperatingPoint(name, plan.assignment, score, TASKS[engine.model.task], len(x), cost)


def _plans(engine: Engine, args: argparse.Namespace) -> Iterator[tuple[str, AnyPlan]]:
    if args.assignment is not None:
        yield "assignment", engine.build(parse_assignment(args.assignment))
    elif args.widths is not None:
        yield f"w{args.widths}a{args.widths}", engine.build(engine.model.graph.uniform(args.widths))
    elif args.point is not None and args.point not in engine.points:
        raise AssignmentError(f"no operating point {args.point!r}{nearest(args.point, engine.points)}")
    else:
        for name in engine.points if args.point is None else [args.point]:
            yield name, engine.build_point(name)

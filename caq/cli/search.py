"""`caq search`: finds operating points for new budgets in an artifact, without training."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from caq import artifact
from caq.cli.arguments import add_artifact, add_data, add_domain, add_seed, budgets, whole
from caq.cli.inputs import fitting
from caq.cli.output import Output
from caq.cli.train import check_writable, report
from caq.costs import Budget, check_budgets, relative_cost
from caq.progress import progress

HELP = "find operating points for new budgets in an artifact, without training, and add them to it"


def configure(parser: argparse.ArgumentParser) -> None:
    add_artifact(parser)
    add_data(parser)
    parser.add_argument(
        "--budget",
        type=budgets,
        required=True,
        metavar="NAME=SHARE[:COST],...",
        help="points to find; share 0 is the cheapest assignment, 1 the widest; COST is bytes, bit_macs, "
        "latency@PROFILE or energy@PROFILE (see caq cost), or else bytes and bit_macs together",
    )
    parser.add_argument("--out", type=Path, metavar="y.caq", help="file to write; default: x.caq itself")
    parser.add_argument(
        "--samples", type=whole(2), default=512, metavar="N", help="of the training split; default %(default)s"
    )
    parser.add_argument(
        "--steps", type=whole(0), default=300, metavar="N", help="assignments to try; default %(default)s"
    )
    add_domain(parser)
    add_seed(parser)


def execute(args: argparse.Namespace, output: Output) -> dict[str, Any]:
    import numpy as np

    from caq.search import Finder, SearchConfig, check_new, with_point

    path = Path(args.artifact) if args.out is None else args.out
    check_writable(path)
    model = artifact.load(args.artifact)
    wanted = [Budget(*budget) for budget in args.budget]
    check_budgets(model.graph, wanted)
    dataset = fitting(args.data, model)
    x_test, y_test = (dataset.x_test, dataset.y_test) if args.domain is None else dataset.domain(args.domain)
    for budget in wanted:
        check_new(model, budget.name, len(y_test))
    # Nothing of the test split but the score that is written down: what is chosen is chosen by training samples.
    drawn = np.random.default_rng(args.seed).permutation(len(dataset.x_train))[: args.samples]
    x = dataset.x_train[np.sort(drawn)]
    finder = Finder(model, x, SearchConfig(args.steps, seed=args.seed), progress)
    searched = []
    for budget in wanted:
        found = finder.find(budget)
        model = with_point(model, budget.name, found.assignment, x, x_test, y_test)
        searched.append(
            {
                "point": budget.name,
                "cost": budget.cost,
                "relative_cost": relative_cost(model.graph, found.assignment, budget.cost),
                "loss": found.loss,
                "sensitivity_loss": found.sensitivity_loss,
            }
        )
        output.say(
            f"{budget.name}: {found.loss:.4f} from the widest point's outputs; "
            f"{found.sensitivity_loss:.4f} by sensitivities alone"
        )
    artifact.save(model, path)
    written = report(model, path, output)
    return {**written, "samples": len(x), "measured": finder.objective.measured, "searched": searched}

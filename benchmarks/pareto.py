"""Accuracy against cost: learned gates, searched points and uniform widths, beside what a choice has to beat.

    python -m benchmarks.pareto --data usc_had.npz --model resnet8 --epochs 6 --rotation 30
    python -m benchmarks.pareto --data kws12.npz --model ds_cnn --epochs 12 --domain 0
    python -m benchmarks.pareto --data digits --model resnet8 --epochs 20

One supernet a seed, and for each of its gates' budgets:

    supernet     the learned gate, and every uniform width
    search       `caq search`: evolution on measured losses
    sensitivity  each layer's loss when it alone is lowered, and an exact choice by these: the search without evolution
    random       widths drawn for every layer, then made to cost as much; mean of --random of them

All are repaired to fill the budget by the same code. Points of gates are trained, as uniform widths are; the others are
chosen afterwards (benchmarks.joint_folds has rows "chosen ..." of others that are trained alike). Batch norm is
re-estimated for each; gates, as trained, by torch, the others in integers from 512 training samples. The test split is
measured for the record: no row is chosen by it.
Besides accuracy, rows have `agreement`, the share of test samples that get the label that the widest point gives them
(what a change of widths does, without the luck of borderline samples), and `loss`, what the search makes small.

Supernets are those of benchmarks.accuracy, with the same --cache; artifacts and finished rows are kept there too, and a
run that was stopped goes on with them. Rows go to
benchmarks/results/pareto_<data>_<model>.json; the plot also shows what other benchmarks wrote in the same form for the
same data and network.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

import caq
from benchmarks import accuracy
from benchmarks.baselines.chosen import SAMPLES, random_within
from benchmarks.pareto_plot import means, plot, rows_beside
from caq import artifact
from caq.calibration import NormEstimator
from caq.costs import DEFAULT_BUDGETS, Budget, relative_cost
from caq.data import Dataset
from caq.engine import Engine
from caq.graph import Assignment
from caq.model import Model, OperatingPoint
from caq.progress import progress
from caq.search import Finder, SearchConfig
from caq.search.objective import evenly
from caq.supernet.pipeline import train_model
from caq.supernet.train import Outputs

RESULTS = Path(__file__).parent / "results"


class Bench:
    """Measures assignments of one trained model on the test split, batch norm re-estimated in integers."""

    def __init__(self, model: Model, data: Dataset, seed: int) -> None:
        self.model, self.data, self.seed = model, data, seed
        self.x = data.x_train[evenly(len(data.x_train), SAMPLES)]
        self.norms = NormEstimator(model, self.x)
        self.finder = Finder(model, self.x, SearchConfig(seed=seed), progress)
        widest = model.graph.uniform(model.graph.widths[-1])
        self.widest_labels = self._labels(model, widest, None)

    def _labels(self, model: Model, assignment: Assignment, row: int | None) -> np.ndarray:
        engine = Engine(model)
        return engine.run_plan(engine.build(assignment, row), self.data.x_test).argmax(1)

    def row(self, method: str, point: str, assignment: Assignment, own: OperatingPoint | None = None) -> dict[str, Any]:
        """One row of the table. own: a point of the model, measured with the set that it has."""
        model, graph = self.model, self.model.graph
        if own is None:
            parameters = self.norms.estimate(assignment)
            last = len(parameters.gain) - 1
            added = OperatingPoint("-", assignment, 0.0, "accuracy", 0, graph.cost(assignment), last)
            labels = self._labels(model.replace(parameters=parameters, points=(added,)), assignment, last)
        else:
            labels = self._labels(model, assignment, own.parameter_set)
        return {
            "method": method,
            "seed": self.seed,
            "point": point,
            "accuracy": round(float((labels == self.data.y_test).mean()), 6),
            "bytes": round(relative_cost(graph, assignment, "bytes"), 4),
            "bit_macs": round(relative_cost(graph, assignment, "bit_macs"), 4),
            "agreement": round(float((labels == self.widest_labels).mean()), 6),
            "loss": round(self.finder.objective(assignment), 6),
            "assignment": ",".join(map(str, assignment)),
        }

    def random(self, budget: Budget, count: int) -> dict[str, Any]:
        """Mean of `count` random assignments that fill a budget, with the accuracies' spread."""
        rng = np.random.default_rng(self.seed)
        drawn = [random_within(self.model.graph, budget, rng) for _ in range(count)]
        rows = [self.row("random", budget.name, assignment) for assignment in drawn]
        mean = {
            key: round(float(np.mean([row[key] for row in rows])), 6)
            for key in ("accuracy", "bytes", "bit_macs", "agreement", "loss")
        }
        accuracies = [row["accuracy"] for row in rows]
        spread = {"lowest": min(accuracies), "highest": max(accuracies), "count": count}
        return {"method": "random", "seed": self.seed, "point": budget.name, **mean, **spread}

    def rows(self, budgets: tuple[Budget, ...], random: int, known: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """All rows of this model, but for those that are known."""
        done = {(row["method"], row["point"]) for row in known}
        made: list[tuple[str, str, Callable[[], dict[str, Any]]]] = [
            *(("supernet", p.name, partial(self.row, "supernet", p.name, p.assignment, p)) for p in self.model.points),
            *(("random", b.name, partial(self.random, b, random)) for b in budgets),
            *(("sensitivity", b.name, partial(self.by_sensitivity, b)) for b in budgets),
            *(("search", b.name, partial(self.searched, b)) for b in budgets),
        ]
        return (make() for method, point, make in made if (method, point) not in done)

    def by_sensitivity(self, budget: Budget) -> dict[str, Any]:
        """The search's start, without its evolution."""
        return self.row("sensitivity", budget.name, self.finder.by_sensitivity(budget))

    def searched(self, budget: Budget) -> dict[str, Any]:
        """What `caq search` finds."""
        return self.row("search", budget.name, self.finder.find(budget).assignment)


def trained(data: Dataset, args: argparse.Namespace, seed: int, cache: Path) -> Model:
    """The seed's artifact, trained if it is not in the cache."""
    path = cache / f"{seed}.caq"
    if not path.exists():
        config = accuracy.train_config(args, seed)
        model = train_model(data, args.model, config, outputs=Outputs(cache / f"supernet-{seed}.pt"))
        artifact.save(model, path)
    return artifact.load(path)


def run_seed(data: Dataset, args: argparse.Namespace, seed: int, cache: Path) -> dict[str, Any]:
    """All rows of one seed, and the seconds that they took; each is kept in the cache as soon as it is there."""
    path = cache / f"rows-{seed}.json"
    known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"seconds": 0.0, "rows": []}
    started = time.monotonic()
    bench = Bench(trained(data, args, seed, cache), data, seed)
    for row in bench.rows(DEFAULT_BUDGETS, args.random, list(known["rows"])):
        known["rows"].append(row)
        known["seconds"] += round(time.monotonic() - started, 1)
        started = time.monotonic()
        path.write_text(json.dumps(known, indent=1))
        print(json.dumps(row), flush=True)
    return known


def verdicts(rows: list[dict[str, Any]], budgets: tuple[Budget, ...]) -> list[dict[str, Any]]:
    """For each budget the gate's means over seeds, and by how much they exceed each rival's: accuracy and agreement.

    The rival `uniform` is the most accurate width that costs as much as the gate or more, in bytes and in bit-MACs.
    """
    by_name = {(row["method"], row["point"]): row for row in means(rows)}
    result = []
    for budget in budgets:
        gate = by_name["supernet", budget.name]
        uniform = [
            row
            for (method, point), row in by_name.items()
            if method == "supernet" and point not in {b.name for b in budgets}
            if row["bytes"] >= gate["bytes"] and row["bit_macs"] >= gate["bit_macs"]
        ]
        rivals = {name: by_name[name, budget.name] for name in ("search", "sensitivity", "random")}
        if uniform:
            rivals["uniform"] = max(uniform, key=lambda row: row["accuracy"])
        entry: dict[str, Any] = {"point": budget.name, "accuracy": gate["accuracy"], "agreement": gate["agreement"]}
        for name, rival in rivals.items():
            entry[f"over_{name}"] = {k: round(gate[k] - rival[k], 4) for k in ("accuracy", "agreement")}
        if uniform:
            del entry["over_uniform"]["agreement"]  # wider ones agree with the widest by what they are
        result.append(entry)
    return result


def markdown(summary: dict[str, Any]) -> str:
    """The summary as a page."""
    lines = [f"`{summary['command']}`", "", f"{summary['test_samples']} test samples; means over seeds, in %.", ""]
    lines += [
        "| | point | accuracy (min..max) | agrees with w8a8 | loss | bytes | bit-MACs |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in sorted(means(summary["rows"]), key=lambda row: (row["point"], row["method"])):
        spread = f"{100 * row['accuracy']:.2f} ({100 * row['lowest']:.2f}..{100 * row['highest']:.2f})"
        cells = [row["method"], row["point"], spread, f"{100 * row['agreement']:.2f}", f"{row['loss']:.4f}"]
        lines.append("| " + " | ".join([*cells, f"{row['bytes']:.3f}", f"{row['bit_macs']:.3f}"]) + " |")
    lines += ["", "Gates over their rivals, in points of accuracy; of agreement with w8a8:", ""]
    for entry in summary["verdicts"]:
        overs = {k.removeprefix("over_"): v for k, v in entry.items() if k.startswith("over_")}
        parts = [f"{name} {'; '.join(f'{100 * v:+.2f}' for v in over.values())}" for name, over in overs.items()]
        lines.append(f"- {entry['point']}: {', '.join(parts)}")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    accuracy.add_settings(parser)
    parser.add_argument("--random", type=int, default=20, help="random assignments a budget")
    args = parser.parse_args()

    data = accuracy.read_data(args)
    cache = accuracy.cache_folder(args, data)
    seconds, rows = 0.0, []
    for seed in args.seeds:
        found = run_seed(data, args, seed, cache)
        seconds += found["seconds"]
        rows += found["rows"]
    summary = {
        "command": accuracy.command("pareto", args) + f" --random {args.random}",
        "caq": caq.__version__,
        "torch": version("torch"),
        "numpy": np.__version__,
        "hours": round(seconds / 3600, 2),
        "test_samples": len(data.y_test),
        "verdicts": verdicts(rows, DEFAULT_BUDGETS),
        "rows": rows,
    }
    stem = f"pareto_{data.name}_{args.model}"
    (RESULTS / f"{stem}.json").write_text(json.dumps(summary, indent=1) + "\n")
    (RESULTS / f"{stem}.md").write_text(markdown(summary))
    print(markdown(summary))
    beside = rows_beside(RESULTS, data.name, args.model, rows)
    plot(beside, f"{data.name}, {args.model}", RESULTS / f"{stem}.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())

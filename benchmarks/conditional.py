"""Conditional gates beside static ones at equal mean cost, on one supernet a seed.

    python -m benchmarks.conditional --data usc_had.npz --model resnet8 --epochs 6
    python -m benchmarks.conditional --data digits --model resnet8 --epochs 20

A share of the training split (people where they are known, else of each class) is held back from the weights. Static
gates and the branches of conditional ones are learned on the rest, routing on all, its budget on what is held back.
`--validate` takes half of that away and measures on it instead of on the test split: what choices are made by.

For each budget: the static gate; the conditional one, which has that static gate among its branches; its branches drawn
at random in the same shares, which is what routing has to beat; and an oracle that takes the cheapest branch that is
right, which tells whether the routing or the branches limit. Costs are of the samples measured, the gate's own
included. `static at its cost` is what static gates, w2a2 and w8a8 have at the conditional gate's mean cost,
interpolated.

`--trained` chooses branches half-way and trains them, as `caq train` does with static gates (caq.supernet.points).

All figures are of the native engine, in integers. Training resumes from checkpoints in --cache.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

import caq
from caq.costs import DEFAULT_BUDGETS, Budget, cost_table
from caq.data import Dataset, load
from caq.engine import Engine
from caq.graph import parse_assignment
from caq.model import Model, OperatingPoint
from caq.supernet.conditional import (
    Branches,
    RouteConfig,
    estimate_branches,
    learn_branches,
    learn_gate_of,
    unrouted,
)
from caq.supernet.conversion import DEFAULT_WIDTHS, convert
from caq.supernet.gates import GateConfig
from caq.supernet.lower import lower
from caq.supernet.network import Supernet
from caq.supernet.pipeline import Prepared, assemble, hold_back, prepare, task_of, uniform_name
from caq.supernet.points import Point, train_halves
from caq.supernet.train import Outputs, TrainConfig, predict, reestimate_norms, train_supernet

RESULTS = Path(__file__).parent / "results"
HELD_BACK = 0.3


class Trained(NamedTuple):
    """A seed's supernet, and the branches of each budget; with their rows of batch norm, in order, if trained."""

    supernet: Supernet
    prepared: Prepared
    branches: dict[str, Branches]
    rows: dict[str, list[int]]


class Row(NamedTuple):
    """A line of the results; costs are relative to w8a8, `cost` is what budgets are of: the mean of the two others."""

    method: str
    seed: int
    point: str
    accuracy: float
    bytes: float
    bit_macs: float
    cost: float


def trained(data: Dataset, args: argparse.Namespace, config: TrainConfig, budgets: list[Budget]) -> Trained:
    """The supernet of a seed, and the branches of each budget; both are kept in the cache."""
    prepared = prepare(data, args.model, config.seed)
    supernet = convert(prepared.network, prepared.example(), DEFAULT_WIDTHS)
    args.cache.mkdir(parents=True, exist_ok=True)
    kind = "trained-" if args.trained else ""
    stem = args.cache / f"{kind}{data.name}-{args.model}-{args.epochs}-{config.seed}"
    gate_config = GateConfig(batch_size=config.batch_size, seed=config.seed, steps=args.gate_steps)
    found: dict[str, Branches] = {}
    rows: dict[str, list[int]] = {}

    def choose() -> tuple[Point, ...]:
        for width in supernet.widths:
            reestimate_norms(supernet, prepared.train, supernet.graph.uniform(width))
        for budget in budgets:
            kept = Path(f"{stem}-{budget.name}-{budget.share}-{args.gate_steps}.json")
            if kept.exists():
                tensor, texts, static = json.loads(kept.read_text())
                found[budget.name] = Branches(tensor, tuple(map(parse_assignment, texts)), static)
            else:
                branches = learn_branches(supernet, prepared.train, budget, gate_config, config.task)
                texts = [",".join(map(str, a)) for a in branches.assignments]
                kept.write_text(json.dumps([branches.tensor, texts, branches.static]))
                found[budget.name] = branches
            if args.trained:
                rows[budget.name] = [supernet.add_row(a) for a in found[budget.name].assignments]
        return tuple(
            Point(name, assignment, row)
            for name, own in rows.items()
            for assignment, row in zip(found[name].assignments, own, strict=True)
        )

    outputs = Outputs(Path(f"{stem}.pt"))
    if args.trained:
        train_halves(supernet, prepared.train, config, choose, outputs)
        for width in supernet.widths:
            reestimate_norms(supernet, prepared.train, supernet.graph.uniform(width))
    else:
        train_supernet(supernet, prepared.train, config, outputs)
        choose()
    return Trained(supernet, prepared, found, rows)


def lowered_model(t: Trained, data: Dataset, config: TrainConfig, budgets: list[Budget]) -> Model:
    """Every branch with statistics of its own, lowered; gates that are not learned yet, and each width everywhere."""
    graph, own, points, gates = t.supernet.graph, [], [], {}
    for budget in budgets:
        branches, first_set = t.branches[budget.name], len(t.supernet.widths) + len(own)
        gates[budget.name] = unrouted(graph, branches, first_set)
        points.append((budget.name, branches.assignments[0], first_set))
        own += estimate_branches(t.supernet, t.prepared.train, branches, t.rows.get(budget.name, ()))
    points += [(uniform_name(w), graph.uniform(w), None) for w in t.supernet.widths]
    t.supernet.set_assignment(graph.uniform(t.supernet.widths[-1]))
    t.supernet.output_step.copy_(predict(t.supernet, t.prepared.train).abs().max() * 4 / 2**15)
    model = assemble(lower(t.supernet, t.prepared.scaling.step, own), data, t.prepared, points, config)
    return model.replace(points=tuple(p._replace(gate=gates.get(p.name)) for p in model.points))


class Measured(NamedTuple):
    """A point on N samples: right (N, B) at each branch, taken (N,); by cost, that of branches (B,) and of the gate."""

    right: NDArray[np.bool_]
    taken: NDArray[np.int64]
    costs: dict[str, NDArray[np.float64]]
    gate: dict[str, float]

    def row(self, method: str, seed: int, point: str, taken: NDArray[np.int64] | None) -> Row:
        """Accuracy and mean costs when samples take these branches; None: at random, in the shares of `self.taken`."""
        share = np.bincount(self.taken, minlength=self.right.shape[1]) / len(self.taken)
        if taken is None:
            accuracy, means = float(share @ self.right.mean(0)), {k: float(share @ c) for k, c in self.costs.items()}
        else:
            accuracy = float(self.right[np.arange(len(taken)), taken].mean())
            means = {k: float(c[taken].mean()) for k, c in self.costs.items()}
        return Row(method, seed, point, accuracy, *(means[k] + self.gate[k] for k in ("bytes", "bit_macs", "")))


def measured(model: Model, point: OperatingPoint, x: NDArray[np.generic], y: NDArray[np.integer]) -> Measured:
    """Runs every branch, and the gate, on samples x (N, ...) with labels y (N,)."""
    engine, graph = Engine(model), model.graph
    plans = [engine.build(b.assignment, b.parameter_set) for b in point.branches]
    right = np.stack([engine.run_plan(plan, x).argmax(1) == y for plan in plans], 1)
    outputs, taken = engine.run_routed(x, engine.build_point(point.name))
    assert (right[np.arange(len(y)), taken] == (outputs.argmax(1) == y)).all()
    tables = {name: cost_table(graph, name) for name in ("bytes", "bit_macs", "")}
    costs = {name: np.array([t.of(graph, b.assignment) for b in point.branches]) for name, t in tables.items()}
    gate = {n: t.gate(point.gate.tensor, len(plans)) if point.gate else 0.0 for n, t in tables.items()}
    return Measured(right, taken, costs, gate)


def run_seed(data: Dataset, args: argparse.Namespace, seed: int, budgets: list[Budget]) -> list[Row]:
    """All rows of one seed."""
    config = TrainConfig(args.epochs, args.batch_size, seed=seed, task=task_of(args.model))
    part, routing = hold_back(data, HELD_BACK, seed)
    x, y = data.x_test, data.y_test
    if args.validate:
        rows, domains = np.flatnonzero(routing.fresh), data.domain_train
        held = replace(data, x_train=data.x_train[rows], y_train=data.y_train[rows])
        held = replace(held, domain_train=None if domains is None else domains[rows])
        measured_on = rows[hold_back(held, 0.5, seed)[1].fresh]
        x, y = data.x_train[measured_on], data.y_train[measured_on]
        routing = routing.part(np.setdiff1d(np.arange(len(data.y_train)), measured_on))
    t = trained(part, args, config, budgets)
    model = lowered_model(t, part, config, budgets)
    rows = []
    for budget in budgets:
        model = learn_gate_of(model, budget, routing, RouteConfig(seed=seed))
        point = next(p for p in model.points if p.name == budget.name)
        m = measured(model, point, x, y)
        static = t.branches[budget.name].static
        alone = m._replace(gate=dict.fromkeys(m.gate, 0.0))
        for i in range(m.right.shape[1]):
            name = budget.name if i == static else f"{budget.name}, branch {i}"
            rows.append(alone.row("supernet", seed, name, np.full(len(y), i)))
        rows.append(m.row("conditional", seed, budget.name, m.taken))
        rows.append(m.row("random routing", seed, budget.name, None))
        # argmax takes the first branch, the cheapest, where several are right, or none is.
        rows.append(m.row("oracle routing", seed, budget.name, m.right.argmax(1)))
    for p in model.points:
        if p.gate is None:
            m = measured(model, p, x, y)
            rows.append(m.row("supernet", seed, p.name, m.taken))
    return rows


def compared(rows: list[Row], budgets: list[Budget]) -> list[dict[str, Any]]:
    """A line a budget and seed: the conditional gate, and static gates at its mean cost by linear interpolation."""
    lines = []
    names = {*(b.name for b in budgets), uniform_name(min(DEFAULT_WIDTHS)), uniform_name(max(DEFAULT_WIDTHS))}
    for row in rows:
        if row.method != "conditional":
            continue
        same_seed = [r for r in rows if r.seed == row.seed]
        static = sorted((r.cost, r.accuracy) for r in same_seed if r.method == "supernet" and r.point in names)
        costs, accuracies = zip(*static, strict=True)
        others = {r.method: r for r in same_seed if r.point == row.point}
        lines.append(
            {
                "seed": row.seed,
                "point": row.point,
                "conditional": row.accuracy,
                "static at its cost": float(np.interp(row.cost, costs, accuracies)),
                "its cost": row.cost,
                "static": others["supernet"].accuracy,
                "cost of static": others["supernet"].cost,
                "random routing": others["random routing"].accuracy,
                "oracle routing": others["oracle routing"].accuracy,
                "cost of oracle": others["oracle routing"].cost,
            }
        )
    return lines


def table(lines: list[dict[str, Any]]) -> str:
    """Means over seeds, as a page has them: accuracies in %, costs relative to 8 bits everywhere."""
    keys = [key for key in lines[0] if key not in ("seed", "point")]
    text = ["| | " + " | ".join(keys) + " |", "|---" * (len(keys) + 1) + "|"]
    for point in dict.fromkeys(line["point"] for line in lines):
        means = {key: float(np.mean([line[key] for line in lines if line["point"] == point])) for key in keys}
        costs = ("its cost", "cost of static", "cost of oracle")
        cells = [f"{mean:.3f}" if key in costs else f"{100 * mean:.1f}" for key, mean in means.items()]
        text.append(f"| {point} | " + " | ".join(cells) + " |")
    gains = [100 * (line["conditional"] - line["static at its cost"]) for line in lines]
    span = f"{min(gains):+.1f}..{max(gains):+.1f}"
    text += ["", f"Conditional minus static at its cost: {np.mean(gains):+.2f} points ({span})."]
    return "\n".join(text) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="digits, or a .npz")
    parser.add_argument("--model", required=True)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--gate-steps", type=int, default=GateConfig.steps)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--trained", action="store_true", help="train the branches in the second half of the epochs")
    parser.add_argument("--domain", type=int, help="test only on this domain")
    parser.add_argument("--validate", action="store_true", help="measure on a part of the training split")
    parser.add_argument("--cache", type=Path, default=Path("runs/conditional"))
    args = parser.parse_args()
    data, started, budgets = load(args.data), time.monotonic(), list(DEFAULT_BUDGETS)
    data = data.tested_on(args.domain)
    rows = [row for seed in args.seeds for row in run_seed(data, args, seed, budgets)]
    lines = compared(rows, budgets)
    print(table(lines))
    if args.validate:
        return
    options = {"data": Path(args.data).name, "model": args.model, "epochs": args.epochs, "batch-size": args.batch_size}
    options |= {"gate-steps": args.gate_steps, "seeds": " ".join(map(str, args.seeds)), "domain": args.domain}
    command = " ".join(f"--{key} {value}" for key, value in options.items() if value is not None)
    command += " --trained" if args.trained else ""
    command = f"python -m benchmarks.conditional {command}"
    summary = {
        "command": command,
        "caq": caq.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "hours": round((time.monotonic() - started) / 3600, 2),
        "test_samples": len(data.y_test),
        "rows": [{k: v if isinstance(v, str) else round(v, 6) for k, v in row._asdict().items()} for row in rows],
        "compared": [{k: v if isinstance(v, str) else round(v, 6) for k, v in line.items()} for line in lines],
    }
    stem = f"conditional_{'trained_' if args.trained else ''}{data.name}_{args.model}"
    (RESULTS / f"{stem}.json").write_text(json.dumps(summary, indent=1) + "\n")
    (RESULTS / f"{stem}.md").write_text(f"`{command}`\n\n{table(lines)}")


if __name__ == "__main__":
    main()

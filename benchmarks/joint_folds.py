"""Which training is better on people that it never saw: cross-validation inside the training split.

    python -m benchmarks.joint_folds --data usc_had.npz --model resnet8 --epochs 6 --rows recipe '4 alone' smoothing
    python -m benchmarks.joint_folds --data usc_had.npz --model resnet8 --epochs 6 --rows fp32 'fp32 with smoothing'

Folds are whole domains of the training split (people, devices) where the data have them, else stratified by class; the
test split is never read. Accuracy and cross entropy are of fake quantization with batch norm estimated anew, at every
uniform width, over random assignments, and, in rows "gated", of gates. Finished trainings are kept in --cache, so that
rows can be added; all rows that the cache has for these settings go to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.model_selection import StratifiedKFold
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import update_bn

import caq
from benchmarks.accuracy import RESULTS, FloatNetwork
from benchmarks.baselines import adabits, any_precision, chosen
from benchmarks.baselines.average import WeightAverage
from benchmarks.baselines.joint import Plan, train_joint, train_plain
from caq.costs import DEFAULT_BUDGETS
from caq.data import Dataset, load
from caq.graph import Assignment
from caq.supernet.batches import Samples, samples
from caq.supernet.conversion import DEFAULT_WIDTHS, convert
from caq.supernet.network import Supernet
from caq.supernet.pipeline import Prepared, prepare
from caq.supernet.points import Point, train_gated, train_halves
from caq.supernet.train import TrainConfig, accuracy, predict, random_assignment, reestimate_norms

#: Rows by name: how all widths are trained together. `fp32` and `alone` are added in `run`.
VARIANTS = {
    "recipe": Plan(),
    "smoothing": Plan(smoothing=0.1),
    "recursive": Plan(wider=True),
    "labels": Plan(labels=1.0),
    "upwards": Plan(upwards=True),
    "widest range": Plan(widest_range=True),
    "summed": Plan(summed=True),
    "soft": Plan(labels=0.0),
    "soft, smoothing": Plan(labels=0.0, smoothing=0.1),
    "soft, recursive": Plan(labels=0.0, wider=True),
    "turns": Plan(turns=True),
    "mixup": Plan(mixup=0.2),
    "any_precision": any_precision.PLAN,
    "adabits": adabits.PLAN,
}
#: Gates' points trained for that share of the epochs, by the row's name.
GATED = {f"gated {share:g}": share for share in (0.0, 0.25, 0.5)}
#: Points that others choose half-way, and that are trained as gates' are, by the row's name.
CHOSEN = {"chosen at random": chosen.at_random, "chosen by sensitivity": chosen.by_sensitivity}
#: Networks for one width alone, by the row's name.
ALONE = {f"{width} alone": width for width in DEFAULT_WIDTHS}
#: The same in two halves, each with a schedule of its own, as a supernet whose gates' points are trained.
HALVES = {f"{width} alone in halves": width for width in DEFAULT_WIDTHS}
#: The share of the epochs, at the end, over which weights are averaged for the rows "averaged": as long as tensors
#: between layers are rounded, whose steps are fitted before.
AVERAGED = 1 / 3
RANDOM_ASSIGNMENTS = 4
#: Training samples that batch norm is estimated anew from: every training is measured 20 times.
FOR_NORMS = 1024

Scores = dict[str, list[float]]  # of a width, "random" or a gate: accuracy and cross entropy


def folds(data: Dataset, count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Indices (training, held out) into x_train, `count` times; held-out domains differ where there are enough."""
    domains = np.unique(data.domain_train) if data.domain_train is not None else np.zeros(1)
    if len(domains) < count:
        splits = StratifiedKFold(count, shuffle=True, random_state=0)
        yield from splits.split(data.x_train, data.y_train)
        return
    for held in np.array_split(domains, count):
        inside = np.isin(data.domain_train, held)
        yield np.flatnonzero(~inside), np.flatnonzero(inside)


def supernet_scores(supernet: Supernet, norms: Samples, held: Samples) -> Scores:
    """Accuracy and cross entropy on `held` of every width, and over random assignments; batch norm from `norms`."""
    found = {}
    rng = np.random.default_rng(0)
    for width in supernet.widths:
        found[str(width)] = _scores(supernet, norms, held, [supernet.graph.uniform(width)])
    if len(supernet.widths) > 1:
        assignments = [random_assignment(supernet.graph, rng) for _ in range(RANDOM_ASSIGNMENTS)]
        found["random"] = _scores(supernet, norms, held, assignments)
    return found


def _scores(
    supernet: Supernet, norms: Samples, held: Samples, assignments: list[Assignment], row: int | None = None
) -> list[float]:
    found = []
    for assignment in assignments:
        reestimate_norms(supernet, norms, assignment, row)
        found.append(_score(predict(supernet, held), held))
    return np.mean(found, 0).tolist()


def _score(logits: Tensor, held: Samples) -> tuple[float, float]:
    return accuracy(logits, held.labels), float(functional.cross_entropy(logits, held.labels))


def reestimate_float_norms(network: nn.Module, norms: Samples) -> None:
    """Replaces the batch-norm statistics of a float network by those of its weights as they are."""
    update_bn((x for x, _ in norms.typical(256, len(norms))), network)
    network.eval()


def train_points(
    supernet: Supernet, part: Dataset, prepared: Prepared, config: TrainConfig, kind: str
) -> Sequence[Point]:
    """Trains `supernet` and its points for the default budgets, as a row of GATED or of CHOSEN says."""
    if kind in GATED:
        return train_gated(supernet, prepared.train, replace(config, point_share=GATED[kind]))

    def choose() -> tuple[Point, ...]:
        assignments = CHOSEN[kind](supernet, part, prepared, config, DEFAULT_BUDGETS)
        return tuple(Point(b.name, a, supernet.add_row(a)) for b, a in zip(DEFAULT_BUDGETS, assignments, strict=True))

    return train_halves(supernet, prepared.train, config, choose)


def train_and_score(
    data: Dataset, args: argparse.Namespace, name: str, config: TrainConfig, fold: int
) -> dict[str, Scores]:
    """Trains row `name` without a fold; returns its scores there, of the last weights and of averaged ones."""
    inside, outside = list(folds(data, args.folds))[fold]
    part = replace(data, x_train=data.x_train[inside], y_train=data.y_train[inside], domain_train=None)
    prepared = prepare(part, args.model, config.seed)
    held = samples(data.x_train[outside], data.y_train[outside], prepared.scaling, prepared.input_shape, data.kind)
    order = np.random.default_rng(0).permutation(len(prepared.train))
    norms = prepared.train.subset(order[:FOR_NORMS])
    start = round((1 - AVERAGED) * config.epochs)
    kind, _, option = name.partition(" with ")
    plan = VARIANTS[option or ("recipe" if kind in ("fp32", *ALONE, *HALVES, *GATED, *CHOSEN) else kind)]

    def averaging(model: nn.Module) -> tuple[WeightAverage, Callable[[int], None]]:
        average = WeightAverage(model)
        return average, lambda epoch: average.add() if epoch >= start else None

    def both(average: WeightAverage, scores: Callable[[], Scores]) -> dict[str, Scores]:
        found = {"": scores()}
        if args.averaged:
            average.store()
            found["averaged"] = scores()
        return found

    if kind == "fp32":
        network = FloatNetwork(prepared)
        average, after = averaging(network)
        train_plain(network, prepared.train, config, plan, after=after)

        def float_scores() -> Scores:
            reestimate_float_norms(network, norms)
            return {"fp32": list(_score(predict(network, held), held))}

        return both(average, float_scores)
    alone = ALONE | HALVES
    widths = (alone[kind],) if kind in alone else DEFAULT_WIDTHS
    supernet = convert(prepared.network, prepared.example(), widths)
    if kind in GATED or kind in CHOSEN:
        points = train_points(supernet, part, prepared, config, kind)
        of_points = {p.name: _scores(supernet, norms, held, [p.assignment], p.row) for p in points}
        return {"": supernet_scores(supernet, norms, held) | of_points}
    if kind in HALVES:
        train_halves(supernet, prepared.train, config, tuple)
        return {"": supernet_scores(supernet, norms, held)}
    average, after = averaging(supernet)
    train_joint(supernet, prepared.train, config, plan, after=after)
    return both(average, lambda: supernet_scores(supernet, norms, held))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="digits, or a .npz")
    parser.add_argument("--model", required=True)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--only", type=int, nargs="+", help="train for these folds, counted from 0; default: all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    names = ", ".join([*ALONE, *HALVES, "fp32", *VARIANTS, *GATED, *CHOSEN])
    parser.add_argument("--rows", nargs="+", default=["recipe"], help=names)
    parser.add_argument("--rates", type=float, nargs="+", default=[8e-3])
    parser.add_argument("--decays", type=float, nargs="+", default=[1e-2])
    parser.add_argument("--rotation", type=float, default=0.0, help="degrees by which training turns sensors' axes")
    parser.add_argument("--masking", type=float, default=0.0, help="share of rows and columns that training masks")
    parser.add_argument("--averaged", action="store_true", help="also measure weights averaged over the last epochs")
    parser.add_argument("--cache", type=Path, default=Path("runs/folds"))
    args = parser.parse_args()

    data = load(args.data)
    cache = args.cache / f"{data.name}-{data.sha256[:8]}-{args.model}-{args.epochs}-{args.batch_size}-{args.folds}"
    cache.mkdir(parents=True, exist_ok=True)
    runs = product(args.seeds, args.only or range(args.folds), args.rows, args.rates, args.decays)
    for seed, fold, name, rate, decay in runs:
        suffix = f"_turned{args.rotation:g}" if args.rotation else ""
        suffix += f"_masked{args.masking:g}" if args.masking else ""
        path = cache / f"{name}_{rate:g}_{decay:g}_{fold}_{seed}{suffix}.json"
        if path.exists():
            continue
        started = time.monotonic()
        config = TrainConfig(args.epochs, args.batch_size, rate, decay, seed=seed)
        config = replace(config, rotation=args.rotation, masking=args.masking)
        row = f"{name}, turned by {args.rotation:g}" if args.rotation else name
        row += f", masked by {args.masking:g}" if args.masking else ""
        found = {"row": row, "rate": rate, "decay": decay, "fold": fold, "seed": seed}
        found["scores"] = train_and_score(data, args, name, config, fold)
        found["seconds"] = round(time.monotonic() - started, 1)
        path.write_text(json.dumps(found) + "\n")
    trainings = [json.loads(path.read_text()) for path in sorted(cache.glob("*.json"))]
    record = {
        "command": f"python -m benchmarks.joint_folds --data {Path(args.data).name} --model {args.model} "
        f"--epochs {args.epochs} --batch-size {args.batch_size} --folds {args.folds} "
        "--rows ROW --rates RATE --decays DECAY --rotation DEGREES --masking SHARE",
        "caq": caq.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "hours": round(sum(one["seconds"] for one in trainings) / 3600, 2),
        "trainings": trainings,
    }
    stem = RESULTS / f"folds_{data.name}_{args.model}_{args.folds}x{args.epochs}"
    stem.with_suffix(".json").write_text(json.dumps(record) + "\n")
    stem.with_suffix(".md").write_text(f"`{record['command']}`\n\n{markdown(summary(trainings))}\n")
    print(markdown(summary(trainings)))
    return 0


def summary(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each training and kind of weights: means over folds and seeds, and how many those are."""
    groups: dict[tuple[str, float, float, str], list[Scores]] = {}
    for one in found:
        for weights, scores in one["scores"].items():
            groups.setdefault((one["row"], one["rate"], one["decay"], weights), []).append(scores)
    return [
        {
            "row": f"{row}, {weights}" if weights else row,
            "rate": rate,
            "decay": decay,
            "trainings": len(scores),
            "scores": {key: np.mean([s[key] for s in scores], 0).round(4).tolist() for key in scores[0]},
        }
        for (row, rate, decay, weights), scores in groups.items()
    ]


def markdown(rows: list[dict[str, Any]]) -> str:
    """The rows as a table: accuracy in %, cross entropy in brackets."""
    keys = ["fp32", *map(str, reversed(DEFAULT_WIDTHS)), "random", *(budget.name for budget in DEFAULT_BUDGETS)]
    lines = [f"| row | rate | decay | trainings | {' | '.join(keys)} |", "|" + "---|" * (len(keys) + 4)]
    for row in rows:
        cells = [
            f"{100 * row['scores'][k][0]:.1f} ({row['scores'][k][1]:.3f})" if k in row["scores"] else "" for k in keys
        ]
        lines.append(
            f"| {row['row']} | {row['rate']:g} | {row['decay']:g} | {row['trainings']} | {' | '.join(cells)} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())

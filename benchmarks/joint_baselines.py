"""Joint training beside other people's, and beside networks for one width alone: test accuracy, and bytes.

    python -m benchmarks.joint_baselines --data digits --model resnet8 --epochs 20 --seeds 0 1 2
    python -m benchmarks.joint_baselines --data usc_had.npz --model resnet8 --epochs 6 --rotation 30 --seeds 0 1 2

Rows, with the same networks, initial weights, quantizers, augmentation, epochs, schedule and, but for ranges of
networks for 2 or 3 bits alone, rate:

    supernet, fp32, alone  those of `python -m benchmarks.accuracy`, with the same --cache
    any_precision, adabits all widths together, as `benchmarks/baselines` says
    alone_3x               networks for one width, trained three times as long: as many updates as the supernet's

Every layer's weights switch, first and last too; inputs have 8 bits. Quantized rows are measured in integers on the
test split, by which nothing is chosen. Finished rows are kept in --cache; --rows and --widths ask for fewer, and all
that is there goes to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import caq
from benchmarks import accuracy
from benchmarks.baselines import adabits, any_precision
from benchmarks.baselines.joint import train_joint
from caq.data import Dataset
from caq.supernet.conversion import DEFAULT_WIDTHS, convert
from caq.supernet.pipeline import finish, prepare, train_model
from caq.supernet.train import Outputs, TrainConfig

#: Plans by method.
JOINT = {"any_precision": any_precision.PLAN, "adabits": adabits.PLAN}
LONGER = 3
ROWS = [*JOINT, "alone_3x"]

Row = dict[str, Any]  # point, accuracy: one model at one operating point


def train_any(data: Dataset, args: argparse.Namespace, config: TrainConfig, method: str, cache: Path) -> list[Row]:
    """Trains one of JOINT; returns a row for each width."""
    plan = JOINT[method]
    prepared = prepare(data, args.model, config.seed)
    supernet = convert(prepared.network, prepared.example(), DEFAULT_WIDTHS)
    train_joint(supernet, prepared.train, config, plan, Outputs(cache / f"{method}-{config.seed}.pt"))
    model = finish(supernet, data, prepared, config)
    return [{"point": point.name, "accuracy": point.score} for point in model.points]


def train_longer(data: Dataset, args: argparse.Namespace, config: TrainConfig, width: int, cache: Path) -> list[Row]:
    """Trains a network for one width for LONGER times the epochs."""
    config = replace(config, epochs=LONGER * config.epochs)
    outputs = Outputs(cache / f"alone_3x-{width}-{config.seed}.pt")
    model = train_model(data, args.model, config, (width,), (), outputs)
    return [{"point": model.points[0].name, "accuracy": model.points[0].score}]


def cached(path: Path, train: Callable[[], list[Row]]) -> None:
    """Writes what `train` returns and its seconds to `path`, unless it is there."""
    if path.exists():
        return
    started = time.monotonic()
    rows = train()
    path.write_text(json.dumps({"rows": rows, "seconds": round(time.monotonic() - started, 1)}, indent=1) + "\n")
    print(f"{path.stem}: {json.dumps(rows)}", flush=True)


def run_baselines(data: Dataset, args: argparse.Namespace, seed: int, cache: Path) -> None:
    """Trains what --rows and --widths ask for."""
    config = accuracy.train_config(args, seed)
    for method in JOINT:
        if method in args.rows:
            cached(cache / f"{method}@{seed}.json", lambda m=method: train_any(data, args, config, m, cache))
    for width in args.widths if "alone_3x" in args.rows else ():
        path = cache / f"alone_3x@{seed}@{width}.json"
        cached(path, lambda w=width: train_longer(data, args, config, w, cache))


def collect(cache: Path) -> tuple[list[Row], float]:
    """All finished rows in the format that the results share, and hours of training."""
    rows, seconds = [], 0.0
    for path in sorted(cache.glob("seed-*.json")):
        seed, found = int(path.stem.removeprefix("seed-")), json.loads(path.read_text())
        seconds += sum(found["seconds"].values())
        for name, value in found.items():
            if isinstance(value, float):
                point, _, alone = name.partition(" ")
                method = alone or ("fp32" if point == "fp32" else "supernet")
                cost = relative_cost(found, point)
                rows.append({"method": method, "seed": seed, "point": point, "accuracy": value, **cost})
    for path in sorted(cache.glob("*@*.json")):
        method, seed = path.stem.split("@")[:2]
        found = json.loads(path.read_text())
        seconds += found["seconds"]
        costs = json.loads((cache / f"seed-{seed}.json").read_text())
        for row in found["rows"]:
            rows.append({"method": method, "seed": int(seed), **row, **relative_cost(costs, row["point"])})
    return rows, seconds / 3600


def relative_cost(found: dict[str, Any], point: str) -> dict[str, float | None]:
    """Weight bytes and bit-MACs of a point over those of w8a8; None for a float network."""
    if point not in found.get("costs", {}):
        return {"bytes": None, "bit_macs": None}
    share = np.divide(found["costs"][point], found["costs"]["w8a8"])
    return {"bytes": round(float(share[0]), 4), "bit_macs": round(float(share[1]), 4)}


def markdown(rows: list[Row]) -> str:
    """Mean accuracy in % (smallest..largest; seeds) of each method at each width. Only cells of equal seeds compare."""
    points = ["fp32", *(f"w{width}a{width}" for width in reversed(DEFAULT_WIDTHS))]
    lines = ["| | " + " | ".join(points) + " |", "|" + "---|" * (len(points) + 1)]
    for method in dict.fromkeys(row["method"] for row in rows):
        cells = []
        for point in points:
            found = {r["seed"]: 100 * r["accuracy"] for r in rows if (r["method"], r["point"]) == (method, point)}
            values, seeds = list(found.values()), " ".join(map(str, sorted(found)))
            cells.append(f"{np.mean(values):.1f} ({min(values):.1f}..{max(values):.1f}; {seeds})" if values else "")
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def command(args: argparse.Namespace) -> str:
    """The command line of these settings, without the caller's folders."""
    text = accuracy.command("joint_baselines", args)
    if args.rows != ROWS:
        text += f" --rows {' '.join(args.rows)}".rstrip()
    return text + (f" --widths {' '.join(map(str, args.widths))}" if args.widths != DEFAULT_WIDTHS else "")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    accuracy.add_settings(parser)
    parser.add_argument(
        "--rows", nargs="*", default=ROWS, choices=ROWS, help="what to train beside benchmarks.accuracy"
    )
    parser.add_argument("--widths", type=int, nargs="+", default=DEFAULT_WIDTHS, help="of the networks for one width")
    args = parser.parse_args()

    data = accuracy.read_data(args)
    cache = accuracy.cache_folder(args, data)
    for seed in args.seeds:
        accuracy.run_seed(data, args, seed, cache, args.widths)
        run_baselines(data, args, seed, cache)
    rows, hours = collect(cache)
    summary = {
        "command": command(args),
        "caq": caq.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "hours": round(hours, 2),
        "rows": rows,
    }
    stem = accuracy.RESULTS / f"joint_{data.name}_{args.model}"
    stem.with_suffix(".json").write_text(json.dumps(summary, indent=1) + "\n")
    stem.with_suffix(".md").write_text(f"`{summary['command']}`\n\n{markdown(rows)}")
    print(markdown(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Networks that are quantized after training, without labels and without training them again.

    pip install 'caq[train,baselines]' -c constraints.txt
    python -m benchmarks.post_training --data digits --model resnet8 --epochs 20
    python -m benchmarks.post_training --data usc_had.npz --model resnet8 --epochs 6 --rotation 30
    python -m benchmarks.post_training --data kws12.npz --model ds_cnn --epochs 12 --domain 0

All start from the float network of benchmarks.accuracy (the same cache) and from the same 1,024 samples of its training
split. In every row the input has 8 bits and all layers, first and last included, switch their weights.

    fp32       the float network, on the same 8-bit inputs
    convert    what `caq convert` makes of it: one file, one set of codes; with its gates; measured in integers
    slicing    one set of 8-bit codes, of which lower widths read the top bits; measured in integers
    torchao    a network for each width, by torchao's primitives; in floats
    brevitas   a network for each width, by Brevitas; in floats

Rows go to benchmarks/results/post_training_<data>_<model>.json: accuracy on the test split, bytes of weights and
bit-MACs relative to w8a8. No choice is made by them. Hours are without the training of the float networks.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

import caq
from benchmarks import accuracy
from benchmarks.accuracy import RESULTS
from benchmarks.baselines import slicing
from benchmarks.baselines.given import CALIBRATION, Given, Point, train
from caq.errors import MissingExtraError
from caq.supernet.trained import ConvertConfig, Trained, convert_trained


def fp32(given: Given) -> list[Point]:
    return [Point("fp32", given.accuracy(given.network))]


def converted(given: Given) -> list[Point]:
    source = Trained(given.prepared.name, given.copy(), None, given.data.name, "")
    config = ConvertConfig(samples=CALIBRATION, moments=None, seed=given.seed)
    model, _ = convert_trained(source, given.data, config)
    return [Point(point.name, point.score, point.assignment) for point in model.points]


def other(package: str, module: str) -> Callable[[Given], list[Point]]:
    """A baseline of another package, which is needed only when it runs."""

    def measure(given: Given) -> list[Point]:
        if find_spec(package) is None:
            raise MissingExtraError(package, "baselines")
        return import_module(f"benchmarks.baselines.{module}").measure(given)  # type: ignore[no-any-return]

    return measure


METHODS: dict[str, Callable[[Given], list[Point]]] = {
    "fp32": fp32,
    "convert": converted,
    "slicing": slicing.measure,
    "torchao": other("torchao", "torchao_affine"),
    "brevitas": other("brevitas", "brevitas_ptq"),
}


def rows(given: Given, method: str, cache: Path) -> dict[str, Any]:
    """A method's rows for one seed and the seconds that they took; from a file in `cache` if measured before."""
    path = cache / f"post-training-{method}-{given.seed}.json"
    if path.exists():
        return json.loads(path.read_text())  # type: ignore[no-any-return]
    started = time.monotonic()
    widest = given.graph.cost(given.graph.uniform(given.graph.widths[-1]))
    found = []
    for point in METHODS[method](given):
        row = {"method": method, "seed": given.seed, "point": point.name, "accuracy": round(point.accuracy, 6)}
        cost = given.graph.cost(point.assignment) if point.assignment is not None else None
        row["bytes"] = round(cost.weight_bytes / widest.weight_bytes, 4) if cost else None
        row["bit_macs"] = round(cost.bit_macs / widest.bit_macs, 4) if cost else None
        found.append(row)
    result = {"rows": found, "seconds": round(time.monotonic() - started, 1)}
    path.write_text(json.dumps(result))
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    accuracy.add_settings(parser)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    args = parser.parse_args()

    data = accuracy.read_data(args)
    cache = accuracy.cache_folder(args, data)
    found, seconds = [], 0.0
    for seed in args.seeds:
        given = train(data, args.model, accuracy.train_config(args, seed), cache / f"float-{seed}.pt")
        for method in args.methods:
            result = rows(given, method, cache)
            found, seconds = found + result["rows"], seconds + result["seconds"]
            scores = {row["point"]: row["accuracy"] for row in result["rows"]}
            print(f"seed {seed}, {method}: {json.dumps(scores)}", flush=True)
    summary = {
        "command": accuracy.command("post_training", args) + f" --methods {' '.join(args.methods)}",
        "caq": caq.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        **{name: version(name) for name in ("torchao", "brevitas") if name in args.methods},
        "hours": round(seconds / 3600, 2),
        "calibration_samples": CALIBRATION,
        "test_samples": len(data.y_test),
        "rows": found,
    }
    (RESULTS / f"post_training_{data.name}_{args.model}.json").write_text(json.dumps(summary, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

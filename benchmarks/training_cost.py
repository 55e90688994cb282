"""What one epoch of joint training costs, in epochs of the float network.

    python -m benchmarks.training_cost --data kws12.npz --model ds_cnn
    python -m benchmarks.training_cost --data digits --model resnet8

Processor time of whole trainings of five epochs, so that rounding between layers has its usual share, on the same few
batches; the least of --repeats, which other work on the machine disturbs least. The epochs that train gates' points
round between layers throughout. The unit is the float network with its
tensors channels last; trained channels first, as torch does unasked, it stands beside. Results go to
benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.accuracy import RESULTS, FloatNetwork
from caq.data import load
from caq.supernet.conversion import DEFAULT_WIDTHS, convert
from caq.supernet.pipeline import prepare
from caq.supernet.train import Outputs, TrainConfig, random_assignment, train_float, train_supernet

EPOCHS = 5
QUIET = Outputs(quiet=True)


def seconds_per_epoch(runs: dict[str, Callable[[], None]], repeats: int) -> dict[str, float]:
    """Fewest processor seconds of one epoch of each of `runs`, which train for EPOCHS; the runs take turns."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            started = time.process_time()
            run()
            times[name].append((time.process_time() - started) / EPOCHS)
    return {name: min(seconds) for name, seconds in times.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="digits, or a .npz")
    parser.add_argument("--model", required=True)
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()

    data, config = load(args.data), TrainConfig(epochs=EPOCHS)
    prepared = prepare(data, args.model, config.seed)
    few = prepared.train.subset(np.arange(args.batches * config.batch_size))
    plain, last = FloatNetwork(prepared, channels_last=False), FloatNetwork(prepared)
    joint = convert(prepared.network, prepared.example(), DEFAULT_WIDTHS)
    rng, second = np.random.default_rng(0), replace(config, rounding_from=0.0)
    points = [(drawn, joint.add_row(drawn)) for drawn in (random_assignment(joint.graph, rng) for _ in range(3))]
    alone = {width: convert(prepared.network, prepared.example(), (width,)) for width in (8, 2)}
    runs: dict[str, Callable[[], None]] = {
        "fp32, channels last": lambda: train_float(last, few, config, QUIET),
        "fp32, channels first": lambda: train_float(plain, few, config, QUIET),
        "w8a8 alone": lambda: train_supernet(alone[8], few, config, QUIET),
        "w2a2 alone": lambda: train_supernet(alone[2], few, config, QUIET),
        "supernet, " + ", ".join(map(str, DEFAULT_WIDTHS)): lambda: train_supernet(joint, few, config, QUIET),
        "the same, with gates' points": lambda: train_supernet(joint, few, second, QUIET, points),
    }
    found = {name: s / args.batches for name, s in seconds_per_epoch(runs, args.repeats).items()}
    unit = found["fp32, channels last"]
    rows = [
        {"row": name, "ms_per_batch": round(1e3 * s, 1), "fp32_epochs": round(s / unit, 2)} for name, s in found.items()
    ]
    summary = {
        "command": f"python -m benchmarks.training_cost --data {Path(args.data).name} --model {args.model}",
        "batch_size": config.batch_size,
        "repeats": args.repeats,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "table": rows,
    }
    (RESULTS / f"training_cost_{data.name}_{args.model}.json").write_text(json.dumps(summary, indent=1) + "\n")
    print(json.dumps(summary, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())

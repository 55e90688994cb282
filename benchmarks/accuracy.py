"""Accuracy of one supernet at every width and gate, beside the float network and networks trained for one width.

    python -m benchmarks.accuracy --data digits --model resnet8 --epochs 20 --alone --bars
    python -m benchmarks.accuracy --data kws12.npz --model ds_cnn --epochs 12 --domain 0
    python -m benchmarks.accuracy --data usc_had.npz --model resnet8 --epochs 6 --rotation 30

Same network, initial weights, data, augmentation, epochs, rate and schedule in every row; only learned ranges of
networks for 2 or 3 bits alone have a faster rate of their own, which is better for them (docs/joint-training.md).
Every quantized figure is measured on the test split by the integer reference engine; the float row is the float
network's. No row chooses anything by the test split. Inputs have 8 bits in every row (the float network's too); the
first layer therefore reads 8-bit activations at every width, and all layers, first and last included, switch their
weights.

Finished seeds are kept in --cache, and training resumes from its checkpoints there. The table goes to
benchmarks/results/.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import caq
from caq.data import Dataset, load
from caq.supernet.batches import samples
from caq.supernet.conversion import DEFAULT_WIDTHS
from caq.supernet.network import channels_last
from caq.supernet.pipeline import Prepared, prepare, train_model
from caq.supernet.train import Outputs, TrainConfig, accuracy, predict, train_float

RESULTS = Path(__file__).parent / "results"


class FloatNetwork(nn.Module):
    """A copy of a zoo network behind the reshape that its layout needs.

    channels_last: whether images lie in memory as the supernet has them, which is faster.
    """

    def __init__(self, prepared: Prepared, channels_last: bool = True) -> None:
        super().__init__()
        self.prepared = prepared
        self.network = copy.deepcopy(prepared.network)
        self.channels_last = channels_last and prepared.layout == "image"
        if self.channels_last:
            self.network.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        x = channels_last(x) if self.channels_last else x
        return self.network(self.prepared.as_network_input(x))  # type: ignore[no-any-return]


def float_accuracy(data: Dataset, model: str, config: TrainConfig, outputs: Outputs) -> float:
    """Test accuracy of the float network after the same training."""
    prepared = prepare(data, model, config.seed)
    network = FloatNetwork(prepared)
    train_float(network, prepared.train, config, outputs)
    test = samples(data.x_test, data.y_test, prepared.scaling, prepared.input_shape, data.kind)
    return accuracy(predict(network, test), test.labels)


def run_seed(
    data: Dataset, args: argparse.Namespace, seed: int, cache: Path, alone: Sequence[int] = ()
) -> dict[str, Any]:
    """All rows of one seed: name -> accuracy, and seconds of training under `seconds`. alone: widths to train alone."""
    path = cache / f"seed-{seed}.json"
    rows: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"seconds": {}}
    config = train_config(args, seed)

    def keep(name: str, found: dict[str, float], started: float) -> None:
        rows.update(found)
        rows["seconds"][name] = round(time.monotonic() - started, 1)
        path.write_text(json.dumps(rows, indent=1))
        print(f"seed {seed}, {name}: {json.dumps(found)}", flush=True)

    if "fp32" not in rows:
        started = time.monotonic()
        outputs = Outputs(cache / f"float-{seed}.pt")
        keep("fp32", {"fp32": float_accuracy(data, args.model, config, outputs)}, started)
    if "w8a8" not in rows:
        started = time.monotonic()
        model = train_model(data, args.model, config, outputs=Outputs(cache / f"supernet-{seed}.pt"))
        costs = {p.name: [p.cost.weight_bytes, p.cost.bit_macs] for p in model.points}
        rows["costs"] = costs
        rows["assignments"] = {p.name: ",".join(map(str, p.assignment)) for p in model.points}
        keep("supernet", {p.name: p.score for p in model.points}, started)
    for width in alone:
        name = f"w{width}a{width} alone"
        if name not in rows:
            started = time.monotonic()
            outputs = Outputs(cache / f"alone-{width}-{seed}.pt")
            model = train_model(data, args.model, config, (width,), (), outputs)
            keep(name, {name: model.points[0].score}, started)
    return rows


def table(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean, smallest and largest accuracy (percent) over seeds, and mean cost relative to 8 bits."""
    # What only some seeds have was cached by a run that asked for more.
    names = [name for name in rows[0] if all(isinstance(row.get(name), float) for row in rows)]
    result = []
    for name in names:
        values = [100 * row[name] for row in rows]
        costs = [row["costs"].get(name) for row in rows]
        entry = {"row": name, "mean": round(float(np.mean(values)), 2)}
        entry |= {"min": round(min(values), 2), "max": round(max(values), 2)}
        entry["minus_fp32"] = round(entry["mean"] - float(np.mean([100 * row["fp32"] for row in rows])), 2)
        if costs[0] is not None:
            full = [row["costs"]["w8a8"] for row in rows]
            entry["bytes_share"] = round(float(np.mean([c[0] / f[0] for c, f in zip(costs, full, strict=True)])), 3)
            entry["bit_macs_share"] = round(float(np.mean([c[1] / f[1] for c, f in zip(costs, full, strict=True)])), 3)
        result.append(entry)
    return result


def add_settings(parser: argparse.ArgumentParser) -> None:
    """What to train on, and how long."""
    parser.add_argument("--data", required=True, help="digits, or a .npz")
    parser.add_argument("--model", required=True)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rotation", type=float, default=0.0, help="degrees by which training turns sensors' axes")
    parser.add_argument("--masking", type=float, default=0.0, help="share of rows and columns that training masks")
    parser.add_argument("--domain", type=int, help="test only on this domain")
    parser.add_argument("--cache", type=Path, default=Path("runs/accuracy"))


def read_data(args: argparse.Namespace) -> Dataset:
    """The data that `add_settings` asks for."""
    return load(args.data).tested_on(args.domain)


def train_config(args: argparse.Namespace, seed: int = 0) -> TrainConfig:
    """How the supernet is trained."""
    config = TrainConfig(epochs=args.epochs, batch_size=args.batch_size, seed=seed)
    return replace(config, rotation=args.rotation, masking=args.masking)


def cache_folder(args: argparse.Namespace, data: Dataset) -> Path:
    """The folder, made if need be, of what was trained with these settings."""
    defaults = asdict(TrainConfig())
    del defaults["rotation"], defaults["masking"]
    recipe = hashlib.sha256(json.dumps(defaults).encode()).hexdigest()[:8]
    settings = f"{args.model}-{args.epochs}-{args.batch_size}-{recipe}"
    settings += f"-turned{args.rotation:g}" if args.rotation else ""
    settings += f"-masked{args.masking:g}" if args.masking else ""
    cache: Path = args.cache / f"{data.name}-{data.sha256[:8]}-{settings}"
    cache.mkdir(parents=True, exist_ok=True)
    return cache


def command(name: str, args: argparse.Namespace) -> str:
    """The command line of these settings, without the caller's folders."""
    text = f"python -m benchmarks.{name} --data {Path(args.data).name} --model {args.model} --epochs {args.epochs}"
    text += f" --batch-size {args.batch_size} --seeds {' '.join(map(str, args.seeds))}"
    text += f" --rotation {args.rotation:g}" if args.rotation else ""
    text += f" --masking {args.masking:g}" if args.masking else ""
    return text + (f" --domain {args.domain}" if args.domain is not None else "")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_settings(parser)
    parser.add_argument("--alone", action="store_true", help="also train a network for each width alone")
    parser.add_argument("--bars", action="store_true", help="fail if a width is too far below fp32 or itself alone")
    args = parser.parse_args()

    data = read_data(args)
    config = train_config(args)
    cache = cache_folder(args, data)
    alone = DEFAULT_WIDTHS if args.alone else ()
    rows = [run_seed(data, args, seed, cache, alone) for seed in args.seeds]
    summary = {
        "command": command("accuracy", args) + " --alone" * args.alone + " --bars" * args.bars,
        "train_config": asdict(config),
        "test_samples": len(data.y_test),
        "versions": {"caq": caq.__version__, "torch": torch.__version__, "numpy": np.__version__},
        "threads": torch.get_num_threads(),
        "hours": round(sum(sum(row["seconds"].values()) for row in rows) / 3600, 2),
        "table": table(rows),
        "seeds": dict(zip(map(str, args.seeds), rows, strict=True)),
    }
    RESULTS.mkdir(exist_ok=True)
    stem = f"accuracy_{data.name}_{args.model}"
    (RESULTS / f"{stem}.json").write_text(json.dumps(summary, indent=1) + "\n")
    (RESULTS / f"{stem}.md").write_text(markdown(summary))
    print(markdown(summary))
    missed = missed_bars(summary["table"]) if args.bars else []
    for line in missed:
        print(f"missed: {line}", file=sys.stderr)
    return 1 if missed else 0


def missed_bars(rows: list[dict[str, Any]]) -> list[str]:
    """What --bars asks of the means: how far below fp32, and below the same width trained alone, a width may be."""
    mean = {row["row"]: row["mean"] for row in rows}
    missed = []
    for width in DEFAULT_WIDTHS:
        name, below = f"w{width}a{width}", 0.5 if width >= 4 else 1.5
        references = {"fp32": below, f"{name} alone": {2: 1.0, 3: 0.5}.get(width, 0.3)}
        for reference, most in references.items():
            if reference in mean and mean[name] < mean[reference] - most:
                missed.append(f"{name} has {mean[name]}, more than {most} below {reference} with {mean[reference]}")
    return missed


def markdown(summary: dict[str, Any]) -> str:
    """The summary as a page."""
    lines = [f"`{summary['command']}`", ""]
    versions = ", ".join(f"{k} {v}" for k, v in summary["versions"].items())
    lines += [f"{summary['test_samples']} test samples, {versions}, {summary['threads']} threads, "]
    lines[-1] += f"{summary['hours']} hours."
    lines += ["", "| | accuracy % (mean; min..max) | minus fp32 | weight bytes | bit-MACs |", "|---|---|---|---|---|"]
    for row in summary["table"]:
        share = [f"{row[k]:.2f}" if k in row else "" for k in ("bytes_share", "bit_macs_share")]
        spread = f"{row['mean']:.2f}; {row['min']:.2f}..{row['max']:.2f}"
        lines.append(f"| {row['row']} | {spread} | {row['minus_fp32']:+.2f} | {share[0]} | {share[1]} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())

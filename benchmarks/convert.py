"""Accuracy of networks that others trained, after calibration only and after a short fine-tune.

    python -m benchmarks.convert --cifar10 cifar10.npz --models mlperf_tiny_models --kws01 kws01.npz

The networks are MLPerf Tiny's reference models (mlcommons/tiny), float in ONNX and 8-bit in LiteRT:

resnet8   on cifar10: calibrated on 1,024 training images without labels, drawn anew for each seed; fine-tuned on all
          50,000; measured on the test split, which nothing else reads.
dscnn     on the benchmark's own 1,000 keyword features, for which there is no training split: five folds, each measured
          by an artifact that was calibrated (or fine-tuned) on the other four. Every sample is measured once.

The method was chosen on cifar10's training images (benchmarks.calibration); while it was built, answers on fold 0 of
the keywords were looked at too.

Each run is `caq convert` with its defaults: all its widths and gates come from one file, measured in integers.
ONNX Runtime and LiteRT measure the files as they were published, on the same samples; what is not installed is left
out. Finished parts are kept in --cache, and fine-tuning resumes. The table goes to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import caq
from caq.costs import DEFAULT_BUDGETS
from caq.data import Dataset, from_arrays, load
from caq.supernet.train import Outputs, TrainConfig
from caq.supernet.trained import ConvertConfig, convert_trained, load_onnx

RESULTS = Path(__file__).parent / "results"
#: How the benchmark's int8 features become what the float network eats: (x - 83) * 0.5847029.
KWS_ZERO, KWS_STEP = 83, np.float32(0.5847029)
FOLDS = 5


@dataclass(frozen=True)
class Network:
    """A trained network and the data of run i, whose test split is measured.

    epochs: it is fine-tuned for, in the first `tuned` runs.
    """

    name: str
    data_name: str
    runs: int
    epochs: int
    tuned: int
    data: Callable[[int], Dataset]


def fold(features: NDArray[np.int8], labels: NDArray[np.integer], names: NDArray[np.str_], i: int) -> Dataset:
    """Fold i of the keyword features as the test split, the others as the training split."""
    x = (features.astype(np.float32) - KWS_ZERO) * KWS_STEP
    test = np.sort(np.array_split(np.random.default_rng(0).permutation(len(x)), FOLDS)[i])
    train = np.setdiff1d(np.arange(len(x)), test)
    arrays = {"x_train": x[train], "y_train": labels[train], "x_test": x[test], "y_test": labels[test]}
    return from_arrays(f"kws01 fold {i}", {**arrays, "label_names": names})


def by_onnxruntime(path: Path, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Outputs of the float file. Raises ImportError without onnxruntime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    return np.concatenate([session.run(None, {given.name: part})[0] for part in _batches(x)])


def by_litert(path: Path, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Outputs of the int8 file. Raises ImportError without ai-edge-litert."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=1)
    interpreter.allocate_tensors()
    (given,), (made,) = interpreter.get_input_details(), interpreter.get_output_details()
    scale, zero = given["quantization"]
    codes = np.clip(np.floor(x / scale + zero + 0.5), -128, 127).astype(np.int8)
    answers = []
    for code in codes:
        interpreter.set_tensor(given["index"], code[np.newaxis])
        interpreter.invoke()
        answers.append(interpreter.get_tensor(made["index"]))
    return np.concatenate(answers)


def _batches(x: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    for start in range(0, len(x), 250):
        yield x[start : start + 250]


def published(network: Network, models: Path, cache: Path) -> dict[str, list[float]]:
    """Accuracy of the published files on each run's test split, by engine."""
    found = {}
    engines = {"fp32, ONNX Runtime": (by_onnxruntime, "fp32.onnx"), "int8, LiteRT": (by_litert, "int8.tflite")}
    for row, (run, suffix) in engines.items():
        path = cache / f"{network.name}-{suffix}.json"
        if not path.exists():
            scores = []
            try:
                for i in range(network.runs):
                    data = network.data(i)
                    x = data.x_test.astype(np.float32).reshape(len(data.x_test), *data.sample_shape)
                    x = x[..., np.newaxis] if data.kind == "series" else x
                    answers = run(models / f"{network.name}_{suffix}", x)
                    scores.append(float((answers.argmax(1) == data.y_test).mean()))
            except ImportError as error:
                print(f"left out: {row}: {error}", flush=True)
                continue
            path.write_text(json.dumps(scores))
        found[row] = json.loads(path.read_text())
        print(network.name, row, found[row], flush=True)
    return found


def converted(network: Network, i: int, epochs: int, models: Path, cache: Path) -> dict[str, Any]:
    """Accuracy at every point of run i, fine-tuned if `epochs` is above 0, and the hours it took."""
    path = cache / f"{network.name}-{i}-{epochs}.json"
    if path.exists():
        return dict(json.loads(path.read_text()))
    started = time.monotonic()
    data = network.data(i)
    finetune = TrainConfig(epochs, learning_rate=5e-4, rounding_from=0.0) if epochs else None
    trained = load_onnx(models / f"{network.name}_fp32.onnx", data)
    outputs = Outputs(cache / f"{network.name}-{i}-{epochs}.pt")
    # Learning gates takes longer than calibrating; they are shown where nothing was trained.
    budgets = () if epochs else DEFAULT_BUDGETS
    config = ConvertConfig(seed=i, finetune=finetune)
    model, reference = convert_trained(trained, data, config, budgets=budgets, outputs=outputs)
    found = {
        "float on 8-bit inputs": reference,
        "scores": {p.name: p.score for p in model.points},
        "bit_macs": {p.name: p.cost.bit_macs for p in model.points},
        "weight_bytes": {p.name: p.cost.weight_bytes for p in model.points},
        "hours": round((time.monotonic() - started) / 3600, 3),
    }
    path.write_text(json.dumps(found, indent=1))
    print(network.name, i, f"{epochs} epochs", json.dumps(found["scores"]), flush=True)
    return found


def summarize(scores: list[float]) -> dict[str, float]:
    """Mean, smallest and largest, in percent."""
    values = [100 * score for score in scores]
    return {"mean": round(float(np.mean(values)), 2), "min": round(min(values), 2), "max": round(max(values), 2)}


def table(network: Network, models: Path, cache: Path) -> dict[str, Any]:
    """All rows of a network, and the runs that they are made of."""
    runs = {"calibrated": [converted(network, i, 0, models, cache) for i in range(network.runs)]}
    if network.epochs:
        label = f"fine-tuned, {_counted(network.epochs, 'epoch')}"
        runs[label] = [converted(network, i, network.epochs, models, cache) for i in range(network.tuned)]
    references = {row: summarize(scores) for row, scores in published(network, models, cache).items()}
    references["fp32 on the 8-bit inputs of ours"] = summarize([r["float on 8-bit inputs"] for r in runs["calibrated"]])
    shares = {
        point: round(float(np.mean([r["bit_macs"][point] / r["bit_macs"]["w8a8"] for r in runs["calibrated"]])), 3)
        for point in runs["calibrated"][0]["bit_macs"]
    }
    ours = {
        f"{label}, {_counted(len(found), 'run')}": {
            point: summarize([run["scores"][point] for run in found]) for point in found[0]["scores"]
        }
        for label, found in runs.items()
    }
    return {
        **{"network": network.name, "data": network.data_name, "references": references, "ours": ours},
        **{"bit_macs_share": shares, "details": runs},
    }


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" + ("s" if count > 1 else "")


def markdown(summary: dict[str, Any]) -> str:
    """The tables for a person: a row per way to get there, a column per point."""

    def cell(row: dict[str, float] | None) -> str:
        if row is None:
            return ""
        same = row["min"] == row["max"]
        return f"{row['mean']:.1f}" if same else f"{row['mean']:.1f} ({row['min']:.1f}..{row['max']:.1f})"

    lines = [
        "# Accuracy of converted networks",
        "",
        f"`{summary['command']}`",
        "",
        "Test accuracy in %, mean (smallest..largest) over runs: resnet8 over calibration sets, dscnn over folds of "
        "the samples. All widths and gates of a run are in one file; `full`, `balanced` and `saver` are gates.",
    ]
    for entry in summary["networks"]:
        points = sorted(entry["bit_macs_share"], key=lambda p: (p[0] != "w", -entry["bit_macs_share"][p]))
        lines += ["", f"## {entry['network']} on {entry['data']}", ""]
        lines += [f"- {name}: {cell(row)}" for name, row in entry["references"].items()]
        lines += ["", f"| | {' | '.join(points)} |", "|---" * (len(points) + 1) + "|"]
        lines += [
            f"| {name} | {' | '.join(cell(row.get(point)) for point in points)} |"
            for name, row in entry["ours"].items()
        ]
        shares = (f"{100 * entry['bit_macs_share'][point]:.0f} %" for point in points)
        lines.append(f"| bit-MACs, of w8a8 | {' | '.join(shares)} |")
    versions = ", ".join(f"{name} {version}" for name, version in summary["versions"].items())
    lines += ["", f"{versions}; {summary['hours']} hours in all, on a machine that was busy with other work too."]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", type=Path, required=True, help="cifar10.npz")
    parser.add_argument(
        "--models", type=Path, required=True, help="folder of resnet8_fp32.onnx, dscnn_int8.tflite, ..."
    )
    parser.add_argument("--kws01", type=Path, required=True, help="kws01.npz: x int8 (1000, 49, 10), y, label_names")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="runs of resnet8; default %(default)s")
    parser.add_argument("--tuned", type=int, default=1, metavar="N", help="of them fine-tuned; default %(default)s")
    parser.add_argument("--resnet8-epochs", type=int, default=1, help="to fine-tune for; default %(default)s")
    parser.add_argument("--dscnn-epochs", type=int, default=20, help="to fine-tune for; default %(default)s")
    parser.add_argument("--cache", type=Path, default=Path("runs/convert"))
    args = parser.parse_args()
    args.cache.mkdir(parents=True, exist_ok=True)
    images = load(args.cifar10)
    with np.load(args.kws01) as z:
        features, labels, names = z["x"], z["y"], z["label_names"]
    networks = [
        Network("dscnn", "kws01", FOLDS, args.dscnn_epochs, FOLDS, lambda i: fold(features, labels, names, i)),
        Network("resnet8", "cifar10", args.seeds, args.resnet8_epochs, args.tuned, lambda i: images),
    ]
    tables = [table(network, args.models, args.cache) for network in networks]
    hours = sum(run["hours"] for entry in tables for found in entry["details"].values() for run in found)
    summary = {
        "command": f"python -m benchmarks.convert --cifar10 {args.cifar10.name} --models {args.models.name} "
        f"--kws01 {args.kws01.name} --seeds {args.seeds} --tuned {args.tuned} --resnet8-epochs {args.resnet8_epochs} "
        f"--dscnn-epochs {args.dscnn_epochs}",
        "versions": {
            "caq": caq.__version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "hours": round(hours, 2),
        "networks": tables,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "convert.json").write_text(json.dumps(summary, indent=1) + "\n")
    (RESULTS / "convert.md").write_text(markdown(summary))
    print(markdown(summary))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

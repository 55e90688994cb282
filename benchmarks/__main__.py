"""Runs every benchmark that this machine has the data for: python -m benchmarks

Real data sets are looked for in the folder CAQ_DATA: usc_had.npz, kws12.npz, cifar10.npz, device_costs/; trained
networks in the folder CAQ_MODELS: resnet8_fp32.onnx, dscnn_fp32.onnx, and kws01.npz beside them. Trainings resume where
they stopped.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def commands(data: Path | None, models: Path | None) -> list[list[str]]:
    """Modules and arguments, in the order to run."""
    accuracy, baselines = "benchmarks.accuracy", "benchmarks.joint_baselines"
    found = [
        ["benchmarks.nested_codes"],
        ["benchmarks.contract"],
        ["benchmarks.footprint"],
        ["benchmarks.memory"],
        ["benchmarks.bench_engine", "--plot"],
        [accuracy, "--data", "digits", "--model", "resnet8", "--epochs", "20", "--alone", "--bars"],
        [baselines, "--data", "digits", "--model", "resnet8", "--epochs", "20"],
        ["benchmarks.storage", "--data", "digits", "--results", "accuracy_digits_resnet8"],
    ]
    sets = {
        "usc_had.npz": ["resnet8", "--epochs", "6"],
        "kws12.npz": ["ds_cnn", "--epochs", "12", "--domain", "0"],
    }
    if data is not None and (data / "device_costs").is_dir():
        found.append(["benchmarks.device_costs", "--plot"])
    for name, arguments in sets.items():
        if data is not None and (data / name).exists():
            found.append([accuracy, "--data", str(data / name), "--model", *arguments, "--alone"])
            found.append([baselines, "--data", str(data / name), "--model", *arguments])
        else:
            print(f"skipped: {name} is not in CAQ_DATA", file=sys.stderr)
    if data is not None and models is not None and (data / "cifar10.npz").exists():
        given = ["--cifar10", str(data / "cifar10.npz"), "--models", str(models), "--kws01", str(models / "kws01.npz")]
        found += [["benchmarks.calibration", *given], ["benchmarks.convert", *given]]
    else:
        print("skipped: trained networks need CAQ_MODELS, and cifar10.npz in CAQ_DATA", file=sys.stderr)
    return found


def main() -> int:
    data, models = (Path(folder) if (folder := os.environ.get(name)) else None for name in ("CAQ_DATA", "CAQ_MODELS"))
    failed = [c for c in commands(data, models) if subprocess.call([sys.executable, "-m", *c])]
    for command in failed:
        print(f"failed: python -m {' '.join(command)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

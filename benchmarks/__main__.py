"""Runs every benchmark that this machine has the data for: python -m benchmarks

Real data sets are looked for in the folder CAQ_DATA: usc_had.npz, kws12.npz, device_costs/. Trainings resume where they
stopped.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def commands(data: Path | None) -> list[list[str]]:
    """Modules and arguments, in the order to run."""
    accuracy = "benchmarks.accuracy"
    found = [
        ["benchmarks.nested_codes"],
        ["benchmarks.contract"],
        ["benchmarks.footprint"],
        ["benchmarks.memory"],
        ["benchmarks.bench_engine", "--plot"],
        [accuracy, "--data", "digits", "--model", "resnet8", "--epochs", "20", "--alone", "--bars"],
    ]
    sets = {
        "usc_had.npz": ["resnet8", "--epochs", "6", "--alone"],
        "kws12.npz": ["ds_cnn", "--epochs", "12", "--domain", "0", "--alone"],
    }
    if data is not None and (data / "device_costs").is_dir():
        found.append(["benchmarks.device_costs", "--plot"])
    for name, arguments in sets.items():
        if data is not None and (data / name).exists():
            found.append([accuracy, "--data", str(data / name), "--model", *arguments])
        else:
            print(f"skipped: {name} is not in CAQ_DATA", file=sys.stderr)
    return found


def main() -> int:
    folder = os.environ.get("CAQ_DATA")
    failed = [c for c in commands(Path(folder) if folder else None) if subprocess.call([sys.executable, "-m", *c])]
    for command in failed:
        print(f"failed: python -m {' '.join(command)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

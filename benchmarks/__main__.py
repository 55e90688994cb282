"""Runs every benchmark that this machine has the data for: python -m benchmarks

Real data are looked for in the folder CAQ_DATA: usc_had.npz, kws12.npz and cifar10.npz, and the folders that BENCHMARKS
names; trained networks in the folder CAQ_MODELS: resnet8_fp32.onnx, dscnn_fp32.onnx, and kws01.npz beside them.
Trainings resume where they stopped.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

#: Module and arguments, and what has to be in CAQ_DATA for it; {data} is that folder.
BENCHMARKS = [
    ("nested_codes", ()),
    ("contract", ()),
    ("footprint", ()),
    ("memory", ()),
    ("bench_engine --plot", ()),
    ("storage --data digits --results accuracy_digits_resnet8", ()),
    ("environments", ()),
    ("calibrate_beside", ()),
    ("policies --plot", ()),
    ("device_costs --plot", ("device_costs",)),
    ("battery", ("li_ion_nasa",)),
    ("thermal", ("thermal_power_tiansuan",)),
    ("traces --data {data} --plot", ("context_extrasensory", "memory_bitbrains")),
    ("drift --folder {data}", ("usc_had", "speech_commands_kws12")),
    ("continual.choose --folder {data}", ("usc_had",)),
    ("continual --folder {data}", ("usc_had",)),
    ("continual.cost", ()),
]
#: --data, --model, --epochs and what else the benchmarks of TRAININGS are run with.
DATA_SETS = ["digits resnet8 20", "{data}/usc_had.npz resnet8 6", "{data}/kws12.npz ds_cnn 12 --domain 0"]
#: Module, and arguments beside those.
TRAININGS = ["accuracy --alone", "joint_baselines", "pareto", "post_training", "conditional"]
CONVERTED = ["calibration", "convert"]


def commands(data: Path | None, models: Path | None) -> list[list[str]]:
    """Modules and arguments, in the order to run."""
    found = []
    for command, needed in BENCHMARKS:
        if missing := [name for name in needed if data is None or not (data / name).exists()]:
            print(f"skipped: {command.split()[0]} needs {', '.join(missing)} in CAQ_DATA", file=sys.stderr)
        else:
            found.append(command.format(data=data).split())
    for name, model, epochs, *more in (line.format(data=data).split() for line in DATA_SETS):
        if name.endswith(".npz") and not Path(name).exists():
            print(f"skipped: {Path(name).name} is not in CAQ_DATA", file=sys.stderr)
            continue
        for command in TRAININGS:
            found.append([*command.split(), "--data", name, "--model", model, "--epochs", epochs, *more])
    if data is not None and models is not None and (data / "cifar10.npz").exists():
        given = ["--cifar10", str(data / "cifar10.npz"), "--models", str(models), "--kws01", str(models / "kws01.npz")]
        found += [[name, *given] for name in CONVERTED]
    else:
        print("skipped: trained networks need CAQ_MODELS, and cifar10.npz in CAQ_DATA", file=sys.stderr)
    return [["benchmarks." + module, *arguments] for module, *arguments in found]


def main() -> int:
    data, models = (Path(folder) if (folder := os.environ.get(name)) else None for name in ("CAQ_DATA", "CAQ_MODELS"))
    failed = [c for c in commands(data, models) if subprocess.call([sys.executable, "-m", *c])]
    for command in failed:
        print(f"failed: python -m {' '.join(command)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

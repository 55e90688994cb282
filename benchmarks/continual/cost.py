"""Time and peak memory of a step of each method, each in a process of its own, one after the other.

    python -m benchmarks.continual.cost

A step is a batch of 20 samples at 2, 4 and 8 bits together, on ResNet-8 for 32 x 32 x 3 images, with a core set of 20,
or 10 and the features of 270 samples in as many bytes.
Network and samples are drawn from a seed and not trained, which changes no time. Milliseconds are of one CPU (processor
time of the one thread, so that other work on the machine does not count), the mean of STEPS steps after a first one,
which measures the source and is told apart; turning what was learnt into a model to run is part of a step. Memory is in
MiB: the process's peak resident set (what the device needs in all, interpreter and libraries included), and its growth:
from what is resident before the first step, with everything loaded, to the peak during the steps. All are also given as
ratios of ours to the method's.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import caq
from benchmarks.continual.methods import METHODS
from benchmarks.continual.start import Start
from caq.calibration.calibrator import make_core
from caq.calibration.sets import coded
from caq.progress import progress

RESULTS = Path(__file__).parent.parent / "results"
#: All but those that do nothing in a step.
MEASURED = [name for name in METHODS if name not in ("none", "squant")]
WIDTHS = (2, 4, 8)
STEPS, BATCH, CORE, SIDE = 8, 20, 20, 32
#: Samples of the source, which features are drawn from: more than have room in half the core set's bytes.
SOURCE = 300


def make(folder: Path) -> None:
    """Writes the network, as an artifact and as a supernet, and the samples that all methods take."""
    import torch

    from caq.data import from_arrays
    from caq.supernet import convert
    from caq.supernet.pipeline import finish, prepare
    from caq.supernet.train import TrainConfig

    rng = np.random.default_rng(0)
    count = SOURCE + (STEPS + 1) * BATCH
    x, y = rng.integers(0, 256, (count, SIDE, SIDE, 3)).astype(np.uint8), np.arange(count) % 10
    data = from_arrays("noise", {"x_train": x, "y_train": y, "x_test": x, "y_test": y})
    prepared = prepare(data, "resnet8", 0)
    supernet = convert(prepared.network, prepared.example(), WIDTHS)
    supernet.fit_steps(prepared.example())
    model = finish(supernet, data, prepared, TrainConfig(epochs=1), (), True)
    caq.save(model, folder / "model.caq")
    torch.save(supernet, folder / "supernet.pt")
    np.savez(folder / "samples.npz", x=model.encode(x)[0], y=y)


def work(folder: Path, method: str) -> dict[str, float]:
    """Steps of a method in this process."""

    def supernet() -> Any:
        import torch

        return torch.load(folder / "supernet.pt", weights_only=False)  # written by `make`

    model = coded(caq.load(folder / "model.caq"))
    with np.load(folder / "samples.npz") as z:
        x, y = z["x"], z["y"]
    source = x[:SOURCE], y[:SOURCE]
    core = make_core(model, source[0].astype(np.int16), source[1], size=CORE)
    found = METHODS[method](Start(model, core, source, supernet, WIDTHS, 0))
    loaded, seconds = status("VmRSS"), []
    forget_peak()
    for batch in np.arange(SOURCE, len(y)).reshape(-1, BATCH):
        begin = time.process_time()
        found.step(x[batch], y[batch])
        for width in WIDTHS:
            found.model(width)
        seconds.append(time.process_time() - begin)
    peak = status("VmHWM")
    return {
        "first_ms": 1000 * seconds[0],
        "ms": 1000 * statistics.mean(seconds[1:]),
        "growth_mib": (peak - loaded) / 2**20,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10,
    }


def status(key: str) -> int:
    """Bytes of a line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(key)).split()[1])


def forget_peak() -> None:
    """Begins VmHWM anew (man 5 proc, clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5")


def measure(folder: Path, names: list[str], rounds: int) -> dict[str, dict[str, float]]:
    """The least time of some rounds, in turns, and the largest memory."""
    found: dict[str, dict[str, float]] = {}
    with progress("cost", rounds * len(names)) as advance:
        for _ in range(rounds):
            for name in names:
                command = [sys.executable, "-m", "benchmarks.continual.cost", "--work", name, "--in", str(folder)]
                answer = subprocess.run(command, check=True, capture_output=True, text=True, env=one_thread())
                row, known = json.loads(answer.stdout), found.get(name)
                if known is not None:
                    row = {k: (min if k.endswith("ms") else max)(v, known[k]) for k, v in row.items()}
                found[name] = row
                advance(name)
    return found


def one_thread() -> dict[str, str]:
    """The environment, with one thread for every library."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def ratios(found: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Figures rounded, with those of ours over each method's."""
    ours, result = found["ours"], {}
    for name, row in found.items():
        keys = {"ms": "time", "growth_mib": "growth", "peak_mib": "peak"}
        over = {f"ours_over_its_{what}": round(ours[key] / max(row[key], 1e-9), 3) for key, what in keys.items()}
        result[name] = {key: round(value, 2) for key, value in row.items()} | over
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1, help="the least time of so many")
    parser.add_argument("--methods", nargs="+", choices=MEASURED, default=MEASURED, help="beside ours")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--in", dest="folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work is not None:
        print(json.dumps(work(args.folder, args.work)))
        return 0
    with tempfile.TemporaryDirectory() as name:
        subprocess.run(
            [sys.executable, "-c", f"from benchmarks.continual.cost import *; make(Path({name!r}))"], check=True
        )
        names = ["ours", *(method for method in args.methods if method != "ours")]
        found = ratios(measure(Path(name), names, args.rounds))
    result = {
        "command": f"python -m benchmarks.continual.cost --rounds {args.rounds} --methods {' '.join(names)}",
        "versions": {"numpy": np.__version__, "python": platform.python_version()},
        "samples": BATCH,
        "core": CORE,
        "widths": WIDTHS,
        "methods": found,
    }
    (RESULTS / "continual_cost.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())

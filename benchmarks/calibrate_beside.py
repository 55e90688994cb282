"""A calibration step on ResNet-8 in its thread: its time and memory, and what it costs inference in another thread.

    python -m benchmarks.calibrate_beside [--rounds 10] [--seconds 3] [--without-twins]

An untrained ResNet-8 for 32 x 32 x 3 images at 2, 4 and 8 bits, a core set of 20, steps of 20 labelled samples by
`caq.calibration.background.BackgroundCalibrator` as a Runtime runs it; everything in a process without torch.

Inference: one thread calls Engine.run, one sample at a time, either back to back, or paced, with a pause of PAUSE_S
between, as a sensor's samples come. Windows without calibration and windows in which steps follow each other without a
break take turns, so that what other processes do to the machine hits both. Percentiles are of all windows of a kind
together; `ratio_p99` is during calibration over idle. The load average says how many others wanted the CPUs.

Time of a step: all of it with the swap, on the clock, and on the thread's CPU; `alone` as urgent as other processes and
without inference, else in its nice thread, beside it. Memory: resident set of a process of its own, above
what it was with the model loaded and inference done, but nothing of caq.calibration imported: after importing that, and
numpy.random, which it draws with (`code`); the most of all steps (`peak`: VmHWM, which was set back); `arrays` is the
peak of what Python and numpy allocate in one step.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import caq
from caq.model import Model

if TYPE_CHECKING:
    from caq.calibration.calibrator import Calibrator
    from caq.calibration.core import CoreSet

RESULTS = Path(__file__).parent / "results"
WIDTHS, BATCH, PAUSE_S = (2, 4, 8), 20, 0.005
PERCENTILES = (50, 90, 99, 99.9, 100)


def samples() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Noise: 120 images of 10 classes."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (120, 32, 32, 3)).astype(np.uint8), np.arange(120) % 10


def untrained_resnet8() -> Model:
    """What takes as long and as much memory as a trained one."""
    import torch

    from caq.data import from_arrays
    from caq.supernet import convert
    from caq.supernet.pipeline import finish, prepare
    from caq.supernet.train import TrainConfig

    x, y = samples()
    data = from_arrays("noise", {"x_train": x, "y_train": y, "x_test": x, "y_test": y})
    torch.manual_seed(0)
    prepared = prepare(data, "resnet8", 0)
    supernet = convert(prepared.network, prepared.example(), WIDTHS)
    supernet.fit_steps(prepared.example())
    return finish(supernet, data, prepared, TrainConfig(epochs=1), (), True)


def write_core(path: str) -> None:
    """A core set of 20 samples beside an artifact."""
    from caq.calibration.calibrator import make_core
    from caq.calibration.state import State, owned, to_bytes

    core = make_core(caq.load(path), *samples(), size=20)
    Path(path).with_suffix(".core").write_bytes(to_bytes(State("0" * 64, owned("core", core.to_arrays()))))


def read_core(path: str) -> CoreSet:
    """What `write_core` wrote."""
    from caq.calibration.core import CoreSet
    from caq.calibration.state import from_bytes

    return CoreSet.from_arrays(from_bytes(Path(path).with_suffix(".core").read_bytes()).part("core"))


def resident(name: str) -> int:
    """VmRSS or VmHWM of this process, bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return 1024 * int(line.split()[1])
    raise KeyError(name)


def calibrator_of(path: str, twins: bool) -> Calibrator:
    """Imported late: what its code takes is measured."""
    from caq.calibration.calibrator import Calibrator
    from caq.calibration.config import LADDER, WITHOUT_TWINS, CalibratorConfig

    return Calibrator(path, read_core(path), config=CalibratorConfig(rungs=LADDER if twins else WITHOUT_TWINS))


def alone(path: str, twins: bool) -> dict[str, Any]:
    """Memory and time of the steps of a calibrator in a fresh process, without a thread and as urgent as others."""
    x, y = samples()
    engine = caq.Engine(path)
    engine.run(x[0])
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM from here on
    loaded = resident("VmRSS")
    from caq.calibration.background import BackgroundCalibrator  # noqa: F401  # as a runtime has it

    np.random.default_rng(0)
    code = resident("VmRSS")
    calibrator = calibrator_of(path, twins)
    wall, cpu = [], []
    for i in range(5):
        begin, used = time.perf_counter(), time.thread_time()
        calibrator.partial_fit(x[BATCH * i :][:BATCH], y[BATCH * i :][:BATCH])
        engine.adopt(calibrator.model.parameters, calibrator.gates)
        wall.append(1000 * (time.perf_counter() - begin))
        cpu.append(1000 * (time.thread_time() - used))
    found = {"code_mib": (code - loaded) / 2**20, "peak_mib": (resident("VmHWM") - loaded) / 2**20}
    tracemalloc.start()
    calibrator.partial_fit(x[-BATCH:], y[-BATCH:])
    found["arrays_peak_mib"] = tracemalloc.get_traced_memory()[1] / 2**20
    found |= {
        "first_ms": wall[0],
        "median_ms": float(np.median(wall[1:])),
        "largest_ms": max(wall[1:]),
        "median_cpu_ms": float(np.median(cpu[1:])),
    }
    found |= {"loaded_mib": loaded / 2**20, "load_average": os.getloadavg()[0]}
    return {name: round(value, 2) for name, value in found.items()}


def beside(path: str, twins: bool, rounds: int, seconds: float, pause_s: float) -> dict[str, Any]:
    """Latencies of inference, idle and during steps, and the times of those."""
    from caq.calibration.background import BackgroundCalibrator

    x, y = samples()
    calibrator = calibrator_of(path, twins)
    wall, cpu = [], []
    step = calibrator._step  # timed here, because its own record has rungs, and not the CPU

    def timed() -> Any:
        begin, used = time.perf_counter(), time.thread_time()
        result = step()
        wall.append(1000 * (time.perf_counter() - begin))
        cpu.append(1000 * (time.thread_time() - used))
        return result

    calibrator._step = timed  # type: ignore[method-assign]
    engine, calibration = caq.Engine(path), BackgroundCalibrator(calibrator)
    calibration.start(engine)
    latencies: dict[str, list[float]] = {"idle": [], "calibrating": []}

    def window(kind: str) -> None:
        ends, i = time.perf_counter() + seconds, 0
        while time.perf_counter() < ends:
            if kind == "calibrating" and calibration.counts.queued < BATCH:
                for a, b in zip(x[:40], y[:40], strict=True):
                    calibration.learn_one(a, int(b))
            i += 1
            begin = time.perf_counter()
            engine.run(x[i % len(x)])
            latencies[kind].append(1e6 * (time.perf_counter() - begin))
            if pause_s:
                time.sleep(pause_s)

    window("idle")
    latencies["idle"].clear()
    for _ in range(rounds):
        window("idle")
        window("calibrating")
        calibration.wait_idle(60)
    counts = calibration.counts
    calibration.close()
    if counts.failed:
        raise SystemExit(f"{counts.failed} steps failed: {calibration.history}")
    rows = {
        kind: {"inferences": len(us)}
        | {f"p{p:g}_us": round(float(v)) for p, v in zip(PERCENTILES, np.percentile(us, PERCENTILES), strict=True)}
        for kind, us in latencies.items()
    }
    return {
        **rows,
        "ratio_p99": round(float(np.divide(*(np.percentile(latencies[k], 99) for k in ("calibrating", "idle")))), 2),
        "steps": {
            "count": counts.steps,
            "promoted": counts.promoted,
            "first_ms": round(wall[0]),
            "median_ms": round(float(np.median(wall[1:]))),
            "largest_ms": round(max(wall[1:])),
            "median_cpu_ms": round(float(np.median(cpu[1:]))),
        },
        "load_average": round(os.getloadavg()[0], 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=3.0, help="of a window")
    parser.add_argument("--without-twins", dest="twins", action="store_false", help="of sets, for other domains")
    parser.add_argument("--child", nargs=2, metavar=("WHAT", "ARTIFACT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child is not None:
        what, path = args.child
        pause_s = PAUSE_S if what == "paced" else 0.0
        if what == "alone":
            found = alone(path, args.twins)
        else:
            found = beside(path, args.twins, args.rounds, args.seconds, pause_s)
        print(json.dumps(found))
        return 0
    without = [] if args.twins else ["--without-twins"]
    options = ["--rounds", str(args.rounds), "--seconds", str(args.seconds), *without]
    result: dict[str, Any] = {
        "command": f"python -m benchmarks.calibrate_beside {' '.join(options)}",
        "machine": platform.platform(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "samples_a_step": BATCH,
        "core_samples": 20,
        "pause_s": PAUSE_S,
    }
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "resnet8.caq")
        caq.save(untrained_resnet8(), path)
        write_core(path)
        for what in ("alone", "back_to_back", "paced"):
            command = [sys.executable, "-m", "benchmarks.calibrate_beside", *options, "--child", what, path]
            result[what] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    (RESULTS / f"calibrate_beside{'' if args.twins else '_without_twins'}.json").write_text(
        json.dumps(result, indent=1) + "\n"
    )
    print(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())

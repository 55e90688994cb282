"""Cold start, memory and file sizes of the device side.

    python -m benchmarks.footprint [--runs 21]

Cold start is the time from the start of a process to its first answer, as its parent sees it, of a ResNet-8
(32 x 32 x 3), beside a process that only imports numpy; the two take turns. Peak resident memory is VmHWM of these
processes, at that moment. Compiled modules are cached in a folder of their own, as an installation has them, since a
process that may not write them (PYTHONDONTWRITEBYTECODE) would compile changed modules each time.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.contract import subject
from caq import artifact
from caq.supernet.zoo import MODELS

ANSWERED = """
print("answered", flush=True)
def status(key):
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) for line in f if line.startswith(key))
peak, resident = status("VmHWM"), status("VmRSS")
import sys
extras = ("torch", "gymnasium", "sklearn", "matplotlib", "rich", "policies", "simulators")
print(peak, resident, *(name for name in extras if name in sys.modules))
"""
SOURCES = {
    "numpy": "import numpy as np",
    "caq": """
import sys
import numpy as np
import caq
engine = caq.Engine(sys.argv[1])
engine.run(np.zeros(engine.model.sample_shape, np.uint8))
""",
}


@dataclass(frozen=True)
class Start:
    """One process: milliseconds to its answer, peak and present resident MiB, and modules that it should not have."""

    ms: float
    peak_mib: float
    resident_mib: float
    unwanted: tuple[str, ...]


def start(source: str, model: Path, compiled: Path) -> Start:
    """Runs `source` in a fresh process, with one thread a pool."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    environment |= {**threads, "PYTHONPYCACHEPREFIX": str(compiled)}
    command = [sys.executable, "-c", source + ANSWERED, str(model)]
    begin = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        ms = (time.perf_counter() - begin) * 1000
        rest = process.stdout.read().split()
    if process.returncode or first != "answered\n":
        raise SystemExit(f"a process failed: exit code {process.returncode}")
    return Start(ms, int(rest[0]) / 1024, int(rest[1]) / 1024, tuple(rest[2:]))


def cold_starts(model: Path, runs: int) -> dict[str, list[Start]]:
    """`runs` processes of each source, which take turns."""
    found: dict[str, list[Start]] = {name: [] for name in SOURCES}
    with tempfile.TemporaryDirectory() as compiled:
        for i in range(runs + 1):
            for name, source in SOURCES.items():
                one = start(source, model, Path(compiled))
                if i > 0:  # the first one compiles modules and fills the page cache
                    found[name].append(one)
    return found


def spread(values: list[float]) -> dict[str, float]:
    return {"min": round(min(values), 1), "median": round(statistics.median(values), 1)}


def file_sizes(name: str, path: Path) -> dict[str, object]:
    """Writes a zoo network with all widths and one gate, and tells what its bytes are."""
    model = subject(name, 0, 1).model
    artifact.save(model, path)
    with artifact.Reader(path) as reader:
        parameters = reader.tensors["parameters"].nbytes
        return {
            "file_bytes": reader.file_bytes,
            "weight_code_bytes": model.graph.weights,
            "parameter_bytes": parameters,
            "file_over_codes_and_parameters": round(reader.file_bytes / (model.graph.weights + parameters), 4),
            "bytes_read": {w: reader.bytes_for(w) for w in model.graph.widths},
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=21)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sizes = {name: file_sizes(name, Path(folder) / f"{name}.caq") for name in MODELS}
        starts = cold_starts(Path(folder) / "resnet8.caq", args.runs)
    result = {
        "command": "python -m benchmarks.footprint",
        "python": platform.python_version(),
        "numpy": np.__version__,
        "runs": args.runs,
        "first_answer_ms": spread([s.ms for s in starts["caq"]]),
        "numpy_alone_ms": spread([s.ms for s in starts["numpy"]]),
        "peak_mib": spread([s.peak_mib for s in starts["caq"]]),
        "resident_mib": spread([s.resident_mib for s in starts["caq"]]),
        "numpy_alone_peak_mib": spread([s.peak_mib for s in starts["numpy"]]),
        "unwanted_modules": list(starts["caq"][0].unwanted),
        "files": sizes,
    }
    print(json.dumps(result, indent=1))
    (Path(__file__).parent / "results" / "footprint.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

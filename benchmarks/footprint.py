"""Import time, resident memory and file sizes of the device side; times and memory in fresh processes.

    python -m benchmarks.footprint [--runs 7]

Import time is the cumulative time that `python -X importtime` gives for caq, the smallest and the median of the runs,
beside numpy's share of it. Resident memory is a process that has loaded a ResNet-8 (32 x 32 x 3) and run it once.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.contract import subject
from caq import artifact
from caq.supernet.zoo import MODELS

LOADED = """
import sys
import numpy as np
import caq
def resident():
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) for line in f if line.startswith("VmRSS"))
engine = caq.Engine(sys.argv[1])
loaded = resident()
engine.run(np.zeros(engine.model.sample_shape, np.uint8))
extras = ("torch", "gymnasium", "sklearn", "matplotlib", "rich", "policies", "simulators")
unwanted = [name for name in extras if name in sys.modules]
print(loaded, resident(), *unwanted)
"""


def import_ms() -> tuple[float, float]:
    """Cumulative milliseconds of importing caq, and of numpy inside it."""
    command = [sys.executable, "-X", "importtime", "-c", "import caq"]
    report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    times = {name: int(us) / 1000 for us, name in re.findall(r"\|\s+(\d+) \|\s+(caq|numpy)$", report, re.M)}
    return times["caq"], times["numpy"]


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
    parser.add_argument("--runs", type=int, default=7)
    args = parser.parse_args()
    imports = [import_ms() for _ in range(args.runs)]
    with tempfile.TemporaryDirectory() as folder:
        sizes = {name: file_sizes(name, Path(folder) / f"{name}.caq") for name in MODELS}
        command = [sys.executable, "-c", LOADED, str(Path(folder) / "resnet8.caq")]
        runs = [subprocess.check_output(command, text=True) for _ in range(args.runs)]
    memory = [[int(v) / 1024 for v in run.split()[:2]] for run in runs]
    result = {
        "command": "python -m benchmarks.footprint",
        "python": platform.python_version(),
        "numpy": np.__version__,
        "import_ms": {"median": statistics.median(a for a, _ in imports), "min": min(a for a, _ in imports)},
        "of_which_numpy_ms": {"median": statistics.median(b for _, b in imports), "min": min(b for _, b in imports)},
        "resident_mib_loaded": round(statistics.median(m[0] for m in memory), 1),
        "resident_mib_after_one_inference": round(statistics.median(m[1] for m in memory), 1),
        "unwanted_modules": runs[0].split()[2:],
        "files": sizes,
    }
    print(json.dumps(result, indent=1))
    (Path(__file__).parent / "results" / "footprint.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

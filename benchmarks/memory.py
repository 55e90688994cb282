"""Resident weights and time of an inference, at every width: least memory beside fastest.

    python -m benchmarks.memory [--models resnet8 resnet18] [--runs 3] [--cache FOLDER]

Weights are random (benchmarks.models_onnx); ResNet-18 is the one for 224 x 224. Each row is a fresh process that opens
the artifact in one of three ways, selects one width, infers, trims and infers on:

    in_memory  Engine(path)                          planes in memory of the process, panels prepared at the switch
    panels     Engine(path, mapped=True)             planes mapped from the file, panels prepared at the switch
    lean       Engine(path, mapped=True, lean=True)  planes mapped, unpacked into scratch at every inference

planes: Rss of the file's mapping (/proc/self/smaps) or, in memory, pages that are present. panels, scratch, tables and
activations: pages of these very blocks that are present (/proc/self/pagemap). A page counts in full, even if only a
part of it is such a block. scratch is where weights are unpacked to, 64 output channels at a time, at any width. held:
planes + panels, what stays between inferences. All are read after the last inference. peak is VmHWM of the process:
with Python and numpy, and with the pages that verifying the file brought in. us is the time of an inference on its
thread, so that other processes count little. widen_us is the time on the clock from the narrow point, trimmed, to the
first answer of the widest one: planes that were given back are read from the disk. Of times the least of the runs is
given, of bytes the median.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import platform
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import caq
from caq.kernels._native import ffi
from caq.program import isa_names

WIDTHS = (2, 3, 4, 5, 6, 7, 8)
MODES: dict[str, dict[str, bool]] = {
    "in_memory": {},
    "panels": {"mapped": True},
    "lean": {"mapped": True, "lean": True},
}
#: Most that the weights held at 2 bits may take of those held at 8, without panels.
MOST = 0.3
INFERENCES = 5
LEAST_S = 0.4


def present(start: int, size: int) -> int:
    """Bytes of the pages from address `start` on that are in memory."""
    if size == 0:
        return 0
    first, last = start // mmap.PAGESIZE, (start + size - 1) // mmap.PAGESIZE
    with open("/proc/self/pagemap", "rb", buffering=0) as f:
        f.seek(8 * first)
        entries = struct.iter_unpack("<Q", f.read(8 * (last - first + 1)))
    return mmap.PAGESIZE * sum(entry >> 63 for (entry,) in entries)


def mapped_rss(path: str) -> int:
    """Rss of the mappings of a file."""
    found, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            inside = line.endswith(path)
        elif inside and line.startswith("Rss:"):
            found += int(line.split()[1]) * 1024
    return found


def status(key: str) -> int:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(key))
    return int(line.split()[1]) * 1024


def measure(path: str, mode: str, point: str) -> dict[str, Any]:
    """In a process of its own: what one way of running one point takes."""

    def block(memory: Any, start: int = 0, size: int | None = None) -> int:
        address = int(ffi.cast("uintptr_t", memory))
        return present(address + start, len(memory) - start if size is None else size)

    engine = caq.Engine(path, **MODES[mode])
    engine.select(point)
    x = np.random.default_rng(0).integers(0, 256, engine.model.sample_shape).astype(np.uint8)
    for _ in range(INFERENCES):
        engine.run(x)
    engine.trim()
    times: list[float] = []
    while len(times) < INFERENCES or sum(times) < LEAST_S:
        start = time.thread_time()
        engine.run(x)
        times.append(time.thread_time() - start)
    program, plan = engine.program, engine.plan
    assert program is not None
    arena = program.borrow_arena()
    scratch_at = program.pointer.scratch
    planes = engine.model.planes
    found = {
        "planes": mapped_rss(path) if engine.model.mapped else present(planes.ctypes.data, planes.nbytes),
        "panels": block(plan._panels),
        "scratch": block(arena, scratch_at) if program.lean else 0,
        "tables": block(plan._tables.requantize) + block(plan._tables.narrow),
        "activations": block(arena, 0, scratch_at),
        "rss": status("VmRSS"),
        "peak": status("VmHWM"),
        "us": statistics.median(times) * 1e6,
    }
    program.arenas.append(arena)
    engine.trim()
    start = time.perf_counter()
    engine.select(f"w{WIDTHS[-1]}a{WIDTHS[-1]}")
    engine.run(x)
    return found | {"widen_us": (time.perf_counter() - start) * 1e6}


def fresh(path: Path, mode: str, point: str) -> dict[str, Any]:
    """`measure` in a new process, with one thread a pool."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    command = [sys.executable, "-m", "benchmarks.memory", "--measure", str(path), mode, point]
    result: dict[str, Any] = json.loads(subprocess.check_output(command, env=os.environ | threads))
    return result


def make(name: str, path: Path) -> None:
    """The artifact, with every width from 2 to 8."""
    from benchmarks.models_onnx import calibrated, our_model
    from benchmarks.topologies import TOPOLOGIES

    topology = TOPOLOGIES[name]
    data, prepared = calibrated(topology, 0)
    caq.save(our_model(topology, data, prepared, WIDTHS, 0), path)


def rows(path: Path, runs: int) -> list[dict[str, Any]]:
    """One row a mode and width; processes of all rows take turns."""
    from caq.progress import progress

    keys = [(mode, width) for width in WIDTHS for mode in MODES]
    found: dict[tuple[str, int], list[dict[str, Any]]] = {key: [] for key in keys}
    with progress(path.stem, runs * len(keys)) as advance:
        for _ in range(runs):
            for mode, width in keys:
                found[mode, width].append(fresh(path, mode, f"w{width}a{width}"))
                advance(f"{mode} w{width}")
    result = []
    for (mode, width), several in found.items():
        times = {k: round(min(one[k] for one in several), 1) for k in ("us", "widen_us")}
        sizes = {k: int(statistics.median(one[k] for one in several)) for k in several[0] if k not in times}
        held = sizes["planes"] + sizes["panels"]
        result.append({"mode": mode, "width": width, "held": held, **sizes, **times})
    return result


def summary(path: Path, table: list[dict[str, Any]]) -> dict[str, Any]:
    """Ratios of 2 bits to 8 bits, in the mode of least memory, and of that mode to the fastest."""
    lean = {row["width"]: row for row in table if row["mode"] == "lean"}
    fast = {row["width"]: row for row in table if row["mode"] == "panels"}
    return {
        "file_bytes": path.stat().st_size,
        "plane_bytes": caq.load(path).planes.shape[1],
        "lean_held_2_over_8": round(lean[2]["held"] / lean[8]["held"], 4),
        "lean_held_and_scratch_2_over_8": round(
            (lean[2]["held"] + lean[2]["scratch"]) / (lean[8]["held"] + lean[8]["scratch"]), 4
        ),
        "lean_over_panels_us": {w: round(lean[w]["us"] / fast[w]["us"], 3) for w in WIDTHS},
    }


def show(name: str, table: list[dict[str, Any]]) -> None:
    columns = ("planes", "panels", "scratch", "tables", "activations", "rss", "peak")
    print(f"\n{name}, KiB and us\n{'':12}" + "".join(f"{c:>12}" for c in (*columns, "us", "widen_us")))
    for row in table:
        cells = [f"{row[c] / 1024:12,.0f}" for c in columns] + [f"{row[c]:12,.0f}" for c in ("us", "widen_us")]
        print(f"{row['mode']:9} w{row['width']}" + "".join(cells))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["resnet8", "resnet18"])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--cache", type=Path, help="keeps the artifacts; empty it when their format changes")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "memory.json")
    parser.add_argument("--measure", nargs=3, metavar=("FILE", "MODE", "POINT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(*args.measure)))
        return 0
    result: dict[str, Any] = {
        "command": "python -m benchmarks.memory",
        "python": platform.python_version(),
        "numpy": np.__version__,
        "kernel": platform.release(),
        "page_bytes": mmap.PAGESIZE,
        "isa": [name for name, reason in isa_names().items() if not reason][-1],
        "runs": args.runs,
        "models": {},
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.cache or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for name in args.models:
            path = folder / f"memory-{name}.caq"
            if not path.exists():
                make(name, path)
            table = rows(path, args.runs)
            show(name, table)
            result["models"][name] = summary(path, table) | {"rows": table}
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    ratios = {name: model["lean_held_2_over_8"] for name, model in result["models"].items()}
    print(f"\nresident weights at 2 bits over 8 bits, least memory: {ratios}; at most {MOST}")
    return 1 if max(ratios.values()) > MOST else 0


if __name__ == "__main__":
    sys.exit(main())

"""Continual calibration beside its peers, on the same streams with the same bytes of core set, at 2, 4 and 8 bits.

    python -m benchmarks.continual --folder DATA --protocols usc_had kws12 cifar10 --seeds 0

DATA has the folder usc_had, kws12.npz and cifar10.npz. Streams are those of benchmarks.calibrate_streams and of
benchmarks.continual.noisy, methods those of benchmarks.continual.methods. Each is measured after every batch by the
integer engine, on the target's test half and on the source's: peers in torch are lowered to integers first. Their
settings were chosen on another person (benchmarks.continual.choose), nothing was chosen on what is reported.

Trained sources and finished rows are kept in --cache, rows by their settings; --methods asks for fewer. What is there
for the seeds goes to benchmarks/results/continual_PROTOCOL.json, with a picture of it. Its seconds are by the clock of
a machine that others worked on too: benchmarks.continual.cost measures what a step costs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.calibrate_streams import WIDTHS
from benchmarks.continual.methods import BACKPROP, EPOCHS, FEATURED, METHODS, RATE, ZEROTH_ORDER
from benchmarks.continual.plot import plot
from benchmarks.continual.stream import CORE, PROTOCOLS, follow, last, protocol_of, start_of
from caq.calibration.config import CalibratorConfig
from caq.progress import progress

RESULTS = Path(__file__).parent.parent / "results"


def settings_of(method: str, core: int) -> dict[str, Any]:
    """What a method's rows depend on, beside the protocol, the seed and the code."""
    settings: dict[str, Any] = {"method": method, "core": core, "widths": WIDTHS}
    if method in BACKPROP:
        settings |= {"rate": RATE, "epochs": EPOCHS}
    if method == "qzo":
        settings |= asdict(ZEROTH_ORDER)
    if method.startswith("ours"):
        settings |= asdict(CalibratorConfig()) | {"features": method in FEATURED}
    return settings


def row_path(cache: Path, protocol: str, seed: int, method: str, core: int) -> Path:
    """Where a method's finished rows are kept."""
    digest = hashlib.sha256(json.dumps(settings_of(method, core), sort_keys=True).encode()).hexdigest()[:8]
    return cache / "rows" / f"{protocol}-{seed}-{method}-{digest}.json"


def table(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A line for each method: accuracy at each width after the last batch of a phase, mean over phases and seeds."""
    lines = []
    for method in dict.fromkeys(row["method"] for row in rows):
        some = [row for row in rows if row["method"] == method]
        line: dict[str, Any] = {"method": method, "seeds": len({r["seed"] for r in some}), "phases": len(some)}
        for what in ("target", "source"):
            line |= {f"{what} w{w}": v for w, v in zip(WIDTHS, last(some, what), strict=True)}
        lines.append(line | {"seconds": round(sum(r["seconds"] for r in some), 1)})
    return lines


def collect(cache: Path, protocol: str, seeds: Sequence[int], core: int) -> list[dict[str, Any]]:
    """All finished rows of methods with their settings of now."""
    rows = []
    for method in METHODS:
        for seed in seeds:
            path = row_path(cache, protocol, seed, method, core)
            if path.exists():
                rows += [{"seed": seed, "method": method, **row} for row in json.loads(path.read_text())]
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="has usc_had/, kws12.npz and cifar10.npz")
    parser.add_argument("--cache", type=Path, default=Path("runs/continual"))
    parser.add_argument("--protocols", nargs="+", choices=PROTOCOLS, default=["usc_had"])
    parser.add_argument("--methods", nargs="*", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of sources, cores and streams")
    parser.add_argument("--core", type=int, default=CORE, help="samples of the core set")
    args = parser.parse_args()
    (args.cache / "rows").mkdir(parents=True, exist_ok=True)
    for name in args.protocols:

        def rows_of(seed: int, method: str, name: str = name) -> Path:
            return row_path(args.cache, name, seed, method, args.core)

        wanted = [(s, m) for s in args.seeds for m in args.methods if not rows_of(s, m).exists()]
        with progress(name, len(wanted)) as advance:
            for seed in dict.fromkeys(seed for seed, _ in wanted):
                protocol = protocol_of(name, args.folder, args.cache, seed)
                start = start_of(protocol, seed, args.core)
                for method in [m for s, m in wanted if s == seed]:
                    rows = follow(protocol, start, METHODS[method])
                    rows_of(seed, method).write_text(json.dumps(rows))
                    advance(f"{seed} {method}")
        write(name, args.seeds, args.core, collect(args.cache, name, args.seeds, args.core))
    return 0


def write(protocol: str, seeds: Sequence[int], core: int, rows: list[dict[str, Any]]) -> None:
    """The results of a protocol, and their picture."""
    lines = table(rows)
    result = {
        "command": f"python -m benchmarks.continual --folder DATA --protocols {protocol} "
        f"--seeds {' '.join(map(str, seeds))}" + (f" --core {core}" if core != CORE else ""),
        "versions": {"torch": torch.__version__, "numpy": np.__version__, "python": platform.python_version()},
        "hours_of_steps": round(sum(row["seconds"] for row in rows) / 3600, 2),
        "widths": WIDTHS,
        "settings": {method: settings_of(method, core) for method in dict.fromkeys(row["method"] for row in rows)},
        "table": lines,
        "rows": rows,
    }
    path = RESULTS / f"{f'core{core}_' if core != CORE else ''}continual_{protocol}.json"
    path.write_text(json.dumps(result, separators=(",", ":")).replace("},{", "},\n{") + "\n")
    plot(rows, protocol, path.with_suffix(".png"))
    for line in lines:
        print(json.dumps(line))


if __name__ == "__main__":
    sys.exit(main())

"""Bytes of one file with all operating points, and of a file for each of them, for networks that were trained apart.

    python -m benchmarks.storage --data digits usc_had.npz --results accuracy_digits_resnet8 accuracy_usc_had_resnet8

Points are the six widths and the gates' assignments that a recorded run of `python -m benchmarks.accuracy` learned. The
bytes of a file do not depend on the values of weights, so nothing is trained. A separate network's file is counted as
this format would hold it at its least: one parameter set, one point, and of each layer as many bit planes as it uses.
Results go to benchmarks/results/storage.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import caq
from benchmarks.accuracy import RESULTS
from caq import artifact
from caq.data import Dataset, load
from caq.graph import Assignment, parse_assignment
from caq.supernet.conversion import DEFAULT_WIDTHS, convert
from caq.supernet.lower import lower
from caq.supernet.pipeline import Prepared, assemble, prepare, uniform_name
from caq.supernet.train import TrainConfig

CONFIG = TrainConfig()


def file_bytes(data: Dataset, prepared: Prepared, widths: Sequence[int], gates: dict[str, Assignment]) -> int:
    """Bytes of a file with all `widths`, and a point with a parameter set of its own for each of `gates`."""
    supernet = convert(prepared.network, prepared.example(), widths)
    points: list[tuple[str, Assignment, int | None]] = []
    own = []
    for name, assignment in gates.items():
        points.append((name, assignment, len(widths) + len(own)))
        own.append((assignment, supernet.add_row(assignment)))
    points += [(uniform_name(width), supernet.graph.uniform(width), None) for width in reversed(widths)]
    return len(artifact.dumps(assemble(lower(supernet, prepared.scaling.step, own), data, prepared, points, CONFIG)))


def measure(data: Dataset, record: dict[str, Any], model: str) -> dict[str, Any]:
    """Bytes of the one file and of the separate ones, for each seed of a record of benchmarks.accuracy."""
    prepared = prepare(data, model, CONFIG.seed)
    graph = convert(prepared.network, prepared.example(), DEFAULT_WIDTHS).graph
    alone = {uniform_name(width): file_bytes(data, prepared, (width,), {}) for width in DEFAULT_WIDTHS}
    beside = alone["w8a8"] - graph.cost(graph.uniform(8)).weight_bytes
    seeds = {}
    for seed, rows in record["seeds"].items():
        points = {name: parse_assignment(text) for name, text in rows["assignments"].items()}
        gates = {name: assignment for name, assignment in points.items() if name not in alone}
        separate = alone | {name: beside + graph.cost(assignment).weight_bytes for name, assignment in gates.items()}
        one = file_bytes(data, prepared, DEFAULT_WIDTHS, gates)
        total = sum(separate.values())
        seeds[seed] = {"one": one, "separate": separate, "sum": total, "saved": round(1 - one / total, 4)}
    return {"data": data.name, "model": model, "seeds": seeds}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", required=True, help="digits, or .npz files")
    parser.add_argument("--results", nargs="+", required=True, help="records of benchmarks.accuracy, one for each")
    args = parser.parse_args()

    found = []
    for name, result in zip(args.data, args.results, strict=True):
        data = load(name)
        record = json.loads((RESULTS / f"{result}.json").read_text())
        found.append(measure(data, record, result.removeprefix(f"accuracy_{data.name}_")))
        saved = [seed["saved"] for seed in found[-1]["seeds"].values()]
        print(
            f"{data.name}: one file saves {100 * np.mean(saved):.1f} % ({100 * min(saved):.1f}..{100 * max(saved):.1f})"
        )
    names = " ".join(Path(name).name for name in args.data)
    command = f"python -m benchmarks.storage --data {names} --results {' '.join(args.results)}"
    summary = {"command": command, "caq": caq.__version__, "numpy": np.__version__, "networks": found}
    (RESULTS / "storage.json").write_text(json.dumps(summary, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

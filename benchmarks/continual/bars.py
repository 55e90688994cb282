"""What the calibrator was to show, beside what it shows, from the results of benchmarks.continual and its cost.

    python -m benchmarks.continual.bars

Differences are in points of accuracy after the last batch of a phase, of the streams of a protocol, then of protocols;
a bar is met if it is at every width. Time and memory are ours over those of LSQ on the core set, and over replay's.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.calibrate_streams import WIDTHS
from benchmarks.continual.stream import last

RESULTS = Path(__file__).parent.parent / "results"
OURS = ("ours", "ours_sets", "ours_unguarded")
#: What is compared: whose figure is taken from ours, on what, and the least difference at each width.
BARS = {
    "target above no adaptation": ("none", "target", 0.0),
    "target above batch norm": ("bn", "target", 0.0),
    "target within 2 points of LSQ on the same core": ("lsq", "target", -2.0),
    "target within 2 points of experience replay": ("er", "target", -2.0),
    "source loses at most 2 points": ("none", "source", -2.0),
}
#: Largest ratios of ours to methods with back-propagation, and what of the cost's results they are of.
COSTS = {"time": ("ms", 0.1), "growth": ("growth_mib", 0.25), "peak": ("peak_mib", 0.25)}


def accuracy_bars(rows: dict[str, list[dict[str, Any]]], ours: str) -> dict[str, dict[str, Any]]:
    """Differences by protocol and their mean, (W,) each, and whether the mean meets its bar at every width.

    rows: of protocols, as their results have them. Only seeds that both methods have are compared; protocols without
    one are left out.
    """
    found = {}
    for name, (other, what, least) in BARS.items():
        by_protocol = {}
        for protocol, all_rows in rows.items():
            mine, theirs = ([row for row in all_rows if row["method"] == method] for method in (ours, other))
            seeds = {row["seed"] for row in mine} & {row["seed"] for row in theirs}
            if seeds:
                a, b = (last([row for row in some if row["seed"] in seeds], what) for some in (mine, theirs))
                by_protocol[protocol] = [x - y for x, y in zip(a, b, strict=True)]
        if by_protocol:
            mean = [sum(column) / len(by_protocol) for column in zip(*by_protocol.values(), strict=True)]
            # Above is more than nothing; within 2 points is 2 points too.
            met = all(v > least if least == 0 else v >= least for v in mean)
            rounded = {key: [round(v, 1) for v in row] for key, row in {**by_protocol, "mean": mean}.items()}
            found[name] = {"met": met, "least": least, **rounded}
    return found


def cost_bars(methods: dict[str, dict[str, float]], ours: str) -> dict[str, dict[str, Any]]:
    """Ratios of ours to LSQ's and replay's time and memory, and whether both are small enough."""
    found = {}
    for what, (figure, most) in COSTS.items():
        row = {other: round(methods[ours][figure] / methods[other][figure], 3) for other in ("lsq", "er")}
        found[f"{what} at most {most:g}"] = {"met": all(v <= most for v in row.values()), **row}
    return found


def main() -> int:
    paths = {p.stem.removeprefix("continual_"): p for p in sorted(RESULTS.glob("continual_*.json"))}
    read = {name: json.loads(path.read_text()) for name, path in paths.items()}
    rows = {name: result["rows"] for name, result in read.items() if "table" in result}
    bars: dict[str, Any] = {ours: accuracy_bars(rows, ours) for ours in OURS}
    if "cost" in read:
        methods = read["cost"]["methods"]
        bars |= {f"{ours}'s cost": cost_bars(methods, ours) for ours in OURS if ours in methods}
    for of, lines in bars.items():
        for name, row in lines.items():
            print(f"{of}: {name}: {json.dumps(row)}")
    result = {"command": "python -m benchmarks.continual.bars", "widths": WIDTHS, "bars": bars}
    (RESULTS / "continual_bars.json").write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

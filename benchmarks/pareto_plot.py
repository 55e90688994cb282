"""Accuracy against cost from rows that benchmarks wrote: {"method", "seed", "point", "accuracy", "bytes", "bit_macs"}.

    python -m benchmarks.pareto_plot --data usc_had --model resnet8

Costs are relative to w8a8, null where they have no meaning: such rows become a line across.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results"
#: What is averaged over seeds.
_FIGURES = ("accuracy", "bytes", "bit_macs", "agreement", "loss")
_PANELS = {"bytes": "weight bytes read, of w8a8", "bit_macs": "bit-MACs, of w8a8"}
_MARKERS = "osD^vPX*<>ph"


def rows_beside(results: Path, data: str, model: str, own: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """`own` rows, and of all result files of the data set and network those of other methods, of the same seeds.

    Several benchmarks write the same row; the file that comes first by name counts.
    """
    methods, seeds = ({row[key] for row in own} for key in ("method", "seed"))
    found: dict[tuple[str, str, int], dict[str, Any]] = {}
    for path in sorted(results.glob(f"*_{data}_{model}.json")):
        for row in json.loads(path.read_text()).get("rows", []):
            if row["method"] not in methods and row["seed"] in seeds:
                found.setdefault((row["method"], row["point"], row["seed"]), row)
    return [*own, *found.values()]


def means(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of each method and point as one, figures averaged over seeds; `lowest` and `highest` accuracy."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["method"], row["point"]), []).append(row)
    result = []
    for (method, point), group in groups.items():
        entry: dict[str, Any] = {"method": method, "point": point, "seeds": len(group)}
        for key in _FIGURES:
            values = [row.get(key) for row in group]
            entry[key] = None if None in values else float(np.mean(values))
        entry["lowest"] = min(row.get("lowest", row["accuracy"]) for row in group)
        entry["highest"] = max(row.get("highest", row["accuracy"]) for row in group)
        result.append(entry)
    return result


def plot(rows: list[dict[str, Any]], title: str, path: Path) -> None:
    """Draws the means of `rows`, with whiskers from the lowest to the highest seed, in a panel for each cost."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    entries = means(rows)
    for entry in entries:
        uniform = entry["point"].startswith("w") and entry["point"][1:2].isdigit()
        if entry["method"] == "supernet":
            entry["method"] = "uniform widths" if uniform else "learned gates"
    first = ("uniform widths", "learned gates", "search", "sensitivity", "random")
    methods = sorted({e["method"] for e in entries}, key=lambda m: (first.index(m) if m in first else len(first), m))
    colours = pyplot.get_cmap("tab10")
    figure, panels = pyplot.subplots(1, len(_PANELS), figsize=(12, 5), sharey=True)
    for panel, (cost, label) in zip(panels, _PANELS.items(), strict=True):
        for i, method in enumerate(methods):
            of_method = [e for e in entries if e["method"] == method]
            placed = sorted((e for e in of_method if e[cost] is not None), key=lambda e: e[cost])
            style = {"color": colours(i % 10), "label": method}
            if not placed:
                panel.axhline(100 * float(np.mean([e["accuracy"] for e in of_method])), linestyle="--", **style)
                continue
            x, y = [e[cost] for e in placed], np.array([100 * e["accuracy"] for e in placed])
            low, high = (np.array([100 * e[k] for e in placed]) for k in ("lowest", "highest"))
            line = "-" if method == "uniform widths" else ""
            shown = {"marker": _MARKERS[i % len(_MARKERS)], "markersize": 6, "elinewidth": 0.8, "alpha": 0.85}
            # Whiskers of several methods at one cost would cover each other.
            shift = 1 + 0.012 * (i - len(methods) / 2)
            panel.errorbar(np.array(x) * shift, y, [y - low, high - y], linestyle=line, **shown, **style)
        panel.set_xscale("log")
        ticks = [
            t for t in (0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1) if panel.get_xlim()[0] < t < panel.get_xlim()[1]
        ]
        panel.set_xticks(ticks, [f"{t:g}" for t in ticks])
        panel.minorticks_off()
        panel.set_xlabel(label)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("test accuracy, %: mean and spread over seeds")
    figure.suptitle(title)
    figure.legend(*panels[-1].get_legend_handles_labels(), loc="lower center", ncols=min(len(methods), 6), fontsize=9)
    figure.tight_layout(rect=(0, 0.05 + 0.04 * ((len(methods) - 1) // 6), 1, 1))
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="name in the results' file names, such as usc_had")
    parser.add_argument("--model", required=True)
    args = parser.parse_args()
    rows = rows_beside(RESULTS, args.data, args.model)
    if not rows:
        print(f"no rows for {args.data} and {args.model} in {RESULTS}", file=sys.stderr)
        return 1
    path = RESULTS / f"pareto_{args.data}_{args.model}.png"
    plot(rows, f"{args.data}, {args.model}", path)
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())

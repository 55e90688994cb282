"""Accuracy over the stream, a line for each method: on the target and on the source, at each width."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.calibrate_streams import WIDTHS

#: Methods that are drawn, with their labels and colours; the others are in the table.
DRAWN = {
    "none": ("no adaptation", "0.6"),
    "bn": ("batch norm, no labels", "tab:orange"),
    "squant_bn": ("SQuant and batch norm", "tab:olive"),
    "qzo": ("zeroth order (QZO)", "tab:brown"),
    "er": ("experience replay", "tab:purple"),
    "lsq": ("LSQ on everything", "tab:red"),
    "ours_unguarded": ("ours without its guard", "tab:cyan"),
    "ours": ("ours", "tab:blue"),
    "ours_sets": ("ours without twins", "tab:green"),
}


def curves(rows: list[dict[str, Any]], method: str, what: str) -> NDArray[np.float64]:
    """Accuracy (batches, W) of a method over the stream.

    Phases that are streams of their own, as people are, are averaged; those of one stream follow each other. Seeds are
    averaged.
    """
    some = [row for row in rows if row["method"] == method]
    phases: dict[str, list[Any]] = {}
    for row in some:
        phases.setdefault(row["phase"], []).append(row[what])
    if all(name.startswith("person") for name in phases):
        shortest = min(len(curve) for values in phases.values() for curve in values)
        parts = [[curve[:shortest] for values in phases.values() for curve in values]]
    else:
        parts = list(phases.values())
    return np.concatenate([np.mean(np.array(part), axis=0) for part in parts])


def plot(rows: list[dict[str, Any]], protocol: str, path: Path) -> None:
    """Draws DRAWN as far as there are rows of them."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    there = [method for method in DRAWN if any(row["method"] == method for row in rows)]
    figure, axes = pyplot.subplots(2, len(WIDTHS), figsize=(12, 6.4), sharex=True, sharey="row", layout="constrained")
    for panels, what in zip(axes, ("target", "source"), strict=True):
        for method in there:
            found, (label, colour) = curves(rows, method, what), DRAWN[method]
            batches = np.arange(1, len(found) + 1)
            for i, axis in enumerate(panels):
                axis.plot(batches, found[:, i], color=colour, label=label, lw=2.2 if method == "ours" else 1.3)
        panels[0].set_ylabel(f"accuracy on the {what}, %")
    for axis, width in zip(axes[0], WIDTHS, strict=True):
        axis.set_title(f"{width} bits")
    for axis in axes.flat:
        axis.grid(alpha=0.3)
    for axis in axes[1]:
        axis.set_xlabel("batches of the stream")
    figure.suptitle(protocol.replace("_", " "))
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)

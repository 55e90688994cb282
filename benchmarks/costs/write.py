"""Profiles as YAML files (their format: caq.costs.read), and the picture of errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from caq.costs import Profile, parse_profile

HEAD = "# Written by `python -m benchmarks.device_costs`; the errors are in benchmarks/results/device_costs.json.\n"


def figure(value: float, unit: str, source: str) -> dict[str, Any]:
    """Four digits of a fraction, all of an integer."""
    return {"value": int(value) if value == int(value) else float(f"{value:.4g}"), "unit": unit, "source": source}


def write(data: Mapping[str, Any], path: Path) -> Profile:
    """Writes a profile, and returns it as a reader of the file has it. Raises ConfigError on what is none."""
    profile = parse_profile(data, path.stem, str(path))
    text = yaml.safe_dump(dict(data), sort_keys=False, default_flow_style=None, width=116, allow_unicode=True)
    path.write_text(HEAD + text)
    return profile


def plot(panels: Mapping[str, Sequence[tuple[str, float, float]]], path: Path) -> None:
    """Modelled over measured seconds of networks that were left out of the fit: (network, measured, modelled)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import NullFormatter

    picture, axes = pyplot.subplots(
        1, len(panels), figsize=(4.6 * len(panels), 4.2), layout="constrained", squeeze=False
    )
    for ax, (title, rows) in zip(axes[0], panels.items(), strict=True):
        for network in sorted({name for name, *_ in rows}):
            points = [pair for name, *pair in rows if name == network]
            ax.plot(*zip(*points, strict=True), ".", label=network)
        ends = [min(row[1] for row in rows), max(row[1] for row in rows)]
        ax.plot(ends, ends, color="gray", linewidth=0.8)
        ax.set(xscale="log", yscale="log", xlabel="measured, s", ylabel="modelled without this network, s", title=title)
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.yaxis.set_minor_formatter(NullFormatter())
        ax.legend(fontsize=7)
    picture.savefig(path, dpi=120)

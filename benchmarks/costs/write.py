"""Profiles as YAML files (their format: caq.costs.read), and the picture of errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmarks.costs.fit import Left
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


def plot(panels: Mapping[str, Sequence[Left]], path: Path) -> None:
    """Modelled over measured, of networks that were left out of the fit; seconds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    picture, axes = pyplot.subplots(
        1, len(panels), figsize=(4.6 * len(panels), 4.2), layout="constrained", squeeze=False
    )
    for ax, (title, left) in zip(axes[0], panels.items(), strict=True):
        for group in sorted({row.group for row in left}):
            rows = [row for row in left if row.group == group]
            ax.plot([r.measured for r in rows], [r.predicted for r in rows], ".", label=group)
        ends = [min(row.measured for row in left), max(row.measured for row in left)]
        ax.plot(ends, ends, color="gray", linewidth=0.8)
        ax.set(xscale="log", yscale="log", xlabel="measured, s", ylabel="modelled without this network, s", title=title)
        ax.legend(fontsize=7)
    picture.savefig(path, dpi=120)

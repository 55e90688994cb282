"""`caq doctor`: what this device can sense, which extras are installed, and which engine runs."""

from __future__ import annotations

import argparse
import os
import platform
from importlib import metadata
from typing import Any

import numpy as np

import caq
from caq.cli.output import Output
from caq.context import ProbeRow, probe

HELP = "show what can be sensed here and why not, what is installed, and which engine runs"

#: Optional packages and the extra of caq that installs each.
EXTRAS = {
    "torch": "train",
    "scikit-learn": "train",
    "tensorboard": "train",
    "gymnasium": "sim",
    "matplotlib": "sim",
    "rich": "cli",
}


def configure(parser: argparse.ArgumentParser) -> None:
    """There are no options."""


def execute(args: argparse.Namespace, output: Output) -> dict[str, Any]:
    about = {
        "caq": caq.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "engine": f"reference kernels on numpy {np.__version__}",
    }
    extras = [_extra(package, extra) for package, extra in EXTRAS.items()]
    context = [_sensed(row) for row in probe()]
    output.table("this machine", [{"what": key, "value": value} for key, value in about.items()])
    output.table("extras", [{**extra, "version": extra["version"] or "not installed"} for extra in extras])
    output.table("context", [_context_row(row) for row in context])
    return {**about, "extras": extras, "context": context}


def _extra(package: str, extra: str) -> dict[str, Any]:
    try:
        # From the metadata: importing torch to ask for its version takes a second.
        return {"package": package, "version": metadata.version(package), "install": ""}
    except metadata.PackageNotFoundError:
        return {"package": package, "version": None, "install": f"pip install 'caq[{extra}]'"}


def _sensed(row: ProbeRow) -> dict[str, Any]:
    return {
        "field": row.what,
        "value": row.value,
        "unit": row.unit,
        "source": row.source,
        "quality": row.quality,
        "reason": row.reason,
    }


def _context_row(row: dict[str, Any]) -> dict[str, object]:
    value = row["value"]
    if value is None:
        shown = "-"
    elif isinstance(value, bool):
        shown = "yes" if value else "no"
    else:
        shown = f"{value:.4g}" if row["unit"] == "1" else f"{value:.6g} {row['unit']}"
    return {
        "field": row["field"],
        "value": shown,
        "quality": row["quality"],
        "source": row["source"],
        "why not": row["reason"],
    }

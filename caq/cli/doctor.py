"""`caq doctor`: what this device can sense, which extras are installed, and which engine runs."""

from __future__ import annotations

import argparse
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

import caq
from caq import program
from caq.cli.output import Output
from caq.context import ProbeRow, probe
from caq.context.files import read_text
from caq.errors import ConfigError

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

#: What each instruction set needs of the CPU, as /proc/cpuinfo calls it (`runs` in caq/kernels/isa_*.c).
FEATURES = {
    "avx2": ("avx2",),
    "avx512vnni": ("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512vbmi", "avx512_vnni"),
    "neon": ("neon",),
    "neon_dot": ("asimddp",),
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
        "numpy": np.__version__,
        "engine": _engine(),
    }
    instruction_sets = [_instruction_set(name, reason) for name, reason in program.isa_names().items()]
    extras = [_extra(package, extra) for package, extra in EXTRAS.items()]
    context = [_sensed(row) for row in probe()]
    output.table("this machine", [{"what": key, "value": value} for key, value in about.items()])
    output.table("instruction sets of the native kernels", [_isa_row(isa) for isa in instruction_sets])
    output.table("extras", [{**extra, "version": extra["version"] or "not installed"} for extra in extras])
    output.table("context", [_context_row(row) for row in context])
    return {**about, "instruction_sets": instruction_sets, "extras": extras, "context": context}


def _engine() -> str:
    """Which kernels run, and why."""
    wanted = os.environ.get("CAQ_ISA")
    try:
        chosen = list(program.isa_names())[program.choose_isa()]
    except ConfigError as error:
        return f"does not start, because CAQ_ISA={wanted} is set: {error}, or unset it"
    return f"native kernels, {chosen}: {'CAQ_ISA asks for it' if wanted else 'the best that runs here'}"


def _instruction_set(name: str, reason: str) -> dict[str, Any]:
    """What /proc/cpuinfo should list and does not, if it lists any."""
    features = cpu_features() if reason == program.CPU_LACKS else set()
    lacks = [feature for feature in FEATURES[name] if feature not in features] if features else []
    return {"name": name, "runs": not reason, "reason": reason, "lacks": lacks}


def cpu_features(root: Path = Path("/")) -> set[str]:
    """The first core's features by their names in /proc/cpuinfo; empty where it does not tell."""
    for line in (read_text(root / "proc/cpuinfo") or "").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return set(value.split())
    return set()


def _isa_row(isa: dict[str, Any]) -> dict[str, object]:
    missing = f": {', '.join(isa['lacks'])}" if isa["lacks"] else ""
    return {"name": isa["name"], "runs": "yes" if isa["runs"] else "no", "why not": isa["reason"] + missing}


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

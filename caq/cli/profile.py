"""`caq profile`: where the time of an inference goes, and how far each step is from what this machine can do."""

from __future__ import annotations

import argparse
from typing import Any

from caq.cli.arguments import add_artifact, positive, whole
from caq.cli.output import Output, number, percent
from caq.engine import Engine
from caq.roofline import Profile, StepProfile, profile

HELP = "time each step of an inference in the native kernels, beside what one core of this machine can do"


def configure(parser: argparse.ArgumentParser) -> None:
    add_artifact(parser)
    parser.add_argument("--point", metavar="NAME", help="operating point; default: the first")
    parser.add_argument(
        "--branch", type=whole(0), metavar="N", help="of a conditional point; default: the one that is taken most often"
    )
    parser.add_argument("--isa", metavar="NAME", help="instruction set; default: CAQ_ISA, or the best (see caq doctor)")
    parser.add_argument("--lean", action="store_true", help="unpack weights at every inference, for the least memory")
    parser.add_argument(
        "--seconds", type=positive, default=1.0, metavar="S", help="of timing the steps; default %(default)s"
    )


def execute(args: argparse.Namespace, output: Output) -> dict[str, Any]:
    engine = Engine(args.artifact, isa=args.isa, lean=args.lean)
    if args.point is not None:
        engine.select(args.point)
    shares = engine.points[engine.point].shares
    branch = shares.index(max(shares)) if args.branch is None else args.branch
    found = profile(engine, args.seconds, branch)
    machine, steps = found.machine, [_describe(found, step) for step in found.steps]
    mode = ", lean" if found.lean else ""
    at = engine.point if len(shares) == 1 else f"{engine.point}, branch {branch}"
    title = f"{args.artifact} at {at}, {machine.isa}{mode}, one core"
    output.table(title, [_row(found, step) for step in steps])
    totals = _totals(found)
    output.table("one inference", _total_rows(found, totals))
    output.table("memory", [{"what": what, "bytes": count} for what, count in _memory_rows(found)])
    peak = f"one core of this machine, measured: {machine.macs_per_s / 1e9:.1f} GMAC/s, and from a cache or memory"
    output.table(peak, [{"bytes": size, "GB/s": f"{rate / 1e9:.1f}"} for size, rate in machine.bandwidths])
    return {
        "artifact": args.artifact,
        "point": engine.point,
        "branch": branch,
        "isa": machine.isa,
        "lean": found.lean,
        "machine": {
            "macs_per_s": machine.macs_per_s,
            "bandwidths": [{"bytes": size, "bytes_per_s": rate} for size, rate in machine.bandwidths],
        },
        "steps": steps,
        "totals": totals,
        "memory": {
            "panel_bytes": found.panel_bytes,
            "arena_bytes": found.arena_bytes,
            "tensors_peak_bytes": found.peak_bytes,
            "tensors_lower_bound_bytes": found.lower_bound_bytes,
        },
    }


def _describe(found: Profile, step: StepProfile) -> dict[str, Any]:
    return {
        "step": step.name,
        "kind": step.kind,
        "widths": None if step.widths is None else str(step.widths),
        "time_us": 1e6 * step.time_s,
        "unpack_us": 1e6 * step.unpack_s,
        "share": step.time_s / found.steps_s,
        "macs": step.macs,
        "macs_per_s": step.macs / step.time_s,
        "plane_bytes": step.plane_bytes,
        "panel_bytes": step.panel_bytes,
        "tensor_bytes": step.tensor_bytes,
        "roof_us": 1e6 * step.roof.time_s,
        "roof_share": step.roof.time_s / step.time_s,
        "bound": step.roof.bound,
    }


def _row(found: Profile, step: dict[str, Any]) -> dict[str, object]:
    layer = step["widths"] is not None
    return {
        "step": step["step"],
        "kind": step["kind"],
        "widths": step["widths"] or "-",
        "us": f"{step['time_us']:.2f}",
        **({"unpacking": f"{step['unpack_us']:.2f}" if layer else "-"} if found.lean else {}),
        "share": percent(step["share"]),
        "MACs": number(step["macs"]) if layer else "-",
        "GMAC/s": f"{step['macs_per_s'] / 1e9:.1f}" if layer else "-",
        "plane bytes": step["plane_bytes"] if layer else "-",
        "panel bytes": step["panel_bytes"] if layer else "-",
        "tensor bytes": step["tensor_bytes"],
        "of the roof": percent(step["roof_share"]),
        "bound": step["bound"],
    }


def _totals(found: Profile) -> dict[str, float]:
    macs = sum(step.macs for step in found.steps)
    return {
        "steps_us": 1e6 * found.steps_s,
        "unpack_us": 1e6 * sum(step.unpack_s for step in found.steps),
        "roof_us": 1e6 * found.roof_s,
        "inference_us": 1e6 * found.inference_s,
        "run_us": 1e6 * found.run_s,
        "call_us": 1e6 * (found.run_s - found.inference_s),
        "gate_us": 1e6 * found.gate_s,
        "macs": macs,
        "macs_per_s": macs / found.run_s,
    }


def _total_rows(found: Profile, totals: dict[str, float]) -> list[dict[str, object]]:
    between = totals["inference_us"] - totals["steps_us"]
    rows = {
        "the steps at their roofs": totals["roof_us"],
        "the steps, each on its own": totals["steps_us"],
        **({"of them: unpacking weights": totals["unpack_us"]} if found.lean else {}),
        "encoding the sample, and colder caches": between,
        "the call from Python": totals["call_us"],
        "Engine.run": totals["run_us"],
        **({"besides, the gate, called from Python": totals["gate_us"]} if totals["gate_us"] else {}),
    }
    return [{"what": what, "us": f"{us:.2f}"} for what, us in rows.items()]


def _memory_rows(found: Profile) -> list[tuple[str, int]]:
    return [
        ("panels that the plan holds", found.panel_bytes),
        ("arena of one inference", found.arena_bytes),
        ("tensors, as they were placed", found.peak_bytes),
        ("tensors that are alive at once: no plan needs less", found.lower_bound_bytes),
    ]

"""What bench_engine shows: tables, the goals and whether they are reached, and a picture."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers import IN_PLACE
from benchmarks.topologies import TOPOLOGIES, Topology

#: From shared/peers.md, measured once by others: separate 8, 4 and 2-bit LiteRT files, in KB and MB of a thousand.
LITERT_842_BYTES = {"resnet8": 174_000, "mobilenet_v1_025": 616_000, "resnet18": 20_700_000}
#: Correlation with the float network below which an 8-bit answer is called broken.
BROKEN_BELOW = 0.2


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table: with rich on a terminal, in plain columns where it is piped or rich is not there."""
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        rich = False
    else:
        rich = sys.stdout.isatty()
    if rich:
        shown = Table(title=title, title_justify="left")
        for i, name in enumerate(header):
            shown.add_column(name, justify="right" if i else "left")
        for row in rows:
            shown.add_row(*row)
        Console().print(shown)
        return
    lines = [list(header), *map(list, rows)]
    sizes = [max(len(line[i]) for line in lines) for i in range(len(header))]
    print(f"\n{title}")
    for line in lines:
        cells = [
            text.rjust(size) if i else text.ljust(size) for i, (text, size) in enumerate(zip(line, sizes, strict=True))
        ]
        print("  ".join(cells).rstrip())
    sys.stdout.flush()


def number(value: float | None) -> str:
    """Three digits or so."""
    if value is None or math.isnan(value):
        return "-"
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
    return f"{value:,.{digits}f}"


def quality(row: dict[str, Any]) -> str:
    """Agreement with the float network, called broken where an 8-bit answer has nothing to do with it."""
    value = row["agreement"]
    if value is None:
        return "not compared"
    low = row["peer"] == "ours" and not row["variant"].startswith("w8a8")
    broken = (math.isnan(value) or value < BROKEN_BELOW) and not low
    return f"BROKEN {value:.2f}" if broken else f"{value:.3f}"


def print_latency(topology: Topology, threads: int, entry: dict[str, Any]) -> None:
    """Rows of one topology. Ours at 8 bits over each peer; of our own rows, each over our 8 bits."""
    by = {(r["ours"], r["peer"], r["variant"]): r for r in entry["ratios"]}
    rows = []
    for row in sorted(entry["rows"], key=lambda r: float(r["us"]["median"])):
        who, variant = row["peer"], row["variant"]
        ours = who == "ours"
        ratio = by.get((variant, "ours", "w8a8")) if ours else by.get(("w8a8", who, variant))
        shown = [number(ratio[k]) if ratio else "" for k in ("medians", "minima")]
        over = row["cpu_over_wall"]
        cpu = f"{over:.2f}" + (" TOO MANY" if over > threads * 1.05 else "")
        rows.append([f"{who} {variant}", number(row["us"]["median"]), number(row["us"]["min"]), cpu])
        rows[-1] += ["", "", shown[0], quality(row)] if ours else [*shown, "", quality(row)]
    title = f"{topology.title}, {threads} thread{'s' * (threads > 1)}: us an inference"
    table(title, ["", "median", "minimum", "CPU/wall", "ours w8a8/it", "of minima", "it/ours w8a8", "agrees"], rows)


def print_switching(topology: Topology, entry: dict[str, Any]) -> None:
    rows = [[who, number(v["median"]), number(v["min"])] for who, v in sorted(entry.items(), key=_median)]
    table(f"{topology.title}: us to change the width", ["", "median", "minimum"], rows)


def _median(item: tuple[str, dict[str, Any]]) -> float:
    return float(item[1]["median"])


def print_cold_start(entry: dict[str, Any]) -> None:
    rows = []
    for who, v in sorted(entry.items(), key=lambda item: float(item[1]["ms"]["median"])):
        rows.append([who, *(number(v[k][of]) for k in ("ms", "peak_mib") for of in ("median", "min"))])
    header = ["", "ms median", "ms minimum", "peak MiB median", "minimum"]
    table("ResNet-8: process start to first answer", header, rows)


def print_disk(entry: dict[str, Any]) -> None:
    rows = []
    for name, files in entry.items():
        whole = files["ours, all widths, packed"]
        for what, size in files.items():
            if not isinstance(size, dict):
                rows.append([f"{TOPOLOGIES[name].title}: {what}", f"{size:,}", f"{whole / size:.3f}"])
    table("Bytes on disk", ["", "bytes", "our one file, packed / it"], rows)


def print_missing(missing: Sequence[dict[str, str]]) -> None:
    if missing:
        table("Missing", ["peer", "model", "reason"], [[m["peer"], m["model"], m["reason"]] for m in missing])


def print_goals(found: Sequence[dict[str, Any]]) -> None:
    rows = []
    for goal in found:
        value = goal["value"]
        verdict = "not measured" if value is None else _verdict(value, goal["floor"], goal["goal"])
        rows.append([goal["what"], number(value), number(goal["floor"]), number(goal["goal"]), verdict])
    table("What it must show", ["", "found", "floor", "goal", ""], rows)


def _verdict(value: float, floor: float | None, goal: float | None) -> str:
    if floor is None:
        return "for information"
    if goal is not None and value <= goal:
        return "goal"
    return "floor" if value <= floor else "missed"


def goals(results: dict[str, Any]) -> list[dict[str, Any]]:
    """The engine's table of floors and goals with what was found, None where it was not measured.

    Ratios are of medians, at one thread.
    """

    def ratio(section: str, model: str, ours: str, who: str, variant: str) -> float | None:
        rows = results.get(section, {}).get("1", {}).get(model, {}).get("ratios", ())
        key = (ours, who, variant)
        return next((r["medians"] for r in rows if (r["ours"], r["peer"], r["variant"]) == key), None)

    def entry(what: str, value: float | None, floor: float | None, goal: float | None) -> dict[str, Any]:
        return {"what": what, "value": value, "floor": floor, "goal": goal}

    def over(value: float | None, others: Sequence[float]) -> float | None:
        return round(value / min(others), 4) if value is not None and others else None

    found = []
    against = [("resnet8", "LiteRT", 1.2, 0.85), ("ds_cnn", "LiteRT", 1.0, 0.5)]
    against += [("mobilenet_v1_025", "LiteRT", 1.0, 0.5), ("autoencoder", "LiteRT", 1.2, 0.7)]
    against += [("mobilenet_v2", "OpenVINO", 1.4, 0.9), ("resnet18", "OpenVINO", 1.3, 1.0)]
    for model, who, floor, goal in against:
        title = f"{TOPOLOGIES[model].title}, 8 bits / {who} int8"
        value = ratio("latency", model, "w8a8", who, "int8")
        if who != "LiteRT":
            found.append(entry(title, value, floor, goal))
            continue
        # Its `Invoke` finds a sample in its place and leaves the outputs there, and so does `Engine.bind`.
        found.append(entry(title, ratio("latency", model, "w8a8" + IN_PLACE, who, "int8"), floor, goal))
        arrays = ratio("latency", model, "w8a8", who, "int8, arrays in and out")
        found.append(entry("  / with arrays in and out of both", arrays, floor, goal))
        found.append(entry("  / with arrays in and out of ours alone", value, None, None))
    value = ratio("latency", "autoencoder", "w2a2", "ours", "w8a8")
    found.append(entry("FC autoencoder, 2 bits / our 8 bits", value, 1.0, 0.6))
    narrow = [
        r["medians"]
        for model in results.get("latency", {}).get("1", {}).values()
        for r in model["ratios"]
        if (r["peer"], r["variant"]) == ("ours", "w8a8") and not r["ours"].endswith(IN_PLACE)
    ]
    found.append(entry("slowest width below 8 / our 8 bits, any network", max(narrow, default=None), 1.05, 1.0))
    value = ratio("gemv", "gemv_4096", "w2a2", "ONNX Runtime", "2 bits")
    found.append(entry("4096 x 4096, 2 bits / MatMulNBits 2 bits", value, 1.0, 0.5))

    switches = results.get("switching", {}).get("resnet8", {})
    fresh = switches.get("ours: switch, not resident", {}).get("median")
    resident = switches.get("ours: switch, resident", {}).get("median")
    loads = [v["median"] for who, v in switches.items() if who.endswith(": load") and not who.startswith("ours")]
    found.append(entry("ResNet-8: us to switch all layers, panels prepared", fresh, 50, 10))
    found.append(entry("ResNet-8: us to switch, panels resident", resident, 2, 0.5))
    found.append(entry("ResNet-8: switch, prepared / fastest-loading peer", over(fresh, loads), 1 / 3, 1 / 10))

    cold = results.get("cold_start", {})
    ours = cold.get("ours", {})
    times = [cold[who]["ms"]["median"] for who in ("ncnn", "LiteRT") if who in cold]
    value = over(ours["ms"]["median"], times) if ours else None
    found.append(entry("first answer / fastest of ncnn and LiteRT", value, 1.1, 1.0))
    found.append(entry("peak resident MiB of that process", ours["peak_mib"]["median"] if ours else None, 38, 32))
    held = [m["lean_held_2_over_8"] for m in results.get("memory", {}).values()]
    found.append(entry("resident weights, 2 bits / 8 bits, least memory", max(held, default=None), 0.3, None))
    for model, other in LITERT_842_BYTES.items():
        whole = results.get("disk", {}).get(model, {}).get("ours, all widths, packed")
        what = f"{TOPOLOGIES[model].title}: one packed artifact / LiteRT's 8 + 4 + 2-bit files"
        found.append(entry(what, over(whole, [other]), 0.55, None))
    return found


def plot(results: dict[str, Any], path: Path) -> None:
    """Horizontal bars of the ratios among the goals, floor and goal marked on each, and of ours to every peer."""
    try:
        import matplotlib
    except ImportError:
        print("--plot needs matplotlib: pip install matplotlib", file=sys.stderr)
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    bars: list[tuple[str, float, float | None, float | None]] = [
        (g["what"], g["value"], g["floor"], g["goal"])
        for g in results["goals"]
        if g["value"] is not None and " / " in g["what"]
    ]
    shown = len(bars)
    for model, entry in results.get("latency", {}).get("1", {}).items():
        for r in entry["ratios"]:
            if r["ours"] == "w8a8" and r["peer"] != "ours":
                bars.append(
                    (f"{TOPOLOGIES[model].title}, 8 bits / {r['peer']} {r['variant']}", r["medians"], None, None)
                )
    if not bars:
        print("--plot: no ratios among what was measured", file=sys.stderr)
        return
    figure, axes = pyplot.subplots(figsize=(10, 1.2 + 0.28 * len(bars)), layout="constrained")
    for y, (_, value, floor, goal) in enumerate(bars):
        missed = floor is not None and value > floor
        axes.barh(y, value, color="tab:red" if missed else "tab:blue" if y < shown else "tab:gray", height=0.7)
        axes.text(max(value, floor or 0, goal or 0), y, f"  {value:.3g}", va="center", fontsize=8)
        for mark, colour in ((floor, "black"), (goal, "tab:green")):
            if mark is not None:
                axes.plot([mark, mark], [y - 0.45, y + 0.45], color=colour, linewidth=2.5)
    axes.set_yticks(range(len(bars)), [name for name, *_ in bars], fontsize=8)
    axes.set_ylim(len(bars) - 0.4, -0.6)
    axes.set_xscale("log")
    axes.set_xlim(right=1.3 * axes.get_xlim()[1])  # room for the last label
    axes.axvline(1, color="gray", linewidth=0.8, linestyle=":")
    axes.plot([], [], color="black", linewidth=2.5, label="floor")
    axes.plot([], [], color="tab:green", linewidth=2.5, label="goal")
    axes.legend(loc="lower right", fontsize=8)
    axes.set_xlabel("ratio of medians, ours / theirs, 1 thread (lower is better)")
    axes.set_title(f"caq beside its peers, {results['date'][:10]}, {results['machine']['cpu']}", fontsize=10)
    figure.savefig(path, dpi=130)

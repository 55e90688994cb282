"""Our engine beside its peers, in one interleaved run.

    CAQ_DATA=FOLDER python -m benchmarks.bench_engine [--only latency gemv switching cold_start disk] [--plot]
    pip install ai-edge-litert litert-torch openvino onnxruntime onnx executorch ncnn torch    (any of them)

    latency     one inference of a network, batch 1: us, at every width of ours, 1 and 2 threads
    gemv        a matrix times a vector: our linear layer against ONNX Runtime's MatMulNBits and fp32
    switching   another width: our switch against building a session from the model file in each peer
    cold_start  a fresh process from its start to its first answer (ResNet-8), and its peak resident memory
    disk        bytes of one artifact with all widths, against files for each width

Every peer runs in a long-lived process of its own that is stopped while others run. The parent goes round the peers in
an order shuffled anew each round; each burst has as many inferences as take about --burst-ms. Of the bursts' means the
median and the minimum are reported, and ratios of ours to each peer's. CPU over wall time tells whether a peer kept to
its threads. Each peer's answers are compared once with the float network's: the correlation over 8 samples, NaN for a
peer that always answers the same. Weights are random, but for LiteRT's files of MLPerf Tiny.

LiteRT runs the .tflite files in --tflite (default: the folder mlperf_tiny_models of CAQ_DATA). Artifacts and exports
are kept in --cache; empty it when the artifact's format changes. Everything goes to --out as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from benchmarks import engine_report
from benchmarks.peers import IN_PLACE, PEERS, Missing, peer
from benchmarks.peers.client import ROOT, Worker, environment
from benchmarks.topologies import GEMV, NETWORKS, TOPOLOGIES, Topology
from caq.artifact import dumps, load

RESULTS = Path(__file__).parent / "results"
#: What benchmarks.memory found, for the table of floors and goals.
MEMORY = RESULTS / "memory.json"
SECTIONS = ("latency", "gemv", "switching", "cold_start", "disk")
GEMV_PEERS = ("ours", "ONNX Runtime")
COLD_PEERS = ("ours", "LiteRT", "ncnn", "ONNX Runtime", "OpenVINO")
COLD_MODEL = "resnet8"
COLD_START = """
import sys
folder = sys.argv[1]
def answered():
    print("answered", flush=True)
"""
#: ru_maxrss without what fork inherits from the parent.
COLD_END = """
with open("/proc/self/status") as status:
    print("peak", next(line.split()[1] for line in status if line.startswith("VmHWM")), flush=True)
"""
#: A switch of ours is far shorter than a session's load, so a sample is the mean of several.
FRESH_SWITCHES, RESIDENT_SWITCHES = 3, 300


@dataclass
class Bench:
    """What the sections share: arguments, prepared folders, and what is missing."""

    args: argparse.Namespace
    cache: Path
    rng: random.Random
    missing: list[dict[str, str]] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    prepared: dict[tuple[str, str], Path | None] = field(default_factory=dict)

    def lack(self, who: str, model: str, why: str) -> None:
        """Notes, and says at once, what could not be measured."""
        entry = {"peer": who, "model": model, "reason": why}
        if entry not in self.missing:
            self.missing.append(entry)
            say(f"missing: {who} on {model}: {why}")

    def folder(self, topology: Topology) -> Path:
        """The topology's folder in the cache, with the float network, its exports and our artifacts."""
        folder = self.cache / f"{topology.name}-seed{self.args.seed}"
        if not (folder / "ours.caq").exists():
            say(f"making {topology.title}")
            with Worker("ours") as worker:
                worker.call("make", 1800, topology=topology.name, folder=str(folder), seed=self.args.seed)
        return folder

    def prepare(self, who: str, topology: Topology) -> Path | None:
        """The folder, once the peer's own model file is in it; None if it cannot be made."""
        key = (who, topology.name)
        if key not in self.prepared:
            self.prepared[key] = None
            sources = str(self.args.tflite) if self.args.tflite else None
            try:
                folder = self.folder(topology)
                with Worker(who) as worker:
                    worker.call("prepare", 1800, topology=topology.name, folder=str(folder), sources=sources)
                self.prepared[key] = folder
            except Missing as e:
                self.lack(who, topology.title, str(e))
        return self.prepared[key]

    def start(self, who: str, topology: Topology, threads: int, stack: ExitStack) -> tuple[Worker, list[str]] | None:
        """A worker with the topology loaded, and its variants."""
        folder = self.prepare(who, topology)
        if folder is None:
            return None
        worker = stack.enter_context(Worker(who, threads))
        try:
            loaded = worker.call("load", folder=str(folder), threads=threads)
        except Missing as e:
            self.lack(who, topology.title, str(e))
            return None
        self.versions |= loaded["versions"]
        return worker, loaded["variants"]


def say(text: str) -> None:
    """Progress goes to stderr, results to stdout."""
    print(text, file=sys.stderr, flush=True)


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Median and minimum of samples, with the samples."""
    return {"median": round(statistics.median(values), 4), "min": round(min(values), 4), "samples": list(values)}


def interleaved(bench: Bench, topology: Topology, peers: Sequence[str], threads: int) -> list[dict[str, Any]]:
    """One row for each variant of each peer: microseconds an inference, by bursts that take turns."""
    with ExitStack() as stack:
        rows: list[dict[str, Any]] = []
        workers: dict[str, Worker] = {}
        for who in peers:
            started = bench.start(who, topology, threads, stack)
            for variant in started[1] if started else ():
                assert started is not None
                workers[who] = started[0]
                try:
                    agreement = workers[who].call("check", variant=variant)
                    count = workers[who].call("calibrate", variant=variant, burst_ms=bench.args.burst_ms)
                except Missing as e:
                    bench.lack(who, f"{topology.title} ({variant})", str(e))
                    continue
                row = {"peer": who, "variant": variant, "agreement": agreement, "inferences": count}
                rows.append(row | {"wall": [], "cpu": []})
        for _ in range(bench.args.rounds):
            for row in bench.rng.sample(rows, len(rows)):
                if row not in rows:
                    continue
                try:
                    spent = workers[row["peer"]].call("burst", variant=row["variant"], count=row["inferences"])
                except Missing as e:
                    bench.lack(row["peer"], topology.title, str(e))
                    rows = [other for other in rows if other["peer"] != row["peer"]]
                    continue
                row["wall"].append(spent["wall_ns"] / row["inferences"] / 1000)
                row["cpu"].append(spent["cpu_ns"] / row["inferences"] / 1000)
    for row in rows:
        row["cpu_over_wall"] = round(sum(row.pop("cpu")) / sum(row["wall"]), 3)
        row["us"] = summary([round(us, 4) for us in row.pop("wall")])
    return rows


def ratios(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each of our variants over each variant of anyone: ratio of medians, and of minima."""
    return [
        {
            "ours": a["variant"],
            "peer": b["peer"],
            "variant": b["variant"],
            "medians": round(a["us"]["median"] / b["us"]["median"], 4),
            "minima": round(a["us"]["min"] / b["us"]["min"], 4),
        }
        for a in rows
        if a["peer"] == "ours"
        for b in rows
        if b is not a
    ]


def timed(bench: Bench, topologies: Sequence[Topology], peers: Sequence[str]) -> dict[str, Any]:
    """threads -> topology -> rows and ratios."""
    found: dict[str, Any] = {}
    for threads in bench.args.threads:
        for topology in topologies:
            say(f"{topology.title}, {threads} thread{'s' * (threads > 1)}")
            rows = interleaved(bench, topology, peers, threads)
            entry = {"rows": rows, "ratios": ratios(rows)}
            found.setdefault(str(threads), {})[topology.name] = entry
            engine_report.print_latency(topology, threads, entry)
    return found


def latency(bench: Bench) -> dict[str, Any]:
    """Networks, all peers."""
    chosen = [t for t in NETWORKS if t.name in bench.args.models]
    return timed(bench, chosen, bench.args.peers)


def gemv(bench: Bench) -> dict[str, Any]:
    """Matrix times vector."""
    chosen = [t for t in GEMV if t.name in bench.args.models]
    return timed(bench, chosen, [p for p in GEMV_PEERS if p in bench.args.peers])


def switching(bench: Bench) -> dict[str, Any]:
    """topology -> who -> microseconds: sessions built anew, one thread, in turns; and our switches."""
    found: dict[str, Any] = {}
    for topology in (t for t in NETWORKS if t.name in bench.args.models):
        say(f"switching {topology.title}")
        samples: dict[str, list[float]] = {}
        with ExitStack() as stack:
            workers: list[tuple[str, Worker, list[str]]] = []
            for who in bench.args.peers:
                started = bench.start(who, topology, 1, stack)
                if started:
                    workers.append((who, *started))
            counts: dict[str, int] = {}
            for _ in range(bench.args.rounds):
                for who, worker, variants in bench.rng.sample(workers, len(workers)):
                    try:
                        if who not in counts:
                            once = worker.call("reload", count=1)["answered_ns"]
                            counts[who] = min(100, max(1, round(bench.args.burst_ms * 1e6 / once)))
                        for name, us in switch_once(who, worker, variants, counts[who]).items():
                            samples.setdefault(name, []).append(us)
                    except Missing as e:
                        bench.lack(who, f"{topology.title} (load)", str(e))
                        workers = [entry for entry in workers if entry[0] != who]
        found[topology.name] = {name: summary([round(us, 4) for us in values]) for name, values in samples.items()}
        engine_report.print_switching(topology, found[topology.name])
    return found


def switch_once(who: str, worker: Worker, variants: list[str], loads: int) -> dict[str, float]:
    """One sample of everything that a worker can do to change what it runs, in microseconds; means over `loads`."""
    spent = worker.call("reload", count=loads)
    built = {f"{who}: load": spent["ready_ns"] / 1000, f"{who}: load and answer": spent["answered_ns"] / 1000}
    if who != "ours":
        return built
    variants = [variant for variant in variants if not variant.endswith(IN_PLACE)]
    points = dict.fromkeys(variants[i] for i in (0, len(variants) // 2, -1))
    fresh = worker.call("switch", points=list(points), resident=False, count=FRESH_SWITCHES)
    resident = worker.call("switch", points=list(points), resident=True, count=RESIDENT_SWITCHES)
    return {
        "ours: switch, not resident": statistics.mean(fresh.values()) / 1000,
        **{f"ours: switch to {point}, not resident": ns / 1000 for point, ns in fresh.items()},
        "ours: switch, resident": resident["all"] / 1000,
        **built,
    }


def cold_start(bench: Bench) -> dict[str, Any]:
    """who -> milliseconds to the first answer, and peak resident MiB, of fresh processes that take turns."""
    topology = TOPOLOGIES[COLD_MODEL]
    sources = {"numpy alone": "import numpy as np\nanswered()\n"}
    folder = bench.cache
    for who in (p for p in COLD_PEERS if p in bench.args.peers):
        made = bench.prepare(who, topology)
        if made is not None:
            folder, sources[who] = made, peer(who).COLD
    samples: dict[str, tuple[list[float], list[float]]] = {}
    for i in range(bench.args.runs + 1):
        for who in bench.rng.sample(sorted(sources), len(sources)):
            try:
                ms, mib = first_answer(sources[who], folder)
            except Missing as e:
                bench.lack(who, f"{topology.title} (cold start)", str(e))
                del sources[who]
                continue
            if i > 0:  # the first one compiles .pyc files and fills the page cache
                samples.setdefault(who, ([], []))
                samples[who][0].append(round(ms, 3))
                samples[who][1].append(round(mib, 3))
    found = {who: {"ms": summary(ms), "peak_mib": summary(mib)} for who, (ms, mib) in samples.items()}
    engine_report.print_cold_start(found)
    return found


def first_answer(source: str, folder: Path) -> tuple[float, float]:
    """Milliseconds from the start of a process to its "answered", as its parent sees it, and its peak resident MiB."""
    command = [sys.executable, "-c", COLD_START + source + COLD_END, str(folder)]
    start = time.perf_counter()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment(1)
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        for line in process.stdout:
            if line.strip() == "answered":
                break
        ms = (time.perf_counter() - start) * 1000
        rest = process.stdout.read().split()
        error = process.stderr.read().strip().splitlines()[-1:]
    if process.returncode or "peak" not in rest:
        raise Missing(f"exit code {process.returncode} {' '.join(error)[:200]}")
    return ms, int(rest[rest.index("peak") + 1]) / 1024


def disk(bench: Bench) -> dict[str, Any]:
    """topology -> bytes of files."""
    found: dict[str, Any] = {}
    for topology in (t for t in NETWORKS if t.name in bench.args.models):
        try:
            folder = bench.folder(topology)
        except Missing as e:
            bench.lack("ours", topology.title, str(e))
            continue
        entry: dict[str, Any] = {"ours, all widths": (folder / "ours.caq").stat().st_size}
        entry["ours, all widths, packed"] = len(dumps(load(folder / "ours.caq"), packed=True))
        single = {p.stem.removeprefix("ours-"): p.stat().st_size for p in sorted(folder.glob("ours-w*.caq"))}
        entry |= {"ours, one file a width": single, "ours, 8 + 4 + 2 bits in three files": sum(single.values())}
        if bench.prepare("LiteRT", topology) is not None:
            entry["LiteRT, 8 bits"] = (folder / "int8.tflite").stat().st_size
        if topology.name in engine_report.LITERT_842_BYTES:
            entry["LiteRT, 8 + 4 + 2 bits in three files (measured before)"] = engine_report.LITERT_842_BYTES[
                topology.name
            ]
        found[topology.name] = entry
    engine_report.print_disk(found)
    return found


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    lines = dict(line.split(":", 1) for line in info.splitlines() if ":" in line)
    fields = {key.strip(): value.strip() for key, value in lines.items()}
    flags = fields.get("flags", "").split()
    return {
        "cpu": fields.get("model name", platform.processor()),
        "mhz": fields.get("cpu MHz"),
        "cores": os.cpu_count(),
        "features": [f for f in ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16") if f in flags],
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_average_at_start": os.getloadavg()[0],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--models", nargs="+", choices=TOPOLOGIES, default=tuple(TOPOLOGIES))
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=tuple(PEERS))
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=30, help="bursts, or loads, of each peer")
    parser.add_argument("--runs", type=int, default=15, help="fresh processes of each peer")
    parser.add_argument("--burst-ms", type=float, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", type=Path, help="folder to keep artifacts and exports in")
    parser.add_argument("--tflite", type=Path, help="folder of .tflite files")
    parser.add_argument("--out", type=Path, default=RESULTS / "engine.json")
    parser.add_argument("--plot", action="store_true", help="also draw the ratios, beside --out")
    args = parser.parse_args()
    if args.tflite is None and os.environ.get("CAQ_DATA"):
        args.tflite = Path(os.environ["CAQ_DATA"]) / "mlperf_tiny_models"
    args.tflite = args.tflite.resolve() if args.tflite else None
    results: dict[str, Any] = {
        "command": "python -m benchmarks.bench_engine " + shlex.join(sys.argv[1:]),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine(),
        "seed": args.seed,
        "rounds": args.rounds,
        "runs": args.runs,
        "burst_ms": args.burst_ms,
    }
    with tempfile.TemporaryDirectory() as temporary:
        bench = Bench(args, (args.cache or Path(temporary)).resolve(), random.Random(args.seed))
        sections = {"latency": latency, "gemv": gemv, "switching": switching, "cold_start": cold_start, "disk": disk}
        for name in SECTIONS:
            if name in args.only:
                results[name] = sections[name](bench)
    results |= {"versions": bench.versions, "missing": bench.missing}
    if MEMORY.exists():
        results["memory"] = json.loads(MEMORY.read_text())["models"]
    results["machine"]["load_average_at_end"] = os.getloadavg()[0]
    results["goals"] = engine_report.goals(results)
    engine_report.print_goals(results["goals"])
    engine_report.print_missing(bench.missing)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(results, indent=1) + "\n")
    if args.plot:
        engine_report.plot(results, args.out.with_suffix(".png"))
    return 0


if __name__ == "__main__":
    sys.exit(main())

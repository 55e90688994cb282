"""A process that holds one peer: python -m benchmarks.peers.worker PEER

Commands come as JSON lines on stdin, answers go as JSON lines to stdout; whatever a library prints goes to stderr.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from importlib import metadata
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers import Missing, Session, peer
from benchmarks.topologies import TOPOLOGIES

PR_SET_PDEATHSIG = 1


def burst(run: Callable[[], object], count: int) -> dict[str, int]:
    """Wall and CPU time of `count` inferences, after a tenth as many that warm caches and threads."""
    for _ in repeat(None, count // 10 + 1):
        run()
    cpu, wall = time.process_time_ns(), time.perf_counter_ns()
    for _ in repeat(None, count):
        run()
    wall = time.perf_counter_ns() - wall
    return {"wall_ns": wall, "cpu_ns": time.process_time_ns() - cpu}


def agreement(found: np.ndarray, expected: np.ndarray) -> float:
    """Correlation of two (N, outputs) after the mean over N is gone from every output: NaN for a constant answer."""
    a, b = (
        (y.reshape(len(y), -1) - y.reshape(len(y), -1).mean(0)).ravel().astype(np.float64) for y in (found, expected)
    )
    norm = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / norm if norm > 0 else float("nan")


class Worker:
    """One method for each command."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.folder = Path()
        self.threads = 1
        self.sessions: dict[str, Session] = {}

    def make(self, topology: str, folder: str, seed: int) -> None:
        """The float network, its exports and our artifacts."""
        from benchmarks.models_onnx import make

        make(TOPOLOGIES[topology], Path(folder), seed)

    def prepare(self, topology: str, folder: str, sources: str | None) -> None:
        """The peer's own model file."""
        peer(self.name).prepare(TOPOLOGIES[topology], Path(folder), Path(sources) if sources else None)

    def load(self, folder: str, threads: int) -> dict[str, Any]:
        """Sessions that stay; their variants, and the versions of what runs them."""
        self.folder, self.threads = Path(folder), threads
        module = peer(self.name)
        self.sessions = module.load(self.folder, threads)
        gc.collect()
        gc.freeze()
        gc.disable()
        return {"variants": list(self.sessions), "versions": versions(module.PACKAGES)}

    def check(self, variant: str) -> float | None:
        """Agreement with the float network's answers; None if the peer's network has none to compare with."""
        session = self.sessions[variant]
        session.activate()
        found = session.answers(np.load(self.folder / "inputs.npy"))
        return agreement(found, np.load(self.folder / session.expected)) if session.expected else None

    def calibrate(self, variant: str, burst_ms: float) -> int:
        """Inferences that take about `burst_ms`."""
        session, count = self.sessions[variant], 1
        session.activate()
        while (wall := burst(session.run, count)["wall_ns"]) < burst_ms * 2e5 and count < 10**6:
            count *= 2
        wall = min(wall, burst(session.run, count)["wall_ns"])
        return max(1, round(count * burst_ms * 1e6 / wall))

    def burst(self, variant: str, count: int) -> dict[str, int]:
        """`count` inferences of a variant."""
        session = self.sessions[variant]
        session.activate()
        return burst(session.run, count)

    def reload(self, count: int) -> dict[str, float]:
        """Mean time to build sessions anew from the file, beside those that are there, and with a first inference.

        One more is built before, to warm caches; taking sessions down is not timed.
        """
        load = peer(self.name).load
        until_ready = until_answered = 0
        for i in range(count + 1):
            start = time.perf_counter_ns()
            sessions = load(self.folder, self.threads)
            ready = time.perf_counter_ns()
            next(iter(sessions.values())).run()
            answered = time.perf_counter_ns()
            if i > 0:
                until_ready += ready - start
                until_answered += answered - start
            del sessions
            gc.collect()
        return {"ready_ns": until_ready / count, "answered_ns": until_answered / count}

    def switch(self, points: list[str], resident: bool, count: int) -> dict[str, float]:
        """Mean nanoseconds of a switch to each of the points in turn, `count` times round. Ours only."""
        from benchmarks.peers import ours

        engine = self._engine()
        for point in points:
            engine.select(point)
        if resident:  # too short to be timed one by one
            start = time.perf_counter_ns()
            for _ in repeat(None, count):
                for point in points:
                    engine.select(point)
            return {"all": (time.perf_counter_ns() - start) / (count * len(points))}
        spent = dict.fromkeys(points, 0)
        for _ in repeat(None, count):
            for point in points:
                ours.drop(engine)
                start = time.perf_counter_ns()
                engine.select(point)
                spent[point] += time.perf_counter_ns() - start
        return {point: ns / count for point, ns in spent.items()}

    def _engine(self) -> Any:
        from benchmarks.peers import ours

        if not hasattr(self, "engine"):
            self.engine = ours.open_engine(self.folder / "ours.caq", self.threads)
        return self.engine


def versions(packages: tuple[str, ...]) -> dict[str, str]:
    """Installed versions of distributions."""
    found = {}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def main() -> int:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # a stopped process would outlive its parent
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    worker = Worker(sys.argv[1])
    for line in sys.stdin:
        command = json.loads(line)
        name = command.pop("do")
        try:
            answer = {"answer": getattr(worker, name)(**command)}
        except Missing as e:
            answer = {"missing": str(e)}
        except ImportError as e:
            answer = {"missing": f"{e}; pip install {peer(worker.name).PIP}"}
        except Exception as e:
            lines = [text for text in str(e).splitlines() if text.strip()] or [""]
            answer = {"missing": f"{name} failed: {type(e).__name__}: {' '.join(lines)[:200]}"}
        print(json.dumps(answer), file=out, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

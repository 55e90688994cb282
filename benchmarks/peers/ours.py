"""Our engine, through its public API: caq.Engine(path), select, run. Every operating point is a variant."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import caq
from benchmarks.peers import IN_PLACE, Floats, Missing, Session
from benchmarks.topologies import Topology

PIP = "caq"
PACKAGES = ("caq", "numpy")
COLD = """
import caq
import numpy as np
engine = caq.Engine(folder + "/ours.caq")
engine.run(np.zeros(engine.model.sample_shape, np.uint8))
answered()
"""


def prepare(topology: Topology, folder: Path, sources: Path | None) -> None:
    """models_onnx makes our artifacts with the float network."""
    if not (folder / "ours.caq").exists():
        raise Missing("no artifact was made")


def open_engine(path: Path, threads: int) -> caq.Engine:
    """The engine, on as many threads."""
    return caq.Engine(path, threads=threads)


def drop(engine: caq.Engine) -> None:
    """Makes the engine forget the panels of all points but the active one."""
    engine.trim()


@cache
def _raw(folder: Path) -> NDArray[np.uint8]:
    """Samples in the data's own layout; read once, so that a timed `load` does not read them."""
    return np.ascontiguousarray(np.load(folder / "raw.npy"))


def load(folder: Path, threads: int) -> dict[str, Session]:
    engine = open_engine(folder / "ours.caq", threads)
    raw = _raw(folder)
    last = raw[-1]
    run = engine.run

    def answers(_inputs: Floats) -> Floats:
        return np.stack([run(x) for x in raw]).astype(np.float32) * engine.output_step

    sessions = {
        point: Session(lambda: run(last), answers, lambda point=point: engine.select(point))  # type: ignore[misc]
        for point in engine.points
    }
    bound = engine.bind()
    bound.x[:] = last
    widest = next(iter(sessions))
    return sessions | {widest + IN_PLACE: replace(sessions[widest], run=bound.run)}

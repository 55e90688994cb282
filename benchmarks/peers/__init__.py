"""Engines that bench_engine times: ours, and one module for each peer.

A module has
    PIP                     what to install
    PACKAGES                distributions whose versions are reported
    prepare(topology, folder, sources)   makes its model file in the folder of a topology, if it is not there
    load(folder, threads)   sessions by variant ("int8", or a point of ours, or "4 bits"), ready to run
    COLD                    source of a process that loads ResNet-8, answers once, and calls `answered()`; optional

`prepare` and `load` raise Missing, or ImportError where the package is not there. `load` is timed: it does no more
than a user would. A session's `run` is one inference on the input that it already has, by the cheapest call that the
package offers in Python: what a peer needs to copy its input is not counted against it, while ours is.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

#: name in tables -> module
PEERS = {
    "ours": "ours",
    "LiteRT": "litert",
    "OpenVINO": "ov",
    "ONNX Runtime": "ort",
    "ExecuTorch": "xnnpack",
    "ncnn": "ncnn_int8",
    "torch FX": "torch_fx",
}


#: Our variants that run on a sample in its place, as the peers' bare invocations do, have this after the point's name.
IN_PLACE = ", in place"


class Missing(Exception):
    """What a peer cannot do here, and why."""


def nothing() -> None:
    """Does nothing."""


@dataclass(frozen=True)
class Session:
    """A model ready to run.

    run: one inference on the input given last. answers: outputs (N, outputs) of inputs (N, ...) as the float network
    eats them, one by one. activate: makes this variant the current one, untimed. expected: file of the answers that
    these are compared with, "" if there is nothing to compare with.
    """

    run: Callable[[], object]
    answers: Callable[[Floats], Floats]
    activate: Callable[[], None] = nothing
    expected: str = "expected.npy"


@cache
def last_sample(folder: Path) -> Floats:
    """The sample (1, ...) that is timed; read once, so that a timed `load` does not read it."""
    return np.ascontiguousarray(np.load(folder / "inputs.npy")[-1:])


def peer(name: str) -> ModuleType:
    """The module of a peer."""
    return importlib.import_module(f"benchmarks.peers.{PEERS[name]}")

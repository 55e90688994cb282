"""A protocol's streams taken through a method, batch by batch, with what is measured after each."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.calibrate_streams import REPORTED, WIDTHS, Part, Protocol, usc_had
from benchmarks.continual.noisy import cifar10, kws12
from benchmarks.continual.start import Codes, Method, Start, accuracy
from caq.calibration.calibrator import make_core
from caq.calibration.sets import coded
from caq.errors import ConfigError
from caq.model import Model

#: Samples of the core set.
CORE = 200
PROTOCOLS = ("usc_had", "usc_had_inception_time", "kws12", "cifar10")


def protocol_of(name: str, folder: Path, cache: Path, seed: int) -> Protocol:
    """One of PROTOCOLS; trains its source if it is not in `cache`.

    folder: has the folder usc_had, kws12.npz and cifar10.npz, as far as they are needed.
    """
    if name not in PROTOCOLS:
        raise ConfigError(f"no protocol {name!r}; known: {', '.join(PROTOCOLS)}")
    if name == "kws12":
        return kws12(folder / "kws12.npz", cache, seed)
    if name == "cifar10":
        return cifar10(folder / "cifar10.npz", cache, seed)
    network = "inception_time" if name == "usc_had_inception_time" else "resnet8"
    return usc_had(folder, cache, REPORTED, seed, network)


def start_of(protocol: Protocol, seed: int, size: int = CORE) -> Start:
    """What methods start from; core sets of `size` samples. Raises ConfigError on a protocol without a source."""
    if protocol.source is None:
        raise ConfigError(f"{protocol.name}: a trained source is needed for its float network")
    core = make_core(protocol.model, protocol.train.x, protocol.train.y, size=size, seed=seed)
    supernet = protocol.source.supernet()
    train = encoded(protocol.model, protocol.train), protocol.train.y
    return Start(coded(protocol.model), core, train, lambda: copy.deepcopy(supernet), WIDTHS, seed)


def encoded(model: Model, part: Part) -> Codes:
    """Samples as the model's input codes (N, H, W, C)."""
    return model.encode(model.batch(part.x)[0])[0]


def follow(protocol: Protocol, start: Start, make: Callable[[Start], Method]) -> list[dict[str, Any]]:
    """A row for each phase of each stream: accuracies in % after every batch, (batches, W), and seconds of all steps.

    make: makes the method anew for each stream.
    """
    rows = []
    source = encoded(protocol.model, protocol.source_test), protocol.source_test.y
    for stream in protocol.streams:
        method = make(start)
        for phase in stream:
            test = encoded(protocol.model, phase.test), phase.test.y
            measured: dict[str, list[list[float]]] = {"target": [], "source": []}
            seconds = 0.0
            for batch in phase.batches:
                x, begin = encoded(protocol.model, batch), time.perf_counter()
                method.step(x, batch.y)
                seconds += time.perf_counter() - begin
                models = {w: method.model(w) for w in start.widths}
                for what, (x_test, y_test) in (("target", test), ("source", source)):
                    measured[what].append([round(accuracy(m, w, x_test, y_test), 2) for w, m in models.items()])
            rows.append({"phase": phase.name, **measured, "seconds": round(seconds, 2)})
    return rows


def last(rows: list[dict[str, Any]], what: str) -> list[float]:
    """Accuracy at each width after the last batch of a phase, mean over rows."""
    return [round(float(v), 2) for v in np.mean([row[what][-1] for row in rows], axis=0)]

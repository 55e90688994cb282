"""A device that calibrates in the background until it is killed; a process of it starts fast where this is preloaded.

What it does is a function of how many samples were learnt, so that it goes on after a kill where it was; `reference`
does the same without kills.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from caq.calibration import background
from caq.calibration.calibrator import Calibrator
from caq.calibration.config import CalibratorConfig
from caq.engine import Engine
from tests.calibration.streams import core_of, drifted, source

MODEL, X, Y = source()
CORE = core_of(MODEL, X, Y)
STREAM = drifted(X)
CONFIG = CalibratorConfig(batch=10, waiting=40)
#: Every third label comes that many samples late.
LATE = 25
#: Every fourth step is told so many seconds after it is durable: a kill in between leaves a state that nobody knows of.
TARRY = 0.1


def checksum(calibrator: Calibrator) -> int:
    """Of the parameters in force and of the core set."""
    arrays = {**vars(calibrator.core), **{n: getattr(calibrator.model.parameters, n) for n in ("gain", "bias")}}
    return zlib.crc32(b"".join(np.asarray(arrays[name]).tobytes() for name in sorted(arrays)))


def late(i: int) -> tuple[int, int] | None:
    """The id and the label that come after sample i, if one does."""
    j = i - LATE
    return (j, int(Y[j % len(Y)])) if j >= 0 and j % 3 == 0 else None


def sample(i: int) -> tuple[Any, int | None]:
    """Sample i, and its label unless that is late."""
    return STREAM[i % len(X)], None if i % 3 == 0 else int(Y[i % len(Y)])


def live(artifact: str, folder: str, pipe: Any) -> None:
    """Sends the number of each step after it was done; ends with the process."""
    background.NICENESS = 0  # else a thousand lives take hours where others want the CPUs
    calibrator = Calibrator(artifact, CORE, folder, CONFIG)

    def tell(entry: dict[str, Any]) -> None:
        time.sleep(TARRY if entry["step"] % 4 == 0 else 0)
        pipe.send(entry["step"])

    calibration = background.BackgroundCalibrator(calibrator, record=tell)
    engine, i = Engine(artifact), calibrator.next_id
    calibration.start(engine)
    todo = [late(i - 1)]  # the label after the last sample may be lost; to give it twice changes nothing
    while True:
        while todo:
            label = todo[0]
            if label is not None and not calibration.label(*label):
                break
            todo.pop(0)
        if not todo and calibration.learn_one(*sample(i)) is not None:
            todo, i = [late(i)], i + 1
        elif calibration.counts.failed:
            raise AssertionError(calibration.history[-1])
        else:
            engine.run(STREAM[:1])
            time.sleep(0.001)


def reference(artifact: str) -> Iterator[tuple[int, int]]:
    """The checksum, and the samples seen, after each step from 0 on."""
    calibrator, done, i = Calibrator(artifact, CORE, config=CONFIG), 0, 0
    yield checksum(calibrator), calibrator.next_id
    while True:
        calibrator.learn_one(*sample(i))
        label = late(i)
        for _ in range(2):
            if calibrator.steps > done:
                done = calibrator.steps
                yield checksum(calibrator), calibrator.next_id
            if label is not None:
                calibrator.label(*label)
                label = None
        i += 1

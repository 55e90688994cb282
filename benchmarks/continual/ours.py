"""caq's own calibrator, its parts, and its ablations, as methods."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from benchmarks.continual.start import Codes, Labels, Start
from caq.calibration.calibrator import Calibrator, make_core
from caq.calibration.config import CalibratorConfig
from caq.calibration.core import CoreSet
from caq.calibration.head import draw_features
from caq.graph import Cost
from caq.model import Model, OperatingPoint
from caq.sections import feature_row_bytes

#: So small a pseudo-count that the factory's statistics are given up for the stream's.
NO_PRIOR = 1e-6
BATCH_NORM = CalibratorConfig(rungs=("statistics",), guarded=False, prior=NO_PRIOR)


class Ours:
    """`Calibrator` with a configuration; labelled: whether it is given labels."""

    def __init__(self, start: Start, config: CalibratorConfig, labelled: bool = True) -> None:
        graph = start.model.graph
        points = [OperatingPoint(f"w{w}", graph.uniform(w), 0.0, "accuracy", 0, Cost(0, 0, 0)) for w in graph.widths]
        model = start.model.replace(points=tuple(points))
        self._calibrator = Calibrator(model, start.core, config=replace(config, seed=start.seed))
        self._labelled = labelled

    def step(self, x: Codes, y: Labels) -> None:
        self._calibrator.partial_fit(x.astype(np.int16), y if self._labelled else None)

    def model(self, width: int) -> Model:
        return self._calibrator.model


def with_features(start: Start) -> Start:
    """With a core set of half the samples, and features of others in the bytes that the other half had."""
    x, y = start.train[0].astype(np.int16), start.train[1]
    core = make_core(start.model, x, y, size=len(start.core) // 2, seed=start.seed)
    room = (start.core.nbytes - core.nbytes) // feature_row_bytes(start.model.graph)
    count, own = min(room, len(y) - len(core)), -1 - core.ids
    features = draw_features(start.model, x, y, count, seed=start.seed, without=own)
    return replace(start, core=core, model=start.model.replace(features=features))


def random_core(start: Start) -> Start:
    """With a core set that is drawn from the training data at random, whatever they miss and are."""
    x, y = start.train
    none, core = np.zeros((len(start.core.widths), len(y)), np.uint8), start.core
    # Another seed than that of the core, which would be drawn alike if nothing is missed.
    drawn = CoreSet.select(x, y, none, core.widths, size=len(core), per_class=0, seed=1000 + start.seed)
    return replace(start, core=drawn)

"""A model that tells classes apart, core set and stream, made from a seed without torch."""

from __future__ import annotations

from typing import Any

import numpy as np

from caq.calibration.biases import output_layer, with_output_biases
from caq.calibration.calibrator import make_core
from caq.calibration.core import CoreSet
from caq.calibration.sets import coded, logits, parameter_sets
from caq.model import Model
from tests import models


def source(count: int = 240) -> tuple[Model, np.ndarray, np.ndarray]:
    """A model, samples and labels: what the widest set answers, so it is always right, and narrower ones often are.

    A random model answers one class nearly always; output biases that take the mean of each class away change that.
    """
    model = models.model(15, dtype="float32")
    x, layer = models.samples(model, count), output_layer(model.graph)
    assert layer is not None
    codes, sets, parameters = model.encode(x)[0].astype(np.int16), parameter_sets(model), model.parameters
    for name, z in logits(coded(model), sets, codes).items():
        row = next(which.row for which in sets if which.name == name)
        parameters = with_output_biases(parameters, model.parameters, layer, row, -z.mean(0))
    model = model.replace(parameters=parameters)
    return model, x, logits(coded(model), sets, codes)["w8a8"].argmax(1)


def drifted(x: np.ndarray) -> np.ndarray:
    """Samples as a sensor with another gain and offset delivers them."""
    return (0.6 * x + 0.7).astype(np.float32)


def core_of(model: Model, x: np.ndarray, y: np.ndarray, size: int = 60) -> CoreSet:
    return make_core(model, x, y, size=size)


def parameters_of(model: Model) -> dict[str, Any]:
    return {
        name: getattr(model.parameters, name).tobytes() for name in ("gain", "gain_exponent", "bias", "bias_exponent")
    }

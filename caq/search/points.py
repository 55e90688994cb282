"""Puts a found assignment into a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from caq.calibration import NormEstimator
from caq.engine import Engine
from caq.errors import ConfigError
from caq.graph import Assignment
from caq.measure import score
from caq.model import TASKS, Model, OperatingPoint

if TYPE_CHECKING:
    from numpy.typing import NDArray


def check_new(model: Model, name: str, test_samples: int) -> None:
    """Raises ConfigError unless a point of this name, measured on so many test samples, can be added to the model."""
    if name in {p.name for p in model.points}:
        raise ConfigError(f"point {name!r} is there already; give the budget another name, such as {name + '_2'!r}")
    if any(p.samples != test_samples for p in model.points):
        raise ConfigError(
            f"{test_samples} test samples: the model's points were measured on {model.points[0].samples}, and a file "
            "holds one number; give the same data and domain"
        )


def with_point(
    model: Model,
    name: str,
    assignment: Assignment,
    x: NDArray[np.generic],
    x_test: NDArray[np.generic],
    y_test: NDArray[np.integer],
) -> Model:
    """The model with one more operating point, batch norm re-estimated for it from samples x (N, *sample_shape).

    x_test, y_test: what its score is measured on, for the record; the model's other scores must be of as many samples.
    Raises ConfigError on a name that is there already or other numbers of samples, AssignmentError, and DataError.
    """
    check_new(model, name, len(y_test))
    parameters = NormEstimator(model, x).estimate(assignment)
    row = len(parameters.gain) - 1
    point = OperatingPoint(name, assignment, 0.0, TASKS[model.task], len(y_test), model.graph.cost(assignment), row)
    grown = model.replace(parameters=parameters, points=(*model.points, point))
    engine = Engine(grown)
    found = score(engine, engine.build(assignment, row), x_test, y_test)
    return grown.replace(points=(*model.points, point._replace(score=round(found, 6))))

"""How far an assignment's outputs are from those of the widest one: what a search makes small."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from caq.calibration import NormEstimator
from caq.graph import Assignment
from caq.model import Model
from caq.native import NativePlan, Tables
from caq.plan import Parameters
from caq.program import Program

if TYPE_CHECKING:
    from numpy.typing import NDArray


#: As in distillation (Hinton et al., 2015): without it, samples that the model is sure of, as it is of those that it
#: was trained on, say nothing. (docs/search.md has what that gains.)
TEMPERATURE = 4.0


class Objective:
    """Measures assignments of a model on samples x (N, *sample_shape), in integers, batch norm re-estimated for each.

    The loss is the mean Kullback-Leibler divergence of the classes' probabilities from the widest assignment's, in
    nats, with outputs divided by TEMPERATURE; where the task is to reconstruct, the squared distance from its outputs
    over their mean square. No labels are needed. norm_samples: how many of the samples batch norm is re-estimated from.
    Raises DataError on samples that the model does not take.
    """

    def __init__(self, model: Model, x: NDArray[np.generic], norm_samples: int) -> None:
        self.model = model
        self.x, _ = model.batch(x)
        self._norms = NormEstimator(model, self.x[evenly(len(self.x), norm_samples)])
        self._known: dict[Assignment, float] = {}
        widest = model.graph.uniform(model.graph.widths[-1])
        self._target = self._outputs(model.parameters, widest, None)

    @property
    def measured(self) -> int:
        """How many assignments were measured."""
        return len(self._known)

    def __call__(self, assignment: Assignment) -> float:
        """The loss of an assignment; measured once. Raises AssignmentError."""
        if assignment not in self._known:
            parameters = self._norms.estimate(assignment)
            outputs = self._outputs(parameters, assignment, len(parameters.gain) - 1)
            self._known[assignment] = self._distance(outputs)
        return self._known[assignment]

    def _outputs(self, parameters: Parameters, assignment: Assignment, row: int | None) -> NDArray[np.float64]:
        program = Program(self.model.replace(parameters=parameters))
        y = NativePlan(program, Tables(program, assignment, row)).run(self.x) * np.float64(parameters.steps[-1])
        return _log_softmax(y / TEMPERATURE) if self.model.task == "classify" else y

    def _distance(self, y: NDArray[np.float64]) -> float:
        t = self._target
        if self.model.task == "classify":
            return float((np.exp(t) * (t - y)).sum(1).mean())
        return float(((y - t) ** 2).mean() / max(float((t**2).mean()), 1e-30))


def evenly(count: int, most: int) -> NDArray[np.int64]:
    """At most `most` indices of `count`, spread evenly: data often come sorted."""
    return np.linspace(0, count - 1, min(count, most)).round().astype(np.int64)


def _log_softmax(y: NDArray[np.float64]) -> NDArray[np.float64]:
    y = y - y.max(1, keepdims=True)
    return y - np.log(np.exp(y).sum(1, keepdims=True))

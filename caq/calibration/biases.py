"""The second rung: biases of the classes, corrected by labels, without back-propagation.

A bias b is added to the outputs z of each class, so that the answers fit the labels:

    minimize    sum over samples of w (log sum exp(z + b) - (z + b)[y]) + b A b / 2 - c b

(Guo et al., "On calibration of modern neural networks", 2017, vector scaling with biases alone). It is convex, and has
as many unknowns as there are classes, so a few Newton steps on outputs that one forward pass gave solve it. A and c
stand for samples that are not kept: the sum above for each batch that was, to second order about the biases that were
found then (Laplace's approximation, as in online Bayesian learning), besides a prior that draws b to the factory's.

S sets, K classes, N samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from caq.calibration.state import Arrays, array_in
from caq.errors import StateFormatError
from caq.graph import Graph, Layer
from caq.plan import Parameters, affine, to_mantissas

if TYPE_CHECKING:
    from numpy.typing import NDArray

_STEPS, _CLOSE = 20, 1e-6


@dataclass(frozen=True, eq=False)
class Past:
    """What earlier batches ask of each set's biases: count (S,) samples that they weigh as, a (S, K, K), c (S, K)."""

    count: NDArray[np.float64]
    a: NDArray[np.float64]
    c: NDArray[np.float64]

    @classmethod
    def empty(cls, sets: int, classes: int) -> Past:
        """Of no sample."""
        return cls(np.zeros(sets), np.zeros((sets, classes, classes)), np.zeros((sets, classes)))

    def with_batch(
        self, row: int, z: NDArray[np.float64], y: NDArray[np.integer], b: NDArray[np.float64], memory: float
    ) -> Past:
        """With a batch for set `row`: outputs z (N, K), labels y (N,), biases b (K,) that it was answered with.

        memory: the most samples that all batches together count as; older ones fade.
        """
        gradient, hessian = _derivatives(z + b, y, np.ones(len(y)))
        found = Past(self.count.copy(), self.a.copy(), self.c.copy())
        fade = min(1.0, memory / (found.count[row] + len(y)))
        found.count[row] = fade * (found.count[row] + len(y))
        found.a[row] = fade * (found.a[row] + hessian)
        found.c[row] = fade * (found.c[row] + hessian @ b - gradient)
        return found

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """For `caq.calibration.state`."""
        return {"count": self.count, "a": self.a, "c": self.c}

    @classmethod
    def from_arrays(cls, arrays: Arrays, sets: int, classes: int) -> Past:
        """What `to_arrays` gave. Raises StateFormatError on anything else."""
        count, a = array_in(arrays, "count", (sets,)), array_in(arrays, "a", (sets, classes, classes))
        if (count < 0).any() or not np.allclose(a, a.transpose(0, 2, 1)):
            raise StateFormatError("biases: a count is negative, or a matrix not symmetric")
        return cls(count.copy(), a.copy(), array_in(arrays, "c", (sets, classes)).copy())


def output_layer(graph: Graph) -> Layer | None:
    """The layer that makes the network's output, one answer a sample; None if the output comes from something else."""
    last = graph.layers[-1]
    return last if last.op == len(graph.ops) - 1 and graph.shapes[-1][:2] == (1, 1) else None


def fit_biases(
    z: NDArray[np.float64],
    y: NDArray[np.integer],
    weights: NDArray[np.float64],
    a: NDArray[np.float64],
    c: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Biases (K,): see the module. z (N, K), y (N,), weights (N,); a (K, K), positive definite; c (K,)."""

    def loss(b: NDArray[np.float64]) -> float:
        logs = log_softmax(z + b)[np.arange(len(y)), y]
        return float(-(weights * logs).sum() + b @ a @ b / 2 - c @ b)

    b = np.zeros(z.shape[1])
    least = loss(b)
    for _ in range(_STEPS):
        gradient, hessian = _derivatives(z + b, y, weights)
        step, scale = np.linalg.solve(hessian + a, gradient + a @ b - c), 1.0
        while (found := loss(b - scale * step)) > least and scale > _CLOSE:
            scale /= 2
        if found > least:
            break
        b, least = b - scale * step, found
        if np.abs(step).max() < _CLOSE:
            break
    return b


def output_biases(parameters: Parameters, factory: Parameters, layer: Layer, row: int) -> NDArray[np.float64]:
    """What the output biases of set `row` have beyond the factory's, (K,) in real units."""
    return (affine(parameters, layer, row)[1] - affine(factory, layer, row)[1]) * float(factory.steps[-1])


def with_output_biases(
    parameters: Parameters, factory: Parameters, layer: Layer, row: int, b: NDArray[np.float64]
) -> Parameters:
    """`parameters` with the output biases of set `row` those of the factory plus b (K,), in real units."""
    _, bias = affine(factory, layer, row)
    mantissas, exponents = parameters.bias.copy(), parameters.bias_exponent.copy()
    span = slice(layer.first_channel, layer.first_channel + layer.channels)
    mantissas[row, span], exponents[row, layer.index] = to_mantissas(bias + b / float(factory.steps[-1]))
    return parameters.replace(bias=mantissas, bias_exponent=exponents)


def _derivatives(
    z: NDArray[np.float64], y: NDArray[np.integer], weights: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Gradient (K,) and Hessian (K, K) of the cross entropy by a bias on z (N, K)."""
    p = np.exp(log_softmax(z))
    wrong = p.copy()
    wrong[np.arange(len(y)), y] -= 1.0
    return weights @ wrong, np.diag(weights @ p) - (p * weights[:, None]).T @ p


def log_softmax(z: NDArray[np.float64]) -> NDArray[np.float64]:
    """Logarithms of the probabilities that outputs z (N, K) stand for."""
    z = z - z.max(1, keepdims=True)
    return z - np.log(np.exp(z).sum(1, keepdims=True))

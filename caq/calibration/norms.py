"""Batch norm's statistics re-estimated in the integer graph, for an assignment that no parameter set was made for.

Batch norm gives a channel's outputs the mean beta and the deviation gamma, whatever comes in. A `.caq` file has gains
and biases instead, one set a weight width, in which statistics of that width everywhere are folded. With the widths
mixed, outputs have another mean and deviation: re-estimating is to bring them back to what they are with the layer's
weight width everywhere, layer by layer in the order of execution, since each changes what the next one reads:

    gain' = gain * d / d'           m, d: a channel's mean and deviation with this width everywhere,
    bias' = m - (m' - bias) d / d'  m', d': with the assignment, gain and bias of that width's set

Both are measured on the same samples, so that which ones they are matters little.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from caq.calibration.cuts import Cut, Moments, measure_outputs
from caq.graph import Assignment, Graph, Layer
from caq.model import Model
from caq.plan import Parameters, affine, to_mantissas
from caq.quant import multiplicand_unit

if TYPE_CHECKING:
    from numpy.typing import NDArray

Affine = tuple["NDArray[np.float64]", "NDArray[np.float64]"]

#: Largest change of a gain: a channel that hardly varies any more carries noise, which is not to be blown up.
LARGEST_CHANGE = 8.0


def with_own_set(parameters: Parameters, graph: Graph, assignment: Assignment) -> Parameters:
    """`parameters` with one more set, the last, which has each layer's gains and biases of its weight width."""
    rows = [graph.widths.index(pair.weight) for pair in assignment]
    by_channel = np.repeat(rows, [layer.channels for layer in graph.layers])

    def appended(values: NDArray[Any], choice: Any) -> NDArray[Any]:
        return np.concatenate([values, values[choice, np.arange(values.shape[1])][None]])

    return parameters.replace(
        gain=appended(parameters.gain, by_channel),
        bias=appended(parameters.bias, by_channel),
        gain_exponent=appended(parameters.gain_exponent, rows),
        bias_exponent=appended(parameters.bias_exponent, rows),
    )


def has_norm(parameters: Parameters, graph: Graph, layer: Layer) -> bool:
    """Whether a layer's gains and biases depend on its weight width by more than the unit of its multiplicands.

    Without batch norm they do not, but for the rounding of their mantissas.
    """
    gains, biases, gain_roundings, bias_roundings = [], [], [], []
    for row, width in enumerate(graph.widths):
        gain, bias = affine(parameters, layer, row)
        unit = multiplicand_unit(width)
        gains.append(gain / unit)
        biases.append(bias)
        gain_roundings.append(np.ldexp(1.0, int(parameters.gain_exponent[row, layer.index])) / unit)
        bias_roundings.append(np.ldexp(1.0, int(parameters.bias_exponent[row, layer.index])))
    same = np.ptp(gains, axis=0).max() <= max(gain_roundings) and np.ptp(biases, axis=0).max() <= max(bias_roundings)
    return len(graph.widths) == 1 or not same


class NormEstimator:
    """Re-estimates batch norm of `model` from samples x (N, *sample_shape), which need no labels.

    What was measured is kept, so that assignments with the same widths up to a layer share the work up to there. Raises
    DataError on samples that the model does not take.
    """

    def __init__(self, model: Model, x: NDArray[np.generic]) -> None:
        self.model, (self.x, _) = model, model.batch(x)
        self._cuts = [Cut(model, layer.index) for layer in model.graph.layers]
        self._targets: dict[tuple[int, int], Moments] = {}
        self._found: dict[tuple[int, Assignment], Affine] = {}
        self._normed = [has_norm(model.parameters, model.graph, layer) for layer in model.graph.layers]

    def estimate(self, assignment: Assignment) -> Parameters:
        """The model's parameters with one more set, the last: gains and biases for `assignment`.

        A layer without batch norm keeps its own. Raises AssignmentError, and SchemaError on parameters that cannot be
        computed with.
        """
        model, graph = self.model, self.model.graph
        graph.check_assignment(assignment)
        parameters = with_own_set(model.parameters, graph, assignment)
        for layer in graph.layers:
            if not self._normed[layer.index]:
                continue
            key = (layer.index, tuple(assignment[i] for i in self._cuts[layer.index].layers))
            if key not in self._found:
                self._found[key] = self._estimate_layer(layer, parameters, assignment)
            _store(parameters, layer, *self._found[key])
        return parameters

    def _estimate_layer(self, layer: Layer, parameters: Parameters, assignment: Assignment) -> Affine:
        row = len(parameters.gain) - 1
        width = assignment[layer.index].weight
        target = self._target(layer, width)
        found = measure_outputs(self._cuts[layer.index], parameters, assignment, row, self.x)
        gain, bias = affine(self.model.parameters, layer, self.model.graph.widths.index(width))
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = target.deviation / found.deviation
        ratio = np.where(found.deviation > 0, np.minimum(ratio, LARGEST_CHANGE), 1.0)
        return gain * ratio, target.mean - (found.mean - bias) * ratio

    def _target(self, layer: Layer, width: int) -> Moments:
        key = (layer.index, width)
        if key not in self._targets:
            graph = self.model.graph
            uniform, row = graph.uniform(width), graph.widths.index(width)
            cut = self._cuts[layer.index]
            self._targets[key] = measure_outputs(cut, self.model.parameters, uniform, row, self.x)
        return self._targets[key]


def _store(parameters: Parameters, layer: Layer, gain: NDArray[np.float64], bias: NDArray[np.float64]) -> None:
    """Writes a layer's gain and bias (O,) into the last parameter set."""
    span = slice(layer.first_channel, layer.first_channel + layer.channels)
    parameters.gain[-1, span], parameters.gain_exponent[-1, layer.index] = to_mantissas(gain)
    parameters.bias[-1, span], parameters.bias_exponent[-1, layer.index] = to_mantissas(bias)

"""What a layer puts out before it is rounded and clamped, measured by the engine's own kernels.

A `Cut` is the part of a model that a layer needs, made a model of its own whose output, in 16 bits, is that layer. So
statistics cost a few native inferences, and no kernel knows of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from caq.errors import SchemaError
from caq.graph import Assignment, Graph
from caq.model import Model
from caq.native import NativePlan, Tables
from caq.plan import Parameters, affine
from caq.program import Program
from caq.quant import TOP_WIDTH, plane_bytes

if TYPE_CHECKING:
    from numpy.typing import NDArray

_LOWEST, _HIGHEST = -(2**15), 2**15 - 1
#: Outputs are measured in units of 2**-shift codes: first fine ones, and coarser while any of them leaves 16 bits.
_SHIFTS = (6, 4, 2, 0, -4, -8)
#: Samples that are run at once: enough for the kernels, and few enough to keep a large layer's outputs small.
_BATCH = 8


class Moments(NamedTuple):
    """Mean and deviation of each channel's outputs before clamping, (C,) float64, in the layer's 8-bit output codes."""

    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]


class Cut:
    """The operations that layer `index` of a model needs, up to it.

    layers: indices, in the whole graph, of the layers that are kept, `index` last. Where the cut leaves a tensor one
    reader only, it is rounded once where the whole model rounds it twice (caq.plan.written).
    """

    def __init__(self, model: Model, index: int) -> None:
        whole, last = model.graph, model.graph.layers[index].op
        needed = {last}
        for i in range(last, -1, -1):
            if i in needed:
                needed.update(t - 1 for t in whole.ops[i].inputs if t > 0)
        kept = sorted(needed)
        number = {0: 0, **{op + 1: i + 1 for i, op in enumerate(kept)}}
        ops = [whole.ops[i]._replace(inputs=tuple(number[t] for t in whole.ops[i].inputs)) for i in kept]
        ops[-1] = ops[-1]._replace(low=_LOWEST, high=_HIGHEST)
        layers = [layer for layer in whole.layers if layer.op in needed]
        self._layer = layers[-1]
        self.layers = tuple(layer.index for layer in layers)
        self._tensors = [0, *(i + 1 for i in kept)]
        self._channels = np.concatenate([np.arange(c.first_channel, c.first_channel + c.channels) for c in layers])
        self._spans = [slice(c.first_byte, c.first_byte + plane_bytes(c.weights)) for c in layers]
        self._model, self._graph = model, Graph(whole.input_shape, tuple(ops), whole.widths)

    def outputs(self, shift: int, parameters: Parameters, assignment: Assignment, row: int) -> NativePlan:
        """A plan for what the layer puts out, in units of 2**-shift codes, at parameter set `row` of the whole model.

        parameters, assignment: the whole model's.
        """
        exponents = [p[:, self.layers].copy() for p in (parameters.gain_exponent, parameters.bias_exponent)]
        for exponent in exponents:
            exponent[:, -1] += shift
        own = Parameters(
            parameters.gain[:, self._channels],
            exponents[0],
            parameters.bias[:, self._channels],
            exponents[1],
            parameters.steps[self._tensors],
            parameters.ratios[list(self.layers)],
        )
        # Cut out anew each time: kept, the planes of all of a model's cuts would be many times its own.
        planes = np.concatenate([self._model.planes[:, span] for span in self._spans], axis=1)
        program = Program(self._model.replace(graph=self._graph, parameters=own, planes=planes, points=()))
        return NativePlan(program, Tables(program, tuple(assignment[i] for i in self.layers), row))

    def shifts(self, parameters: Parameters, assignment: Assignment, row: int) -> Iterator[int]:
        """Units to try, finest first, but for those that gains are too large for (caq.quant.fixed_point)."""
        pair = assignment[self._layer.index]
        largest = float(np.abs(affine(parameters, self._layer, row)[0]).max())
        if pair.activation != TOP_WIDTH:
            largest *= float(parameters.ratios[self._layer.index, self._graph.widths.index(pair.activation)])
        return (shift for shift in _SHIFTS if largest * 2.0**shift < 2**14)

    @property
    def name(self) -> str:
        """Of the layer."""
        return self._layer.name

    @property
    def channels(self) -> int:
        """Output channels of the layer."""
        return self._layer.channels


def measure_outputs(
    cut: Cut, parameters: Parameters, assignment: Assignment, row: int, x: NDArray[np.generic]
) -> Moments:
    """Moments of a cut's layer over samples x (N, *sample_shape) and all positions.

    parameters, assignment, row: of the whole model. Raises DataError on samples that the model does not take, and
    SchemaError on parameters that cannot be computed with.
    """
    for shift in cut.shifts(parameters, assignment, row):
        found = _moments(cut.outputs(shift, parameters, assignment, row), x, cut.channels)
        if found is not None:
            return Moments(*(np.ldexp(value, -shift) for value in found))
    raise SchemaError(f"layer {cut.name!r}: its outputs exceed their 8 bits more than {2 ** (15 - 8)} times")


def _moments(plan: NativePlan, x: NDArray[np.generic], channels: int) -> Moments | None:
    """In the plan's own units; None if an output left 16 bits."""
    count, centre = 0, np.zeros(channels, np.float32)
    total, squares = np.zeros(channels), np.zeros(channels)
    for start in range(0, len(x), _BATCH):
        y = plan.run(x[start : start + _BATCH]).reshape(-1, channels)
        if y.min() == _LOWEST or y.max() == _HIGHEST:
            return None
        if not count:
            centre = y.mean(0, dtype=np.float32)  # so that a large mean does not swallow the variance
        d, ones = y - centre, np.ones(len(y), np.float32)
        count += len(y)
        total += ones @ d
        squares += ones @ np.square(d, out=d)
    mean = total / count
    return Moments(centre + mean, np.sqrt(np.maximum(squares / count - mean**2, 0)))

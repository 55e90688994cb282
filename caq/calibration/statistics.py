"""The first rung: statistics. Channel means and deviations of the stream brought back to what the source has.

Batch norm gives a channel's outputs the mean beta and the deviation gamma on the data that it was trained on. On other
data they are others, and re-estimating batch norm (Schneider et al., "Improving robustness against common corruptions
by covariate shift adaptation", 2020) brings them back. A `.caq` file has no batch norm any more, but its effect can be
measured: a layer's outputs on the core set's samples of the factory have mean m and deviation d at a set, those on the
stream m' and d', with the same gain and bias, and layers before it calibrated already. So

    mean = (N m + n m') / (N + n)    variance = (N d**2 + n d'**2) / (N + n)
    gain' = gain d / deviation       bias' = m - (mean - bias) d / deviation

where n samples of the stream weigh against N, the prior's pseudo-count. m' and d' are running averages, with a limit on
n, so that a stream that changes again is followed. Every candidate is made from the factory's gains and biases, not
from the last candidate's: what is wrong does not add up.

S sets, C channels of all layers together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from caq.calibration.cuts import Cut, Moments, measure_outputs
from caq.calibration.norms import LARGEST_CHANGE, has_norm
from caq.calibration.sets import ParameterSet
from caq.calibration.state import Arrays, array_in
from caq.errors import StateFormatError
from caq.graph import Graph, Layer
from caq.model import Model
from caq.plan import Parameters, affine, to_mantissas

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Called before each piece of work; raises to end it.
Check = Callable[[], None]


@dataclass(frozen=True, eq=False)
class Running:
    """Averages over a stream: count (S,) samples that they weigh as, mean and variance (S, C), all float64."""

    count: NDArray[np.float64]
    mean: NDArray[np.float64]
    variance: NDArray[np.float64]

    @classmethod
    def empty(cls, parameters: Parameters) -> Running:
        """Of no sample."""
        shape = parameters.gain.shape
        return cls(np.zeros(shape[0]), np.zeros(shape), np.zeros(shape))

    def with_set(self, row: int, count: float, mean: NDArray[np.float64], variance: NDArray[np.float64]) -> Running:
        """With other averages of one set."""
        found = Running(self.count.copy(), self.mean.copy(), self.variance.copy())
        found.count[row], found.mean[row], found.variance[row] = count, mean, variance
        return found

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """For `caq.calibration.state`."""
        return {"count": self.count, "mean": self.mean, "variance": self.variance}

    @classmethod
    def from_arrays(cls, arrays: Arrays, parameters: Parameters) -> Running:
        """What `to_arrays` gave. Raises StateFormatError on anything else."""
        shape = parameters.gain.shape
        count = array_in(arrays, "count", shape[:1])
        mean, variance = array_in(arrays, "mean", shape), array_in(arrays, "variance", shape)
        if (count < 0).any() or (variance < 0).any():
            raise StateFormatError("statistics: a count or a variance is negative")
        return cls(count.copy(), mean.copy(), variance.copy())


class StatisticsRung:
    """Candidates for one set after the other, of a `coded` model with the factory's parameters.

    source: (N, H, W, C) int16 codes of source samples, which statistics are brought back to; they are measured when a
    set first needs them. prior: the pseudo-count N; memory: the most samples that the running averages count as.
    fixed: (S, L) layers that stay as they are.
    """

    def __init__(
        self, model: Model, source: NDArray[np.int16], prior: float, memory: float, fixed: NDArray[np.bool_]
    ) -> None:
        self._model, self._source_x, self._prior, self._memory = model, source, prior, memory
        self._fixed = fixed
        graph: Graph = model.graph
        self._normed = [layer for layer in graph.layers if has_norm(model.parameters, graph, layer)]
        self._cuts = {layer.index: Cut(model, layer.index) for layer in self._normed}
        self._source: dict[int, dict[int, Moments]] = {}

    def source(self, which: ParameterSet, check: Check) -> dict[int, Moments]:
        """Moments of the source at a set, by layer; measured once."""
        known = self._source.setdefault(which.row, {})
        for layer in self._layers(which):
            if layer.index not in known:
                check()
                known[layer.index] = self._measure(layer, self._model.parameters, which, self._source_x)
        return known

    def propose(
        self, which: ParameterSet, parameters: Parameters, running: Running, x: NDArray[np.int16], check: Check
    ) -> tuple[Parameters, Running]:
        """`parameters` with this set calibrated on samples x (N, H, W, C) of the stream, and the averages with them.

        Layers that are fixed or without batch norm keep what `parameters` has. check: may raise before each layer;
        nothing is changed.
        """
        source, row, factory = self.source(which, check), which.row, self._model.parameters
        names = ("gain", "gain_exponent", "bias", "bias_exponent")
        found = parameters.replace(**{name: getattr(parameters, name).copy() for name in names})
        for layer in self._layers(which):
            _copy_layer(found, factory, layer, row)
        count, mean, variance = float(running.count[row]), running.mean[row].copy(), running.variance[row].copy()
        for layer in self._layers(which):
            check()
            now, span = self._measure(layer, found, which, x), _channels(layer)
            mean[span] = (count * mean[span] + len(x) * now.mean) / (count + len(x))
            variance[span] = (count * variance[span] + len(x) * now.deviation**2) / (count + len(x))
            self._restore(found, layer, row, source[layer.index], mean[span], variance[span], count + len(x))
        return found, running.with_set(row, min(count + len(x), self._memory), mean, variance)

    def _layers(self, which: ParameterSet) -> list[Layer]:
        return [layer for layer in self._normed if not self._fixed[which.row, layer.index]]

    def _measure(self, layer: Layer, p: Parameters, which: ParameterSet, x: NDArray[np.int16]) -> Moments:
        return measure_outputs(self._cuts[layer.index], p, which.assignment, which.row, x)

    def _restore(
        self,
        found: Parameters,
        layer: Layer,
        row: int,
        source: Moments,
        mean: NDArray[np.float64],
        variance: NDArray[np.float64],
        count: float,
    ) -> None:
        share = count / (count + self._prior)
        mixed = (1 - share) * source.mean + share * mean
        deviation = np.sqrt((1 - share) * source.deviation**2 + share * variance)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = source.deviation / deviation
        ratio = np.where(deviation > 0, np.minimum(ratio, LARGEST_CHANGE), 1.0)
        gain, bias = affine(self._model.parameters, layer, row)
        span = _channels(layer)
        found.gain[row, span], found.gain_exponent[row, layer.index] = to_mantissas(gain * ratio)
        bias = source.mean - (mixed - bias) * ratio
        found.bias[row, span], found.bias_exponent[row, layer.index] = to_mantissas(bias)


def _channels(layer: Layer) -> slice:
    return slice(layer.first_channel, layer.first_channel + layer.channels)


def _copy_layer(found: Parameters, source: Parameters, layer: Layer, row: int) -> None:
    for name in ("gain", "bias"):
        getattr(found, name)[row, _channels(layer)] = getattr(source, name)[row, _channels(layer)]
        exponent = f"{name}_exponent"
        getattr(found, exponent)[row, layer.index] = getattr(source, exponent)[row, layer.index]

"""Peers that need forward passes of the integer model only: bias correction, and zeroth order on the scales."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.continual.start import Codes, Labels, Start, run
from caq.calibration.cuts import Cut, measure_outputs
from caq.calibration.norms import has_norm
from caq.graph import Layer
from caq.model import Model
from caq.plan import Parameters, affine, to_mantissas


class Unchanged:
    """No adaptation."""

    def __init__(self, start: Start) -> None:
        self._model = start.model

    def step(self, x: Codes, y: Labels) -> None:
        pass

    def model(self, width: int) -> Model:
        return self._model


class BiasCorrection:
    """Each channel's mean output brought back to what it is on the core set, by its bias; needs no labels.

    Nagel et al., "Data-free quantization through weight equalization and bias correction", 2019, section 4.2, with the
    stream's shift in the place of quantization's: bias' = bias - (E[y] on the stream - E[y] on the core set), layer by
    layer in the order of execution, each reading what those before it make of the stream. E is over all that the stream
    had so far.
    """

    def __init__(self, start: Start) -> None:
        self._start, self._factory = start, start.model
        graph, parameters = start.model.graph, start.model.parameters
        self._layers = [layer for layer in graph.layers if has_norm(parameters, graph, layer)]
        self._cuts = {layer.index: Cut(start.model, layer.index) for layer in self._layers}
        core = start.core.x.astype(np.int16)
        self._expected = {w: {i: self._means(parameters, w, i, core) for i in self._cuts} for w in start.widths}
        self._mean = {w: {i: np.zeros(len(m)) for i, m in self._expected[w].items()} for w in start.widths}
        self._seen = 0
        self._parameters = parameters

    def _means(self, parameters: Parameters, width: int, index: int, x: NDArray[np.int16]) -> NDArray[np.float64]:
        graph = self._factory.graph
        found = measure_outputs(self._cuts[index], parameters, graph.uniform(width), graph.widths.index(width), x)
        return found.mean

    def step(self, x: Codes, y: Labels) -> None:
        parameters, share = self._factory.parameters, len(x) / (self._seen + len(x))
        for width in self._start.widths:
            row = self._factory.graph.widths.index(width)
            for layer in self._layers:
                mean, found = self._mean[width], self._means(parameters, width, layer.index, x.astype(np.int16))
                mean[layer.index] += share * (found - mean[layer.index])
                bias = affine(self._factory.parameters, layer, row)[1]
                bias = bias + self._expected[width][layer.index] - mean[layer.index]
                parameters = _with(parameters, layer, row, "bias", bias)
        self._seen, self._parameters = self._seen + len(x), parameters

    def model(self, width: int) -> Model:
        return self._factory.replace(parameters=self._parameters)


@dataclass(frozen=True)
class ZerothOrderSettings:
    """steps: for a batch, two forward passes each; rate, distance: of a step and of a probe, in logarithms of scales;
    largest: of a directional derivative, which is clipped; batch: samples of the stream in a step, with as many of the
    core set."""

    steps: int = 30
    rate: float = 1e-2
    distance: float = 1e-2
    largest: float = 10.0
    batch: int = 40


class ZerothOrder:
    """Scales of the weights' channels learnt from labels by two forward passes a step.

    QZO: Shang et al., "Fine-tuning quantized neural networks with zeroth-order optimization", 2025: codes stay, scales
    s are probed along z ~ N(0, 1), d = (L(s + e z) - L(s - e z)) / 2e is clipped, and s - rate d z is next. Scales are
    channels' gains here, and probed as logarithms, since layers' differ by orders of magnitude. The loss is the cross
    entropy of the integer model's outputs, on the stream's batch and on the core set.
    """

    def __init__(self, start: Start, settings: ZerothOrderSettings) -> None:
        self._start, self._settings = start, settings
        self._rng = np.random.default_rng(start.seed)
        self._logs = {w: np.zeros(start.model.graph.channels) for w in start.widths}

    def step(self, x: Codes, y: Labels) -> None:
        s, core, rng = self._settings, self._start.core, self._rng
        for width, logs in self._logs.items():
            for _ in range(s.steps):
                new, old = (rng.permutation(count)[: s.batch] for count in (len(x), len(core)))
                samples, labels = np.concatenate([x[new], core.x[old]]), np.concatenate([y[new], core.y[old]])
                z = rng.standard_normal(len(logs))
                up, down = (self._loss(width, logs + e * z, samples, labels) for e in (s.distance, -s.distance))
                slope = np.clip((up - down) / (2 * s.distance), -s.largest, s.largest)
                logs -= s.rate * slope * z

    def _loss(self, width: int, logs: NDArray[np.float64], x: Codes, y: Labels) -> float:
        model = self._scaled(width, logs)
        outputs = run(model, width, x) * float(model.parameters.steps[-1])
        outputs -= outputs.max(1, keepdims=True)
        chosen = outputs[np.arange(len(y)), y]
        return float((np.log(np.exp(outputs).sum(1)) - chosen).mean())

    def _scaled(self, width: int, logs: NDArray[np.float64]) -> Model:
        model = self._start.model
        row, parameters = model.graph.widths.index(width), model.parameters
        for layer in model.graph.layers:
            gain = affine(model.parameters, layer, row)[0]
            span = slice(layer.first_channel, layer.first_channel + layer.channels)
            parameters = _with(parameters, layer, row, "gain", gain * np.exp(logs[span]))
        return model.replace(parameters=parameters)

    def model(self, width: int) -> Model:
        return self._scaled(width, self._logs[width])


def _with(parameters: Parameters, layer: Layer, row: int, name: str, values: NDArray[np.float64]) -> Parameters:
    """`parameters` with a layer's gains or biases (O,) in set `row`."""
    mantissas, exponents = getattr(parameters, name).copy(), getattr(parameters, f"{name}_exponent").copy()
    span = slice(layer.first_channel, layer.first_channel + layer.channels)
    mantissas[row, span], exponents[row, layer.index] = to_mantissas(values)
    return parameters.replace(**{name: mantissas, f"{name}_exponent": exponents})

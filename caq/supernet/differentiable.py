"""A model's integer graph in torch, with gradients by its weight codes: what training codes of a finished model needs.

Forward computes what the kernels do, but for the roundings inside requantization (caq.quant), which floats do without:
outputs are a code off here and there. Gradients go straight through roundings, and stop where codes are clamped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from caq.calibration.sets import ParameterSet
from caq.graph import Graph, Layer, Op
from caq.model import Model
from caq.plan import Parameters, affine, layer_codes, only_readers, written
from caq.quant import TOP_WIDTH, activation_range

if TYPE_CHECKING:
    from numpy.typing import NDArray


class DifferentiableModel:
    """A model at one of its parameter sets.

    codes: of each layer, (O, C, rows, columns) float32, those of its weight width; leaves that gradients may be asked
    of. `inputs` and `outputs` are, after a call, what each layer read (codes) and put out (before rounding and
    clamping, in its output's codes), (N, C, H, W).
    """

    def __init__(self, model: Model, which: ParameterSet, parameters: Parameters | None = None) -> None:
        self.graph: Graph = model.graph
        self.which, self._parameters = which, model.parameters if parameters is None else parameters
        self._written = written(self.graph, self._parameters.ratios, which.assignment)
        self._direct = set(only_readers(self.graph).values())
        self._layers = {layer.op: layer for layer in self.graph.layers}
        self.codes = [
            torch.from_numpy(
                layer_codes(self.graph, model.planes, layer, pair.weight).reshape(layer.weight_shape).astype(np.float32)
            ).permute(0, 3, 1, 2)
            for layer, pair in zip(self.graph.layers, which.assignment, strict=True)
        ]
        self.inputs: list[Tensor] = []
        self.outputs: list[Tensor] = []

    def __call__(self, x: NDArray[np.int8], codes: list[Tensor] | None = None) -> Tensor:
        """Real outputs (N, outputs) of input codes x (N, H, W, C). codes: others than its own, whole numbers."""
        graph, steps = self.graph, self._parameters.steps
        live = [torch.from_numpy(x.astype(np.float32)).permute(0, 3, 1, 2)]
        self.inputs, self.outputs = [], []
        for i, op in enumerate(graph.ops):
            inputs = [live[t] for t in op.inputs]
            if op.kind == "conv":
                y = self._conv(self._layers[i], op, inputs[0], self.codes if codes is None else codes)
            elif op.kind == "max_pool":
                top, bottom, left, right = op.padding
                padded = functional.pad(inputs[0], (left, right, top, bottom), value=-torch.inf)
                y = functional.max_pool2d(padded, op.kernel, op.stride, 0, op.dilation)
            elif op.kind == "reshape":
                h, w, c = graph.shapes[i + 1]
                y = inputs[0].reshape(len(x), c, h, w)
            else:
                scales = [float(steps[t]) / float(steps[i + 1]) for t in op.inputs]
                if op.kind == "avg_pool":
                    top, bottom, left, right = op.padding
                    inputs = [
                        functional.avg_pool2d(
                            functional.pad(inputs[0], (left, right, top, bottom)), op.kernel, op.stride
                        )
                    ]
                parts = [part * scale for part, scale in zip(inputs, scales, strict=True)]
                total = sum(parts[1:], parts[0]) if op.kind == "add" else torch.cat(parts, 1)
                y = rounded(total).clamp(op.low, op.high)
            live.append(y)
        return live[-1].permute(0, 2, 3, 1).flatten(1) * float(steps[-1])

    def _conv(self, layer: Layer, op: Op, x: Tensor, codes: list[Tensor]) -> Tensor:
        pair, output, p = self.which.assignment[layer.index], self._written[layer.index], self._parameters
        ratio = (
            float(p.ratios[layer.index, self.graph.widths.index(pair.activation)])
            if pair.activation != TOP_WIDTH
            else 1.0
        )
        if pair.activation != TOP_WIDTH and layer.index not in self._direct:
            x = rounded(x / ratio).clamp(*activation_range(pair.activation, self.graph.signed(op.inputs[0])))
        self.inputs.append(x)
        weight = codes[layer.index] if pair.weight == TOP_WIDTH else 2 * codes[layer.index] + 1
        top, bottom, left, right = op.padding
        total = functional.conv2d(
            functional.pad(x, (left, right, top, bottom)), weight, None, op.stride, 0, op.dilation, op.groups
        )
        gain, bias = (torch.from_numpy(v.astype(np.float32)) for v in affine(p, layer, self.which.row))
        y = total * (gain * ratio).reshape(1, -1, 1, 1) + bias.reshape(1, -1, 1, 1)
        self.outputs.append(y)
        return rounded(y / output.ratio).clamp(output.low, output.high)


def rounded(x: Tensor) -> Tensor:
    """floor(x + 1/2), with the gradient of x."""
    return x + (torch.floor(x + 0.5) - x).detach()

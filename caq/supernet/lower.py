"""Lowers a supernet to integers: codes, gains, biases and steps as the artifact stores them.

Every number is rounded here once; from then on training's integer simulation, the reference engine and the native
kernels compute with the same ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from caq.graph import Assignment, Graph
from caq.plan import Parameters, to_mantissas
from caq.quant import multiplicand_unit, pack
from caq.supernet.layers import SwitchableLayer
from caq.supernet.network import Supernet
from caq.supernet.quantizers import weight_codes


@dataclass(frozen=True)
class Lowered:
    """A supernet in integers: its graph, parameters, and the 8-bit codes of each layer, (O, rows, columns, C) int8."""

    graph: Graph
    parameters: Parameters
    codes: tuple[NDArray[np.int8], ...]

    def planes(self) -> NDArray[np.uint8]:
        """Bit planes (8, graph.plane_bytes) uint8 of all layers."""
        return np.concatenate([pack(c.reshape(-1)) for c in self.codes], axis=1)


@torch.no_grad()
def lower(supernet: Supernet, input_step: float, own_sets: Sequence[tuple[Assignment, int]] = ()) -> Lowered:
    """Lowers `supernet`, whose inputs are codes times `input_step`.

    own_sets: assignments whose batch-norm statistics were re-estimated, each with its row of statistics; they become
    the parameter sets that follow those of the widths, in this order.
    """
    graph = Graph(supernet.input_shape, tuple(supernet.op(i) for i in range(len(supernet.sources))), supernet.widths)
    steps = [np.float32(input_step)]
    for node, ts in zip(supernet.operations, supernet.sources, strict=True):
        steps.append(steps[ts[0]] if node.clip is None else np.float32(supernet.step(node)))
    uniform = [([width] * len(supernet.layers), None) for width in supernet.widths]
    own = [([pair.weight for pair in assignment], row) for assignment, row in own_sets]
    sets = [
        [
            _affine(layer, width, row, float(steps[graph.ops[known.op].inputs[0]]), float(steps[known.op + 1]))
            for layer, known, width in zip(supernet.layers, graph.layers, widths, strict=True)
        ]
        for widths, row in (*uniform, *own)
    ]
    gains = [[to_mantissas(gain) for gain, _ in row] for row in sets]
    biases = [[to_mantissas(bias) for _, bias in row] for row in sets]
    parameters = Parameters(
        gain=np.stack([np.concatenate([m for m, _ in row]) for row in gains]),
        gain_exponent=np.array([[e for _, e in row] for row in gains], np.int8),
        bias=np.stack([np.concatenate([m for m, _ in row]) for row in biases]),
        bias_exponent=np.array([[e for _, e in row] for row in biases], np.int8),
        steps=np.array(steps, np.float32),
        ratios=np.array([_ratios(supernet, i, steps) for i in range(len(supernet.layers))], np.float32),
    )
    parameters.check(graph)
    codes = tuple(
        np.ascontiguousarray(weight_codes(layer.weight, layer.scale).permute(0, 2, 3, 1).numpy())
        for layer in supernet.layers
    )
    return Lowered(graph, parameters, codes)


def _affine(
    layer: SwitchableLayer, width: int, row: int | None, step_in: float, step_out: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Gain and bias (O,) of a layer, in output codes per accumulator unit and in output codes."""
    scale = layer.scale.double().numpy()
    gain, bias = np.ones_like(scale), np.zeros_like(scale)
    if layer.norm is not None:
        gain, bias = (t.double().numpy() for t in layer.norm.affine(width, row))
    if layer.bias is not None:
        bias = bias + layer.bias.double().numpy() * gain
    return gain * scale * multiplicand_unit(width) * (step_in / step_out), bias / step_out


def _ratios(supernet: Supernet, index: int, steps: list[np.float32]) -> list[float]:
    layer, known = supernet.layers[index], supernet.graph.layers[index]
    step_in = float(steps[supernet.graph.ops[known.op].inputs[0]])
    return [
        float(layer.narrow[str(w)].step) / step_in  # type: ignore[arg-type]
        if str(w) in layer.narrow
        else 1.0
        for w in supernet.widths
    ]

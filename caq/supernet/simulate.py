"""The lowered supernet run in integers by torch: the training side's half of the integer contract.

It walks the supernet's own modules and never sees bit planes, plans, numpy kernels or the artifact; that it agrees
with the reference engine on every logit is a test of all of those (tests/test_contract.py).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from caq.conditional import ConditionalGate
from caq.graph import Assignment
from caq.plan import adding, layer_fixed_point, narrowing, only_readers, rescaling, written
from caq.quant import TOP_WIDTH, FixedPoint, multiplicands
from caq.supernet.layers import AvgPool, MaxPool, Reshape, SwitchableLayer
from caq.supernet.lower import Lowered
from caq.supernet.network import Supernet


@torch.no_grad()
def simulate(
    supernet: Supernet, lowered: Lowered, codes: Tensor, assignment: Assignment, parameter_set: int | None = None
) -> Tensor:
    """Output codes (N, H * W * C) int64, channels last, of input codes (N, C, H, W) int8 at `assignment`."""
    return _flat(_tensors(supernet, lowered, codes, assignment, parameter_set)[-1])


@torch.no_grad()
def simulate_conditional(
    supernet: Supernet, lowered: Lowered, codes: Tensor, gate: ConditionalGate
) -> tuple[Tensor, Tensor]:
    """As `simulate`, each sample at the branch (N,) int64 that the gate picks for it: the outputs, and the branches."""
    live = [_tensors(supernet, lowered, codes, b.assignment, b.parameter_set) for b in gate.branches]
    sums = live[0][gate.tensor].long().sum((2, 3)) >> gate.shift
    scores = sums @ torch.tensor(gate.weights).T + torch.tensor(gate.bias)
    taken = torch.from_numpy(scores.numpy().argmax(1))  # torch does not say which of equals its own argmax takes
    every = torch.stack([_flat(tensors[-1]) for tensors in live])
    return every[taken, torch.arange(len(taken))], taken


def _flat(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).flatten(1).long()


def _tensors(
    supernet: Supernet, lowered: Lowered, codes: Tensor, assignment: Assignment, parameter_set: int | None
) -> list[Tensor]:
    """The codes of every tensor of the graph, (N, C, H, W) float64."""
    graph, parameters = lowered.graph, lowered.parameters
    graph.check_assignment(assignment)
    outputs, direct = written(graph, parameters.ratios, assignment), set(only_readers(graph).values())
    live = [codes.double()]
    layer_index = 0
    for i, (node, ts) in enumerate(zip(supernet.nodes, supernet.sources, strict=True)):
        op, inputs = graph.ops[i], [live[t] for t in ts]
        if isinstance(node, SwitchableLayer):
            layer, widths = graph.layers[layer_index], assignment[layer_index]
            x = inputs[0]
            signed = graph.signed(ts[0])
            if widths.activation != TOP_WIDTH and layer_index not in direct:
                ratio = parameters.ratios[layer_index, graph.widths.index(widths.activation)]
                fixed, bounds = narrowing(ratio, widths.activation, signed)
                x = _requantize(x, fixed, *bounds)
            top = lowered.codes[layer_index] >> (TOP_WIDTH - widths.weight)
            weight = torch.from_numpy(multiplicands(top, widths.weight)).permute(0, 3, 1, 2).double()
            x, padding = node.window.pad(x)
            # float64 holds every sum exactly.
            total = functional.conv2d(x, weight, None, node.window.stride, padding, node.window.dilation, node.groups)
            output = outputs[layer_index]
            fixed = layer_fixed_point(graph, parameters, layer, widths, parameter_set, output.ratio)
            live.append(_requantize(total, fixed, output.low, output.high))
            layer_index += 1
        elif isinstance(node, MaxPool | Reshape):
            live.append(node(*inputs))
        elif op.kind == "add":
            multipliers, offset, shift = adding(op, parameters.steps, i + 1)
            total = sum((x * k for x, k in zip(inputs, multipliers, strict=True)), torch.full((), float(offset)))
            live.append((total.long() >> shift).clamp(op.low, op.high).double())
        else:
            fixed_points = [rescaling(op, graph, parameters.steps, t, i + 1) for t in ts]
            if isinstance(node, AvgPool):
                x, padding = node.window.pad(inputs[0])
                window = node.window
                inputs = [functional.avg_pool2d(x, window.kernel, window.stride, padding, divisor_override=1)]
            parts = [_requantize(x, f, op.low, op.high) for x, f in zip(inputs, fixed_points, strict=True)]
            live.append(torch.cat(parts, 1))
    return live


def _requantize(total: Tensor, f: FixedPoint, low: int, high: int) -> Tensor:
    """The formula of caq.quant on (N, C, H, W), in int64."""

    def channels(values: object) -> Tensor:
        return torch.as_tensor(values).long().reshape(1, -1, 1, 1)

    t = ((total.long() + channels(f.bias)) >> channels(f.pre_shift)).clamp(-(2**15), 2**15 - 1)
    y = (t * channels(f.multiplier) + channels(f.offset)) >> channels(f.post_shift)
    return y.clamp(low, high).double()

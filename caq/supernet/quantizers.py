"""Differentiable quantizers: integer codes forward, straight-through gradients backward, learned steps (LSQ).

Rounding is floor(v + 1/2) everywhere, as the integer contract has it (caq.quant); torch.round would round half to even.
Steps are trained as logarithms: they stay positive, and one learning rate fits all of them.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from caq.quant import TOP_WIDTH, activation_range
from caq.supernet.distributed import whole_batch, whole_gradient


class _QuantizeActivation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, log_step: Tensor, step: float, low: int, high: int) -> Tensor:
        y = _rounded(x, step, low, high)
        # Both are kept anyway, by the operations before and after.
        ctx.save_for_backward(x, y)
        ctx.bounds = (low * step, high * step)
        ctx.scale = 1 / math.sqrt(whole_batch(x.numel()) * high)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        (g,) = grads
        x, y = ctx.saved_tensors
        g_x = x.clamp(*ctx.bounds).eq_(x).mul_(g)
        # LSQ: d(value)/d(step) is codes - x / step inside the range and the bound outside; its scale keeps steps and
        # weights in balance. Times the step, for the logarithm.
        g_step = _dot(g, y) - _dot(g_x, x)
        return g_x, (g_step * ctx.scale).reshape(1), None, None, None


def _rounded(x: Tensor, step: float, low: int, high: int) -> Tensor:
    """Codes times steps; one new tensor, and the rest in place."""
    return torch.mul(x, 1 / step).add_(0.5).floor_().clamp_(low, high).mul_(step)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Sum of products; without a copy where both lie in memory in the same order."""
    if a.stride() == b.stride() and a.is_contiguous(memory_format=torch.channels_last):
        a, b = a.permute(0, 2, 3, 1), b.permute(0, 2, 3, 1)
    return torch.dot(a.reshape(-1), b.reshape(-1))


class _ChooseActivation(torch.autograd.Function):
    """The activation at the width that a one-hot mix chooses; every width's value goes into the mix's gradient.

    The straight-through gradients of a hard Gumbel-softmax sample, without keeping all widths from forward to backward.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, mix: Tensor, steps: list[tuple[float, int, int] | None]) -> Tensor:
        ctx.save_for_backward(x)
        ctx.steps, ctx.chosen = steps, int(mix.argmax())
        return _at(x, steps[ctx.chosen])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        (g,) = grads
        (x,) = ctx.saved_tensors
        g_mix = torch.stack([_dot(g, _at(x, step)) for step in ctx.steps])
        chosen = ctx.steps[ctx.chosen]
        if chosen is None:
            return g, g_mix, None
        step, low, high = chosen
        return g * x.clamp(low * step, high * step).eq_(x), g_mix, None


def _at(x: Tensor, step: tuple[float, int, int] | None) -> Tensor:
    if step is None:
        return x
    return _rounded(x, *step)


def choose_activation(x: Tensor, mix: Tensor, quantizers: list[ActivationQuantizer | None]) -> Tensor:
    """`x` through the quantizer (None: as it is) that the one-hot `mix` (W,) chooses, for learning the mix alone."""
    steps = [None if q is None else (q.step, q.low, q.high) for q in quantizers]
    return _ChooseActivation.apply(x, mix, steps)


class _QuantizeWeight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, scale: Tensor, width: int) -> Tensor:
        v = weight / scale
        middle = nested_values(torch.floor(v + 0.5).clamp_(-128, 127), width)
        ctx.save_for_backward(v, middle)
        return middle * scale

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        g = whole_gradient(*grads)
        v, middle = ctx.saved_tensors
        inside = (v >= -128) & (v <= 127)
        g_scale = g * torch.where(inside, middle - v, middle)
        dims = tuple(range(1, v.dim()))
        # A clipped weight may come back, but not move on: without that it would stay clipped for good.
        g_weight = g * (inside | (g * v > 0))
        # Ranges follow the weights (Layer.scale), so a channel that is c times as large comes out c times as large, and
        # what its size is worth is the sum of g * middle: nothing, where batch norm is behind it. What rounding and
        # clipping put along the weights instead makes them smaller with every step, until they vanish.
        along = (g * middle - g_weight * v).sum(dims, keepdim=True) / v.square().sum(dims, keepdim=True).clamp(
            min=1e-12
        )
        g_weight = g_weight + along * v
        return g_weight, g_scale.sum(dims, keepdim=True) / math.sqrt(v[0].numel() * 127), None


def nested_values(codes: Tensor, width: int) -> Tensor:
    """What 8-bit codes stand for at `width`, in units of the weight scale: see caq.quant."""
    if width == TOP_WIDTH:
        return codes
    size = 2.0 ** (TOP_WIDTH - width)
    return (torch.floor(codes / size) + 0.5) * size


def quantize_weight(weight: Tensor, scale: Tensor, width: int) -> Tensor:
    """Weights (O, ...) as the model of `width` sees them; scale: (O,)."""
    scale = scale.reshape(-1, *[1] * (weight.dim() - 1))
    return _QuantizeWeight.apply(weight, scale, width)


def weight_codes(weight: Tensor, scale: Tensor) -> Tensor:
    """The stored 8-bit codes of weights (O, ...), int8; scale: (O,)."""
    scale = scale.reshape(-1, *[1] * (weight.dim() - 1))
    return torch.floor(weight / scale + 0.5).clamp(-128, 127).to(torch.int8)


class ActivationQuantizer(nn.Module):
    """Rounds activations to codes of `width` bits with a learned step; forward returns codes * step.

    signed: two's complement codes, else from 0 (which is ReLU).
    """

    def __init__(self, width: int, signed: bool) -> None:
        super().__init__()
        self.low, self.high = activation_range(width, signed)
        self.log_step = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return _QuantizeActivation.apply(x, self.log_step, self.step, self.low, self.high)

    @property
    def code_range(self) -> tuple[int, int]:
        """Lowest and highest code."""
        return self.low, self.high

    @property
    def step(self) -> float:
        """The step as the float32 number that lowering stores."""
        return float(self.log_step.detach().exp())

    @torch.no_grad()
    def fit(self, x: Tensor) -> None:
        """Sets the step that has the least squared error on `x`, of 60 between 1/60 and all of the largest value."""
        x = x.flatten()
        # An odd stride meets all rows and columns, whose numbers are mostly even.
        x = x[:: x.numel() // 20000 | 1].clamp(min=0 if self.low == 0 else -math.inf)
        largest = float(x.abs().max()) or 1.0
        steps = torch.linspace(1 / 60, 1, 60) * largest / self.high
        codes = torch.floor(x / steps[:, None] + 0.5).clamp(self.low, self.high)
        error = (codes * steps[:, None] - x).square().mean(1)
        self.log_step.fill_(math.log(float(steps[error.argmin()])))

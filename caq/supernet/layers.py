"""The supernet's nodes: one torch module per operation of the integer graph (caq.graph).

Tensors are (N, C, H, W) floats that hold codes times steps: a series is (N, C, 1, T), a vector (N, F, 1, 1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from caq.graph import LayerWidths
from caq.quant import TOP_WIDTH
from caq.supernet import distributed
from caq.supernet.quantizers import ActivationQuantizer, choose_activation, quantize_weight

Pair = tuple[int, int]

#: Where the learned range of a channel's weights begins, in their deviations: between what 8 and 2 bits like best.
INITIAL_RANGE = 2.5


@dataclass(frozen=True)
class Clip:
    """Real bounds of an activation function: ReLU is (0, inf), Hardtanh (-1, 1)."""

    low: float = -math.inf
    high: float = math.inf

    @property
    def signed(self) -> bool:
        return self.low < 0

    def codes(self, low: int, high: int, step: float) -> tuple[int, int]:
        """The range of codes that a range of codes of this step is clipped to."""
        return max(low, _nearest_code(self.low / step)), max(1, min(high, _nearest_code(self.high / step)))


def _nearest_code(value: float) -> int:
    return math.floor(max(-(2.0**20), min(2.0**20, value)) + 0.5)


@dataclass(frozen=True)
class Window:
    """Geometry of a convolution or pool; padding is (top, bottom, left, right)."""

    kernel: Pair
    stride: Pair = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: Pair = (1, 1)

    def pad(self, x: Tensor, value: float = 0.0) -> tuple[Tensor, Pair]:
        """`x`, padded where the two ends differ, and the padding that is left to the operation itself."""
        top, bottom, left, right = self.padding
        if top == bottom and left == right:
            return x, (top, left)
        return functional.pad(x, (left, right, top, bottom), value=value), (0, 0)


class Node(nn.Module):
    """An operation. `kind` is its name in the graph; `output` is its quantizer, None where it keeps its input's step
    or makes the network's output (16 bits, which training need not imitate)."""

    kind = ""

    def __init__(self, name: str, clip: Clip | None = None) -> None:
        super().__init__()
        self.name = name
        self.clip = clip
        self.output = ActivationQuantizer(TOP_WIDTH, clip.signed) if clip is not None else None
        self.fitting = self.fitting_narrow = False
        #: Whether forward rounds the output to 8 bits. It costs time, so training begins without.
        self.rounding = True

    def finish(self, y: Tensor) -> Tensor:
        """Applies the activation function and the output's quantizer."""
        if self.clip is None:
            return y
        rounding = self.output is not None and self.rounding
        if math.isfinite(self.clip.high) or (math.isfinite(self.clip.low) and (self.clip.signed or not rounding)):
            y = torch.relu(y) if self.clip == Clip(0.0) else y.clamp(self.clip.low, self.clip.high)
        if self.output is None:
            return y
        if self.fitting:
            self.output.fit(y)
        if not rounding:
            return y
        return self.output(y)


class SwitchableNorm(nn.Module):
    """Batch norm with a row of parameters and statistics per weight width, and more rows for operating points.

    All arrays are (R, C): the rows of the widths come first, in their order.
    """

    def __init__(self, channels: int, widths: Sequence[int], eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.momentum = 0.1
        self.widths = tuple(widths)
        self.gamma = nn.Parameter(torch.ones(len(widths), channels))
        self.beta = nn.Parameter(torch.zeros(len(widths), channels))
        self.register_buffer("mean", torch.zeros(len(widths), channels))
        self.register_buffer("var", torch.ones(len(widths), channels))
        self.mean: Tensor
        self.var: Tensor

    @torch.no_grad()
    def add_row(self, width: int) -> int:
        """Appends a row for an operating point, begun as that of `width`; returns its index."""
        i = self.widths.index(width)
        self.gamma, self.beta = (nn.Parameter(torch.cat([p, p[i : i + 1]])) for p in (self.gamma, self.beta))
        self.mean, self.var = (torch.cat([b, b[i : i + 1]]) for b in (self.mean, self.var))
        return len(self.mean) - 1

    def forward(self, y: Tensor, width: int, row: int | None) -> Tensor:
        row = self.widths.index(width) if row is None else row
        mean, var, gamma, beta = self.mean[row], self.var[row], self.gamma[row], self.beta[row]
        if self.training and distributed.sharing():
            return distributed.batch_norm(y, mean, var, gamma, beta, self.momentum, self.eps)
        return functional.batch_norm(y, mean, var, gamma, beta, self.training, self.momentum, self.eps)

    def affine(self, width: int, row: int | None) -> tuple[Tensor, Tensor]:
        """Multiplier and offset (C,) in evaluation mode."""
        row = self.widths.index(width) if row is None else row
        gain = self.gamma[row] / torch.sqrt(self.var[row] + self.eps)
        return gain, self.beta[row] - self.mean[row] * gain


class SwitchableLayer(Node):
    """Convolution (also 1-d and linear) with switchable widths, batch norm and activation function.

    weight: (O, C / groups, rows, columns). `widths` and `row` say what forward computes; `mix`, when a gate is being
    trained, replaces them by weighted sums over all widths (weights: (W,), (W,)).
    """

    kind = "conv"

    def __init__(
        self,
        name: str,
        weight: Tensor,
        bias: Tensor | None,
        window: Window,
        groups: int,
        widths: Sequence[int],
        signed_input: bool,
        reads_input: bool,
        clip: Clip,
        has_norm: bool,
    ) -> None:
        super().__init__(name, clip)
        self.weight = nn.Parameter(weight.clone())
        self.bias = nn.Parameter(bias.clone()) if bias is not None else None
        # In deviations of the channel's weights, so that the range follows the weights while they grow.
        self.log_range = nn.Parameter(torch.full((len(weight),), math.log(INITIAL_RANGE)))
        self.window = window
        self.groups = groups
        self.served = tuple(widths)
        self.signed_input = signed_input
        self.reads_input = reads_input
        self.norm = SwitchableNorm(len(weight), widths) if has_norm else None
        narrow = () if reads_input else tuple(w for w in widths if w < TOP_WIDTH)
        self.narrow = nn.ModuleDict({str(w): ActivationQuantizer(w, signed_input) for w in narrow})
        self.widths = LayerWidths(self.served[-1], TOP_WIDTH)
        self.row: int | None = None
        self.mix: tuple[Tensor, Tensor] | None = None
        #: Whether forward computes with the weights as they are, for calibration to compare with.
        self.exact = False

    @property
    def scale(self) -> Tensor:
        """The real value of one weight code, (O,): 127 of them are the learned range."""
        deviation = self.weight.detach().square().flatten(1).mean(1).sqrt().clamp(min=1e-8)
        return self.log_range.exp() * deviation / 127

    @torch.no_grad()
    def set_scale(self, scale: Tensor) -> None:
        """Sets the range of each channel so that one weight code is worth `scale` (O,)."""
        self.log_range.add_((scale / self.scale).log())

    def forward(self, x: Tensor) -> Tensor:
        if self.fitting and self.fitting_narrow:
            for quantizer in self.narrow.values():
                quantizer.fit(x)  # type: ignore[operator]
        if self.mix is not None:
            return self._forward_mixed(x, *self.mix)
        if self.widths.activation != TOP_WIDTH:
            x = self.narrow[str(self.widths.activation)](x)
        weight = self.weight if self.exact else quantize_weight(self.weight, self.scale, self.widths.weight)
        y = self.convolve(x, weight)
        if self.norm is not None:
            y = self.norm(y, self.widths.weight, self.row)
        return self.finish(y)

    def _forward_mixed(self, x: Tensor, weight_mix: Tensor, activation_mix: Tensor) -> Tensor:
        if not self.reads_input:
            narrow = [self.narrow[str(w)] if str(w) in self.narrow else None for w in self.served]  # noqa: SIM401
            x = choose_activation(x, activation_mix, narrow)  # type: ignore[arg-type]
        # Terms with a zero weight still count: the gradient of the mix is what a gate learns from.
        mixed = [p * quantize_weight(self.weight, self.scale, w) for p, w in zip(weight_mix, self.served, strict=True)]
        y = self.convolve(x, torch.stack(mixed).sum(0))
        if self.norm is not None:
            norm = self.norm
            gamma, beta = (weight_mix @ p[: len(weight_mix)] for p in (norm.gamma, norm.beta))
            y = functional.batch_norm(y, None, None, gamma, beta, True, 0.0, norm.eps)
        return self.finish(y)

    def convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        """The products of `weight`, shaped as the layer's own, with an input, and the bias: before norm and clip."""
        if weight.shape[2:] == x.shape[2:] == (1, 1) and self.groups == 1 and not any(self.window.padding):
            return functional.linear(x.flatten(1), weight.flatten(1), self.bias)[:, :, None, None]
        x, padding = self.window.pad(x)
        return functional.conv2d(x, weight, self.bias, self.window.stride, padding, self.window.dilation, self.groups)


class Add(Node):
    """Sum of two or more inputs."""

    kind = "add"

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.finish(torch.stack(inputs).sum(0) if len(inputs) > 2 else inputs[0] + inputs[1])


class Concat(Node):
    """Concatenation along the channels."""

    kind = "concat"

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.finish(torch.cat(inputs, 1))


class Activation(Node):
    """An activation function that no other node could absorb."""

    kind = "clamp"

    def forward(self, x: Tensor) -> Tensor:
        return self.finish(x)


class _AveragePositions(torch.autograd.Function):
    """The average over all positions of (N, C, H, W), as avg_pool2d has it, which is five times as slow backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.shape, ctx.strides = x.shape, x.stride()
        return functional.avg_pool2d(x, x.shape[2:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (g,) = grads
        result = torch.empty_strided(ctx.shape, ctx.strides, dtype=g.dtype)
        return result.copy_(g / math.prod(ctx.shape[2:]))


class AvgPool(Node):
    """Average over a window; padding counts as zeros."""

    kind = "avg_pool"

    def __init__(self, name: str, window: Window, clip: Clip) -> None:
        super().__init__(name, clip)
        self.window = window

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2:] == self.window.kernel and not any(self.window.padding):
            return self.finish(_AveragePositions.apply(x))
        x, padding = self.window.pad(x)
        return self.finish(functional.avg_pool2d(x, self.window.kernel, self.window.stride, padding))


class MaxPool(Node):
    """Maximum over a window; padding never wins."""

    kind = "max_pool"

    def __init__(self, name: str, window: Window) -> None:
        super().__init__(name)
        self.window = window

    def forward(self, x: Tensor) -> Tensor:
        x, padding = self.window.pad(x, value=-math.inf)
        return functional.max_pool2d(x, self.window.kernel, self.window.stride, padding, self.window.dilation)


class Reshape(Node):
    """Reshapes to `shape`, (H, W, C) as the graph writes it, in channels-first order."""

    kind = "reshape"

    def __init__(self, name: str, shape: tuple[int, int, int]) -> None:
        super().__init__(name)
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        h, w, c = self.shape
        return x.reshape(len(x), c, h, w)

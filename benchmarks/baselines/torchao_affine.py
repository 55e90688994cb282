"""torchao's affine quantization after training, a network for each width.

torchao has no configuration for this setting: IntxWeightOnlyConfig and QATConfig change linear layers and embeddings,
not convolutions, and activations of a linear layer have 8 bits or none are quantized. So this applies the primitives
that those are made of to every layer: weights symmetric and per output channel, activations asymmetric and per tensor
with a range fixed by calibration, as in its static configurations. Fake quantization in floats; batch norm in floats.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchao.quantization import choose_qparams_affine, dequantize_affine, quantize_affine
from torchao.quantization.quant_primitives import MappingType

from benchmarks.baselines.given import Given, Point, quantized_modules


def measure(given: Given) -> list[Point]:
    """The accuracy of a network for each width."""
    return given.uniform(lambda width: quantized(given, width))


@torch.no_grad()
def quantized(given: Given, width: int) -> nn.Module:
    """The network with weights and activations of `width` bits; the first layer reads the input's own 8."""
    network = given.copy()
    layers = [module for _, module in quantized_modules(network)]
    ranges = [_Range(layer) for layer in layers[1:]]
    for x in given.inputs(given.calibration):
        network(x)
    for layer in layers:
        layer.weight.copy_(_weights(layer.weight, width))  # type: ignore[operator, arg-type]
    for found in ranges:
        found.apply(width)
    return network


def _weights(weight: Tensor, width: int) -> Tensor:
    low, high = -(2 ** (width - 1)), 2 ** (width - 1) - 1
    block = (1, *weight.shape[1:])
    scale, zero = choose_qparams_affine(weight, MappingType.SYMMETRIC, block, torch.int8, low, high)
    codes = quantize_affine(weight, block, scale, zero, torch.int8, low, high)
    return dequantize_affine(codes, block, scale, zero, torch.int8, low, high)


class _Range:
    """Watches what a layer reads, and then quantizes it."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer
        self.ends = torch.zeros(2)
        self.hook = layer.register_forward_pre_hook(self._watch)

    def _watch(self, _: nn.Module, inputs: tuple[Tensor]) -> None:
        low, high = inputs[0].aminmax()
        self.ends = torch.stack([torch.minimum(self.ends[0], low), torch.maximum(self.ends[1], high)])

    def apply(self, width: int) -> None:
        self.hook.remove()
        high = 2**width - 1
        scale, zero = choose_qparams_affine(self.ends, MappingType.ASYMMETRIC, (2,), torch.uint8, 0, high)

        def quantize(_: nn.Module, inputs: tuple[Tensor]) -> Tensor:
            block = inputs[0].shape
            codes = quantize_affine(inputs[0], block, scale, zero, torch.uint8, 0, high)
            return dequantize_affine(codes, block, scale, zero, torch.uint8, 0, high)

        self.layer.register_forward_pre_hook(quantize)

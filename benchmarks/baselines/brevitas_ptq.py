"""Brevitas after training, a network for each width: its calibration, GPTQ and bias correction.

Batch norm is folded into the weights. Weights are symmetric and per output channel, activations per tensor, unsigned
after a ReLU, all scales of least squared error. Fake quantization in floats.
"""

from __future__ import annotations

import torch
from brevitas.graph.calibrate import bias_correction_mode, calibration_mode
from brevitas.graph.gptq import gptq_mode
from brevitas.graph.quantize import layerwise_quantize, preprocess_for_quantize
from brevitas.nn import QuantConv1d, QuantConv2d, QuantLinear
from brevitas.quant import Int8ActPerTensorFloatMSE, Int8WeightPerChannelFloatMSE, Uint8ActPerTensorFloatMSE
from torch import nn

from benchmarks.baselines.given import Given, Point, quantized_modules

QUANT = {nn.Conv1d: QuantConv1d, nn.Conv2d: QuantConv2d, nn.Linear: QuantLinear}


def measure(given: Given) -> list[Point]:
    """The accuracy of a network for each width."""
    return given.uniform(lambda width: quantized(given, width))


@torch.no_grad()
def quantized(given: Given, width: int) -> nn.Module:
    """The network with weights and activations of `width` bits; the first layer reads the input's own 8."""
    batches = given.inputs(given.calibration, batch_size=64)
    network = preprocess_for_quantize(given.copy(), trace_model=True, equalize_iters=0)
    unsigned = _non_negative(network, batches[0])
    reads_input = quantized_modules(network)[0][0]

    def activation(name: str) -> type | None:
        if name == reads_input:
            return None
        return Uint8ActPerTensorFloatMSE if name in unsigned else Int8ActPerTensorFloatMSE

    settings = {
        "weight_quant": Int8WeightPerChannelFloatMSE,
        "weight_bit_width": width,
        "input_quant": lambda module, name: activation(name),
        "input_bit_width": width,
        "bias_quant": None,
        "return_quant_tensor": False,
    }
    network = layerwise_quantize(network, {kind: (quant, settings) for kind, quant in QUANT.items()}).eval()
    with calibration_mode(network):
        for x in batches:
            network(x)
    network(batches[0])  # makes the scales of the weights, which calibration leaves out
    with gptq_mode(network, use_quant_activations=True) as gptq:
        for _ in range(gptq.num_layers):
            for x in batches:
                gptq.model(x)
            gptq.update()
    with bias_correction_mode(network):
        for x in batches:
            network(x)
    return network


def _non_negative(network: nn.Module, x: torch.Tensor) -> set[str]:
    """Names of the layers that read nothing below 0."""
    found = set[str]()
    handles = []
    for name, module in quantized_modules(network):

        def look(_: nn.Module, inputs: tuple[torch.Tensor], name: str = name) -> None:
            if inputs[0].min() >= 0:
                found.add(name)

        handles.append(module.register_forward_pre_hook(look))
    network(x)
    for handle in handles:
        handle.remove()
    return found

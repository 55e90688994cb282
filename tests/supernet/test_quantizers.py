"""Fake quantization: its codes, its gradients, and how ranges and steps learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from caq.supernet import convert, train
from caq.supernet.layers import AvgPool, Clip, Window
from caq.supernet.quantizers import ActivationQuantizer, choose_activation, nested_values, quantize_weight, weight_codes


@pytest.mark.parametrize("width", range(2, 9))
def test_training_quantizes_weights_as_the_contract_says(width: int) -> None:
    torch.manual_seed(width)
    weight = torch.randn(5, 3, 2, 2)
    scale = torch.linspace(-5, -3, 5).exp()
    q = weight_codes(weight, scale).long()
    m = q if width == 8 else 2 * (q >> (8 - width)) + 1
    unit = 1.0 if width == 8 else 2.0 ** (7 - width)
    expected = m * unit * scale.reshape(5, 1, 1, 1)
    assert torch.allclose(quantize_weight(weight, scale, width), expected, rtol=1e-6)
    assert torch.equal(nested_values(q.float(), width), m * unit)


@pytest.mark.parametrize("width", [8, 5, 2])
def test_the_gradient_along_a_channel_is_that_of_its_size(width):
    """A channel that is c times as large, its range with it, gives c times the same, also where weights are clipped."""
    torch.manual_seed(0)
    weight, slope = torch.randn(6, 4, 3, 3, requires_grad=True), torch.randn(6, 4, 3, 3)

    def quantized(w):
        return quantize_weight(w, 1.5 * w.detach().square().flatten(1).mean(1).sqrt() / 127, width)

    (slope * quantized(weight)).sum().backward()
    found = (weight.grad * weight.detach()).flatten(1).sum(1)
    assert torch.allclose(found, (slope * quantized(weight.detach())).flatten(1).sum(1), rtol=1e-4, atol=1e-5)
    assert torch.allclose(quantized(3 * weight), 3 * quantized(weight), rtol=1e-5)


def test_ranges_and_steps_learn_slowly():
    nn = torch.nn
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    supernet = convert(network, torch.zeros(2, 3, 8, 8), (2, 8))
    groups = train._groups(supernet, 0.01)
    rates = {id(p): group["rate"] for group in groups for p in group["params"]}
    named = dict(supernet.named_parameters())
    assert {id(p) for p in named.values()} == rates.keys()
    slow = {name for name, p in named.items() if rates[id(p)] == train.RANGE_RATE}
    assert slow == {name for name in named if name.endswith(("log_range", "log_step"))} and len(slow) > 1
    narrow = convert(network, torch.zeros(2, 3, 8, 8), (2, 3))
    assert {group["rate"] for group in train._groups(narrow, 0.01)} == {1.0}


def test_weights_behind_batch_norm_do_not_shrink():
    """What their size does is nothing, so no step may be along them, whatever rounding and clipping say."""
    torch.manual_seed(0)
    weight, x = torch.randn(6, 4, 1, 1, requires_grad=True), torch.randn(64, 4, 5, 5)
    scale = 1.5 * weight.detach().square().flatten(1).mean(1).sqrt() / 127
    y = torch.nn.functional.conv2d(x, quantize_weight(weight, scale, 2))
    normed = torch.nn.functional.batch_norm(y, None, None, training=True, eps=1e-12)
    (normed * torch.randn_like(normed)).sum().backward()
    along = (weight.grad * weight.detach()).flatten(1).sum(1)
    assert torch.allclose(along, torch.zeros(6), atol=1e-3 * float(weight.grad.norm()))


def test_gradients_of_the_quantizers() -> None:
    quantizer = ActivationQuantizer(3, signed=False)
    quantizer.log_step.data.fill_(float(np.log(0.5)))
    x = torch.tensor([[[[-1.0, 0.3, 1.1, 9.0]]]], requires_grad=True)
    y = quantizer(x)
    assert torch.allclose(y, torch.tensor([0.0, 0.5, 1.0, 3.5]))
    y.sum().backward()
    assert x.grad is not None and x.grad.flatten().tolist() == [0, 1, 1, 0]
    # d/d(step): 0 below, rounding error inside, the bound above; times the step, for the logarithm.
    expected = (0 + (1 - 0.6) + (2 - 2.2) + 7) / np.sqrt(4 * 7) * 0.5
    assert quantizer.log_step.grad is not None
    assert float(quantizer.log_step.grad) == pytest.approx(expected, rel=1e-5)


def test_the_widest_step_is_the_least_error_on_its_data() -> None:
    quantizer = ActivationQuantizer(4, signed=True)
    x = torch.randn(1, 1, 50, 50, generator=torch.Generator().manual_seed(0))
    quantizer.fit(x)
    error = (quantizer(x) - x).square().mean()
    for factor in (0.7, 1.4):
        other = ActivationQuantizer(4, signed=True)
        other.log_step.data = quantizer.log_step.data + np.log(factor)
        assert (other(x) - x).square().mean() > error


def test_a_chosen_activation_has_the_gradients_of_the_sum_over_all_widths() -> None:
    torch.manual_seed(0)
    quantizers = [ActivationQuantizer(w, signed=False).requires_grad_(False) for w in (2, 4)]
    for quantizer, step in zip(quantizers, (0.7, 0.15), strict=True):
        quantizer.log_step.fill_(float(np.log(step)))
    x = torch.randn(2, 3, 4, 5).relu()
    for chosen in range(3):
        mix = torch.eye(3)[chosen].clone()
        inputs = [(x.clone().requires_grad_(), mix.clone().requires_grad_()) for _ in range(2)]
        (x1, mix1), (x2, mix2) = inputs
        summed = mix1[0] * quantizers[0](x1) + mix1[1] * quantizers[1](x1) + mix1[2] * x1
        one = choose_activation(x2, mix2, [*quantizers, None])
        assert torch.allclose(summed, one, atol=1e-6)
        weight = torch.randn_like(x)
        (summed * weight).sum().backward()
        (one * weight).sum().backward()
        assert mix1.grad is not None and mix2.grad is not None and x1.grad is not None and x2.grad is not None
        assert torch.allclose(mix1.grad, mix2.grad, atol=1e-4)
        assert torch.allclose(x1.grad, x2.grad, atol=1e-6)


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_the_average_of_all_positions_is_torchs_own_to_the_bit(memory_format: torch.memory_format) -> None:
    torch.manual_seed(0)
    pool = AvgPool("pool", Window((5, 7), (5, 7)), Clip())
    pool.rounding = False
    inputs = [torch.randn(4, 6, 5, 7).to(memory_format=memory_format).requires_grad_() for _ in range(2)]
    inputs[1].data.copy_(inputs[0].data)
    outputs = pool(inputs[0]), torch.nn.functional.avg_pool2d(inputs[1], (5, 7))
    assert outputs[0].grad_fn is not None and "AveragePositions" in type(outputs[0].grad_fn).__name__
    weight = torch.randn(4, 6, 1, 1)
    for y in outputs:
        y.backward(weight)
    (a, b), (grad_a, grad_b) = outputs, (x.grad for x in inputs)
    assert grad_a is not None and grad_b is not None
    assert torch.equal(a, b) and torch.equal(grad_a, grad_b) and grad_a.stride() == grad_b.stride()

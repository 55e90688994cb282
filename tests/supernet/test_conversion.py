"""Conversion of modules: every supported operation, what is folded, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from caq.engine import execute_reference
from caq.errors import AssignmentError, UnsupportedError
from caq.plan import build_plan
from caq.supernet import Supernet, convert
from caq.supernet.lower import lower
from caq.supernet.simulate import simulate
from caq.supernet.train import random_assignment

STEP = 0.02


def codes(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(-128, 128, shape).astype(np.int8))


def shake(model: nn.Module) -> nn.Module:
    """Gives batch norms statistics and parameters that a mistake in folding would show."""
    torch.manual_seed(1)
    for m in model.modules():
        if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d):
            assert m.running_mean is not None and m.running_var is not None
            m.running_mean.normal_(0, 0.3)
            m.running_var.uniform_(0.5, 2)
            if m.affine:
                nn.init.normal_(m.weight, 1, 0.2)
                nn.init.normal_(m.bias, 0, 0.3)
    return model.eval()


def check(model: nn.Module, shape: tuple[int, ...], tolerance: float = 0.06) -> Supernet:
    """Float, 8-bit supernet, torch's integers and the engine's integers tell the same."""
    torch.manual_seed(0)
    shake(model)
    x = codes((32, *shape))
    with torch.no_grad():
        expected = model(x.float() * STEP).flatten(1)
    supernet = convert(model, x.float() * STEP).eval()
    with torch.no_grad():
        supernet.set_assignment(supernet.graph.uniform(8))
        quantized = supernet(x.float() * STEP)
    error = (quantized - expected).square().mean().sqrt() / expected.std()
    assert error < tolerance, error
    lowered = lower(supernet, STEP)
    h, w, c = supernet.input_shape
    internal = x.reshape(32, c, h, w)
    rng = np.random.default_rng(0)
    for assignment in (supernet.graph.uniform(8), supernet.graph.uniform(2), random_assignment(supernet.graph, rng)):
        plan = build_plan(lowered.graph, lowered.parameters, lowered.planes(), assignment)
        ours = execute_reference(plan, internal.permute(0, 2, 3, 1).numpy())
        # Outputs leave the engine channels last; torch flattens channels first.
        ours = ours.transpose(0, 3, 1, 2).reshape(32, -1)
        theirs = simulate(supernet, lowered, internal, assignment)
        assert np.array_equal(ours, theirs.numpy())
    integers = simulate(supernet, lowered, internal, supernet.graph.uniform(8))
    real = integers * lowered.parameters.steps[-1]
    assert (real - expected).square().mean().sqrt() / expected.std() < tolerance
    return supernet


class Function(nn.Module):
    """A convolution, then whatever function a test is about."""

    def __init__(self, function: Any, channels: int = 4, out: int = 8) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, 3, padding=1)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.conv(x))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 8, 3),
        nn.Conv2d(4, 8, 3, padding="same"),
        nn.Conv2d(4, 8, (1, 4), padding="same"),
        nn.Conv2d(4, 8, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)),
        nn.Conv2d(4, 8, 3, groups=2, bias=False),
        nn.Conv2d(4, 8, 3, groups=4, padding=1),
        nn.Sequential(nn.ZeroPad2d((0, 1, 2, 1)), nn.Conv2d(4, 8, 3, stride=2)),
    ],
    ids=str,
)
def test_conv2d(layer: nn.Module) -> None:
    check(nn.Sequential(layer, nn.ReLU(), nn.Conv2d(8, 3, 1)), (4, 9, 10))


@pytest.mark.parametrize(
    "layer",
    [nn.Conv1d(4, 8, 5, padding=2), nn.Conv1d(4, 8, 3, stride=2, dilation=2), nn.Conv1d(4, 8, 9, groups=4)],
    ids=str,
)
def test_conv1d(layer: nn.Module) -> None:
    norm = nn.BatchNorm1d(8)
    check(nn.Sequential(layer, norm, nn.ReLU(), nn.MaxPool1d(3, 1, 1), nn.Conv1d(8, 3, 1)), (4, 24))


@pytest.mark.parametrize(
    "act", [nn.ReLU(), nn.ReLU6(), nn.Hardtanh(), nn.Hardtanh(-2, 0.7), nn.Hardtanh(0, 1)], ids=str
)
def test_activations_are_absorbed(act: nn.Module) -> None:
    supernet = check(nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), act, nn.Conv2d(8, 3, 1)), (4, 8, 8))
    assert [op.kind for op in supernet.graph.ops] == ["conv", "conv"]


@pytest.mark.parametrize(
    "function",
    [
        torch.relu,
        F.relu6,
        lambda x: F.hardtanh(x, -1.0, 0.5),
        lambda x: x.clamp(0.0, 0.5),
        lambda x: F.relu(x) + x,
        lambda x: torch.add(x, F.relu(x)),
        lambda x: F.relu(x + torch.relu(x)),
        lambda x: torch.cat([x, F.relu(x)], dim=1),
        lambda x: F.relu(torch.cat([x, x], 1)),
        lambda x: F.max_pool2d(x, 2),
        lambda x: F.max_pool2d(x, 3, stride=2, padding=1),
        lambda x: F.avg_pool2d(x, 2),
        lambda x: F.avg_pool2d(x, 3, 1, 1),
        lambda x: F.adaptive_avg_pool2d(x, (4, 2)),
        lambda x: F.adaptive_max_pool2d(x, 1),
        lambda x: x.mean((2, 3)),
        lambda x: x.mean([-1, -2], keepdim=True),
        lambda x: x.flatten(1),
        lambda x: x.view(-1, 8 * 8 * 8),
        lambda x: x.reshape(-1, 16, 8, 4),
        lambda x: F.dropout(x, 0.5, False),
        lambda x: torch.relu(x).relu(),
    ],
)
@pytest.mark.parametrize("last", [True, False])
def test_functions(function: Any, last: bool) -> None:
    model: nn.Module = Function(function)
    if not last:
        with torch.no_grad():
            shape = model(torch.zeros(1, 4, 8, 8)).shape
        head = nn.Linear(shape[1], 3) if len(shape) == 2 else nn.Conv2d(shape[1], 3, 1)
        model = nn.Sequential(model, head)
    check(model, (4, 8, 8))


class InceptionLike(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv1d(3, 6, 3, padding=1, bias=False)
        self.b = nn.Conv1d(3, 2, 5, padding=2, bias=False)
        self.norm = nn.BatchNorm1d(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm(torch.cat([self.a(x), self.b(x)], 1)))
        return self.head(y.mean(-1))  # type: ignore[no-any-return]


def test_a_norm_behind_a_concat_is_split_over_its_convolutions() -> None:
    supernet = check(InceptionLike(), (3, 20))
    assert [op.kind for op in supernet.graph.ops] == ["conv", "conv", "concat", "avg_pool", "conv"]
    first, second = supernet.layers[0].norm, supernet.layers[1].norm
    assert first is not None and first.gamma.shape[1] == 6
    assert second is not None and second.gamma.shape[1] == 2


def test_a_norm_that_nothing_absorbs_becomes_a_depthwise_layer() -> None:
    model = nn.Sequential(
        nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.BatchNorm2d(6), nn.Conv2d(6, 2, 1)
    )
    supernet = check(model, (4, 8, 8))
    first = supernet.layers[0]
    assert (first.groups, first.weight.shape) == (4, (4, 1, 1, 1))


def test_vectors_and_images_through_flatten() -> None:
    check(nn.Sequential(nn.Linear(10, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 3)), (10,))
    check(nn.Sequential(nn.Flatten(), nn.Linear(48, 16), nn.ReLU(), nn.Linear(16, 3)), (3, 4, 4))
    check(nn.Sequential(nn.Unflatten(1, (2, 3, 4)), nn.Conv2d(2, 5, 3), nn.Flatten(), nn.Linear(10, 3)), (24,))


def test_the_users_model_is_not_changed() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    convert(model, torch.randn(8, 1, 8, 8))
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum() > 0 else x


class Nested(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("inner", "words"),
    [
        (nn.GELU(), ["inner", "GELU", "Supported"]),
        (nn.ConvTranspose2d(4, 4, 3), ["inner", "ConvTranspose2d"]),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), ["inner", "reflect"]),
        (nn.MaxPool2d(2, ceil_mode=True), ["inner", "ceil_mode"]),
        (nn.AvgPool2d(3, padding=1, count_include_pad=False), ["inner", "divisor"]),
        (nn.AdaptiveAvgPool2d(3), ["inner", "does not divide"]),
        (nn.Hardtanh(0.5, 1), ["inner", "excludes 0"]),
        (nn.BatchNorm2d(4, track_running_stats=False), ["inner", "running statistics"]),
        (nn.ConstantPad2d(1, 3.0), ["inner", "padding with 3.0"]),
        (Function(lambda x: x * 3), ["inner.mul", "mul"]),
        (Function(lambda x: x + 1), ["inner.add", "constant"]),
        (Function(lambda x: torch.cat([x, x], 2)), ["inner.cat", "dimension 2"]),
        (Function(lambda x: x.mean(1)), ["inner.mean", "mean over"]),
        (Function(lambda x: F.softmax(x, 1)), ["inner.softmax"]),
        (Branching(), ["cannot be traced"]),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else "",
)
def test_what_has_no_integer_form_is_refused_by_name(inner: nn.Module, words: list[str]) -> None:
    model = nn.Sequential()
    model.add_module("stem", nn.Conv2d(4, 4, 1))
    model.add_module("outer", Nested(inner))
    with pytest.raises(UnsupportedError) as error:
        convert(model, torch.randn(4, 4, 8, 8))
    for word in words:
        assert word in str(error.value)


def test_nothing_to_quantize() -> None:
    with pytest.raises(UnsupportedError, match="nothing to quantize"):
        convert(nn.ReLU(), torch.randn(4, 4, 8, 8))


@pytest.mark.parametrize("widths", [(), (1, 8), (4, 9), (4, 4)])
def test_bad_widths(widths: tuple[int, ...]) -> None:
    with pytest.raises(AssignmentError, match="widths"):
        convert(nn.Linear(4, 2), torch.randn(4, 4), widths)

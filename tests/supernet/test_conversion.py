"""Conversion of modules: every supported operation, what is folded, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from caq.errors import AssignmentError, DataError, UnsupportedError
from caq.plan import build_plan
from caq.reference import execute_reference
from caq.supernet import Supernet, convert
from caq.supernet.lower import lower
from caq.supernet.simulate import simulate
from caq.supernet.train import random_assignment

STEP = 0.02


def codes(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(-128, 128, shape).astype(np.int8))


def shake(model: nn.Module) -> nn.Module:
    """Seeds the weights, and gives batch norms statistics and parameters that a mistake in folding would show."""
    torch.manual_seed(1)
    for m in model.modules():
        if isinstance(m, nn.Conv1d | nn.Conv2d | nn.Linear):
            m.reset_parameters()
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
        # Channels last: (N, C, H, W) and (N, C, T) become (N, H, W, C) and (N, T, C).
        expected = model(x.float() * STEP).movedim(1, -1).flatten(1)
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
        ours = execute_reference(plan, internal.permute(0, 2, 3, 1).numpy()).reshape(32, -1)
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
        lambda x: x.view(x.size(0), -1),
        lambda x: x.view(x.shape[0], -1),
        lambda x: x.reshape(x.size()[0], -1),
        lambda x: x.reshape(x.size(0), x.size(1) // 2, x.shape[2] * 2, -1),
        lambda x: F.avg_pool2d(x, x.size()[2:]).view(x.size(0), -1),
        lambda x: F.adaptive_avg_pool2d(input=x, output_size=1),
        lambda x: F.relu(x, inplace=True) + x,
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


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)), (3, 8, 9)),
        (nn.Sequential(nn.Conv1d(6, 8, 3), nn.ReLU(), nn.Conv1d(8, 4, 1)), (6, 20)),
        (
            nn.Sequential(
                *(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(48, 30), nn.ReLU()),
                *(nn.Linear(30, 4 * 6 * 8), nn.ReLU(), nn.Unflatten(1, (4, 6, 8)), nn.Conv2d(4, 3, 3, padding=1)),
            ),
            (3, 6, 8),
        ),
        (nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten()), (3, 8, 9)),
        (nn.Sequential(nn.Linear(24, 24), nn.Unflatten(1, (2, 3, 4))), (24,)),
    ],
    ids=["image", "series", "autoencoder", "flattened by the model", "unflattened at the end"],
)
def test_outputs_with_positions_are_channels_last(model: nn.Module, shape: tuple[int, ...]) -> None:
    check(model, shape)


class Padded(nn.Module):
    """Two convolutions read the padding, with one in between of what was not padded."""

    def __init__(self, pad: Any, dims: int) -> None:
        super().__init__()
        conv: Any = nn.Conv2d if dims == 2 else nn.Conv1d
        self.stem, self.other = conv(3, 4, 1), conv(4, 4, 3)
        self.first, self.second = conv(4, 4, 3, padding=1), conv(4, 4, 2)
        self.positions = tuple(range(2, dims + 2))
        self.pad = pad

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        padded = self.pad(x)
        parts = [F.relu(layer(y)) for layer, y in ((self.first, padded), (self.other, x), (self.second, padded))]
        return torch.cat([y.mean(self.positions) for y in parts], 1)


@pytest.mark.parametrize(
    ("pad", "shape"),
    [
        (lambda x: F.pad(x, (1, 2, 0, 3)), (3, 6, 7)),
        (lambda x: F.pad(x, [2, 0], "constant", 0.0), (3, 6, 7)),
        (lambda x: F.dropout(F.pad(input=x, pad=(1, 1, 1, 1), mode="constant", value=0), 0.5, False), (3, 6, 7)),
        (nn.ZeroPad2d((1, 0, 2, 0)), (3, 6, 7)),
        (lambda x: F.pad(x, (3, 1)), (3, 12)),
    ],
)
def test_zero_padding_is_folded_into_every_convolution_that_reads_it(pad: Any, shape: tuple[int, ...]) -> None:
    supernet = check(Padded(pad, len(shape) - 1), shape)
    assert "reshape" not in [op.kind for op in supernet.graph.ops]


def test_vectors_and_images_through_flatten() -> None:
    check(nn.Sequential(nn.Linear(10, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 3)), (10,))
    check(nn.Sequential(nn.Flatten(), nn.Linear(48, 16), nn.ReLU(), nn.Linear(16, 3)), (3, 4, 4))
    check(nn.Sequential(nn.Unflatten(1, (2, 3, 4)), nn.Conv2d(2, 5, 3), nn.Flatten(), nn.Linear(10, 3)), (24,))


class Readers(nn.Module):
    """Two convolutions and what is done with them."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.a, self.b, self.spare = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 2)
        self.relu = nn.ReLU(inplace=True)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)  # type: ignore[no-any-return]


def unused_branch(m: Readers, x: Tensor) -> Tensor:
    y = m.a(x)
    m.spare(y.mean((2, 3)))
    return m.b(y)  # type: ignore[no-any-return]


def in_place(m: Readers, x: Tensor) -> Tensor:
    y = m.a(x)
    m.relu(y)
    z = m.b(y)
    return z.relu_() + y  # type: ignore[no-any-return]


def in_place_through_an_identity(m: Readers, x: Tensor) -> Tensor:
    y = m.a(x)
    shortcut = F.dropout(y, 0.5, m.training)
    return m.b(F.relu(y, inplace=True)) + shortcut  # type: ignore[no-any-return]


def shared_relu(m: Readers, x: Tensor) -> Tensor:
    return m.relu(m.b(m.relu(m.a(x))))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("function", "kinds"),
    [
        (unused_branch, ["conv", "conv"]),
        (in_place, ["conv", "conv", "add"]),
        (in_place_through_an_identity, ["conv", "conv", "add"]),
        (shared_relu, ["conv", "conv"]),
        (lambda m, x: m.b(m.a(x)) if m.training else m.a(x), ["conv"]),
    ],
    ids=["unused branch", "in place", "in place through an identity", "shared relu", "evaluation mode"],
)
def test_what_is_traced(function: Any, kinds: list[str]) -> None:
    supernet = check(Readers(function), (4, 6, 6))
    assert [op.kind for op in supernet.graph.ops] == kinds


def test_the_evaluation_branch_is_traced_of_a_model_in_training() -> None:
    model = Readers(lambda m, x: m.b(m.a(x)) if m.training else m.a(x)).train()
    assert len(convert(model, torch.randn(4, 4, 6, 6)).layers) == 1
    assert model.training


def test_a_single_layer() -> None:
    assert len(check(nn.Conv2d(4, 3, 3), (4, 6, 6)).layers) == 1


def test_the_users_model_is_not_changed() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(True), nn.Flatten(), nn.Linear(144, 2))
    model.train()
    model[1].eval()
    example = torch.randn(8, 1, 8, 8)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    kept = example.clone()
    convert(model, example)
    with pytest.raises(UnsupportedError):
        convert(model, torch.randn(8, 2, 8, 8))
    assert [m.training for m in model.modules()] == [True, True, False, True, True, True]
    model.eval()
    model[2].train()
    convert(model, example)
    assert [m.training for m in model.modules()] == [False, False, False, True, False, False]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(example, kept)
    convert(nn.Sequential(nn.ReLU(True), nn.Conv2d(1, 2, 3)), example)
    assert torch.equal(example, kept)


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


def plus_in_place(m: Readers, x: Tensor) -> Tensor:
    x = m.a(x)
    shortcut = x
    x += m.b(x)
    return x + shortcut


def relu_under_a_view(m: Readers, x: Tensor) -> Tensor:
    y = m.a(x)
    flat = y.flatten(1)
    y.relu_()
    return flat


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda m, x: m.a(torch.relu(m.a(x))), ["a: is used twice"]),
        (lambda m, x: (m.a(x), m.b(x)), ["one tensor", "tuple"]),
        (lambda m, x: {"a": m.a(x)}, ["one tensor", "dict"]),
        (lambda m, x: x, ["returns its input"]),
        (lambda m, x: F.dropout(x, 0.5, m.training), ["returns its input"]),
        (lambda m, x: F.pad(m.a(x), (1, 1)), ["pad", "in front of anything but a convolution"]),
        (lambda m, x: F.max_pool2d(F.pad(x, (1, 1)), 2), ["max_pool2d", "in front of anything but a convolution"]),
        (lambda m, x: m.a(F.pad(F.pad(x, (1, 1)), (1, 1))), ["pad_1", "in front of anything but a convolution"]),
        (lambda m, x: m.a(F.pad(x, (1, 1), value=1.0)), ["pad", "padding with 1.0"]),
        (lambda m, x: m.a(F.pad(x, (1, 1, 1, 1), "reflect")), ["pad", "padding with reflect"]),
        (lambda m, x: m.a(F.pad(x, (-1, 1))), ["pad", "padding of (-1, 1)"]),
        (lambda m, x: F.pad(m.a(x), (0, 0, 0, 0, 0, 1)), ["pad", "padding of"]),
        (lambda m, x: m.a(x) + x.size(2), ["add", "the constant 6 as an operand"]),
        (lambda m, x: m.a(x) * x.shape[0], ["mul"]),
        (lambda m, x: m.a(x).view(-1, 4), ["view", "batch of 4"]),
        (lambda m, x: m.a(x).flatten(), ["flatten", "batch of 4"]),
        (lambda m, x: m.a(x) + m.a(x).mean((2, 3), keepdim=True), ["a: is used twice"]),
        (lambda m, x: m.a(x) + m.b(x).mean((2, 3), keepdim=True), ["add", "different shapes"]),
        (lambda m, x: m.a(x).chunk(2, 1)[0], ["chunk", "several tensors"]),
        (lambda m, x: F.conv2d(x, m.a.weight), ["attribute a.weight", "nn.Conv"]),
        (lambda m, x: F.batch_norm(x, torch.zeros(4), torch.ones(4), m.a.bias), ["attribute", "nn.BatchNorm"]),
        (lambda m, x: m.a(x).log(), ["NaN"]),
        (plus_in_place, ["something else when it is traced"]),
        (relu_under_a_view, ["relu_", "in place", "reshape"]),
        (lambda m, x: m.a(x) if x.shape[0] > 2 else x, ["cannot be traced"]),
    ],
)
def test_what_a_trace_cannot_become_is_refused(function: Any, words: list[str]) -> None:
    model = Readers(function)
    with pytest.raises(UnsupportedError) as error:
        convert(model, torch.randn(4, 4, 6, 6))
    for word in words:
        assert word in str(error.value)
    assert all(m.training for m in model.modules())


def test_tied_weights() -> None:
    model = Readers(lambda m, x: m.b(m.a(x)))
    model.b.weight = model.a.weight
    with pytest.raises(UnsupportedError, match="b: shares its weights with a"):
        convert(model, torch.randn(4, 4, 6, 6))


@pytest.mark.parametrize(
    ("example", "words"),
    [
        (torch.randn(4, 20).numpy(), "not a ndarray"),
        (torch.randn(4, 20).double(), "float64"),
        (torch.zeros(4, 20, dtype=torch.int8), "int8"),
        (torch.randn(20), r"not \(20,\)"),
        (torch.randn(4, 20, 1, 1, 1), r"not \(4, 20, 1, 1, 1\)"),
        (torch.randn(1, 20), "two samples"),
        (torch.randn(0, 20), "two samples"),
        (torch.full((4, 20), torch.nan), "NaN"),
        (torch.full((4, 20), -torch.inf), "infinity"),
    ],
)
def test_bad_examples(example: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        convert(nn.Sequential(nn.Linear(20, 4), nn.BatchNorm1d(4)), example)


def test_models_that_cannot_take_the_example() -> None:
    with pytest.raises(UnsupportedError, match=r"cannot take the example, \(4, 21\): RuntimeError: mat1"):
        convert(nn.Linear(20, 4), torch.randn(4, 21))
    with pytest.raises(UnsupportedError, match=r"0\.weight is torch\.float64"):
        convert(nn.Sequential(nn.Linear(20, 4)).double(), torch.randn(4, 20))
    with pytest.raises(UnsupportedError, match="run the model once"):
        convert(nn.LazyLinear(4), torch.randn(4, 20))
    with pytest.raises(UnsupportedError, match="not a function"):
        convert(lambda x: x, torch.randn(4, 20))  # type: ignore[arg-type]


@pytest.mark.parametrize("widths", [(), (1, 8), (4, 9), (4, 4), 8, None, "48"])
def test_bad_widths(widths: Any) -> None:
    with pytest.raises(AssignmentError, match="widths"):
        convert(nn.Linear(4, 2), torch.randn(4, 4), widths)

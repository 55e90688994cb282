"""Float networks to start from, each sized to the data; `build` makes one by name.

    resnet8, ds_cnn, mobilenet_v1_025, autoencoder   the MLPerf Tiny topologies, exact at their standard shapes
    inception_time                                   for series
    mlp                                              for vectors, and for anything flattened

Nothing here knows about quantization: `nn.Conv*`, `nn.BatchNorm*`, `nn.ReLU`, zero padding, pooling and `nn.Linear`.
A model eats channels-first tensors made from samples of its `sample_shape` (channels last), by its `input_layout`:

    "image"    sample_shape (H, W, C)    forward takes (N, C, H, W)
    "series"   sample_shape (T, C)       forward takes (N, C, T)
    "vector"   sample_shape (F,)         forward takes (N, F)

`sample_shape` has the size of the data's own sample in C order, so feeding is a reshape: a series of (49, 40)
becomes the image (49, 40, 1) for ds_cnn, and any sample becomes a vector for mlp.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import nn

from caq.errors import ConfigError, nearest

CONV: dict[int, type[nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d}
NORM: dict[int, type[nn.Module]] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d}
ZERO_PAD: dict[int, type[nn.Module]] = {1: nn.ZeroPad1d, 2: nn.ZeroPad2d}
GLOBAL_POOL: dict[int, type[nn.Module]] = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d}
LAYOUTS = {1: "vector", 2: "series", 3: "image"}

Size = tuple[int, ...]


class ZooModel(nn.Module):
    """A network that knows what it eats; `sample_shape` is channels last and `input_layout` names its axes."""

    def __init__(self, sample_shape: Size) -> None:
        super().__init__()
        self.sample_shape = sample_shape
        self.input_layout = LAYOUTS[len(sample_shape)]


class ResNet8(ZooModel):
    """Three residual blocks of 16, 32 and 64 filters on images or series; logits (N, num_classes)."""

    def __init__(self, sample_shape: Size, num_classes: int) -> None:
        super().__init__(sample_shape)
        *size, channels = sample_shape
        dims = len(size)
        stem, out = conv_norm(channels, 16, 3, 1, tuple(size))
        self.stem = nn.Sequential(*stem, nn.ReLU())
        blocks = []
        for wide_in, wide_out, stride in ((16, 16, 1), (16, 32, 2), (32, 64, 2)):
            blocks.append(ResidualBlock(wide_in, wide_out, stride, out))
            out = blocks[-1].out_size
        self.blocks = nn.Sequential(*blocks)
        self.pool = GLOBAL_POOL[dims](1)
        self.classifier = nn.Linear(64, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.pool(self.blocks(self.stem(x))).flatten(1))


class ResidualBlock(nn.Module):
    """Two convolutions of 3 and a shortcut, which is a convolution of 1 where stride or filters change."""

    def __init__(self, channels: int, filters: int, stride: int, size: Size) -> None:
        super().__init__()
        first, self.out_size = conv_norm(channels, filters, 3, stride, size)
        second, _ = conv_norm(filters, filters, 3, 1, self.out_size)
        self.body = nn.Sequential(*first, nn.ReLU(), *second)
        shortcut, _ = conv_norm(channels, filters, 1, stride, size)
        # The reference model has no normalisation on the shortcut.
        self.shortcut = nn.Identity() if stride == 1 and channels == filters else nn.Sequential(*shortcut[:-1])
        self.relu = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(self.body(x) + self.shortcut(x))


class DepthwiseSeparable(ZooModel):
    """A strided convolution, then pairs of depthwise 3 and pointwise 1; logits (N, num_classes).

    stem   (filters, kernel, stride) of the first convolution
    pairs  (filters, stride) of each pair: the stride is the depthwise one's
    """

    def __init__(
        self,
        sample_shape: Size,
        num_classes: int,
        stem: tuple[int, Size, int],
        pairs: Sequence[tuple[int, int]],
    ) -> None:
        super().__init__(sample_shape)
        *size, channels = sample_shape
        filters, kernel, stride = stem
        layers, out = conv_norm(channels, filters, kernel, stride, tuple(size))
        layers.append(nn.ReLU())
        for wider, stride in pairs:
            depthwise, out = conv_norm(filters, filters, 3, stride, out, groups=filters)
            pointwise, out = conv_norm(filters, wider, 1, 1, out)
            layers += [*depthwise, nn.ReLU(), *pointwise, nn.ReLU()]
            filters = wider
        self.features = nn.Sequential(*layers)
        self.pool = GLOBAL_POOL[len(size)](1)
        self.classifier = nn.Linear(filters, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.pool(self.features(x)).flatten(1))


class InceptionModule(nn.Module):
    """A bottleneck, convolutions of several lengths and a pooled branch side by side: 4 * filters channels."""

    def __init__(self, channels: int, filters: int, kernels: Sequence[int], bottleneck: int) -> None:
        super().__init__()
        # One channel is already narrower than any bottleneck.
        narrow = bottleneck if channels > 1 else 1
        self.bottleneck = nn.Conv1d(channels, narrow, 1, bias=False) if channels > 1 else nn.Identity()
        self.convs = nn.ModuleList(nn.Conv1d(narrow, filters, k, padding=k // 2, bias=False) for k in kernels)
        self.pool = nn.MaxPool1d(3, stride=1, padding=1)
        self.pooled = nn.Conv1d(channels, filters, 1, bias=False)
        self.norm = nn.BatchNorm1d(filters * (len(kernels) + 1))
        self.relu = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        narrow = self.bottleneck(x)
        branches = [conv(narrow) for conv in self.convs]
        branches.append(self.pooled(self.pool(x)))
        return self.relu(self.norm(torch.cat(branches, 1)))


class InceptionBlock(nn.Module):
    """Up to three inception modules in a row; with a shortcut around them when `residual`."""

    def __init__(
        self, channels: int, modules: int, filters: int, kernels: Sequence[int], bottleneck: int, residual: bool
    ) -> None:
        super().__init__()
        width = filters * (len(kernels) + 1)
        inputs = [channels] + [width] * (modules - 1)
        self.body = nn.Sequential(*(InceptionModule(c, filters, kernels, bottleneck) for c in inputs))
        self.residual = residual
        if residual:
            self.shortcut = nn.Sequential(nn.Conv1d(channels, width, 1, bias=False), nn.BatchNorm1d(width))
            self.relu = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        body = self.body(x)
        return self.relu(body + self.shortcut(x)) if self.residual else body


class InceptionTime(ZooModel):
    """`depth` inception modules on a series with a residual around every three; logits (N, num_classes)."""

    def __init__(
        self,
        sample_shape: Size,
        num_classes: int,
        depth: int = 3,
        filters: int = 32,
        kernels: Sequence[int] = (9, 19, 39),
        bottleneck: int = 32,
    ) -> None:
        super().__init__(sample_shape)
        _, channels = sample_shape
        width = filters * (len(kernels) + 1)
        blocks = []
        for start in range(0, depth, 3):
            modules = min(3, depth - start)
            blocks.append(InceptionBlock(channels, modules, filters, kernels, bottleneck, modules == 3))
            channels = width
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool1d(1)
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.pool(self.blocks(x)).flatten(1))


class Perceptron(ZooModel):
    """Linear layers of the given widths, with normalisation and ReLU after each but the last."""

    def __init__(self, sample_shape: Size, hidden: Sequence[int], outputs: int) -> None:
        super().__init__(sample_shape)
        layers: list[nn.Module] = []
        features = sample_shape[0]
        for width in hidden:
            layers += [nn.Linear(features, width, bias=False), nn.BatchNorm1d(width), nn.ReLU()]
            features = width
        self.layers = nn.Sequential(*layers, nn.Linear(features, outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def conv_norm(
    channels: int, filters: int, kernel: int | Size, stride: int, size: Size, groups: int = 1
) -> tuple[list[nn.Module], Size]:
    """Returns [zero pad,] convolution, normalisation over `size`, and the size that comes out.

    Padding is TensorFlow's SAME: out = ceil(in / stride), with the odd zero at the end. It has a layer of its own
    only where the two ends differ.
    """
    dims = len(size)
    kernel = (kernel,) * dims if isinstance(kernel, int) else kernel
    out = tuple(math.ceil(n / stride) for n in size)
    total = [max((o - 1) * stride + k - n, 0) for n, o, k in zip(size, out, kernel, strict=True)]
    layers: list[nn.Module] = []
    padding: Size = tuple(t // 2 for t in total)
    if any(t % 2 for t in total):
        # torch lists the ends of the last axis first.
        ends = [end for t in reversed(total) for end in (t // 2, t - t // 2)]
        layers.append(ZERO_PAD[dims](tuple(ends)))
        padding = (0,) * dims
    layers.append(CONV[dims](channels, filters, kernel, stride, padding, groups=groups, bias=False))
    layers.append(NORM[dims](filters))
    return layers, out


def resnet8(input_shape: Size, num_classes: int) -> ZooModel:
    """ResNet-8 for images, and its 1-D form for series."""
    return ResNet8(_spatial(input_shape, "resnet8"), num_classes)


def ds_cnn(input_shape: Size, num_classes: int) -> ZooModel:
    """DS-CNN for images; a series (T, C) is the image (T, C, 1), as keyword spotting sees a spectrogram."""
    shape = _spatial(input_shape, "ds_cnn")
    image = shape if len(shape) == 3 else (*shape, 1)
    return DepthwiseSeparable(image, num_classes, (64, (10, 4), 2), [(64, 1)] * 4)


def mobilenet_v1_025(input_shape: Size, num_classes: int) -> ZooModel:
    """MobileNetV1 with a quarter of the filters for images, and its 1-D form for series."""
    shape = _spatial(input_shape, "mobilenet_v1_025")
    pairs = [(16, 1), (32, 2), (32, 1), (64, 2), (64, 1), (128, 2), *[(128, 1)] * 5, (256, 2), (256, 1)]
    return DepthwiseSeparable(shape, num_classes, (8, (3,) * (len(shape) - 1), 2), pairs)


def autoencoder(input_shape: Size, num_classes: int) -> ZooModel:
    """The anomaly detector: returns the reconstruction (N, F) of the flattened sample; `num_classes` is unused."""
    features = math.prod(input_shape)
    return Perceptron((features,), [128, 128, 128, 128, 8, 128, 128, 128, 128], features)


def inception_time(input_shape: Size, num_classes: int, depth: int = 3, filters: int = 32) -> ZooModel:
    """InceptionTime for series; an image (H, W, C) is a series of H steps with W * C channels."""
    steps, *rest = _spatial(input_shape, "inception_time")
    if depth < 1 or filters < 1:
        raise ConfigError(f"inception_time: depth and filters must be at least 1, not {depth} and {filters}")
    return InceptionTime((steps, math.prod(rest)), num_classes, depth, filters)


def mlp(input_shape: Size, num_classes: int, hidden: Sequence[int] = (128, 128)) -> ZooModel:
    """A perceptron on the flattened sample."""
    return Perceptron((math.prod(input_shape),), hidden, num_classes)


def _spatial(input_shape: Size, name: str) -> Size:
    if len(input_shape) == 1:
        raise ConfigError(f"{name} needs images (H, W, C) or series (T, C), not vectors; use mlp")
    return input_shape


MODELS: dict[str, Callable[..., ZooModel]] = {
    "resnet8": resnet8,
    "ds_cnn": ds_cnn,
    "mobilenet_v1_025": mobilenet_v1_025,
    "autoencoder": autoencoder,
    "inception_time": inception_time,
    "mlp": mlp,
}


def build(name: str, input_shape: Sequence[int], num_classes: int) -> ZooModel:
    """Makes the named model for samples of `input_shape`: (H, W, C), (T, C) or (F,), channels last.

    Raises ConfigError on an unknown name, on a shape that the model cannot eat, and on fewer than one class.
    """
    if name not in MODELS:
        raise ConfigError(f"unknown model {name!r}{nearest(name, MODELS)}")
    shape = tuple(input_shape)
    if len(shape) not in LAYOUTS or min(shape) < 1:
        raise ConfigError(f"{name}: input_shape must be (H, W, C), (T, C) or (F,), not {shape}")
    if num_classes < 1:
        raise ConfigError(f"{name}: num_classes must be at least 1, not {num_classes}")
    return MODELS[name](shape, num_classes)

"""Makes what the peers and we run: one float network with seeded random weights, and its exports.

`make` fills a folder with
    raw.npy         (8, ...) uint8 samples, channels last: what our engine eats
    inputs.npy      (8, ...) float32, the same samples as the float network eats them, channels first
    expected.npy    (8, outputs) float32, the float network's answers
    calibration.npy (32, ...) float32, other samples, for the peers' quantizers
    float.pt        the float network
    ours.caq        our artifact with all widths; ours-w8.caq, ours-w4.caq, ours-w2.caq: with one width each
    float.onnx      the float network, batch norm folded
    int8.onnx       the same with QDQ: uint8 activations, int8 weights per channel (not for the matrix-vector products)

Weights are random, but batch-norm statistics are those of random samples (blocks of colour and noise), so that signals
neither vanish nor blow up, outputs differ between samples, and a peer that answers nonsense is noticed.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_linear_bn_eval

from benchmarks.topologies import Topology
from caq import artifact
from caq.data import Dataset, from_arrays
from caq.model import Model
from caq.supernet import zoo
from caq.supernet.batches import samples as encoded
from caq.supernet.conversion import convert
from caq.supernet.lower import lower
from caq.supernet.pipeline import Prepared, assemble, prepare, task_of
from caq.supernet.train import TrainConfig, predict, reestimate_norms

CALIBRATION, CHECKED = 32, 8
#: Widths that get a file of their own, to compare sizes with.
SEPARATE = (8, 4, 2)


def conv_norm(channels: int, filters: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """Convolution with torch's usual padding, and its norm."""
    conv = nn.Conv2d(channels, filters, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(filters)]


class InvertedResidual(nn.Module):
    """Pointwise expansion, depthwise 3 x 3, linear pointwise projection; a shortcut where shapes allow it."""

    def __init__(self, channels: int, filters: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = channels * expansion
        layers = [*conv_norm(channels, wide, 1), nn.ReLU6()] if expansion > 1 else []
        layers += [*conv_norm(wide, wide, 3, stride, wide), nn.ReLU6(), *conv_norm(wide, filters, 1)]
        self.body = nn.Sequential(*layers)
        self.shortcut = stride == 1 and channels == filters

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.shortcut else self.body(x)


class BasicBlock(nn.Module):
    """ResNet's two convolutions of 3 x 3 around a shortcut."""

    def __init__(self, channels: int, filters: int, stride: int) -> None:
        super().__init__()
        first, second = conv_norm(channels, filters, 3, stride), conv_norm(filters, filters, 3)
        self.body = nn.Sequential(*first, nn.ReLU(), *second)
        same = stride == 1 and channels == filters
        self.shortcut = nn.Identity() if same else nn.Sequential(*conv_norm(channels, filters, 1, stride))
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.body(x) + self.shortcut(x))


def mobilenet_v2(outputs: int) -> nn.Module:
    """MobileNetV2 1.0, as torchvision has it."""
    table = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
    layers, channels = [*conv_norm(3, 32, 3, 2), nn.ReLU6()], 32
    for expansion, filters, count, stride in table:
        for i in range(count):
            layers.append(InvertedResidual(channels, filters, stride if i == 0 else 1, expansion))
            channels = filters
    layers += [*conv_norm(channels, 1280, 1), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(1280, outputs))


def resnet18(outputs: int) -> nn.Module:
    """ResNet-18, as torchvision has it."""
    layers, channels = [*conv_norm(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)], 64
    for filters, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [BasicBlock(channels, filters, stride), BasicBlock(filters, filters, 1)]
        channels = filters
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, outputs))


def random_samples(shape: tuple[int, ...], count: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Blocks of random level under noise, (count, *shape)."""
    *size, channels = shape if len(shape) > 1 else (*shape, 1)
    blocks = [-(-n // 6) for n in size]
    x = rng.normal(size=(count, *(-(-n // b) for n, b in zip(size, blocks, strict=True)), channels))
    for axis, (n, block) in enumerate(zip(size, blocks, strict=True), start=1):
        x = np.repeat(x, block, axis).take(range(n), axis)
    x = 128 + 45 * (x + 0.3 * rng.normal(size=x.shape))
    return x.clip(0, 255).astype(np.uint8).reshape(count, *shape)


def float_network(topology: Topology) -> nn.Module:
    """The topology with torch's own random weights."""
    if topology.name.startswith("gemv"):
        return nn.Sequential(nn.Linear(topology.outputs, topology.outputs, bias=False))
    if topology.name == "mobilenet_v2":
        return mobilenet_v2(topology.outputs)
    if topology.name == "resnet18":
        return resnet18(topology.outputs)
    return zoo.build(topology.name, topology.sample_shape, topology.outputs)


@torch.no_grad()
def calibrated(topology: Topology, seed: int) -> tuple[Dataset, Prepared]:
    """Random data, and the float network with random affine norms and with the data's own statistics."""
    rng = np.random.default_rng(seed)
    x = random_samples(topology.sample_shape, CALIBRATION + CHECKED, rng)
    names = np.array([str(i) for i in range(topology.outputs)])
    labels = np.zeros(len(x), np.int64)
    split = {"train": slice(CALIBRATION), "test": slice(CALIBRATION, None)}
    arrays = {f"{k}_{part}": v[at] for part, at in split.items() for k, v in (("x", x), ("y", labels))}
    data = from_arrays(topology.name, arrays | {"label_names": names})
    torch.manual_seed(seed)
    network = float_network(topology)
    prepared = prepare(data, network, seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.weight.uniform_(0.7, 1.3)
            module.bias.normal_(0, 0.2)
            module.momentum = None  # cumulative average
    network.train()
    network(prepared.example(CALIBRATION))
    network.eval()
    return data, prepared


@torch.no_grad()
def our_model(topology: Topology, data: Dataset, prepared: Prepared, widths: tuple[int, ...], seed: int) -> Model:
    """Our artifact without training: norms re-estimated for each width on the calibration samples."""
    supernet = convert(prepared.network, prepared.example(CALIBRATION), widths)
    for width in widths:
        reestimate_norms(supernet, prepared.train, supernet.graph.uniform(width))
    supernet.set_assignment(supernet.graph.uniform(widths[-1]))
    supernet.output_step.copy_(predict(supernet, prepared.train).abs().max() * 4 / 2**15)
    points = [(f"w{w}a{w}", supernet.graph.uniform(w), None) for w in reversed(widths)]
    config = TrainConfig(epochs=1, seed=seed, task=task_of(topology.name))
    return assemble(lower(supernet, prepared.scaling.step), data, prepared, points, config)


def folded(network: nn.Module) -> nn.Module:
    """A copy whose linear layers have taken in the norms after them, which no exporter does by itself."""
    network = copy.deepcopy(network)
    for module in network.modules():
        if isinstance(module, nn.Sequential):
            for i, (first, second) in enumerate(pairwise(list(module))):
                if isinstance(first, nn.Linear) and isinstance(second, nn.BatchNorm1d):
                    module[i], module[i + 1] = fuse_linear_bn_eval(first, second), nn.Identity()
    return network


def export(network: nn.Module, inputs: Tensor, path: Path) -> None:
    """Writes the float network as ONNX, for one sample, with constants and padding folded by ONNX Runtime."""
    import onnxruntime

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter without dependencies of its own is called legacy
        torch.onnx.export(
            network, (inputs[:1],), str(path), dynamo=False, opset_version=17, input_names=["x"], output_names=["y"]
        )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(path)
    onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])


def quantize(source: Path, target: Path, calibration: NDArray[np.float32]) -> None:
    """Writes the QDQ model: uint8 activations and int8 weights per channel, steps from the calibration samples."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.samples: Iterator[NDArray[np.float32]] = iter(calibration)

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            sample = next(self.samples, None)
            return None if sample is None else {"x": sample[np.newaxis]}

    logging.disable()  # it asks for the preprocessing that is done
    quantize_static(
        str(source),
        str(target),
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )


def make(topology: Topology, folder: Path, seed: int) -> None:
    """Writes everything; without onnx and onnxruntime all but their two files."""
    folder.mkdir(parents=True, exist_ok=True)
    data, prepared = calibrated(topology, seed)
    test = encoded(data.x_test, data.y_test, prepared.scaling, prepared.input_shape, data.kind)
    inputs = prepared.as_network_input(next(test.plain(CHECKED))[0])
    with torch.no_grad():
        expected = torch.cat([prepared.network(x[None]) for x in inputs])
    np.save(folder / "raw.npy", data.x_test)
    np.save(folder / "inputs.npy", inputs.numpy())
    np.save(folder / "calibration.npy", prepared.example(CALIBRATION).numpy())
    np.save(folder / "expected.npy", expected.numpy())
    network = folded(prepared.network)
    torch.save(network, folder / "float.pt")
    try:
        export(network, inputs, folder / "float.onnx")
        if not topology.name.startswith("gemv"):
            quantize(folder / "float.onnx", folder / "int8.onnx", np.load(folder / "calibration.npy"))
    except ImportError:
        pass  # the peers that need them say what to install
    for width in SEPARATE:
        artifact.save(our_model(topology, data, prepared, (width,), seed), folder / f"ours-w{width}.caq")
    artifact.save(our_model(topology, data, prepared, topology.widths, seed), folder / "ours.caq")

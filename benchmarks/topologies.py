"""What bench_engine times: names, shapes and sources. Nothing here needs more than the standard library."""

from __future__ import annotations

from dataclasses import dataclass

WIDTHS = (2, 3, 4, 5, 6, 8)


@dataclass(frozen=True)
class Topology:
    """A network by name.

    sample_shape: of one sample, channels last. tflite: the int8 file of others that LiteRT runs; reference: the float
    file that it was made from, which its outputs are compared with, and the (offset, factor) that this one's input
    needs. Both are looked for in the folder --tflite.
    """

    name: str
    title: str
    sample_shape: tuple[int, ...]
    outputs: int
    tflite: str = ""
    reference: str = ""
    widths: tuple[int, ...] = WIDTHS


TINY = (
    Topology("resnet8", "ResNet-8", (32, 32, 3), 10, "resnet8_int8.tflite", "resnet8_fp32.onnx"),
    Topology("ds_cnn", "DS-CNN", (49, 10, 1), 12, "dscnn_int8.tflite", "dscnn_fp32.onnx"),
    Topology("mobilenet_v1_025", "MobileNetV1-0.25", (96, 96, 3), 2, "vww_int8.tflite"),
    Topology("autoencoder", "FC autoencoder", (640,), 640, "ad_int8.tflite", "ad_fp32.onnx"),
)
LARGE = (
    Topology("mobilenet_v2", "MobileNetV2", (224, 224, 3), 1000, "mobilenet_v2_int8.tflite"),
    Topology("resnet18", "ResNet-18", (224, 224, 3), 1000, "resnet18_int8.tflite"),
)
NETWORKS = (*TINY, *LARGE)
GEMV = tuple(Topology(f"gemv_{n}", f"{n} x {n}", (n,), n, widths=(2, 4, 8)) for n in (1024, 4096))
TOPOLOGIES = {topology.name: topology for topology in (*NETWORKS, *GEMV)}

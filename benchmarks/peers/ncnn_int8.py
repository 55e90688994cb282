"""ncnn in int8. Its wheel brings no converter, so one for the few operations of these networks stands here.

Weights have a scale per output channel, activations one by their largest magnitude on the calibration samples, as
ncnn2table has it; where only convolutions read a result it stays in int8, as ncnn2int8 has it.
Timed: an extractor from input to output.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers import Floats, Missing, Session, last_sample
from benchmarks.topologies import Topology

PIP = "ncnn onnx onnxruntime"
PACKAGES = ("ncnn",)
COLD = """
import numpy as np
import ncnn
net = ncnn.Net()
net.opt.num_threads = 1
net.load_param(folder + "/ncnn.param")
net.load_model(folder + "/ncnn.bin")
extractor = net.create_extractor()
extractor.input("x", ncnn.Mat(np.zeros((3, 32, 32), np.float32)))
np.array(extractor.extract("y")[1])
answered()
"""
INT8_TAG = struct.pack("<I", 0x000D4B38)
WEIGHTED = ("Conv", "Gemm", "MatMul")


def prepare(topology: Topology, folder: Path, sources: Path | None) -> None:
    if topology.name.startswith("gemv"):
        raise Missing("no comparable weight-only product")
    if not (folder / "float.onnx").exists():
        raise Missing("no ONNX was made: pip install onnx onnxruntime")
    if not (folder / "ncnn.bin").exists():
        _Writer(folder).write()


def _ranges(model: Any, samples: Floats) -> dict[str, float]:
    """Largest magnitude of every tensor on the samples."""
    import onnx
    import onnxruntime

    names = [model.graph.input[0].name, *(name for node in model.graph.node for name in node.output)]
    del model.graph.output[:]
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names[1:])
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    largest = dict.fromkeys(names, 0.0)
    for x in samples:
        found = session.run(names[1:], {names[0]: x[np.newaxis]})
        for name, value in zip(names, [x, *found], strict=True):
            largest[name] = max(largest[name], float(np.abs(value).max()))
    return largest


class _Writer:
    """Walks the float ONNX once and writes ncnn.param and ncnn.bin."""

    def __init__(self, folder: Path) -> None:
        import onnx
        from onnx import numpy_helper

        self.folder = folder
        model = onnx.load(folder / "float.onnx")
        self.weights = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        self.nodes = list(model.graph.node)
        for node in self.nodes:
            if node.op_type == "Constant":
                self.weights[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
        self.nodes = [node for node in self.nodes if node.op_type != "Constant"]
        self.output = model.graph.output[0].name
        self.ranges = _ranges(model, np.load(folder / "calibration.npy"))
        self.readers: dict[str, list[Any]] = {}
        for node in self.nodes:
            for name in node.input:
                if name and name not in self.weights:
                    self.readers.setdefault(name, []).append(node)
        self.lines: list[str] = []
        self.blobs = 0
        self.bin = bytearray()
        self.alias: dict[str, str] = {}  # tensors that another blob holds already
        self.copies: dict[str, list[str]] = {}  # tensors read more than once, after ncnn's Split
        self.pads: dict[str, list[int]] = {}

    def write(self) -> None:
        self._layer("Input", [], "x")
        done: set[int] = set()
        for i, node in enumerate(self.nodes):
            if i in done:
                continue
            attributes = {a.name: a for a in node.attribute}
            out = node.output[0]
            if node.op_type == "Pad":  # into the convolution that follows
                *_, top, left = self.weights[node.input[1]][:4]
                *_, bottom, right = self.weights[node.input[1]][4:]
                self.pads[out] = [int(v) for v in (left, top, right, bottom)]
                self.alias[out] = node.input[0]
            elif node.op_type in WEIGHTED:
                after = self._only_reader(out)
                clip = None
                if after is not None and after.op_type in ("Relu", "Clip"):
                    done.add(self.nodes.index(after))
                    clip, out = after, after.output[0]
                self._weighted(node, attributes, clip, out)
            elif node.op_type == "Relu":
                self._layer("ReLU", [self._take(node.input[0])], out)
            elif node.op_type == "Clip":
                low, high = (float(self.weights[name]) for name in node.input[1:3])
                self._layer("Clip", [self._take(node.input[0])], out, f"0={low:e} 1={high:e}")
            elif node.op_type == "Add":
                self._layer("BinaryOp", [self._take(name) for name in node.input], out, "0=0")
            elif node.op_type == "GlobalAveragePool":
                self._layer("Pooling", [self._take(node.input[0])], out, "0=1 4=1")
            elif node.op_type == "MaxPool":
                kernel, stride = attributes["kernel_shape"].ints[0], attributes["strides"].ints[0]
                pad = attributes["pads"].ints[0]
                # 5=1: output sizes round down, as ONNX has it
                self._layer("Pooling", [self._take(node.input[0])], out, f"0=0 1={kernel} 2={stride} 3={pad} 5=1")
            elif node.op_type == "Flatten":
                self._layer("Flatten", [self._take(node.input[0])], out)
            else:
                raise Missing(f"the converter here knows no {node.op_type}")
        text = "\n".join(["7767517", f"{len(self.lines)} {self.blobs}", *self.lines]) + "\n"
        (self.folder / "ncnn.param").write_text(text)
        (self.folder / "ncnn.bin").write_bytes(self.bin)

    def _only_reader(self, name: str) -> Any:
        readers = self.readers.get(name, [])
        return readers[0] if len(readers) == 1 else None

    def _source(self, name: str) -> str:
        return self._source(self.alias[name]) if name in self.alias else name

    def _take(self, name: str) -> str:
        name = self._source(name)
        return self.copies[name].pop() if name in self.copies else name

    def _layer(self, kind: str, inputs: list[str], out: str, parameters: str = "") -> None:
        shown = "y" if out == self.output else out
        self.lines.append(f"{kind} {kind}_{len(self.lines)} {len(inputs)} 1 {' '.join([*inputs, shown])} {parameters}")
        self.blobs += 1
        readers = len(self._final_readers(out))
        if readers > 1:
            self.copies[out] = [f"{out}_{k}" for k in range(readers)]
            names = " ".join(self.copies[out])
            self.lines.append(f"Split Split_{len(self.lines)} 1 {readers} {shown} {names}")
            self.blobs += readers

    def _final_readers(self, name: str) -> list[Any]:
        """Who reads a tensor, seeing through paddings that are folded."""
        found = []
        for node in self.readers.get(name, []):
            found += self._final_readers(node.output[0]) if node.op_type == "Pad" else [node]
        return found

    def _weighted(self, node: Any, attributes: dict[str, Any], clip: Any, out: str) -> None:
        given = node.input[0]
        weights: Floats = self.weights[node.input[1]]
        if node.op_type == "MatMul" or ("transB" in attributes and attributes["transB"].i == 0):
            weights = weights.T
        count = len(weights)
        bias = self.weights[node.input[2]] if len(node.input) > 2 else None
        rows = np.abs(weights.reshape(count, -1)).max(1)
        scales = 127 / np.maximum(rows, 1e-9)
        codes = np.clip(np.round(weights.reshape(count, -1) * scales[:, np.newaxis]), -127, 127).astype(np.int8)
        readers = self._final_readers(out)
        stays = bool(readers) and all(r.op_type in WEIGHTED[:1] for r in readers) and node.op_type == "Conv"
        activation = ""
        if clip is not None:
            six = clip.op_type == "Clip"
            activation = f" 9=3 -23310=2,0.0,{float(self.weights[clip.input[2]]):e}" if six else " 9=1"
        if node.op_type == "Conv":
            kernel, stride = attributes["kernel_shape"].ints, attributes["strides"].ints
            group = attributes["group"].i if "group" in attributes else 1
            top, left, bottom, right = attributes["pads"].ints if "pads" in attributes else (0, 0, 0, 0)
            if given in self.pads:
                left, top, right, bottom = self.pads[given]
            kind = "ConvolutionDepthWise" if group > 1 else "Convolution"
            term = (1 if group > 1 else 2) + 100 * stays
            parameters = f"0={count} 1={kernel[1]} 11={kernel[0]} 3={stride[1]} 13={stride[0]} 4={left} 14={top}"
            parameters += f" 15={right} 16={bottom} 5={int(bias is not None)} 6={codes.size} 8={term}"
            parameters += f" 7={group}" if group > 1 else ""
        else:
            kind = "InnerProduct"
            parameters = f"0={count} 1={int(bias is not None)} 2={codes.size} 8=2"
        self.bin += INT8_TAG + codes.tobytes() + bytes(-codes.size % 4)
        if bias is not None:
            self._floats(bias)
        self._floats(scales)
        self._floats(np.array([127 / self.ranges[given]]))
        if stays:
            self._floats(np.array([127 / self.ranges[out]]))
        self._layer(kind, [self._take(given)], out, parameters + activation)

    def _floats(self, values: NDArray[Any]) -> None:
        self.bin += values.astype("<f4").tobytes()


def load(folder: Path, threads: int) -> dict[str, Session]:
    import ncnn

    net = ncnn.Net()
    net.opt.num_threads = threads
    if net.load_param(str(folder / "ncnn.param")) or net.load_model(str(folder / "ncnn.bin")):
        raise Missing("ncnn does not read the model that was made for it")
    held: list[Any] = [ncnn.Mat(last_sample(folder)[0])]

    def give(sample: Floats) -> None:
        held[:] = [ncnn.Mat(sample).clone()]

    def run() -> Any:
        extractor = net.create_extractor()
        extractor.input("x", held[0])
        return extractor.extract("y")

    def answers(inputs: Floats) -> Floats:
        found = []
        for x in inputs:
            give(x)
            found.append(np.array(run()[1]).reshape(-1))
        return np.stack(found)

    return {"int8": Session(run, answers)}

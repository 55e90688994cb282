"""ONNX Runtime on the QDQ ONNX, optimized beforehand; and its matrix-vector products with weights of 8, 4 and 2 bits.

Timed: run_with_iobinding on bound buffers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers import Floats, Missing, Session
from benchmarks.topologies import Topology

PIP = "onnxruntime onnx"
PACKAGES = ("onnxruntime", "onnx")
COLD = """
import numpy as np
import onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
session = onnxruntime.InferenceSession(folder + "/ort-int8.onnx", options, providers=["CPUExecutionProvider"])
session.run(None, {"x": np.zeros(session.get_inputs()[0].shape, np.float32)})
answered()
"""
BLOCK = 128
BITS = (8, 4, 2)


def prepare(topology: Topology, folder: Path, sources: Path | None) -> None:
    """Writes what ONNX Runtime's own optimizer makes of the models, which `load` then takes as it is."""
    import onnxruntime

    if topology.name.startswith("gemv"):
        if not (folder / "ort-2 bits.onnx").exists():
            weights = _weights(folder)
            for bits in BITS:
                matmul_nbits(weights, bits, folder)
            _optimize(onnxruntime, folder / "float.onnx", folder / "ort-fp32.onnx")
        return
    if not (folder / "int8.onnx").exists():
        raise Missing("no QDQ ONNX was made: pip install onnx onnxruntime")
    _optimize(onnxruntime, folder / "int8.onnx", folder / "ort-int8.onnx")


def _optimize(onnxruntime: Any, source: Path, target: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(target)
    onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])


def _weights(folder: Path) -> Floats:
    """The (outputs, inputs) matrix of the float network."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(folder / "float.onnx").graph
    matrix = numpy_helper.to_array(graph.initializer[0])
    node = graph.node[0]
    transposed = any(a.name == "transB" and a.i == 1 for a in node.attribute)
    return matrix if transposed else np.ascontiguousarray(matrix.T)


def block_codes(weights: Floats, bits: int) -> tuple[NDArray[np.uint8], Floats]:
    """Codes (N, blocks, BLOCK) around the zero point 2 ** (bits - 1), and a scale (N, blocks) for each block."""
    blocks = weights.reshape(len(weights), -1, BLOCK)
    half = 2 ** (bits - 1)
    scales = np.abs(blocks).max(2) / half
    codes = np.clip(np.round(blocks / scales[..., np.newaxis]) + half, 0, 2 * half - 1)
    return codes.astype(np.uint8), scales.astype(np.float32)


def pack_codes(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """The codes of the last axis, lowest bits of a byte first."""
    each = 8 // bits
    padded = np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, -codes.shape[-1] % each)])
    groups = padded.reshape(*padded.shape[:-1], -1, each)
    return np.bitwise_or.reduce(groups << (np.arange(each, dtype=np.uint8) * bits), axis=-1).astype(np.uint8)


def matmul_nbits(weights: Floats, bits: int, folder: Path) -> None:
    """Writes a model of one MatMulNBits (block 128, accuracy_level 4: int8 arithmetic), and numpy's own answers.

    Zero points are left out, since 2 ** (bits - 1) is what ONNX Runtime then takes; given, they cost it 1 to 9 %.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    outputs, inputs = weights.shape
    codes, scales = block_codes(weights, bits)
    half = 2 ** (bits - 1)
    node = helper.make_node(
        "MatMulNBits",
        ["x", "codes", "scales"],
        ["y"],
        domain="com.microsoft",
        K=inputs,
        N=outputs,
        bits=bits,
        block_size=BLOCK,
        accuracy_level=4,
    )
    graph = helper.make_graph(
        [node],
        "gemv",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, inputs])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, outputs])],
        [
            numpy_helper.from_array(pack_codes(codes, bits), "codes"),
            numpy_helper.from_array(scales.reshape(-1), "scales"),
        ],
    )
    sets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=sets, ir_version=9), folder / f"ort-{bits} bits.onnx")
    values = (codes.astype(np.float32) - half) * scales[..., np.newaxis]
    answers = np.load(folder / "inputs.npy") @ values.reshape(outputs, inputs).T
    np.save(folder / f"expected-{bits} bits.npy", answers)


def load(folder: Path, threads: int) -> dict[str, Session]:
    variants = ["int8"] if (folder / "ort-int8.onnx").exists() else [*(f"{b} bits" for b in BITS), "fp32"]
    return {variant: _session(folder, variant, threads) for variant in variants}


def _session(folder: Path, variant: str, threads: int) -> Session:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    path = str(folder / f"ort-{variant}.onnx")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    given, made = session.get_inputs()[0], session.get_outputs()[0]
    x = onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros(given.shape, np.float32))
    y = onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros(made.shape, np.float32))
    binding = session.io_binding()
    binding.bind_ortvalue_input(given.name, x)
    binding.bind_ortvalue_output(made.name, y)
    run, bound = session._sess.run_with_iobinding, binding._iobinding

    def answers(inputs: Floats) -> Floats:
        found = []
        for sample in inputs:
            x.update_inplace(np.ascontiguousarray(sample[np.newaxis]))
            run(bound, None)
            found.append(y.numpy()[0].copy())
        return np.stack(found)

    expected = f"expected-{variant}.npy" if variant.endswith("bits") else "expected.npy"
    return Session(lambda: run(bound, None), answers, expected=expected)

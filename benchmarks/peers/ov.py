"""OpenVINO on the QDQ ONNX, for latency, with its model cache. Timed: a request's infer on tensors that it has."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers import Floats, Missing, Session
from benchmarks.topologies import Topology

PIP = "openvino"
PACKAGES = ("openvino",)
COLD = """
import numpy as np
import openvino
core = openvino.Core()
core.set_property({"CACHE_DIR": folder + "/openvino"})
settings = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
compiled = core.compile_model(folder + "/int8.onnx", "CPU", settings)
compiled.create_infer_request().infer({0: np.zeros(tuple(compiled.input(0).shape), np.float32)})
answered()
"""


def prepare(topology: Topology, folder: Path, sources: Path | None) -> None:
    if topology.name.startswith("gemv"):
        raise Missing("no comparable weight-only product")
    if not (folder / "int8.onnx").exists():
        raise Missing("no QDQ ONNX was made: pip install onnx onnxruntime")
    load(folder, 1)


@cache
def _core() -> Any:
    import openvino

    return openvino.Core()


def load(folder: Path, threads: int) -> dict[str, Session]:
    core = _core()
    core.set_property({"CACHE_DIR": str(folder / "openvino")})
    settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
    request = core.compile_model(str(folder / "int8.onnx"), "CPU", settings).create_infer_request()
    tensor = request.get_input_tensor(0)

    def answers(inputs: Floats) -> Floats:
        found = []
        for x in inputs:
            np.copyto(tensor.data, x[np.newaxis])
            request.infer()
            found.append(request.get_output_tensor(0).data[0].copy())
        return np.stack(found)

    return {"int8": Session(request.infer, answers)}

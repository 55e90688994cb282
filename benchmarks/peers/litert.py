"""LiteRT (TensorFlow Lite) with XNNPACK: the int8 files of others where there are any, else litert-torch's conversion.

Timed: the interpreter's invoke, without copying inputs and outputs.
"""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path

import numpy as np

from benchmarks.peers import Floats, Missing, Session
from benchmarks.topologies import Topology

PIP = "ai-edge-litert; for topologies without a .tflite file litert-torch"
PACKAGES = ("ai-edge-litert", "litert-torch")
COLD = """
import numpy as np
from ai_edge_litert.interpreter import Interpreter
i = Interpreter(folder + "/int8.tflite", num_threads=1)
i.allocate_tensors()
given = i.get_input_details()[0]
i.set_tensor(given["index"], np.zeros(given["shape"], given["dtype"]))
i.invoke()
i.get_tensor(i.get_output_details()[0]["index"])
answered()
"""


def prepare(topology: Topology, folder: Path, sources: Path | None) -> None:
    target = folder / "int8.tflite"
    if target.exists():
        return
    if topology.name.startswith("gemv"):
        raise Missing("no comparable weight-only product")
    given = sources / topology.tflite if sources is not None else None
    if given is None or not given.exists():
        convert(topology, folder)
        return
    if topology.reference and (given.parent / topology.reference).exists():
        _answers_of_reference(given.parent / topology.reference, folder)
    shutil.copyfile(given, target)


def _answers_of_reference(reference: Path, folder: Path) -> None:
    """What the float model, whose weights others trained, answers to our samples."""
    try:
        import onnxruntime
    except ImportError:
        return  # then the answers are not compared

    session = onnxruntime.InferenceSession(str(reference), providers=["CPUExecutionProvider"])
    raw = np.load(folder / "raw.npy").astype(np.float32)
    inputs = raw if len(raw.shape) == 4 and raw.shape[-1] == 3 else (raw - 128) / 16
    name = session.get_inputs()[0].name
    np.save(folder / "tflite_inputs.npy", inputs)
    np.save(
        folder / "tflite_expected.npy", np.concatenate([session.run(None, {name: x[np.newaxis]})[0] for x in inputs])
    )


def convert(topology: Topology, folder: Path) -> None:
    """Our own float network through litert-torch, then int8 by ai-edge-quantizer's static recipe."""
    try:
        import litert_torch
        import torch
        from ai_edge_litert.interpreter import Interpreter
        from ai_edge_quantizer import quantizer, recipe
    except ImportError as e:
        raise Missing(f"no {topology.tflite} in --tflite and no converter: {e}; pip install litert-torch") from None
    network = torch.load(folder / "float.pt", weights_only=False).eval()
    samples = _channels_last(np.load(folder / "calibration.npy"))
    if samples.ndim == 4:
        network = litert_torch.to_channel_last_io(network, args=[0])
    path = folder / "float.tflite"
    litert_torch.convert(network, (torch.from_numpy(samples[:1]),)).export(str(path))
    (key, signature), *_ = Interpreter(str(path)).get_signature_list().items()
    work = quantizer.Quantizer(str(path))
    work.load_quantization_recipe(recipe.static_wi8_ai8())
    ranges = work.calibrate({key: [{signature["inputs"][0]: x[np.newaxis]} for x in samples]})
    work.quantize(ranges).export_model(str(folder / "int8.tflite"), overwrite=True)


def _channels_last(x: Floats) -> Floats:
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1)) if x.ndim == 4 else x


@cache
def _expected(folder: Path) -> str:
    """What to compare with: the reference's answers to its own samples, our float network's if it was converted."""
    if (folder / "tflite_expected.npy").exists():
        return "tflite_expected.npy"
    return "expected.npy" if (folder / "float.tflite").exists() else ""


def load(folder: Path, threads: int) -> dict[str, Session]:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(folder / "int8.tflite"), num_threads=threads)
    interpreter.allocate_tensors()
    # Interpreter.invoke would first look for arrays that still point into the tensors.
    invoke = interpreter._interpreter.Invoke
    given, made = interpreter.get_input_details()[0], interpreter.get_output_details()[0]

    def answer(x: Floats) -> Floats:
        if given["dtype"] == np.int8:
            step, zero = given["quantization"]
            x = np.clip(np.round(x / step + zero), -128, 127).astype(np.int8)
        interpreter.set_tensor(given["index"], x.reshape(given["shape"]))
        invoke()
        y = interpreter.get_tensor(made["index"])[0].astype(np.float32)
        step, zero = made["quantization"]
        return (y - zero) * step if made["dtype"] == np.int8 else y

    expected = _expected(folder)

    def answers(inputs: Floats) -> Floats:
        theirs = expected == "tflite_expected.npy"
        samples = np.load(folder / "tflite_inputs.npy") if theirs else _channels_last(inputs)
        return np.stack([answer(x) for x in samples])

    sample = np.zeros(given["shape"], given["dtype"])

    def with_arrays() -> Floats:
        interpreter.set_tensor(given["index"], sample)
        invoke()
        return interpreter.get_tensor(made["index"])  # type: ignore[no-any-return]

    return {
        "int8": Session(invoke, answers, expected=expected),
        # What our Engine.run does: an array in, an array out.
        "int8, arrays in and out": Session(with_arrays, answers, expected=expected),
    }

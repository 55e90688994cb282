"""ExecuTorch with XNNPACK, quantized by its own quantizer. Timed: a method's execute on a tensor that it is given."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.peers import Floats, Missing, Session, last_sample
from benchmarks.topologies import Topology

PIP = "executorch"
PACKAGES = ("executorch", "torchao", "torch")


def prepare(topology: Topology, folder: Path, sources: Path | None) -> None:
    if topology.name.startswith("gemv"):
        raise Missing("no comparable weight-only product")
    if (folder / "int8.pte").exists():
        return
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from executorch.exir import to_edge_transform_and_lower
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    network = torch.load(folder / "float.pt", weights_only=False).eval()
    samples = torch.from_numpy(np.load(folder / "calibration.npy"))
    given = (samples[:1],)
    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    observed = prepare_pt2e(torch.export.export(network, given).module(), quantizer)
    with torch.no_grad():
        for x in samples:
            observed(x[None])
    exported = torch.export.export(convert_pt2e(observed), given)
    program = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()]).to_executorch()
    (folder / "int8.pte").write_bytes(program.buffer)


def load(folder: Path, threads: int) -> dict[str, Session]:
    import torch
    from executorch.extension.pybindings import portable_lib
    from executorch.runtime import Runtime

    if portable_lib._threadpool_get_thread_count() != threads:
        portable_lib._unsafe_reset_threadpool(threads)
    # portable_lib's own loader would put all work off to the first inference.
    method = Runtime.get().load_program(str(folder / "int8.pte")).load_method("forward")
    last = [torch.from_numpy(last_sample(folder))]

    def answers(inputs: Floats) -> Floats:
        return np.concatenate([method.execute([torch.from_numpy(x[np.newaxis])])[0].numpy().copy() for x in inputs])

    return {"int8": Session(lambda: method.execute(last), answers)}

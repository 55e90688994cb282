"""torch, int8 by FX graph quantization, traced and frozen. Timed: a call on a tensor, without gradients."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np

from benchmarks.peers import Floats, Missing, Session, last_sample
from benchmarks.topologies import Topology

PIP = "torch"
PACKAGES = ("torch",)


def prepare(topology: Topology, folder: Path, sources: Path | None) -> None:
    if topology.name.startswith("gemv"):
        raise Missing("no comparable weight-only product")
    if (folder / "int8-fx.pt").exists():
        return
    warnings.simplefilter("ignore")  # deprecated in favour of torchao, which has no eager int8 convolutions
    import torch
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    network = torch.load(folder / "float.pt", weights_only=False).eval()
    samples = torch.from_numpy(np.load(folder / "calibration.npy"))
    torch.backends.quantized.engine = "x86"
    with torch.no_grad():
        observed = prepare_fx(network, get_default_qconfig_mapping("x86"), (samples[:1],))
        for x in samples:
            observed(x[None])
        traced = torch.jit.trace(convert_fx(observed), samples[:1])
        torch.jit.save(torch.jit.freeze(traced.eval()), str(folder / "int8-fx.pt"))


def load(folder: Path, threads: int) -> dict[str, Session]:
    warnings.simplefilter("ignore")
    import torch

    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)  # nothing in this process trains
    network = torch.jit.load(str(folder / "int8-fx.pt"))
    given = torch.from_numpy(last_sample(folder))

    def answers(inputs: Floats) -> Floats:
        return np.concatenate([network(torch.from_numpy(x[np.newaxis])).numpy() for x in inputs])

    return {"int8": Session(lambda: network(given), answers)}

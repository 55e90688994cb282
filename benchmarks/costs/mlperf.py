"""Rows of MLPerf Tiny for a class of devices: counts of the networks that were run, and cycles or joules that it took.

Of the closed division's int8 rows (a system name without a dtype is int8) on boards with a known clock. Systems of one
board and one engine whose rows all lie within SAME of an earlier round's are one system, submitted again.

The published VWW network has dead channels: of vww_int8.tflite (mlcommons/tiny @ 1afd2c98) the later pointwise layers
have only LIVE channels with any non-zero weight. The rows say that some engines drop them: from one version to the next
the ratio of VWW to ResNet-8 halves while the others stay, for STMicroelectronics from X-CUBE-AI 8.1, for Plumerai from
2023, and for ONNC in all rows. Their VWW rows count the live channels only.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.costs.fit import Row
from benchmarks.models_onnx import float_network
from benchmarks.topologies import TOPOLOGIES
from caq.costs import Profile
from caq.graph import Graph
from caq.supernet import zoo
from caq.supernet.conversion import convert

SAME = 0.03
FILE = Path("device_costs") / "mlperf_tiny_costs.csv"
NETWORKS = {"ic": "resnet8", "kws": "ds_cnn", "vww": "mobilenet_v1_025", "ad": "autoencoder"}
#: Output channels of the pointwise layers that are live.
LIVE = (16, 32, 32, 64, 60, 107, 57, 30, 19, 19, 27, 32, 22)
STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)


class Board(NamedTuple):
    """A board by a part of its systems' names."""

    part: str
    mhz: int


CLASSES = {
    "cortex-m4": (Board("L4R5", 120), Board("CY8CPROTO", 150), Board("M467", 200)),
    "cortex-m7": (Board("F746", 216), Board("H7A3", 280)),
}
ENGINES = {  # by a part of the system's and framework's names, or the submitter
    "CMSIS": "microTVM CMSIS-NN",
    "NATIVE": "microTVM native",
    "X-CUBE": "X-CUBE-AI",
    "STMICRO": "X-CUBE-AI",
    "PLUMERAI": "Plumerai",
    "BOSCH": "Bosch",
    "ONNC": "ONNC",
    "REFERENCE": "TFLM reference",
}


class Measured(NamedTuple):
    """One system's rows: cycles, and (J, W) where energy was measured, by benchmark (ic, kws, vww, ad)."""

    name: str
    board: Board
    engine: str
    cycles: Mapping[str, float]
    energy: Mapping[str, tuple[float, float]]
    drops_dead_channels: bool


def graph_of(network: torch.nn.Module, shape: tuple[int, ...]) -> Graph:
    """The integer graph of a float network that eats samples of `shape`, channels last."""
    torch.manual_seed(0)
    return convert(network, torch.randn(4, *shape[-1:], *shape[:-1]), (8,)).graph


def graphs() -> dict[str, Graph]:
    """The four networks, and `vww live`, VWW without its dead channels."""
    found = {}
    for benchmark, name in NETWORKS.items():
        topology = TOPOLOGIES[name]
        found[benchmark] = graph_of(float_network(topology), topology.sample_shape)
    pairs = list(zip(LIVE, STRIDES, strict=True))
    live = zoo.DepthwiseSeparable((96, 96, 3), 2, (8, (3, 3), 2), pairs)
    return found | {"vww live": graph_of(live, (96, 96, 3))}


def systems(path: Path, boards: tuple[Board, ...]) -> list[Measured]:
    """The systems of a class of devices, without those submitted again."""
    rows: dict[tuple[str, ...], list[dict[str, str]]] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            variant = any(word in row["system"] for word in ("_float", "_max_performance", "_min_ram"))
            if row["division"] == "closed" and not variant:
                rows.setdefault((row["round"], row["submitter"], row["system"]), []).append(row)
    found: list[Measured] = []
    for (round_, *_), group in rows.items():
        board = next((b for b in boards if b.part in group[0]["system"].upper()), None)
        if board is None:
            continue
        system = _measured(group, board, round_)
        if not any(_again(system, other) for other in found):
            found.append(system)
    return found


def _measured(group: list[dict[str, str]], board: Board, round_: str) -> Measured:
    first = group[0]
    names = " ".join((first["system"], first["framework"], first["submitter"])).upper()
    engine = next(engine for part, engine in ENGINES.items() if part in names)
    own = first["submitter"] == "STMicroelectronics" or engine == "Plumerai"
    return Measured(
        f"{round_} {first['submitter']} {first['system']}, {engine}",
        board,
        engine,
        {row["benchmark"]: float(row["latency_ms"]) * board.mhz * 1e3 for row in group},
        {
            row["benchmark"]: (float(row["energy_uj_per_inf"]) * 1e-6, float(row["power_uw"]) * 1e-6)
            for row in group
            if row["energy_uj_per_inf"]
        },
        engine == "ONNC" or (own and round_ >= "v1.1"),
    )


def _again(system: Measured, other: Measured) -> bool:
    if (system.board, system.engine) != (other.board, other.engine):
        return False
    shared = [b for b in system.cycles if b in other.cycles]
    return all(abs(system.cycles[b] / other.cycles[b] - 1) < SAME for b in shared)


def counts(profile: Profile, graph: Graph) -> dict[str, float]:
    """Counts of all operations at w8a8; `mac` is all kinds together, `weight_byte` the bytes of weights read."""
    layers = {layer.op: layer for layer in graph.layers}
    eight = dict(zip(layers, graph.uniform(8), strict=True))
    total: dict[str, float] = {"inference": 1.0}
    for op in range(len(graph.ops)):
        for term, count in profile.counts(graph, op, layers.get(op), eight.get(op)).items():
            total[term] = total.get(term, 0.0) + count
    total["mac"] = sum(count for term, count in total.items() if term.startswith("mac_"))
    total["weight_byte"] = float(
        sum(profile.weight_bytes(graph, *pair) for pair in zip(graph.layers, graph.uniform(8), strict=True))
    )
    return total


def latency_rows(
    measured: list[Measured], counted: Mapping[str, Mapping[str, float]], all_channels: bool = False
) -> list[Row]:
    """Cycles of each system and benchmark. all_channels: as if no engine dropped dead ones."""
    return [
        Row(system.name, benchmark, counted[benchmark if all_channels else _network(system, benchmark)], cycles)
        for system in measured
        for benchmark, cycles in system.cycles.items()
    ]


def energy_rows(measured: list[Measured], counted: Mapping[str, Mapping[str, float]]) -> list[Row]:
    """Joules of each system and benchmark; `second` is how long it took."""
    return [
        Row(
            system.name,
            benchmark,
            {**counted[_network(system, benchmark)], "second": system.cycles[benchmark] / system.board.mhz / 1e6},
            joules,
        )
        for system in measured
        for benchmark, (joules, _) in system.energy.items()
    ]


def _network(system: Measured, benchmark: str) -> str:
    return "vww live" if benchmark == "vww" and system.drops_dead_channels else benchmark

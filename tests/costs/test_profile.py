"""The cost model against sums made by hand, and what must hold for any graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from caq.costs import Profile, cost_table, load_profile, parse_profile, profile_names
from caq.errors import AssignmentError
from caq.graph import Graph, LayerWidths, Op
from tests import models

GRAPH = Graph(
    (4, 4, 2),
    (
        Op("conv", (0,), "conv", channels=4, kernel=(3, 3), padding=(1, 1, 1, 1)),  # 1152 MACs, 72 weights
        Op("conv", (1,), "depthwise", channels=4, kernel=(3, 3), padding=(1, 1, 1, 1), groups=4),  # 576 MACs, 36
        Op("conv", (2,), "pointwise", channels=8),  # 512 MACs, 32
        Op("avg_pool", (3,), "", kernel=(4, 4)),  # 128 codes
        Op("conv", (4,), "linear", channels=8, low=-(2**15), high=2**15 - 1),  # 64 MACs, 64 weights
    ),
    (2, 4, 8),
)
CODES = {"conv": (32, 64), "depthwise": (64, 64), "pointwise": (64, 128), "avg_pool": (128, 8), "linear": (8, 8)}


def figure(value: float, unit: str = "ns") -> dict[str, Any]:
    return {"value": value, "unit": unit, "source": "s"}


def profile(**changes: Any) -> Profile:
    """Prices of 1, 10, 100, ... ns for a kind of MACs, a byte or an operation, unless changed."""
    data: dict[str, Any] = {
        "title": "a device",
        "arithmetic": "byte",
        "weights": "packed",
        "combine": "sum",
        "memory": [{"level": "m", "capacity": figure(1, "MiB"), "latency": figure(0), "energy": figure(0, "pJ")}],
        "latency": {},
        "energy": {"power": figure(0, "W")},
        "sources": {"s": {"kind": "assumed", "text": "for a test"}},
    }
    return parse_profile(data | changes, "test", "test.yaml")


def latencies(p: Profile, assignment: tuple[LayerWidths, ...]) -> dict[str, float]:
    """Whole ns of each operation."""
    return {cost.name: round(cost.latency_s * 1e9, 6) for cost in p.layer_costs(GRAPH, assignment)}


def test_macs_are_counted_by_kind() -> None:
    prices = {"mac_conv": 1, "mac_depthwise": 10, "mac_pointwise": 100, "mac_linear": 1000}
    p = profile(latency={term: figure(value) for term, value in prices.items()})
    expected = {"conv": 1152, "depthwise": 5760, "pointwise": 51200, "avg_pool": 0, "linear": 64000}
    for width in GRAPH.widths:
        assert latencies(p, GRAPH.uniform(width)) == expected
        assert p.cost(GRAPH, GRAPH.uniform(width)).latency_s == pytest.approx(sum(expected.values()) * 1e-9)


def test_codes_elements_and_overheads() -> None:
    prices = {"output": 1, "activation_byte": 1000, "element": 1e6, "op": 1e9}
    p = profile(latency={term: figure(value) for term, value in prices.items()})
    found = latencies(p, GRAPH.uniform(8))
    for name, (read, written) in CODES.items():
        elements = 128 if name == "avg_pool" else 0
        assert found[name] == written + 1000 * (read + written) + elements * 1e6 + 1e9
    p = profile(latency={"input": figure(1), "inference": figure(1000)}, energy={"power": figure(2, "W")})
    cost = p.cost(GRAPH, GRAPH.uniform(8))
    assert cost.latency_s == pytest.approx(1032e-9) and cost.energy_j == pytest.approx(2064e-9)
    assert cost.activation_bytes == sum(map(sum, CODES.values())) and cost.weight_bytes == 72 + 40 + 32 + 64


def test_bytes_of_weights_by_what_is_read() -> None:
    mixed = tuple(map(LayerWidths.parse, ("w2a8", "w4a4", "w8a2", "w2a2")))
    planes = {"conv": 9, "depthwise": 5, "pointwise": 4, "linear": 8}
    bits = {"packed": (2, 4, 8, 2), "unpacked": (8, 8, 8, 8), "panels": (8, 8, 8, 2)}
    for weights, widths in bits.items():
        costs = {c.name: c for c in profile(weights=weights).layer_costs(GRAPH, mixed)}
        assert [costs[name].weight_bytes for name in planes] == [
            n * w for n, w in zip(planes.values(), widths, strict=True)
        ]
        assert costs["avg_pool"].weight_bytes == 0


def test_weights_lie_in_the_first_level_that_holds_them() -> None:
    levels = [
        {"level": "fast", "capacity": figure(60, "B"), "latency": figure(1), "energy": figure(5, "pJ")},
        {"level": "slow", "capacity": figure(61, "B"), "latency": figure(10), "energy": figure(50, "pJ")},
    ]
    p = profile(memory=levels)
    for width, level in ((2, "fast"), (4, "slow"), (8, "slow")):  # 52, 104 and 208 bytes
        assert p.level(GRAPH, GRAPH.uniform(width)).name == level
        cost = p.cost(GRAPH, GRAPH.uniform(width))
        per_byte = 1e-9 if level == "fast" else 1e-8
        assert cost.latency_s == pytest.approx(26 * width * per_byte)
        assert cost.energy_j == pytest.approx(26 * width * per_byte / 200)


def test_narrow_widths_are_unpacked_and_narrowed_where_arithmetic_is_in_bytes() -> None:
    prices = {"unpacked_weight": 1, "unpacked_bit": 1000, "narrowed": 1e6}
    latency = {term: figure(value) for term, value in prices.items()}
    mixed = tuple(map(LayerWidths.parse, ("w2a8", "w8a4", "w4a8", "w8a8")))
    found = latencies(profile(latency=latency), mixed)
    assert found == {"conv": 72 + 144e3, "depthwise": 64e6, "pointwise": 32 + 128e3, "avg_pool": 0, "linear": 0}
    unpacked = latencies(profile(latency=latency, weights="unpacked"), mixed)
    assert unpacked == {"conv": 0, "depthwise": 64e6, "pointwise": 0, "avg_pool": 0, "linear": 0}
    assert set(latencies(profile(latency=latency, arithmetic="bit_serial"), mixed).values()) == {0}


def test_bit_serial_costs_the_product_of_widths_in_whole_tiles() -> None:
    latency = {"mac_conv": figure(64), "mac_depthwise": figure(64), "activation_byte": figure(1e9)}
    mixed = tuple(map(LayerWidths.parse, ("w2a8", "w4a2", "w4a8", "w8a8")))
    found = latencies(profile(latency=latency, arithmetic="bit_serial"), mixed)
    assert found["conv"] == 1152 * 16 + 96e9
    assert found["depthwise"] == 576 * 8 + (64 / 4 + 64) * 1e9
    # 4 channels, 16 positions, sums of 18 terms in tiles of 3 x 5 x 16; depthwise: 4 groups of 1 x 16 x 9.
    tile = {"outputs": 3, "positions": 5, "fan_in": 16}
    tiled = latencies(profile(latency={"mac_conv": figure(1), "mac_depthwise": figure(1)}, tile=tile), mixed)
    assert (tiled["conv"], tiled["depthwise"]) == (6 * 20 * 32, 4 * 3 * 20 * 16)


def test_compute_and_memory_add_up_or_hide_each_other() -> None:
    latency = {"mac_conv": figure(1), "mac_linear": figure(1), "activation_byte": figure(2), "op": figure(7)}
    add = latencies(profile(latency=latency), GRAPH.uniform(8))
    hide = latencies(profile(latency=latency, combine="max"), GRAPH.uniform(8))
    assert (add["conv"], hide["conv"]) == (1152 + 192 + 7, 1152 + 7)
    assert (add["linear"], hide["linear"]) == (64 + 32 + 7, 64 + 7)
    assert (add["depthwise"], hide["depthwise"]) == (256 + 7, 256 + 7)


def test_energy_is_a_sum_of_its_own_and_of_power() -> None:
    p = profile(
        combine="max",
        latency={"mac_conv": figure(1), "activation_byte": figure(1)},
        energy={
            "power": figure(1, "mW"),
            "mac_conv": figure(3, "pJ"),
            "activation_byte": figure(10, "pJ"),
            "op": figure(1, "nJ"),
        },
    )
    conv = p.layer_costs(GRAPH, GRAPH.uniform(8))[0]
    assert conv.energy_j == pytest.approx(1152e-12 * 3 + 960e-12 + 1e-9 + 1e-3 * 1152e-9)


def test_an_assignment_that_the_graph_does_not_serve_is_refused() -> None:
    with pytest.raises(AssignmentError, match="'conv': weights of 3 bits"):
        profile().cost(GRAPH, (LayerWidths(3, 8),) * 4)


@pytest.mark.parametrize("name", profile_names())
def test_shipped_profiles_cost_any_graph(name: str) -> None:
    p = load_profile(name)
    rng = np.random.default_rng(0)
    for seed in range(5):
        graph = models.model(seed).graph
        eight = p.cost(graph, graph.uniform(8))
        assert 0 < eight.latency_s < 1 and 0 < eight.energy_j < 10
        for _ in range(5):
            assignment = models.mixed(graph, rng)
            cost, layers = p.cost(graph, assignment), p.layer_costs(graph, assignment)
            assert cost.latency_s >= sum(c.latency_s for c in layers) - 1e-15
            assert cost.weight_bytes == sum(c.weight_bytes for c in layers) <= eight.weight_bytes
            assert cost.energy_j >= p.power.value * cost.latency_s * 0.999
        assert cost_table(graph, f"latency@{name}").unit == pytest.approx(
            p.cost(graph, graph.uniform(8)).latency_s, rel=1e-9
        )


def test_shipped_profiles_agree_with_what_they_are_made_of() -> None:
    """A network of MLPerf Tiny on its devices, near the middle of what was submitted (ResNet-8: 12.5 M MACs)."""
    graph = Graph((32, 32, 16), (Op("conv", (0,), "c", channels=16, kernel=(3, 3), padding=(1,) * 4),), (2, 8))
    cycles = {"cortex-m4": (1.0, 4.5, 120e6), "cortex-m7": (0.8, 2.5, 280e6)}
    for name, (least, most, clock) in cycles.items():
        per_mac = load_profile(name).cost(graph, graph.uniform(8)).latency_s * clock / graph.layers[0].macs
        assert least < per_mac < most
    serial = load_profile("bit-serial")
    narrow, wide = (serial.cost(graph, (LayerWidths(w, 8),)).latency_s for w in (2, 8))
    assert 3 < wide / narrow <= 4

"""Cost tables: entries that add up to what the cost model and the graph say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from caq.conditional import gate_cost
from caq.costs import check_cost, cost_table, load_profile, profile_names
from caq.costs.read import SHIPPED
from caq.errors import ConfigError
from caq.graph import Graph, LayerWidths
from tests import models
from tests.conditional_models import with_gate

NAMES = ["", "bytes", "bit_macs", *(f"{what}@{p}" for what in ("latency", "energy") for p in profile_names())]


def in_units(graph: Graph, name: str, assignment: tuple[LayerWidths, ...]) -> float:
    """What an assignment costs, not by way of a table."""
    cost = graph.cost(assignment)
    if name in ("bytes", "bit_macs"):
        return float(getattr(cost, {"bytes": "weight_bytes", "bit_macs": "bit_macs"}[name]))
    if not name:
        full = graph.cost((LayerWidths(8, 8),) * len(assignment))
        return (cost.weight_bytes / full.weight_bytes + cost.bit_macs / full.bit_macs) / 2
    what, _, profile = name.partition("@")
    modelled = load_profile(profile).cost(graph, assignment)
    return {"latency": modelled.latency_s, "energy": modelled.energy_j}[what]


@pytest.mark.parametrize("name", NAMES)
def test_entries_add_up(name: str) -> None:
    rng = np.random.default_rng(1)
    for seed in range(6):
        graph = models.model(seed).graph
        table = cost_table(graph, name)
        assert table.layers.shape == (len(graph.layers), 3, 3) and (table.layers >= 0).all()
        for assignment in (*(graph.uniform(w) for w in graph.widths), models.mixed(graph, rng)):
            at = [(graph.widths.index(p.weight), graph.widths.index(p.activation)) for p in assignment]
            total = table.fixed + sum(table.layers[i, w, a] for i, (w, a) in enumerate(at))
            assert total == pytest.approx(table.of(graph, assignment), rel=1e-12)
            assert total >= table.least - 1e-12
            # These networks lie in the first level of every memory, so the table is the model itself.
            assert total * table.unit == pytest.approx(in_units(graph, name, assignment), rel=1e-9)
        assert table.of(graph, graph.uniform(8)) == pytest.approx(1)
        for layer in graph.layers:
            if layer.reads_input:
                assert (table.layers[layer.index] == table.layers[layer.index][:, :1]).all()


def test_a_faster_level_is_not_counted_on(tmp_path: Path) -> None:
    """Weights lie where those of the widest assignment do, so a table promises no more than the model keeps."""
    graph = models.model(0).graph
    data = yaml.safe_load((SHIPPED / "host.yaml").read_text())
    data["weights"], data["combine"] = "packed", "sum"
    data["memory"][0]["capacity"] = {"value": graph.plane_bytes * 4, "unit": "B", "source": "machine"}
    path = tmp_path / "levels.yaml"
    path.write_text(yaml.safe_dump(data))
    profile, table = load_profile(path), cost_table(graph, f"latency@{path}")
    for width, level in ((2, "L1"), (4, "L1"), (8, "L2")):
        uniform = graph.uniform(width)
        assert profile.level(graph, uniform).name == level
        modelled = profile.cost(graph, uniform).latency_s
        assert table.of(graph, uniform) * table.unit > modelled * 1.0001 or level == "L2"
        assert table.of(graph, uniform) * table.unit >= modelled * 0.9999


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("latency", "unknown cost 'latency'; did you mean 'latency@PROFILE'"),
        ("byte", "did you mean 'bytes'"),
        ("power@host", "a profile tells latency and energy"),
        ("latency@hosts", "no device profile 'hosts'; did you mean 'host'"),
        ("latency@", "no device profile ''"),
        ("energy@none.yaml", "none.yaml: cannot be read"),
    ],
)
def test_unknown_costs(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_cost(name)
    with pytest.raises(ConfigError, match=message):
        cost_table(models.tiny().graph, name)


@pytest.mark.parametrize("name", NAMES)
def test_a_conditional_gate_adds_what_it_costs(name: str) -> None:
    m = with_gate(models.model(0), 0, 3)
    point, table = m.points[-1], cost_table(m.graph, name)
    found = table.gate(3, 3) * table.unit
    own = gate_cost(m.graph, 3, 3)
    what, _, device = name.partition("@")
    if device:
        profile = load_profile(device)
        modelled = profile.point_cost(m.graph, point.branches, point.shares, 3)
        without = profile.point_cost(m.graph, point.branches, point.shares, None)
        field = {"latency": "latency_s", "energy": "energy_j"}[what]
        assert found == pytest.approx(getattr(modelled, field) - getattr(without, field)) and found > 0
        assert modelled.weight_bytes == pytest.approx(without.weight_bytes + own.weight_bytes, abs=1)
    elif name:
        assert found == {"bytes": own.weight_bytes, "bit_macs": own.bit_macs}[name]
    else:
        parts = [cost_table(m.graph, cost).gate(3, 3) for cost in ("bytes", "bit_macs")]
        assert table.gate(3, 3) == pytest.approx(sum(parts) / 2)

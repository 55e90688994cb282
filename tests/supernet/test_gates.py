"""Static gates: widths for a budget."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from caq.costs import Budget, affordable_cost, relative_cost
from caq.data import Dataset
from caq.errors import ConfigError
from caq.graph import LayerWidths
from caq.supernet import convert
from caq.supernet.gates import Gate
from caq.supernet.pipeline import prepare, train_model
from caq.supernet.train import Outputs, TrainConfig

CONFIG = TrainConfig(epochs=3, batch_size=32, seed=5)
QUIET = Outputs(quiet=True)


def test_a_gate_gives_up_bits_where_they_are_worth_least(digits: Dataset) -> None:
    prepared = prepare(digits, "mlp", 0)
    graph = convert(prepared.network, prepared.example(), (2, 4, 8)).graph
    gate = Gate(graph)
    with torch.no_grad():
        gate.weight_logits.copy_(torch.tensor([[0.0, 0.5, 1.0]] * 3))
        gate.activation_logits.copy_(torch.tensor([[0.0, 0.5, 9.0]] * 3))
        gate.weight_logits[2] = torch.tensor([0.0, 20.0, 40.0])
    reading = LayerWidths(8, 8)
    assert gate.assignment(1.0) == (reading,) * 3
    narrow = gate.assignment(0.6)
    assert 0.5 < relative_cost(graph, narrow) <= 0.6
    assert narrow[2].weight == 8 and min(narrow[0].weight, narrow[1].weight) < 8
    assert all(pair.activation == 8 for pair in narrow)
    # What the budget leaves is used, even if the logits ask for less.
    with torch.no_grad():
        gate.weight_logits.copy_(-gate.weight_logits)
    assert gate.assignment(1.0) == (reading,) * 3
    with pytest.raises(ConfigError, match="the cheapest costs"):
        gate.assignment(0.01)


@pytest.mark.parametrize("cost", ["", "bytes", "bit_macs", "latency@bit-serial", "energy@bit-serial"])
def test_a_gate_keeps_its_budget_in_any_cost(digits: Dataset, cost: str) -> None:
    prepared = prepare(digits, "mlp", 0)
    graph = convert(prepared.network, prepared.example(), (2, 4, 8)).graph
    gate, dearest = Gate(graph, cost), relative_cost(graph, graph.uniform(8), cost)
    assert dearest == pytest.approx(1)
    rng = np.random.default_rng(0)
    with torch.no_grad():  # as a sure gate, its expectation is its choice's cost
        for _ in range(5):
            picks = rng.integers(0, 3, (2, len(graph.layers)))
            for logits, pick in zip((gate.weight_logits, gate.activation_logits), picks, strict=True):
                logits.copy_(60 * torch.eye(3)[torch.from_numpy(pick)])
            chosen = tuple(
                LayerWidths(graph.widths[w], 8 if layer.reads_input else graph.widths[a])
                for layer, w, a in zip(graph.layers, *picks, strict=True)
            )
            assert float(gate.expected_cost()) == pytest.approx(relative_cost(graph, chosen, cost), rel=1e-5)
    for share in (0.0, 0.3, 0.7, 1.0):
        most = affordable_cost(graph, share, cost)
        found = gate.assignment(most)
        assert relative_cost(graph, found, cost) <= most + 1e-9
        # Nothing wider fits any more.
        for i, pair in enumerate(found):
            for wider in (pair._replace(weight=8), pair._replace(activation=8)):
                other = (*found[:i], wider, *found[i + 1 :])
                assert wider == pair or relative_cost(graph, other, cost) > relative_cost(graph, found, cost) - 1e-12
    expected = gate.expected_cost()
    expected.backward()
    assert gate.weight_logits.grad is not None and torch.isfinite(gate.weight_logits.grad).all()


def test_a_gate_steps_over_widths_that_cost_more_than_wider_ones(digits: Dataset, tmp_path: Path) -> None:
    """4 bits cost more than 8 where they have to be unpacked; 2 bits may cost less all the same."""
    profile = tmp_path / "odd.yaml"
    profile.write_text(
        """
title: a device whose unpacking costs as much as reading
arithmetic: byte
weights: packed
combine: sum
memory:
  - level: flash
    capacity: {value: 1, unit: MiB, source: test}
    latency: {value: 1, unit: ns, source: test}
    energy: {value: 0, unit: pJ, source: test}
latency:
  unpacked_weight: {value: 0.6, unit: ns, source: test}
energy:
  power: {value: 1, unit: W, source: test}
sources:
  test: {kind: assumed, text: for a test}
"""
    )
    prepared = prepare(digits, "mlp", 0)
    graph = convert(prepared.network, prepared.example(), (2, 4, 8)).graph
    gate = Gate(graph, f"latency@{profile}")
    costs = gate.table.layers[0, :, 0]
    assert costs[0] < costs[2] < costs[1]
    most = affordable_cost(graph, 0.5, f"latency@{profile}")
    found = gate.assignment(most)
    assert {pair.weight for pair in found} == {2, 8} and all(pair.activation == 8 for pair in found)
    with pytest.raises(ConfigError, match="the cheapest costs"):
        gate.assignment(gate.table.least * 0.99)


def test_a_budget_that_widths_cannot_keep_is_refused(digits: Dataset) -> None:
    prepared = prepare(digits, "mlp", 0)
    graph = convert(prepared.network, prepared.example(), (2, 4, 8)).graph
    for cost in ("latency@cortex-m4", "energy@cortex-m7", "latency@raspberry-pi-4"):
        with pytest.raises(ConfigError, match="narrower widths save next to nothing"):
            affordable_cost(graph, 0.5, cost)
    for cost in ("latency@pi", "watts", "energy@"):
        with pytest.raises(ConfigError):
            Budget("saver", 0.5, cost)


def test_a_gate_learned_for_a_device(digits: Dataset) -> None:
    budgets = (Budget("quick", 0.3, "latency@bit-serial"), Budget("small", 0.3, "bytes"))
    model = train_model(digits, "mlp", replace(CONFIG, epochs=1), (2, 4, 8), budgets, QUIET)
    points = {point.name: point.assignment for point in model.points}
    for budget in budgets:
        found, most = points[budget.name], affordable_cost(model.graph, budget.share, budget.cost)
        assert relative_cost(model.graph, found, budget.cost) <= most + 1e-9
        for i, pair in enumerate(found):
            if pair.weight < 8:
                wider = (*found[:i], pair._replace(weight=2 * pair.weight), *found[i + 1 :])
                assert relative_cost(model.graph, wider, budget.cost) > most
    # Activations have no part in the bytes of weights.
    assert all(pair.activation == 8 for pair in points["small"])

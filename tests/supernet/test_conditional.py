"""Conditional gates: what their branches share, what routing learns, and that it keeps its budget."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from caq import artifact
from caq.conditional import free_layers
from caq.costs import Budget, relative_cost
from caq.data import Dataset, from_arrays, load
from caq.engine import Engine
from caq.errors import ConfigError
from caq.graph import Assignment, Graph
from caq.supernet import convert
from caq.supernet.conditional import (
    BRANCHES,
    Branches,
    RouteConfig,
    check_conditional,
    estimate_branches,
    fit_bias,
    gate_tensor,
    learn_branches,
    learn_route,
    output_losses,
)
from caq.supernet.gates import GateConfig
from caq.supernet.network import Supernet
from caq.supernet.pipeline import Prepared, finish, hold_back, prepare, train_model
from caq.supernet.train import Outputs, TrainConfig

GATES = GateConfig(steps=4, batch_size=16, quiet=True)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    data = load("digits")
    parts = {"x_train": data.x_train[:300], "y_train": data.y_train[:300]}
    return replace(data, **parts, x_test=data.x_test[:100], y_test=data.y_test[:100])


def made(data: Dataset, name: str) -> tuple[Supernet, Prepared]:
    torch.manual_seed(0)
    prepared = prepare(data, name, 0)
    return convert(prepared.network, prepared.example(), (2, 4, 8)), prepared


@pytest.mark.parametrize("name", ["resnet8", "ds_cnn"])
def test_branches_differ_after_the_gate_only(digits: Dataset, name: str) -> None:
    supernet, prepared = made(digits, name)
    graph = supernet.graph
    branches = learn_branches(supernet, prepared.train, Budget("b", 0.3), GATES, "classify")
    costs = [relative_cost(graph, a) for a in branches.assignments]
    assert 2 <= len(costs) <= BRANCHES and costs == sorted(costs) and costs[0] < costs[-1]
    weights, activations = free_layers(graph, branches.tensor)
    assert branches.tensor > 0 and len(weights) < len(graph.layers)
    for other in branches.assignments[1:]:
        for i, (a, b) in enumerate(zip(branches.assignments[0], other, strict=True)):
            assert a.weight == b.weight or i in weights
            assert a.activation == b.activation or i in activations
    macs = sum(layer.macs for layer in graph.layers if layer.op < branches.tensor)
    assert macs <= sum(layer.macs for layer in graph.layers) / 4


def two_branches(graph: Graph, tensor: int) -> tuple[Assignment, Assignment]:
    """8 bits everywhere, and weights of 2 after the gate."""
    narrow = list(graph.uniform(8))
    for i in free_layers(graph, tensor)[0]:
        narrow[i] = narrow[i]._replace(weight=2)
    return graph.uniform(8), tuple(narrow)


def test_statistics_before_the_gate_are_those_of_the_first_branch(digits: Dataset) -> None:
    supernet, prepared = made(digits, "resnet8")
    graph, t = supernet.graph, gate_tensor(supernet.graph)
    assignments = two_branches(graph, t)
    found = estimate_branches(supernet, prepared.train, Branches(t, assignments))
    for layer, known in zip(supernet.layers, graph.layers, strict=True):
        if layer.norm is not None:
            one, other = (layer.norm.mean[row] for _, row in found)
            assert torch.equal(one, other) == (known.op < t)
            assert one.abs().sum() > 0 and other.abs().sum() > 0


def test_rows_that_were_trained_are_kept_after_the_gate_only(digits: Dataset) -> None:
    supernet, prepared = made(digits, "resnet8")
    graph, t = supernet.graph, gate_tensor(supernet.graph)
    assignments = two_branches(graph, t)
    rows = [supernet.add_row(assignment) for assignment in assignments]
    norms = [(layer.norm, known.op < t) for layer, known in zip(supernet.layers, graph.layers, strict=True)]
    for norm, _ in norms:
        if norm is not None:
            for row, value in zip(rows, (1.5, 2.5), strict=True):
                norm.gamma.data[row], norm.beta.data[row] = value, value - 2
    found = estimate_branches(supernet, prepared.train, Branches(t, assignments), rows)
    assert found == list(zip(assignments, rows, strict=True))
    for norm, before in norms:
        if norm is not None:
            assert len(norm.gamma) == len(supernet.widths) + len(rows) and norm.gamma.requires_grad
            for array in (norm.gamma, norm.beta, norm.mean, norm.var):
                assert torch.equal(array[rows[0]], array[rows[1]]) == before
            for row, value in zip(rows, (1.5, 1.5 if before else 2.5), strict=True):
                assert (norm.gamma[row] == value).all() and (norm.beta[row] == value - 2).all()
                assert norm.mean[row].abs().sum() > 0


def test_a_budget_has_to_pay_for_the_gate(digits: Dataset) -> None:
    graph = made(digits, "resnet8")[0].graph
    check_conditional(graph, [Budget("b", 0.2), Budget("c", 0.5, "bytes")])
    with pytest.raises(ConfigError, match=r"conditional budget 'b': .* and the gate 0\.0.*give a larger share"):
        check_conditional(graph, [Budget("b", 0.0)])


def test_routing_finds_who_needs_the_dear_branch() -> None:
    rng = np.random.default_rng(0)
    sums = rng.integers(0, 20000, (600, 8))
    hard = sums[:, 3] > 12000
    losses = torch.tensor(np.stack([np.where(hard, 3.0, 0.1), np.full(600, 0.1)], 1), dtype=torch.float32)
    weights, bias = learn_route(sums, losses, [0.2, 1.0], 0.55, RouteConfig(), np.ones(600, bool))
    taken = (sums @ weights.T + bias).argmax(1)
    assert weights.dtype == bias.dtype == np.int64 and np.abs(weights).max() == 127
    assert 0.2 + 0.8 * taken.mean() <= 0.55
    assert (taken == hard).mean() > 0.9


def test_a_budget_that_does_not_bind_is_not_spent() -> None:
    sums = np.random.default_rng(1).integers(0, 1000, (200, 4))
    losses = torch.tensor([[0.1, 0.5]]).repeat(200, 1)
    weights, bias = learn_route(sums, losses, [0.2, 1.0], 0.9, RouteConfig(steps=200), np.ones(200, bool))
    assert (sums @ weights.T + bias).argmax(1).mean() < 0.05


@pytest.mark.parametrize("seed", range(5))
def test_biases_keep_the_budget_on_the_samples(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores, costs = rng.integers(-(10**6), 10**6, (300, 3)), np.array([1.0, 4.0, 9.0])
    for most in (1.0, 2.0, 5.0, 9.0):
        means = [
            costs[(scores + fit_bias(scores, np.zeros(3), costs, most, cheapest)).argmax(1)].mean()
            for cheapest in (0.0, -1e9)
        ]
        assert means[0] <= means[1] <= most
        # Where prices may be below 0 the budget is spent but for one sample's change of branch.
        assert means[1] > most - 8 * 3 / 300


def test_losses_of_labels_outputs_and_reconstructions() -> None:
    y = [torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0, 2.0], [0.0, 1.0]])]
    labelled = output_losses("classify", y, torch.tensor([0, 1]))
    assert labelled.shape == (2, 2) and labelled[0, 0] < labelled[0, 1] and labelled[1, 0] == labelled[1, 1]
    distilled = output_losses("classify", y, y[0])
    assert distilled[:, 0].abs().max() < 1e-6 < distilled[0, 1]
    assert output_losses("reconstruct", y, y[1]).tolist() == [[4.0, 0.0], [0.0, 0.0]]


def test_people_are_held_back_whole_and_else_some_of_each_class() -> None:
    rng = np.random.default_rng(0)
    x, y, who = rng.integers(0, 256, (60, 4)).astype(np.uint8), np.arange(60) % 3, np.arange(60) // 6
    arrays = {"x_train": x, "y_train": y, "x_test": x, "y_test": y, "domain_train": who}
    kept, routing = hold_back(from_arrays("d", arrays), 0.3, 1)
    assert routing.fresh.sum() == 18 and len(np.unique(who[routing.fresh])) == 3 and len(kept.y_train) == 42
    np.testing.assert_array_equal(kept.x_train, x[~routing.fresh])
    for alone in (who * 0, None):
        arrays = {key: value for key, value in {**arrays, "domain_train": alone}.items() if value is not None}
        kept, routing = hold_back(from_arrays("d", arrays), 0.3, 1)
        assert np.bincount(y[routing.fresh]).tolist() == [6, 6, 6] and len(kept.y_train) == 42
        arrays.pop("domain_train", None)


def test_from_data_to_a_file(digits: Dataset) -> None:
    """The same seed gives the same bytes, and what the file says of its branches is what they do."""
    config, budget = TrainConfig(epochs=2, batch_size=32, seed=3), Budget("smart", 0.3)
    options = {"widths": (2, 4, 8), "budgets": (), "outputs": Outputs(quiet=True), "conditional": (budget,)}
    model = train_model(digits, "mlp", config, **options)  # type: ignore[arg-type]
    data = artifact.dumps(model)
    assert artifact.dumps(train_model(digits, "mlp", config, **options)) == data  # type: ignore[arg-type]
    model = artifact.loads(data)
    point, engine = model.points[0], Engine(model)
    y, taken = engine.run_routed(digits.x_test, engine.build_point("smart"))
    assert [b.taken for b in point.branches] == np.bincount(taken, minlength=len(point.branches)).tolist()
    assert point.score == (y.argmax(1) == digits.y_test).mean()
    assert [b.parameter_set for b in point.branches] == [3 + i for i in range(len(point.branches))]


def test_reconstruction_is_routed_by_its_error() -> None:
    rng = np.random.default_rng(0)
    basis = rng.normal(0, 1, (3, 12))
    x = (rng.normal(0, 1, (96, 3)) @ basis).astype(np.float32)
    data = from_arrays(
        "vectors", {"x_train": x, "y_train": np.arange(96) % 2, "x_test": x, "y_test": np.arange(96) % 2}
    )
    options = {"widths": (2, 8), "budgets": (), "outputs": Outputs(quiet=True)}
    config = TrainConfig(epochs=3, batch_size=16)
    model = train_model(data, "autoencoder", config, conditional=(Budget("smart", 0.5),), **options)  # type: ignore[arg-type]
    point = artifact.loads(artifact.dumps(model)).points[0]
    assert point.metric == "r2" and sum(b.taken for b in point.branches) == 96


def test_conditional_budgets_need_samples(digits: Dataset) -> None:
    supernet, prepared = made(digits, "mlp")
    with pytest.raises(ConfigError, match="conditional: pass `routing`"):
        finish(supernet, digits, prepared, TrainConfig(), (), True, (Budget("smart", 0.5),))

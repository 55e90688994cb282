"""Points that others choose fit the budgets of gates, and are trained as theirs are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from benchmarks.baselines import chosen
from benchmarks.joint_folds import CHOSEN, train_points
from caq.costs import DEFAULT_BUDGETS, Budget, affordable_cost, relative_cost
from caq.data import Dataset, load
from caq.supernet import convert
from caq.supernet.network import Supernet
from caq.supernet.pipeline import Prepared, prepare
from caq.supernet.train import TrainConfig

CONFIG = TrainConfig(epochs=2, batch_size=32, seed=3)
BUDGETS = (Budget("half", 0.5), Budget("few", 0.2))


@pytest.fixture(scope="module")
def digits() -> Dataset:
    data = load("digits")
    return replace(data, x_train=data.x_train[:96], y_train=data.y_train[:96])


def made(digits: Dataset) -> tuple[Supernet, Prepared]:
    prepared = prepare(digits, "mlp", CONFIG.seed)
    return convert(prepared.network, prepared.example(), (2, 4, 8)), prepared


@pytest.mark.parametrize("choose", [chosen.at_random, chosen.by_sensitivity])
def test_others_choices_fill_the_budgets(digits: Dataset, choose: Callable) -> None:
    supernet, prepared = made(digits)
    found = choose(supernet, digits, prepared, CONFIG, BUDGETS)
    assert choose(*made(digits)[:1], digits, prepared, CONFIG, BUDGETS) == found
    costs = [relative_cost(supernet.graph, assignment) for assignment in found]
    for budget, cost in zip(BUDGETS, costs, strict=True):
        assert cost <= affordable_cost(supernet.graph, budget.share) + 1e-9
    assert costs[0] > costs[1]


@pytest.mark.parametrize("kind", CHOSEN)
def test_rows_of_others_choices_have_a_point_for_each_budget(digits: Dataset, kind: str) -> None:
    supernet, prepared = made(digits)
    points = train_points(supernet, digits, prepared, CONFIG, kind)
    assert [(p.name, p.row) for p in points] == [(b.name, 3 + i) for i, b in enumerate(DEFAULT_BUDGETS)]

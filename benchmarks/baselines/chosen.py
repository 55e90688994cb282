"""Assignments for budgets as others choose them: at random, and by each layer's sensitivity.

For operating points that are trained afterwards as a gate's are, so that what differs is the choice alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from caq.costs import Budget, affordable_cost
from caq.data import Dataset
from caq.graph import Assignment, Graph
from caq.search import Finder, SearchConfig
from caq.search.choices import Choices
from caq.search.objective import evenly
from caq.supernet.lower import lower
from caq.supernet.network import Supernet
from caq.supernet.pipeline import Prepared, assemble, uniform_name
from caq.supernet.train import TrainConfig, predict, reestimate_norms

#: Training samples that sensitivities are measured on.
SAMPLES = 512


def random_within(graph: Graph, budget: Budget, rng: np.random.Generator) -> Assignment:
    """Widths drawn for every layer, then made to fill a budget."""
    choices = Choices.of(graph, budget.cost)
    drawn = np.array([rng.choice(np.flatnonzero(row)) for row in choices.allowed])
    most = affordable_cost(graph, budget.share, budget.cost)
    return choices.assignment(choices.fitted(drawn, rng.standard_normal(choices.costs.shape), most))


def at_random(
    supernet: Supernet, data: Dataset, prepared: Prepared, config: TrainConfig, budgets: Sequence[Budget]
) -> list[Assignment]:
    """Of each budget one of `random_within`, by the configuration's seed."""
    rng = np.random.default_rng(config.seed)
    return [random_within(supernet.graph, budget, rng) for budget in budgets]


def by_sensitivity(
    supernet: Supernet, data: Dataset, prepared: Prepared, config: TrainConfig, budgets: Sequence[Budget]
) -> list[Assignment]:
    """The exact choice by each layer's loss when it alone is lowered (HAQ, HAWQ), in integers, on training samples."""
    graph = supernet.graph
    for width in supernet.widths:
        reestimate_norms(supernet, prepared.train, graph.uniform(width))
    supernet.set_assignment(graph.uniform(supernet.widths[-1]))
    supernet.output_step.copy_(predict(supernet, prepared.train).abs().max() * 4 / 2**15)
    points = [(uniform_name(width), graph.uniform(width), None) for width in reversed(supernet.widths)]
    model = assemble(lower(supernet, prepared.scaling.step), data, prepared, points, config)
    finder = Finder(model, data.x_train[evenly(len(data.x_train), SAMPLES)], SearchConfig(seed=config.seed))
    return [finder.by_sensitivity(budget) for budget in budgets]

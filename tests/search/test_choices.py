"""The exact choice for additive losses against all choices there are, and greedy repairs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from caq.errors import ConfigError
from caq.graph import Graph, Op
from caq.search.choices import CELLS, Choices


def graph() -> Graph:
    ops = (
        Op("conv", (0,), "a", channels=4, kernel=(2, 2)),
        Op("conv", (1,), "b", channels=3, kernel=(2, 2)),
        Op("conv", (2,), "c", channels=2, kernel=(2, 2)),
        Op("conv", (3,), "d", channels=5, low=-(2**15), high=2**15 - 1),
    )
    return Graph((6, 6, 2), ops, (2, 8))


@pytest.mark.parametrize("cost", ["", "bytes", "bit_macs", "energy@bit-serial"])
@pytest.mark.parametrize("seed", range(5))
def test_no_choice_within_the_budget_loses_less(cost: str, seed: int) -> None:
    choices, rng = Choices.of(graph(), cost), np.random.default_rng(seed)
    losses = rng.exponential(1, choices.costs.shape)
    every = [np.array(c) for c in itertools.product(*(np.flatnonzero(row) for row in choices.allowed))]
    costs = np.array([choices.cost(c) for c in every])
    totals = np.array([losses[np.arange(4), c].sum() for c in every])
    for most in np.quantile(costs, [0, 0.03, 0.2, 0.6, 1]):
        chosen = choices.cheapest_loss(losses, most)
        assert choices.fits(chosen, most) and choices.allowed[np.arange(4), chosen].all()
        # Costs are rounded up to a part of the budget for each layer: a choice that needs the last of it may be missed.
        slack = 4 * (most - costs.min()) / CELLS
        assert losses[np.arange(4), chosen].sum() <= totals[costs <= most - slack + 1e-12].min() + 1e-12
    with pytest.raises(ConfigError, match=r"no assignment costs at most .*; the cheapest costs"):
        choices.cheapest_loss(losses, costs.min() * 0.99)


@pytest.mark.parametrize("seed", range(10))
def test_a_repair_fits_the_budget_and_uses_it(seed: int) -> None:
    choices, rng = Choices.of(graph(), "bit_macs"), np.random.default_rng(seed)
    least = choices.costs.min(1).sum()
    most = rng.uniform(least, 1)
    given = np.array([rng.choice(np.flatnonzero(row)) for row in choices.allowed])
    fitted = choices.fitted(given, rng.standard_normal(choices.costs.shape), most)
    assert choices.fits(fitted, most)
    for i, pair in enumerate(choices.assignment(fitted)):
        for wider in {pair._replace(weight=8), pair._replace(activation=8)} - {pair}:
            other = list(choices.assignment(fitted))
            other[i] = wider
            assert not choices.fits(choices.indices(tuple(other)), most)
    with pytest.raises(ConfigError, match="the cheapest costs"):
        choices.fitted(given, np.zeros(choices.costs.shape), 0.5 * least)


def test_assignments_and_indices_name_the_same() -> None:
    choices = Choices.of(graph())
    for c in itertools.product(*(np.flatnonzero(row) for row in choices.allowed)):
        assert choices.indices(choices.assignment(np.array(c))).tolist() == list(c)

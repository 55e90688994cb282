"""The search on small random networks: budgets are kept, measured losses fall, and points can be added."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import caq
from caq.calibration import NormEstimator
from caq.costs import Budget, affordable_cost, relative_cost
from caq.errors import ConfigError, DataError
from caq.search import Finder, Objective, SearchConfig, with_point
from tests import models

QUICK = SearchConfig(steps=40, norm_samples=16)


@pytest.fixture(scope="module", params=["classify", "reconstruct"])
def finder(request: pytest.FixtureRequest) -> Finder:
    model = models.model(7, task=request.param)
    return Finder(model, models.samples(model, 48), QUICK)


@pytest.mark.parametrize("cost", ["", "bytes", "bit_macs", "latency@bit-serial"])
def test_a_budget_is_kept_and_measured_losses_fall(finder: Finder, cost: str) -> None:
    graph = finder.model.graph
    for share in (0.0, 0.25, 1.0):
        budget = Budget("b", share, cost)
        found, by_sensitivity = finder.find(budget), finder.by_sensitivity(budget)
        most = affordable_cost(graph, share, cost)
        for assignment in (found.assignment, by_sensitivity):
            assert relative_cost(graph, graph.check_assignment(assignment), cost) <= most + 1e-9
        assert found.sensitivity_loss == finder.objective(by_sensitivity)
        assert found.loss == finder.objective(found.assignment) <= found.sensitivity_loss
        within = [p.assignment for p in finder.model.points if relative_cost(graph, p.assignment, cost) <= most]
        assert all(found.loss <= finder.objective(a) for a in within)


def test_evolution_finds_what_sensitivities_miss(finder: Finder) -> None:
    losses = [finder.find(Budget("b", share))[1:] for share in (0.05, 0.1, 0.2, 0.3, 0.5, 0.7)]
    assert any(found < start for found, start in losses)


def test_the_widest_assignment_loses_nothing(finder: Finder) -> None:
    graph = finder.model.graph
    assert finder.objective(graph.uniform(8)) == pytest.approx(0, abs=1e-3)
    assert (finder.sensitivity[:, -1, -1] == 0).all() and (finder.sensitivity >= -1e-9).all()
    assert finder.objective(graph.uniform(2)) > 0.01


def test_a_search_can_be_repeated() -> None:
    model = models.model(7)
    x = models.samples(model, 48)
    found = [Finder(model, x, replace(QUICK, seed=seed)).find(Budget("b", 0.2)) for seed in (0, 0)]
    assert found[0] == found[1]


def test_the_loss_is_the_divergence_of_the_classes(finder: Finder) -> None:
    model, assignment = finder.model, models.mixed(finder.model.graph, np.random.default_rng(3))
    x = models.samples(model, 48)
    parameters = NormEstimator(model, x).estimate(assignment)
    row = len(parameters.gain) - 1
    point = model.points[-1]._replace(name="own", assignment=assignment, parameter_set=row)
    engine = caq.Engine(model.replace(parameters=parameters, points=(*model.points, point)))
    y, widest = (
        engine.run_plan(engine.build(a, s), x) * engine.output_step
        for a, s in ((assignment, row), (model.graph.uniform(8), None))
    )
    if model.task == "classify":
        p, q = (np.exp(v / 4) / np.exp(v / 4).sum(1, keepdims=True) for v in (widest, y))
        expected = (p * np.log(p / q)).sum(1).mean()
    else:
        expected = ((y - widest) ** 2).mean() / (widest**2).mean()
    assert Objective(model, x, 48)(assignment) == pytest.approx(expected, rel=1e-9)


def test_a_point_is_added_with_its_own_set(tmp_path: Path) -> None:
    model = models.model(7)
    x, assignment = models.samples(model, 50), models.mixed(model.graph, np.random.default_rng(3))
    y = np.arange(50) % 3
    grown = with_point(model, "new", assignment, x, x, y)
    caq.save(grown, tmp_path / "m.caq")
    point = caq.load(tmp_path / "m.caq").points[-1]
    assert (point.name, point.assignment, point.parameter_set) == ("new", assignment, 4)
    engine = caq.Engine(tmp_path / "m.caq")
    engine.select("new")
    assert point.score == round(float((engine.run(x).argmax(1) == y).mean()), 6)
    with pytest.raises(ConfigError, match=r"point 'w2a2' is there already.*such as 'w2a2_2'"):
        with_point(model, "w2a2", assignment, x, x, y)
    with pytest.raises(ConfigError, match=r"40 test samples: the model's points were measured on 50"):
        with_point(model, "new", assignment, x, x[:40], y[:40])


def test_what_cannot_be_searched(tmp_path: Path) -> None:
    one = models.model(0, widths=(4,))
    with pytest.raises(ConfigError, match="4 bits only"):
        Finder(one, models.samples(one, 8))
    model = models.model(0)
    with pytest.raises(DataError, match="samples of shape"):
        Finder(model, np.zeros((3, 1), np.uint8))
    caq.save(model, tmp_path / "m.caq")
    narrow = caq.load(tmp_path / "m.caq", max_width=4)
    with pytest.raises(ConfigError, match="only 4 bit planes were read"):
        Finder(narrow, models.samples(model, 8))
    for bad in ({"steps": -1}, {"parents": 0}, {"norm_samples": 1}):
        with pytest.raises(ConfigError, match="are needed, not"):
            SearchConfig(**bad)

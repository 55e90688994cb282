"""Batch norm re-estimated in integers gives what torch's re-estimation of the same supernet gives."""

from __future__ import annotations

import numpy as np
import pytest

from caq.calibration import NormEstimator
from caq.data import Dataset, load
from caq.engine import Engine
from caq.measure import score
from caq.model import Model
from caq.plan import affine
from caq.supernet.pipeline import train_model
from caq.supernet.train import Outputs, TrainConfig


@pytest.fixture(scope="module", params=["mlp", "resnet8"])
def trained(request: pytest.FixtureRequest) -> tuple[Dataset, Model]:
    data = load("digits")
    # Trained points have scales and offsets of their own, not those of the widths, which the estimate brings back.
    config = TrainConfig(epochs=8 if request.param == "mlp" else 2, learning_rate=8e-3, seed=0, point_share=0.0)
    return data, train_model(data, request.param, config, outputs=Outputs(quiet=True))


def test_gates_are_as_accurate_and_their_gains_alike(trained: tuple[Dataset, Model]) -> None:
    data, model = trained
    x = data.x_train[np.linspace(0, len(data.x_train) - 1, 512).round().astype(int)]
    norms = NormEstimator(model, x)
    for point in model.points:
        if point.parameter_set is None:
            continue
        parameters = norms.estimate(point.assignment)
        row = len(parameters.gain) - 1
        for layer in model.graph.layers:
            torchs, ours = (affine(parameters, layer, r) for r in (point.parameter_set, row))
            live = np.abs(torchs[0]) > 0.02 * np.abs(torchs[0]).max()
            assert np.median(np.abs(ours[0] / torchs[0] - 1)[live]) < 0.05
            spread = np.abs(torchs[1]).max()
            assert np.median(np.abs(ours[1] - torchs[1])) < 0.05 * spread
        engine = Engine(model.replace(parameters=parameters, points=(point._replace(parameter_set=row),)))
        found = score(engine, engine.plan, data.x_test, data.y_test)
        assert found > 0.8 and abs(found - point.score) < 0.012  # 4 of 360 samples


def test_without_an_estimate_mixed_widths_lose_more(trained: tuple[Dataset, Model]) -> None:
    """What the estimate is for: the widths' own sets do not fit a mix of 2 and 8 bits as well."""
    data, model = trained
    graph = model.graph
    wide, narrow = graph.uniform(8), graph.uniform(2)
    mixes = [tuple(a if i % 2 == k else b for i, (a, b) in enumerate(zip(wide, narrow, strict=True))) for k in (0, 1)]
    norms = NormEstimator(model, data.x_train[::3])
    x, y = data.x_train[1::3], data.y_train[1::3]
    errors = []
    for assignment in mixes:
        engine = Engine(model)
        parameters = norms.estimate(assignment)
        point = model.points[0]._replace(assignment=assignment, parameter_set=len(parameters.gain) - 1)
        own = Engine(model.replace(parameters=parameters, points=(point,)))
        errors.append((1 - score(own, own.plan, x, y), 1 - score(engine, engine.build(assignment), x, y)))
    print(errors)
    assert sum(own for own, _ in errors) <= sum(without for _, without in errors)

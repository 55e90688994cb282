"""What the benchmark of drift detectors counts, on streams whose answer is known."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from benchmarks.drift import WITHIN, Measured, Setting, last_feature_map, summary
from benchmarks.drift_streams import Domain
from caq.engine import Engine
from tests import models


def domain(count: int) -> Domain:
    return Domain(np.zeros((count, 1)), np.zeros(count, np.int64), np.arange(count) // 10)


def test_a_stream_shuffles_bouts_and_keeps_each_in_order():
    order = domain(100).stream(np.random.default_rng(0))
    assert sorted(order) == list(range(100)) and (order != np.arange(100)).any()
    assert all((np.diff(order[i : i + 10]) == 1).all() for i in range(0, 100, 10))
    assert len(domain(100).stream(np.random.default_rng(0), 30)) == 30


def test_alarms_and_delays_are_counted():
    rng = np.random.default_rng(0)
    measured = Measured.__new__(Measured)
    others = {"as before": domain(300), "far away": domain(300)}
    measured.case = SimpleNamespace(validation=domain(200), same=domain(200), others=others)  # type: ignore[assignment]
    measured.streams = 4
    for name, count in (("train", 500), ("validation", 200), ("same", 200)):
        setattr(measured, name, {"input": rng.normal(0, 1, (count, 8)), "errors": np.zeros((count, 1))})
    measured.others = {
        "as before": {"input": rng.normal(0, 1, (300, 8))},
        "far away": {"input": rng.normal(3, 1, (300, 8))},
    }
    found = measured.run("input", measured.shift("input", Setting(margin=2.0, memory=32)))
    assert found["alarms"] == [0] * 8 and found["length"] == [200] * 8
    assert found["delays"][:4] == [-1] * 4 and all(7 <= d < 40 for d in found["delays"][4:])
    row = summary([found])
    assert row["streams"] == 8 and row["false_alarms"] == row["per_1000"] == 0 and row["seen"] == 50
    assert 8 <= row["delay"][0] <= row["delay"][1] <= WITHIN


def test_the_last_feature_map_is_what_the_pool_reads():
    model = models.tiny()
    engine = Engine(last_feature_map(model))
    assert [op.kind for op in engine.model.graph.ops] == ["conv"] and list(engine.points) == ["w2a2", "w8a8"]
    codes = engine.run(models.samples(model, 5))
    assert codes.shape == (5, 2 * 2 * 2) and codes.min() >= 0 and codes.max() <= 255 and codes.std() > 1

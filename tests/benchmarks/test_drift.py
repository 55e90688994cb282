"""What the benchmark of drift detectors counts, on streams whose answer is known."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from benchmarks.drift import WITHIN, Measured, Setting, in_a_row, last_feature_map, statistics, summary
from benchmarks.drift_streams import Domain
from caq.calibration.drift import Debounced, StatisticsShift
from caq.calibration.error_streams import DDM
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
        setattr(measured, name, {"input": rng.normal(0, 1, (count, 8)), "errors": rng.random((count, 1)) < 0.1})
    measured.others = {
        "as before": {"input": rng.normal(0, 1, (300, 8)), "errors": rng.random((300, 1)) < 0.1},
        "far away": {"input": rng.normal(3, 1, (300, 8)), "errors": rng.random((300, 1)) < 0.7},
    }
    high, low = measured.of_statistics("input", [Setting(2.0, 32), Setting(0.1, 16)])
    assert high.false == [False] * 8 and high.length == [200] * 8
    assert high.delays[:4] == [None] * 4 and all(d is not None and 8 <= d < 40 for d in high.delays[4:])
    assert all(low.false)
    row = summary([high])
    assert row["streams"] == 8 and row["false_alarms"] == row["per_1000"] == 0 and row["seen"] == 50
    assert 8 <= row["delay"][0] <= row["delay"][1] <= WITHIN
    errors = measured.of_errors(DDM())
    assert errors.length == [200] * 8 and all(d is not None and d < 60 for d in errors.delays[4:])


def test_all_streams_at_once_are_each_stream_by_itself():
    rng = np.random.default_rng(0)
    streams = rng.normal(0.5, 1, (3, 150, 5))
    streams[..., 4] = 7
    reference = rng.normal(0, 1, (100, 5))
    reference[:, 4] = 7
    shift = StatisticsShift.fit(reference, 3.0)
    for stream, found in zip(streams, statistics(shift, streams), strict=True):
        shift.reset()
        seen, debounced = [], Debounced(StatisticsShift.fit(reference, 3.0), hits=8)
        alarms = []
        for x in stream:
            shift.update(x)
            seen.append(shift.statistic)
            debounced.update(x)
            alarms.append(debounced.drift_detected)
        np.testing.assert_allclose(found, seen)
        found[:31] = 0
        assert in_a_row(found[None] > 3.0, 8)[0].argmax() == np.argmax(alarms) > 0


def test_the_last_feature_map_is_what_the_pool_reads():
    model = models.tiny()
    engine = Engine(last_feature_map(model))
    assert [op.kind for op in engine.model.graph.ops] == ["conv"] and list(engine.points) == ["w2a2", "w8a8"]
    codes = engine.run(models.samples(model, 5))
    assert codes.shape == (5, 2 * 2 * 2) and codes.min() >= 0 and codes.max() <= 255 and codes.std() > 1

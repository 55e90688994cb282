"""Labels that come late: they find their sample while it waits, is kept, or is gone, and are learnt from then."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import caq
from caq.calibration.calibrator import Calibrator
from caq.calibration.config import CalibratorConfig
from caq.calibration.core import UNLABELLED
from caq.calibration.waiting import WaitingRoom
from caq.engine import Engine
from caq.errors import DataError, StateFormatError, StateWriteError
from tests import models
from tests.calibration.streams import core_of, drifted, parameters_of, source


@pytest.fixture(scope="module")
def world():
    model, x, y = source()
    stream = models.samples(model, 240, seed=1)
    engine = Engine(model)
    engine.select("w8a8")
    return model, core_of(model, x, y), drifted(stream), engine.run(stream).argmax(1)


def room(*y: int) -> WaitingRoom:
    none = WaitingRoom.empty((1, 1, 2))
    found = none.with_samples(np.arange(2 * len(y), dtype=np.int8).reshape(-1, 1, 1, 2), np.arange(len(y)), 100)
    for at, label in enumerate(y):
        found = found.with_label(at, label)
    return found


def test_who_came_first_leaves_first():
    full = room(-1, 4, -1).with_samples(np.full((2, 1, 1, 2), 9, np.int8), np.array([7, 8]), 4)
    assert full.ids.tolist() == [1, 2, 7, 8] and full.y.tolist() == [4, -1, -1, -1] and len(full) == 4
    assert full.take(known=True).ids.tolist() == [1] and full.take(known=False).x[-1].tolist() == [[[9, 9]]]
    assert len(full.with_samples(full.x, np.arange(9, 13), 0)) == 0


def test_a_room_is_read_back_and_what_is_none_is_refused():
    full = room(-1, 2)
    again = WaitingRoom.from_arrays(full.to_arrays(), (1, 1, 2), 3)
    assert all(np.array_equal(a, b) for a, b in zip(vars(again).values(), vars(full).values(), strict=True))
    arrays = full.to_arrays()
    for wrong in (
        {"y": np.array([0, 3], np.int16)},
        {"ids": np.array([1, 1])},
        {"ids": np.array([1, 2, 3])},
        {"x": arrays["x"].astype(np.int16)},
        {"x": arrays["x"][:1]},
    ):
        with pytest.raises(StateFormatError, match="waiting room"):
            WaitingRoom.from_arrays({**arrays, **wrong}, (1, 1, 2), 3)
    with pytest.raises(StateFormatError, match="ids"):
        WaitingRoom.from_arrays({name: arrays[name] for name in ("x", "y")}, (1, 1, 2), 3)


def test_a_label_before_the_step_is_as_one_that_came_with_the_sample(world):
    model, core, x, y = world
    late, prompt = (Calibrator(model, core, config=CalibratorConfig(batch=20)) for _ in range(2))
    for i in range(20):
        prompt.learn_one(x[i], int(y[i]))
        if i < 19:
            assert late.next_id == i
            late.learn_one(x[i])
            late.label(i, int(y[i]))
    late.learn_one(x[19], int(y[19]))
    assert late.steps == prompt.steps == 1 and parameters_of(late.model) == parameters_of(prompt.model)
    assert np.array_equal(late.core.y, prompt.core.y)


def test_a_label_after_the_step_is_learnt_from_by_the_biases_alone(world):
    model, core, x, y = world
    config = CalibratorConfig(rungs=("statistics", "biases"), batch=20, guarded=False)
    calibrator = Calibrator(model, core, config=config)
    calibrator.partial_fit(x[:40])
    statistics, seen = calibrator._learnt.statistics, calibrator.core.seen
    results = [calibrator.label(i, int(y[i])) for i in range(40)]
    steps = [r for r in results if r is not None]
    assert len(steps) == 2 and all([e["what"] for e in r.records] == ["biases"] for r in steps)
    assert np.array_equal(calibrator._learnt.statistics.mean, statistics.mean) and calibrator.core.seen == seen
    assert (calibrator._learnt.biases.count > 0).all() and not len(calibrator._learnt.waiting)
    kept = calibrator.core.ids[calibrator.core.ids >= 0]
    assert len(kept) and np.array_equal(calibrator.core.y[calibrator.core.ids >= 0], y[kept])


def test_a_label_that_is_too_late_is_counted_and_one_of_no_sample_is_refused(world):
    model, core, x, y = world
    calibrator = Calibrator(model, core, config=CalibratorConfig(waiting=5, keep=1.0))
    calibrator.partial_fit(x[:40])
    assert calibrator._learnt.waiting.ids.tolist() == [35, 36, 37, 38, 39]
    assert calibrator.label(3, int(y[3])) is None and calibrator.too_late == 1
    for sample, label in ((40, 0), (-1, 0), (37, UNLABELLED), (37, 99)):
        with pytest.raises(DataError):
            calibrator.label(sample, label)
    assert calibrator.too_late == 1


def test_restarts_keep_who_waits(world, tmp_path):
    model, core, x, y = world
    caq.save(model, tmp_path / "x.caq")
    found = []
    for cut in (False, True):
        folder, config = tmp_path / str(cut), CalibratorConfig(batch=20)
        calibrator = Calibrator(tmp_path / "x.caq", core, folder, config)
        calibrator.partial_fit(x[:40])
        for i in range(40):
            if cut and i % 7 == 0:
                calibrator.close()
                calibrator = Calibrator(tmp_path / "x.caq", core, folder, config)
                assert calibrator.next_id == 40
            calibrator.label(i, int(y[i]))
        calibrator.close()
        found.append((calibrator.steps, parameters_of(calibrator.model), calibrator._learnt.waiting.ids.tolist()))
    assert found[0] == found[1] and found[0][0] == 3


def test_a_step_that_fails_loses_its_samples_and_no_more(world, tmp_path, monkeypatch):
    model, core, x, y = world
    caq.save(model, tmp_path / "x.caq")
    with Calibrator(tmp_path / "x.caq", core, tmp_path / "s") as calibrator:
        calibrator.partial_fit(x[:40], y[:40])
        before = calibrator._learnt

        def full(*_):
            raise StateWriteError("no space")

        with monkeypatch.context() as m:
            m.setattr(calibrator._folder, "save", full)
            for _ in range(3):
                with pytest.raises(StateWriteError):
                    calibrator.partial_fit(x[40:80], y[40:80])
        now = calibrator._learnt
        assert not len(now.pending) and calibrator.next_id == 160 and calibrator.steps == 1
        assert now.parameters is before.parameters and calibrator.model.parameters is before.parameters
        assert replace(now.core, seen=40).ids.tolist() == before.core.ids.tolist()
        assert calibrator.partial_fit(x[80:120], y[80:120]) is not None

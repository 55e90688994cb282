"""Calibration in a thread: the bits of the same calibrator without one, and inference that never waits for it."""

from __future__ import annotations

import os
import sys
import threading

import numpy as np
import pytest

import caq
from caq.calibration import background
from caq.calibration.background import SWITCH_INTERVAL_S, BackgroundCalibrator
from caq.calibration.calibrator import Calibrator
from caq.calibration.config import CalibratorConfig
from caq.engine import Engine
from caq.errors import ConfigError, DataError, RuntimeClosedError, SchemaError, StateWriteError
from caq.runtime import Runtime
from tests import models
from tests.calibration.streams import core_of, drifted, parameters_of, source
from tests.fake_engine import FakeEngine

FREE = CalibratorConfig(guarded=False)
#: For what takes a moment, unless others want the CPUs.
LONG_S = 120


@pytest.fixture(autouse=True)
def as_urgent_as_others(monkeypatch):
    """A nice thread would hardly come to its turn on a busy machine."""
    monkeypatch.setattr(background, "NICENESS", 0)


@pytest.fixture(scope="module")
def world():
    model, x, y = source()
    stream = models.samples(model, 240, seed=1)
    engine = Engine(model)
    engine.select("w8a8")
    return model, core_of(model, x, y), drifted(stream), engine.run(stream).argmax(1)


@pytest.fixture
def started(world):
    """Makes a calibration that runs, and its engine; ends it after the test."""
    running = []

    def start(config=FREE, **options):
        model, core, *_ = world
        engine, calibration = Engine(model), BackgroundCalibrator(Calibrator(model, core, config=config), **options)
        calibration.start(engine)
        running.append(calibration)
        return engine, calibration

    yield start
    for calibration in running:
        calibration.close()


class Blocked:
    """A calibrator's step that waits until it is let go."""

    def __init__(self, monkeypatch, calibration):
        self.free, self.entered = threading.Event(), threading.Event()
        step = calibration._calibrator._step

        def wait():
            self.entered.set()
            assert self.free.wait(LONG_S)
            return step()

        monkeypatch.setattr(calibration._calibrator, "_step", wait)


def test_the_thread_finds_what_a_calibrator_finds(world, started):
    model, core, x, y = world
    records = []
    engine, calibration = started(CalibratorConfig(), record=records.append)
    alone = Calibrator(model, core)
    for a, b in zip(x[:100], y[:100], strict=True):
        assert calibration.learn_one(a, int(b)) is not None
        alone.learn_one(a, int(b))
    assert calibration.wait_idle(LONG_S)
    assert parameters_of(engine.model) == parameters_of(alone.model) != parameters_of(model)
    counts = calibration.counts
    assert counts.taken == 100 and counts.steps == 5 and counts.promoted >= 1 and counts.failed == counts.refused == 0
    assert (
        [e["what"] for e in calibration.history] == [e["what"] for e in alone.history] == [e["what"] for e in records]
    )
    promoted = next(e for e in calibration.history if e["promoted"])
    assert {"accuracy_before", "accuracy_after", "bytes", "ms", "sets", "step"} <= promoted.keys()


def test_the_thread_rests_between_its_pieces_of_work(world, started, monkeypatch):
    _, _, x, y = world
    rests = {}
    for rest in (0.0, 2.0):
        _, calibration = started(rest=rest)
        clock, slept = calibration._calibrator.clock, []
        monkeypatch.setattr(clock, "_sleep", slept.append)
        for a, b in zip(x[:20], y[:20], strict=True):
            calibration.learn_one(a, int(b))
        assert calibration.wait_idle(LONG_S)
        rests[rest] = slept
    assert len(rests[0.0]) == len(rests[2.0]) > 6  # at least one for each set and rung
    assert sum(rests[0.0]) == 0 < sum(rests[2.0])


def test_nothing_waits_for_a_step_and_a_full_queue_refuses(world, started, monkeypatch):
    _, _, x, y = world
    engine, calibration = started(queue_size=30)
    blocked = Blocked(monkeypatch, calibration)
    for i in range(20):
        assert calibration.learn_one(x[i]) == i
    assert blocked.entered.wait(LONG_S)
    engine.run(x[0])  # a step is under way
    ids = [calibration.learn_one(x[i]) for i in range(20, 60)]
    assert ids == [*range(20, 50), *[None] * 10] and calibration.counts.refused == 10
    assert not calibration.label(3, int(y[3])) and calibration.counts.refused == 11
    assert not calibration.wait_idle(0.01)
    blocked.free.set()
    assert calibration.wait_idle(LONG_S) and calibration.counts.steps == 2
    assert calibration.learn_one(x[60]) == 50
    assert calibration.wait_idle(LONG_S) and calibration._calibrator.next_id == 51


def test_late_labels_find_their_samples_after_refusals_and_failures(world, started, monkeypatch):
    _, _, x, y = world
    _, calibration = started(CalibratorConfig(guarded=False, batch=10))
    calibrator = calibration._calibrator
    calls, keep = [], calibrator._keep

    def failing(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise StateWriteError("no space")
        return keep(*arguments)

    monkeypatch.setattr(calibrator, "_keep", failing)
    ids = []
    for a in x[:40]:
        ids.append(calibration.learn_one(a))
    assert calibration.wait_idle(LONG_S)
    assert ids == list(range(40)) and calibrator.next_id == 40 and calibration.counts.failed == 1
    for i in ids:
        assert calibration.label(i, int(y[i]))
    assert calibration.wait_idle(LONG_S)
    assert calibration.counts.too_late == 10  # those of the step that failed
    kept = calibrator.core.ids >= 0
    assert np.array_equal(calibrator.core.y[kept], y[calibrator.core.ids[kept]])


def test_what_is_raised_ends_a_step_and_neither_the_thread_nor_inference(world, started, monkeypatch, caplog):
    _, _, x, y = world
    records = []
    engine, calibration = started(record=records.append)
    ladder, broken = calibration._calibrator._ladder, True
    climb = ladder.climb

    def failing(*arguments):
        if broken:
            raise ZeroDivisionError("a bug")
        return climb(*arguments)

    monkeypatch.setattr(ladder, "climb", failing)
    before = parameters_of(engine.model)
    for a, b in zip(x[:20], y[:20], strict=True):
        calibration.learn_one(a, int(b))
    assert calibration.wait_idle(LONG_S) and calibration.running and parameters_of(engine.model) == before
    (failure,) = calibration.history
    assert failure["what"] == "failure" and "ZeroDivisionError: a bug" in failure["reasons"][0]
    assert records == [failure] and "inference goes on" in caplog.text and calibration.counts.failed == 1
    broken = False
    for a, b in zip(x[20:40], y[20:40], strict=True):
        calibration.learn_one(a, int(b))
    assert calibration.wait_idle(LONG_S) and calibration.counts.promoted == 1
    assert parameters_of(engine.model) == parameters_of(calibration._calibrator.model) != before


def test_a_record_that_fails_is_logged(world, started, caplog):
    def full(entry):
        raise OSError("no space")

    _, calibration = started(record=full)
    for a in world[2][:20]:
        calibration.learn_one(a)
    assert calibration.wait_idle(LONG_S) and calibration.counts.failed == 0 and "audit" in caplog.text


def test_every_answer_is_that_of_one_plan_that_was_in_force(world, started, monkeypatch):
    _, _, x, y = world
    engine, calibration = started()
    probe, wrong, stop = x[:3], [], threading.Event()
    known = {engine.run(probe).tobytes()}
    adopt = engine.adopt

    def noted(parameters, gates):
        other = Engine(world[0])
        other.adopt(parameters, gates)
        other.select(engine.point)
        known.add(other.run(probe).tobytes())
        adopt(parameters, gates)

    monkeypatch.setattr(engine, "adopt", noted)

    def infer():
        while not stop.is_set():
            if engine.run(probe).tobytes() not in known:
                wrong.append(1)

    threads = [threading.Thread(target=infer) for _ in range(3)]
    for thread in threads:
        thread.start()
    for a, b in zip(x[:120], y[:120], strict=True):
        calibration.learn_one(a, int(b))
    assert calibration.wait_idle(LONG_S)
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong and len(known) > 3 and calibration.counts.promoted == 6


def test_close_ends_after_the_step_keeps_the_state_and_counts_what_is_lost(world, tmp_path, monkeypatch):
    model, core, x, y = world
    caq.save(model, tmp_path / "x.caq")
    runtime = Runtime(
        tmp_path / "x.caq",
        calibration=BackgroundCalibrator(Calibrator(tmp_path / "x.caq", core, tmp_path / "s", FREE)),
        auto=False,
    )
    calibration = runtime.calibration
    for i in range(25):
        runtime.learn_one(x[i], int(y[i]))
    assert calibration.wait_idle(LONG_S) and calibration.counts.promoted == 1
    blocked = Blocked(monkeypatch, calibration)
    for i in range(25, 47):
        runtime.learn_one(x[i], int(y[i]))
    assert blocked.entered.wait(LONG_S)
    assert not calibration.close(0.05) and calibration.running  # it does not wait for ever
    blocked.free.set()
    runtime.close()
    assert not calibration.running and calibration.counts.lost == 7
    with pytest.raises(RuntimeClosedError):
        runtime.learn_one(x[0])
    after = parameters_of(calibration._calibrator.model)
    again = BackgroundCalibrator(Calibrator(tmp_path / "x.caq", core, tmp_path / "s", FREE))
    with Runtime(tmp_path / "x.caq", calibration=again, auto=False) as runtime:
        assert parameters_of(runtime._engine.model) == after and again.counts.steps == 0
        assert runtime.learn_one(x[47]) == 40  # the first sample after those of two steps


def test_its_thread_is_nicer_and_gives_the_interpreter_back(world, started, monkeypatch):
    seen, interval = [], sys.getswitchinterval()
    monkeypatch.setattr(background, "NICENESS", 3)
    _, calibration = started()
    step = calibration._calibrator._step

    def look():
        own = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
        seen.append((own, sys.getswitchinterval()))
        return step()

    monkeypatch.setattr(calibration._calibrator, "_step", look)
    for a in world[2][:20]:
        calibration.learn_one(a)
    assert calibration.wait_idle(LONG_S) and sys.getswitchinterval() == interval
    mine = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    expected = min(mine + 3, 19) if sys.platform == "linux" else mine
    assert seen == [(expected, pytest.approx(min(SWITCH_INTERVAL_S, interval)))]


def test_bad_arguments(world):
    model, core, x, y = world
    with pytest.raises(ConfigError, match="queue_size"):
        BackgroundCalibrator(Calibrator(model, core), queue_size=0)
    for rest in (-1.0, float("inf"), float("nan")):
        with pytest.raises(ConfigError, match="rest"):
            BackgroundCalibrator(Calibrator(model, core), rest=rest)
    calibration = BackgroundCalibrator(Calibrator(model, core))
    with pytest.raises(ConfigError, match="adopt"):
        Runtime(FakeEngine(), calibration=calibration, auto=False)
    with Runtime(model, auto=False) as runtime, pytest.raises(ConfigError, match="does not calibrate"):
        runtime.learn_one(x[0])
    with Runtime(model, calibration=calibration, auto=False) as runtime:
        for bad in (x[:2], np.full_like(x[0], np.nan), x[0][:1]):
            with pytest.raises(DataError):
                runtime.learn_one(bad)
        with pytest.raises(DataError):
            runtime.learn_one(x[0], 99)
        assert runtime.learn_one(x[0]) == 0
        for sample, label in ((1, 0), (0, -1), (0, 99)):
            with pytest.raises(DataError):
                runtime.label(sample, label)
        assert runtime.label(0, int(y[0]))
        with pytest.raises(ConfigError, match="before"):
            calibration.start(Engine(model))
    unused = BackgroundCalibrator(Calibrator(model, core))
    assert unused.close()
    with pytest.raises(ConfigError, match="before"):
        unused.start(Engine(model))


def test_the_source_is_measured_before_the_first_sample_comes(world, started, monkeypatch):
    measured = threading.Event()
    measure = Calibrator.measure_source

    def noted(self, check):
        measure(self, check)
        measured.set()

    monkeypatch.setattr(Calibrator, "measure_source", noted)
    _, calibration = started()
    assert measured.wait(LONG_S)
    rung = calibration._calibrator._ladder._domains
    sets = {which.row for which in calibration._calibrator._sets}
    assert set(rung._source) == set(rung._statistics._source) == sets
    assert calibration.counts.steps == calibration.counts.failed == 0
    alone = Calibrator(world[0], world[1], config=FREE)
    for a, b in zip(world[2][:20], world[3][:20], strict=True):
        calibration.learn_one(a, int(b))
        alone.learn_one(a, int(b))
    assert calibration.wait_idle(LONG_S)  # and no bit is another
    assert parameters_of(calibration._calibrator.model) == parameters_of(alone.model)


def test_a_source_that_cannot_be_measured_is_told_and_closing_does_not_wait_for_it(started, monkeypatch):
    def refused(self, check):
        raise SchemaError("its outputs exceed")

    monkeypatch.setattr(Calibrator, "measure_source", refused)
    _, calibration = started()
    calibration.close()
    assert calibration.counts.failed == 1 and "measuring the source" in calibration.history[-1]["reasons"][0]

    def endless(self, check):
        while True:
            check()

    monkeypatch.setattr(Calibrator, "measure_source", endless)
    _, calibration = started()
    calibration.close(timeout_s=LONG_S)
    assert not calibration.running and calibration.counts.failed == 0

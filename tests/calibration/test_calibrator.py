"""The calibrator: what helps is promoted, what harms is not; restarts change no bit, budgets hold."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

import caq
from caq.calibration.calibrator import Calibrator, count_misses, make_core
from caq.calibration.config import CalibratorConfig
from caq.calibration.judge import held_out
from caq.calibration.sets import ROWS, coded, logits, parameter_sets
from caq.engine import Engine
from caq.errors import ConfigError, DataError, StateFormatError, StateMismatchError, UnsupportedError
from tests import models
from tests.calibration.streams import core_of, drifted, parameters_of, source


@pytest.fixture(scope="module")
def world():
    """A model, a core set, and a stream of drifted samples with its labels."""
    model, x, y = source()
    stream = models.samples(model, 240, seed=1)
    engine = Engine(model)
    engine.select("w8a8")
    return model, core_of(model, x, y), drifted(stream), engine.run(stream).argmax(1)


@pytest.fixture(scope="module")
def artifact(world, tmp_path_factory):
    path = tmp_path_factory.mktemp("calibrator") / "x.caq"
    caq.save(world[0], path)
    return path


def accuracy(model, x, y):
    engine, found = Engine(model), []
    for point in engine.points:
        engine.select(point)
        found.append(float((engine.run(x).argmax(1) == y).mean()))
    return np.array(found)


def fed(calibrator, x, y, batch=40):
    for start in range(0, len(x), batch):
        part = slice(start, start + batch)
        calibrator.partial_fit(x[part], None if y is None else y[part])
    return calibrator


def test_a_drifted_stream_with_labels_is_followed(world):
    model, core, x, y = world
    before = accuracy(model, x[160:], y[160:])
    # What this network knew and what it is to learn differ.
    config = CalibratorConfig(rungs=("statistics", "biases"), forgetting=1.0)
    calibrator = fed(Calibrator(model, core, config=config), x[:160], y[:160])
    promoted = [record for record in calibrator.history if record["promoted"]]
    assert promoted and calibrator.steps == 4
    after = accuracy(calibrator.model, x[160:], y[160:])
    assert after.mean() > before.mean() + 0.03 and after[2] > before[2] + 0.1
    assert parameters_of(calibrator.model) != parameters_of(model)
    assert {"what", "promoted", "reasons", "accuracy_before", "accuracy_after", "bytes", "ms"} <= set(promoted[0])


def test_labels_are_not_needed_for_the_first_rung(world):
    model, core, x, y = world
    calibrator = fed(Calibrator(model, core), x, None)
    assert {record["what"] for record in calibrator.history} == {"statistics", "domain"}
    assert (accuracy(calibrator.model, x, y) >= accuracy(model, x, y) - 0.02).all()


def test_a_harmful_batch_is_rolled_back(world):
    model, core, *_ = world
    clean = models.samples(model, 120, seed=2)
    engine = Engine(model)
    engine.select("w8a8")
    good, wrong = engine.run(clean).argmax(1), np.zeros(120, np.int64)  # every label says class 0
    batch, before = np.flatnonzero(good != 0)[:40], accuracy(model, clean, good)
    eager = CalibratorConfig(rungs=("biases",), bias_prior=1e-6, core_weight=1e-6)
    free = Calibrator(model, core, config=replace(eager, guarded=False))
    free.partial_fit(clean[batch], wrong[batch])
    assert accuracy(free.model, clean, good).mean() < before.mean() - 0.2
    guarded = Calibrator(model, core, config=eager)
    (record,) = guarded.partial_fit(clean[batch], wrong[batch]).records
    assert not record["promoted"] and any("factory loses" in reason for reason in record["reasons"])
    assert parameters_of(guarded.model) == parameters_of(model)


def test_sets_that_are_not_named_in_the_record_keep_every_bit(world):
    model, core, x, y = world
    calibrator = Calibrator(model, core)
    names = [which.name for which in parameter_sets(model)]
    for start in range(0, 160, 40):
        before = calibrator.model.parameters
        result = calibrator.partial_fit(x[start : start + 40], y[start : start + 40])
        changed = {name for record in result.records if record["promoted"] for name in record["sets"]}
        for row, name in enumerate(names):
            if name not in changed:
                assert np.array_equal(before.gain[row], calibrator.model.parameters.gain[row])
                assert np.array_equal(before.bias[row], calibrator.model.parameters.bias[row])


def test_learn_one_collects_a_batch(world):
    model, core, x, y = world
    one, many = (Calibrator(model, core, config=CalibratorConfig(batch=30)) for _ in range(2))
    results = [one.learn_one(a, int(b)) for a, b in zip(x[:60], y[:60], strict=True)]
    assert [i for i, r in enumerate(results) if r is not None] == [29, 59]
    many.partial_fit(x[:30], y[:30])
    many.partial_fit(x[30:60], y[30:60])
    assert parameters_of(one.model) == parameters_of(many.model)


@pytest.mark.parametrize("on_drift", [False, True])
def test_restarts_change_no_bit(world, artifact, tmp_path, on_drift):
    _, core, x, y = world
    config = CalibratorConfig(batch=25, on_drift=on_drift)
    untouched = artifact.read_bytes()
    through = Calibrator(artifact, core, tmp_path / "through", config)
    for a, b in zip(x, y, strict=True):
        through.learn_one(a, int(b))
    at = 0
    for end in (7, 60, 61, 130, 240):  # in the middle of batches too
        with Calibrator(artifact, core, tmp_path / "cut", config) as cut:
            assert not cut.problems
            for a, b in zip(x[at:end], y[at:end], strict=True):
                cut.learn_one(a, int(b))
        at = end
    through.close()
    assert through.steps > 1 and parameters_of(cut.model) == parameters_of(through.model)
    assert all(
        np.array_equal(a, b) for a, b in zip(vars(cut._learnt.core).values(), vars(through.core).values(), strict=True)
    )
    assert cut._learnt.random.tolist() == through._learnt.random.tolist()
    assert np.array_equal(cut._learnt.biases.a, through._learnt.biases.a)
    assert artifact.read_bytes() == untouched


class Clock:
    """Each look at it takes a millisecond."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        self.now += 1e-3
        return self.now


def test_a_budget_of_time_ends_a_step_and_later_ones_go_on(world):
    model, core, x, y = world
    ample = CalibratorConfig(max_ms=1e9)
    unlimited = Calibrator(model, core, config=ample, clock=Clock()).partial_fit(x[:40], y[:40]).ms
    turns, late = set(), 0
    for most in (1, 5, 20, 50, 100, 300):
        calibrator = Calibrator(model, core, config=CalibratorConfig(max_ms=most), clock=Clock())
        for start in range(0, 240, 40):
            part = slice(start, start + 40)
            result = calibrator.partial_fit(x[part], y[part])
            assert result.ms < most + 15  # what looks at the clock besides work: each rung, and the end of the step
            turns.add(calibrator._learnt.turn)
            late += sum("time was over" in reason for r in result.records for reason in r["reasons"])
        assert calibrator.steps == 6 and calibrator.core.seen == 240
    assert unlimited > 40 and late > 5 and len(turns) > 1  # so it was short, and every set has its turn


def test_a_budget_of_bytes_is_kept(world, artifact, tmp_path):
    _, core, x, y = world
    with pytest.raises(ConfigError, match="smaller core"):
        Calibrator(artifact, core, config=CalibratorConfig(max_bytes=2000))
    config = CalibratorConfig(head_samples=100)
    with pytest.raises(ConfigError, match="may take") as refused:
        Calibrator(artifact, core, config=replace(config, max_bytes=1))
    needed = int(re.search(r"may take (\d+)", str(refused.value))[1])
    with pytest.raises(ConfigError, match="may take"):
        Calibrator(artifact, core, config=replace(config, max_bytes=needed - 1))
    with Calibrator(artifact, core, tmp_path / "s", replace(config, max_bytes=needed)) as calibrator:
        fed(calibrator, x, y)  # what rungs keep of it is more than they had at the start
        fed(calibrator, x[:160], None)
        for a in x[: config.batch - 1]:
            calibrator.learn_one(a)
    largest = max(path.stat().st_size for path in (tmp_path / "s").iterdir())
    assert needed - core.x[:1].nbytes - 100 < largest <= needed + 32


def test_a_set_that_nothing_runs_at_is_passed_over(world, tmp_path):
    model, core, x, y = world
    rows = {name: getattr(model.parameters, name) for name in ROWS}
    more = model.parameters.replace(**{name: np.concatenate([a, a[:1]]) for name, a in rows.items()})
    caq.save(model.replace(parameters=more), tmp_path / "x.caq")
    config = CalibratorConfig(guarded=False)
    with Calibrator(tmp_path / "x.caq", core, tmp_path / "s", config) as calibrator:
        fed(calibrator, x[:160], y[:160])
        found, same = calibrator.coded, fed(Calibrator(model, core, config=config), x[:160], y[:160]).coded
        codes = model.encode(x)[0].astype(np.int16)
        ours, wanted = (logits(m, parameter_sets(model), codes) for m in (found, same))
        assert all(np.array_equal(ours[name], wanted[name]) for name in wanted)
    Calibrator(tmp_path / "x.caq", core, tmp_path / "s", config).close()


def test_drift_starts_calibration_and_its_absence_does_not(world):
    model, core, x, y = world
    config = CalibratorConfig(on_drift=True, follow=40)
    calm = Calibrator(model, core, config=config)
    same = models.samples(model, 400, seed=5)
    assert all(calm.learn_one(a) is None for a in same) and not calm.drifting
    assert calm.partial_fit(same[:50]) is None and calm.steps == 0
    calibrator = Calibrator(model, core, config=config)
    assert any(calibrator.learn_one(a, int(b)) for a, b in zip(x, y, strict=True))


def test_the_slice_is_never_calibrated_with(world):
    ids = np.concatenate([-1 - np.arange(500), np.arange(500)])
    held = held_out(ids, 0)
    assert 0.25 < held.mean() < 0.35 and np.array_equal(held, held_out(ids, 0))
    assert np.array_equal(held[[3, 700]], held_out(ids[[3, 700]], 0)) and not np.array_equal(held, held_out(ids, 1))
    # Labels that are wrong on held-out samples alone change what is promoted, but nothing that a rung learns.
    model, core, x, y = world
    out = held_out(np.arange(40), 0)
    lied = np.where(out, (y[:40] + 1) % 3, y[:40])
    config = CalibratorConfig(guarded=False)
    a, b = (Calibrator(model, core, config=config) for _ in range(2))
    a.partial_fit(x[:40], y[:40])
    b.partial_fit(x[:40], lied)
    assert out.any() and parameters_of(a.model) == parameters_of(b.model)


def test_a_core_counts_what_quantization_breaks(world):
    model, core, _, _ = world
    assert core.widths == model.graph.widths and core.x.dtype == np.int8 and len(core) == 60
    assert not core.misses[:, -1].any() and core.misses[:, 0].any()  # labels are what the widest says
    wrong = count_misses(coded(model), core.x, core.y)
    assert np.array_equal(wrong.T, core.misses)
    unlabelled = count_misses(coded(model), core.x, np.full(60, -1))
    assert not unlabelled.any()


def test_bad_arguments(world, artifact, tmp_path):
    model, core, x, y = world
    calibrator = Calibrator(model, core)
    for labels in (y[:3], np.array([9, 0]), np.array([0.0, 1.0]), np.array([-2, 0])):
        with pytest.raises(DataError):
            calibrator.partial_fit(x[:2], labels)
    with pytest.raises(DataError):
        calibrator.learn_one(np.full_like(x[0], np.nan), 0)
    with pytest.raises(ConfigError, match="path"):
        Calibrator(model, core, tmp_path / "s")
    with pytest.raises(ConfigError, match="rungs"):
        CalibratorConfig(rungs=("biases", "statistics"))
    with pytest.raises(ConfigError, match="max_ms"):
        CalibratorConfig(max_ms=0)
    with pytest.raises(UnsupportedError, match="classes"):
        Calibrator(models.model(0, task="reconstruct"), core)
    with pytest.raises(StateFormatError, match="make_core"):
        Calibrator(model, replace(core, x=core.x.astype(np.int16)))
    with pytest.raises(DataError, match="factory"):
        Calibrator(model, replace(core, y=np.full(60, -1, np.int16)))
    with Calibrator(artifact, core, tmp_path / "s") as kept:
        kept.partial_fit(x[:40], y[:40])
    other = make_core(model, x, y, size=60, seed=1)
    with pytest.raises(StateMismatchError, match="another core set"):
        Calibrator(artifact, other, tmp_path / "s")

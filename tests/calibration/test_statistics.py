"""The statistics rung: outputs get back the source's moments, at one set and no other."""

from __future__ import annotations

import numpy as np
import pytest

from caq.calibration.calibrator import Calibrator
from caq.calibration.config import CalibratorConfig
from caq.calibration.cuts import Cut, measure_outputs
from caq.calibration.deadline import OutOfTime
from caq.calibration.norms import has_norm
from caq.calibration.sets import coded, logits, parameter_sets
from caq.calibration.statistics import Running, StatisticsRung
from caq.conditional import prefix_rows
from caq.engine import Engine
from caq.errors import StateFormatError
from caq.plan import affine
from tests import models
from tests.calibration.streams import core_of, drifted, source
from tests.conditional_models import with_gate


def made(seed=3, prior=1e-6):
    raw = models.model(seed, dtype="float32")
    x = models.samples(raw, 80)
    model = coded(raw)
    codes, stream = (raw.encode(a)[0].astype(np.int16) for a in (x, drifted(x)))
    fixed = np.zeros((len(model.parameters.gain), len(model.graph.layers)), bool)
    return raw, model, x, codes, stream, StatisticsRung(model, codes, prior, 1000, fixed)


def test_a_coded_model_answers_as_the_model_does():
    raw, model, x, codes, *_ = made()
    program_answers = logits(model, parameter_sets(raw), codes)
    engine = Engine(raw)
    for which in parameter_sets(raw):
        engine.select(which.name)
        assert np.array_equal(program_answers[which.name], engine.run(x) * np.float64(raw.parameters.steps[-1]))


@pytest.mark.parametrize("seed", range(4))
def test_without_a_prior_moments_become_the_sources(seed):
    raw, model, _, codes, stream, rung = made(seed)
    changed = 0.0
    for which in parameter_sets(raw):
        found, _ = rung.propose(which, model.parameters, Running.empty(model.parameters), stream, lambda: None)
        for layer in model.graph.layers:
            if not has_norm(model.parameters, model.graph, layer):
                continue
            cut = Cut(model, layer.index)
            target = measure_outputs(cut, model.parameters, which.assignment, which.row, codes)
            after = measure_outputs(cut, found, which.assignment, which.row, stream)
            before = measure_outputs(cut, model.parameters, which.assignment, which.row, stream)
            (new, _), (old, _) = (affine(p, layer, which.row) for p in (found, model.parameters))
            free = (after.deviation > 0) & (np.abs(new) < 7.9 * np.abs(old))
            scale = max(1.0, float(np.abs(target.mean).max() + target.deviation.max()))
            assert np.abs(after.mean - target.mean).max() < 0.01 * scale
            assert np.abs(after.deviation - target.deviation)[free].max(initial=0) < 0.01 * scale
            changed = max(changed, float(np.abs(before.mean - target.mean).max()))
    assert changed > 1


def test_a_large_prior_keeps_the_factorys_parameters():
    raw, model, _, _, stream, rung = made(prior=1e9)
    which = parameter_sets(raw)[0]
    found, _ = rung.propose(which, model.parameters, Running.empty(model.parameters), stream, lambda: None)
    for layer in model.graph.layers:
        for a, b in zip(affine(found, layer, which.row), affine(model.parameters, layer, which.row), strict=True):
            assert np.allclose(a, b, rtol=1e-3, atol=1e-3 * np.abs(b).max())


def test_one_set_is_calibrated_and_no_bit_of_another_changes():
    raw, model, _, _, stream, rung = made()
    sets = parameter_sets(raw)
    before = logits(model, sets, stream)
    for which in sets:
        found, running = rung.propose(which, model.parameters, Running.empty(model.parameters), stream, lambda: None)
        after = logits(model.replace(parameters=found), sets, stream)
        for other in sets:
            assert np.array_equal(before[other.name], after[other.name]) == (other != which)
        assert np.flatnonzero(running.count).tolist() == [which.row]


def test_averages_of_two_batches_are_those_of_one_where_the_parameters_are():
    raw, model, _, _, stream, rung = made()
    which, empty = parameter_sets(raw)[1], Running.empty(model.parameters)
    _, once = rung.propose(which, model.parameters, empty, stream, lambda: None)
    _, half = rung.propose(which, model.parameters, empty, stream[:40], lambda: None)
    _, twice = rung.propose(which, model.parameters, half, stream[40:], lambda: None)
    assert once.count[which.row] == twice.count[which.row] == 80
    first = slice(0, model.graph.layers[0].channels)  # which reads the same whatever is calibrated
    assert np.allclose(once.mean[which.row, first], twice.mean[which.row, first], atol=1e-9)


def test_work_can_be_stopped_and_leaves_nothing():
    raw, model, _, _, stream, rung = made()
    left, before = iter([None] * 3), Running.empty(model.parameters)

    def check():
        if next(left, 1) == 1:
            raise OutOfTime

    gain = model.parameters.gain.copy()
    with pytest.raises(OutOfTime):
        rung.propose(parameter_sets(raw)[0], model.parameters, before, stream, check)
    assert np.array_equal(gain, model.parameters.gain) and not before.count.any()


def test_bad_averages_are_refused():
    model = models.model(0)
    good = Running.empty(model.parameters)
    assert np.array_equal(Running.from_arrays(good.to_arrays(), model.parameters).mean, good.mean)
    for name, value in (("count", -np.ones(4)), ("variance", good.variance - 1), ("mean", good.mean[:, 1:])):
        with pytest.raises(StateFormatError):
            Running.from_arrays({**good.to_arrays(), name: value}, model.parameters)


@pytest.mark.parametrize("guarded", [False, True])
@pytest.mark.parametrize("seed", [0, 1])
def test_branches_of_a_gate_keep_alike_what_they_share(seed, guarded):
    """And each is calibrated behind the gate, at its own assignment."""
    plain, x, y = source()
    model = with_gate(plain, seed, 3)
    gate = model.points[-1].gate
    assert gate is not None
    names = [f"conditional/{i}" for i, branch in enumerate(gate.branches) if branch.parameter_set is not None]
    assert {which.name for which in parameter_sets(model)} >= set(names) and len(names) > 1
    shared = prefix_rows(model.graph, model.parameters, [gate])
    assert shared.any() and not shared.all()
    config = CalibratorConfig(rungs=("statistics", "biases"), guarded=guarded, forgetting=9.0, max_ms=1e9)
    calibrator = Calibrator(model, core_of(model, x, y), config=config)
    for start in range(0, 120, 40):
        calibrator.partial_fit(drifted(x[start : start + 40]), None)
    engine = Engine(calibrator.model)  # refuses branches that differ before the gate
    engine.select("conditional")
    assert engine.run(x[:8]).shape[0] == 8
    before, after = model.parameters, calibrator.model.parameters
    changed = set()
    for which in parameter_sets(model):
        for layer in model.graph.layers:
            span = slice(layer.first_channel, layer.first_channel + layer.channels)
            same = np.array_equal(before.gain[which.row, span], after.gain[which.row, span])
            assert same or not shared[which.row, layer.index]
            changed |= set() if same else {which.name}
    assert guarded or changed >= set(names)

"""The head rung: features, the fit of the classifier, its codes, and what it does in a calibrator."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from caq import artifact
from caq.calibration.calibrator import Calibrator, make_core
from caq.calibration.config import WITHOUT_TWINS, CalibratorConfig
from caq.calibration.head import (
    Examples,
    HeadRung,
    draw_features,
    linear_layer,
)
from caq.calibration.learnt import Learnt
from caq.calibration.sets import ROWS, coded, factory_head, logits, parameter_sets
from caq.calibration.state import State
from caq.engine import Engine
from caq.errors import ConfigError, StateFormatError, UnsupportedError
from caq.graph import Graph, Op
from caq.plan import build_plan
from caq.quant import requantize
from caq.reference import run_steps
from caq.sections import StoredFeatures
from tests import models
from tests.calibration.streams import core_of, source
from tests.conditional_models import with_gate

HEAD = CalibratorConfig(rungs=("head",), guarded=False, head_weight=5.0, head_ridge=0.1, head_spread=0.0)


@pytest.fixture(scope="module")
def world():
    """A model, its core set, and a stream whose classes another classifier on the same features tells apart."""
    model, x, y = source()
    plain, sets = coded(model), parameter_sets(model)
    stream = models.samples(model, 300, seed=5)
    rung = HeadRung(plain, model.encode(x)[0].astype(np.int16), y, 1.0, 1.0, 1.0)
    features = rung.features(sets[2], model.encode(stream)[0].astype(np.int16)).astype(np.float64)
    features = (features - features.mean(0)) / (features.std(0) + 1)
    z = features @ np.random.default_rng(0).standard_normal((features.shape[1], 3))
    return model, core_of(model, x, y), stream, (z - z.mean(0)).argmax(1)


def fed(calibrator, x, y, batch=40):
    for i in range(0, len(x), batch):
        calibrator.partial_fit(x[i : i + batch], y[i : i + batch])
    return calibrator


def accuracy(model, x, y):
    answers = logits(coded(model), parameter_sets(model), model.encode(x)[0].astype(np.int16))
    return {name: float((z.argmax(1) == y).mean()) for name, z in answers.items()}


def test_features_are_what_the_last_layer_of_the_reference_reads(world):
    model, core, x, _ = world
    plain, codes = coded(model), model.encode(x[:20])[0]
    rung = HeadRung(plain, core.x.astype(np.int16), core.y, 1.0, 1.0, 1.0)
    for which in parameter_sets(model):
        plan = build_plan(plain.graph, plain.parameters, plain.planes, which.assignment, which.row)
        read = run_steps(plan, {0: codes.astype(np.int32)}, 0, len(plan.steps) - 1)[len(plan.steps) - 1]
        step = plan.steps[-1]
        if step.narrow is not None:
            read = requantize(read, step.narrow, *step.narrow_range)
        np.testing.assert_array_equal(rung.features(which, codes.astype(np.int16)), read.reshape(20, -1))


def test_a_classifier_that_changed_is_learnt_at_every_set(world):
    model, core, x, y = world
    before = accuracy(model, x[200:], y[200:])
    calibrator = fed(Calibrator(model, core, config=HEAD), x[:200], y[:200])
    after = accuracy(calibrator.model, x[200:], y[200:])
    assert all(after[name] > before[name] + 0.15 for name in before) and after["w8a8"] > 0.7
    for name in ROWS:  # but for the classifier, the parameters are the factory's
        a, b = (getattr(m.parameters, name)[:, :-1] for m in (model, calibrator.model))
        if name in ("gain", "bias"):
            a, b = a[:, : -(model.graph.layers[-1].channels - 1)], b[:, : -(model.graph.layers[-1].channels - 1)]
        np.testing.assert_array_equal(a, b)


def test_engines_agree_on_what_was_learnt(world):
    model, core, x, y = world
    learnt = fed(Calibrator(model, core, config=HEAD), x[:80], y[:80]).model
    assert (learnt.parameters.head != factory_head(model, parameter_sets(model))).any(1).all()
    native, lean, reference = Engine(model), Engine(model, lean=True), Engine(model, kernels="reference")
    for engine in (native, lean, reference):
        engine.adopt(learnt.parameters)
    for point in native.points:
        for engine in (native, lean, reference):
            engine.select(point)
        np.testing.assert_array_equal(native.run(x), reference.run(x))
        np.testing.assert_array_equal(lean.run(x), reference.run(x))


def test_calibrating_one_set_changes_no_bit_of_another(world):
    model, core, x, y = world
    plain, codes = coded(model), model.encode(x)[0].astype(np.int16)
    sets = parameter_sets(model)
    rung = HeadRung(plain, core.x.astype(np.int16), core.y, 1.0, 1.0, 1.0)
    start = plain.parameters.replace(head=factory_head(plain, sets))
    before = logits(plain, sets, codes)
    for which in sets:
        fit = rung.fit(which, rung.features(which, codes[:100]), y[:100], lambda: None)
        changed = rung.candidate(start, {which.row: fit}, 1.0, (which,), lambda: None)
        after = logits(plain.replace(parameters=changed), sets, codes)
        assert [name for name in before if not np.array_equal(before[name], after[name])] == [which.name]


def test_no_share_of_the_way_is_the_factory_but_for_rounding(world):
    model, core, x, y = world
    plain, codes = coded(model), model.encode(x)[0].astype(np.int16)
    which = parameter_sets(model)[2]
    rung = HeadRung(plain, core.x.astype(np.int16), core.y, 1.0, 1.0, 1.0)
    start = plain.parameters.replace(head=factory_head(plain, parameter_sets(model)))
    fit = rung.fit(which, rung.features(which, codes[:100]), y[:100], lambda: None)
    same = rung.candidate(start, {which.row: fit}, 0.0, (which,), lambda: None)
    a, b = (logits(plain.replace(parameters=p), (which,), codes)[which.name] for p in (start, same))
    assert np.abs(a - b).max() < 0.02 * np.ptp(a)


def test_drawn_features_are_those_of_their_samples(world):
    model, core, x, y = world
    found = draw_features(model, x, y, 50, seed=3, without=np.arange(200))
    plain, codes = coded(model), model.encode(x[200:])[0].astype(np.int16)
    rung = HeadRung(plain, core.x.astype(np.int16), core.y, 1.0, 1.0, 1.0)
    features = np.stack([rung.features(which, codes) for which in parameter_sets(model)[:3]])
    at = [next(j for j in range(100) if (features[:, j] == found.codes[:, i]).all()) for i in range(50)]
    assert at == sorted(set(at)) and (y[200:][at] == found.y).all()
    again = draw_features(model, x, y, 50, seed=3, without=np.arange(200))
    assert all((a == b).all() for a, b in zip(found, again, strict=True))
    with pytest.raises(ConfigError, match="features 101: 1 to 100 samples"):
        draw_features(model, x, y, 101, without=np.arange(200))
    alone = Graph((3, 3, 1), (Op("conv", (0,), "f", channels=3, kernel=(3, 3), low=-(2**15), high=2**15 - 1),), (2, 8))
    with pytest.raises(UnsupportedError, match="only one"):
        draw_features(models.from_graph(alone, np.random.default_rng(0)), x, y, 5)


def test_a_core_set_passes_over_samples_whose_features_the_artifact_has(world):
    model, _, x, y = world
    drawn = draw_features(model, x, y, 200, seed=3)
    chosen = np.sort(np.random.default_rng(3).permutation(len(y))[:200])
    core = make_core(model.replace(features=drawn), x, y, size=60)
    own = -1 - core.ids
    assert len(np.intersect1d(own, chosen)) == 0 < len(np.intersect1d(-1 - make_core(model, x, y, size=60).ids, chosen))
    np.testing.assert_array_equal(core.x, model.encode(x)[0][own])
    np.testing.assert_array_equal(core.y, y[own])
    with pytest.raises(ConfigError, match="1 to 1 samples are possible"):
        make_core(model.replace(features=draw_features(model, x, y, len(y) - 1)), x, y, size=60)


def test_the_classifier_is_fitted_to_features_where_there_are_some(world):
    """With those of the core set's own samples the fit is the core set's; with those of others it is another one."""
    model, core, x, y = world
    plain, sets = coded(model), parameter_sets(model)
    codes, stream = core.x.astype(np.int16), model.encode(x[:60])[0].astype(np.int16)

    def fitted(model, which):
        rung = HeadRung(model, codes, core.y, 9.0, 0.1, 1.0)
        return rung.fit(which, rung.features(which, stream), y[:60], lambda: None).wanted.weights

    rung = HeadRung(plain, codes, core.y, 1.0, 1.0, 1.0)
    own = np.stack([rung.features(which, codes) for which in sets[:3]]).astype(Examples.empty(model).features.dtype)
    same = plain.replace(features=StoredFeatures(own, core.y))
    other = plain.replace(features=draw_features(model, x, y, 100))
    for which in sets[:3]:
        np.testing.assert_array_equal(fitted(plain, which), fitted(same, which))
        assert (fitted(plain, which) != fitted(other, which)).any()
    for which in sets[3:]:  # a point's own set reads what no width does
        np.testing.assert_array_equal(fitted(plain, which), fitted(other, which))


def test_a_candidate_takes_the_flips_of_its_set_back(world):
    """Features are the factory's; flips would change them. Other sets keep theirs."""
    model, core, x, y = world
    plain, sets = coded(model), parameter_sets(model)
    which = sets[1]
    rung = HeadRung(plain, core.x.astype(np.int16), core.y, 1.0, 1.0, 1.0)
    flips = np.zeros((len(plain.parameters.gain), plain.graph.weights), np.int8)
    flips[:, 3] = 1
    start = plain.parameters.replace(head=factory_head(plain, sets), flips=flips)
    codes = model.encode(x[:100])[0].astype(np.int16)
    fit = rung.fit(which, rung.features(which, codes), y[:100], lambda: None)
    found = rung.candidate(start, {which.row: fit}, 1.0, (which,), lambda: None)
    assert not found.flips[which.row].any() and flips.any(1).all()
    np.testing.assert_array_equal(np.delete(found.flips, which.row, 0), np.delete(flips, which.row, 0))


def test_a_restart_goes_on_bit_for_bit(world, tmp_path):
    model, core, x, y = world
    artifact.save(model, tmp_path / "x.caq")
    config = CalibratorConfig(head_forgetting=9.0)
    with Calibrator(tmp_path / "x.caq", core, tmp_path / "whole", config) as calibrator:
        whole = fed(calibrator, x[:120], y[:120]).model.parameters
        examples = calibrator._learnt.examples
    for i in (0, 40, 80):
        with Calibrator(tmp_path / "x.caq", core, tmp_path / "cut", config) as calibrator:
            cut = fed(calibrator, x[i : i + 40], y[i : i + 40]).model.parameters
            again = calibrator._learnt.examples
    for name in ("gain", "bias", "head"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(cut, name))
    np.testing.assert_array_equal(examples.features, again.features)
    np.testing.assert_array_equal(examples.y, again.y)


def test_a_state_without_the_rung_begins_at_the_factory(world, tmp_path):
    model, core, x, y = world
    artifact.save(model, tmp_path / "x.caq")
    biases = CalibratorConfig(rungs=("biases",))
    with Calibrator(tmp_path / "x.caq", core, tmp_path / "s", biases) as calibrator:
        assert fed(calibrator, x[:40], y[:40]).model.parameters.head is None
    with Calibrator(tmp_path / "x.caq", core, tmp_path / "s", HEAD) as calibrator:
        np.testing.assert_array_equal(calibrator.model.parameters.head, factory_head(model, parameter_sets(model)))
        fed(calibrator, x[40:80], y[40:80])
    with Calibrator(tmp_path / "x.caq", core, tmp_path / "s", biases) as calibrator:  # what was learnt stays in force
        assert (calibrator.model.parameters.head != factory_head(model, parameter_sets(model))).any()


def test_late_labels_are_fitted_and_samples_count_once(world):
    model, core, x, y = world
    with Calibrator(model, core, config=HEAD) as calibrator:
        calibrator.partial_fit(x[:30])
        assert len(calibrator._learnt.examples.y) == 0 and not calibrator.history
        for i in range(20):
            result = calibrator.label(i, int(y[i]))
        assert result is not None and [r["what"] for r in result.records] == ["head"]
        kept = len(calibrator._learnt.examples.y)
        assert 0 < kept < 20  # without those of the guard's slice
        calibrator.partial_fit(x[30:32], y[30:32])
        assert len(calibrator._learnt.examples.y) <= kept + 2


def test_the_last_examples_stay(world):
    model = world[0]
    size = linear_layer(model.graph).fan_in
    rng = np.random.default_rng(0)
    features = rng.integers(0, 128, (len(model.parameters.gain), 7, size))
    kept = Examples.empty(model).with_samples(features, np.arange(7) % 3, 5)
    np.testing.assert_array_equal(kept.features, features[:, 2:])
    np.testing.assert_array_equal(kept.y, np.arange(2, 7) % 3)
    assert len(kept.with_samples(features, np.zeros(7, int), 0).y) == 0


def test_statistics_and_biases_are_for_steps_without_labels_or_without_a_head(world):
    model, core, x, y = world
    with Calibrator(model, core, config=CalibratorConfig(rungs=WITHOUT_TWINS)) as calibrator:
        calibrator.partial_fit(x[:40])
        calibrator.partial_fit(x[40:80], y[40:80])
        assert [r["what"] for r in calibrator.history] == ["statistics", "head"]


def test_time_that_is_over_leaves_sets_as_they_were_and_each_has_its_turn(world):
    model, core, x, y = world
    whole = Calibrator(model, core, config=HEAD)
    fed(whole, x[:40], y[:40])
    ticks = iter(range(10**9))
    some, turns = 0, set()
    for most in range(5_000, 400_000, 5_000):
        config = replace(HEAD, max_ms=most)
        calibrator = Calibrator(model, core, config=config, clock=lambda: float(next(ticks)))
        result = calibrator.partial_fit(x[:40], y[:40])
        done = {which.name for which in parameter_sets(model) if which.name in result.records[0]["sets"]}
        some += 0 < len(done) < 4
        for which in parameter_sets(model):
            before, after = model.parameters.gain[which.row], calibrator.model.parameters.gain[which.row]
            wanted = whole.model.parameters.gain[which.row] if which.name in done else before
            np.testing.assert_array_equal(after, wanted)
        turns.add(calibrator._learnt.turn)
    assert some and len(turns) > 1


def test_what_has_no_classifier_to_fit_is_passed_over_and_says_so(world):
    _, _, x, y = world
    gated = with_gate(models.model(15, dtype="float32"), 0, 3)
    with Calibrator(gated, core_of(gated, x, y), config=CalibratorConfig(rungs=WITHOUT_TWINS[1:])) as calibrator:
        fed(calibrator, x[:40], y[:40])
        by_rung = {r["what"]: r for r in calibrator.history}
        assert set(by_rung) == {"biases", "head"} and calibrator.model.parameters.head is None
        assert not by_rung["head"]["promoted"] and "conditional points" in by_rung["head"]["reasons"][0]


def test_only_a_linear_layer_on_all_features_can_be_fitted():
    out = {"low": -(2**15), "high": 2**15 - 1}
    grouped = Op("conv", (1,), "g", channels=4, groups=2, kernel=(2, 2), **out)
    partly = Op("conv", (1,), "p", channels=3, stride=(2, 2), **out)
    first = Op("conv", (0,), "c", channels=4, kernel=(2, 2), low=0, high=255)
    for ops, why in (
        ((first, grouped), "does not read all features"),
        ((first, partly), "does not read all features"),
        ((Op("conv", (0,), "f", channels=3, kernel=(3, 3), **out),), "the only one"),
        ((first, Op("conv", (1,), "maps", channels=3, **out)), "one answer a sample"),
    ):
        with pytest.raises(UnsupportedError, match=why):
            linear_layer(Graph((3, 3, 1), ops, (2, 8)))
    whole = Op("conv", (1,), "w", channels=3, kernel=(2, 2), **out)
    assert linear_layer(Graph((3, 3, 1), (first, whole), (2, 8))).name == "w"


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("head/codes", lambda a: a[1:]),
        ("head/codes", lambda a: a.astype(np.int16)),
        ("head/features", lambda a: a[:, 1:]),
        ("head/features", lambda a: a.astype(np.int16)),
        ("head/features", None),
        ("head/y", lambda a: a + 3),
        ("head/y", lambda a: a - 3),
        ("head/y", lambda a: a.astype(np.int32)),
        ("head/y", None),
    ],
)
def test_states_that_do_not_fit_are_refused(world, name, change):
    model, core, x, y = world
    arrays = fed(Calibrator(model, core, config=HEAD), x[:40], y[:40])._learnt.to_arrays()
    wrong = {k: v for k, v in arrays.items() if k != name} | ({} if change is None else {name: change(arrays[name])})
    with pytest.raises(StateFormatError):
        Learnt.from_state(State("a" * 64, wrong), model)


def test_codes_of_a_state_that_leave_their_width_are_no_healthy_state(world, tmp_path):
    model, core, _, _ = world
    artifact.save(model, tmp_path / "x.caq")
    with Calibrator(tmp_path / "x.caq", core, tmp_path / "s", HEAD) as calibrator:
        wide = np.full_like(calibrator.model.parameters.head, 100)
        bad = calibrator._learnt.parameters.replace(head=wide)
        object.__setattr__(calibrator._learnt, "parameters", bad)
        arrays = calibrator._state(calibrator._learnt).arrays
        calibrator._folder.save(arrays, {**calibrator._state(calibrator._learnt).notes, "reason": "test"})
    with Calibrator(tmp_path / "x.caq", core, tmp_path / "s", HEAD) as calibrator:
        assert any("more than 2 bits" in problem for problem in calibrator.problems)
        np.testing.assert_array_equal(calibrator.model.parameters.head, factory_head(model, parameter_sets(model)))


def test_bad_settings():
    for name in ("head_weight", "head_ridge", "head_spread", "head_samples", "head_forgetting"):
        with pytest.raises(ConfigError):
            CalibratorConfig(**{name: -1})

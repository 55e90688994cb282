"""The judge: which samples it sees, what it asks of a set, and what it allows to be forgotten."""

from __future__ import annotations

import numpy as np
import pytest

from caq.calibration.biases import output_layer, with_output_biases
from caq.calibration.core import UNLABELLED
from caq.calibration.deadline import Deadline, OutOfTime
from caq.calibration.guard import Limits
from caq.calibration.judge import Judge, cross_entropy, entropy, held_out, losses, standard_error
from caq.calibration.sets import coded, logits, parameter_sets
from caq.calibration.twins import Calibration
from tests import models
from tests.calibration.streams import core_of, source

NEVER = Deadline(None, lambda: 0.0)


@pytest.fixture(scope="module")
def world():
    model, x, y = source()
    stream = model.encode(models.samples(model, 60, seed=3))[0]
    return coded(model), core_of(model, x, y), stream


#: No floors of accuracy: cross entropy and entropy alone decide.
FREE = Limits(gain=None, point=1, class_=1, factory=1)


def judge(world, y, limits=FREE, forgetting=0.05, doubt=0.0):
    model, core, stream = world
    made = Judge(model, core, seed=0, limits=limits)
    on = made.slice_of(core, stream, y, np.arange(60))
    return lambda before, after, sets, deadline: made(
        on, Calibration(before), Calibration(after), sets, forgetting, dict.fromkeys(sets, doubt), deadline
    )


def with_biases(model, rows, b):
    """Parameters with these output biases, in output codes, at some sets."""
    found, layer = model.parameters, output_layer(model.graph)
    for row in rows:
        step = float(model.parameters.steps[-1])
        found = with_output_biases(found, model.parameters, layer, row, np.array(b) * step)
    return found


def test_figures_are_those_of_the_formulas():
    z = np.array([[0.0, np.log(3.0)], [800.0, 0.0]])
    assert cross_entropy(z, np.array([1, 0])) == pytest.approx(-np.log(0.75) / 2)
    assert entropy(z) == pytest.approx(-(0.25 * np.log(0.25) + 0.75 * np.log(0.75)) / 2)


def test_a_set_is_calibrated_if_labels_say_that_it_gains(world):
    model, *_ = world
    sets = parameter_sets(model)
    one = np.full(60, 0)  # every sample of the stream is of class 0
    better = with_biases(model, [0, 2], [2.0, 0.0, 0.0])
    found = judge(world, one, forgetting=9)(model.parameters, better, sets, NEVER)
    assert found is not None and found.sets == (sets[0], sets[2]) and found.verdict.promote
    found = judge(world, np.full(60, 1), forgetting=9)(model.parameters, better, sets, NEVER)
    assert found is not None and not found.verdict.promote and found.sets == sets
    assert "cross entropy of the stream falls by -" in found.verdict.reasons[0]


def test_a_rise_that_may_be_chance_can_be_allowed(world):
    """Labels at random: what biases gain on some samples they lose on others, so falls are near 0."""
    model, core, stream = world
    sets, y = parameter_sets(model)[2:3], np.random.default_rng(1).integers(0, 3, 60)
    on = Judge(model, core, seed=0, limits=FREE).slice_of(core, stream, y, np.arange(60))
    at, seen = slice(on.factory, None), []
    before = losses(logits(model, sets, on.x)["w8a8"], on.y)[at]
    for b in range(-40, 41, 4):
        change = with_biases(model, [2], [b, -b, 0.0])
        falls = before - losses(logits(model.replace(parameters=change), sets, on.x)["w8a8"], on.y)[at]
        gain, error = falls.mean(), falls.std(ddof=1) / len(falls) ** 0.5
        found = [judge(world, y, doubt=d, forgetting=1e6)(model.parameters, change, sets, NEVER) for d in (0.0, 1.0)]
        seen.append(tuple(f.verdict.promote for f in found))
        assert seen[-1] == (gain > 0, gain + error > 0)
    assert {(False, False), (False, True)} <= set(seen)


def test_a_standard_error_is_that_of_the_mean():
    values = np.random.default_rng(0).standard_normal((2000, 10))
    assert np.mean([standard_error(row) for row in values]) == pytest.approx(10**-0.5, rel=0.05)
    assert standard_error(values[0, :1]) == 0


def test_what_the_factory_knew_limits_it(world):
    model, *_ = world
    sets, y = parameter_sets(model)[2:3], np.full(60, 0)
    changes = [with_biases(model, [2], [b, 0.0, 0.0]) for b in (1.0, 10.0, 100.0, 1000.0)]
    allowed = []
    for forgetting in (0.0, 0.05, 0.5, 5.0):
        judged = [judge(world, y, forgetting=forgetting)(model.parameters, c, sets, NEVER) for c in changes]
        allowed.append(sum(found.verdict.promote for found in judged))
    assert allowed == sorted(allowed) and allowed[0] < allowed[-1]


def test_losses_do_not_add_up(world):
    """What is as in force, or a little better on the stream, but forgets what the factory knew, is refused."""
    model, *_ = world
    sets, y = parameter_sets(model)[2:3], np.full(60, 0)
    worse, more = with_biases(model, [2], [1000.0, 0.0, 0.0]), with_biases(model, [2], [1100.0, 0.0, 0.0])
    found = judge(world, y)(worse, more, sets, NEVER)
    assert found is not None and not found.verdict.promote and "at the factory" in found.verdict.reasons[0]
    found = judge(world, y, forgetting=1e6)(worse, more, sets, NEVER)
    assert found is not None and found.verdict.promote


def test_without_labels_answers_are_to_become_surer(world):
    model, *_ = world
    sets, none = parameter_sets(model)[2:3], np.full(60, UNLABELLED)
    surer = with_biases(model, [2], [1e6, 0.0, 0.0])
    found = judge(world, none, forgetting=1e6)(model.parameters, surer, sets, NEVER)
    assert found is not None and found.verdict.promote
    found = judge(world, none, forgetting=1e6)(surer, model.parameters, sets, NEVER)
    assert found is not None and not found.verdict.promote and "w8a8: entropy of" in found.verdict.reasons[0]
    assert not judge(world, none)(model.parameters, surer, sets, NEVER).verdict.promote  # but not at any price


def test_floors_of_accuracy_hold_too(world):
    model, *_ = world
    sets, y = parameter_sets(model)[2:3], np.full(60, 0)
    change = with_biases(model, [2], [1e6, 0.0, 0.0])
    found = judge(world, y, Limits(gain=None, point=1, class_=0.5, factory=1), 1e6)(
        model.parameters, change, sets, NEVER
    )
    assert found is not None and not found.verdict.promote and "class" in found.verdict.reasons[0]


def test_the_slice_has_the_whole_batch_where_it_has_no_labels(world):
    model, core, stream = world
    made = Judge(model, core, seed=0, limits=FREE)
    ids, factory = np.arange(60), held_out(core.ids, 0).sum()
    labelled = made.slice_of(core, stream, np.zeros(60, np.int16), ids)
    assert labelled.factory == factory and len(labelled.y) == factory + held_out(ids, 0).sum()
    assert len(made.slice_of(core, stream, np.full(60, UNLABELLED), ids).y) == factory + 60
    alone = made.slice_of(core, stream[:0], np.zeros(0, np.int16), ids[:0])
    same = Calibration(model.parameters)
    assert made(alone, same, same, parameter_sets(model), 0.05, {}, NEVER) is None


def test_time_can_end_it(world):
    model, *_ = world
    with pytest.raises(OutOfTime):
        judge(world, np.full(60, UNLABELLED))(
            model.parameters, model.parameters, parameter_sets(model), Deadline(0.0, lambda: 1.0)
        )


def test_a_share_of_what_is_left():
    now = [10.0]
    half = Deadline(20.0, lambda: now[0]).share(0.5)
    half.check()
    now[0] = 15.0
    with pytest.raises(OutOfTime):
        half.check()
    Deadline(20.0, lambda: now[0]).check()

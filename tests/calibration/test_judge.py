"""The judge: which samples it sees, labels that it makes up, and sets that it leaves out."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from caq.calibration.biases import output_layer, with_output_biases
from caq.calibration.deadline import Deadline, OutOfTime
from caq.calibration.guard import Limits
from caq.calibration.judge import Judge
from caq.calibration.sets import coded, parameter_sets
from tests import models
from tests.calibration.streams import core_of, source

NEVER = Deadline(None, lambda: 0.0)


@pytest.fixture(scope="module")
def world():
    model, x, y = source()
    stream = model.encode(models.samples(model, 60, seed=3))[0]
    return coded(model), core_of(model, x, y), stream


def judge(world, y, confidence=0.8, limits=Limits()):  # noqa: B008
    model, core, stream = world
    made = Judge(model, core, seed=0, limits=limits, confidence=confidence)
    return partial(made, made.slice_of(core, stream, y, np.arange(60)))


def one_class(model, row):
    """Parameters with which set `row` answers class 0 only."""
    b = np.array([1e6, 0.0, 0.0]) * float(model.parameters.steps[-1])
    return with_output_biases(model.parameters, model.parameters, output_layer(model.graph), row, b)


def test_a_set_that_is_harmed_is_left_out(world):
    model, *_ = world
    sets = parameter_sets(model)
    found = judge(world, np.full(60, -1))(model.parameters, one_class(model, 2), sets, NEVER)
    assert found is not None and found.sets == tuple(s for s in sets if s.row != 2)
    assert not found.verdict.promote  # nothing else changed, so nothing is gained


def test_labels_are_made_up_where_all_are_confident_and_nowhere_else(world):
    model, *_ = world
    sets = parameter_sets(model)[2:3]
    counts = []
    for confidence in (0.4, 0.8, 0.999, 1.0):
        found = judge(world, np.full(60, -1), confidence)(model.parameters, model.parameters, sets, NEVER)
        assert found is not None
        counts.append(found.verdict.samples)
    labelled = judge(world, np.zeros(60, np.int64))(model.parameters, model.parameters, sets, NEVER)
    assert labelled is not None and counts == sorted(counts, reverse=True)
    assert labelled.verdict.samples == counts[0] > counts[-1]


def test_time_can_end_it(world):
    model, *_ = world
    with pytest.raises(OutOfTime):
        judge(world, np.full(60, -1))(
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


def test_losses_on_the_factorys_samples_do_not_add_up(world):
    """A change that is as what was in force, but worse than the factory, is refused."""
    model, *_ = world
    sets, y = parameter_sets(model)[2:3], np.full(60, -1)
    worse = one_class(model, 2)
    found = judge(world, y, limits=Limits(gain=0, factory=0.3))(worse, worse, sets, NEVER)
    assert found is not None and not found.verdict.promote and "at the factory" in found.verdict.reasons[0]
    found = judge(world, y, limits=Limits(gain=0, factory=1))(worse, worse, sets, NEVER)
    assert found is not None and found.verdict.promote

"""Parameter sets of a model, and copies of one of them."""

from __future__ import annotations

import numpy as np
import pytest

from caq.calibration.deadline import OutOfTime
from caq.calibration.sets import blended, coded, logits, parameter_sets, with_rows
from caq.plan import affine
from tests import models


def test_every_row_has_a_name_and_an_assignment():
    model = models.model(4)
    sets = parameter_sets(model)
    assert [(s.name, s.row) for s in sets] == [("w2a2", 0), ("w4a4", 1), ("w8a8", 2), ("mixed", 3)]
    assert len(sets) == len(model.parameters.gain)
    assert sets[0].assignment == model.graph.uniform(2) and sets[3].assignment == model.points[3].assignment


def test_rows_are_copied():
    model = models.model(4)
    p, sets = model.parameters, parameter_sets(model)
    other = p.replace(gain=(p.gain + 1).astype(np.int16), bias_exponent=(p.bias_exponent + 1).astype(np.int8))
    found = with_rows(p, (sets[1], sets[3]), other)
    ours, rest = [1, 3], [0, 2]
    assert np.array_equal(found.gain[ours], other.gain[ours]) and np.array_equal(found.gain[rest], p.gain[rest])
    assert np.array_equal(found.bias_exponent[ours], other.bias_exponent[ours])
    assert np.array_equal(found.bias_exponent[rest], p.bias_exponent[rest])


def test_half_of_the_way_is_between_the_ends():
    model = models.model(4)
    p = model.parameters
    other = p.replace(gain=(p.gain // 2).astype(np.int16), bias_exponent=(p.bias_exponent + 1).astype(np.int8))
    assert blended(model.graph, p, other, 1) is other
    same, half = blended(model.graph, p, p, 0.5), blended(model.graph, p, other, 0.5)
    for layer in model.graph.layers:
        for row in range(len(p.gain)):
            old, new = affine(p, layer, row), affine(other, layer, row)
            for a, b, c, d in zip(old, new, affine(half, layer, row), affine(same, layer, row), strict=True):
                close = 2.0**-13 * max(np.abs(a).max(), np.abs(b).max())  # mantissas have 15 bits
                assert np.allclose(c, (a + b) / 2, rtol=0, atol=close) and np.allclose(d, a, rtol=0, atol=close)


def test_outputs_can_be_stopped_between_sets():
    model = models.model(4)
    left = iter([None, None])

    def check():
        if next(left, 1) == 1:
            raise OutOfTime

    with pytest.raises(OutOfTime):
        logits(coded(model), parameter_sets(model), np.zeros((2, *model.graph.input_shape), np.int16), check)

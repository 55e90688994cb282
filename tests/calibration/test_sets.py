"""Parameter sets of a model, and copies of one of them."""

from __future__ import annotations

import numpy as np
import pytest

from caq.calibration.deadline import OutOfTime
from caq.calibration.sets import coded, logits, parameter_sets, with_row
from tests import models


def test_every_row_has_a_name_and_an_assignment():
    model = models.model(4)
    sets = parameter_sets(model)
    assert [(s.name, s.row) for s in sets] == [("w2a2", 0), ("w4a4", 1), ("w8a8", 2), ("mixed", 3)]
    assert len(sets) == len(model.parameters.gain)
    assert sets[0].assignment == model.graph.uniform(2) and sets[3].assignment == model.points[3].assignment


def test_one_row_is_copied():
    p = models.model(4).parameters
    other = p.replace(gain=(p.gain + 1).astype(np.int16), bias_exponent=(p.bias_exponent + 1).astype(np.int8))
    found = with_row(p, 1, other)
    rows = [0, 2, 3]
    assert np.array_equal(found.gain[1], other.gain[1]) and np.array_equal(found.gain[rows], p.gain[rows])
    assert np.array_equal(found.bias_exponent[1], other.bias_exponent[1])
    assert np.array_equal(found.bias_exponent[rows], p.bias_exponent[rows])


def test_outputs_can_be_stopped_between_sets():
    model = models.model(4)
    left = iter([None, None])

    def check():
        if next(left, 1) == 1:
            raise OutOfTime

    with pytest.raises(OutOfTime):
        logits(coded(model), parameter_sets(model), np.zeros((2, *model.graph.input_shape), np.int16), check)

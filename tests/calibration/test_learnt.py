"""What was learnt, as a state and back; and states that do not fit the model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from caq.calibration.learnt import Learnt
from caq.calibration.state import State, from_bytes, to_bytes
from caq.errors import StateFormatError
from tests.calibration.streams import core_of, source

A = "a" * 64


@pytest.fixture(scope="module")
def world():
    model, x, y = source()
    pending = model.encode(x[:3])[0]
    learnt = Learnt.nothing(model, core_of(model, x, y), 0)
    return model, replace(learnt, pending=pending, pending_y=np.array([0, -1, 2], np.int16), steps=7, turn=2, watch=5)


def test_a_state_gives_back_what_was_learnt(world):
    model, learnt = world
    found = Learnt.from_state(from_bytes(to_bytes(State(A, learnt.to_arrays()))), model)
    assert (found.steps, found.turn, found.watch) == (7, 2, 5)
    again = found.to_arrays()
    assert all(np.array_equal(array, again[name]) for name, array in learnt.to_arrays().items())


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("parameters/gain", lambda a: a[1:]),
        ("parameters/gain_exponent", lambda a: np.full_like(a, 127)),
        ("parameters/bias", lambda a: a.astype(np.int32)),
        ("statistics/variance", lambda a: a - 1),
        ("biases/a", lambda a: a[:, 1:]),
        ("core/x", lambda a: a[:, 1:]),
        ("core/y", lambda a: a + 9),
        ("stream/x", lambda a: a[1:]),
        ("stream/y", lambda a: a + 9),
        ("stream/random", lambda a: a[1:]),
        ("stream/counts", lambda a: -a),
        ("stream/counts", lambda a: a * 100),
    ],
)
def test_states_that_do_not_fit_are_refused(world, name, change):
    model, learnt = world
    arrays = learnt.to_arrays()
    for wrong in ({**arrays, name: change(arrays[name])}, {k: v for k, v in arrays.items() if k != name}):
        with pytest.raises(StateFormatError):
            Learnt.from_state(State(A, wrong), model)

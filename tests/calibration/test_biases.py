"""Output biases: the convex fit against its definition, the memory of batches, and what a set's parameters become."""

from __future__ import annotations

import numpy as np
import pytest

from caq.calibration.biases import Past, fit_biases, output_biases, output_layer, with_output_biases
from caq.calibration.sets import coded, logits, parameter_sets
from caq.errors import StateFormatError
from tests import models


def made(count=200, seed=0):
    rng = np.random.default_rng(seed)
    z = rng.normal(0, 2, (count, 4))
    odds = np.exp(z + np.array([0, 1.5, -1, 0]))
    y = np.array([rng.choice(4, p=p) for p in odds / odds.sum(1, keepdims=True)])
    return z, y


def loss(z, y, b, prior):
    u = z + b
    return (np.log(np.exp(u).sum(1)) - u[np.arange(len(y)), y]).sum() + prior / 2 * (b**2).sum()


def test_the_fit_is_the_minimum_and_finds_the_shift():
    z, y = made(4000)
    b = fit_biases(z, y, np.ones(len(y)), np.eye(4), np.zeros(4))
    for i in range(4):
        for step in (-1e-3, 1e-3):
            assert loss(z, y, b, 1) < loss(z, y, b + step * np.eye(4)[i], 1)
    assert np.allclose(b - b[0], [0, 1.5, -1, 0], atol=0.3)


def test_weights_are_copies_of_samples():
    z, y = made(50)
    twice = fit_biases(np.tile(z, (2, 1)), np.tile(y, 2), np.ones(100), np.eye(4), np.zeros(4))
    assert np.allclose(twice, fit_biases(z, y, np.full(50, 2.0), np.eye(4), np.zeros(4)), atol=1e-6)


def test_confident_wrong_outputs_do_not_break_it():
    z = 1e4 * np.eye(4)[[0, 1, 2, 3]]
    b = fit_biases(z, np.array([1, 2, 3, 0]), np.ones(4), np.eye(4), np.zeros(4))
    assert np.isfinite(b).all()


def test_batches_that_are_gone_count_as_if_they_were_there():
    z, y = made(400)
    past, prior = Past.empty(2, 4), np.eye(4)
    for part in np.array_split(np.arange(400), 8):
        b = fit_biases(z[part], y[part], np.ones(len(part)), prior + past.a[1], past.c[1])
        past = past.with_batch(1, z[part], y[part], b, memory=1000)
    assert np.allclose(b, fit_biases(z, y, np.ones(400), prior, np.zeros(4)), atol=0.1)
    assert past.count.tolist() == [0, 400] and not past.a[0].any()


def test_old_batches_fade():
    z, y = made(400)
    past = Past.empty(1, 4)
    for _ in range(5):
        past = past.with_batch(0, z, y, np.zeros(4), memory=500)
    assert past.count[0] == pytest.approx(500)


def test_output_biases_are_of_one_set_and_come_back():
    raw = models.model(1)
    model, sets = coded(raw), parameter_sets(raw)
    layer = output_layer(model.graph)
    x = raw.encode(models.samples(raw, 20))[0].astype(np.int16)
    before, b = logits(model, sets, x), np.array([0.5, -0.25, 0.0])
    found = with_output_biases(model.parameters, model.parameters, layer, 2, b)
    after = logits(model.replace(parameters=found), sets, x)
    assert np.allclose(output_biases(found, model.parameters, layer, 2), b, atol=0.01)
    unsaturated = np.abs(after["w8a8"]) < 0.99 * 2**15 * float(model.parameters.steps[-1])
    assert unsaturated.any() and np.allclose((after["w8a8"] - before["w8a8"] - b)[unsaturated], 0, atol=0.05)
    assert all(np.array_equal(before[s.name], after[s.name]) for s in sets if s.row != 2)


def test_bad_memories_are_refused():
    good = Past.empty(2, 3)
    assert Past.from_arrays(good.to_arrays(), 2, 3).a.shape == (2, 3, 3)
    skew = good.a.copy()
    skew[0, 0, 1] = 1
    for name, value in (("count", -np.ones(2)), ("a", skew), ("c", np.zeros((2, 4)))):
        with pytest.raises(StateFormatError):
            Past.from_arrays({**good.to_arrays(), name: value}, 2, 3)

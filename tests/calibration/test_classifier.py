"""The classifier's fit, and its codes, against the formulas in the module."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from caq.calibration.biases import log_softmax
from caq.calibration.classifier import (
    Classifier,
    Codes,
    Problem,
    deviations,
    fit_classifier,
    move_codes,
    round_classifier,
    round_weights,
)
from caq.quant import TOP_WIDTH, multiplicand_limit


def made(count=60, features=5, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(0, 200, (count, features)), rng.integers(0, classes, count)
    before = Classifier(rng.normal(0, 0.01, (classes, features)), rng.normal(0, 1, classes))
    return Problem(x, y, rng.uniform(0.2, 3, count), before, 0.5, 0.5 * deviations(x, y))


def loss(problem, w, b):
    x, y, samples, (w0, b0), ridge, within = problem
    logs = log_softmax(x @ w.T + b)[np.arange(len(y)), y]
    rms = np.sqrt(samples @ np.square(x) / samples.sum())
    drawn = ridge * (np.square((w - w0) * rms).sum() + np.square(b - b0).sum())
    return -(samples * logs).sum() + (drawn + np.square(within @ (w - w0).T).sum()) / 2


@pytest.mark.parametrize(("count", "features"), [(60, 5), (6, 20), (6, 300)])
def test_the_fit_is_the_minimum(count, features):
    problem = made(count, features)
    x, y, samples, (w0, b0), ridge, within = problem
    rms = np.sqrt(samples @ np.square(x) / samples.sum())
    w, b = fit_classifier(problem)
    least = loss(problem, w, b)
    assert least < loss(problem, w0, b0) - 1
    rng = np.random.default_rng(1)
    for _ in range(30):
        dw, db = rng.normal(0, 0.03, w.shape) / rms, rng.normal(0, 0.03, b.shape)
        assert loss(problem, w + dw, b + db) > least
    gradient = np.exp(log_softmax(x @ w.T + b))
    gradient[np.arange(count), y] -= 1
    gradient = (gradient * samples[:, None]).T @ (x / rms) + ridge * (w - w0) * rms
    gradient += (w - w0) @ within.T @ within / rms
    assert np.abs(gradient).max() < 1e-3 * samples.sum()


def test_a_strong_ridge_leaves_the_factory_and_a_feature_that_is_nowhere_keeps_its_weight():
    problem = made()._replace(within=np.zeros((0, 5)))
    w, b = fit_classifier(problem._replace(ridge=1e9))
    np.testing.assert_allclose(w, problem.before.weights, atol=1e-6)
    np.testing.assert_allclose(b, problem.before.biases, atol=1e-6)
    problem.x[:, 2] = 0
    w, _ = fit_classifier(problem._replace(ridge=0.1))
    np.testing.assert_allclose(w[:, 2], problem.before.weights[:, 2], atol=1e-12)


def test_deviations_are_those_of_the_covariance_within_classes():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((90, 4)) + 10 * np.arange(90)[:, None] % 3, np.arange(90) % 3
    d = deviations(x, y)
    wanted = np.mean([np.cov(x[y == c].T) for c in range(3)], axis=0)  # of as many samples each
    np.testing.assert_allclose(d.T @ d, wanted, rtol=1e-9)
    assert not deviations(x[:3], y[:3]).any()


@pytest.mark.parametrize("width", [2, 3, 4, 8])
def test_codes_are_of_the_width_and_better_than_plain_rounding(width):
    rng = np.random.default_rng(width)
    mixed = rng.standard_normal((40, 40)) @ np.diag(np.linspace(0.1, 3, 40))
    covariance, weights = mixed @ mixed.T + np.eye(40), rng.standard_normal((6, 40))
    m, unit = round_weights(weights, covariance, width)
    limit = multiplicand_limit(width)
    assert (unit > 0).all() and (m == np.rint(m)).all() and -limit <= m.min() and m.max() <= limit
    if width == TOP_WIDTH:
        assert m.max() < limit
    else:
        assert (m % 2 == 1).all()

    def error(m, unit):
        off = m * unit[:, None] - weights
        return ((off @ covariance) * off).sum(1)

    u = np.abs(weights).max(1) / limit
    v = weights / u[:, None]
    odd = (2 * np.floor(v / 2) + 1).clip(-limit, limit)
    plain = np.rint(v).clip(-limit, limit - 1) if width == TOP_WIDTH else odd
    assert error(m, unit).sum() < (1.0 if width == TOP_WIDTH else 0.7) * error(plain, u).sum()


def test_weights_of_nothing_are_rounded_too():
    m, unit = round_weights(np.zeros((2, 3)), np.eye(3), 4)
    assert np.isfinite(m).all() and (unit > 0).all()


@pytest.mark.parametrize("width", [2, 3])
def test_codes_move_where_the_loss_falls_and_nowhere_else(width):
    """Labels that features tell apart well: weights are large there, and so are the errors of rounding."""
    problem = made(200, 12, 4, seed=width)
    x, samples = problem.x, problem.samples
    problem = problem._replace(y=(x @ np.random.default_rng(0).standard_normal((12, 4))).argmax(1))
    mean = samples @ x / samples.sum()
    covariance = ((x - mean) * samples[:, None]).T @ (x - mean) / samples.sum()
    begin = round_classifier(fit_classifier(problem), mean, covariance, width)
    m, unit, b = move_codes(problem, begin, width)
    limit = multiplicand_limit(width)
    assert (m % 2 == 1).all() and np.abs(m).max() <= limit and (unit == begin.unit).all()
    before, least = loss(problem, begin.m * unit[:, None], begin.biases), loss(problem, m * unit[:, None], b)
    moved = np.abs(m - begin.m).sum() / 2
    assert moved and least < before - 0.02 * moved
    for at in np.ndindex(*m.shape):  # no code is left that would save much
        for by in (-2, 2):
            other = m.copy()
            other[at] += by
            if abs(other[at]) <= limit:
                assert loss(problem, other * unit[:, None], b) > least - 0.1 * (before - least)


def test_codes_of_8_bits_stay_as_they_are_rounded():
    problem = made()
    begin = round_classifier(fit_classifier(problem), problem.x.mean(0), np.cov(problem.x.T), TOP_WIDTH)
    assert move_codes(problem, begin, TOP_WIDTH) is begin


def test_outputs_beyond_all_bounds_move_nothing_that_is_no_number():
    """Probabilities that underflow: moves whose loss cannot be told are not made."""
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (40, 30)).astype(np.float64), np.arange(40) % 3
    before = Classifier(rng.standard_normal((3, 30)) * 100, np.zeros(3))
    problem = Problem(x, y, np.ones(40), before, 0.03, deviations(x, y))
    m, unit = round_weights(before.weights, np.cov(x.T) + np.eye(30), 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        moved = move_codes(problem, Codes(m, unit, before.biases), 2)
    assert np.isfinite(moved.biases).all() and set(np.unique(moved.m)) <= {-3, -1, 1, 3}

"""Signals of drift, against their definitions."""

from __future__ import annotations

import numpy as np
import pytest

from caq.calibration.signals import channel_statistics, entropy, saturation
from caq.engine import Engine
from caq.errors import DataError
from tests import models


def test_channel_statistics_are_moments_over_positions():
    codes = np.random.default_rng(0).integers(-128, 128, (4, 3, 5, 2)).astype(np.int8)
    found = channel_statistics(codes)
    assert found.shape == (4, 4) and found.dtype == np.float64
    np.testing.assert_allclose(found[1], [*codes[1].mean((0, 1)), *codes[1].std((0, 1))])
    np.testing.assert_allclose(channel_statistics(codes[:, 0, 0]), np.pad(codes[:, 0, 0], ((0, 0), (0, 2))))


def test_saturation_counts_the_ends_that_clamp():
    codes = np.array([[[0, 255], [255, 3]], [[0, 0], [0, 0]]], np.int16)
    assert saturation(codes, 0, 255).tolist() == [[0.5], [0.0]]
    assert saturation(codes - 128, -128, 127).tolist() == [[0.75], [1.0]]


def test_entropy_is_0_for_certainty_and_1_for_none():
    p = np.array([[1, 0, 0, 0], [0.25] * 4, [0.5, 0.5, 0, 0]], np.float32)
    np.testing.assert_allclose(entropy(p), [[0], [1], [0.5]], atol=1e-7)
    engine = Engine(models.model(0))
    found = entropy(engine.probabilities(engine.run(models.samples(engine.model, 9))))
    assert found.shape == (9, 1) and (found >= 0).all() and (found <= 1 + 1e-4).all()


def test_what_is_no_signal_is_a_typed_error():
    for codes in (np.zeros((2, 3)), np.zeros(3, int), np.zeros((0, 3), int)):
        with pytest.raises(DataError, match="codes"):
            channel_statistics(codes)
        with pytest.raises(DataError, match="codes"):
            saturation(codes, 0, 255)
    for p in (np.ones((3, 1)), np.ones(3)):
        with pytest.raises(DataError, match="probabilities"):
            entropy(p)

"""Answers that stand for labels: only sure ones, only where no label came, and never judged on themselves."""

from __future__ import annotations

import numpy as np
import pytest

from caq.calibration.biases import log_softmax
from caq.calibration.calibrator import Calibrator
from caq.calibration.config import CalibratorConfig
from caq.calibration.core import UNLABELLED
from caq.calibration.guard import Limits
from caq.calibration.judge import Judge, held_out
from caq.calibration.sets import coded, logits, parameter_sets
from caq.errors import ConfigError
from tests import models
from tests.calibration.streams import core_of, drifted, parameters_of, source


@pytest.fixture(scope="module")
def world():
    model, x, y = source()
    return model, core_of(model, x, y), drifted(models.samples(model, 60, seed=1))


def calibrated(world, y=None, **changes):
    model, core, x = world
    config = CalibratorConfig(**{"rungs": ("biases",), "guarded": False, **changes})
    calibrator = Calibrator(model, core, config=config)
    calibrator.partial_fit(x, y)
    return calibrator


def widest(world):
    """What the widest set says of the stream, and how sure it is."""
    model, _, x = world
    codes, which = model.encode(x)[0].astype(np.int16), parameter_sets(model)[2]
    logs = log_softmax(logits(coded(model), (which,), codes)["w8a8"])
    return logs.argmax(1), np.exp(logs.max(1))


def test_sure_answers_do_what_such_labels_do(world):
    model = world[0]
    answers, sure = widest(world)
    threshold = float(np.median(sure))
    guessed = calibrated(world, pseudo_labels=threshold)
    labels = np.where(sure > threshold, answers, UNLABELLED)
    assert parameters_of(guessed.model) == parameters_of(calibrated(world, labels).model) != parameters_of(model)
    (record,) = guessed.history
    fitted = ~held_out(np.arange(60), 0)
    assert record["what"] == "biases" and record["pseudo_labels"] == (labels[fitted] != UNLABELLED).sum() < fitted.sum()


def test_no_answer_that_is_not_sure_enough_stands_for_a_label(world):
    model = world[0]
    found = calibrated(world, pseudo_labels=1.0)
    assert parameters_of(found.model) == parameters_of(model)
    (record,) = found.history
    assert not record["promoted"] and "sure enough" in record["reasons"][0]


def test_labels_come_first_and_by_default_nothing_stands_for_them(world):
    answers, _ = widest(world)
    labels = np.where(np.arange(60) < 30, 1 - answers.clip(max=1), UNLABELLED)
    found = calibrated(world, labels, pseudo_labels=0.0)
    assert parameters_of(found.model) == parameters_of(calibrated(world, labels).model)
    assert "pseudo_labels" not in found.history[0]
    assert not calibrated(world).history


def test_fitted_answers_are_not_judged(world):
    model, core, x = world
    codes, ids, none = model.encode(x)[0], np.arange(60), np.full(60, UNLABELLED)
    judge = Judge(coded(model), core, seed=0, limits=Limits())
    every, held = (judge.slice_of(core, codes, none, ids, guessed) for guessed in (False, True))
    assert len(every.x) - every.factory == 60 and len(held.x) - held.factory == held_out(ids, 0).sum() < 60
    assert np.array_equal(held.x[held.factory :], codes[held_out(ids, 0)])


def test_a_guarded_step_says_what_it_was_judged_on(world):
    found = calibrated(world, guarded=True, pseudo_labels=0.5, limits=Limits(gain=None, point=1, class_=1, factory=1))
    (record,) = found.history
    assert record["promoted"] or any("entropy of the stream" in reason for reason in record["reasons"])


@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan")])
def test_a_threshold_is_a_probability(value):
    with pytest.raises(ConfigError, match="pseudo_labels"):
        CalibratorConfig(pseudo_labels=value)

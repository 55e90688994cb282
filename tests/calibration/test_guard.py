"""The guard promotes what helps, and refuses, with its grounds, what costs more than it may."""

from __future__ import annotations

import json

import numpy as np
import pytest

from caq.calibration.core import UNLABELLED, CoreSet
from caq.calibration.guard import Guard, Limits, hold_out
from caq.errors import ConfigError, DataError
from tests.calibration.test_core import WIDTHS, data

#: 100 samples of 4 classes; the first half is the factory's.
Y = np.arange(100) % 4
FACTORY = np.arange(100) < 50


def answers(*wrong: int) -> np.ndarray:
    found = Y.copy()
    found[list(wrong)] = 9
    return found


def judge(before: dict, after: dict, limits: Limits = Limits()):  # noqa: B008
    return Guard(Y, FACTORY, limits).judge(before, after)


def test_what_helps_is_promoted_and_what_changes_nothing_is_not():
    worse, better = {"w8a8": answers(60, 61), "w2a2": answers(70)}, {"w8a8": answers(60), "w2a2": answers(70)}
    verdict = judge(worse, better)
    assert verdict.promote and verdict.reasons == () and verdict.samples == 100
    assert verdict.before.points == {"w8a8": 0.98, "w2a2": 0.99}
    assert verdict.after.points == {"w8a8": 0.99, "w2a2": 0.99} and verdict.after.factory == 1
    assert verdict.before.classes[1] == pytest.approx(49 / 50)
    same = judge(worse, worse)
    assert not same.promote and "changes by +0.0000" in same.reasons[0]
    assert judge(worse, worse, Limits(gain=0)).promote
    assert not judge(better, worse, Limits(gain=0, point=1)).promote
    assert judge(better, worse, Limits(gain=None, point=1)).promote


def test_a_gain_on_the_whole_does_not_pay_for_a_point():
    before = {"w8a8": answers(*range(50, 60)), "w2a2": answers()}
    verdict = judge(before, {"w8a8": answers(), "w2a2": answers(80, 81)})
    assert not verdict.promote
    assert verdict.reasons == ("point w2a2 loses 0.0200, from 1.0000 to 0.9800; 0.01 are allowed",)
    assert judge(before, {"w8a8": answers(), "w2a2": answers(80)}).promote


def test_nor_for_a_class():
    before = {"w8a8": answers(*[i for i in range(50, 100) if Y[i] == 1])}
    verdict = judge(before, {"w8a8": answers(*[i for i in range(50, 64) if Y[i] == 2])})
    assert verdict.reasons == ("class 2 loses 0.1600, from 1.0000 to 0.8400; 0.1 are allowed",)


def test_nor_for_what_the_factory_knew():
    before = {"w8a8": answers(*range(50, 60))}
    verdict = judge(before, {"w8a8": answers(0, 1)})
    assert verdict.reasons == ("domain factory loses 0.0400, from 1.0000 to 0.9600; 0.02 are allowed",)
    no_factory = Guard(Y, np.zeros(100, bool)).judge(before, {"w8a8": answers(0, 1)})
    assert no_factory.promote and no_factory.before.factory is None


def test_an_audit_record_is_json_with_figures():
    record = judge({"w8a8": answers(60, 61, 62)}, {"w8a8": answers(60)}).record("biases", nbytes=128, ms=3.14159)
    assert (
        json.loads(json.dumps(record))
        == record
        == {
            "what": "biases",
            "promoted": True,
            "reasons": [],
            "samples": 100,
            "accuracy_before": {"w8a8": 0.97},
            "accuracy_after": {"w8a8": 0.99},
            "bytes": 128,
            "ms": 3.142,
        }
    )


def test_what_cannot_be_judged_is_a_typed_error():
    for y, factory in ((Y[:0], FACTORY[:0]), (Y, FACTORY[1:]), (Y - 1, FACTORY), (Y[None], FACTORY[None])):
        with pytest.raises(DataError):
            Guard(y, factory)
    for before, after in (({}, {}), ({"a": Y}, {"b": Y}), ({"a": Y}, {"a": Y[1:]})):
        with pytest.raises(DataError):
            judge(before, after)
    for wrong in ({"gain": -1}, {"point": 2}, {"class_": -0.1}, {"factory": float("nan")}):
        with pytest.raises(ConfigError):
            Limits(**wrong)


@pytest.mark.parametrize("size", [20, 100, 900])
def test_the_slice_has_its_share_of_every_class_and_nothing_of_the_rest(size):
    core = CoreSet.select(*data(1000), WIDTHS, size=size, per_class=2)
    work, slice_ = hold_out(core)
    assert sorted([*work.ids, *slice_.ids]) == sorted(core.ids)
    for label in np.unique(core.y):
        n = (core.y == label).sum()
        assert (slice_.y == label).sum() == max(round(0.3 * n), 1)
    np.testing.assert_array_equal(slice_.x[:, 0], -1 - slice_.ids)
    assert (hold_out(core, seed=1)[1].ids.tolist() != slice_.ids.tolist()) and hold_out(core)[
        1
    ].ids.tolist() == slice_.ids.tolist()


def test_samples_stay_in_the_slice_when_others_are_exchanged():
    core = CoreSet.select(*data(400), WIDTHS, size=200)
    after = core.update(*data(100, seed=1), np.random.default_rng(0), keep=0.8)
    first, second = (set(hold_out(c)[1].ids.tolist()) for c in (core, after))
    still = first & set(after.ids.tolist())
    assert len(still & second) > 0.85 * len(still)


def test_samples_without_labels_are_worked_with_and_not_judged_by():
    core = CoreSet.select(*data(100), WIDTHS, size=40).update(data(50)[0], None, data(50)[2], np.random.default_rng(0))
    work, slice_ = hold_out(core)
    assert (slice_.y != UNLABELLED).all() and (work.y == UNLABELLED).sum() == (core.y == UNLABELLED).sum() > 0
    bare = core.take(np.flatnonzero(core.y == UNLABELLED))
    for few in (bare, core.take(np.array([0]))):
        with pytest.raises(ConfigError, match="too few"):
            hold_out(few)
    for share in (0, 1):
        with pytest.raises(ConfigError, match="share"):
            hold_out(core, share)

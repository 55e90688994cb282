"""Core sets of finished models: misses of perturbed passes."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import pytest

from caq.calibration.core import CoreSet, MissCounter
from caq.calibration.making import PASSES, CoreConfig, draw_core
from caq.errors import ConfigError, DataError, StateFormatError, UnsupportedError
from tests import models
from tests.calibration.streams import source


class Progress:
    """Counts what was shown."""

    def __init__(self):
        self.total, self.done = 0, 0

    @contextmanager
    def __call__(self, description, total):
        self.total = total

        def advance(note):
            self.done += 1

        yield advance


def test_a_core_set_is_drawn_by_misses_of_perturbed_passes():
    model, x, y = source()
    shown, config = Progress(), CoreConfig(size=40, seed=3)
    core = draw_core(model, x, y, config, shown)
    again = draw_core(model, x, y, config, Progress())
    assert shown.done == shown.total == PASSES + 1
    assert len(core) == 40 and core.from_factory.all() and set(core.y.tolist()) == set(y.tolist())
    np.testing.assert_array_equal(core.x, again.x)
    np.testing.assert_array_equal(core.misses, again.misses)
    # Labels are what the widest set says: it misses only where it is perturbed, the narrowest in most passes or none.
    assert core.misses.max() <= PASSES + 1 and len(np.unique(core.misses.sum(1))) > 3
    assert core.misses[:, 0].sum() > core.misses[:, -1].sum()


def test_samples_that_are_never_right_rank_with_the_hardest():
    model, x, y = source()
    wrong = (y + 1) % 3
    core = draw_core(model, x, np.where(np.arange(len(y)) < 20, wrong, y), CoreConfig(size=len(y)), Progress())
    never = core.misses[np.argsort(core.ids)[::-1]][:20]
    assert (never.max(0) <= core.misses.max(0)).all() and never.sum() > 0
    small = draw_core(model, x, np.where(np.arange(len(y)) < 20, wrong, y), CoreConfig(len(y), penalty=0), Progress())
    assert small.misses.sum() < core.misses.sum()


def test_a_budget_in_bytes():
    model, x, y = source()
    core = draw_core(model, x, y, CoreConfig(max_bytes=5000, method="count"), Progress())
    assert 4000 < core.nbytes <= 5000


def test_what_cannot_be_drawn_is_refused_before_any_pass():
    model, x, y = source()
    shown = Progress()
    for config in (CoreConfig(size=len(x) + 1), CoreConfig(max_bytes=3), CoreConfig(size=2, per_class=1)):
        with pytest.raises(ConfigError):
            draw_core(model, x, y, config, shown)
    assert shown.total == 0
    with pytest.raises(UnsupportedError, match="reconstruct"):
        draw_core(models.model(0, task="reconstruct"), x, y, CoreConfig(2), shown)
    for wrong in ({}, {"size": 3, "method": "best"}, {"size": 3, "per_class": -1}, {"size": 3, "penalty": -1}):
        with pytest.raises(ConfigError):
            CoreConfig(**wrong)


def test_a_counter_goes_on_where_it_was():
    rng = np.random.default_rng(0)
    logs = rng.random((6, 3, 50)) < 0.6
    whole, first = MissCounter(50, (2, 4, 8)), MissCounter(50, (2, 4, 8))
    for log in logs:
        whole.update(log)
    for log in logs[:3]:
        first.update(log)
    second = MissCounter.from_arrays({k: v.copy() for k, v in first.to_arrays().items()})
    for log in logs[3:]:
        second.update(log)
    np.testing.assert_array_equal(second.misses(), whole.misses())
    arrays = whole.to_arrays()
    for bad in (
        {k: v for k, v in arrays.items() if k != "ever"},
        {**arrays, "ever": arrays["ever"][:, 1:]},
        {**arrays, "misses": arrays["misses"].astype(np.int64)},
        {k: v[0] for k, v in arrays.items()},
    ):
        with pytest.raises(StateFormatError, match="misses"):
            MissCounter.from_arrays(bad)


def test_what_an_artifact_keeps_comes_back():
    model, x, y = source()
    core = draw_core(model, x, y, CoreConfig(size=30), Progress())
    again = CoreSet.from_stored(core.stored(), core.widths)
    np.testing.assert_array_equal(again.x, core.x)
    assert again.from_factory.all() and len(np.unique(again.ids)) == 30
    unlabelled = CoreSet(core.x, np.full(30, -1, np.int16), core.misses, core.widths, core.ids)
    with pytest.raises(DataError, match="label"):
        unlabelled.stored()

"""The watch: no alarm on what the source has, one soon after a drift, and the same after a restart."""

from __future__ import annotations

import numpy as np

from caq.calibration.watch import Watch
from tests import models
from tests.calibration.streams import core_of, drifted, source


def alarms(watch, codes):
    return [i for i, sample in enumerate(codes) if watch.alarm(sample)]


def test_drift_is_seen_and_its_absence_too():
    model, x, y = source()
    core = core_of(model, x, y)
    same = models.samples(model, 500, seed=7)
    watch = Watch(core.x, 0)
    assert alarms(watch, model.encode(same)[0]) == []
    found = alarms(watch, model.encode(drifted(same))[0])
    assert found and found[0] < 100


def test_a_restart_changes_nothing():
    model, x, y = source()
    core, stream = core_of(model, x, y), model.encode(drifted(models.samples(model, 300, seed=8)))[0]
    through, first, second = (Watch(core.x, 0) for _ in range(3))
    found = alarms(through, stream)
    before = alarms(first, stream[:40])
    second.load_arrays(first.to_arrays())
    assert before + [40 + i for i in alarms(second, stream[40:])] == found and found
    assert all(np.array_equal(a, second.to_arrays()[name]) for name, a in through.to_arrays().items())

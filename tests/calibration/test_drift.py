"""One suite over every detector: what the contract says holds for all; then what is each one's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

from caq.calibration.drift import Debounced, Detector, StatisticsShift, highest_statistic
from caq.calibration.error_streams import ADWIN, DDM, PageHinkley
from caq.calibration.state import State, from_bytes, owned, to_bytes
from caq.errors import ConfigError, DataError, StateFormatError

F = 6


class Kind(NamedTuple):
    """A detector, a stream as it is used to, and one that drifts."""

    make: Callable[[], Detector]
    usual: Callable[[np.random.Generator, int], Any]
    drifted: Callable[[np.random.Generator, int], Any]
    bad: tuple[Any, ...]
    longest_delay: int


def errors(rate: float) -> Callable[[np.random.Generator, int], Any]:
    return lambda rng, n: (rng.random(n) < rate).astype(int).tolist()


def normal(mean: float) -> Callable[[np.random.Generator, int], Any]:
    return lambda rng, n: rng.normal(mean, 0.1, n).tolist()


def signals(shift: float) -> Callable[[np.random.Generator, int], Any]:
    return lambda rng, n: rng.normal([shift, 2.0, 0.0, 0.0, 0.0, 5.0], [1, 2, 1, 1, 1, 0], (n, F))


def shift(threshold: float = 7.0, decay: float = 1 / 32) -> StatisticsShift:
    return StatisticsShift.fit(signals(0)(np.random.default_rng(9), 2000), threshold, decay)


NUMBERS = (float("nan"), float("inf"))
VECTORS = (np.zeros(F - 1), np.zeros((1, F)), np.full(F, np.nan), 3.0)
KINDS = {
    "DDM": Kind(DDM, errors(0.1), errors(0.6), (0.5, -1, 2, *NUMBERS), 60),
    "PageHinkley": Kind(PageHinkley, errors(0.1), errors(0.6), NUMBERS, 80),
    "PageHinkley of numbers": Kind(lambda: PageHinkley(1.0, 0.05), normal(0.2), normal(0.6), NUMBERS, 20),
    "ADWIN": Kind(ADWIN, errors(0.1), errors(0.6), NUMBERS, 120),
    "ADWIN of numbers": Kind(ADWIN, normal(0.6), normal(0.2), NUMBERS, 60),
    "StatisticsShift": Kind(shift, signals(0), signals(2), VECTORS, 40),
    "Debounced(StatisticsShift)": Kind(lambda: Debounced(shift()), signals(0), signals(2), VECTORS, 50),
    "Debounced(DDM)": Kind(lambda: Debounced(DDM(), hits=1), errors(0.1), errors(0.6), (0.5, *NUMBERS), 60),
}


def alarms(detector: Detector, stream: Any) -> list[int]:
    found = []
    for i, x in enumerate(stream):
        detector.update(x)
        if detector.drift_detected:
            found.append(i)
    return found


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    return KINDS[request.param]


def test_a_stream_as_usual_raises_few_alarms(kind):
    silent = sum(not alarms(kind.make(), kind.usual(np.random.default_rng(seed), 500)) for seed in range(20))
    assert silent >= 17


def test_drift_is_found_soon_and_not_before(kind):
    silent = 0
    for seed in range(10):
        rng, detector = np.random.default_rng(seed), kind.make()
        if not alarms(detector, kind.usual(rng, 200)):
            silent += 1
            after = alarms(detector, kind.drifted(rng, 200))
            assert after and after[0] < kind.longest_delay
    assert silent >= 8


def test_a_reset_detector_is_as_new(kind):
    rng = np.random.default_rng(0)
    used, new = kind.make(), kind.make()
    assert not new.drift_detected
    alarms(used, kind.drifted(rng, 100))
    used.reset()
    assert not used.drift_detected
    stream = [*kind.usual(rng, 100), *kind.drifted(rng, 100)]
    assert alarms(used, stream) == alarms(new, stream) != []


@pytest.mark.parametrize("moment", [0, 1, 30, 250, 300, 320])
def test_a_restored_detector_goes_on_bit_for_bit(kind, moment):
    rng = np.random.default_rng(1)
    stream = [*kind.usual(rng, 240), *kind.drifted(rng, 200)]
    first = kind.make()
    alarms(first, stream[:moment])
    kept = from_bytes(to_bytes(State("a" * 64, owned("drift", first.to_arrays()))))
    second = kind.make()
    second.load_arrays(kept.part("drift"))
    assert second.drift_detected == first.drift_detected
    assert alarms(second, stream[moment:]) == alarms(first, stream[moment:])
    for name, array in first.to_arrays().items():
        np.testing.assert_array_equal(second.to_arrays()[name], array)


def test_bad_values_are_typed_errors_and_change_nothing(kind):
    detector = kind.make()
    alarms(detector, kind.usual(np.random.default_rng(0), 50))
    before = detector.to_arrays()
    for bad in kind.bad:
        with pytest.raises(DataError):
            detector.update(bad)
    for name, array in detector.to_arrays().items():
        np.testing.assert_array_equal(array, before[name])


def test_other_arrays_are_typed_errors(kind):
    detector = kind.make()
    alarms(detector, kind.usual(np.random.default_rng(0), 50))
    good = detector.to_arrays()
    for name, array in good.items():
        edits = [array[..., :-1], array.astype(np.float32), np.full_like(array, np.nan), array[None]]
        if name not in ("mean", "average"):  # which may be any numbers
            edits.append(array - 1e6)
        for edit in edits:
            with pytest.raises(StateFormatError):
                kind.make().load_arrays({**good, name: edit})
        with pytest.raises(StateFormatError):
            kind.make().load_arrays({k: v for k, v in good.items() if k != name})


def test_settings_out_of_range_are_typed_errors():
    for make in (
        lambda: DDM(level=0),
        lambda: DDM(warm_start=0),
        lambda: PageHinkley(threshold=0),
        lambda: PageHinkley(delta=-1),
        lambda: ADWIN(delta=1),
        lambda: ADWIN(clock=0),
        lambda: shift(threshold=0),
        lambda: shift(decay=1),
        lambda: Debounced(DDM(), hits=0),
        lambda: Debounced(DDM(), cooldown=-1),
    ):
        with pytest.raises(ConfigError):
            make()
    for mean, deviation in (([0.0], [-1.0]), ([0.0], [0.0, 1.0]), ([], []), ([np.nan], [1.0])):
        with pytest.raises(DataError):
            StatisticsShift(np.array(mean), np.array(deviation), 4.0)
    for x in (np.zeros((1, 3)), np.zeros(3)):
        with pytest.raises(DataError, match="2 samples or more"):
            StatisticsShift.fit(x, 4.0)


def test_ddm_does_not_take_the_first_error_after_none_for_drift():
    assert alarms(DDM(), [0] * 40 + [1] + [0] * 40) == []


def test_adwin_keeps_a_window_of_what_is_now_in_few_buckets():
    detector, rng = ADWIN(), np.random.default_rng(0)
    alarms(detector, normal(0.5)(rng, 3000))
    assert detector.width == 3000 and len(detector.to_arrays()["buckets"]) < 5 * 12
    alarms(detector, normal(0.9)(rng, 400))
    assert detector.width < 500


def test_buckets_hold_the_moments_of_their_values():
    detector, x = ADWIN(delta=1e-9), np.random.default_rng(0).random(777)
    alarms(detector, x)
    start = 0
    for size, total, squares in detector.to_arrays()["buckets"]:
        part = x[start : start + int(size)]
        np.testing.assert_allclose([part.sum(), ((part - part.mean()) ** 2).sum()], [total, squares], atol=1e-9)
        start += int(size)
    assert start == 777


def test_the_statistic_is_one_on_average_where_nothing_drifts():
    detector, rng = shift(), np.random.default_rng(0)
    seen = []
    for x in signals(0)(rng, 20000):
        detector.update(x)
        seen.append(detector.statistic)
    assert abs(np.mean(seen) - 1) < 0.1
    assert shift().statistic == 0 and StatisticsShift(np.zeros(2), np.zeros(2), 4.0).statistic == 0


def test_one_broken_sample_and_a_signal_that_was_constant_are_no_drift():
    rng = np.random.default_rng(0)
    stream = signals(0)(rng, 200)
    stream[100, 0] = 1e30
    stream[:, 5] += 7
    assert alarms(shift(), stream) == []
    constant = StatisticsShift(np.zeros(1), np.zeros(1), 4.0)
    assert alarms(constant, np.full((100, 1), 3.0)) == [] and constant.statistic == 0


def test_a_signal_that_was_constant_counts_where_a_least_deviation_is_given():
    for least, found in ((0.0, False), (0.1, True), (9.0, False)):
        detector = StatisticsShift.fit(np.zeros((9, 2)), 4.0, least_deviation=least)
        assert bool(alarms(detector, np.full((50, 2), 0.2))) == found
    with pytest.raises(ConfigError, match="least_deviation"):
        StatisticsShift.fit(np.zeros((9, 2)), 4.0, least_deviation=-1)


def test_a_threshold_above_the_highest_statistic_raises_no_alarm():
    streams = [signals(0)(np.random.default_rng(seed), 150) for seed in range(5)]
    detector = shift()
    highest = highest_statistic(detector, streams)
    assert len(highest) == 5 and detector.statistic == 0
    for stream, statistic in zip(streams, highest, strict=True):
        assert alarms(shift(threshold=statistic * 1.0001), stream) == []
        assert alarms(shift(threshold=statistic * 0.9999), stream) != []
    with pytest.raises(DataError, match="says nothing"):
        highest_statistic(detector, [streams[0][:31]])


def test_an_alarm_needs_hits_in_a_row_and_is_silent_afterwards():
    class Scripted:
        drift_detected = False
        resets = seen = 0

        def update(self, x: int) -> None:
            self.drift_detected, self.seen = bool(x), self.seen + 1

        def reset(self) -> None:
            self.drift_detected, self.resets = False, self.resets + 1

    inner = Scripted()
    detector = Debounced(inner, hits=3, cooldown=5)  # type: ignore[arg-type]
    assert alarms(detector, [1, 1, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]) == [5, 13]
    assert inner.resets == 3 and inner.seen == 9

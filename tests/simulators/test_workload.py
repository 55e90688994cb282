"""Arrivals and the queue, beside what theory says of them; statistical bounds are of 4 standard errors."""

import math

import numpy as np
import pytest

from caq.errors import ConfigError
from simulators.workload import (
    Bursts,
    Diurnal,
    Poisson,
    Queue,
    Recorded,
    Requests,
    device_counts,
    device_seeds,
    edges,
)

SEED = np.random.SeedSequence(7)
HOURLY = tuple(0.001 * hour for hour in range(24))
PROCESSES = [
    Poisson(0.02),
    Diurnal(HOURLY),
    Bursts(0.001, 0.5, 600, 60),
    Bursts(0.0, 3.0, 0.01, 0.02),
    Recorded(np.sort(np.random.default_rng(0).uniform(-100, 90000, 500))),
]


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("start_s", [0.0, 5000.0])
def test_times_fall_into_the_steps_as_the_counts_say(process, start_s):
    edges_s = edges(3 * 3600, 60, start_s)
    for seed in device_seeds(3, seed=1):
        counts, times_s = process.counts(seed, edges_s), process.times(seed, edges_s)
        assert counts.shape == (180,) and counts.dtype == np.int64
        assert (np.diff(times_s) >= 0).all() and len(times_s) == counts.sum()
        np.testing.assert_array_equal(np.diff(np.searchsorted(times_s, edges_s)), counts)
        np.testing.assert_array_equal(process.counts(seed, edges_s), counts)
        np.testing.assert_array_equal(process.times(seed, edges_s), times_s)


def test_devices_have_seeds_of_their_own():
    edges_s = edges(86400, 600)
    whole = device_counts(Poisson(0.01), device_seeds(6, seed=3), edges_s)
    assert whole.shape == (6, 144)
    parts = [device_counts(Poisson(0.01), device_seeds(2, seed=3, first=first), edges_s) for first in (0, 2, 4)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert len(np.unique(whole, axis=0)) == 6
    assert not np.array_equal(device_counts(Poisson(0.01), device_seeds(6, seed=4), edges_s), whole)


def test_poisson():
    counts = device_counts(Poisson(0.1), device_seeds(50, seed=0), edges(86400, 60))
    mean, variance, n = counts.mean(), counts.var(), counts.size
    assert mean == pytest.approx(6, abs=4 * math.sqrt(6 / n))
    # The variance of a sample variance of a Poisson number is (m + 2 m^2) / n.
    assert variance == pytest.approx(6, abs=4 * math.sqrt((6 + 72) / n))
    between_s = np.diff(Poisson(0.1).times(SEED, edges(864000, 60)))
    # Exponential times in between: mean and deviation are alike.
    assert between_s.mean() == pytest.approx(10, rel=4 / math.sqrt(len(between_s)))
    assert between_s.std() == pytest.approx(10, rel=4 * math.sqrt(2 / len(between_s)))


def test_diurnal_follows_the_hours_from_any_start():
    edges_s = edges(5 * 86400, 1800, start_s=86400 * 3 + 1800)
    counts = device_counts(Diurnal(HOURLY), device_seeds(200, seed=0), edges_s).sum(0)
    hour = (edges_s[:-1] // 3600).astype(int) % 24
    for each in range(24):
        expected = HOURLY[each] * 1800 * 200 * 10
        assert counts[hour == each].sum() == pytest.approx(expected, abs=4 * math.sqrt(expected))


def test_bursts():
    process = Bursts(quiet_per_s=0.01, busy_per_s=1.0, quiet_s=300, busy_s=30)
    counts = device_counts(process, device_seeds(200, seed=0), edges(86400, 60))
    # MMPP: variance of the mean intensity over a time t, from the autocovariance that decays with 1/300 + 1/30.
    decay, share = 1 / 300 + 1 / 30, 30 / 330
    spread = share * (1 - share) * 0.99**2
    mean = process.mean_per_s * 60
    assert mean == pytest.approx(6)
    error = math.sqrt((mean * 1440 + 2 * spread / decay * 86400) / 200) / 1440
    assert counts.mean() == pytest.approx(mean, abs=4 * error)
    # Index of dispersion for counts (Fischer and Meier-Hellstern 1993, section 2).
    t = 60
    dispersion = 1 + 2 * spread / (process.mean_per_s * decay) * (1 - (1 - math.exp(-decay * t)) / (decay * t))
    assert counts.var() / counts.mean() == pytest.approx(dispersion, rel=0.05)
    assert dispersion > 10


def test_recorded():
    found = Recorded(np.array([1.0, 1.0, 5.0, 60.0, 61.0]))
    assert found.counts(SEED, np.array([1.0, 5.0, 60.0])).tolist() == [2, 1]
    assert found.times(SEED, np.array([1.0, 5.0, 60.0])).tolist() == [1, 1, 5]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Poisson(-1), "rate_per_s"),
        (lambda: Poisson(math.nan), "rate_per_s"),
        (lambda: Diurnal((1.0,) * 23), "24 rates.*not 23"),
        (lambda: Diurnal((1.0,) * 23 + (math.inf,)), r"rates_per_s\[23\]"),
        (lambda: Bursts(0, 1, 0, 1), "quiet_s"),
        (lambda: Bursts(0, -1, 1, 1), "busy_per_s"),
        (lambda: Recorded(np.array([1.0, 0.5])), r"arrival_s\[1\]"),
        (lambda: Recorded(np.array([math.nan])), "finite"),
        (lambda: edges(100, 60), "100 s is not a number of steps of 60 s"),
        (lambda: edges(100, 0), "steps of 0 s"),
        (lambda: Requests(np.arange(2.0), np.array([1.0, 0.5]), np.zeros(2, int)), r"deadline_s\[1\]"),
        (lambda: Requests(np.arange(2.0), np.arange(2.0), np.zeros(3, int)), "priority"),
        (lambda: Requests.drawn([0.0], SEED, within_s=(2, 1)), "within_s"),
        (lambda: Requests.drawn([0.0], SEED, within_s=(1, math.inf)), "within_s"),
        (lambda: Requests.drawn([0.0], SEED, shares=(0.5, 0.6)), "shares"),
        (lambda: Queue(capacity=-1), "capacity"),
        (lambda: Queue().serve(Requests.drawn([0.0], SEED), -1.0), "service_s"),
    ],
)
def test_wrong_arguments(make, words):
    with pytest.raises(ConfigError, match=words):
        make()


def test_drawn_requests():
    found = Requests.drawn(np.arange(20000.0), SEED, within_s=(1, 3), shares=(0.2, 0.0, 0.8))
    within_s = found.deadline_s - found.arrival_s
    assert within_s.min() >= 1 and within_s.max() <= 3 and within_s.mean() == pytest.approx(2, abs=0.02)
    np.testing.assert_allclose(np.bincount(found.priority) / 20000, [0.2, 0, 0.8], atol=0.012)
    assert np.isinf(Requests.drawn([1.0, 2.0], SEED).deadline_s).all()


def requests(arrival_s, deadline_s=None, priority=None):
    n = len(arrival_s)
    deadline = np.full(n, math.inf) if deadline_s is None else np.array(deadline_s, float)
    return Requests(np.array(arrival_s, float), deadline, np.array(priority or [0] * n))


def test_first_come_first_served():
    served = Queue().serve(requests([0, 1, 2, 50]), [10, 5, 1, 1])
    assert served.start_s.tolist() == [0, 10, 15, 50]
    assert served.finish_s.tolist() == [10, 15, 16, 51]
    assert served.waiting_s.tolist() == [0, 9, 13, 0]
    assert not served.late.any() and not served.dropped.any()


def test_priority_goes_first_but_does_not_interrupt():
    served = Queue().serve(requests([0, 1, 2, 3], priority=[1, 1, 0, 0]), 10)
    assert served.start_s.tolist() == [0, 30, 10, 20]


def test_deadlines():
    given = requests([0, 1, 2, 3], [20, 9, 10, 100])
    served = Queue(drop_late=True).serve(given, 10)
    # The second one's deadline is over when its turn comes; the third begins in time and ends too late.
    np.testing.assert_array_equal(served.start_s, [0, math.nan, 10, 20])
    assert served.dropped.tolist() == [False, True, False, False]
    assert served.late.tolist() == [False, False, True, False]
    served = Queue(drop_late=False).serve(given, 10)
    assert served.start_s.tolist() == [0, 10, 20, 30] and served.late.tolist() == [False, True, True, False]


def test_a_full_queue_turns_away_and_forgets_those_whose_time_is_over():
    given = requests([0, 1, 2, 10, 11], [99, 99, 99, 99, 99])
    assert Queue(capacity=1).serve(given, 10).dropped.tolist() == [False, False, True, False, True]
    assert Queue(capacity=0).serve(given, 10).dropped.tolist() == [False, True, True, False, True]
    waits = requests([0, 1, 5], [99, 3, 99])
    assert Queue(capacity=1).serve(waits, 10).dropped.tolist() == [False, True, False]
    assert Queue(capacity=1, drop_late=False).serve(waits, 10).dropped.tolist() == [False, False, True]


def test_nobody_comes():
    assert len(Queue().serve(requests([]), 1).start_s) == 0


def poisson_requests(rate, n, shares=(1.0,)):
    times = Poisson(rate).times(SEED, edges(n / rate, n / rate))
    return Requests.drawn(times, SEED, shares=shares)


def mean_and_error(values, batches=50):
    """The mean and its standard error by batch means, since waiting times in a row are alike."""
    means = np.array([part.mean() for part in np.array_split(values, batches)])
    return means.mean(), means.std(ddof=1) / math.sqrt(batches)


@pytest.mark.parametrize("load", [0.3, 0.7])
def test_waiting_times_are_those_of_theory(load):
    given = poisson_requests(load, 200_000)
    exponential = np.random.default_rng(1).exponential(1.0, len(given))
    for service_s, expected in (
        (exponential, load / (1 - load)),  # M/M/1
        (1.0, load / (2 * (1 - load))),  # M/D/1, Pollaczek-Khinchine
    ):
        mean, error = mean_and_error(Queue().serve(given, service_s).waiting_s)
        assert error < 0.04 * expected
        assert mean == pytest.approx(expected, abs=4 * error)


def test_waiting_times_by_priority_are_those_of_theory():
    """Cobham 1954: W_k = W_0 / ((1 - s_(k-1)) (1 - s_k)), s_k the load of classes up to k; here M/M/1 at 0.8."""
    given = poisson_requests(0.8, 200_000, shares=(0.25, 0.75))
    served = Queue().serve(given, np.random.default_rng(2).exponential(1.0, len(given)))
    for priority, expected in ((0, 0.8 / 0.8), (1, 0.8 / (0.8 * 0.2))):
        mean, error = mean_and_error(served.waiting_s[given.priority == priority])
        assert error < 0.1 * expected
        assert mean == pytest.approx(expected, abs=4 * error)


def test_a_queue_without_room_loses_as_erlang_says():
    """M/M/1/1: with nowhere to wait a share load / (1 + load) is turned away (Erlang B)."""
    given = poisson_requests(0.5, 100_000)
    lost = Queue(capacity=0).serve(given, np.random.default_rng(3).exponential(1.0, len(given))).dropped
    mean, error = mean_and_error(lost)
    assert mean == pytest.approx(1 / 3, abs=4 * error)

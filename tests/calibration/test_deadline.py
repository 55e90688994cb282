"""A budget of time, and a clock that rests."""

from __future__ import annotations

import pytest

from caq.calibration.deadline import Deadline, OutOfTime, Pace


class Thread:
    """Its own work, and the time on the clock; sleeping passes the one and not the other."""

    def __init__(self) -> None:
        self.worked, self.now, self.slept = 0.0, 100.0, []

    def work(self, seconds):
        self.worked += seconds
        self.now += seconds

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds

    def pace(self, rest):
        return Pace(rest, lambda: self.now, lambda: self.worked, self.sleep)


def test_it_rests_for_what_it_has_worked():
    thread = Thread()
    clock = thread.pace(3.0)
    start = clock()
    for seconds in (0.01, 0.02):
        thread.work(seconds)
        clock()
    assert thread.slept == pytest.approx([0.0, 0.03, 0.06])
    assert clock() - start == pytest.approx(0.03) and thread.now == pytest.approx(100.12)


def test_a_rest_has_an_end():
    thread = Thread()
    clock = thread.pace(3.0)
    clock()
    thread.work(60.0)
    assert clock() == pytest.approx(160.0) and max(thread.slept) == pytest.approx(0.1)


def test_another_thread_has_worked_less():
    thread = Thread()
    clock = thread.pace(3.0)
    thread.work(5.0)
    clock()
    thread.worked = 1.0  # as the clock of another thread says
    clock()
    assert min(thread.slept) == 0.0


def test_budgets_do_not_count_rests():
    thread = Thread()
    clock = thread.pace(3.0)
    deadline = Deadline(clock() + 0.1, clock)
    for _ in range(9):
        thread.work(0.01)
        deadline.check()
    assert thread.now > 100.3
    thread.work(0.02)
    with pytest.raises(OutOfTime):
        deadline.check()


def test_a_deadline_that_never_comes_lets_the_clock_rest():
    thread = Thread()
    deadline = Deadline(None, thread.pace(3.0))
    thread.work(0.01)
    deadline.check()
    assert thread.slept == pytest.approx([0.03])

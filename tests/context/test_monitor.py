import math
import threading
import time

import pytest

from caq.context import ContextMonitor, Quality, Reading, missing, sensed
from caq.errors import ConfigError

DEADLINE_S = 0.02


class Clock:
    def __init__(self):
        self.now_s = 100.0

    def __call__(self):
        return self.now_s


class Source:
    """Answers with `answer`, which may be an exception, once `gate` is open."""

    def __init__(self, answer, field="state_of_charge", name="a battery"):
        self.name = name
        self.fields = (field,)
        self.answer = answer
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.calls = 0

    def read(self):
        self.calls += 1
        self.entered.set()
        answer = self.answer
        assert self.gate.wait(5)
        if isinstance(answer, Exception):
            raise answer
        return {self.fields[0]: answer}


def charge(value):
    return sensed("state_of_charge", value, "a test")


def monitor(*sources, clock=None, **options):
    options = {"deadline_s": DEADLINE_S, "stale_after_s": 5.0} | options
    return ContextMonitor(sources=sources, clock=clock or Clock(), **options)


def source_threads():
    return {thread for thread in threading.enumerate() if thread.name == "caq-context-source"}


def wait_until(condition):
    """Sleeps in small steps; fails after 5 s."""
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.005)
    raise AssertionError("did not happen within 5 s")


def test_before_the_first_poll_everything_is_missing():
    reading = monitor(Source(charge(0.5))).read().state_of_charge
    assert reading.value is None
    assert "yet" in reading.reason


def test_a_value_ages_and_grows_stale():
    clock = Clock()
    m = monitor(Source(charge(0.5)), clock=clock)
    m.poll()
    fresh = m.read()
    assert (fresh.state_of_charge.value, fresh.state_of_charge.age_s, fresh.state_of_charge.stale) == (0.5, 0.0, False)
    assert fresh.time_s.value == 100.0
    clock.now_s += 5
    assert not m.read().state_of_charge.stale
    clock.now_s += 1
    old = m.read()
    assert (old.state_of_charge.value, old.state_of_charge.age_s, old.state_of_charge.stale) == (0.5, 6.0, True)
    assert old.value("state_of_charge") is None


@pytest.mark.parametrize("value", [math.nan, math.inf, 1.5, -0.1, "half"])
def test_a_wrong_value_is_missing_at_once_even_after_a_good_one(value):
    source = Source(charge(0.5))
    m = monitor(source)
    m.poll()
    source.answer = Reading(value, "1", "a test")
    m.poll()
    reading = m.read().state_of_charge
    assert reading.value is None
    assert reading.quality is Quality.MISSING
    assert reading.reason


def test_a_failing_source_keeps_its_last_value_and_says_so():
    clock = Clock()
    source = Source(charge(0.5))
    m = monitor(source, clock=clock)
    m.poll()
    source.answer = OSError("EIO")
    clock.now_s += 4
    m.poll()
    reading = m.read().state_of_charge
    assert (reading.value, reading.age_s, reading.stale) == (0.5, 4.0, False)
    assert "EIO" in reading.reason
    clock.now_s += 4
    assert m.read().state_of_charge.stale
    source.answer = charge(0.4)
    m.poll()
    assert m.read().state_of_charge == charge(0.4)


def test_a_source_that_never_worked_is_missing_with_its_error():
    m = monitor(Source(PermissionError("not allowed")))
    m.poll()
    reading = m.read().state_of_charge
    assert reading.value is None
    assert "not allowed" in reading.reason


def test_a_flapping_sensor_keeps_its_value_while_that_is_fresh():
    clock = Clock()
    source = Source(charge(0.5))
    m = monitor(source, clock=clock)
    m.poll()
    source.answer = missing("state_of_charge", "a test", "unplugged")
    clock.now_s += 2
    m.poll()
    reading = m.read().state_of_charge
    assert (reading.value, reading.age_s, reading.reason) == (0.5, 2.0, "unplugged")
    clock.now_s += 4
    m.poll()
    reading = m.read().state_of_charge
    assert (reading.value, reading.reason) == (None, "unplugged")


def test_a_blocked_source_costs_one_thread_and_stops_nobody():
    clock = Clock()
    before = source_threads()
    blocked, good = Source(charge(0.5)), Source(sensed("cpu_load", 0.3, "a test"), "cpu_load", "a load")
    blocked.gate.clear()
    m = monitor(blocked, good, clock=clock)
    for _ in range(5):
        clock.now_s += 1
        m.poll()
    context = m.read()
    assert context.state_of_charge.value is None
    assert "has not answered for 4.0 s" in context.state_of_charge.reason
    assert context.cpu_load.value == 0.3
    assert (blocked.calls, good.calls) == (1, 5)
    wait_until(lambda: len(source_threads() - before) == 1)
    blocked.gate.set()
    wait_until(lambda: not source_threads() - before)
    # The answer was asked for 4 s ago; nobody knows when within these it was sampled.
    assert m.read().state_of_charge.age_s == 4.0
    clock.now_s += 1
    m.poll()
    assert m.read().state_of_charge.age_s == 0.0


def test_a_source_that_blocks_after_a_value_lets_it_age():
    clock = Clock()
    source = Source(charge(0.5))
    m = monitor(source, clock=clock)
    m.poll()
    source.gate.clear()
    clock.now_s += 1
    m.poll()
    clock.now_s += 9
    reading = m.read().state_of_charge
    assert (reading.value, reading.age_s, reading.stale) == (0.5, 10.0, True)
    assert "has not answered" in reading.reason
    source.gate.set()


def test_the_first_source_with_a_usable_value_counts():
    clock = Clock()
    best, second = Source(charge(0.5)), Source(charge(0.9))
    m = monitor(best, second, clock=clock)
    m.poll()
    assert m.read().state_of_charge.value == 0.5
    best.answer = OSError("gone")
    clock.now_s += 6
    m.poll()
    assert m.read().state_of_charge.value == 0.9


@pytest.mark.parametrize("answer", [None, {}, {"state_of_charge": 0.5}])
def test_a_source_that_breaks_its_contract_is_missing(answer):
    source = Source(None)
    source.read = lambda: answer
    m = monitor(source)
    m.poll()
    reading = m.read().state_of_charge
    assert reading.value is None
    assert reading.reason


def test_it_polls_in_the_background_and_stops():
    source = Source(charge(0.5))
    m = monitor(source, period_s=0.01)
    with m:
        assert m.running
        assert m.start() is m
        assert m.wait_ready(5)
        assert m.read().state_of_charge.value == 0.5
        wait_until(lambda: source.calls > 2)
    assert not m.running
    calls = source.calls
    m.stop()
    time.sleep(0.03)
    assert source.calls == calls
    with m:
        wait_until(lambda: source.calls > calls)


def test_it_stops_while_a_source_blocks():
    source = Source(charge(0.5))
    source.gate.clear()
    m = monitor(source).start()
    assert source.entered.wait(5)
    m.stop()
    assert not m.running
    source.gate.set()


def test_wrong_arguments():
    for options in ({"period_s": 0}, {"deadline_s": -1}, {"stale_after_s": math.nan}):
        with pytest.raises(ConfigError, match=next(iter(options))):
            ContextMonitor(sources=(), **options)
    with pytest.raises(ConfigError, match="state_of_charge"):
        monitor(Source(charge(0.5), field="state_of_charg"))


def test_this_machine_can_be_read():
    m = ContextMonitor()
    m.poll()
    assert m.read().available_bytes.value > 0

import logging
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caq.context import Context
from caq.errors import AssignmentError, ConfigError
from caq.governor import Decision, FixedPolicy, Governor
from tests.fake_engine import NAMES, FakeEngine

CONTEXT = Context.from_values()
DWELL_S = 10.0


class Script:
    """Returns or raises the next item."""

    def __init__(self, *items):
        self.items = list(items)

    def select(self, context, points, current):
        item = self.items.pop(0)
        if isinstance(item, Exception):
            raise item
        return item


def to(point, urgent=False, trim=False):
    return Decision(point, f"{point} it is", urgent, trim)


def governed(*items, **options):
    engine = FakeEngine()
    return engine, Governor(engine, Script(*items), **{"min_dwell_s": DWELL_S} | options)


def test_the_first_switch_needs_no_dwell_and_is_remembered():
    engine, governor = governed(to("full"))
    switch = governor.consider(CONTEXT, 3.0)
    assert engine.point == "full"
    assert (switch.time_s, switch.from_point, switch.to_point, switch.reason) == (3.0, "saver", "full", "full it is")
    assert switch.context is CONTEXT
    assert not switch.kept
    assert governor.history == (switch,)


def test_the_dwell_holds_until_it_is_over():
    engine, governor = governed(*[to("full"), to("saver"), to("saver")])
    governor.consider(CONTEXT, 0.0)
    assert governor.consider(CONTEXT, 9.99) is None
    assert governor.decision == to("saver")
    assert engine.point == "full"
    assert governor.consider(CONTEXT, 10.0).to_point == "saver"


def test_an_urgent_decision_does_not_wait_but_its_return_does():
    engine, governor = governed(to("full"), to("saver", urgent=True), to("full"))
    governor.consider(CONTEXT, 0.0)
    assert governor.consider(CONTEXT, 1.0).to_point == "saver"
    assert governor.consider(CONTEXT, 2.0) is None
    assert engine.point == "saver"


@pytest.mark.parametrize(
    ("item", "words"),
    [
        (RuntimeError("out of ideas"), "RuntimeError: out of ideas"),
        (to("fulll"), "did you mean 'full'"),
        (None, "Decision"),
        ("full", "Decision"),
        (Decision(["full"], "unhashable"), "TypeError"),
    ],
)
def test_a_failing_policy_keeps_the_point_and_is_recorded(caplog, item, words):
    engine, governor = governed(item, item, to("full"), item)
    with caplog.at_level(logging.ERROR, "caq.governor"):
        assert governor.consider(CONTEXT, 1.0) is None
        assert governor.consider(CONTEXT, 2.0) is None
    assert engine.selected == []
    (failure,) = governor.history
    assert failure.kept
    assert failure.from_point == failure.to_point == "saver"
    assert words in failure.reason
    assert "saver is kept" in failure.reason
    assert [record.message for record in caplog.records] == [failure.reason]
    # After it worked again, a failure is news.
    governor.consider(CONTEXT, 3.0)
    governor.consider(CONTEXT, 4.0)
    assert [entry.kept for entry in governor.history] == [True, False, True]


def test_an_engine_that_refuses_keeps_the_point(caplog):
    engine, governor = governed(to("full"))
    engine.select = lambda name: (_ for _ in ()).throw(MemoryError("no room for the plan"))
    assert governor.consider(CONTEXT, 0.0) is None
    assert engine.point == "saver"
    assert "the engine cannot switch to full: MemoryError" in governor.history[0].reason


def test_a_failure_does_not_touch_the_dwell():
    _, governor = governed(to("full"), RuntimeError("oops"), to("saver"))
    governor.consider(CONTEXT, 0.0)
    governor.consider(CONTEXT, 9.0)
    assert governor.consider(CONTEXT, 10.0).to_point == "saver"


def test_a_clock_that_steps_back_begins_the_dwell_anew():
    _, governor = governed(to("full"), to("saver"), to("saver"), to("saver"))
    governor.consider(CONTEXT, 1000.0)
    assert governor.consider(CONTEXT, 5.0) is None
    assert governor.consider(CONTEXT, 14.0) is None
    assert governor.consider(CONTEXT, 15.0).to_point == "saver"


def test_the_history_is_bounded():
    _, governor = governed(*[to(NAMES[at % 2 + 1]) for at in range(20)], min_dwell_s=0, history_length=4)
    for at in range(20):
        governor.consider(CONTEXT, float(at))
    assert [switch.time_s for switch in governor.history] == [16.0, 17.0, 18.0, 19.0]


def test_after_close_not_even_a_decision_under_way_is_applied():
    entered, proceed = threading.Event(), threading.Event()

    class Slow:
        def select(self, context, points, current):
            entered.set()
            assert proceed.wait(5)
            return to("full", urgent=True)

    engine = FakeEngine()
    governor = Governor(engine, Slow())
    thread = threading.Thread(target=governor.consider, args=(CONTEXT, 0.0))
    thread.start()
    assert entered.wait(5)
    governor.close()
    proceed.set()
    thread.join(5)
    assert engine.selected == []


def test_a_policy_that_does_not_fit_is_refused_at_once():
    with pytest.raises(AssignmentError, match="did you mean 'full'"):
        Governor(FakeEngine(), FixedPolicy("ful"))


@pytest.mark.parametrize("options", [{"min_dwell_s": -1}, {"min_dwell_s": float("nan")}, {"history_length": 0}])
def test_wrong_arguments(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        governed(**options)


steps = st.lists(
    st.tuples(
        st.floats(0, 15),
        st.one_of(
            st.builds(to, st.sampled_from((*NAMES, "nowhere")), st.booleans()),
            st.just(None),
            st.builds(RuntimeError, st.text(max_size=3)),
        ),
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(steps)
def test_invariants(steps):
    engine, governor = governed(*[item for _, item in steps])
    now_s, last_s = 0.0, None
    for wait_s, item in steps:
        now_s += wait_s
        before = engine.point
        switch = governor.consider(CONTEXT, now_s)
        assert engine.point in engine.points
        wanted = isinstance(item, Decision) and item.point in NAMES and item.point != before
        allowed = wanted and (item.urgent or last_s is None or now_s - last_s >= DWELL_S)
        # Neither a switch too early nor one left out.
        assert (switch is not None) == allowed
        assert engine.point == (item.point if allowed else before)
        if switch is not None:
            assert switch == governor.history[-1]
            last_s = now_s


@pytest.mark.parametrize("options", [{"min_dwell_s": "1"}, {"history_length": 1.5}, {"history_length": "9"}])
def test_wrong_types(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        governed(**options)


def test_what_is_no_policy():
    for bad in (Script, len, None, "full"):
        with pytest.raises(ConfigError, match="is no policy"):
            Governor(FakeEngine(), bad)
    with pytest.raises(AssignmentError, match="no operating point None; known: saver"):
        Governor(FakeEngine(), FixedPolicy(None))


def test_memory_is_given_back_when_it_becomes_short_and_after_switches_while_it_is():
    short = {"urgent": True, "trim": True}
    script = [to("saver"), to("saver", **short), to("saver", **short), to("full", **short), to("full", **short)]
    script += [to("full"), to("full", **short), to("saver", trim=True), to("saver", trim=True)]
    engine, governor = governed(*script)
    trimmed = []
    for at in range(len(script)):
        governor.consider(CONTEXT, 10.0 * at)
        trimmed.append(engine.trimmed)
        engine.trimmed = []
    # The point that it was trimmed at is the one that was switched to.
    assert trimmed == [[], ["saver"], [], ["full"], [], [], ["full"], ["saver"], []]


def test_the_dwell_does_not_hold_back_what_is_given_back():
    engine, governor = governed(to("full"), to("saver", trim=True), to("saver", trim=True))
    for now_s in (0.0, 1.0, 10.0):
        governor.consider(CONTEXT, now_s)
    assert engine.trimmed == ["full", "saver"] and engine.selected == ["full", "saver"]


def test_a_closed_governor_gives_nothing_back():
    engine, governor = governed(to("saver", trim=True))
    governor.close()
    governor.consider(CONTEXT, 0.0)
    assert engine.trimmed == []


def test_engines_that_cannot_give_memory_back(caplog):
    class Fixed:
        points, point, selected = FakeEngine().points, "saver", "none"

        def select(self, point):
            self.selected = point

    class Broken(FakeEngine):
        def trim(self):
            raise OSError("no advice")

    for engine in (Fixed(), Broken()):
        governor = Governor(engine, Script(to("full", trim=True)))
        with caplog.at_level(logging.ERROR):
            assert governor.consider(CONTEXT, 0.0).to_point == "full"
        assert [switch.kept for switch in governor.history] == [False]
    assert [record.message for record in caplog.records] == ["the engine cannot give memory back"]

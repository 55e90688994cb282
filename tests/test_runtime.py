import io
import logging
import threading
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from caq.context import Context, ContextMonitor, RecordedContext, sensed
from caq.errors import AssignmentError, CaqError, ConfigError, RuntimeClosedError
from caq.runtime import Decision, Runtime
from policies import ThresholdPolicy
from policies.threshold import PHONE
from tests import models
from tests.fake_engine import NAMES, FakeEngine

SAMPLE = np.zeros(4, dtype=np.float32)
BATCH = np.zeros((3, 4), dtype=np.float32)


class ByCharge:
    """full at half charge and above, else saver."""

    def select(self, context, points, current):
        charge = context.value("state_of_charge")
        if charge is None:
            return Decision(current, "unknown charge")
        return Decision("full" if charge >= 0.5 else "saver", f"charge {charge:g}")


class Fixed:
    """A context that never changes."""

    def __init__(self, **values):
        self.values = {"time_s": 1.0} | values

    def read(self):
        return Context.from_values(**self.values)


def replay():
    return RecordedContext({"t_s": [0, 60, 120], "state_of_charge": [0.9, 0.4, 0.8]})


def wait_until(condition):
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.005)
    raise AssertionError("did not happen within 5 s")


def manual(policy=None, context=None, engine=None, **options):
    return Runtime(engine or FakeEngine(), policy, context or Fixed(), auto=False, **options)


def test_without_a_policy_the_first_point_stays():
    with manual() as runtime:
        assert runtime.step() is None
        assert runtime.point == "saver"
        assert runtime.history == ()


def test_a_name_fixes_the_point():
    with manual("balanced") as runtime:
        assert runtime.point == "balanced"
        assert runtime.step() is None
    with pytest.raises(AssignmentError, match="balanced"):
        manual("balancd")


def test_logits_and_labels():
    with manual("full") as runtime:
        assert runtime(SAMPLE).tolist() == [-5, -5, 7]
        assert runtime(BATCH).shape == (3, 3)
        assert runtime.run_at(SAMPLE)[1] == "full"
        assert runtime.predict(SAMPLE) == "c"
        assert runtime.predict(BATCH) == ["c", "c", "c"]
    with manual("full", engine=FakeEngine(label_names=())) as runtime:
        index = runtime.predict(SAMPLE)
        assert (index, type(index)) == (2, int)
        assert runtime.predict(BATCH).tolist() == [2, 2, 2]


def test_a_replay_starts_no_thread_and_is_driven_by_step():
    before = threading.active_count()
    switches = []
    with Runtime(FakeEngine(), ByCharge(), replay(), min_dwell_s=30, on_switch=switches.append) as runtime:
        assert threading.active_count() == before
        assert runtime.step(0).to_point == "full"
        assert runtime.step(59) is None
        assert runtime.step(60).to_point == "saver"
        assert runtime.context.time_s.value == 60
        assert runtime.decision.reason == "charge 0.4"
        assert runtime.step(120).to_point == "full"
    assert runtime.history == tuple(switches)
    assert [switch.time_s for switch in switches] == [0, 60, 120]
    assert switches[1].context.state_of_charge.value == 0.4
    assert switches[1].reason == "charge 0.4"


def test_the_replays_own_time_counts_for_the_dwell():
    trace = replay()
    with Runtime(FakeEngine(), ByCharge(), trace, min_dwell_s=100) as runtime:
        runtime.step()
        trace.seek(60)
        assert runtime.step() is None
        assert runtime.point == "full"


def test_a_thread_follows_the_context():
    context = Fixed(state_of_charge=0.9)
    with Runtime(FakeEngine(), ByCharge(), context, min_dwell_s=0, period_s=0.005) as runtime:
        wait_until(lambda: runtime.point == "full")
        context.values["state_of_charge"] = 0.1
        wait_until(lambda: runtime.point == "saver")
    context.values["state_of_charge"] = 0.9
    time.sleep(0.03)
    assert runtime.point == "saver"


class Battery:
    name = "a battery"
    fields = ("state_of_charge",)

    def read(self):
        return {"state_of_charge": sensed("state_of_charge", 0.9, "a test")}


def test_it_starts_and_stops_a_monitor_that_is_not_running():
    monitor = ContextMonitor(sources=[Battery()])
    with Runtime(FakeEngine(), ByCharge(), monitor) as runtime:
        assert monitor.running
        wait_until(lambda: runtime.point == "full")
    assert not monitor.running


def test_it_leaves_a_running_monitor_alone():
    with ContextMonitor(sources=[Battery()]) as monitor:
        with Runtime(FakeEngine(), ByCharge(), monitor):
            pass
        assert monitor.running


def test_by_hand_it_polls_a_monitor_that_is_not_running():
    with manual(ByCharge(), ContextMonitor(sources=[Battery()])) as runtime:
        assert runtime.step().to_point == "full"


def test_the_default_context_is_this_device():
    with Runtime(FakeEngine()) as runtime:
        wait_until(lambda: runtime.context.available_bytes.value is not None)


def test_a_callback_that_fails_is_logged(caplog):
    def fail(switch):
        raise RuntimeError("oops")

    with caplog.at_level(logging.ERROR), manual(ByCharge(), Fixed(state_of_charge=0.9), on_switch=fail) as runtime:
        assert runtime.step().to_point == "full"
    assert "on_switch" in caplog.text


def test_a_callback_runs_outside_all_locks():
    seen = []

    def call_back(switch):
        # Deadlocks if step still holds the governor's lock.
        seen.append((runtime.point, runtime.step(), len(runtime.history), runtime.predict(SAMPLE)))
        runtime.close()

    runtime = manual(ByCharge(), Fixed(state_of_charge=0.9), on_switch=call_back)
    runtime.step()
    assert seen == [("full", None, 1, "c")]


def test_the_thread_may_close_its_own_runtime():
    bound, closed = threading.Event(), threading.Event()

    def close(switch):
        assert bound.wait(5)
        runtime.close()
        closed.set()

    runtime = Runtime(FakeEngine(), ByCharge(), replay(), on_switch=close, auto=True)
    bound.set()
    assert closed.wait(5)
    with pytest.raises(RuntimeClosedError):
        runtime(SAMPLE)


def test_after_close_calls_raise_and_what_happened_stays_known():
    runtime = manual(ByCharge(), Fixed(state_of_charge=0.9))
    runtime.step()
    runtime.close()
    runtime.close()
    for call in (
        lambda: runtime(SAMPLE),
        lambda: runtime.predict(SAMPLE),
        lambda: runtime.run_at(SAMPLE),
        runtime.step,
        lambda: runtime.context,
    ):
        with pytest.raises(RuntimeClosedError):
            call()
    assert issubclass(RuntimeClosedError, CaqError)
    assert runtime.point == "full"
    assert len(runtime.history) == 1


def test_a_policy_that_blocks_stops_neither_inference_nor_close():
    entered, release = threading.Event(), threading.Event()

    class Blocked:
        def select(self, context, points, current):
            entered.set()
            release.wait(5)
            return Decision("full", "at last", urgent=True)

    engine = FakeEngine()
    runtime = Runtime(engine, Blocked(), Fixed(), period_s=0.01)
    assert entered.wait(5)
    assert runtime.predict(SAMPLE) == "a"
    assert runtime.history == ()
    runtime.close()
    # Had close waited for the policy, its thread would be gone.
    assert any(thread.name == "caq-runtime" for thread in threading.enumerate())
    release.set()
    wait_until(lambda: not any(thread.name == "caq-runtime" for thread in threading.enumerate()))
    assert engine.point == "saver"


def test_a_context_that_cannot_be_read_does_not_end_the_thread(caplog):
    class Flaky(Fixed):
        failures = 2

        def read(self):
            if self.failures:
                self.failures -= 1
                raise OSError("EIO")
            return super().read()

    with (
        caplog.at_level(logging.ERROR),
        Runtime(FakeEngine(), ByCharge(), Flaky(state_of_charge=0.9), period_s=0.005) as runtime,
    ):
        wait_until(lambda: runtime.point == "full")
    assert "saver is kept" in caplog.text


def test_a_context_without_a_time_needs_one():
    with manual(ByCharge(), Fixed(time_s=None)) as runtime:
        with pytest.raises(ConfigError, match="now_s"):
            runtime.step()
        runtime.step(5.0)


@pytest.mark.parametrize("options", [{"period_s": 0}, {"period_s": float("inf")}, {"min_dwell_s": -1}])
def test_wrong_arguments(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        manual(**options)


def test_many_threads_infer_while_the_point_changes():
    class Turning:
        def __init__(self):
            self.turn = 0

        def select(self, context, points, current):
            self.turn += 1
            return Decision(NAMES[self.turn % 3], "the next one")

    wrong = []
    started = threading.Barrier(5)
    done = threading.Event()

    def infer():
        started.wait(5)
        while not done.is_set():
            logits, point = runtime.run_at(BATCH)
            if not (logits.argmax(axis=1) == NAMES.index(point)).all():
                wrong.append(point)

    def follow():
        started.wait(5)
        for _ in range(100):
            runtime.step()

    with manual(Turning(), min_dwell_s=0) as runtime:
        inferring = [threading.Thread(target=infer) for _ in range(3)]
        following = [threading.Thread(target=follow) for _ in range(2)]
        for thread in inferring + following:
            thread.start()
        for thread in following:
            thread.join(20)
        done.set()
        for thread in inferring:
            thread.join(5)
        assert wrong == []
        # Each switch begins where the one before it ended: no two of them crossed.
        history = runtime.history
        assert len(history) == 200
        assert all(a.to_point == b.from_point for a, b in pairwise(history))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"policy": Path("rules.yaml")}, r"rules\.yaml.* is no policy: .*ThresholdPolicy\.from_yaml\(path\)"),
        ({"policy": "rules.yaml"}, r"'rules\.yaml' is no policy: .*from_yaml"),
        ({"policy": lambda *_: None}, "is no policy: give it a method select"),
        ({"policy": ByCharge}, r"is no policy: pass an instance, ByCharge\(\.\.\.\)"),
        ({"policy": {"rules": []}}, "is no policy"),
        ({"policy": 3}, "3 is no policy"),
        ({"context": "trace.csv"}, r"'trace\.csv' is no source of contexts: .*RecordedContext\.from_csv\(path\)"),
        ({"context": Path("trace.csv")}, "from_csv"),
        ({"context": "trace"}, "is no source of contexts: pass a"),
        ({"context": {"state_of_charge": 0.5}}, "is no source of contexts: pass a"),
        ({"context": Context.from_values()}, "is no source of contexts: pass a"),
        ({"context": io.StringIO("t_s")}, "is no source of contexts: pass a"),
        ({"context": ContextMonitor}, r"pass an instance, ContextMonitor\(\.\.\.\)"),
        ({"on_switch": 3}, "on_switch must be a function that takes a Switch, not 3"),
        ({"period_s": "1"}, "period_s must be a finite number above 0, not '1'"),
        ({"period_s": None}, "period_s"),
        ({"min_dwell_s": "1"}, "min_dwell_s must be a finite number of at least 0, not '1'"),
    ],
)
def test_objects_of_another_kind(options, words, caplog):
    before = threading.active_count()
    with pytest.raises(ConfigError, match=words):
        Runtime(FakeEngine(), **options)
    assert threading.active_count() == before and not caplog.records


@pytest.mark.parametrize("bad", [None, b"x", 3, FakeEngine, {"points": {}}])
def test_what_is_no_engine(bad):
    with pytest.raises(ConfigError, match=r"\.caq file, a model or an engine"):
        Runtime(bad)


def test_numbers_of_numpy_and_a_model_are_taken():
    with Runtime(models.tiny(), context=replay(), period_s=np.float32(1), min_dwell_s=np.int64(2)) as runtime:
        assert runtime.point == "w2a2"


class Reads(ByCharge):
    def __init__(self, fields):
        self.fields = fields


@pytest.mark.parametrize("fields", [("charging",), ("cpu_load", "charging")])
def test_a_recording_without_what_the_policy_reads_is_warned_of_once(fields, caplog):
    with Runtime(FakeEngine(), Reads(fields), replay()) as runtime:
        for t_s in (0, 60, 120):
            runtime.step(t_s)
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert f"it has state_of_charge, the policy reads {', '.join(fields)}" in record.getMessage()


@pytest.mark.parametrize("fields", [("state_of_charge", "charging"), ("time_s",), (), None, len])
def test_other_policies_are_not_warned_of(fields, caplog):
    Runtime(FakeEngine(), Reads(fields), replay()).close()
    Runtime(FakeEngine(), Reads(("charging",)), Fixed(), auto=False).close()
    assert not caplog.records


def test_a_recorded_shortage_of_memory_is_answered_once(tmp_path):
    """Available memory falls, stays low, recovers, and falls again: all from a file, by the packaged rules."""
    path = tmp_path / "day.csv"
    left = [0.5, 0.3, 0.09, 0.05, 0.12, 0.3, 0.5, 0.08, 0.4]
    path.write_text("t_s,charging,memory_available\n" + "".join(f"{60 * i},1,{v}\n" for i, v in enumerate(left)))
    engine = FakeEngine()
    policy = ThresholdPolicy.from_yaml(PHONE)
    found = []
    with Runtime(engine, policy, RecordedContext.from_csv(path)) as runtime:
        for i in range(len(left)):
            runtime.step(60 * i)
            found.append((runtime.point, runtime.decision.trim, len(engine.trimmed)))
    full, saver = ("full", False), ("saver", True)
    assert [row[:2] for row in found] == [full, full, saver, saver, saver, full, full, saver, full]
    assert [row[2] for row in found] == [0, 0, 1, 1, 1, 1, 1, 2, 2]
    assert engine.trimmed == ["saver", "saver"]

"""Calibration in a thread of its own, beside inference that never waits for it.

    calibrator = Calibrator("x.caq", core, "calibration", CalibratorConfig(max_ms=50))
    with Runtime("x.caq", policy, calibration=BackgroundCalibrator(calibrator)) as runtime:
        runtime.predict(x)
        sample_id = runtime.learn_one(x)        # copied into a queue
        runtime.label(sample_id, y)             # when it is known
        runtime.calibration.history

Samples and labels go into one bounded queue. Where it is full, because they come faster than steps are done, what comes
is refused and counted: the thread works off what is there, in order. What is promoted is a plan made aside, and
one reference swapped (`Engine.adopt`); an inference that is under way finishes with the plan that it began with.

What is raised in the thread ends one step, not the thread: it is logged, counted, and stands in the history, and the
samples of that step are lost. Inference goes on with the calibration in force.

The thread is NICENESS nicer than the others, where threads have priorities (Linux): an inference that wants a core has
it. It runs Python beside Python. Native kernels and large numpy operations leave the interpreter to others, but between
them an inference that comes back from its own kernels waits for the interpreter: up to the switch interval, 5 ms as
Python starts, and SWITCH_INTERVAL_S for the whole process while a step is under way. So that few inferences meet it,
the thread rests between its pieces of work (`Pace`), REST times as long as it works. What remains: where other
processes want every core, the thread may lose its own while it has the interpreter, and one inference in thousands
waits some tens of milliseconds (benchmarks/results/calibrate_beside.json).
"""

from __future__ import annotations

import logging
import math
import os
import queue
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from caq.calibration.calibrator import HISTORY, Calibrator, StepResult
from caq.calibration.deadline import OutOfTime, Pace
from caq.errors import ConfigError, RuntimeClosedError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from caq.conditional import ConditionalGate
    from caq.plan import Parameters

log = logging.getLogger(__name__)

#: Samples and labels that wait for the thread.
QUEUE = 256
#: How long `close` waits for a step that is under way.
LONGEST_CLOSE_S = 10.0
#: Of the thread, above that of the process: 10 gets a tenth of what others get of a core that all want.
NICENESS = 10
#: Seconds that the thread rests for each one that it works: the interpreter is then seldom in the way of an inference.
REST = 2.5
#: How long a thread of this process may keep the interpreter from another, while a step is under way.
SWITCH_INTERVAL_S = 1e-4


class Adopting(Protocol):
    """What is calibrated; `caq.engine.Engine` is one."""

    def adopt(self, parameters: Parameters, gates: Mapping[str, ConditionalGate]) -> None: ...


class Counts(NamedTuple):
    """Of samples and labels since the start: queued, waiting now; taken; refused, where the queue was full; lost, in
    the queue at `close`; too_late, labels whose sample was gone. Of steps: steps, promoted, failed."""

    queued: int
    taken: int
    refused: int
    lost: int
    too_late: int
    steps: int
    promoted: int
    failed: int


class BackgroundCalibrator:
    """Runs a calibrator in a thread, and gives what it promotes to an engine.

    calibrator: owned from here on, and closed by `close`. queue_size: samples and labels that wait at most, each a
    sample of input codes at most. rest: seconds that the thread sleeps for each that it works, between pieces of work;
    budgets do not count them. record: called in the thread with each record of the audit; what it raises is logged.

    Any number of threads may call it. Raises ConfigError on a size below 1, and on a rest below 0.
    """

    def __init__(
        self,
        calibrator: Calibrator,
        *,
        queue_size: int = QUEUE,
        rest: float = REST,
        record: Callable[[dict[str, Any]], None] = lambda entry: None,
    ) -> None:
        if queue_size < 1:
            raise ConfigError(f"queue_size {queue_size}: room for 1 sample or more is needed")
        if not 0 <= rest < math.inf:
            raise ConfigError(f"rest {rest}: seconds for each second of work, 0 or more")
        self._calibrator, self._record = calibrator, record
        calibrator.clock = Pace(rest, calibrator.clock)
        self._queue: queue.Queue[Callable[[], StepResult | None] | None] = queue.Queue(queue_size)
        self._history: deque[dict[str, Any]] = deque(maxlen=HISTORY)
        self._next_id = calibrator.next_id
        self._lock = threading.Lock()  # of the ids: they count what the queue took, in its order
        self._taken = self._refused = self._lost = self._steps = self._promoted = self._failed = 0
        self._engine: Adopting | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, name="caq-calibration", daemon=True)

    def start(self, engine: Adopting) -> None:
        """Gives the engine what was learnt so far, and starts the thread. Raises what `Engine.adopt` does.

        Raises ConfigError if it was started before.
        """
        if self._engine is not None or self._closed.is_set():
            raise ConfigError("calibration: this one was started before; make another for another runtime")
        engine.adopt(self._calibrator.model.parameters, self._calibrator.gates)
        self._engine = engine
        self._thread.start()

    def learn_one(self, x: NDArray[np.generic], y: int | None = None) -> int | None:
        """Offers a sample, in the data's own layout and dtype, which is copied; y: its label, if it is known.

        Its id, for `label`; None if the queue is full. Raises DataError, RuntimeClosedError after `close`.
        """
        codes = self._calibrator.encode_one(x)
        label = None if y is None else int(self._calibrator.check_labels([y], 1)[0])
        with self._lock:
            if not self._put(lambda: self._calibrator.learn_codes(codes, label)):
                return None
            self._next_id += 1
            return self._next_id - 1

    def label(self, sample_id: int, y: int) -> bool:
        """Offers the label of a sample that came without; False if the queue is full. Raises DataError."""
        self._calibrator.check_label(sample_id, y, self._next_id)
        with self._lock:
            return self._put(lambda: self._calibrator.label(sample_id, y))

    def _put(self, work: Callable[[], StepResult | None]) -> bool:
        if self._closed.is_set():
            raise RuntimeClosedError("calibration is closed; open a new runtime")
        try:
            self._queue.put_nowait(work)
        except queue.Full:
            self._refused += 1
            return False
        return True

    @property
    def history(self) -> tuple[dict[str, Any], ...]:
        """The last records of the audit, oldest first: what rungs proposed, and what failed; at most HISTORY.

        Each has `what`, `promoted`, `reasons` and `step`; see `caq.calibration.guard.Verdict.record` for the others.
        """
        return tuple(self._history)

    @property
    def counts(self) -> Counts:
        """What became of what was offered."""
        late, queued = self._calibrator.too_late, self._queue.qsize()
        now = self._taken, self._refused, self._lost, late, self._steps, self._promoted, self._failed
        return Counts(queued, *now)

    @property
    def running(self) -> bool:
        """Whether the thread is there."""
        return self._thread.is_alive()

    def wait_idle(self, timeout_s: float) -> bool:
        """Waits until all that was offered is worked off; whether it was in time."""
        ends = time.monotonic() + timeout_s
        while self._queue.unfinished_tasks and self.running and time.monotonic() < ends:
            time.sleep(0.002)
        return not self._queue.unfinished_tasks

    def close(self, timeout_s: float = LONGEST_CLOSE_S) -> bool:
        """Ends the thread after the step that is under way, keeps its state durably, and gives the folder back.

        What is still in the queue is lost, and counted. False if the step was not done in time: then the thread does
        all that when it is, if the process lives so long.
        """
        with self._lock:
            self._closed.set()
        if self._engine is None:
            self._calibrator.close()
            return True
        with suppress(queue.Full):  # then the thread does not wait
            self._queue.put_nowait(None)
        self._thread.join(timeout_s)
        if self.running:
            log.warning("calibration is still at a step after %g s; its thread ends when the step does", timeout_s)
        return not self.running

    def _work(self) -> None:
        if sys.platform == "linux":  # elsewhere a priority is the whole process's
            thread = threading.get_native_id()
            os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + NICENESS)
        self._measure()
        while (work := self._queue.get()) is not None and not self._closed.is_set():
            self._do(work)
            self._queue.task_done()
        while not self._queue.empty() or work is not None:
            self._lost += work is not None
            work = None if self._queue.empty() else self._queue.get_nowait()
        try:
            self._calibrator.close()
        except Exception as error:
            self._fail(error, "closing")

    def _measure(self) -> None:
        def check() -> None:
            if self._closed.is_set():
                raise OutOfTime

        try:
            with _switching_often():
                self._calibrator.measure_source(check)
        except OutOfTime:
            pass
        except Exception as error:
            self._fail(error, "measuring the source")

    def _do(self, work: Callable[[], StepResult | None]) -> None:
        with _switching_often():
            try:
                result = work()
                self._taken += 1
                if result is None:
                    return
                self._steps += 1
                for entry in result.records:
                    self._note(entry)
                if result.promoted:
                    assert self._engine is not None  # the thread was started
                    self._engine.adopt(self._calibrator.model.parameters, self._calibrator.gates)
                    self._promoted += 1
            except Exception as error:
                self._fail(error, "a step")

    def _fail(self, error: Exception, during: str) -> None:
        self._failed += 1
        log.error("calibration failed in %s; inference goes on as it was", during, exc_info=error)
        reason = f"{during}: {type(error).__name__}: {error}"
        self._note({"what": "failure", "promoted": False, "reasons": [reason], "step": self._calibrator.steps})

    def _note(self, entry: dict[str, Any]) -> None:
        self._history.append(entry)
        try:
            self._record(entry)
        except Exception:
            log.exception("the record of the audit failed; calibration goes on")


@contextmanager
def _switching_often() -> Iterator[None]:
    """The interpreter goes from one thread to another after SWITCH_INTERVAL_S at most."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(min(interval, SWITCH_INTERVAL_S))
    try:
        yield
    finally:
        sys.setswitchinterval(interval)

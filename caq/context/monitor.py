"""A live context: polls sources in the background and answers at once.

One thread polls the sources in turn and hands each to a worker thread. A source that has not answered by its deadline
keeps that worker; the poller carries on with a new one and leaves the source alone until it answers. So a blocked
source costs one thread, however long it blocks, and neither readers nor other sources ever wait for it.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import TracebackType

from caq.context.reading import Context, Quality, Reading, checked, field_spec, missing
from caq.context.sources import Source, default_sources
from caq.errors import ConfigError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Answer:
    """One field: its last reading, and when it was asked for.

    The age counts from the question: nobody knows when within a slow call the value was sampled.
    """

    reading: Reading
    asked_s: float

    def age_s(self, now_s: float) -> float:
        return self.reading.age_s + max(0.0, now_s - self.asked_s)


class _Slot:
    """One source and its last answers, which are replaced as a whole, so that readers need no lock."""

    def __init__(self, source: Source, stale_after_s: float) -> None:
        self.source = source
        self.waiting_since_s: float | None = None
        self._stale_after_s = stale_after_s
        self._answers: Mapping[str, _Answer] = {}
        self._failure = ""

    def ask(self, clock: Callable[[], float]) -> None:
        """Runs in a worker."""
        asked_s = clock()
        try:
            given = self.source.read()
            self._answers = {
                name: self._settled(name, given[name], asked_s) for name in self.source.fields if name in given
            }
            self._failure = ""
        except Exception as error:
            failure = f"{self.source.name} cannot be read: {type(error).__name__}: {error}"
            if not self._failure:
                log.warning("%s", failure)
            self._failure = failure
        finally:
            self.waiting_since_s = None

    def _settled(self, name: str, given: Reading, asked_s: float) -> _Answer:
        """A sensor that comes and goes keeps its last value while that is fresh; a value that is wrong is dropped."""
        answer = _Answer(checked(name, given), asked_s)
        before = self._answers.get(name)
        if given.value is not None or before is None or before.reading.value is None:
            return answer
        if before.age_s(asked_s) > self._stale_after_s:
            return answer
        return replace(before, reading=replace(before.reading, reason=answer.reading.reason))

    def reading(self, name: str, now_s: float, deadline_s: float) -> Reading:
        """The field now; called by readers while `ask` may be under way."""
        since_s, failure, answer = self.waiting_since_s, self._failure, self._answers.get(name)
        if since_s is not None and now_s - since_s > deadline_s:
            failure = f"{self.source.name} has not answered for {now_s - since_s:.1f} s"
        if answer is None:
            return missing(name, self.source.name, failure or f"{self.source.name} has given no value yet")
        reading = answer.reading
        if reading.value is None:
            return reading
        age_s = answer.age_s(now_s)
        stale = reading.stale or age_s > self._stale_after_s
        return replace(reading, age_s=age_s, stale=stale, reason=failure or reading.reason)


class _Worker:
    """A daemon thread that does one job after the other."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="caq-context-source", daemon=True).start()

    def do(self, job: Callable[[], None], deadline_s: float) -> bool:
        """Whether the job was done by the deadline."""
        done = threading.Event()

        def then_tell() -> None:
            try:
                job()
            finally:
                done.set()

        self._jobs.put(then_tell)
        return done.wait(deadline_s)

    def retire(self) -> None:
        """Ends the thread once its job is done, whenever that is."""
        self._jobs.put(None)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()


class ContextMonitor:
    """The live context of this device.

    period_s: seconds between two polls. deadline_s: how long one source may hold up the poll of the next one.
    stale_after_s: age beyond which a value is flagged stale; by default five periods. sources: by default those of
    Linux; where two give the same field, the first one that has a usable value counts. clock: monotonic seconds.
    Raises ConfigError on a period, deadline or age that is not positive, and on a source of an unknown field.

    Use it as a context manager, or call `start` and `stop`. `read` never blocks, also while sources do.
    """

    def __init__(
        self,
        period_s: float = 1.0,
        deadline_s: float = 0.25,
        stale_after_s: float | None = None,
        sources: Sequence[Source] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        stale_after_s = 5 * period_s if stale_after_s is None else stale_after_s
        for name, value in (("period_s", period_s), ("deadline_s", deadline_s), ("stale_after_s", stale_after_s)):
            if not value > 0:
                raise ConfigError(f"{name} must be above 0, not {value}")
        self._period_s = period_s
        self._deadline_s = deadline_s
        self._clock = clock
        sources = default_sources() if sources is None else sources
        self._slots = [_Slot(source, stale_after_s) for source in sources]
        self._givers: dict[str, list[_Slot]] = {}
        for slot in self._slots:
            for name in slot.source.fields:
                field_spec(name)
                self._givers.setdefault(name, []).append(slot)
        self._poll_lock = threading.Lock()
        self._run_lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._polled = threading.Event()

    @property
    def running(self) -> bool:
        """Whether the background thread polls."""
        return self._thread is not None

    def start(self) -> ContextMonitor:
        """Starts to poll in the background; does nothing if that runs already."""
        with self._run_lock:
            if self._thread is None:
                self._stop = threading.Event()
                arguments = (self._stop,)
                self._thread = threading.Thread(target=self._run, args=arguments, name="caq-context", daemon=True)
                self._thread.start()
        return self

    def stop(self) -> None:
        """Stops polling. Waits for no blocked source beyond its deadline; the last values stay and age."""
        with self._run_lock:
            thread, self._thread = self._thread, None
            self._stop.set()
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def __enter__(self) -> ContextMonitor:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def wait_ready(self, timeout_s: float) -> bool:
        """Waits until every source was asked once; whether that happened within `timeout_s`."""
        return self._polled.wait(timeout_s)

    def read(self) -> Context:
        """The context now, at once: the last value of every field, with its age up to this moment."""
        now_s = self._clock()
        readings = {name: self._pick(name, slots, now_s) for name, slots in self._givers.items()}
        readings["time_s"] = Reading(now_s, field_spec("time_s").unit, "monotonic clock", quality=Quality.MEASURED)
        return Context.from_readings(readings)

    def _pick(self, name: str, slots: list[_Slot], now_s: float) -> Reading:
        readings = [slot.reading(name, now_s, self._deadline_s) for slot in slots]
        return max(readings, key=lambda reading: (reading.usable, reading.value is not None))

    def poll(self) -> None:
        """Asks every source once, in the calling thread's time; each one holds it up by `deadline_s` at most."""
        with self._poll_lock:
            self._poll_all(threading.Event())

    def _run(self, stop: threading.Event) -> None:
        while not stop.is_set():
            began_s = self._clock()
            with self._poll_lock:
                self._poll_all(stop)
            stop.wait(max(0.0, self._period_s - (self._clock() - began_s)))

    def _poll_all(self, stop: threading.Event) -> None:
        worker = _Worker()
        for slot in self._slots:
            if stop.is_set():
                break
            if slot.waiting_since_s is not None:
                continue
            slot.waiting_since_s = self._clock()
            if not worker.do(partial(slot.ask, self._clock), self._deadline_s):
                worker.retire()
                worker = _Worker()
        worker.retire()
        self._polled.set()

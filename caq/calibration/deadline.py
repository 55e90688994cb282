"""A hard budget of time for a step: whatever works under it asks before each piece of work."""

from __future__ import annotations

import time
from collections.abc import Callable

#: A rest takes that long at most.
_LONGEST_S = 0.1


class OutOfTime(Exception):
    """A budget of time is spent; for what works under a Deadline, and caught there."""


class Deadline:
    """ends: when, in seconds of `clock`; None for never."""

    def __init__(self, ends: float | None, clock: Callable[[], float]) -> None:
        self._ends, self._clock = ends, clock

    def check(self) -> None:
        """Raises OutOfTime once time is over."""
        now = self._clock()  # in any case: a Pace rests when it is asked
        if self._ends is not None and now >= self._ends:
            raise OutOfTime

    def share(self, part: float) -> Deadline:
        """The deadline of work that may take this part, 0..1, of the time that is left."""
        if self._ends is None:
            return self
        now = self._clock()
        return Deadline(now + part * max(self._ends - now, 0.0), self._clock)

    def now(self) -> float:
        """Seconds, of the clock."""
        return self._clock()


class Pace:
    """A clock for work that rests, so that it has the interpreter a part of the time only.

    Asked for the time, which a Deadline does before each piece of work, it sleeps `rest` times as long as its thread
    has worked since. It stands still meanwhile: budgets are of work. worked: a clock of the thread's own CPU time.
    """

    def __init__(
        self,
        rest: float,
        clock: Callable[[], float] = time.perf_counter,
        worked: Callable[[], float] = time.thread_time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._rest, self._clock, self._worked, self._sleep = rest, clock, worked, sleep
        self._rested, self._before = 0.0, 0.0

    def __call__(self) -> float:
        """Seconds, without the rests."""
        now, worked = self._clock(), self._worked()
        self._sleep(min(self._rest * max(worked - self._before, 0.0), _LONGEST_S))
        self._before = self._worked()
        self._rested += (after := self._clock()) - now
        return after - self._rested

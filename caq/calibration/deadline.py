"""A hard budget of time for a step: whatever works under it asks before each piece of work."""

from __future__ import annotations

from collections.abc import Callable


class OutOfTime(Exception):
    """A budget of time is spent; for what works under a Deadline, and caught there."""


class Deadline:
    """ends: when, in seconds of `clock`; None for never."""

    def __init__(self, ends: float | None, clock: Callable[[], float]) -> None:
        self._ends, self._clock = ends, clock

    def check(self) -> None:
        """Raises OutOfTime once time is over."""
        if self._ends is not None and self._clock() >= self._ends:
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

"""The governor stands between a policy and the engine.

A policy says what would be best now; the governor keeps the engine from following every whim. It holds each operating
point for a minimum dwell, lets only an urgent decision cut that short, and keeps the present point whenever the policy
fails. It never touches an inference: those pin their plan and run on.
"""

from __future__ import annotations

import logging
import reprlib
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from caq.context import Context
from caq.errors import AssignmentError, ConfigError, nearest
from caq.model import OperatingPoint

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Decision:
    """The operating point that a policy wants, why in words, and whether that cannot wait for the dwell to end.

    trim: whether memory is short. When it becomes so, and after each switch while it is, an engine that can gives back
    what it can make again.
    """

    point: str
    reason: str
    urgent: bool = False
    trim: bool = False


class Policy(Protocol):
    """Chooses an operating point for a context.

    `points` are those of the engine in the artifact's order, `current` is the name of the active one. The policy names
    one of them. It may keep state between calls; one policy object serves one runtime, from one thread at a time.
    It may have `fields`, a tuple of the context fields that it reads: a recording with none of them is warned of.
    """

    def select(self, context: Context, points: Sequence[OperatingPoint], current: str) -> Decision: ...


@runtime_checkable
class CheckedPolicy(Protocol):
    """A policy that can tell beforehand whether it fits the points; `check` raises a CaqError if it does not."""

    def check(self, points: Sequence[OperatingPoint]) -> None: ...


class FixedPolicy:
    """Always the same operating point."""

    def __init__(self, point: str) -> None:
        self.point = point

    def check(self, points: Sequence[OperatingPoint]) -> None:
        """Raises AssignmentError if the point is not among `points`."""
        names = [point.name for point in points]
        if self.point not in names:
            raise AssignmentError(f"no operating point {self.point!r}{nearest(str(self.point), names)}")

    def select(self, context: Context, points: Sequence[OperatingPoint], current: str) -> Decision:
        return Decision(self.point, "the operating point is fixed")


class SwitchableEngine(Protocol):
    """What the governor needs of an engine."""

    @property
    def points(self) -> Mapping[str, OperatingPoint]: ...

    @property
    def point(self) -> str: ...

    def select(self, point: str, /) -> None: ...


@runtime_checkable
class TrimmableEngine(Protocol):
    """An engine that can give memory back to the system."""

    def trim(self) -> None: ...


@dataclass(frozen=True)
class Switch:
    """A change of the operating point, or a policy's failure: then `to_point` is `from_point`, and it was kept."""

    time_s: float
    from_point: str
    to_point: str
    reason: str
    context: Context

    @property
    def kept(self) -> bool:
        """Whether the point was kept because the policy failed."""
        return self.from_point == self.to_point


def is_number(value: object) -> bool:
    """Whether `value` is a real number, of Python's or numpy's types."""
    return isinstance(value, Real)


def check_policy(policy: Any) -> None:
    """Raises ConfigError, with the way to make it right, if `policy` is none."""
    if isinstance(policy, (str, Path)):
        hint = "pass policies.ThresholdPolicy.from_yaml(path)"
    elif isinstance(policy, type):
        hint = f"pass an instance, {policy.__name__}(...)"
    elif not callable(getattr(policy, "select", None)):
        hint = "give it a method select(context, points, current) that returns a caq.runtime.Decision"
    else:
        return
    raise ConfigError(f"{reprlib.repr(policy)} is no policy: {hint}")


class Governor:
    """Applies a policy's decisions to an engine.

    min_dwell_s: seconds for which a point is held after a switch, unless a decision is urgent. history_length: how
    many of the latest switches and failures are remembered. Raises ConfigError if either is negative or not finite, or
    if `policy` is no policy, and what the policy's own `check` raises.
    """

    def __init__(
        self, engine: SwitchableEngine, policy: Policy, *, min_dwell_s: float = 5.0, history_length: int = 256
    ) -> None:
        if not is_number(min_dwell_s) or not 0 <= min_dwell_s < float("inf"):
            raise ConfigError(f"min_dwell_s must be a finite number of at least 0, not {min_dwell_s!r}")
        check_policy(policy)
        if not isinstance(history_length, int) or history_length < 1:
            raise ConfigError(f"history_length must be an integer of at least 1, not {history_length!r}")
        self._points = tuple(engine.points.values())
        if isinstance(policy, CheckedPolicy):
            policy.check(self._points)
        self._engine = engine
        self._policy = policy
        self._min_dwell_s = min_dwell_s
        self._history_length = history_length
        self._lock = threading.Lock()
        self._switched_s: float | None = None
        self._trimmed = False
        self._failure = ""
        self._decision: Decision | None = None
        self._history: tuple[Switch, ...] = ()
        self._closed = False

    @property
    def history(self) -> tuple[Switch, ...]:
        """The latest switches and failures, oldest first."""
        return self._history

    @property
    def decision(self) -> Decision | None:
        """What the policy wanted last, whether or not the dwell let it through."""
        return self._decision

    def close(self) -> None:
        """Lets no further switch through, not even of a policy that is still thinking. Never waits."""
        self._closed = True

    def consider(self, context: Context, now_s: float) -> Switch | None:
        """Asks the policy once; returns the switch that was made, or None.

        `now_s` is on any clock that does not jump; if it steps back, as a replay that is rewound does, the dwell
        begins anew. A failing policy is logged and recorded, never raised; one failure that repeats is recorded once.
        """
        with self._lock:
            if self._switched_s is not None and now_s < self._switched_s:
                self._switched_s = now_s
            current = self._engine.point
            doing = "the policy failed"
            try:
                decision = self._decide(context, current)
                if decision.point == current or not self._may_switch(decision, now_s):
                    self._failure = ""
                    self._trim(decision, switched=False)
                    return None
                doing = f"the engine cannot switch to {decision.point}"
                self._engine.select(decision.point)
            except Exception as error:
                reason = f"{doing}: {type(error).__name__}: {error}; {current} is kept"
                self._fail(Switch(now_s, current, current, reason, context))
                return None
            self._failure = ""
            self._switched_s = now_s
            switch = Switch(now_s, current, decision.point, decision.reason, context)
            self._remember(switch)
            log.info("operating point %s -> %s: %s", current, decision.point, decision.reason)
            self._trim(decision, switched=True)
            return switch

    def _decide(self, context: Context, current: str) -> Decision:
        decision = self._policy.select(context, self._points, current)
        if not isinstance(decision, Decision):
            raise ConfigError(f"the policy must return a Decision, not {type(decision).__name__}")
        if decision.point not in self._engine.points:
            known = nearest(decision.point, self._engine.points)
            raise AssignmentError(f"the policy chose the unknown point {decision.point!r}{known}")
        self._decision = decision
        return decision

    def _may_switch(self, decision: Decision, now_s: float) -> bool:
        if self._closed:
            return False
        return decision.urgent or self._switched_s is None or now_s - self._switched_s >= self._min_dwell_s

    def _trim(self, decision: Decision, switched: bool) -> None:
        now = decision.trim and (switched or not self._trimmed) and not self._closed
        self._trimmed = decision.trim
        if now and isinstance(self._engine, TrimmableEngine):
            try:
                self._engine.trim()
                log.info("memory is given back: %s", decision.reason)
            except Exception:
                log.exception("the engine cannot give memory back")

    def _fail(self, failure: Switch) -> None:
        if failure.reason == self._failure:
            return
        self._failure = failure.reason
        self._remember(failure)
        log.error("%s", failure.reason)

    def _remember(self, switch: Switch) -> None:
        self._history = (*self._history, switch)[-self._history_length :]

"""A policy of rules that a person can read: the first rule whose conditions hold decides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

from caq.context import Context
from caq.errors import ConfigError, nearest
from caq.governor import Decision
from caq.model import OperatingPoint
from policies.rules import Condition, Rule, Rules, WhenMissing, parse_rules, read_rules

PHONE = Path(__file__).with_name("phone.yaml")


class _Truth(Enum):
    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class _Verdict:
    truth: _Truth
    reason: str


class ThresholdPolicy:
    """Rules from YAML (see `policies.rules` for its fields), with hysteresis.

    A rule is active while its conditions hold, whether or not a rule above it decides. The only state is which rules
    are active: one object serves one runtime, and `reset` makes it new.
    """

    def __init__(self, rules: Rules) -> None:
        if not isinstance(rules, Rules):
            raise ConfigError("a ThresholdPolicy is made by from_yaml(path), from_dict(data) or default(points)")
        self.rules = rules
        self._active = [False] * len(rules.rules)

    @classmethod
    def from_yaml(cls, path: str | Path) -> ThresholdPolicy:
        """Reads a file; raises ConfigError that names the file and the field."""
        return cls(read_rules(path))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], source: str = "rules") -> ThresholdPolicy:
        """Reads plain data of the same form; raises ConfigError that names `source` and the field."""
        return cls(parse_rules(data, source))

    @classmethod
    def default(cls, points: Sequence[OperatingPoint] | Mapping[str, OperatingPoint]) -> ThresholdPolicy:
        """The rules of phone.yaml for any points, those of a model or an engine: its saver, balanced and full become
        the ones of least, median and most bit_macs, unless `points` bear these names themselves. ConfigError if there
        is no point."""
        rules = read_rules(PHONE)
        if isinstance(points, Mapping):
            points = tuple(points.values())
        if not isinstance(points, Sequence) or not points or not all(isinstance(p, OperatingPoint) for p in points):
            raise ConfigError("a policy needs at least one operating point: pass the points of a model or an engine")
        if set(rules.points) <= {point.name for point in points}:
            return cls(rules)
        by_cost = [point.name for point in sorted(points, key=lambda point: point.cost.bit_macs)]
        names = {"saver": by_cost[0], "balanced": by_cost[len(by_cost) // 2], "full": by_cost[-1]}
        renamed = tuple(replace(rule, point=names[rule.point]) for rule in rules.rules)
        return cls(replace(rules, rules=renamed, otherwise=names[rules.otherwise]))

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the context fields that the rules read, each once."""
        return tuple(dict.fromkeys(condition.field for rule in self.rules.rules for condition in rule.when))

    def reset(self) -> None:
        """Forgets which rules are active."""
        self._active = [False] * len(self.rules.rules)

    def check(self, points: Sequence[OperatingPoint]) -> None:
        """Raises ConfigError if a rule names a point that is not among `points`."""
        names = [point.name for point in points]
        for name in self.rules.points:
            if name not in names:
                raise ConfigError(f"{self.rules.source}: no operating point {name!r}{nearest(name, names)}")

    def select(self, context: Context, points: Sequence[OperatingPoint], current: str) -> Decision:
        """The first rule that holds decides; the reason also tells what was missing on the way there."""
        self.check(points)
        decision: Decision | None = None
        trim = False
        notes: list[str] = []
        for at, rule in enumerate(self.rules.rules):
            verdict = _judge(rule, context, self._active[at])
            if verdict.truth is not _Truth.UNKNOWN:
                # Also below the rule that decides, so that its hysteresis is right when its turn comes.
                self._active[at] = verdict.truth is _Truth.YES
            matched = verdict.truth is _Truth.UNKNOWN and rule.when_missing is WhenMissing.MATCH
            trim = trim or (rule.trim and (matched or verdict.truth is _Truth.YES))
            if decision is not None or verdict.truth is _Truth.NO:
                continue
            label = f"rule {at + 1}"
            if verdict.truth is _Truth.YES:
                decision = _decision(rule.point, notes, f"{label}: {verdict.reason}", rule.urgent)
            elif rule.when_missing is WhenMissing.SKIP:
                notes.append(f"{label} is skipped, {verdict.reason}")
            elif rule.when_missing is WhenMissing.HOLD:
                decision = _decision(current, notes, f"{label} holds {current}, {verdict.reason}", False)
            else:
                reason = f"{label} counts as fulfilled, {verdict.reason}"
                decision = _decision(rule.point, notes, reason, rule.urgent)
        return replace(decision or _decision(self.rules.otherwise, notes, "no rule applies", False), trim=trim)


def _decision(point: str, notes: list[str], reason: str, urgent: bool) -> Decision:
    return Decision(point, "; ".join((reason, *notes)), urgent)


def _judge(rule: Rule, context: Context, active: bool) -> _Verdict:
    """One condition that does not hold settles the rule, whatever else is unknown."""
    held: list[str] = []
    unknown: list[str] = []
    for condition in rule.when:
        value = context.value(condition.field)
        if value is None:
            unknown.append(_absence(context, condition.field))
        elif condition.holds(value, active):
            held.append(_words(condition, value, context))
        else:
            return _Verdict(_Truth.NO, "")
    if unknown:
        return _Verdict(_Truth.UNKNOWN, ", ".join(unknown))
    return _Verdict(_Truth.YES, ", ".join(held))


def _words(condition: Condition, value: float | bool, context: Context) -> str:
    if condition.equals is not None:
        return f"{condition.field} {condition.words()}"
    unit = context.reading(condition.field).unit
    number = f"{value:g}" if unit == "1" else f"{value:g} {unit}"
    if condition.holds(value, active=False):
        return f"{condition.field} {number} is {condition.words()}"
    return f"{condition.field} {number} is within {condition.hysteresis:g} of {condition.words()} (hysteresis)"


def _absence(context: Context, field: str) -> str:
    reading = context.reading(field)
    state = f"stale ({reading.age_s:.0f} s old)" if reading.value is not None else "missing"
    return f"{field} is {state}: {reading.reason}" if reading.reason else f"{field} is {state}"

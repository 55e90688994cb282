"""The rules of a threshold policy, as frozen dataclasses, and their YAML.

    rules:
      - point: saver                                  an operating point's name
        urgent: true                                  may cut the governor's dwell short; default false
        trim: true                                    give memory back while this rule holds; default false
        when_missing: hold                            default: that of the file
        when:                                         all conditions must hold
          state_of_charge: {below: 0.2, hysteresis: 0.03}
          charging: {is: false}
    otherwise: full                                   where no rule holds
    when_missing: skip                                match, skip or hold; default skip

`when_missing` says what a rule does when a value that it needs is missing or stale: match (as if the condition held),
skip (as if it did not), or hold (keep the current point). `trim` also counts where a rule above decides the point: what
the engine can make or read again is given back when such a rule begins to hold, and after each switch while it does.
Unknown keys, duplicate keys and YAML aliases are refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from caq.context import FIELDS
from caq.strict_yaml import Fields, read


class WhenMissing(str, Enum):
    """What a rule does without a value that it needs."""

    MATCH = "match"
    SKIP = "skip"
    HOLD = "hold"


@dataclass(frozen=True)
class Condition:
    """On one context field: `below` and `above` bounds in the field's unit, or the bool that it `equals`."""

    field: str
    below: float | None = None
    above: float | None = None
    equals: bool | None = None
    hysteresis: float = 0.0

    def holds(self, value: float | bool, active: bool) -> bool:
        """Whether `value` fulfils it; for an active rule the bounds are wider by the hysteresis."""
        if self.equals is not None:
            return bool(value) == self.equals
        width = self.hysteresis if active else 0.0
        # Strict to begin and not strict to end: an active rule lets go when the value reaches the wider bound.
        under = self.below is None or value < self.below + width
        over = self.above is None or value > self.above - width
        return under and over

    def words(self) -> str:
        if self.equals is not None:
            return f"is {str(self.equals).lower()}"
        bounds = [("below", self.below), ("above", self.above)]
        return " and ".join(f"{name} {bound:g}" for name, bound in bounds if bound is not None)


@dataclass(frozen=True)
class Rule:
    """`point` while all conditions of `when` hold; trim: they mean that memory is short."""

    point: str
    when: tuple[Condition, ...]
    when_missing: WhenMissing
    urgent: bool = False
    trim: bool = False


@dataclass(frozen=True)
class Rules:
    """First match wins; `otherwise` where none does. `source` names the file for messages."""

    rules: tuple[Rule, ...]
    otherwise: str
    source: str

    @property
    def points(self) -> tuple[str, ...]:
        """Names of all operating points that the rules may choose, in their order."""
        return tuple(dict.fromkeys((*(rule.point for rule in self.rules), self.otherwise)))


def read_rules(path: str | Path) -> Rules:
    """Reads a YAML file; raises ConfigError that names the file and the field."""
    return parse_rules(read(path), str(path))


def parse_rules(data: object, source: str) -> Rules:
    """Reads plain dicts and lists, as YAML gives them; raises ConfigError that names `source` and the field."""
    reader = _Reader(source)
    top = reader.mapping(data, "the file", ("rules", "otherwise", "when_missing"))
    missing = reader.when_missing(top.get("when_missing", "skip"), "when_missing")
    rules = reader.items(top.get("rules", []), "rules")
    return Rules(
        tuple(reader.rule(rule, f"rules[{at}]", missing) for at, rule in enumerate(rules)),
        reader.name(top.get("otherwise"), "otherwise"),
        source,
    )


class _Reader(Fields):
    def name(self, data: object, at: str) -> str:
        if not isinstance(data, str) or not data:
            self.fail(at, "must be the name of an operating point")
        return data

    def when_missing(self, data: object, at: str) -> WhenMissing:
        known = [choice.value for choice in WhenMissing]
        if data not in known:
            self.fail(at, f"must be {', '.join(known[:-1])} or {known[-1]}, not {data!r}")
        return WhenMissing(data)

    def rule(self, data: object, at: str, missing: WhenMissing) -> Rule:
        parts = self.mapping(data, at, ("point", "when", "when_missing", "urgent", "trim"))
        conditions = self.mapping(parts.get("when"), f"{at}.when", tuple(FIELDS))
        if not conditions:
            self.fail(f"{at}.when", "needs at least one condition; a point for all cases stands under otherwise")
        return Rule(
            self.name(parts.get("point"), f"{at}.point"),
            tuple(self.condition(name, condition, f"{at}.when.{name}") for name, condition in conditions.items()),
            self.when_missing(parts.get("when_missing", missing.value), f"{at}.when_missing"),
            self.flag(parts.get("urgent", False), f"{at}.urgent"),
            self.flag(parts.get("trim", False), f"{at}.trim"),
        )

    def condition(self, field: str, data: object, at: str) -> Condition:
        if FIELDS[field].boolean:
            parts = self.mapping(data, at, ("is",))
            return Condition(field, equals=self.flag(parts.get("is"), f"{at}.is"))
        parts = self.mapping(data, at, ("below", "above", "hysteresis"))
        below = self.number(parts["below"], f"{at}.below") if "below" in parts else None
        above = self.number(parts["above"], f"{at}.above") if "above" in parts else None
        hysteresis = self.number(parts.get("hysteresis", 0.0), f"{at}.hysteresis")
        if below is None and above is None:
            self.fail(at, "needs below or above")
        if hysteresis < 0:
            self.fail(f"{at}.hysteresis", f"must be at least 0, not {hysteresis:g}")
        if below is not None and above is not None and above >= below:
            self.fail(at, f"above {above:g} and below {below:g} leave no value between them")
        spec = FIELDS[field]
        for name, bound, end in (("below", below, hysteresis), ("above", above, -hysteresis)):
            if bound is None:
                continue
            if not spec.low <= bound <= spec.high:
                self.fail(f"{at}.{name}", f"{bound:g} is outside {spec.low:g}..{spec.high:g} {spec.unit}")
            if not spec.low <= bound + end <= spec.high:
                self.fail(f"{at}.hysteresis", f"the value can never reach {bound + end:g}, where the rule would end")
        return Condition(field, below, above, None, hysteresis)

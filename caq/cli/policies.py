"""Policies by the names that commands take, as `fixed:full`, `threshold` or `threshold:rules.yaml`.

A policy that is added is a line in POLICIES.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from caq.errors import ConfigError, nearest
from caq.governor import FixedPolicy, Policy
from caq.model import OperatingPoint

if TYPE_CHECKING:
    from simulators.device import Device, PointCosts


class Setting(NamedTuple):
    """What a policy may be made for. points: of the model, if there is one. costs, device: simulated. hour: local time,
    0..24."""

    points: Mapping[str, OperatingPoint] | None
    costs: PointCosts
    device: Device
    hour: Callable[[], float]


def _threshold(path: str, setting: Setting) -> Policy:
    from policies.threshold import PHONE, ThresholdPolicy

    if path or setting.points is None:
        return ThresholdPolicy.from_yaml(path or PHONE)
    return ThresholdPolicy.default(setting.points)


def _fixed(point: str, setting: Setting) -> Policy:
    return FixedPolicy(point)


#: Each takes what stands behind the colon, "" if nothing does.
POLICIES: dict[str, Callable[[str, Setting], Policy]] = {"fixed": _fixed, "threshold": _threshold}
HELP = "fixed:POINT, threshold, or threshold:RULES.yaml"


def named_policy(name: str, setting: Setting) -> Policy:
    """The policy of a name. Raises ConfigError for one that there is not, and what the policy raises."""
    kind, _, argument = name.partition(":")
    if kind not in POLICIES:
        raise ConfigError(f"no policy {name!r}{nearest(kind, POLICIES)}")
    return POLICIES[kind](argument, setting)


def policy_names(text: str) -> list[str]:
    """`fixed:full,threshold` as a list; ConfigError for none, or one that stands there twice."""
    names = [part.strip() for part in text.split(",")]
    if not all(names) or len(set(names)) < len(names):
        raise ConfigError(f"policies: names are expected, each once, with commas between them, not {text!r}")
    return names

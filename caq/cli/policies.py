"""Policies by the names that commands take, as `fixed:full`, `threshold` or `threshold:rules.yaml`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from caq.errors import ConfigError, nearest
from caq.governor import FixedPolicy, Policy
from caq.model import OperatingPoint

if TYPE_CHECKING:
    from policies.points import PointTable
    from simulators.envs.scenario import Scenario
    from simulators.simulate import Simulation

HELP = (
    "fixed:POINT, threshold[:RULES.yaml], price[:FILE.npz], pacing[:HABITS.npz], lyapunov:TARGET:V, learned:FILE.npz, "
    "oracle"
)


class Setting(NamedTuple):
    """What a policy may be made for. points: of the model, if there is one. simulation: if it is of one device."""

    points: Mapping[str, OperatingPoint] | None
    scenario: Scenario
    simulation: Simulation | None

    @property
    def table(self) -> PointTable:
        from policies.points import PointTable

        return PointTable.of(self.scenario.costs, self.scenario.device.memory_bytes)

    def hour(self) -> float:
        """Local time, 0..24, of the simulation. Worlds of many devices tell it by what is seen of them instead."""
        return 0.0 if self.simulation is None else self.simulation.hour()


def _fixed(point: str, setting: Setting) -> Policy:
    return FixedPolicy(point)


def _threshold(path: str, setting: Setting) -> Policy:
    from policies.threshold import PHONE, ThresholdPolicy

    if path or setting.points is None:
        return ThresholdPolicy.from_yaml(path or PHONE)
    return ThresholdPolicy.default(setting.points)


def _pacing(path: str, setting: Setting) -> Policy:
    from policies.pacing import PacingPolicy, read_habits

    return PacingPolicy(setting.table, read_habits(path or _shipped("pacing", "habits", setting)), setting.hour)


def _price(path: str, setting: Setting) -> Policy:
    from policies.price import PricePolicy

    return PricePolicy.load(path or _shipped("price", "price", setting), setting.hour)


def _shipped(policy: str, what: str, setting: Setting) -> str:
    """The camera's file. Raises ConfigError on another device."""
    import policies
    from simulators.device import read_device

    if setting.scenario.device != read_device("camera"):
        raise ConfigError(f"{policy}: what is shipped is the camera's; give yours as {policy}:FILE.npz")
    return f"{policies.__file__.rpartition('/')[0]}/trained/camera-{what}.npz"


def _lyapunov(numbers: str, setting: Setting) -> Policy:
    from policies.lyapunov import LyapunovPolicy

    try:
        target, v_j2 = map(float, numbers.split(":"))
    except ValueError:
        raise ConfigError(f"lyapunov: write it as lyapunov:TARGET:V, two numbers, not {numbers!r}") from None
    return LyapunovPolicy(setting.table, setting.scenario.battery.energy_j, target, v_j2, setting.hour)


def _learned(path: str, setting: Setting) -> Policy:
    from policies.arrays import read_arrays
    from policies.learned import LearnedPolicy

    if not path:
        raise ConfigError("learned: name the file that training wrote, as learned:FILE.npz")
    # Training writes networks that choose a point, and prices, which know how usual requests are.
    return _price(path, setting) if "rate" in read_arrays(path) else LearnedPolicy.load(path, setting.hour)


def _oracle(argument: str, setting: Setting) -> Policy:
    from caq.cli.oracle import OraclePolicy

    if setting.simulation is None:
        raise ConfigError("oracle: needs a day that it can know beforehand")
    return OraclePolicy(setting.scenario, setting.simulation)


#: Each takes what stands behind the colon, "" if nothing does. A policy that is added is a line here.
POLICIES: dict[str, Callable[[str, Setting], Policy]] = {
    "fixed": _fixed,
    "threshold": _threshold,
    "pacing": _pacing,
    "price": _price,
    "lyapunov": _lyapunov,
    "learned": _learned,
    "oracle": _oracle,
}


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

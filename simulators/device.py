"""A simulated device: what each operating point costs on it, and what it draws, holds and allows beside inference.

    costs = PointCosts.of(caq.load("x.caq"), load_profile("bit-serial"))
    costs = read_points("camera")              # a shipped table, or a .yaml file of your own
    device = read_device("camera")             # likewise

A table of operating points (simulators/profiles/points):

    title: ResNet-8 on CIFAR-10, BISMO bit-serial overlay
    source: which artifact, where its accuracies were measured, which profile models its latency and energy
    points:
      - {name: full, accuracy: 0.7578, latency_s: 0.0004359, energy_j: 0.00218, resident_bytes: 119900}

A device (simulators/profiles/devices):

    title: body-worn camera
    battery: nasa-18650                        a battery of simulators/profiles/batteries, or a file
    thermal: camera                            likewise, of simulators/profiles/thermal
    idle_power_w: {value: 0.008, source: guess}
    ...                                        every field of `Device` that is a number
    sources:
      guess: {kind: assumed, text: why}        kinds: measured, fitted, literature, assumed

Write a table with `python -m simulators.device x.caq --profile bit-serial --out points.yaml`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import yaml
from numpy.typing import NDArray

from caq.costs import Profile, Source, load_profile
from caq.costs.profile import SOURCES
from caq.errors import AssignmentError, ConfigError, nearest
from caq.model import Model
from caq.program import Program
from caq.strict_yaml import Fields, read

PROFILES = Path(__file__).parent / "profiles"
#: Of PointCosts, beside the names.
COLUMNS = ("accuracy", "latency_s", "energy_j", "resident_bytes")
_Read = TypeVar("_Read")


@dataclass(frozen=True, eq=False)
class PointCosts:
    """Operating points that a device may choose from; rows may be of several models.

    accuracy: (P,) float64, 0..1, measured. latency_s, energy_j: (P,) float64 > 0, of one inference, modelled.
    resident_bytes: (P,) float64 > 0, memory while the point is active: weights at its widths, parameters, activations.
    Raises ConfigError on arrays that are not so, or of several lengths.
    """

    names: tuple[str, ...]
    source: str
    accuracy: NDArray[np.float64]
    latency_s: NDArray[np.float64]
    energy_j: NDArray[np.float64]
    resident_bytes: NDArray[np.float64]

    def __post_init__(self) -> None:
        if not self.names or len(set(self.names)) != len(self.names):
            raise ConfigError(f"points: at least one, each name once; there are {', '.join(self.names) or 'none'}")
        for name in COLUMNS:
            column = np.array(getattr(self, name), dtype=np.float64)
            if column.shape != (len(self.names),):
                raise ConfigError(f"points: {name} has shape {column.shape}, there are {len(self.names)} names")
            good = (column >= 0) & (column <= 1) if name == "accuracy" else (column > 0) & np.isfinite(column)
            if not good.all():
                at = int(np.argmin(good))
                allowed = "0..1" if name == "accuracy" else "a finite number above 0"
                raise ConfigError(f"points: {name} of {self.names[at]!r} must be {allowed}, not {column[at]:g}")
            column.flags.writeable = False
            object.__setattr__(self, name, column)

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def of(cls, model: Model, profile: Profile) -> PointCosts:
        """The points of an artifact on a device profile.

        Resident bytes are those of the weights that the profile says an inference reads, the parameters, and the
        tensors as the native kernels lay them out. Raises ConfigError on points without a measured accuracy.
        """
        for point in model.points:
            if point.metric != "accuracy" or not point.samples:
                raise ConfigError(f"point {point.name!r} has no measured accuracy; caq eval measures points")
        costs = [profile.cost(model.graph, point.assignment) for point in model.points]
        parameters = sum(part.nbytes for part in vars(model.parameters).values() if isinstance(part, np.ndarray))
        fixed = parameters + Program(model).peak_bytes
        data = model.provenance.get("data", "its test split")
        return cls(
            tuple(point.name for point in model.points),
            f"accuracy measured in integers on {model.points[0].samples} samples of {data}; "
            f"latency and energy modelled: {profile.title}",
            np.array([point.score for point in model.points]),
            np.array([cost.latency_s for cost in costs]),
            np.array([cost.energy_j for cost in costs]),
            np.array([cost.weight_bytes + fixed for cost in costs], dtype=np.float64),
        )

    def choose(self, names: Sequence[str]) -> PointCosts:
        """Only these points, in this order. Raises AssignmentError on an unknown one."""
        for name in names:
            if name not in self.names:
                raise AssignmentError(f"no operating point {name!r}{nearest(str(name), self.names)}")
        rows = [self.names.index(name) for name in names]
        return PointCosts(tuple(names), self.source, *(getattr(self, column)[rows] for column in COLUMNS))

    def efficient(self) -> PointCosts:
        """Without points that another one beats: as accurate, for no more of anything. From most energy to least."""
        rows = [i for i in range(len(self)) if not any(self._beats(j, i) for j in range(len(self)))]
        return self.choose([self.names[i] for i in sorted(rows, key=lambda i: -self.energy_j[i])])

    def _beats(self, one: int, other: int) -> bool:
        costs = [getattr(self, name) for name in COLUMNS[1:]]
        no_worse = self.accuracy[one] >= self.accuracy[other] and all(c[one] <= c[other] for c in costs)
        better = self.accuracy[one] > self.accuracy[other] or any(c[one] < c[other] for c in costs)
        return bool(no_worse and (better or one < other))


@dataclass(frozen=True)
class Device:
    """What a device is beside its operating points; `sources` says where each number is from.

    battery, thermal: shipped profiles by name, or files. battery_capacity_ah: of one cell; the battery is scaled to it.
    idle_power_w: drawn while it is on. screen_power_w: more while the screen is on. bright_power_w: more at full
    brightness. apps_power_w: more while other apps take the whole processor, and of that the share which they take; 0
    on a device without other apps, whose load is 0 then as well. charger_power_w: what a charger gives. memory_bytes:
    of which a day's share is free. requests_per_s: asked of it, the mean over days. queue_limit: requests that wait at
    most. deadline_s: after which an answer is late. restart_above: state of charge (0..1) at which a device that went
    off starts again.
    """

    title: str
    battery: str
    thermal: str
    battery_capacity_ah: float
    idle_power_w: float
    screen_power_w: float
    bright_power_w: float
    apps_power_w: float
    charger_power_w: float
    memory_bytes: float
    requests_per_s: float
    queue_limit: float
    deadline_s: float
    restart_above: float
    sources: dict[str, Source]


_NUMBERS = tuple(f.name for f in fields(Device) if f.type == "float")


def read_points(name: str | Path) -> PointCosts:
    """Reads a shipped table of operating points by name, or a .yaml file; ConfigError names the file and the field."""
    return _read("points", name, lambda source, data: _Reader(source).points(data))


def read_device(name: str | Path) -> Device:
    """Reads a shipped device by name, or a .yaml file; ConfigError names the file and the field."""
    return _read("devices", name, lambda source, data: _Reader(source).device(data))


def _read(folder: str, name: str | Path, parse: Callable[[str, object], _Read]) -> _Read:
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        known = sorted(file.stem for file in (PROFILES / folder).glob("*.yaml"))
        if str(name) not in known:
            raise ConfigError(f"no {folder} {str(name)!r}{nearest(str(name), known)}; a file of your own ends in .yaml")
        path = PROFILES / folder / f"{name}.yaml"
    return parse(str(path), read(path))


class _Reader(Fields):
    def points(self, data: object) -> PointCosts:
        top = self.mapping(data, "the file", ("title", "source", "points"), ("title", "source", "points"))
        keys = ("name", *COLUMNS)
        rows = [
            self.mapping(row, f"points[{i}]", keys, keys) for i, row in enumerate(self.items(top["points"], "points"))
        ]
        columns = [np.array([self.number(row[c], f"points[{i}].{c}") for i, row in enumerate(rows)]) for c in COLUMNS]
        names = tuple(self.text(row["name"], f"points[{i}].name") for i, row in enumerate(rows))
        try:
            return PointCosts(names, self.text(top["source"], "source"), *columns)
        except ConfigError as error:
            raise ConfigError(f"{self.source}: {error}") from None

    def device(self, data: object) -> Device:
        needed = ("title", "battery", "thermal", *_NUMBERS, "sources")
        top = self.mapping(data, "the file", needed, needed)
        named = self.mapping(top["sources"], "sources", top["sources"] if isinstance(top["sources"], dict) else ())
        sources = {key: self.origin(value, f"sources.{key}") for key, value in named.items()}
        values: dict[str, Any] = {key: self.text(top[key], key) for key in ("title", "battery", "thermal")}
        used: dict[str, Source] = {}
        for key in _NUMBERS:
            parts = self.mapping(top[key], key, ("value", "source"), ("value", "source"))
            value = values[key] = self.number(parts["value"], f"{key}.value")
            used[key] = sources[self.choice(parts["source"], f"{key}.source", sources)]
            least = 0.0 if key.endswith("_power_w") or key == "restart_above" else 1e-9
            most = 1.0 if key == "restart_above" else 1e15
            if not least <= value <= most:
                self.fail(f"{key}.value", f"must be {least:g}..{most:g}, not {value:g}")
        return Device(**values, sources=used)

    def origin(self, data: object, at: str) -> Source:
        parts = self.mapping(data, at, Source._fields, Source._fields)
        return Source(self.choice(parts["kind"], f"{at}.kind", SOURCES), self.text(parts["text"], f"{at}.text"))


def write_points(path: str | Path, costs: PointCosts, title: str) -> None:
    """Writes a table that `read_points` reads, figures rounded to four digits."""
    rows: list[dict[str, Any]] = [
        {"name": name} | {c: float(f"{getattr(costs, c)[i]:.4g}") for c in COLUMNS}
        for i, name in enumerate(costs.names)
    ]
    text = yaml.safe_dump({"title": title, "source": costs.source, "points": rows}, sort_keys=False, width=118)
    Path(path).write_text(text, encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; see above."""
    from caq.artifact import load

    parser = argparse.ArgumentParser(
        prog="python -m simulators.device", description="write a table of operating points"
    )
    parser.add_argument("artifact", metavar="x.caq")
    parser.add_argument("--profile", required=True, help="a device profile of caq.costs, or a .yaml file")
    parser.add_argument("--out", required=True, metavar="FILE.yaml")
    parser.add_argument("--title", required=True, help="network and data, such as 'ResNet-8 on CIFAR-10'")
    parser.add_argument("--all", action="store_true", help="also points that another one beats in everything")
    args = parser.parse_args(arguments)
    costs = PointCosts.of(load(args.artifact), load_profile(args.profile))
    write_points(args.out, costs if args.all else costs.efficient(), args.title)
    return 0


if __name__ == "__main__":
    sys.exit(main())

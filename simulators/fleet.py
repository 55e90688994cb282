"""Thousands of simulated devices over a grid of policies, profiles and seeds; a grid is a YAML file:

    title: two policies on the camera
    policies: ['fixed:full', threshold]          what the caller makes policies of
    profiles:
    - {name: camera, device: camera, points: camera}     see simulators.device: names of shipped ones, or files
    seeds: [0, 1]
    devices: 1000                                of each profile, with each seed
    chunk: 256                                   devices that are stepped together; default 256
    step_s: 300                                  default 300

Devices are stepped in chunks, all policies on the same days. What happens to a device follows from the seed and its
number, and chunks from the grid alone, so results are the same, bit for bit, wherever the chunks are worked off.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from caq.errors import AssignmentError, ConfigError
from caq.strict_yaml import Fields, read
from simulators.device import COLUMNS, read_device, read_points
from simulators.envs.scenario import START_OF_CHARGE, Scenario, scenario
from simulators.episodes import episodes
from simulators.parameters import load_battery, load_thermal
from simulators.workload import device_seeds
from simulators.world import World

#: Of each device and day. lifetime_s: until it first went off, NaN if it never did. right: answers, by the points'
#: accuracies. Those in _s are seconds; the last is the charge at the day's end.
METRICS = (
    "requests",
    "served",
    "late",
    "dropped",
    "right",
    "inference_j",
    "energy_j",
    "switches",
    "off_s",
    "throttled_s",
    "over_memory_s",
    "below_20_s",
    "reward",
    "lifetime_s",
    "state_of_charge",
)
MOST_DEVICES = 10_000_000


class Profile(NamedTuple):
    """device, points: as `simulators.device` reads them."""

    name: str
    device: str
    points: str


@dataclass(frozen=True)
class Grid:
    """See the module."""

    title: str
    policies: tuple[str, ...]
    profiles: tuple[Profile, ...]
    seeds: tuple[int, ...]
    devices: int
    chunk: int = 256
    step_s: float = 300.0

    @property
    def fingerprint(self) -> str:
        """Of all that results follow from, but for files that policies name."""
        parts = [json.dumps(asdict(self), sort_keys=True)]
        for profile in self.profiles:
            device, costs = read_device(profile.device), read_points(profile.points)
            parts += [repr(device), repr(load_battery(device.battery)), repr(load_thermal(device.thermal))]
            parts.append(repr([(name, getattr(costs, name).tolist()) for name in COLUMNS]))
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def tasks(self) -> list[Task]:
        """The chunks, in the order in which they are put together."""
        return [
            Task(profile, seed, first, min(self.chunk, self.devices - first))
            for profile in self.profiles
            for seed in self.seeds
            for first in range(0, self.devices, self.chunk)
        ]


class Task(NamedTuple):
    """Devices numbered from `first` on, under each policy of the grid."""

    profile: Profile
    seed: int
    first: int
    devices: int

    @property
    def name(self) -> str:
        return f"{self.profile.name}-{self.seed}-{self.first}"


class Active(NamedTuple):
    """What a world does not know of the last step: points (N,) in force, mean power_w (N,), and the shares of it that
    inference and other apps took, busy and apps_load (N,) 0..1."""

    points: NDArray[np.intp]
    power_w: NDArray[Any]
    busy: NDArray[Any]
    apps_load: NDArray[Any]


#: Points (N,) for the step to come.
Chooser = Callable[[World, Active], NDArray[np.intp]]
#: A policy of the grid, made for the days of a scenario; must be a function of a module, so that workers can find it.
Make = Callable[[str, Scenario], Chooser]


def read_grid(path: str | Path) -> Grid:
    """Reads a file. Raises ConfigError that names file and field."""
    return _Reader(str(path)).grid(read(path))


class _Reader(Fields):
    def grid(self, data: object) -> Grid:
        needed = ("title", "policies", "profiles", "seeds", "devices")
        top = self.mapping(data, "the file", (*needed, "chunk", "step_s"), needed)
        profiles = [
            self.profile(row, f"profiles[{i}]") for i, row in enumerate(self.items(top["profiles"], "profiles"))
        ]
        policies = [self.text(row, f"policies[{i}]") for i, row in enumerate(self.items(top["policies"], "policies"))]
        seeds = [self.whole(row, f"seeds[{i}]", 0) for i, row in enumerate(self.items(top["seeds"], "seeds"))]
        for at, values in (("profiles", [p.name for p in profiles]), ("policies", policies), ("seeds", seeds)):
            if not values or len(set(values)) < len(values):
                self.fail(at, "at least one, each once")
        return Grid(
            self.text(top["title"], "title"),
            tuple(policies),
            tuple(profiles),
            tuple(seeds),
            self.whole(top["devices"], "devices", 1),
            self.whole(top.get("chunk", Grid.chunk), "chunk", 1),
            self.number(top.get("step_s", Grid.step_s), "step_s"),
        )

    def profile(self, data: object, at: str) -> Profile:
        parts = self.mapping(data, at, Profile._fields, Profile._fields)
        name = self.text(parts["name"], f"{at}.name")
        if not name.replace("-", "").replace("_", "").isalnum():
            self.fail(f"{at}.name", f"letters, digits, - and _ are expected, not {name!r}")
        return Profile(name, self.text(parts["device"], f"{at}.device"), self.text(parts["points"], f"{at}.points"))

    def whole(self, data: object, at: str, low: int) -> int:
        if type(data) is not int or not low <= data <= MOST_DEVICES:
            self.fail(at, f"must be a whole number from {low} to {MOST_DEVICES}, not {data!r}")
        return data


def run_task(grid: Grid, task: Task, make: Make) -> NDArray[np.float64]:
    """A day of the task's devices under each policy: (policies, metrics, devices)."""
    device = read_device(task.profile.device)
    days = episodes(task.devices, task.seed, grid.step_s, device.requests_per_s, first=task.first)
    world = scenario(device, read_points(task.profile.points), days=days)
    seeds = (child.spawn(5)[4] for child in device_seeds(task.devices, task.seed, task.first))
    charge = np.array([np.random.default_rng(seed).uniform(*START_OF_CHARGE) for seed in seeds])
    return np.stack([_day(world, charge, make(policy, world)) for policy in grid.policies])


def _day(s: Scenario, charge: NDArray[np.float64], choose: Chooser) -> NDArray[np.float64]:
    """(metrics, devices)"""
    count, step_s = len(charge), s.days.step_s
    world = World(s.costs, s.device, s.battery, s.thermal, s.days)
    world.reset(np.arange(count), charge)
    first = world.given
    active = Active(np.zeros(count, np.intp), first.other_w, np.zeros(count, np.float32), first.apps_load)
    sums = np.zeros((METRICS.index("lifetime_s"), count))
    lifetime_s = np.full(count, np.nan)
    while world.t < world.steps:
        began_s, requests, throttled = world.t * step_s, world.given.requests, world.state.throttled
        points = choose(world, active)
        if points.shape != (count,):
            raise AssignmentError(f"a policy must choose points of shape ({count},), not {points.shape}")
        switched = points != active.points
        done = world.step(points)
        lifetime_s[done.off & np.isnan(lifetime_s)] = began_s
        sums += (
            requests,
            done.served,
            done.late,
            done.dropped,
            done.served * done.accuracy,
            done.inference_j,
            done.power_w * step_s,
            switched,
            done.off * step_s,
            throttled * step_s,
            done.over_memory * step_s,
            (world.state.battery.state_of_charge < 0.2) * step_s,
            s.reward(done, switched),
        )
        active = Active(points, done.power_w, done.busy, done.apps_load)
    return np.concatenate([sums, [lifetime_s, world.state.battery.state_of_charge]])


class Folder:
    """Where finished chunks are kept, so that what was begun can go on. Raises ConfigError if it is of another grid."""

    def __init__(self, path: str | Path, grid: Grid) -> None:
        self.path, self._grid = Path(path), grid
        self.path.mkdir(parents=True, exist_ok=True)
        mark, content = self.path / "grid.json", {"fingerprint": grid.fingerprint, **asdict(grid)}
        if any(self.path.glob("*.npz")):
            try:
                before = json.loads(mark.read_text(encoding="utf-8"))["fingerprint"]
            except (OSError, ValueError, KeyError, TypeError):
                raise ConfigError(f"{mark}: cannot be read, so nobody knows of which grid {self.path} is") from None
            if before != content["fingerprint"]:
                raise ConfigError(
                    f"{self.path}: holds results of another grid; give another folder, or remove this one"
                )
        temporary = mark.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
        os.replace(temporary, mark)

    def load(self, task: Task) -> NDArray[np.float64] | None:
        """(policies, metrics, devices), or None if it is not finished. ConfigError on a file that is damaged."""
        path = self._file(task)
        if not path.exists():
            return None
        try:
            with np.load(path, allow_pickle=False) as file:
                result: NDArray[np.float64] = file["result"]
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise ConfigError(f"{path}: is damaged, remove it: {error}") from error
        shape = (len(self._grid.policies), len(METRICS), task.devices)
        if result.shape != shape or result.dtype != np.float64:
            raise ConfigError(f"{path}: holds {result.dtype} {result.shape}, expected float64 {shape}: remove it")
        return result

    def save(self, task: Task, result: NDArray[np.float64]) -> None:
        """Whole or not at all."""
        temporary = self._file(task).with_suffix(f".{os.getpid()}.tmp")
        with temporary.open("wb") as file:
            np.savez(file, result=result)
        os.replace(temporary, self._file(task))

    def _file(self, task: Task) -> Path:
        return self.path / f"{task.name}.npz"


#: Works off tasks in any order: (task, what `run_task` returns).
Runner = Callable[[Grid, Sequence[Task], Make], Iterable[tuple[Task, NDArray[np.float64]]]]


def run_fleet(
    grid: Grid, folder: Folder, make: Make, runner: Runner, advance: Callable[[str], None] = lambda text: None
) -> list[NDArray[np.float64]]:
    """Results of all tasks in their order, those that the folder has and those that `runner` still had to do."""
    tasks = grid.tasks()
    found = {task: result for task in tasks if (result := folder.load(task)) is not None}
    for task in found:
        advance(f"{task.name} was there")
    for task, result in runner(grid, [task for task in tasks if task not in found], make):
        folder.save(task, result)
        found[task] = result
        advance(task.name)
    return [found[task] for task in tasks]


def digest(results: Sequence[NDArray[np.float64]]) -> str:
    """SHA-256 of all figures of all devices, to compare two runs by."""
    total = hashlib.sha256()
    for result in results:
        total.update(result.astype("<f8").tobytes())
    return total.hexdigest()


def summarise(grid: Grid, results: Sequence[NDArray[np.float64]]) -> list[dict[str, Any]]:
    """A row for each profile and policy, over its seeds and devices, plain types only.

    devices: how many days. lasted: share of them without going off. lifetime_h: mean of those that did not last, or
    None. accuracy: of what was served. served, late, dropped: shares of the requests. reward: mean a day, and
    reward_half: half of its 95 % interval. The others: means a day, hours in _h.
    """
    rows = []
    for profile in grid.profiles:
        chunks = [r for task, r in zip(grid.tasks(), results, strict=True) if task.profile == profile]
        table = np.concatenate(chunks, axis=2)
        for at, policy in enumerate(grid.policies):
            rows.append(
                {"profile": profile.name, "policy": policy, **_means(dict(zip(METRICS, table[at], strict=True)))}
            )
    return rows


def _means(m: dict[str, NDArray[np.float64]]) -> dict[str, Any]:
    count, ended = len(m["reward"]), ~np.isnan(m["lifetime_s"])
    requests, served = m["requests"].sum(), m["served"].sum()
    return {
        "devices": count,
        "lasted": float((~ended).mean()),
        "lifetime_h": float(m["lifetime_s"][ended].mean() / 3600) if ended.any() else None,
        "accuracy": float(m["right"].sum() / served) if served else None,
        "served": float(served / requests) if requests else None,
        "late": float(m["late"].sum() / requests) if requests else None,
        "dropped": float(m["dropped"].sum() / requests) if requests else None,
        "inference_j": float(m["inference_j"].mean()),
        "energy_j": float(m["energy_j"].mean()),
        "switches": float(m["switches"].mean()),
        "off_h": float(m["off_s"].mean() / 3600),
        "throttled_h": float(m["throttled_s"].mean() / 3600),
        "over_memory_h": float(m["over_memory_s"].mean() / 3600),
        "below_20_h": float(m["below_20_s"].mean() / 3600),
        "reward": float(m["reward"].mean()),
        "reward_half": float(1.96 * m["reward"].std(ddof=1) / np.sqrt(count)) if count > 1 else None,
    }

"""Requests that arrive at a device: when, until when they are of use, and how they wait for the one that serves them.

Poisson, Diurnal and Bursts are doubly stochastic Poisson processes (Cox 1955): an intensity over time, and given it a
Poisson number of requests in each step, spread over the step as the intensity is. Counts per step and times of arrival
are of one process: for the same seed and steps, the times fall into the steps as the counts say. So thousands of
devices can be stepped by counts alone, and any of them be replayed request by request.
"""

from __future__ import annotations

import heapq
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from caq.errors import ConfigError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

HOUR_S = 3600.0
HOURS = 24


class Arrivals(ABC):
    """A process of arrivals on the edges of steps, edges_s (T+1,), ascending seconds since a midnight."""

    @abstractmethod
    def counts(self, seed: np.random.SeedSequence, edges_s: Floats) -> Ints:
        """Requests in each step, (T,): those at or after its first edge and before its second."""

    @abstractmethod
    def times(self, seed: np.random.SeedSequence, edges_s: Floats) -> Floats:
        """When the same requests arrive, (sum of counts,), ascending seconds."""


class _Cox(Arrivals):
    @abstractmethod
    def _integral(self, rng: np.random.Generator, start_s: float, end_s: float) -> tuple[Floats, Floats]:
        """The integral of the intensity as a line through knots: seconds (K,) from start to end, requests (K,)."""

    def counts(self, seed: np.random.SeedSequence, edges_s: Floats) -> Ints:
        return self._drawn(seed, edges_s)[0]

    def times(self, seed: np.random.SeedSequence, edges_s: Floats) -> Floats:
        counts, knots_s, integral = self._drawn(seed, edges_s)
        step = np.repeat(np.arange(len(counts)), counts)
        at_edges = np.interp(edges_s, knots_s, integral)
        # Uniform in the integral is spread as the intensity in time.
        place = at_edges[step] + np.diff(at_edges)[step] * _stream(seed, 2).random(len(step))
        times_s = np.interp(place, integral, knots_s)
        # Where the intensity is 0 the inverse has a jump, and rounding may put a time past its step.
        return np.sort(np.clip(times_s, edges_s[step], np.nextafter(edges_s[step + 1], -math.inf)))

    def _drawn(self, seed: np.random.SeedSequence, edges_s: Floats) -> tuple[Ints, Floats, Floats]:
        knots_s, integral = self._integral(_stream(seed, 0), float(edges_s[0]), float(edges_s[-1]))
        return _stream(seed, 1).poisson(np.diff(np.interp(edges_s, knots_s, integral))), knots_s, integral


def _stream(seed: np.random.SeedSequence, number: int) -> np.random.Generator:
    """An independent generator, the same each time it is asked for; `spawn` would give another one each time."""
    return np.random.default_rng(np.random.SeedSequence(seed.entropy, spawn_key=(*seed.spawn_key, number)))


@dataclass(frozen=True)
class Poisson(_Cox):
    """Requests independent of each other and of the hour, `rate_per_s` a second."""

    rate_per_s: float

    def __post_init__(self) -> None:
        _rate("rate_per_s", self.rate_per_s)

    def _integral(self, rng: np.random.Generator, start_s: float, end_s: float) -> tuple[Floats, Floats]:
        return np.array([start_s, end_s]), np.array([0.0, self.rate_per_s * (end_s - start_s)])


@dataclass(frozen=True)
class Diurnal(_Cox):
    """Independent requests at a rate that depends on the hour: rates_per_s has 24, from midnight on."""

    rates_per_s: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "rates_per_s", tuple(float(rate) for rate in self.rates_per_s))
        if len(self.rates_per_s) != HOURS:
            raise ConfigError(f"rates_per_s must have {HOURS} rates, one for each hour, not {len(self.rates_per_s)}")
        for hour, rate in enumerate(self.rates_per_s):
            _rate(f"rates_per_s[{hour}]", rate)

    def _integral(self, rng: np.random.Generator, start_s: float, end_s: float) -> tuple[Floats, Floats]:
        hours = np.arange(math.floor(start_s / HOUR_S), math.ceil(end_s / HOUR_S))
        knots_s = np.concatenate([[start_s], hours[1:] * HOUR_S, [end_s]])
        rates = np.array(self.rates_per_s)[hours % HOURS]
        return knots_s, np.concatenate([[0.0], np.cumsum(rates * np.diff(knots_s))])


@dataclass(frozen=True)
class Bursts(_Cox):
    """A two-state Markov-modulated Poisson process (Fischer, Meier-Hellstern 1993): quiet and busy spells.

    quiet_per_s, busy_per_s: rates of requests. quiet_s, busy_s: mean lengths of spells, exponentially distributed. A
    device begins in either state with the share of time that it spends there.
    """

    quiet_per_s: float
    busy_per_s: float
    quiet_s: float
    busy_s: float

    def __post_init__(self) -> None:
        for name in ("quiet_per_s", "busy_per_s"):
            _rate(name, getattr(self, name))
        for name in ("quiet_s", "busy_s"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} must be a finite number above 0, not {getattr(self, name)}")

    @property
    def mean_per_s(self) -> float:
        """Requests a second over a long time."""
        return (self.quiet_per_s * self.quiet_s + self.busy_per_s * self.busy_s) / (self.quiet_s + self.busy_s)

    def _integral(self, rng: np.random.Generator, start_s: float, end_s: float) -> tuple[Floats, Floats]:
        busy = bool(rng.random() < self.busy_s / (self.quiet_s + self.busy_s))
        rates, means_s = (self.quiet_per_s, self.busy_per_s), (self.quiet_s, self.busy_s)
        if busy:
            rates, means_s = rates[::-1], means_s[::-1]
        # Enough pairs of spells in nearly every case; more are drawn where they were not.
        pairs = int((end_s - start_s) / sum(means_s) * 1.2) + 8
        lengths_s = np.empty(0)
        while lengths_s.sum() < end_s - start_s:
            lengths_s = np.append(lengths_s, rng.exponential(means_s, (pairs, 2)).ravel())
        ends_s = np.minimum(start_s + np.cumsum(lengths_s), end_s)
        spells = int(np.searchsorted(ends_s, end_s)) + 1
        knots_s = np.concatenate([[start_s], ends_s[:spells]])
        steps = np.diff(knots_s) * np.resize(rates, spells)
        return knots_s, np.concatenate([[0.0], np.cumsum(steps)])


@dataclass(frozen=True, eq=False)
class Recorded(Arrivals):
    """The recorded times themselves, arrival_s (R,), ascending seconds; the seed has no say."""

    arrival_s: Floats

    def __post_init__(self) -> None:
        object.__setattr__(self, "arrival_s", _ascending(self.arrival_s))

    def counts(self, seed: np.random.SeedSequence, edges_s: Floats) -> Ints:
        return np.diff(np.searchsorted(self.arrival_s, edges_s)).astype(np.int64)

    def times(self, seed: np.random.SeedSequence, edges_s: Floats) -> Floats:
        first, last = np.searchsorted(self.arrival_s, [edges_s[0], edges_s[-1]])
        return self.arrival_s[first:last]


def device_seeds(devices: int, seed: int, first: int = 0) -> list[np.random.SeedSequence]:
    """The seeds of the devices `first` to `first + devices`: each has its own, however they are shared out."""
    return [np.random.SeedSequence(seed, spawn_key=(device,)) for device in range(first, first + devices)]


def edges(duration_s: float, step_s: float, start_s: float = 0.0) -> Floats:
    """Edges (T+1,) of steps of `step_s` seconds. Raises ConfigError unless whole steps fill the duration."""
    steps = round(duration_s / step_s) if 0 < step_s < math.inf and math.isfinite(duration_s) else 0
    if steps < 1 or not math.isclose(steps * step_s, duration_s):
        raise ConfigError(f"a duration of {duration_s} s is not a number of steps of {step_s} s")
    return start_s + step_s * np.arange(steps + 1, dtype=np.float64)


def device_counts(process: Arrivals, seeds: Sequence[np.random.SeedSequence], edges_s: Floats) -> Ints:
    """Requests of each device in each step, (N, T); `process.times` with a device's seed gives its times."""
    return np.stack([process.counts(seed, edges_s) for seed in seeds])


@dataclass(frozen=True, eq=False)
class Requests:
    """R requests in the order of arrival.

    arrival_s: (R,) float64, ascending. deadline_s: (R,) float64, when the answer is no longer of use, on the same
    scale; inf for never. priority: (R,) int64, 0 is served first. Raises ConfigError that names the field and request.
    """

    arrival_s: Floats
    deadline_s: Floats
    priority: Ints

    def __post_init__(self) -> None:
        object.__setattr__(self, "arrival_s", _ascending(self.arrival_s))
        for name in ("deadline_s", "priority"):
            if np.shape(getattr(self, name)) != self.arrival_s.shape:
                raise ConfigError(f"{name} must have the shape {self.arrival_s.shape}")
        if (late := ~(self.deadline_s >= self.arrival_s)).any():
            raise ConfigError(f"deadline_s[{late.argmax()}] is before its arrival, or not a number")

    def __len__(self) -> int:
        return len(self.arrival_s)

    @classmethod
    def drawn(
        cls,
        arrival_s: ArrayLike,
        seed: np.random.SeedSequence,
        within_s: tuple[float, float] = (math.inf, math.inf),
        shares: Sequence[float] = (1.0,),
    ) -> Requests:
        """Requests at these times with a deadline and a priority drawn for each.

        within_s: the deadline is between these two after the arrival, evenly spread. shares: of each priority from 0
        on, adding up to 1. Raises ConfigError.
        """
        arrivals = _ascending(arrival_s)
        low, high = within_s
        if not 0 <= low <= high or (low < high == math.inf):
            raise ConfigError(
                f"within_s must be two ascending numbers of at least 0, both or none infinite: {within_s}"
            )
        if not (min(shares, default=-1) >= 0 and math.isclose(sum(shares), 1)):
            raise ConfigError(f"shares must be of at least 0 and add up to 1, not {tuple(shares)}")
        rng = _stream(seed, 3)
        within = rng.uniform(low, high, len(arrivals)) if low < high else np.full(len(arrivals), low)
        priority = rng.choice(len(shares), len(arrivals), p=np.array(shares) / sum(shares))
        return cls(arrivals, arrivals + within, priority.astype(np.int64))


@dataclass(frozen=True, eq=False)
class Served:
    """What became of R requests.

    start_s, finish_s: (R,) float64, NaN where dropped. late: (R,) bool, served after the deadline.
    """

    requests: Requests
    start_s: Floats
    finish_s: Floats
    late: NDArray[np.bool_]

    @property
    def dropped(self) -> NDArray[np.bool_]:
        """(R,) bool: never served."""
        return np.isnan(self.start_s)

    @property
    def waiting_s(self) -> Floats:
        """(R,) from arrival to start, NaN where dropped."""
        return self.start_s - self.requests.arrival_s


@dataclass(frozen=True)
class Queue:
    """One server that finishes what it has begun; then the most urgent priority is next, and of that the first come.

    Where it has nothing to do it begins with a request the moment that this arrives.
    drop_late: a request whose deadline passes before its turn is dropped; it is served all the same otherwise.
    capacity: how many may wait besides the one being served; one that finds no room is dropped. None: any number.
    """

    drop_late: bool = True
    capacity: int | None = None

    def __post_init__(self) -> None:
        if self.capacity is not None and self.capacity < 0:
            raise ConfigError(f"capacity must be at least 0, not {self.capacity}")

    def serve(self, requests: Requests, service_s: ArrayLike) -> Served:
        """service_s: (R,) seconds that each request takes, or one number for all. ConfigError if one is below 0."""
        service = np.broadcast_to(np.asarray(service_s, np.float64), requests.arrival_s.shape)
        if not ((service >= 0) & np.isfinite(service)).all():
            raise ConfigError("service_s must be finite and at least 0")
        start_s = np.full(len(requests), math.nan)
        arrival, deadline, lasts = requests.arrival_s.tolist(), requests.deadline_s.tolist(), service.tolist()
        priority = requests.priority.tolist()
        waiting: list[tuple[int, int]] = []
        free_s = -math.inf

        def begin_until(now_s: float) -> None:
            """Begins those waiting for whom the server is free by `now_s`."""
            nonlocal free_s
            while waiting and free_s <= now_s:
                _, chosen = heapq.heappop(waiting)
                if not (self.drop_late and deadline[chosen] < free_s):
                    start_s[chosen] = free_s
                    free_s += lasts[chosen]

        for at, now_s in enumerate(arrival):
            begin_until(now_s)
            if free_s <= now_s:
                start_s[at], free_s = now_s, now_s + lasts[at]
                continue
            if self.drop_late and len(waiting) == self.capacity:
                waiting[:] = [(urgency, other) for urgency, other in waiting if deadline[other] >= now_s]
                heapq.heapify(waiting)
            if len(waiting) != self.capacity:
                heapq.heappush(waiting, (priority[at], at))
        begin_until(math.inf)
        finish_s = start_s + service
        return Served(requests, start_s, finish_s, finish_s > requests.deadline_s)


def _ascending(times_s: ArrayLike) -> Floats:
    times = np.array(times_s, np.float64)
    if times.ndim != 1 or not np.isfinite(times).all():
        raise ConfigError("arrival_s must be finite numbers of shape (requests,)")
    if (back := np.diff(times) < 0).any():
        raise ConfigError(f"arrival_s[{back.argmax() + 1}] is before the one before it")
    times.flags.writeable = False
    return times


def _rate(name: str, value: float) -> None:
    if not 0 <= value < math.inf:
        raise ConfigError(f"{name} must be a finite number of at least 0, not {value}")

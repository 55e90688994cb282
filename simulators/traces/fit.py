"""Fits the generator of days to recorded devices: python -m simulators.traces.fit --data DIR [--out phone.yaml]

DIR holds context_extrasensory and memory_bitbrains (simulators.traces.real). Only the devices to train on are read.

Hazards and rates are multiplicative Poisson models, (events expected) = (exposure) x (base) x (a factor per class),
fitted by iterative proportional scaling: each factor in turn is multiplied by what it misses its observed sum by, with
PRIOR_EVENTS that say 1. Devices differ by a factor too, so that hours are not mistaken for the devices that recorded
then. Times since a change that was not seen are a class of their own, which is left out of the result.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml
from numpy.typing import NDArray

from simulators.traces.days import SCORES, level_class
from simulators.traces.model import (
    ELAPSED_MIN,
    HOURS,
    LEVELS,
    PHONE,
    QUANTILES,
    Charge,
    Drain,
    Hazard,
    Marginal,
    Memory,
    PhoneModel,
    load_model,
)
from simulators.traces.real import machines, phones, screen_on, train_and_held_out
from simulators.traces.trace import Trace

#: Rows further apart than this do not know of each other.
BRIDGE_S = 600.0
#: Up to so long a gap is filled to find changes of state: phones stop recording just when somebody picks them up.
FILL_S = 6 * 3600.0
PRIOR_EVENTS = 1.0
ROUNDS = 60
#: A session that gains less, in percent, says little on the charger.
LONG_SESSION = 10.0
#: Above this, phones charge more slowly.
TAPER_FROM = 0.9
WINDOWS_MIN = (30, 60, 120, 240)

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]


class Steps(NamedTuple):
    """From a row to the next one of the same device, not more than BRIDGE_S later: arrays (steps,)."""

    device: Ints
    minutes: Floats
    hour: Ints
    level: Floats
    gained: Floats
    on: Ints  # 1 on, 0 off, of what changes
    changed: NDArray[np.bool_]
    elapsed: Ints  # class of the time since the last change; len(ELAPSED_MIN) + 1 where it was not seen
    session: Ints  # number of the stretch without a change
    screen: Ints  # 0 off, 1 on, 2 not told

    @property
    def seen(self) -> NDArray[np.bool_]:
        """Whether the change before was seen."""
        return self.elapsed <= len(ELAPSED_MIN)

    def stretches(self, chosen: NDArray[np.bool_]) -> list[Ints]:
        """The chosen rows, stretch by stretch."""
        rows = np.flatnonzero(chosen)
        return np.split(rows, np.flatnonzero(np.diff(self.session[rows])) + 1) if len(rows) else []


def rates(found: Steps, chosen: NDArray[np.bool_], minutes: float) -> list[tuple[int, Floats]]:
    """What was gained per hour in windows of `minutes` that tile each stretch of chosen rows, with the first row."""
    result = []
    for rows in found.stretches(chosen):
        at = np.concatenate([[0], np.cumsum(found.minutes[rows])])
        if at[-1] >= minutes:
            gained = np.concatenate([[0], np.cumsum(found.gained[rows])])
            ends = np.arange(0, at[-1] + 1e-9, minutes)
            result.append((int(rows[0]), np.diff(np.interp(ends, at, gained)) * 60 / minutes))
    return result


def steps(traces: Sequence[Trace], states: Sequence[Floats], fill_s: float = 0.0) -> Steps:
    """What happened between neighbouring rows; states: 1, 0 or NaN for each row of each trace.

    fill_s: gaps up to so long are filled with rows: the state as the nearest row has it, the level on a line.
    """
    parts: list[Steps] = []
    sessions = 0
    for device, (trace, state) in enumerate(zip(traces, states, strict=True)):
        level = trace.columns["state_of_charge"]
        known = ~np.isnan(level) & ~np.isnan(state)
        times_s, level, on = trace.times_s[known], level[known], state[known].astype(np.intp)
        screen = np.nan_to_num(screen_on(trace)[known], nan=2).astype(np.intp)
        times_s, at, nearest = _filled(times_s, fill_s)
        level, on, screen = np.interp(times_s, at, level), on[nearest], screen[nearest]
        lasts_s = np.diff(times_s)
        near, changed = lasts_s <= BRIDGE_S, np.diff(on) != 0
        began = np.concatenate([[True], changed | ~near])
        first = np.maximum.accumulate(np.where(began, np.arange(len(on)), 0))
        seen = np.concatenate([[False], changed & near])[first]
        elapsed = np.searchsorted(ELAPSED_MIN, (times_s - times_s[first]) / 60, side="right")
        elapsed = np.where(seen, elapsed, len(ELAPSED_MIN) + 1)
        parts.append(
            Steps(
                np.full(len(near), device)[near],
                lasts_s[near] / 60,
                (times_s[:-1] // 3600 % HOURS).astype(np.intp)[near],
                level[:-1][near],
                np.diff(level)[near],
                on[:-1][near],
                changed[near],
                elapsed[:-1][near],
                sessions + np.cumsum(began)[:-1][near],
                screen[:-1][near],
            )
        )
        sessions += int(began.sum())
    return Steps(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _filled(times_s: Floats, fill_s: float) -> tuple[Floats, Floats, Ints]:
    """Times with those in gaps, the times given, and for each of the former the nearest of the latter."""
    gaps = [(a, b) for a, b in pairwise(times_s.tolist()) if BRIDGE_S < b - a <= fill_s]
    more = np.sort(np.concatenate([times_s, *(np.arange(a + BRIDGE_S / 2, b, BRIDGE_S / 2) for a, b in gaps)]))
    middles = (times_s[1:] + times_s[:-1]) / 2
    return more, times_s, np.searchsorted(middles, more)


def scaled(
    events: Floats, exposure: Floats, classes: Sequence[tuple[Ints, int]], device: Ints, device_prior: float
) -> tuple[float, list[Floats], Floats, Floats]:
    """Fits a base, a factor for each class of each of `classes`, and one for each device.

    Factors have a mean of 1 over events. Returns them with the events expected of each device without its factor.
    """
    devices = int(device.max()) + 1
    groups = [*classes, (device, devices)]
    priors = [PRIOR_EVENTS] * len(classes) + [device_prior]
    factors = [np.ones(count) for _, count in groups]
    base = events.sum() / exposure.sum()
    for _ in range(ROUNDS):
        for at, (index, count) in enumerate(groups):
            others = np.prod([factors[k][groups[k][0]] for k in range(len(groups)) if k != at], axis=0)
            expected = np.bincount(index, base * exposure * others, count)
            observed = np.bincount(index, events, count)
            factors[at] = np.maximum(observed + priors[at], 1e-9) / (expected + priors[at])
        fitted = base * exposure * np.prod([f[g] for f, (g, _) in zip(factors, groups, strict=True)], axis=0)
        base *= events.sum() / fitted.sum()
    alone = base * exposure * np.prod([f[g] for f, (g, _) in zip(factors[:-1], classes, strict=True)], axis=0)
    return float(base), factors[:-1], factors[-1], np.bincount(device, alone, devices).astype(np.float64)


def hazard(found: Steps, on: int, levels: bool) -> Hazard:
    """The hazard of leaving the state `on`."""
    rows = found.on == on
    events, exposure = found.changed[rows].astype(np.float64), found.minutes[rows]
    level = level_class(found.level[rows]) if levels else np.zeros(rows.sum(), np.intp)
    # The level of a change that has only just been has a class of its own, which goes into the factor of the time.
    level = np.where(found.elapsed[rows] == 0, LEVELS, level)
    classes = [(found.hour[rows], HOURS), (level, LEVELS + 1), (found.elapsed[rows], len(ELAPSED_MIN) + 2)]
    device = np.unique(found.device[rows], return_inverse=True)[1]
    prior = 5.0
    for _ in range(3):
        base, (hour, by_level, elapsed), own, expected = scaled(events, exposure, classes, device, prior)
        observed = np.bincount(device, events, len(own))
        # The spread of observed over expected beyond what Poisson numbers have: gamma with the shape `prior`.
        spread = np.average((observed / expected - 1) ** 2 - 1 / expected, weights=expected / (1 + expected / prior))
        prior = 1 / max(spread, 0.02)
    # A factor without its neighbours' support would be noise: an hour is a mean of three.
    hour = np.convolve(np.concatenate([hour[-1:], hour, hour[:1]]), [0.25, 0.5, 0.25], "valid")
    return Hazard(
        base,
        tuple(hour),
        tuple(by_level[:LEVELS]) if levels else (1.0,) * LEVELS,
        (elapsed[0] * by_level[LEVELS], *elapsed[1 : len(ELAPSED_MIN) + 1]),
        float(np.sqrt(np.log1p(1 / prior))),
    )


def charge(found: Steps) -> Charge:
    rows = (found.on == 1) & ~found.changed
    percent, hours = found.gained[rows] * 100, found.minutes[rows] / 60
    level, device = level_class(found.level[rows]), np.unique(found.device[rows], return_inverse=True)[1]
    base, (taper,), own, _ = scaled(percent, hours, [(level, LEVELS)], device, PRIOR_EVENTS)
    taper /= taper.max()
    # What each session gained below the taper, over the hours that this took; the unbent rate of its charger.
    session = np.unique(found.session[rows], return_inverse=True)[1]
    below = np.where(found.level[rows] < TAPER_FROM, hours, 0)
    bent = np.bincount(session, below * taper[level])
    long = np.bincount(session, below * base * own[device]) >= LONG_SESSION
    rates = np.maximum(np.bincount(session, np.where(below > 0, percent, 0))[long] / bent[long] / 100, 0)
    whose = device[np.unique(session, return_index=True)[1]][long]
    return Charge(marginal([rates[whose == at] for at in np.unique(whose)])[0], tuple(taper))


def drain(found: Steps) -> Drain:
    rows = (found.on == 0) & ~found.changed
    percent, hours, screen = -found.gained[rows] * 100, found.minutes[rows] / 60, found.screen[rows]
    device = np.unique(found.device[rows], return_inverse=True)[1]
    level = level_class(found.level[rows])
    _, (by_screen, by_level), *_ = scaled(percent, hours, [(screen, 3), (level, LEVELS)], device, PRIOR_EVENTS)
    more = by_screen[1] / by_screen[0]
    by_level /= np.average(by_level[level], weights=hours)
    usual = hours[screen == 1].sum() / hours[screen != 2].sum()
    on = np.choose(screen, [0.0, 1.0, usual])
    mean = np.bincount(device, percent) / np.bincount(device, hours) / 100
    off = mean / (1 + (more - 1) * np.bincount(device, on * hours) / np.bincount(device, hours))
    sigma, minutes = noise(found, rows, device, mean)
    return Drain(
        float(np.exp(np.log(off).mean())), float(more), tuple(by_level), float(np.log(off).std(ddof=1)), sigma, minutes
    )


def noise(found: Steps, rows: NDArray[np.bool_], device: Ints, mean_per_hour: Floats) -> tuple[float, float]:
    """Deviation of the logarithm of the drain within a device, and the minutes in which it is forgotten.

    From the variance of the drain over WINDOWS_MIN: of an exponentially forgotten process it falls with the window w as
    v 2 m/w (1 - m/w (1 - exp(-w/m))).
    """
    own = np.zeros(len(found.on), np.intp)
    own[rows] = device
    # Phones that report in steps of more than a percent would add their rounding.
    coarse = [_coarse(found.gained[rows & (own == at)]) for at in range(len(mean_per_hour))]
    variance = []
    for window in WINDOWS_MIN:
        values = []
        for first, gained in rates(found, rows, window):
            mean = mean_per_hour[own[first]]
            if not coarse[own[first]]:
                # A percent of rounding at both ends.
                values.append((gained / mean + 1) ** 2 - 1e-4 / 6 / (mean * window / 60) ** 2)
        variance.append(np.mean(np.concatenate(values)))
    windows, target = np.array(WINDOWS_MIN, np.float64), np.array(variance)
    best = (np.inf, 0.0, 0.0)
    for minutes in np.geomspace(2, 2000, 200):
        shape = 2 * minutes / windows * (1 - minutes / windows * (1 - np.exp(-windows / minutes)))
        size = (shape / target).sum() / ((shape / target) ** 2).sum()
        best = min(best, (float(((size * shape / target - 1) ** 2).sum()), float(size), float(minutes)))
    return float(np.sqrt(np.log1p(best[1]))), best[2]


def _coarse(gained: Floats) -> bool:
    moved = np.abs(gained[np.abs(gained) > 1e-6])
    return len(moved) > 0 and float(moved.min()) > 0.011


def marginal(values: Sequence[Floats]) -> tuple[Marginal, list[Floats]]:
    """The distribution of all devices' values, and each one's normal scores less their mean."""
    quantiles = np.quantile(np.concatenate(values), np.linspace(0, 1, QUANTILES))
    # Steps too small to matter, so that equal quantiles can be turned back into scores.
    rising = quantiles + np.arange(QUANTILES) * 1e-9
    scores = [np.interp(value, rising, SCORES) for value in values]
    means = np.array([score.mean() for score in scores])
    between, within = float(means.var()), float(np.mean([score.var() for score in scores]))
    of_device = [score - mean for score, mean in zip(scores, means, strict=True)]
    return Marginal(tuple(quantiles.tolist()), between / (between + within)), of_device


def memory(traces: Sequence[Trace]) -> Memory:
    distribution, scores = marginal([trace.columns["memory_available"] for trace in traces])
    minutes = np.median(np.diff(traces[0].times_s)) / 60
    lags = np.array([1, 2, 3, 6, 12, 24, 48, 72])
    kept = np.array([np.median([(s[:-lag] * s[lag:]).mean() / s.var() for s in scores]) for lag in lags])
    best = (np.inf, 0.0, 0.0, 0.0)
    for share in np.linspace(0, 1, 21):
        for fast in np.geomspace(2, 60, 20):
            for slow in np.geomspace(60, 3000, 20):
                modelled = share * np.exp(-lags * minutes / fast) + (1 - share) * np.exp(-lags * minutes / slow)
                best = min(best, (float(((modelled - kept) ** 2).sum()), float(share), float(fast), float(slow)))
    return Memory(distribution, *best[1:])


def fit(traces: Sequence[Trace], virtual: Sequence[Trace]) -> PhoneModel:
    """The model of phones, of which some tell when the screen is off, and of the memory of virtual machines."""
    battery = steps(traces, [trace.columns["charging"] for trace in traces])
    screens = [screen_on(trace) for trace in traces]
    filled = steps(traces, [trace.columns["charging"] for trace in traces], FILL_S)
    telling = [at for at, on in enumerate(screens) if not np.isnan(on).all()]
    screen = steps([traces[at] for at in telling], [screens[at] for at in telling], FILL_S)
    bright = [t.columns["screen_brightness"][on == 1] for t, on in zip(traces, screens, strict=True)]
    source = (
        f"{len(traces)} phones of ExtraSensory, of which {sum(len(b) > 0 for b in bright)} tell when the screen is "
        f"off; memory: {len(virtual)} virtual machines of GWA-T-12; devices of the training side only"
    )
    return PhoneModel(
        source,
        plug=hazard(filled, 0, levels=True),
        unplug=hazard(filled, 1, levels=True),
        screen_on=hazard(screen, 0, levels=False),
        screen_off=hazard(screen, 1, levels=False),
        charge=charge(battery),
        drain=drain(battery),
        brightness=marginal([values for values in bright if len(values)])[0],
        memory=memory(virtual),
    )


def plain(data: object) -> object:
    """Numbers of four digits and lists, as YAML has them."""
    if isinstance(data, dict):
        return {name: plain(value) for name, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [plain(value) for value in data]
    return data if isinstance(data, str) else round(float(f"{data:.4g}"), 8)


def main() -> None:
    parser = argparse.ArgumentParser(description="Fits the generator of phones' days to recorded devices.")
    parser.add_argument(
        "--data", type=Path, required=True, metavar="DIR", help="of context_extrasensory, memory_bitbrains"
    )
    parser.add_argument("--out", type=Path, default=PHONE, metavar="FILE.yaml", help="default %(default)s")
    args = parser.parse_args()
    sides = train_and_held_out(phones(args.data)), train_and_held_out(machines(args.data))
    model = fit(sides[0][0], sides[1][0])
    text = yaml.safe_dump(plain(asdict(model)), sort_keys=False, default_flow_style=None, width=116)
    args.out.write_text(
        f"# Written by `python -m simulators.traces.fit`; what it means: simulators/traces/model.py\n{text}"
    )
    load_model(args.out)
    print(f"{args.out}: written")


if __name__ == "__main__":
    main()

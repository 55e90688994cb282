"""Prices from measured rows: regularized non-negative least squares, and what it is worth on rows left out.

A row is one measurement (a network on a system, a step of a network on this machine) with the counts of what was done.
Rows differ in size by orders of magnitude, so residuals are relative to what was measured. Systems of one class of
devices differ in speed (flash, software), so each has a factor of its own, and prices are those of the median system:
prices and factors are fitted in turn until they settle.

Few networks are measured, and some terms occur in one of them only. So `free` terms are fitted as they are, and `extra`
ones are shrunk towards nothing: with `mac` free and `mac_depthwise` extra, a depthwise MAC costs what any other does
until the rows say otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import nnls

TURNS = 50
#: Of RIDGES, the one that the profiles use: the least mean error of networks left out, over all devices.
RIDGE = 0.01
RIDGES = (0.003, 0.01, 0.03, 0.1)


class Row(NamedTuple):
    """counts: of each term; measured: the sum of price x count that is to be found, in any unit. weight: of its
    squared relative error.
    """

    system: str
    model: str
    counts: Mapping[str, float]
    measured: float
    weight: float = 1.0


class Terms(NamedTuple):
    """What is fitted: see the module. The first free term sets the scale of the ridge."""

    free: tuple[str, ...]
    extra: tuple[str, ...] = ()
    ridge: float = RIDGE

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.free, *self.extra)


class Fit(NamedTuple):
    """prices: of a unit of each term on the median system; factors: of each system, in units of that."""

    prices: Mapping[str, float]
    factors: Mapping[str, float]


class Left(NamedTuple):
    """A row that was left out, and what the others made of it. group: what was left out with it."""

    group: str
    system: str
    model: str
    measured: float
    predicted: float

    @property
    def error(self) -> float:
        return self.predicted / self.measured - 1


def dot(prices: Mapping[str, float], counts: Mapping[str, float]) -> float:
    return sum(price * counts.get(term, 0.0) for term, price in prices.items())


def fit(rows: Sequence[Row], terms: Terms) -> Fit:
    counts = np.array([[row.counts.get(term, 0.0) for term in terms.names] for row in rows])
    measured = np.array([row.measured for row in rows])
    weights = np.sqrt([row.weight for row in rows])
    systems = sorted({row.system for row in rows})
    of = np.array([systems.index(row.system) for row in rows])
    shares = counts / measured[:, None]
    # Prices are shrunk in units of what one of the first term takes in the median row.
    unit = terms.ridge * np.median(shares[:, 0]) * np.sqrt(np.square(weights).sum())
    penalty = np.diag([unit * (term in terms.extra) for term in terms.names])
    factors = np.ones(len(systems))
    for _ in range(TURNS if len(systems) > 1 else 1):
        relative = shares * factors[of][:, None] * weights[:, None]
        prices, _ = nnls(np.vstack([relative, penalty]), np.concatenate([weights, np.zeros(len(terms.names))]))
        if len(systems) > 1:
            ratio = np.log(np.maximum(counts @ prices, 1e-300) / measured)
            factors = np.array([np.exp(-ratio[of == i].mean()) for i in range(len(systems))])
            factors /= np.exp(np.median(np.log(factors)))
    return Fit(
        dict(zip(terms.names, map(float, prices), strict=True)), dict(zip(systems, map(float, factors), strict=True))
    )


def leave_out(rows: Sequence[Row], terms: Terms, key: Callable[[Row], str], own: bool) -> list[Left]:
    """Each group of rows, by `key`, with prices from all the others.

    own: a row's system is as fast as its other rows say, if it has any; else all are as fast as the median system.
    """
    found = []
    for group in sorted(set(map(key, rows))):
        others = fit([row for row in rows if key(row) != group], terms)
        for row in (row for row in rows if key(row) == group):
            factor = others.factors.get(row.system, 1.0) if own else 1.0
            found.append(Left(group, row.system, row.model, row.measured, factor * dot(others.prices, row.counts)))
    return found


def summary(left: Sequence[Left]) -> dict[str, object]:
    """Relative errors: median, mean and largest magnitude, and each left-out group's median with its sign."""
    every = np.abs([row.error for row in left])
    groups = sorted({row.group for row in left})
    return {
        "median": round(float(np.median(every)), 4),
        "mean": round(float(every.mean()), 4),
        "largest": round(float(every.max()), 4),
        "rows": len(left),
        "by_group": {g: round(float(np.median([r.error for r in left if r.group == g])), 4) for g in groups},
    }

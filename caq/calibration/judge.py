"""The slice that candidates of a step are judged on, and what becomes of each parameter set.

Samples are held out of all rungs by their ids, for good: none that a rung saw once can come into the slice later.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from caq.calibration.core import UNLABELLED, CoreSet
from caq.calibration.deadline import Deadline
from caq.calibration.guard import Guard, Limits, Verdict
from caq.calibration.sets import ParameterSet, logits
from caq.model import Model
from caq.plan import Parameters

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Share of samples that are held out.
HELD_OUT = 0.3


def held_out(ids: NDArray[np.integer], seed: int) -> NDArray[np.bool_]:
    """Which samples (N,) are never calibrated with, from their ids (N,) and a seed."""
    draws = [np.random.default_rng([seed, abs(i), int(i < 0)]).random() for i in ids.tolist()]
    return np.array(draws) < HELD_OUT


class Judged(NamedTuple):
    """What the guard says of a change, and the sets that it is about: those that the change does not harm."""

    verdict: Verdict
    sets: tuple[ParameterSet, ...]


class Judge:
    """Judges changes of a `coded` model's parameters, on what is held out of a core set and of a batch.

    x: (N, H, W, C) int8, y: (N,) int16, UNLABELLED where there is no label; ids: (N,). confidence: least mean
    probability, over sets and over before and after, of a label that is made up for one without.
    """

    def __init__(
        self,
        model: Model,
        core: CoreSet,
        x: NDArray[np.int8],
        y: NDArray[np.integer],
        *,
        seed: int,
        limits: Limits,
        confidence: float,
    ) -> None:
        own = np.flatnonzero(held_out(core.ids, seed) & (core.y != UNLABELLED))
        new = np.flatnonzero(held_out(core.seen + np.arange(len(x)), seed))
        self._model, self._limits, self._confidence = model, limits, confidence
        self._x = np.concatenate([core.x[own], x[new]]).astype(np.int16)
        self._y = np.concatenate([core.y[own], y[new]])
        self._factory = np.concatenate([core.from_factory[own], np.zeros(len(new), bool)])

    def __call__(
        self, before: Parameters, after: Parameters, sets: tuple[ParameterSet, ...], deadline: Deadline
    ) -> Judged | None:
        """Judges a change of some sets; None if nothing is there to judge it on. Raises OutOfTime."""
        if not len(self._x):
            return None
        old, new = (logits(self._model.replace(parameters=p), sets, self._x, deadline.check) for p in (before, after))
        y = np.where(self._y == UNLABELLED, self._agreed([*old.values(), *new.values()]), self._y)
        known = y != UNLABELLED
        if not known.any():
            return None
        answers = [{name: z.argmax(1)[known] for name, z in found.items()} for found in (old, new)]
        right = [{name: int((a == y[known]).sum()) for name, a in found.items()} for found in answers]
        unharmed = tuple(s for s in sets if right[1][s.name] >= right[0][s.name]) or sets
        guard = Guard(y[known], self._factory[known], self._limits)
        verdict = guard.judge(*({s.name: found[s.name] for s in unharmed} for found in answers))
        return Judged(verdict, unharmed)

    def _agreed(self, outputs: list[NDArray[np.float64]]) -> NDArray[np.int64]:
        """Labels (N,) that outputs (N, K) have the confidence for together; else UNLABELLED."""
        odds = [np.exp(z - z.max(1, keepdims=True)) for z in outputs]
        p = np.mean([o / o.sum(1, keepdims=True) for o in odds], axis=0)
        return np.where(p.max(1) >= self._confidence, p.argmax(1), UNLABELLED)

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


class Slice(NamedTuple):
    """What a step is judged on: x (N, H, W, C) int16; y (N,), UNLABELLED where there is no label; the first `factory`
    samples are the factory's."""

    x: NDArray[np.int16]
    y: NDArray[np.integer]
    factory: int


class Judge:
    """Judges changes of a `coded` model's parameters.

    model: with the factory's parameters. anchor: the factory's core set; what is held out of it is in every slice, and
    no change may make it worse than at the factory's parameters by more than `limits.factory`: the guard compares with
    what was before a change, and many small losses would add up. confidence: least mean probability, over sets and over
    before and after, of a label that is made up for a sample without one.
    """

    def __init__(self, model: Model, anchor: CoreSet, *, seed: int, limits: Limits, confidence: float) -> None:
        held = np.flatnonzero(held_out(anchor.ids, seed) & (anchor.y != UNLABELLED))
        self._model, self._anchor, self._seed = model, anchor.take(held), seed
        self._limits, self._confidence = limits, confidence
        self._origin: dict[str, NDArray[np.bool_]] = {}

    def slice_of(self, core: CoreSet, x: NDArray[np.int8], y: NDArray[np.integer], ids: NDArray[np.integer]) -> Slice:
        """What is held out of the anchor, of the stream's samples in `core`, and of a batch x (N, H, W, C), y (N,)."""
        kept = ~core.from_factory & (core.y != UNLABELLED) & ~np.isin(core.ids, ids)
        old = np.flatnonzero(held_out(core.ids, self._seed) & kept)
        new = np.flatnonzero(held_out(ids, self._seed))
        samples = np.concatenate([self._anchor.x, core.x[old], x[new]]).astype(np.int16)
        return Slice(samples, np.concatenate([self._anchor.y, core.y[old], y[new]]), len(self._anchor))

    def __call__(
        self, on: Slice, before: Parameters, after: Parameters, sets: tuple[ParameterSet, ...], deadline: Deadline
    ) -> Judged | None:
        """Judges a change of some sets; None if nothing is there to judge it on. Raises OutOfTime."""
        if not len(on.x):
            return None
        old, new = (logits(self._model.replace(parameters=p), sets, on.x, deadline.check) for p in (before, after))
        y = np.where(on.y == UNLABELLED, self._agreed([*old.values(), *new.values()]), on.y)
        known = y != UNLABELLED
        if not known.any():
            return None
        answers = [{name: z.argmax(1)[known] for name, z in found.items()} for found in (old, new)]
        right = [{name: a == y[known] for name, a in found.items()} for found in answers]
        unharmed = tuple(s for s in sets if right[1][s.name].sum() >= right[0][s.name].sum()) or sets
        guard = Guard(y[known], np.arange(known.sum()) < on.factory, self._limits)
        verdict = guard.judge(*({s.name: found[s.name] for s in unharmed} for found in answers))
        lost = self._lost(right[1], unharmed, deadline)
        if lost > self._limits.factory + 1e-12:
            reason = (
                f"domain factory is {lost:.4f} below what it was at the factory; {self._limits.factory:g} are allowed"
            )
            verdict = verdict._replace(promote=False, reasons=(*verdict.reasons, reason))
        return Judged(verdict, unharmed)

    def _lost(self, right: dict[str, NDArray[np.bool_]], sets: tuple[ParameterSet, ...], deadline: Deadline) -> float:
        """Share of the anchor's answers, over some sets together, that were right at the factory and are no more."""
        if not len(self._anchor):
            return 0.0
        missing = tuple(s for s in sets if s.name not in self._origin)
        for name, z in logits(self._model, missing, self._anchor.x.astype(np.int16), deadline.check).items():
            self._origin[name] = z.argmax(1) == self._anchor.y
        count = len(self._anchor)
        return float(np.mean([self._origin[s.name].mean() - right[s.name][:count].mean() for s in sets]))

    def _agreed(self, outputs: list[NDArray[np.float64]]) -> NDArray[np.int64]:
        """Labels (N,) that outputs (N, K) have the confidence for together; else UNLABELLED."""
        odds = [np.exp(z - z.max(1, keepdims=True)) for z in outputs]
        p = np.mean([o / o.sum(1, keepdims=True) for o in odds], axis=0)
        return np.where(p.max(1) >= self._confidence, p.argmax(1), UNLABELLED)

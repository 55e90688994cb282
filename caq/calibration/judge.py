"""The slice that candidates of a step are judged on, and what becomes of each parameter set.

A slice of a few dozen samples has hardly a step in accuracy between what helps and what harms, and the factory's own,
which the network was trained on, are lost last. Cross entropy sees both: on 18 samples of the source its growth
correlates with the accuracy that is lost on the source's test at 0.90, the loss of accuracy on those samples at 0.78;
on 60 samples at 0.93 and 0.88 (docs/calibration.md). So a set is calibrated if, on samples that no rung saw,

    forgetting    the cross entropy of the factory's samples is at most `forgetting` above what it was at the factory
    gain          the cross entropy of the stream's labelled samples falls, or rises by no more than the set's `doubt`
                  in standard errors of the difference (falls by as much, where that is below 0); or, where there is no
                  label, the entropy of the answers to the batch falls, which rungs do not aim at

and if the guard's floors of accuracy hold for all such sets together (caq.calibration.guard).

Samples are held out of all rungs by their ids, for good: none that a rung saw once can come into the slice later. Only
the batch's samples without label are all in it, for their entropy.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from caq.calibration.biases import log_softmax
from caq.calibration.core import UNLABELLED, CoreSet
from caq.calibration.deadline import Deadline
from caq.calibration.guard import Guard, Limits, Verdict
from caq.calibration.sets import ParameterSet, logits
from caq.calibration.twins import Calibration
from caq.model import Model

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Share of samples that are held out.
HELD_OUT = 0.3


def held_out(ids: NDArray[np.integer], seed: int) -> NDArray[np.bool_]:
    """Which samples (N,) are never calibrated with, from their ids (N,) and a seed."""
    return np.array([_draw(seed, i) for i in ids.tolist()]) < HELD_OUT


@lru_cache(4096)  # the core set's are asked for in every step
def _draw(seed: int, sample_id: int) -> float:
    return float(np.random.default_rng([seed, abs(sample_id), int(sample_id < 0)]).random())


def losses(z: NDArray[np.float64], y: NDArray[np.integer]) -> NDArray[np.float64]:
    """Cross entropy (N,), in nats, of outputs z (N, K) with labels y (N,)."""
    return -log_softmax(z)[np.arange(len(y)), y]


def cross_entropy(z: NDArray[np.float64], y: NDArray[np.integer]) -> float:
    """Mean cross entropy, in nats, of outputs z (N, K) with labels y (N,)."""
    return float(losses(z, y).mean())


def standard_error(values: NDArray[np.float64]) -> float:
    """Of the mean of values (N,); 0 for a single one."""
    return float(values.std() / np.sqrt(max(len(values) - 1, 1)))


def entropy(z: NDArray[np.float64]) -> float:
    """Mean entropy, in nats, of the answers that outputs z (N, K) are."""
    logs = log_softmax(z)
    return float(-(np.exp(logs) * logs).sum(1).mean())


class Judged(NamedTuple):
    """What the guard says of a change, and the sets that it is about: those that the change helps, if any."""

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

    model: with the factory's parameters. anchor: the factory's core set, of which what is held out is in every slice.
    limits: of the guard.
    """

    def __init__(self, model: Model, anchor: CoreSet, *, seed: int, limits: Limits) -> None:
        held = np.flatnonzero(held_out(anchor.ids, seed) & (anchor.y != UNLABELLED))
        self._model, self._anchor, self._seed = model, anchor.take(held), seed
        self._limits = limits
        self._known: tuple[Slice, list[tuple[Calibration, dict[str, NDArray[np.float64]]]]] | None = None
        self._origin: dict[str, float] = {}

    def slice_of(
        self,
        core: CoreSet,
        x: NDArray[np.int8],
        y: NDArray[np.integer],
        ids: NDArray[np.integer],
        guessed: bool = False,
    ) -> Slice:
        """What is held out of the anchor, of the stream's samples in `core`, and of a batch with these ids (N,).

        x (N, H, W, C), y (N,): the batch, whose samples without label are all in it, unless their labels may be
        guessed: answers that were fitted to themselves are surer in any case.
        """
        of_batch = set(ids.tolist())
        kept = ~core.from_factory & (core.y != UNLABELLED) & [i not in of_batch for i in core.ids.tolist()]
        old = np.flatnonzero(held_out(core.ids, self._seed) & kept)
        new = np.flatnonzero(held_out(ids, self._seed) | ((y == UNLABELLED) & (not guessed)))
        samples = np.concatenate([self._anchor.x, core.x[old], x[new]]).astype(np.int16)
        return Slice(samples, np.concatenate([self._anchor.y, core.y[old], y[new]]), len(self._anchor))

    def __call__(
        self,
        on: Slice,
        before: Calibration,
        after: Calibration,
        sets: tuple[ParameterSet, ...],
        forgetting: float,
        doubt: Mapping[ParameterSet, float],
        deadline: Deadline,
    ) -> Judged | None:
        """Judges a change of some sets; None if nothing is there to judge it on. Raises OutOfTime.

        forgetting, in nats, and doubt: see the module.
        """
        known, stream = on.y != UNLABELLED, np.arange(len(on.x)) >= on.factory
        if not known.any() or not stream.any():
            return None
        old = self._answers(on, before, sets, deadline)
        new = self._answers(on, after, sets, deadline)
        labelled, reasons, helped = stream & known, [], []
        for which in sets:
            a, b = old[which.name], new[which.name]
            if labelled.any():
                falls = losses(a[labelled], on.y[labelled]) - losses(b[labelled], on.y[labelled])
                gain, chance = float(falls.mean()), doubt.get(which, 0.0) * standard_error(falls)
            else:
                gain, chance = entropy(a[stream]) - entropy(b[stream]), 0.0
            lost = self._forgotten(which, b[: on.factory], deadline)
            if gain + chance > 0 and lost <= forgetting:
                helped.append(which)
                continue
            what = "cross entropy" if labelled.any() else "entropy"
            reasons.append(
                f"{which.name}: {what} of the stream falls by {gain:.4f}, cross entropy of the factory's samples is "
                f"{lost:.4f} above that at the factory; {forgetting:g} are allowed"
            )
        judged = tuple(helped) or sets
        guard = Guard(on.y[known], np.arange(known.sum()) < on.factory, self._limits)
        verdict = guard.judge(*({s.name: z[s.name].argmax(1)[known] for s in judged} for z in (old, new)))
        if not helped:
            verdict = verdict._replace(promote=False, reasons=(*reasons, *verdict.reasons))
        return Judged(verdict, judged)

    def _answers(
        self, on: Slice, at: Calibration, sets: tuple[ParameterSet, ...], deadline: Deadline
    ) -> dict[str, NDArray[np.float64]]:
        """Outputs of a calibration, which others of the step may be compared with too."""
        if self._known is None or self._known[0] is not on:
            self._known = (on, [])
        tried = self._known[1]
        known = next((answers for calibration, answers in tried if calibration.is_same(at)), None)
        if known is None:
            known = {}
            tried.append((at, known))
        missing = tuple(which for which in sets if which.name not in known)
        known |= logits(at.of(self._model), missing, on.x, deadline.check) if missing else {}
        return {which.name: known[which.name] for which in sets}

    def _forgotten(self, which: ParameterSet, z: NDArray[np.float64], deadline: Deadline) -> float:
        """How far the cross entropy of the anchor, whose outputs are z, is above that at the factory's parameters."""
        if not len(self._anchor):
            return 0.0
        if which.name not in self._origin:
            x = self._anchor.x.astype(np.int16)
            found = logits(self._model, (which,), x, deadline.check)[which.name]
            self._origin[which.name] = cross_entropy(found, self._anchor.y)
        return cross_entropy(z, self._anchor.y) - self._origin[which.name]

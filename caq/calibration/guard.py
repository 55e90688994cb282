"""The guard: whether a candidate calibration may take the place of the one in force.

    work, slice_ = hold_out(core)                       # the candidate is made with `work` alone
    guard = Guard(slice_.y, slice_.from_factory)
    verdict = guard.judge(before, after)                # labels that both predict at each point, for slice_.x
    folder.mark_good() if verdict.promote else folder.reject()
    log.append(verdict.record("norms", nbytes=1024, ms=310.0))

A candidate is promoted if it helps on the whole, and costs no operating point, no class and not the factory's own
samples more than `Limits` allow. Where something is refused, the verdict says what, with figures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from caq.calibration.core import UNLABELLED, CoreSet
from caq.errors import ConfigError, DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: What a mapping of operating points to the labels that they predict, (N,) integers, looks like.
Predictions = Mapping[str, "NDArray[np.integer]"]


@dataclass(frozen=True)
class Limits:
    """What a candidate has to gain, and may cost; shares of answers, 0..1."""

    #: Least gain of accuracy, mean over operating points: more than nothing, unless a change is wanted anyway; None
    #: asks for none, also not for no loss.
    gain: float | None = 1e-9
    #: Largest loss of accuracy of any operating point.
    point: float = 0.01
    #: Largest loss of any class, over all operating points together: cores hold few samples of a class.
    class_: float = 0.1
    #: Largest loss on samples of the factory, over all operating points together: what must not be forgotten.
    factory: float = 0.02

    def __post_init__(self) -> None:
        if not all(0 <= v <= 1 for v in (self.gain or 0.0, self.point, self.class_, self.factory)):
            raise ConfigError(f"{self}: limits are shares of 0 to 1")


class Scores(NamedTuple):
    """Accuracy, 0..1: at each operating point; of each class and of the factory's samples over all points together.

    factory: None without such samples.
    """

    points: dict[str, float]
    classes: dict[int, float]
    factory: float | None


class Verdict(NamedTuple):
    """A decision, its grounds, and on how many samples the scores are."""

    promote: bool
    reasons: tuple[str, ...]
    samples: int
    before: Scores
    after: Scores

    def record(self, what: str, *, nbytes: int, ms: float) -> dict[str, Any]:
        """For an audit log, as JSON has it. what: what was changed; nbytes: of the change; ms: that it took."""
        return {
            "what": what,
            "promoted": self.promote,
            "reasons": list(self.reasons),
            "samples": self.samples,
            "accuracy_before": {name: round(score, 4) for name, score in self.before.points.items()},
            "accuracy_after": {name: round(score, 4) for name, score in self.after.points.items()},
            "bytes": nbytes,
            "ms": round(ms, 3),
        }


class Guard:
    """Judges candidates on samples that they were not made with.

    y: (N,) labels, none missing; from_factory: (N,) bool. Raises DataError on other arrays, or no sample.
    """

    def __init__(
        self,
        y: NDArray[np.integer],
        from_factory: NDArray[np.bool_],
        limits: Limits = Limits(),
    ) -> None:
        if y.ndim != 1 or not len(y) or y.shape != from_factory.shape or (y == UNLABELLED).any():
            raise DataError(f"a label for each of 1 sample or more is expected, not {y.shape} and {from_factory.shape}")
        self._y, self._factory, self.limits = y, from_factory, limits

    def judge(self, before: Predictions, after: Predictions) -> Verdict:
        """Compares the calibration in force with a candidate at the same operating points.

        Raises DataError if the points differ, or predictions are not (N,).
        """
        if not before or before.keys() != after.keys():
            raise DataError(f"predictions at the same points are expected, not {list(before)} and {list(after)}")
        old, new = self._scores(before), self._scores(after)
        limits, reasons = self.limits, []
        gain = float(np.mean(list(new.points.values())) - np.mean(list(old.points.values())))
        if limits.gain is not None and gain < limits.gain:
            reasons.append(f"accuracy changes by {gain:+.4f}, {limits.gain:g} are asked for")
        reasons += _losses("point", old.points, new.points, limits.point)
        reasons += _losses("class", old.classes, new.classes, limits.class_)
        if old.factory is not None and new.factory is not None:
            reasons += _losses("domain", {"factory": old.factory}, {"factory": new.factory}, limits.factory)
        return Verdict(not reasons, tuple(reasons), len(self._y), old, new)

    def _scores(self, predictions: Predictions) -> Scores:
        for point, labels in predictions.items():
            if np.shape(labels) != self._y.shape:
                raise DataError(f"{point}: {self._y.shape} predictions are expected, not {np.shape(labels)}")
        right = np.stack([np.asarray(labels) == self._y for labels in predictions.values()])
        return Scores(
            dict(zip(predictions, right.mean(axis=1).tolist(), strict=True)),
            {int(c): float(right[:, self._y == c].mean()) for c in sorted(set(self._y.tolist()))},
            float(right[:, self._factory].mean()) if self._factory.any() else None,
        )


def hold_out(core: CoreSet, share: float = 0.3, seed: int = 0) -> tuple[CoreSet, CoreSet]:
    """A core set in two: samples to calibrate with, and the guard's slice, which has labels.

    The slice has `share` of the samples of each class, rounded, and at least one where the class has two. Which ones is
    drawn from `seed` and their ids, so that they stay in it when others of the core set are exchanged. Raises
    ConfigError if no sample could be held out.
    """
    if not 0 < share < 1:
        raise ConfigError(f"share {share}: a share between 0 and 1 is expected")
    rank = np.array([np.random.default_rng([seed, abs(i), int(i < 0)]).random() for i in core.ids.tolist()])
    held = np.zeros(len(core), bool)
    for label in sorted(set(core.y[core.y != UNLABELLED].tolist())):
        members = np.flatnonzero(core.y == label)
        count = max(round(share * len(members)), int(len(members) > 1))
        held[members[np.argsort(rank[members])][:count]] = True
    if not held.any() or held.all():
        raise ConfigError(
            f"{len(core)} samples with {(core.y != UNLABELLED).sum()} labels are too few to hold some out"
        )
    return core.take(np.flatnonzero(~held)), core.take(np.flatnonzero(held))


def _losses(kind: str, before: Mapping[Any, float], after: Mapping[Any, float], limit: float) -> list[str]:
    lost = {key: before[key] - after[key] for key in before if before[key] - after[key] > limit + 1e-12}
    return [
        f"{kind} {key} loses {loss:.4f}, from {before[key]:.4f} to {after[key]:.4f}; {limit:g} are allowed"
        for key, loss in lost.items()
    ]

"""The core set: few samples that keep the distribution of quantization misses of all the training data.

A sample's *miss* at a width is a step of training after which the model of that width gets it wrong where it had it
right before (QCore, PVLDB 17(11):2708-2721, 2024); a sample's misses are the sum over widths. Easy samples have none,
samples near a boundary many. A core set that is drawn level of misses by level, each in proportion to its share of the
data, has easy and hard samples as the data has (`pmf`); `count` draws by misses alone, so hard samples only.

    counter = MissCounter(len(x), widths)                            # while training
    counter.update(correct)                                          # (W, N) bool, every few epochs
    core = CoreSet.select(x, y, counter.misses(), widths, size=20, seed=0)
    core = core.update(batch, labels, misses, rng)                   # on the device, batch by batch

Samples are kept as integers, in whatever dtype they come: the network's input codes, or the data's own. N is a number
of samples, W of widths.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from caq.errors import ConfigError, DataError, StateFormatError
from caq.quant import check_widths
from caq.sections import StoredCore

if TYPE_CHECKING:
    from numpy.typing import NDArray

METHODS = ("pmf", "count")
#: The label of a sample that has none, or none yet.
UNLABELLED = -1
SAMPLE_DTYPES = ("int8", "uint8", "int16")
#: Misses are kept in a byte; a training logs far fewer.
MAX_MISSES = 255
#: label, misses at a width, id
_LABEL, _MISS, _ID = np.dtype(np.int16), np.dtype(np.uint8), np.dtype(np.int64)


class MissCounter:
    """Counts misses of N samples at W widths from logs of which were right, in (W, N) int32 and two bits each."""

    def __init__(self, samples: int, widths: tuple[int, ...]) -> None:
        shape = (len(check_widths(tuple(widths))), samples)
        self._misses = np.zeros(shape, np.int32)
        self._before, self._ever = np.zeros(shape, bool), np.zeros(shape, bool)

    def update(self, correct: NDArray[np.bool_]) -> None:
        """Takes one log: correct (W, N) bool, widths ascending. Raises DataError on another shape or dtype."""
        correct = np.asarray(correct)
        if correct.shape != self._misses.shape or correct.dtype != bool:
            wanted = self._misses.shape
            raise DataError(
                f"correct: {wanted} bool (widths, samples) are expected, not {correct.shape} {correct.dtype}"
            )
        self._misses += self._before & ~correct
        self._ever |= correct
        self._before = correct.copy()

    def misses(self, penalty: int | None = None) -> NDArray[np.uint8]:
        """Misses (W, N) uint8, at most 255.

        A sample that a width never got right has no misses to count. It gets `penalty`, but at most as many as the most
        missed sample that this width did learn: so it ranks with the hardest, and wrong labels do not take over the
        core. Without `penalty` it gets just that many. Raises ConfigError on a negative penalty.
        """
        if penalty is not None and penalty < 0:
            raise ConfigError(f"penalty: 0 or more misses are possible, not {penalty}")
        most = self._misses.max(axis=1, initial=0, keepdims=True)
        never = most if penalty is None else np.minimum(most, penalty)
        return np.minimum(np.where(self._ever, self._misses, never), MAX_MISSES).astype(np.uint8)

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """What was counted so far, so that counting can go on with `from_arrays`."""
        return {"misses": self._misses, "before": self._before, "ever": self._ever}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> MissCounter:
        """What `to_arrays` gave. Raises StateFormatError on anything else."""
        counter = cls.__new__(cls)
        try:
            counter._misses, counter._before, counter._ever = (arrays[k].copy() for k in ("misses", "before", "ever"))
        except KeyError as e:
            raise StateFormatError(f"misses: {e} is missing") from None
        shapes = {counter._misses.shape, counter._before.shape, counter._ever.shape}
        dtypes = (counter._misses.dtype, counter._before.dtype, counter._ever.dtype)
        if len(shapes) > 1 or counter._misses.ndim != 2 or dtypes != (np.int32, bool, bool):
            raise StateFormatError(
                f"misses: one shape (W, N), int32 and bool twice are expected, not {shapes} {dtypes}"
            )
        return counter


def largest_remainder(mass: NDArray[np.floating], room: NDArray[np.integer], seats: int) -> NDArray[np.int64]:
    """Whole numbers (K,) in proportion to `mass` (K,), at most `room` (K,), that sum to `seats` (Hamilton's method).

    What a full part cannot take is shared among the others in proportion; parts without mass are filled last. Raises
    ConfigError if there is not room for all.
    """
    if seats > room.sum():
        raise ConfigError(f"{seats} samples are asked for, and there are {room.sum()}")
    target, open_ = np.zeros(len(room)), room > 0
    while open_.any():
        weight = np.where(open_, mass, 0.0)
        weight = weight if weight.any() else np.where(open_, room, 0.0)
        share = (seats - target[~open_].sum()) * weight / weight.sum()
        full = open_ & (share >= room)
        target = np.where(full, room, np.where(open_, 0.0, target))
        if not full.any():
            target = np.where(open_, share, target)
            break
        open_ &= ~full
    given = np.floor(target + 1e-9).astype(np.int64)
    order = np.argsort(given - target, kind="stable")
    given[order[: seats - given.sum()]] += 1
    return given


def sample(
    misses: NDArray[np.integer],
    size: int,
    rng: np.random.Generator,
    method: str = "pmf",
    weights: NDArray[np.floating] | None = None,
) -> NDArray[np.int64]:
    """Indices (size,) of a sample without replacement, ascending.

    misses: (N,) integers, of all widths together. method: "pmf" fixes how many come from each level of misses, by
    largest remainder of the levels' weights, and draws inside a level; "count" draws by misses. weights: (N,), how many
    samples each stands for; one each if left out. Raises ConfigError on other methods, and on a size that N does not
    give.
    """
    if method not in METHODS or not 0 <= size <= len(misses):
        raise ConfigError(f"{size} of {len(misses)} samples by {method!r}: methods are {', '.join(METHODS)}")
    weights = np.ones(len(misses)) if weights is None else weights
    if method == "count":
        return np.sort(_drawn(weights * misses, size, rng))
    levels, level = np.unique(misses, return_inverse=True)
    mass = np.bincount(level, weights, len(levels)).astype(np.float64)
    quota = largest_remainder(mass, np.bincount(level, minlength=len(levels)), size)
    chosen = []
    for k, seats in enumerate(quota):
        members = np.flatnonzero(level == k)
        chosen.append(members[_drawn(weights[members], int(seats), rng)])
    return np.sort(np.concatenate(chosen)) if chosen else np.zeros(0, np.int64)


def _drawn(weights: NDArray[np.floating], size: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Indices drawn without replacement with these weights, 0 only when all others are out.

    The largest of log(u) / w (Efraimidis and Spirakis, "Weighted random sampling with a reservoir", 2006).
    """
    u = 1.0 - rng.random(len(weights))
    with np.errstate(divide="ignore", invalid="ignore"):
        key = np.where(weights > 0, np.log(u) / weights, -np.inf)
    return np.lexsort((u, -key))[:size]


def cover(
    chosen: NDArray[np.int64],
    y: NDArray[np.integer],
    misses: NDArray[np.integer],
    rng: np.random.Generator,
    per_class: int = 1,
    stays: NDArray[np.bool_] | None = None,
) -> NDArray[np.int64]:
    """`chosen` (size,) with samples exchanged until each class of y (N,) has `per_class`, or all that there are.

    Each exchange is for a sample as near in misses as there is, so the distribution is kept where it can be. Samples
    without a label are no class. stays: (N,) bool, samples that leave only if no other can. Raises ConfigError if
    `chosen` is too few for every class.
    """
    classes, counts = np.unique(y[y != UNLABELLED], return_counts=True)
    wanted = dict(zip(classes.tolist(), np.minimum(counts, per_class).tolist(), strict=True))
    if sum(wanted.values()) > len(chosen):
        raise ConfigError(f"size {len(chosen)}: {len(classes)} classes need at least {sum(wanted.values())} samples")
    inside = np.zeros(len(y), bool)
    inside[chosen] = True
    levels = misses.astype(np.int64)
    for label in rng.permutation(classes).tolist():
        for _ in range(wanted[label] - int((y[inside] == label).sum())):
            present, which, count = np.unique(y[inside], return_inverse=True, return_counts=True)
            spare = count > [wanted.get(c, 0) for c in present.tolist()]
            leaving, coming = np.flatnonzero(inside)[spare[which]], np.flatnonzero(~inside & (y == label))
            if stays is not None and not stays[leaving].all():
                leaving = leaving[~stays[leaving]]
            gap = np.abs(levels[leaving][:, None] - sorted(set(levels[coming].tolist()))).min(axis=1)
            out = rng.choice(leaving[gap == gap.min()])
            gap = np.abs(levels[coming] - levels[out])
            inside[out], inside[rng.choice(coming[gap == gap.min()])] = False, True
    return np.flatnonzero(inside)


@dataclass(frozen=True, eq=False)
class CoreSet:
    """Samples that calibration works with, their labels and their misses; immutable.

    x: (N, ...) int8, uint8 or int16; y: (N,) int16, UNLABELLED where there is no label; misses: (N, W) uint8; widths:
    ascending; ids: (N,) int64, negative for samples of the factory, else the number of the sample in the stream; seen:
    samples of the stream that were offered so far.
    """

    x: NDArray[Any]
    y: NDArray[np.int16]
    misses: NDArray[np.uint8]
    widths: tuple[int, ...]
    ids: NDArray[np.int64]
    seen: int = 0

    @classmethod
    def select(
        cls,
        x: NDArray[Any],
        y: NDArray[np.integer],
        misses: NDArray[np.integer],
        widths: tuple[int, ...],
        *,
        size: int | None = None,
        max_bytes: int | None = None,
        method: str = "pmf",
        per_class: int = 1,
        seed: int = 0,
    ) -> CoreSet:
        """The core set of training data x (N, ...), y (N,), with misses (W, N); the same arguments give the same set.

        size: samples to keep; max_bytes: a budget for `nbytes` instead, or as well. per_class: samples that each class
        has at least; 0 asks for none. Raises DataError on arrays that do not fit each other, ConfigError on a size that
        there is not, or that cannot cover the classes.
        """
        x, y, by_sample = _checked(x, y, misses, widths)
        each = bytes_per_sample(x.shape[1:], x.dtype, len(widths))
        if max_bytes is not None:
            size = min(max_bytes // each, len(x) if size is None else size)
        if size is None or not 0 < size <= len(x):
            raise ConfigError(
                f"size {size}, max_bytes {max_bytes}: 1 to {len(x)} samples are possible, of {each} bytes"
            )
        rng = np.random.default_rng(seed)
        total = by_sample.sum(1)
        chosen = sample(total, size, rng, method)
        if per_class:
            chosen = cover(chosen, y, total, rng, per_class)
        return cls(x[chosen], y[chosen], by_sample[chosen], widths, -1 - chosen)

    def __len__(self) -> int:
        return len(self.x)

    @property
    def nbytes(self) -> int:
        """Bytes of all samples with their labels, misses and ids."""
        return len(self) * bytes_per_sample(self.x.shape[1:], self.x.dtype, len(self.widths))

    @property
    def from_factory(self) -> NDArray[np.bool_]:
        """(N,) bool: which samples were there before the stream."""
        return self.ids < 0

    def take(self, indices: NDArray[np.integer]) -> CoreSet:
        """Some of its samples."""
        x, y, misses, ids = (a[indices] for a in (self.x, self.y, self.misses, self.ids))
        return replace(self, x=x, y=y, misses=misses, ids=ids)

    def update(
        self,
        x: NDArray[Any],
        y: NDArray[np.integer] | None,
        misses: NDArray[np.integer],
        rng: np.random.Generator,
        *,
        own_misses: NDArray[np.integer] | None = None,
        keep: float = 0.5,
        method: str = "pmf",
        per_class: int = 1,
    ) -> CoreSet:
        """A core set of the same size, from these samples and a batch of the stream pooled.

        x: (B, ...); y: (B,), or None if labels are late or never come; misses: (W, B), now, and own_misses (W, N), of
        the core's own, if they were counted anew; those of samples without a label are taken as 0.

        So that nothing is forgotten, at least the share `keep` of the set stays with samples of the factory, and the
        rest stands for the whole stream: a sample kept from it weighs as many as it stands for, one of the batch one,
        as in a reservoir. Within both, misses decide as in `sample`; classes
        are covered even where that takes a sample of the factory. Raises DataError and ConfigError as `select`.
        """
        if not 0 <= keep <= 1:
            raise ConfigError(f"keep: a share of 0 to 1 is expected, not {keep}")
        y = np.full(len(x), UNLABELLED, np.int16) if y is None else y
        x, y, batch = _checked(x, y, misses, self.widths)
        batch[y == UNLABELLED] = 0
        if x.shape[1:] != self.x.shape[1:] or x.dtype != self.x.dtype:
            raise DataError(f"x: samples of {self.x.shape[1:]} {self.x.dtype} are kept, not {x.shape[1:]} {x.dtype}")
        own = self.misses if own_misses is None else _checked(self.x, self.y, own_misses, self.widths)[2]
        ids = np.concatenate([self.ids, self.seen + np.arange(len(x))])
        pool_y, pool_misses = np.concatenate([self.y, y]), np.concatenate([own, batch])
        total = pool_misses.sum(1)
        streamed, factory = np.flatnonzero(ids >= 0), np.flatnonzero(ids < 0)
        stays = max(min(len(factory), int(np.ceil(keep * len(self)))), len(self) - len(streamed))
        # What was kept of the stream stands for all of it that was seen.
        before = max(int((~self.from_factory).sum()), 1)
        weights = np.where(streamed < len(self), self.seen / before, 1.0)
        parts = [
            factory[sample(total[factory], stays, rng, method)],
            streamed[sample(total[streamed], len(self) - stays, rng, method, weights)],
        ]
        chosen = np.concatenate(parts)
        if per_class:
            chosen = cover(chosen, pool_y, total, rng, per_class, stays=ids < 0)
        pool = np.concatenate([self.x, x])
        return CoreSet(pool[chosen], pool_y[chosen], pool_misses[chosen], self.widths, ids[chosen], self.seen + len(x))

    def with_labels(self, ids: NDArray[np.integer], y: NDArray[np.integer]) -> CoreSet:
        """This set with labels that came late, y (K,) of samples `ids` (K,); those that were not kept are passed over.

        Raises DataError on labels that are none.
        """
        ids, y = np.asarray(ids), np.asarray(y)
        if ids.shape != y.shape or ids.ndim != 1 or not _are_labels(y):
            raise DataError(
                f"y: a label of 0 to 32767 for each of {ids.shape} ids is expected, not {y.dtype} {y.shape}"
            )
        known = dict(zip(ids.tolist(), y.tolist(), strict=True))
        labels = [known.get(i, old) for i, old in zip(self.ids.tolist(), self.y.tolist(), strict=True)]
        return replace(self, y=np.array(labels, np.int16))

    def stored(self) -> StoredCore:
        """For `Model.core`. Raises DataError on a sample without a label, and on other codes than int8."""
        if self.x.dtype != np.int8 or (self.y == UNLABELLED).any():
            raise DataError("core: an artifact keeps int8 input codes, each sample with its label")
        return StoredCore(self.x, self.y, self.misses)

    @classmethod
    def from_stored(cls, core: StoredCore, widths: tuple[int, ...]) -> CoreSet:
        """What an artifact kept, as samples of the factory; widths: of its graph."""
        return cls(core.x, core.y, core.misses, widths, -1 - np.arange(len(core.x)))

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """For `caq.calibration.state`."""
        return {
            "x": self.x,
            "y": self.y,
            "misses": self.misses,
            "widths": np.array(self.widths, np.uint8),
            "ids": self.ids,
            "seen": np.array([self.seen], np.int64),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> CoreSet:
        """What `to_arrays` gave. Raises StateFormatError on anything else."""
        try:
            x, y, misses, widths, ids, seen = (arrays[k] for k in ("x", "y", "misses", "widths", "ids", "seen"))
            if misses.dtype != _MISS or y.dtype != _LABEL or ids.dtype != _ID or seen.dtype != np.int64:
                raise DataError("y is int16, misses are uint8, ids and seen int64")
            bits = tuple(int(w) for w in widths)
            if check_widths(bits) != bits or ids.shape != y.shape or seen.shape != (1,):
                raise DataError("widths, ids or seen do not fit")
            if seen[0] < 0 or (ids >= seen[0]).any() or len(set(ids.tolist())) != len(ids):
                raise DataError("ids repeat, or are of samples that were not seen")
            _checked(x, y, misses.T, bits)
        except (KeyError, ValueError, TypeError) as e:
            raise StateFormatError(f"core set: {e}") from None
        return cls(x, y, misses, bits, ids, int(seen[0]))


def bytes_per_sample(shape: tuple[int, ...], dtype: np.dtype[Any], widths: int) -> int:
    """What one sample costs in a core set, with its label, misses and id."""
    return int(np.prod(shape)) * dtype.itemsize + _LABEL.itemsize + widths * _MISS.itemsize + _ID.itemsize


def _are_labels(y: NDArray[Any]) -> bool:
    return y.dtype.kind in "iu" and not ((y < UNLABELLED) | (y >= 2**15)).any()


def _checked(
    x: NDArray[Any], y: NDArray[Any], misses: NDArray[Any], widths: tuple[int, ...]
) -> tuple[NDArray[Any], NDArray[np.int16], NDArray[np.uint8]]:
    """x, labels, and misses (N, W), or DataError."""
    x, y, misses = np.asarray(x), np.asarray(y), np.asarray(misses)
    if x.dtype.name not in SAMPLE_DTYPES or x.ndim < 2:
        raise DataError(f"x: samples (N, ...) of {', '.join(SAMPLE_DTYPES)} are kept, not {x.shape} {x.dtype}")
    if y.shape != (len(x),) or not _are_labels(y):
        raise DataError(f"y: {len(x)} labels of 0 to 32767, or {UNLABELLED}, are expected, not {y.shape} {y.dtype}")
    if misses.shape != (len(widths), len(x)) or misses.dtype.kind not in "iu":
        raise DataError(
            f"misses: {(len(widths), len(x))} counts (W, N) are expected, not {misses.shape} {misses.dtype}"
        )
    if ((misses < 0) | (misses > MAX_MISSES)).any():
        raise DataError(f"misses: counts of 0 to {MAX_MISSES} are expected")
    return x, y.astype(np.int16), np.ascontiguousarray(misses.T, np.uint8)

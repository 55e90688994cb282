"""The calibrator: keeps every width of a model accurate as its data drift, on the device and without back-propagation.

    core = make_core(model, x, y, size=60)                          # once, from samples of the source
    with Calibrator("x.caq", core, state_dir="calibration") as calibrator:
        calibrator.learn_one(x, y)                                  # or partial_fit(X, Y); labels may be absent
        engine.adopt(calibrator.model.parameters, calibrator.gates) # one reference is swapped

A step takes a batch of the stream up a ladder of rungs, the cheap one first:

    statistics   caq.calibration.statistics: batch norm re-estimated; needs no labels
    biases       caq.calibration.biases: of the classes, from labels
    head         caq.calibration.head: the classifier, from labels; biases and statistics are not asked then
    domain       caq.calibration.domains: a twin for each set, and a gate that says which inputs take it
    flips        caq.calibration.flips: of single bits of weights, from labels, if `config.rungs` has it

Each proposes parameters for every parameter set: those of the widths, and those of operating points that have their
own. A set goes the whole way there, or half of it, or a quarter, whichever helps first on the guard's slice
(caq.calibration.judge). What is refused is dropped; what rungs know of the stream stays, so that the next batch can do
better.

The guard's slice is samples of the factory's core set, of the stream's in the core set and of the batch, that no rung
ever sees: which ones is drawn from their ids. Where the stream has no labels, its part is judged by the entropy of the
answers.

A label may come late: `label` takes it by the id of its sample, as long as the sample waits for a step, is in the
waiting room (caq.calibration.waiting) or in the core set.

Nothing is changed in place: a step ends by swapping one reference to an immutable `Learnt`. It is durable before that,
if there is a state folder. The same artifact, core set, configuration and stream give the same bits, also with restarts
in between; but a budget of time depends on the machine.
"""

from __future__ import annotations

import time
import zlib
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from caq.artifact import load
from caq.calibration.config import CalibratorConfig
from caq.calibration.core import UNLABELLED, CoreSet
from caq.calibration.deadline import Deadline, OutOfTime
from caq.calibration.head import have_features
from caq.calibration.judge import Judge, held_out
from caq.calibration.learnt import Learnt, check_core, known_labels
from caq.calibration.rungs import Ladder
from caq.calibration.sets import coded, logits, parameter_sets
from caq.calibration.slots import StateFolder
from caq.calibration.state import State, artifact_checksum, owned, random_from_array, random_to_array, to_bytes
from caq.calibration.watch import Watch
from caq.conditional import ConditionalGate
from caq.errors import CaqError, ConfigError, DataError, StateMismatchError, UnsupportedError
from caq.model import Model

if TYPE_CHECKING:
    from os import PathLike

    from numpy.typing import ArrayLike, NDArray


#: Records of the audit that are kept in memory.
HISTORY = 256


class StepResult(NamedTuple):
    """What a step did: a record for each change that was judged, or that time ended; and the milliseconds it took."""

    records: tuple[dict[str, Any], ...]
    promoted: bool
    ms: float


class Calibrator:
    """Calibrates a model: see the module.

    source: path of a `.caq` file, which is never written, or a `Model`, then without a state folder. core: made by
    `make_core`; what is in the state folder goes before it. state_dir: see `caq.calibration.slots.StateFolder`. record:
    called with each record of the audit, as it comes; `history` has the last HISTORY of this process.

    model: the model with the parameters in force; another object after each promotion. problems: why states in the
    folder were passed over. too_late: labels that came when their sample was gone. For one thread at a time; others may
    read `model` at any moment.

    Raises UnsupportedError on a model that does not classify, StateFormatError on a core set that does not fit it,
    DataError on one without factory samples or labels, ConfigError on a state that could grow beyond max_bytes,
    StateMismatchError on a state that was learnt with other samples of the factory, and what StateFolder raises.
    """

    def __init__(
        self,
        source: str | PathLike[str] | Model,
        core: CoreSet,
        state_dir: str | PathLike[str] | None = None,
        config: CalibratorConfig = CalibratorConfig(),  # noqa: B008  # it is immutable
        *,
        record: Callable[[dict[str, Any]], None] = lambda entry: None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if isinstance(source, Model) and state_dir is not None:
            raise ConfigError("state_dir: a state belongs to a file; give the artifact's path")
        self._factory = source if isinstance(source, Model) else load(source)
        if self._factory.task != "classify":
            raise UnsupportedError(f"a model that is to {self._factory.task}: calibration needs classes")
        gates = tuple(point.gate for point in self._factory.points if point.gate is not None)
        if "flips" in config.rungs and gates:
            raise UnsupportedError("rungs: branches of conditional points share their first layers; leave flips out")
        self._sets = parameter_sets(self._factory)
        check_core(core, self._factory)
        if not core.from_factory.any() or not (core.y != UNLABELLED).any():
            raise DataError("core: labelled samples of the factory are expected; make_core takes them")
        self.config, self._record, self.clock = config, record, clock
        self.history: deque[dict[str, Any]] = deque(maxlen=HISTORY)
        self.too_late = 0
        self.problems: tuple[str, ...] = ()
        self._folder: StateFolder | None = None
        self._unsaved = False
        self._learnt = Learnt.nothing(self._factory, core, config.seed, "flips" in config.rungs)
        # Statistics and the drift detector's reference come from the core set of the factory, even after a restart.
        anchor = core.take(np.flatnonzero(core.from_factory))
        self._coded = coded(self._factory)
        self._judge = Judge(self._coded, anchor, seed=config.seed, limits=config.limits)
        self._ladder = Ladder(self._coded, self._sets, anchor, config, gates)
        self._learnt = self._ladder.prepared(self._learnt)
        self._watch = Watch(anchor.x, config.seed) if config.on_drift else None
        self._anchor = f"{zlib.crc32(anchor.x.tobytes() + anchor.y.tobytes()):08x}"
        self._artifact = "0" * 64 if isinstance(source, Model) else artifact_checksum(source)
        needed = self._most_bytes()
        if needed > config.max_bytes:
            smaller = "a smaller core set, fewer head_samples, or rungs without domain"
            raise ConfigError(f"max_bytes {config.max_bytes}: the state may take {needed}; use {smaller}")
        if state_dir is not None:
            self._open(state_dir)
        self.model = self._calibrated()

    def __enter__(self) -> Calibrator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def measure_source(self, check: Callable[[], None] = lambda: None) -> None:
        """Measures what steps compare the stream with, which else is part of the first one. check: may raise."""
        deadline = Deadline(None, self.clock)

        def both() -> None:
            check()
            deadline.check()

        self._ladder.measure(both)

    def close(self) -> None:
        """Keeps samples that wait for a step, and gives the state folder back."""
        if self._folder is not None:
            try:
                if self._unsaved:
                    self._keep(self._learnt, "close")
            finally:
                self._folder.close()
                self._folder = None

    @property
    def core(self) -> CoreSet:
        """The core set as it is now, in input codes."""
        return self._learnt.core

    @property
    def steps(self) -> int:
        """Steps that were done, those before a restart included."""
        return self._learnt.steps

    @property
    def drifting(self) -> bool:
        """Whether samples are calibrated with now: always, unless `on_drift`."""
        return not self.config.on_drift or self._learnt.watch > 0

    @property
    def next_id(self) -> int:
        """The id that the next sample gets: samples are numbered from 0, over restarts too."""
        return self.core.seen + len(self._learnt.pending)

    def encode_one(self, x: NDArray[np.generic]) -> NDArray[np.int8]:
        """Input codes (H, W, C) of one sample, for `learn_codes`. Raises DataError."""
        codes, single = self._factory.encode(x)
        if not single:
            raise DataError(f"one sample is expected, not {len(codes)}; partial_fit takes a batch")
        return codes[0]

    def check_labels(self, y: ArrayLike, count: int) -> NDArray[np.int16]:
        """`count` labels as (count,) int16. Raises DataError on what are none."""
        labels, known = np.asarray(y), known_labels(self._factory)
        if (
            labels.shape != (count,)
            or labels.dtype.kind not in "iu"
            or ((labels < UNLABELLED) | (labels >= known)).any()
        ):
            raise DataError(f"y: {count} labels of 0 to {known - 1}, or {UNLABELLED}, are expected, not {labels.shape}")
        return labels.astype(np.int16)

    def learn_one(self, x: NDArray[np.generic], y: int | None = None) -> StepResult | None:
        """Takes one sample, in the data's own layout and dtype; y: its label, if it is known.

        Every `batch` samples there is a step, whose result is given. Raises DataError.
        """
        return self.learn_codes(self.encode_one(x), y)

    def learn_codes(self, codes: NDArray[np.int8], y: int | None = None) -> StepResult | None:
        """As `learn_one`, with the input codes (H, W, C) of a sample."""
        self._learnt = self._taken(codes[None], [UNLABELLED if y is None else y])
        return self._step() if len(self._learnt.pending) >= self.config.batch and self.drifting else None

    def partial_fit(self, x: NDArray[np.generic], y: NDArray[np.integer] | None = None) -> StepResult | None:
        """A step with samples x (N, ...) and those that wait; y (N,): labels, UNLABELLED where there is none.

        None if there was no drift to follow. Raises DataError.
        """
        codes = self._factory.encode(x)[0]
        self._learnt = self._taken(codes, np.full(len(codes), UNLABELLED) if y is None else y)
        return self._step() if self.drifting else None

    def label(self, sample_id: int, y: int) -> StepResult | None:
        """Takes the label of a sample that came without one; sample_id: `next_id` as it was before the sample came.

        A label that comes when its sample is gone is counted in `too_late`. Every `batch` late labels there is a step,
        whose result is given. Raises DataError on a label that is none, and on an id that no sample has had yet.
        """
        label = self.check_label(sample_id, y, self.next_id)
        now, core = self._learnt, self.core
        ids, at = np.array([sample_id]), sample_id - core.seen
        if at >= 0:
            pending_y = now.pending_y.copy()
            pending_y[at] = label
            self._learnt = replace(now, pending_y=pending_y)
        elif sample_id in now.waiting.ids or sample_id in core.ids:
            waiting = now.waiting.with_label(sample_id, label)
            self._learnt = replace(now, core=core.with_labels(ids, np.array([label])), waiting=waiting)
        else:
            self.too_late += 1
            return None
        self._unsaved = True
        late = len(self._learnt.waiting.take(known=True))
        return self._step() if late >= self.config.batch and self.drifting else None

    def check_label(self, sample_id: int, y: int, seen: int) -> int:
        """The label of one of the `seen` samples that have an id. Raises DataError if it is none, or of no sample."""
        (label,) = self.check_labels([y], 1).tolist()
        if not 0 <= sample_id < seen or label == UNLABELLED:
            raise DataError(f"label {y} of sample {sample_id}: labels of samples 0 to {seen - 1} can be given")
        return int(label)

    def _taken(self, codes: NDArray[np.int8], y: ArrayLike) -> Learnt:
        """With samples that wait; the drift detector has seen them."""
        labels = self.check_labels(y, len(codes))
        now, watch, core = self._learnt, self._learnt.watch, self._learnt.core
        if self._watch is not None:
            for sample in codes:
                watch = self.config.follow if self._watch.alarm(sample) else max(watch - 1, 0)
        pending, pending_y = np.concatenate([now.pending, codes]), np.concatenate([now.pending_y, labels])
        if self.config.on_drift and not watch:  # nothing to calibrate with: only the last samples may be of use
            gone = max(len(pending) - self.config.batch, 0)
            pending, pending_y, core = pending[gone:], pending_y[gone:], replace(core, seen=core.seen + gone)
        self._unsaved = True
        return replace(now, core=core, pending=pending, pending_y=pending_y, watch=watch)

    def _step(self) -> StepResult:
        begin, now = self.clock(), self._learnt
        ids = now.core.seen + np.arange(len(now.pending))
        try:
            new, entries = self._climbed(now, ids, begin)
            promoted = any(entry["promoted"] for entry in entries)
            ms = 1000 * (self.clock() - begin)
            self._keep(new, "step")
        except Exception:  # else the same samples, and more with each that comes, would fail again and again
            self._learnt = _without_batch(now)
            raise
        self._learnt = new
        if promoted:
            self.model = self._calibrated()
        for entry in entries:
            entry["step"] = new.steps
            self.history.append(entry)
            self._record(entry)
        return StepResult(tuple(entries), promoted, ms)

    def _climbed(self, now: Learnt, ids: NDArray[np.int64], begin: float) -> tuple[Learnt, list[dict[str, Any]]]:
        """All that is learnt from the samples that wait for a step, with these ids, and from labels that came late."""
        config, x, y = self.config, now.pending, now.pending_y
        deadline = Deadline(None if config.max_ms is None else begin + config.max_ms / 1000, self.clock)
        late, waiting = now.waiting.take(known=True), now.waiting.take(known=False)
        all_ids, all_x = np.concatenate([ids, late.ids]), np.concatenate([x, late.x])
        all_y = np.concatenate([y, late.y])
        guessed = config.pseudo_labels is not None
        judge = partial(self._judge, self._judge.slice_of(now.core, all_x, all_y, all_ids, guessed))
        fit = ~held_out(all_ids, config.seed)
        fresh = int(fit[: len(x)].sum())
        new, entries = self._ladder.climb(now, all_x[fit], all_y[fit], fresh, judge, deadline)
        new = self._with_core(new, x, y, deadline)
        unlabelled = y == UNLABELLED
        waiting = waiting.with_samples(x[unlabelled], ids[unlabelled], config.waiting)
        return replace(new, pending=x[:0], pending_y=y[:0], waiting=waiting, steps=now.steps + 1), entries

    def _with_core(self, new: Learnt, x: NDArray[np.int8], y: NDArray[np.int16], deadline: Deadline) -> Learnt:
        """With a core set of this batch too, by misses counted anew; with the old one if time is over."""
        if not len(x):
            return new
        try:
            model = new.calibration.of(self._coded)
            own = count_misses(model, new.core.x, new.core.y, deadline.check)
            batch = count_misses(model, x, y, deadline.check)
        except OutOfTime:
            return replace(new, core=replace(new.core, seen=new.core.seen + len(x)))
        rng = random_from_array(new.random)
        core = new.core.update(x, y, batch, rng, own_misses=own, keep=self.config.keep)
        return replace(new, core=core, random=random_to_array(rng))

    def _calibrated(self) -> Model:
        return self._learnt.calibration.of_points(self._factory)

    @property
    def coded(self) -> Model:
        """`model` as one that reads input codes, for `caq.calibration.sets.logits` at the factory's sets."""
        return self._learnt.calibration.of(self._coded)

    @property
    def gates(self) -> dict[str, ConditionalGate]:
        """Of the points of `model` at which the input's domain picks the parameter set, by their names."""
        own = {point.name for point in self._factory.points if point.gate is not None}
        return {p.name: p.gate for p in self.model.points if p.gate is not None and p.name not in own}

    def _state(self, learnt: Learnt) -> State:
        watch = {} if self._watch is None else owned("watch", self._watch.to_arrays())
        arrays = {**learnt.to_arrays(), **watch}
        return State(self._artifact, arrays, {"steps": learnt.steps, "anchor": self._anchor})

    def _most_bytes(self) -> int:
        """What a state can take, with all that rungs keep, and all that waits."""
        batch, waiting, grown = self.config.batch, self.config.waiting, self._ladder.grown(self._learnt)
        x = np.zeros((max(batch, waiting), *grown.core.x.shape[1:]), np.int8)
        room = grown.waiting.with_samples(x[:waiting], np.arange(waiting), waiting)
        grown = replace(grown, pending=x[:batch], pending_y=np.zeros(batch, np.int16), waiting=room)
        state = self._state(replace(grown, steps=2**62))
        return len(to_bytes(replace(state, notes={**state.notes, "reason": "close"})))

    def _open(self, path: str | PathLike[str]) -> None:
        def healthy(state: State) -> bool:
            return self._runs(Learnt.from_state(state, self._factory))

        self._folder = StateFolder(path, self._artifact, healthy, max_bytes=self.config.max_bytes)
        self.problems, state = tuple(self._folder.problems), self._folder.state
        try:
            if state is not None:
                if state.notes.get("anchor") != self._anchor:
                    raise StateMismatchError(f"{path}: this state was learnt with another core set of the factory")
                self._learnt = self._ladder.prepared(Learnt.from_state(state, self._factory))
                watch = state.part("watch")
                if self._watch is not None and watch:  # a state of another configuration has none
                    self._watch.load_arrays(watch)
        except CaqError:
            self._folder.close()
            raise

    def _runs(self, learnt: Learnt) -> bool:
        """Whether kernels compute with what was learnt: they raise SchemaError on parameters that they cannot use."""
        logits(learnt.calibration.of(self._coded), self._sets, learnt.core.x[:1].astype(np.int16))
        return True

    def _keep(self, learnt: Learnt, reason: str) -> None:
        """Makes it durable, then good: the guard has judged it, and the slot was read back."""
        if self._folder is not None:
            state = self._state(learnt)
            self._folder.save(state.arrays, {**state.notes, "reason": reason})
            self._folder.mark_good()
            self._unsaved = False


def _without_batch(now: Learnt) -> Learnt:
    """As if the samples of a step had never been; their ids are not given again."""
    core, waiting = replace(now.core, seen=now.core.seen + len(now.pending)), now.waiting.take(known=False)
    return replace(now, core=core, pending=now.pending[:0], pending_y=now.pending_y[:0], waiting=waiting)


def make_core(
    model: Model,
    x: NDArray[np.generic],
    y: NDArray[np.integer],
    *,
    size: int | None = None,
    max_bytes: int | None = None,
    seed: int = 0,
) -> CoreSet:
    """A core set of source samples x (N, ...), y (N,), as input codes, for a model that was trained without one.

    A miss at a width is a sample that the widest gets right and it gets wrong: the logs of training are not there.
    Samples whose features the model has are passed over: the classifier is fitted to these, and the guard judges by
    some of a core set. For the rest see CoreSet.select.
    """
    codes, labels, widths = model.encode(model.batch(x)[0])[0], np.asarray(y), model.graph.widths
    left = np.flatnonzero(~have_features(model, codes, labels))
    codes, labels = codes[left], labels[left]
    wrong = count_misses(coded(model), codes, labels)
    misses = (wrong & ~wrong[-1:].astype(bool)).astype(np.uint8)
    core = CoreSet.select(codes, labels, misses, widths, size=size, max_bytes=max_bytes, seed=seed)
    return replace(core, ids=-1 - left[-1 - core.ids])


def count_misses(
    model: Model, x: NDArray[np.int8], y: NDArray[np.integer], check: Callable[[], None] = lambda: None
) -> NDArray[np.uint8]:
    """Which samples x (N, H, W, C) each width of a `coded` model gets wrong, (W, N), 0 or 1; 0 without a label."""
    widths = parameter_sets(model)[: len(model.graph.widths)]
    answers = logits(model, widths, x.astype(np.int16), check).values()
    return np.stack([(z.argmax(1) != y) & (y != UNLABELLED) for z in answers]).astype(np.uint8)

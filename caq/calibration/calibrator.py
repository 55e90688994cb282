"""The calibrator: keeps every width of a model accurate as its data drift, on the device and without back-propagation.

    core = make_core(model, x, y, size=60)                          # once, from samples of the source
    with Calibrator("x.caq", core, state_dir="calibration") as calibrator:
        calibrator.learn_one(x, y)                                  # or partial_fit(X, Y); labels may be absent
        engine.adopt(calibrator.model.parameters)                   # one reference is swapped

A step takes a batch of the stream up a ladder of rungs, the cheap one first:

    statistics   caq.calibration.statistics: batch norm re-estimated; needs no labels
    biases       caq.calibration.biases: of the classes, from labels
    flips        caq.calibration.flips: of single bits of weights, from labels, if `config.rungs` has it

Each proposes parameters for every parameter set: those of the widths, and those of operating points that have their
own. Sets that answer worse on the guard's slice are left out, and the guard judges the rest together
(caq.calibration.guard). What it refuses is dropped; what rungs know of the stream stays, so that the next batch can do
better.

The guard's slice is samples of the factory's core set, of the stream's in the core set and of the batch, that no rung
ever sees: which ones is drawn from their ids. Samples without a label get one for the slice, and for nothing else, if
all sets together, before and after the change, are confident of it.

Nothing is changed in place: a step ends by swapping one reference to an immutable `Learnt`. It is durable before that,
if there is a state folder. The same artifact, core set, configuration and stream give the same bits, also with restarts
in between; but a budget of time depends on the machine.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from caq.artifact import load
from caq.calibration.config import CalibratorConfig
from caq.calibration.core import UNLABELLED, CoreSet
from caq.calibration.deadline import Deadline, OutOfTime
from caq.calibration.judge import Judge, held_out
from caq.calibration.learnt import Learnt, check_core, classes
from caq.calibration.rungs import Ladder
from caq.calibration.sets import coded, logits, parameter_sets
from caq.calibration.slots import StateFolder
from caq.calibration.state import State, artifact_checksum, random_from_array, random_to_array, to_bytes
from caq.calibration.watch import Watch
from caq.errors import CaqError, ConfigError, DataError, StateMismatchError, UnsupportedError
from caq.model import Model

if TYPE_CHECKING:
    from os import PathLike

    from numpy.typing import NDArray


class StepResult(NamedTuple):
    """What a step did: a record for each change that was judged, or that time ended; and the milliseconds it took."""

    records: tuple[dict[str, Any], ...]
    promoted: bool
    ms: float


class Calibrator:
    """Calibrates a model: see the module.

    source: path of a `.caq` file, which is never written, or a `Model`, then without a state folder. core: made by
    `make_core`; what is in the state folder goes before it. state_dir: see `caq.calibration.slots.StateFolder`. record:
    called with each record of the audit, as it comes; `history` has those of this process.

    model: the model with the parameters in force; another object after each promotion. problems: why states in the
    folder were passed over. For one thread at a time; others may read `model` at any moment.

    Raises UnsupportedError on a model that does not classify, StateFormatError on a core set that does not fit it,
    DataError on one without factory samples or labels, ConfigError on a state that would exceed max_bytes,
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
        if "flips" in config.rungs and any(point.gate is not None for point in self._factory.points):
            raise UnsupportedError("rungs: branches of conditional points share their first layers; leave flips out")
        check_core(core, self._factory)
        if not core.from_factory.any() or not (core.y != UNLABELLED).any():
            raise DataError("core: labelled samples of the factory are expected; make_core takes them")
        self.config, self._record, self._clock = config, record, clock
        self.history: list[dict[str, Any]] = []
        self.problems: tuple[str, ...] = ()
        self._sets = parameter_sets(self._factory)
        self._folder: StateFolder | None = None
        self._unsaved = False
        self._learnt = Learnt.nothing(self._factory, core, config.seed, "flips" in config.rungs)
        # Statistics and the drift detector's reference come from the core set of the factory, even after a restart.
        anchor = core.take(np.flatnonzero(core.from_factory))
        self._coded = coded(self._factory)
        limits, confidence = config.limits, config.confidence
        self._judge = Judge(self._coded, anchor, seed=config.seed, limits=limits, confidence=confidence)
        self._ladder = Ladder(self._coded, self._sets, anchor, config)
        self._watch = Watch(anchor.x, config.seed)
        self._anchor = f"{zlib.crc32(anchor.x.tobytes() + anchor.y.tobytes()):08x}"
        self._artifact = "0" * 64 if isinstance(source, Model) else artifact_checksum(source)
        needed = len(to_bytes(self._state(self._learnt))) + config.batch * core.x[:1].nbytes
        if needed > config.max_bytes:
            raise ConfigError(f"max_bytes {config.max_bytes}: the state takes {needed}; use a smaller core set")
        if state_dir is not None:
            self._open(state_dir)
        self.model = self._calibrated()

    def __enter__(self) -> Calibrator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

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

    def learn_one(self, x: NDArray[np.generic], y: int | None = None) -> StepResult | None:
        """Takes one sample, in the data's own layout and dtype; y: its label, if it is known.

        Every `batch` samples there is a step, whose result is given. Raises DataError.
        """
        labels = None if y is None else np.array([y])
        self._learnt = self._taken(np.asarray(x)[None], labels)
        return self._step() if len(self._learnt.pending) >= self.config.batch and self.drifting else None

    def partial_fit(self, x: NDArray[np.generic], y: NDArray[np.integer] | None = None) -> StepResult | None:
        """A step with samples x (N, ...) and those that wait; y (N,): labels, UNLABELLED where there is none.

        None if there was no drift to follow. Raises DataError.
        """
        self._learnt = self._taken(x, y)
        return self._step() if self.drifting else None

    def _taken(self, x: NDArray[np.generic], y: NDArray[np.integer] | None) -> Learnt:
        """With samples that wait; the drift detector has seen them."""
        samples, _ = self._factory.batch(x)
        codes = self._factory.encode(samples)[0]
        y = np.full(len(codes), UNLABELLED) if y is None else np.asarray(y)
        known = classes(self._factory) or int(np.prod(self._factory.graph.shapes[-1]))
        if y.shape != (len(codes),) or y.dtype.kind not in "iu" or (y < UNLABELLED).any() or (y >= known).any():
            raise DataError(f"y: {len(codes)} labels of 0 to {known - 1}, or {UNLABELLED}, are expected, not {y.shape}")
        now, watch = self._learnt, self._learnt.watch
        if self.config.on_drift:
            for sample in codes:
                watch = self.config.follow if self._watch.alarm(sample) else max(watch - 1, 0)
        pending = np.concatenate([now.pending, codes])
        pending_y = np.concatenate([now.pending_y, y.astype(np.int16)])
        if self.config.on_drift and not watch:  # nothing to calibrate with: only the last samples may be of use
            pending, pending_y = pending[-self.config.batch :], pending_y[-self.config.batch :]
        self._unsaved = True
        return replace(now, pending=pending, pending_y=pending_y, watch=watch)

    def _step(self) -> StepResult:
        begin, now = self._clock(), self._learnt
        config, x, y = self.config, now.pending, now.pending_y
        deadline = Deadline(None if config.max_ms is None else begin + config.max_ms / 1000, self._clock)
        judge = partial(self._judge, self._judge.slice_of(now.core, x, y))
        fit = ~held_out(now.core.seen + np.arange(len(x)), config.seed)
        new, entries = self._ladder.climb(now, x[fit], y[fit], judge, deadline)
        new = self._with_core(new, x, y, deadline)
        new = replace(new, pending=x[:0], pending_y=y[:0], steps=now.steps + 1)
        promoted = any(entry["promoted"] for entry in entries)
        ms = 1000 * (self._clock() - begin)
        self._keep(new, "step")
        self._learnt = new
        if promoted:
            self.model = self._calibrated()
        for entry in entries:
            entry["step"] = new.steps
            self.history.append(entry)
            self._record(entry)
        return StepResult(tuple(entries), promoted, ms)

    def _with_core(self, new: Learnt, x: NDArray[np.int8], y: NDArray[np.int16], deadline: Deadline) -> Learnt:
        """With a core set of this batch too, by misses counted anew; with the old one if time is over."""
        try:
            model = self._coded.replace(parameters=new.parameters)
            own = count_misses(model, new.core.x, new.core.y, deadline.check)
            batch = count_misses(model, x, y, deadline.check)
        except OutOfTime:
            return replace(new, core=replace(new.core, seen=new.core.seen + len(x)))
        rng = random_from_array(new.random)
        core = new.core.update(x, y, batch, rng, own_misses=own, keep=self.config.keep)
        return replace(new, core=core, random=random_to_array(rng))

    def _calibrated(self) -> Model:
        return self._factory.replace(parameters=self._learnt.parameters)

    def _state(self, learnt: Learnt) -> State:
        arrays = {**learnt.to_arrays(), **{f"watch/{k}": v for k, v in self._watch.to_arrays().items()}}
        return State(self._artifact, arrays, {"steps": learnt.steps, "anchor": self._anchor})

    def _open(self, path: str | PathLike[str]) -> None:
        def healthy(state: State) -> bool:
            return self._runs(Learnt.from_state(state, self._factory))

        self._folder = StateFolder(path, self._artifact, healthy, max_bytes=self.config.max_bytes)
        self.problems, state = tuple(self._folder.problems), self._folder.state
        try:
            if state is not None:
                if state.notes.get("anchor") != self._anchor:
                    raise StateMismatchError(f"{path}: this state was learnt with another core set of the factory")
                self._learnt = Learnt.from_state(state, self._factory)
                self._watch.load_arrays(state.part("watch"))
        except CaqError:
            self._folder.close()
            raise

    def _runs(self, learnt: Learnt) -> bool:
        """Whether kernels compute with what was learnt: they raise SchemaError on parameters that they cannot use."""
        logits(self._coded.replace(parameters=learnt.parameters), self._sets, learnt.core.x[:1].astype(np.int16))
        return True

    def _keep(self, learnt: Learnt, reason: str) -> None:
        """Makes it durable, then good: the guard has judged it, and the slot was read back."""
        if self._folder is not None:
            state = self._state(learnt)
            self._folder.save(state.arrays, {**state.notes, "reason": reason})
            self._folder.mark_good()
            self._unsaved = False


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

    A miss at a width is a sample that the widest gets right and it gets wrong: the logs of training are not there. For
    the rest see CoreSet.select.
    """
    codes, widths = model.encode(model.batch(x)[0])[0], model.graph.widths
    wrong = count_misses(coded(model), codes, np.asarray(y))
    misses = wrong & ~wrong[-1:].astype(bool)
    return CoreSet.select(codes, y, misses.astype(np.uint8), widths, size=size, max_bytes=max_bytes, seed=seed)


def count_misses(
    model: Model, x: NDArray[np.int8], y: NDArray[np.integer], check: Callable[[], None] = lambda: None
) -> NDArray[np.uint8]:
    """Which samples x (N, H, W, C) each width of a `coded` model gets wrong, (W, N), 0 or 1; 0 without a label."""
    widths = parameter_sets(model)[: len(model.graph.widths)]
    answers = logits(model, widths, x.astype(np.int16), check).values()
    return np.stack([(z.argmax(1) != y) & (y != UNLABELLED) for z in answers]).astype(np.uint8)

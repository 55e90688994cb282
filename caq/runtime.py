"""The runtime: an engine whose operating point follows the device's context.

with Runtime("model.caq", policy) as runtime:
    label = runtime.predict(sample)
"""

from __future__ import annotations

import io
import logging
import reprlib
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from caq.context import Context, ContextMonitor, RecordedContext
from caq.engine import Engine
from caq.errors import ConfigError, RuntimeClosedError
from caq.governor import (
    CheckedPolicy,
    Decision,
    FixedPolicy,
    Governor,
    Policy,
    Switch,
    SwitchableEngine,
    check_policy,
    is_number,
)
from caq.model import Model

if TYPE_CHECKING:
    from caq.calibration.background import BackgroundCalibrator

__all__ = [
    "CheckedPolicy",
    "ContextSource",
    "Decision",
    "FixedPolicy",
    "InferenceEngine",
    "Policy",
    "Runtime",
    "Switch",
    "nothing_to_read",
]

log = logging.getLogger(__name__)

# How long `close` waits for a policy or a callback that is still at work.
LONGEST_CLOSE_S = 1.0


class ContextSource(Protocol):
    """Where contexts come from: `read` returns the present one at once."""

    def read(self) -> Context: ...


class InferenceEngine(SwitchableEngine, Protocol):
    """What the runtime needs of an engine; `caq.engine.Engine` is one."""

    @property
    def label_names(self) -> tuple[str, ...]: ...

    def run_at(self, x: NDArray[Any], /) -> tuple[NDArray[Any], str]: ...


def nothing_to_read(policy: Policy, source: ContextSource) -> str:
    """What to tell a person if `source` is a recording that has none of the fields that `policy` reads; else ""."""
    reads = getattr(policy, "fields", ())
    if not isinstance(source, RecordedContext) or not isinstance(reads, tuple) or not reads:
        return ""
    if {*source.fields, "time_s"} & set(reads):
        return ""
    return (
        f"the recording has none of the fields that the policy reads: "
        f"it has {', '.join(source.fields)}, the policy reads {', '.join(map(str, reads))}"
    )


class Runtime:
    """Serves inferences while a policy moves the engine between its operating points.

    path_or_engine: a `.caq` file, a model, or an engine. policy: a `Policy`, the name of an operating point to stay
    at, or None to stay at the point that the engine is at (the first one, after loading). context: where contexts come
    from; by default this device's own sensors. min_dwell_s: seconds between two switches that are not urgent.
    period_s: seconds between two questions to the policy. on_switch: called with every `Switch`, in the thread that
    made it, while no lock is held; what it raises is logged. auto: whether a thread asks the policy; by default it does
    unless the context is a recording, which `step` drives. calibration: follows samples that are given to `learn_one`,
    in a thread of its own, and is closed with the runtime (`caq.calibration.settings` reads one from a file).

    Any number of threads may call it. A switch never waits for an inference, nor an inference for a switch: each one
    runs at the point that was active when it began.

    Raises ArtifactError for a file that cannot be trusted, AssignmentError for an unknown operating point, ConfigError
    for times that are not positive and for objects of another kind, and whatever the policy's `check` raises if it does
    not fit the points. A recording in which the policy finds nothing that it reads is warned of in the log.
    """

    def __init__(
        self,
        path_or_engine: str | Path | Model | InferenceEngine,
        policy: Policy | str | None = None,
        context: ContextSource | None = None,
        *,
        min_dwell_s: float = 5.0,
        period_s: float = 1.0,
        on_switch: Callable[[Switch], None] | None = None,
        auto: bool | None = None,
        calibration: BackgroundCalibrator | None = None,
    ) -> None:
        if not is_number(period_s) or not 0 < period_s < float("inf"):
            raise ConfigError(f"period_s must be a finite number above 0, not {period_s!r}")
        if on_switch is not None and not callable(on_switch):
            raise ConfigError(f"on_switch must be a function that takes a Switch, not {on_switch!r}")
        _check_context(context)
        if isinstance(policy, str) and Path(policy).suffix in (".yaml", ".yml"):
            check_policy(policy)
        self._engine: InferenceEngine = _engine(path_or_engine)
        if policy is None or isinstance(policy, str):
            policy = FixedPolicy(self._engine.point if policy is None else policy)
        self._governor = Governor(self._engine, policy, min_dwell_s=min_dwell_s)
        if isinstance(policy, FixedPolicy):
            self._engine.select(policy.point)
        self._source: ContextSource = ContextMonitor(period_s) if context is None else context
        if note := nothing_to_read(policy, self._source):
            log.warning("%s", note)
        self._period_s = period_s
        self._on_switch = on_switch
        self._closed = threading.Event()
        self._own_monitor: ContextMonitor | None = None
        self._thread: threading.Thread | None = None
        self._calibration = calibration
        if calibration is not None:
            calibration.start(_calibrated(self._engine))
        if not isinstance(self._source, RecordedContext) if auto is None else auto:
            if isinstance(self._source, ContextMonitor) and not self._source.running:
                self._own_monitor = self._source.start()
            self._thread = threading.Thread(target=self._follow, name="caq-runtime", daemon=True)
            self._thread.start()

    def __call__(self, x: NDArray[Any]) -> NDArray[Any]:
        """Integer logits: (classes,) of one sample, (N, classes) of a batch. Raises DataError on a wrong input."""
        return self.run_at(x)[0]

    def run_at(self, x: NDArray[Any]) -> tuple[NDArray[Any], str]:
        """Integer logits, and the name of the operating point at which this very inference ran."""
        self._check_open()
        return self._engine.run_at(x)

    def predict(self, x: NDArray[Any]) -> str | int | list[str] | NDArray[np.intp]:
        """The class of one sample: its label, or its index if the model names no labels.

        Of a batch (N, ...): a list of N labels, or an int array (N,). Raises DataError on a wrong input.
        """
        best = np.argmax(self(x), axis=-1)
        labels = self._engine.label_names
        if best.ndim == 0:
            return labels[int(best)] if labels else int(best)
        return [labels[index] for index in best.tolist()] if labels else best

    def learn_one(self, x: NDArray[Any], y: int | None = None) -> int | None:
        """Offers one sample to calibration, which never waits; y: its label, if it is known.

        Its id, for `label`; None if calibration has more to do than its queue holds. Raises DataError on a wrong
        input, ConfigError without a calibration.
        """
        return self.calibration.learn_one(x, y)

    def label(self, sample_id: int, y: int) -> bool:
        """Offers the label of an earlier sample; False if the queue is full. Raises as `learn_one`."""
        return self.calibration.label(sample_id, y)

    @property
    def calibration(self) -> BackgroundCalibrator:
        """What calibrates: its `history` and `counts`. Raises ConfigError if there is none."""
        if self._calibration is None:
            raise ConfigError("this runtime does not calibrate: pass calibration=BackgroundCalibrator(...)")
        return self._calibration

    @property
    def point(self) -> str:
        """Name of the operating point that the next inference will use."""
        return self._engine.point

    @property
    def context(self) -> Context:
        """The context now; its readings tell their age and quality. RuntimeClosedError after `close`."""
        self._check_open()
        return self._source.read()

    @property
    def decision(self) -> Decision | None:
        """What the policy wanted last, also while the dwell holds it back; None before its first decision."""
        return self._governor.decision

    @property
    def history(self) -> tuple[Switch, ...]:
        """The latest switches, and failures of the policy (`Switch.kept`), oldest first; at most 256."""
        return self._governor.history

    def step(self, now_s: float | None = None) -> Switch | None:
        """Senses, asks the policy and applies its choice once; returns the switch, or None if there was none.

        now_s: the time that the dwell is measured on, in seconds; by default the context's own. A recording is moved
        there first. Raises RuntimeClosedError after `close`.
        """
        self._check_open()
        if now_s is not None and isinstance(self._source, RecordedContext):
            self._source.seek(now_s)
        elif isinstance(self._source, ContextMonitor) and not self._source.running:
            self._source.poll()
        context = self._source.read()
        time_s = context.value("time_s") if now_s is None else now_s
        if time_s is None:
            raise ConfigError("the context has no time_s; pass now_s")
        switch = self._governor.consider(context, time_s)
        if switch is not None and self._on_switch is not None:
            try:
                self._on_switch(switch)
            except Exception:
                log.exception("on_switch failed; the switch to %s stands", switch.to_point)
        return switch

    def close(self) -> None:
        """Stops following the context. Inferences that run are finished; later ones raise RuntimeClosedError."""
        self._closed.set()
        if self._calibration is not None:
            self._calibration.close()
        self._governor.close()
        if self._thread is not None and self._thread is not threading.current_thread():
            # A policy or a callback that blocks keeps its daemon thread, but does not keep the caller.
            self._thread.join(timeout=min(self._period_s, LONGEST_CLOSE_S))
        if self._own_monitor is not None:
            self._own_monitor.stop()

    def __enter__(self) -> Runtime:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise RuntimeClosedError("the runtime is closed; open a new one")

    def _follow(self) -> None:
        if isinstance(self._source, ContextMonitor):
            # Without this the first decision would rest on a context in which nothing has been read yet.
            self._source.wait_ready(self._period_s)
        while not self._closed.is_set():
            try:
                self.step()
            except RuntimeClosedError:
                return
            except Exception:
                log.exception("the context cannot be read; %s is kept", self.point)
            self._closed.wait(self._period_s)


def _engine(source: Any) -> InferenceEngine:
    if isinstance(source, (str, Path, Model)):
        return Engine(source)
    if isinstance(source, type) or not all(hasattr(source, name) for name in ("points", "point", "select", "run_at")):
        raise ConfigError(f"the path of a .caq file, a model or an engine is expected, not {reprlib.repr(source)}")
    engine: InferenceEngine = source
    return engine


def _calibrated(engine: InferenceEngine) -> Any:
    if not callable(getattr(engine, "adopt", None)):
        raise ConfigError(f"{reprlib.repr(engine)} cannot be calibrated: it has no method adopt(parameters, gates)")
    return engine


def _check_context(context: Any) -> None:
    if isinstance(context, (str, Path)) and Path(context).suffix == ".csv":
        hint = "pass caq.context.RecordedContext.from_csv(path)"
    elif isinstance(context, type):
        hint = f"pass an instance, {context.__name__}(...)"
    elif context is not None and (isinstance(context, io.IOBase) or not callable(getattr(context, "read", None))):
        hint = "pass a caq.context.ContextMonitor or RecordedContext, or give it a method read() that returns a Context"
    else:
        return
    raise ConfigError(f"{reprlib.repr(context)} is no source of contexts: {hint}")

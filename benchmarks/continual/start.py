"""What every method starts from, and what it gives back: imports no torch, so that the cheap ones run without."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from caq.calibration.core import CoreSet
from caq.model import Model
from caq.native import NativePlan, Program, Tables
from caq.native_conditional import ConditionalPlan

if TYPE_CHECKING:
    from caq.supernet import Supernet

#: Input codes (N, H, W, C), as a core set keeps them.
Codes = NDArray[np.int8]
Labels = NDArray[np.integer[Any]]

_SAMPLES_AT_ONCE = 256


@dataclass(frozen=True, eq=False)
class Start:
    """model: `coded`, as it leaves the factory; core: the factory's core set, whose bytes are all that may be kept.

    train: codes and labels that cores are drawn from. supernet: the float network behind the model, a copy at each
    call. widths: that are calibrated and measured.
    """

    model: Model
    core: CoreSet
    train: tuple[Codes, Labels]
    supernet: Callable[[], Supernet]
    widths: tuple[int, ...]
    seed: int


class Method(Protocol):
    """A way to follow a stream."""

    def step(self, x: Codes, y: Labels) -> None:
        """Takes a batch of the stream with its labels, which a method without labels does not read."""

    def model(self, width: int) -> Model:
        """The `coded` model to be run at `width`, in integers."""


def accuracy(model: Model, width: int, x: Codes, y: Labels) -> float:
    """In %, of a `coded` model at a width, by the integer engine."""
    z = run(model, width, x)
    return 100 * float((z.argmax(1) == y).mean())


def run(model: Model, width: int, x: Codes) -> NDArray[np.int16]:
    """Output codes (N, K) of a `coded` model at a width."""
    program, assignment = Program(model), model.graph.uniform(width)
    plan = NativePlan(program, Tables(program, assignment, None))
    for gate in [p.gate for p in model.points if p.gate is not None and p.assignment == assignment]:
        plan = ConditionalPlan(program, [Tables(program, b.assignment, b.parameter_set) for b in gate.branches], gate)
    parts: Iterable[Codes] = (x[i : i + _SAMPLES_AT_ONCE] for i in range(0, len(x), _SAMPLES_AT_ONCE))
    return np.concatenate([plan.run(part.astype(np.int16)) for part in parts])

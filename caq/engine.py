"""Runs a model in integers, and switches its widths.

`Engine` holds one immutable plan at a time. `select` builds the plan of another operating point aside and swaps one
reference, so an inference that is under way finishes with the plan that it began with.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from caq.artifact import check_max_width, load
from caq.errors import AssignmentError, nearest
from caq.graph import Assignment, LayerWidths
from caq.kernels import reference
from caq.model import Model, OperatingPoint
from caq.plan import Plan, Step, build_plan
from caq.quant import requantize

#: Runs a plan: codes (N, H, W, C) int8 -> output codes (N, H', W', C') int16.
Executor = Callable[[Plan, NDArray[np.int8]], NDArray[np.int16]]


def execute_reference(plan: Plan, codes: NDArray[np.int8]) -> NDArray[np.int16]:
    """Runs `plan` with the reference kernels: codes (N, H, W, C) int8 -> output codes (N, H', W', C') int16."""
    live: dict[int, NDArray[np.int32]] = {0: codes.astype(np.int32)}
    for i, step in enumerate(plan.steps):
        live[i + 1] = _run(step, [live[t] for t in step.op.inputs])
        for t in set(step.op.inputs):
            if plan.last_use[t] == i:
                del live[t]
    return live[len(plan.steps)].astype(np.int16)


def _run(step: Step, inputs: list[NDArray[np.int32]]) -> NDArray[np.int32]:
    op, x = step.op, inputs[0]
    window = (op.kernel, op.stride, op.padding, op.dilation)
    if op.kind == "conv":
        assert step.multiplicands is not None
        if step.narrow is not None:
            x = requantize(x, step.narrow, *step.narrow_range)
        total = reference.conv_accumulate(x, step.multiplicands, *window[1:], op.groups, step.limit)
        return requantize(total, step.requantize[0], op.low, op.high)
    if op.kind == "add":
        return reference.add(inputs, *step.add, op.low, op.high)
    if op.kind == "max_pool":
        return reference.max_pool(x, *window)
    if op.kind == "reshape":
        return reference.reshape(x, (op.shape[0], op.shape[1], op.shape[2]))
    if op.kind == "avg_pool":
        return requantize(reference.sum_pool(x, *window), step.requantize[0], op.low, op.high)
    parts = [requantize(part, f, op.low, op.high) for part, f in zip(inputs, step.requantize, strict=True)]
    return np.concatenate(parts, axis=3)


def _weights(assignment: Assignment) -> list[int]:
    return [pair.weight for pair in assignment]


class Engine:
    """A model that serves its operating points, one at a time, to any number of threads.

    source: path of a `.caq` file, or a `Model`. max_width: read no bit planes beyond this weight width; points that
    need more are not offered. execute: how plans are run. The first operating point is selected.
    Raises ArtifactError on a file that cannot be trusted, AssignmentError if no point is left, ConfigError on a source
    or a width of another type.
    """

    def __init__(
        self, source: str | Path | Model, *, max_width: int = 8, execute: Executor = execute_reference
    ) -> None:
        check_max_width(max_width)
        self.model = source if isinstance(source, Model) else load(source, max_width=max_width)
        available = min(len(self.model.planes), max_width)
        needed = {p.name: max(pair.weight for pair in p.assignment) for p in self.model.points}
        served = {p.name: p for p in self.model.points if needed[p.name] <= available}
        if not served:
            least = min(needed.values())
            raise AssignmentError(
                f"no operating point has weights of at most {max_width} bits: the narrowest has {least}, "
                f"and {len(self.model.planes)} bit planes were read"
            )
        self.points: Mapping[str, OperatingPoint] = MappingProxyType(served)
        self.label_names = self.model.label_names
        self._execute = execute
        self._plans: dict[str, Plan] = {}
        self._lock = threading.Lock()
        self._active: tuple[str, Plan] = ("", Plan(self.model.graph, (), (), ()))
        self.select(next(iter(served)))

    @property
    def point(self) -> str:
        """Name of the operating point that the next inference will use."""
        return self._active[0]

    @property
    def plan(self) -> Plan:
        """The plan that the next inference will use."""
        return self._active[1]

    def select(self, point: str) -> None:
        """Switches to an operating point by name. Raises AssignmentError for an unknown one."""
        if not isinstance(point, str):
            known = ", ".join(self.points)
            raise AssignmentError(f"a point is selected by its name, not by {type(point).__name__}; known: {known}")
        if point not in self.points:
            raise AssignmentError(f"no operating point {point!r}{nearest(point, self.points)}")
        with self._lock:
            if point not in self._plans:
                chosen = self.points[point]
                self._plans[point] = self.build(chosen.assignment, chosen.parameter_set)
            self._active = (point, self._plans[point])

    def build(self, assignment: Assignment, parameter_set: int | None = None) -> Plan:
        """The plan of any assignment, not only a point's; run it with `run_plan`. Raises AssignmentError.

        parameter_set: that of an operating point with the same weight widths, since gains are in units of those.
        """
        model = self.model
        if not isinstance(assignment, tuple) or not all(isinstance(pair, LayerWidths) for pair in assignment):
            raise AssignmentError(
                "an assignment is a tuple of LayerWidths; caq.graph.parse_assignment('w8a8,w4a4') makes one from text"
            )
        if parameter_set is not None:
            owners = [p for p in model.points if p.parameter_set == parameter_set]
            if not owners:
                raise AssignmentError(f"no parameter set {parameter_set!r} of an operating point; leave it out")
            if all(_weights(p.assignment) != _weights(assignment) for p in owners):
                names = ", ".join(p.name for p in owners)
                raise AssignmentError(
                    f"parameter set {parameter_set} fits the weight widths of {names} only; leave it out"
                )
        return build_plan(model.graph, model.parameters, model.planes, assignment, parameter_set)

    def run(self, x: NDArray[np.generic]) -> NDArray[np.int16]:
        """Output codes (classes,) int16 of one sample, or (N, classes) of a batch, in the data's own layout and dtype.

        A sample is (H, W, C) or (H, W), (T, C) or (F,), as in the training data. Outputs with positions, those of an
        autoencoder of convolutions or a segmentation, are flattened likewise: (H, W, C) or (T, C), channels last.
        Raises DataError on a wrong shape or dtype, and on NaN and infinity. Codes times `output_step` are the real
        outputs.
        """
        return self.run_at(x)[0]

    def run_at(self, x: NDArray[np.generic]) -> tuple[NDArray[np.int16], str]:
        """As `run`, and the name of the operating point that this very inference ran at."""
        point, plan = self._active
        return self.run_plan(plan, x), point

    def run_plan(self, plan: Plan, x: NDArray[np.generic]) -> NDArray[np.int16]:
        """As `run`, with a plan of the caller's."""
        codes, single = self.model.encode(x)
        y = self._execute(plan, codes)  # channels last, and flattened in that order
        y = y.reshape(len(y), -1)
        return y[0] if single else y

    @property
    def output_step(self) -> float:
        """The real value of one output code."""
        return float(self.model.parameters.steps[-1])

"""Plans that the reference kernels run: slow, and the definition of right."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from caq.graph import Assignment
from caq.kernels import reference
from caq.model import Model
from caq.plan import Plan, Step
from caq.quant import requantize


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
        return requantize(total, step.requantize[0], step.low, step.high)
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


class ReferencePlan(NamedTuple):
    """A plan that the reference kernels run: slow, and the definition of right."""

    model: Model
    plan: Plan

    @property
    def assignment(self) -> Assignment:
        """The widths that this plan computes with."""
        return self.plan.assignment

    def run_sample(self, x: NDArray[np.generic]) -> NDArray[np.int16] | None:
        """None: `run` does it."""
        return None

    def run(self, x: NDArray[np.generic]) -> NDArray[np.int16]:
        """Output codes (N, outputs) of a batch (N, *sample_shape). Raises DataError."""
        return execute_reference(self.plan, self.model.encode(x)[0]).reshape(len(x), -1)

"""Plans that the reference kernels run: slow, and the definition of right."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from caq.conditional import ConditionalGate, choose
from caq.graph import Assignment
from caq.kernels import reference
from caq.model import Model
from caq.plan import Plan, Step
from caq.quant import requantize
from caq.record import NamedTuple

Tensors = dict[int, NDArray[np.int32]]


def execute_reference(plan: Plan, codes: NDArray[np.int8]) -> NDArray[np.int16]:
    """Runs `plan` with the reference kernels: codes (N, H, W, C) int8 -> output codes (N, H', W', C') int16."""
    live = run_steps(plan, {0: codes.astype(np.int32)}, 0, len(plan.steps))
    return live[len(plan.steps)].astype(np.int16)


def execute_conditional(
    plans: Sequence[Plan], gate: ConditionalGate, codes: NDArray[np.int8]
) -> tuple[NDArray[np.int16], NDArray[np.int32]]:
    """As `execute_reference`, each sample with the plan of the branch (N,) that the gate picks for it."""
    count = len(plans[0].steps)
    live = run_steps(plans[0], {0: codes.astype(np.int32)}, 0, gate.tensor)
    taken = choose(gate, live[gate.tensor])
    outputs = np.empty((len(codes), *plans[0].graph.shapes[-1]), np.int16)
    for branch in np.unique(taken):
        part = {t: tensor[taken == branch] for t, tensor in live.items()}
        outputs[taken == branch] = run_steps(plans[branch], part, gate.tensor, count)[count]
    return outputs, taken.astype(np.int32)


def run_steps(plan: Plan, live: Tensors, first: int, last: int) -> Tensors:
    """Runs steps [first, last) on the tensors that are alive, and returns those that are afterwards."""
    for i, step in enumerate(plan.steps[first:last], first):
        live[i + 1] = run_step(step, [live[t] for t in step.op.inputs])
        for t in set(step.op.inputs):
            if plan.last_use[t] == i:
                del live[t]
    return live


def run_step(step: Step, inputs: list[NDArray[np.int32]]) -> NDArray[np.int32]:
    """What one step of a plan makes of its inputs' codes, (N, H, W, C)."""
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
    """A point that the reference kernels run: slow, and the definition of right. plans: of its branches."""

    model: Model
    plans: tuple[Plan, ...]
    gate: ConditionalGate | None = None

    @property
    def assignment(self) -> Assignment:
        """The widths that this plan computes with; those of its first branch if it has several."""
        return self.plans[0].assignment

    @property
    def assignments(self) -> tuple[Assignment, ...]:
        """The widths that this plan computes with, of each branch."""
        return tuple(plan.assignment for plan in self.plans)

    def run_sample(self, x: NDArray[np.generic]) -> NDArray[np.int16] | None:
        """None: `run` does it."""
        return None

    def run(self, x: NDArray[np.generic]) -> NDArray[np.int16]:
        """Output codes (N, outputs) of a batch (N, *sample_shape). Raises DataError."""
        return self.run_routed(x)[0]

    def run_routed(self, x: NDArray[np.generic]) -> tuple[NDArray[np.int16], NDArray[np.int32]]:
        """As `run`, and the branch (N,) that each sample took."""
        codes, _ = self.model.encode(x)
        if self.gate is None:
            return execute_reference(self.plans[0], codes).reshape(len(x), -1), np.zeros(len(x), np.int32)
        outputs, taken = execute_conditional(self.plans, self.gate, codes)
        return outputs.reshape(len(x), -1), taken

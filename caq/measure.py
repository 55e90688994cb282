"""Measures a model on data, in integers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from caq.engine import AnyPlan, Engine
from caq.errors import DataError


def score(
    engine: Engine, plan: AnyPlan, x: NDArray[np.generic], y: NDArray[np.integer], batch_size: int = 256
) -> float:
    """Accuracy of `plan` on samples x (N, ...) with labels y (N,); R2 over all values if the task is to reconstruct.

    Raises DataError on no samples, and on what `Engine.run` refuses.
    """
    return score_routed(engine, plan, x, y, batch_size)[0]


def score_routed(
    engine: Engine, plan: AnyPlan, x: NDArray[np.generic], y: NDArray[np.integer], batch_size: int = 256
) -> tuple[float, list[int]]:
    """As `score`, and how many of the samples each branch of the plan took."""
    if len(x) == 0:
        raise DataError("no samples to measure on")
    right, error, total = 0, 0.0, 0.0
    taken = np.zeros(len(plan.assignments), np.int64)
    for start in range(0, len(x), batch_size):
        part = x[start : start + batch_size]
        outputs, branches = engine.run_routed(part, plan)
        taken += np.bincount(branches, minlength=len(taken))
        if engine.model.task == "classify":
            right += int((outputs.argmax(1) == y[start : start + batch_size]).sum())
        else:
            inputs = engine.model.encode(part)[0].reshape(len(part), -1) * engine.model.scaling.step
            error += float(((outputs * engine.output_step - inputs) ** 2).sum())
            total += float((inputs**2).sum())
    return right / len(x) if engine.model.task == "classify" else 1.0 - error / total, taken.tolist()

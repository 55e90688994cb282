"""A recorded context in simulated time, with a few samples at each of its rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from caq.runtime import Runtime, Switch


def replay(
    runtime: Runtime, rows: Iterable[tuple[float, NDArray[np.int64]]], x: NDArray[np.generic]
) -> Iterator[tuple[NDArray[np.int16], str]]:
    """For each (time in seconds, indices into the samples x): asks the policy, then runs these samples as one batch.

    Yields the outputs (k, outputs), and the operating point that they ran at.
    """
    for t_s, chosen in rows:
        runtime.step(t_s)
        yield runtime.run_at(x[chosen])


def describe_switch(switch: Switch) -> dict[str, object]:
    """A switch as JSON has it."""
    return {
        "time_s": switch.time_s,
        "from": switch.from_point,
        "to": switch.to_point,
        "reason": switch.reason,
    }

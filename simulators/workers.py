"""Where the chunks of a fleet are worked off: in this process, in several on this machine, or on a Ray cluster."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caq.errors import CaqError, ConfigError, MissingExtraError
from simulators.fleet import Grid, Make, Runner, Task, run_task

Finished = Iterator[tuple[Task, NDArray[np.float64]]]
#: How often a task is begun anew after its node or its process has died.
RETRIES = 5


def processes(workers: int) -> Runner:
    """So many processes on this machine; with one, this process itself. Raises ConfigError below 1."""
    if workers < 1:
        raise ConfigError(f"workers must be at least 1, not {workers}")

    def run(grid: Grid, tasks: Sequence[Task], make: Make) -> Finished:
        if workers == 1 or len(tasks) < 2:
            for task in tasks:
                yield task, run_task(grid, task, make)
            return
        # Not forked: a fork copies locks that other threads hold.
        pool = ProcessPoolExecutor(min(workers, len(tasks)), mp_context=get_context("spawn"))
        try:
            futures = {pool.submit(run_task, grid, task, make): task for task in tasks}
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool:
            raise CaqError(
                "a worker process died, as when memory is short; what is finished is kept, run it again"
            ) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    return run


def ray_cluster(address: str | None) -> Runner:
    """A Ray cluster: "auto" for the one that this machine belongs to, host:port, or None to start one here.

    A task whose node dies is begun anew on another. All nodes need caq, and the files that profiles name. Raises
    MissingExtraError without Ray.
    """
    try:
        import ray
    except ImportError:
        raise MissingExtraError("ray", "ray") from None

    def run(grid: Grid, tasks: Sequence[Task], make: Make) -> Finished:
        started = not ray.is_initialized()
        if started:
            ray.init(address=address, log_to_driver=False, logging_level="warning")
        try:
            remote: Any = ray.remote(num_cpus=1, max_retries=RETRIES)(run_task)
            waiting = {remote.remote(grid, task, make): task for task in tasks}
            while waiting:
                (ready,), _ = ray.wait(list(waiting), num_returns=1)
                yield waiting.pop(ready), ray.get(ready)
        finally:
            if started:
                ray.shutdown()

    return run

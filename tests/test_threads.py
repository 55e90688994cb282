"""An inference on several threads: who takes part in it, who may not, and when the threads end.

That no bit changes is what test_native.py and kernels/fuzz.c compare; that nothing races, native/threads.c.
"""

from __future__ import annotations

import gc
import math
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest

from caq import program
from caq.engine import Engine
from caq.errors import ConfigError
from caq.graph import Graph, Op
from caq.model import Model
from tests import models

ISAS = [name for name, reason in program.isa_names().items() if not reason]
TIMEOUT_S = 30


@pytest.fixture(autouse=True)
def four_cpus(monkeypatch):
    """As many threads as tests ask for, whatever this machine has."""
    monkeypatch.setattr(program, "cpus", lambda: 4)


def large(seed: int = 0) -> Model:
    """Convolutions, one of them depthwise, a pool, and a matrix times a vector: each worth several parts."""
    window = {"kernel": (3, 3), "padding": (1, 1, 1, 1)}
    ops = (
        Op("conv", (0,), "dense", channels=64, low=0, high=255, **window),  # type: ignore[arg-type]
        Op("conv", (1,), "depthwise", channels=64, groups=64, low=-128, high=127, **window),  # type: ignore[arg-type]
        Op("conv", (2,), "again", channels=64, low=0, high=255, **window),  # type: ignore[arg-type]
        Op("max_pool", (3,), "pool", kernel=(4, 4), stride=(2, 2)),
        Op("reshape", (4,), "flat", shape=(1, 1, 15 * 15 * 64)),
        Op("conv", (5,), "matrix", channels=300, low=-(2**15), high=2**15 - 1),
    )
    return models.from_graph(Graph((32, 32, 3), ops, (4, 8)), np.random.default_rng(seed))


def team_of(engine: Engine) -> Any:
    assert engine.program is not None
    return engine.program.pointer.team


def running() -> int:
    """Threads of this process."""
    return psutil.Process().num_threads()


# --- the answer


@pytest.mark.parametrize("isa", ISAS)
def test_the_same_answer(isa):
    m = large()
    x = models.samples(m, 2)
    alone = Engine(m, isa=isa)
    for threads in (2, 3, 4):
        engine = Engine(m, isa=isa, threads=threads)
        for point in engine.points:
            alone.select(point)
            engine.select(point)
            for _ in range(3):
                np.testing.assert_array_equal(engine.run(x), alone.run(x))


@pytest.mark.parametrize("threads", [2, 4])
def test_every_thread_takes_part_and_every_part_is_run_once(threads):
    engine = Engine(large(), threads=threads)
    x = models.samples(engine.model, 1)[0]
    wanted = engine.run(x)
    ffi, team = program.ffi, team_of(engine)
    share, steps = team.share, []
    kind = ffi.typeof(share)

    @ffi.callback(kind)
    def watched(team: Any, parts: int, part: Any, context: Any) -> None:
        met = threading.Barrier(threads)
        takers: dict[int, int] = {}

        @ffi.callback(kind.args[2])
        def run(context: Any, index: int) -> None:
            first = threading.get_native_id() not in takers.values()
            assert index not in takers
            takers[index] = threading.get_native_id()
            if first and parts >= threads:
                met.wait(TIMEOUT_S)  # holds this part until every other thread has one, too
            part(context, index)

        share(team, parts, run, context)
        steps.append((parts, len(takers), len(set(takers.values()))))

    team.share = watched
    np.testing.assert_array_equal(engine.run(x), wanted)
    assert len(steps) >= 5
    assert all(taken == parts and takers == threads for parts, taken, takers in steps), steps


def test_small_layers_are_not_cut():
    engine = Engine(models.tiny(), threads=2)
    team = team_of(engine)
    cut: list[int] = []

    @program.ffi.callback(program.ffi.typeof(team.share))
    def share(_team: Any, parts: int, _part: Any, _context: Any) -> None:
        cut.append(parts)

    team.share = share
    engine.run(models.samples(engine.model, 1))
    assert not cut


# --- several inferences


def test_an_inference_never_waits_for_the_threads():
    engine = Engine(large(), threads=2)
    x = models.samples(engine.model, 1)[0]
    wanted, team = engine.run(x), team_of(engine)
    assert team.enter(team) == 1
    assert team.enter(team) == 0
    np.testing.assert_array_equal(engine.run(x), wanted)
    assert team.enter(team) == 0  # the inference did not give back what was not its own
    team.leave(team)
    np.testing.assert_array_equal(engine.run(x), wanted)
    assert team.enter(team) == 1
    team.leave(team)


def test_refused_samples_give_the_threads_back():
    engine = Engine(models.model(0, "float32"), threads=2)
    x = models.samples(engine.model, 1)[0]
    assert engine.plan.run_sample(np.full_like(x, np.nan)) is None
    team = team_of(engine)
    assert team.enter(team) == 1
    team.leave(team)


def test_several_python_threads_over_one_engine():
    engine = Engine(large(), threads=3)
    x = models.samples(engine.model, 4)
    wanted = [engine.run(one) for one in x]
    wrong: list[int] = []

    def infer(i: int) -> None:
        wrong.extend(i for _ in range(100) if not np.array_equal(engine.run(x[i]), wanted[i]))

    callers = [threading.Thread(target=infer, args=(i,)) for i in range(len(x))]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


def test_switching_and_trimming():
    m = large()
    x = models.samples(m, 1)[0]
    alone, engine = Engine(m), Engine(m, threads=2)
    before = running()
    for point in [*engine.points] * 3:
        alone.select(point)
        engine.select(point)
        np.testing.assert_array_equal(engine.run(x), alone.run(x))
        engine.trim()
    assert running() == before


# --- how long threads live


def test_threads_end_with_the_engine():
    before = running()
    engine = Engine(large(), threads=4)
    assert running() == before + 3
    plan, x = engine.plan, models.samples(engine.model, 2)
    wanted = engine.run(x)
    del engine
    np.testing.assert_array_equal(plan.run(x), wanted)  # it outlives its engine, and so do they
    assert running() == before + 3
    del plan
    gc.collect()
    assert running() == before


def test_sleeping_threads_wake_and_end():
    before = running()
    engine = Engine(large(), threads=3)
    x = models.samples(engine.model, 1)[0]
    wanted = engine.run(x)
    for _ in range(5):
        time.sleep(0.02)  # far longer than they look for work before they sleep
        np.testing.assert_array_equal(engine.run(x), wanted)
    time.sleep(0.02)
    del engine
    gc.collect()
    assert running() == before


def test_idle_threads_use_no_cpu():
    engine = Engine(large(), threads=3)
    engine.run(models.samples(engine.model, 1)[0])
    time.sleep(0.05)
    before = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before < 0.1


def test_signals_go_to_other_threads():
    before = set(Path("/proc/self/task").iterdir())
    engine = Engine(large(), threads=3)
    workers = set(Path("/proc/self/task").iterdir()) - before
    assert len(workers) == engine.threads - 1
    for worker in workers:
        lines = dict(line.split(":", 1) for line in (worker / "status").read_text().splitlines())
        assert int(lines["SigBlk"], 16) >> (signal.SIGINT - 1) & 1


# --- forks


def in_a_child(check: Callable[[], None]) -> None:
    """Runs `check` in a child process that is forked off, and sees that it ends well."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            check()
            code = 0
        finally:
            os._exit(code)
    deadline = time.monotonic() + TIMEOUT_S
    while (done := os.waitpid(child, os.WNOHANG))[0] == 0:
        if time.monotonic() > deadline:
            os.kill(child, 9)
            os.waitpid(child, 0)
            pytest.fail("the child hangs")
        time.sleep(0.005)
    assert done[1] == 0


forks = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@forks
def test_a_forked_child_runs_alone():
    engines = [Engine(large(), threads=3)]
    x = models.samples(engines[0].model, 1)[0]
    wanted = engines[0].run(x)

    def check() -> None:
        assert running() == 1
        team = team_of(engines[0])
        assert team.enter(team) == 0
        assert np.array_equal(engines[0].run(x), wanted)
        m = engines[0].model
        engines.clear()
        gc.collect()  # which waits for no thread that is not there
        assert np.array_equal(Engine(m, threads=2).run(x), wanted)  # one that it makes itself has threads

    in_a_child(check)
    np.testing.assert_array_equal(engines[0].run(x), wanted)
    assert running() >= 3


@forks
def test_a_fork_while_threads_are_at_work():
    engine = Engine(large(), threads=2)
    x = models.samples(engine.model, 1)[0]
    wanted = engine.run(x)
    done = threading.Event()

    def infer() -> None:
        while not done.is_set():
            engine.run(x)

    def check() -> None:
        assert np.array_equal(engine.run(x), wanted)

    caller = threading.Thread(target=infer)
    caller.start()
    try:
        for _ in range(20):
            in_a_child(check)
    finally:
        done.set()
        caller.join()


# --- what is accepted


@pytest.mark.parametrize("bad", [0, -1, True, 1.0, 2.5, math.nan, "2", None, [2]])
def test_what_is_no_number_of_threads(bad):
    with pytest.raises(ConfigError, match=r"^threads is .*, an integer of at least 1, not "):
        Engine(models.tiny(), threads=bad)


def test_no_more_threads_than_cpus(monkeypatch):
    monkeypatch.undo()
    before = running()
    engine = Engine(models.tiny(), threads=10**9)
    assert engine.threads == program.cpus() == len(os.sched_getaffinity(0))
    assert running() == before + engine.threads - 1
    monkeypatch.setattr(program, "cpus", lambda: 1)
    assert Engine(models.tiny(), threads=2).threads == 1
    assert running() == before + engine.threads - 1


def test_one_thread_is_the_default():
    before = running()
    engine = Engine(large())
    engine.run(models.samples(engine.model, 1))
    assert engine.threads == 1 and running() == before and not team_of(engine)
    assert Engine(models.tiny(), kernels="reference", threads=4).threads == 1


def test_kernels_without_threads(monkeypatch):
    monkeypatch.setattr(program, "lib", SimpleNamespace(caq_team_bytes=lambda _threads: 0))
    assert program.usable_threads(1) == 1
    with pytest.raises(ConfigError, match=r"without POSIX threads, so 1 is what there is, not 2$"):
        program.usable_threads(2)


CROWDED = """
import resource, psutil
from caq import program
from caq.engine import Engine
from caq.errors import ConfigError
from tests import models
program.cpus = lambda: 200
m = models.tiny()
Engine(m, threads=2)
before = psutil.Process().num_threads()
size = psutil.Process().memory_info().vms
resource.setrlimit(resource.RLIMIT_AS, (size + 2**28, size + 2**28))  # stacks of 8 MiB
try:
    Engine(m, threads=200)
except ConfigError as e:
    print(e)
assert psutil.Process().num_threads() == before
assert Engine(m, threads=2).threads == 2
"""


def test_threads_that_cannot_be_started():
    stack = resource.getrlimit(resource.RLIMIT_STACK)[0]
    if stack != resource.RLIM_INFINITY and stack < 2**22:
        pytest.skip("200 small stacks may fit in the memory that the test leaves")
    done = subprocess.run([sys.executable, "-c", CROWDED], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("threads: 200 cannot be started (") and done.stdout.endswith("; ask for fewer\n")

"""The native kernels under threads: switches while others infer, and the kernels built with ThreadSanitizer."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from caq import native
from caq.engine import Engine
from caq.errors import CaqError
from tests import models
from tests.test_native import ISAS, WIDTHS, samples

SOAK = bool(os.environ.get("CAQ_SOAK"))


@pytest.mark.soak
def test_switches_while_three_infer():
    """One thread switches, over plans that are resident and plans that were trimmed: no output is anything between."""
    switches = 1_000_000 if SOAK else 3000
    engine = Engine(models.model(0, widths=WIDTHS))
    x = samples(engine.model, 1)[0]
    offline = {}
    for name in engine.points:
        engine.select(name)
        offline[name] = engine.run(x).tobytes()
    assert len(set(offline.values())) > len(offline) // 2
    engine = Engine(engine.model)
    done = threading.Event()
    failures: list[object] = []
    seen: list[dict[str, int]] = [dict.fromkeys(offline, 0) for _ in range(3)]

    def infer(count: dict[str, int]) -> None:
        try:
            while not done.is_set():
                y, name = engine.run_at(x)
                count[name] += 1
                if y.tobytes() != offline[name]:
                    failures.append(name)
        except CaqError as e:
            failures.append(e)

    def met(count: dict[str, int]) -> int:
        return sum(c > 0 for c in count.values())

    threads = [threading.Thread(target=infer, args=(count,)) for count in seen]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        names = list(offline)
        rng = np.random.default_rng(0)
        deadline = time.monotonic() + 60
        i = 0
        # No fewer than it takes until all three have met several points.
        while i < switches or (any(met(count) < 2 for count in seen) and time.monotonic() < deadline):
            for at in rng.integers(0, len(names), 1000):
                engine.select(names[at])
                i += 1
                if i % 16 == 0:
                    engine.trim()
    finally:
        done.set()
        for thread in threads:
            thread.join()
        sys.setswitchinterval(before)
    assert not failures
    assert all(met(count) > 1 for count in seen)


def _compiler() -> str:
    found = shutil.which(os.environ.get("CC", "cc"))
    if found is None:
        pytest.skip("no C compiler")
    return found


@pytest.mark.soak
@pytest.mark.parametrize("team", [1, 2, 4])
@pytest.mark.parametrize("isa", ISAS)
def test_threads_under_thread_sanitizer(isa, team, thread_program):
    inferences = 100_000 if SOAK else 500
    command = [*thread_program, isa, str(inferences), str(team)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=3600 if SOAK else 120)
    if "unexpected memory mapping" in done.stderr:
        pytest.skip("ThreadSanitizer cannot run under this kernel's address layout")
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.fullmatch(rf"{isa}: {inferences} inferences, (\d+) shared, \d+ switches, 0 wrong\n", done.stdout)
    assert found is not None and (int(found[1]) > 0) == (team > 1)


@pytest.fixture(scope="session")
def thread_program(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """tests/native/threads.c and the kernels, built with ThreadSanitizer."""
    cc, here = _compiler(), Path(__file__).parent / "native" / "threads.c"
    kernels = Path(native.__file__).parent / "kernels"
    folder = tmp_path_factory.mktemp("tsan")
    empty = folder / "empty.c"
    empty.write_text("int main(void) { return 0; }\n")
    if subprocess.run(
        [cc, "-fsanitize=thread", empty, "-o", folder / "empty"], capture_output=True, check=False
    ).returncode:
        pytest.skip("the compiler has no ThreadSanitizer")
    flags = ["-std=c11", "-O1", "-g", "-fsanitize=thread", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror"]
    sources = [here, *sorted(kernels.glob("*.c"))]
    sources = [s for s in sources if s.name != "_native.c"]  # what cffi writes
    program = folder / "threads"
    subprocess.run([cc, *flags, f"-I{kernels}", *sources, "-pthread", "-lm", "-o", program], check=True)
    return [str(program)]

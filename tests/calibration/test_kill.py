"""kill -9 at random moments of a running calibration: a restart finds the state after some whole step, bit for bit."""

from __future__ import annotations

import multiprocessing
import os
import random
import time
from pathlib import Path

import pytest

import caq
from caq.calibration.calibrator import Calibrator
from tests.calibration import dying

SOAK = bool(os.environ.get("CAQ_SOAK"))


@pytest.mark.soak
def test_kill_9_leaves_the_old_state_or_the_new_one(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.calibration.dying"])
    artifact, folder, draw = str(tmp_path / "x.caq"), tmp_path / "state", random.Random(0)
    caq.save(dying.MODEL, artifact)
    untouched = Path(artifact).read_bytes()
    expected, steps, newer = dying.reference(artifact), 0, 0
    states, usual = [next(expected)], 0.3
    for _ in range(1000 if SOAK else 10):
        mine, its = context.Pipe(duplex=False)
        device = context.Process(target=dying.live, args=(artifact, str(folder), its))
        begin = time.monotonic()
        device.start()
        its.close()
        if draw.random() < 0.5:  # anywhere in its start and its first step, before its word too
            time.sleep(draw.random() * 1.5 * usual)
            told = []
        else:
            told, usual = [mine.recv()], time.monotonic() - begin
            time.sleep(draw.random() * (0.2 + usual) / 2)
        device.kill()
        device.join()
        try:
            while True:
                told.append(mine.recv())
        except EOFError:
            mine.close()
        committed = max([steps, *told])
        with Calibrator(artifact, dying.CORE, folder, dying.CONFIG) as found:
            assert not found.problems and committed <= found.steps <= committed + 1
            steps, newer = found.steps, newer + (found.steps > committed)
            while len(states) <= steps:
                states.append(next(expected))
            assert (dying.checksum(found), found.next_id) == states[steps]
    assert steps > 3 and Path(artifact).read_bytes() == untouched
    assert newer or not SOAK  # some were killed between a state's commit and its word

"""Crashes, errors, power cuts at every system call of a device's life: a start finds the old state or the new one."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from caq.calibration import slots
from caq.calibration.slots import MAX_TRIALS, StateFolder
from caq.calibration.state import State
from caq.errors import StateWriteError
from tests.calibration.disk import Disk, Failing, Killed, Unsynced

SOAK = bool(os.environ.get("CAQ_SOAK"))
A = "a" * 64


class Device:
    """Lives through saves, marks, rejections and restarts, and knows at each moment what a start may find.

    may: numbers of the states that the next start may find, if it finds the state on trial healthy; 0 is the factory's.
    starts: how many runs have begun with what is on trial.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = path
        self.good, self.trial, self.next = 0, 0, 1
        self.may, self.starts = {0}, 0

    def live(self, draw: random.Random, steps: int) -> None:
        """Starts, then does `steps` random things."""
        self.start()
        with self.folder:
            for _ in range(steps):
                action = draw.choice(
                    [self.save, self.save, self.mark, self.reject] + [self.reset] * (draw.random() < 0.1)
                )
                action()

    def start(self) -> None:
        """Opens the folder, finding any state on trial healthy."""
        self.starts += 1
        if self.starts >= MAX_TRIALS:  # too many starts that were cut short: the trial may be over
            self.may |= {self.good}
        self.folder = StateFolder(self.path, A, lambda state: True)
        found = number(self.folder.state)
        assert found in self.may, (found, self.may)
        self.good, self.trial, self.may, self.starts = found, 0, {found}, 0

    def save(self) -> None:
        self.may |= {self.good, self.next}
        self.next += 1
        self.folder.save({"core/x": np.full(40, self.next - 1)}, {})
        self.trial, self.starts = self.next - 1, 1
        self.may = {self.trial}

    def mark(self) -> None:
        if self.trial:
            self.folder.mark_good()
            self.good, self.trial = self.trial, 0

    def reject(self) -> None:
        if self.trial:
            self.may = {self.trial, self.good}
            self.folder.reject()
            self.trial, self.may = 0, {self.good}

    def reset(self) -> None:
        self.may |= {0}
        self.folder.reset()
        self.good, self.trial, self.may = 0, 0, {0}


def number(state: State | None) -> int:
    if state is None:
        return 0
    values = state.arrays["core/x"]
    assert values.shape == (40,) and len(set(values.tolist())) == 1
    return int(values[0])


@contextmanager
def using(monkeypatch: pytest.MonkeyPatch, system: Any) -> Iterator[None]:
    with monkeypatch.context() as m:
        m.setattr(slots, "os", system)
        yield


@pytest.mark.parametrize("how", ["before", "after", "torn"])
def test_a_kill_at_every_system_call_leaves_the_old_state_or_the_new_one(how, tmp_path, monkeypatch):
    monkeypatch.setattr(slots, "os", Unsynced())
    for seed in range(100 if SOAK else 1):
        at = 0
        while True:
            device, system = Device(tmp_path / f"{seed}-{at}"), Failing(at, how)
            try:
                with using(monkeypatch, system):
                    device.live(random.Random(seed), steps=6)
                    device.live(random.Random(seed + 1), steps=3)
            except Killed:
                system.bury()
            device.start()
            device.folder.save({"core/x": np.full(40, 99)}, {})  # and life goes on
            device.folder.close()
            if not system.dead:
                break
            at += 1
        assert at > 60  # every call of a life was the last one once


@pytest.mark.parametrize("how", ["error", "dead"])
def test_an_error_of_every_system_call_aborts_the_update_with_a_typed_error(how, tmp_path, monkeypatch):
    monkeypatch.setattr(slots, "os", Unsynced())
    at = typed = 0
    while True:
        device, system = Device(tmp_path / str(at)), Failing(at, how, error=28)
        try:
            with using(monkeypatch, system):
                device.live(random.Random(0), steps=6)
                device.live(random.Random(1), steps=3)
        except StateWriteError as e:
            typed += 1
            assert "No space left" in str(e)
            device.may |= {device.good}
        except OSError:  # of the folder and its lock, while it is opened or closed
            pass
        except AssertionError:
            # A start whose medium fails passes over what it cannot read, and says so.
            assert device.folder.problems
        system.bury()
        device.start()
        device.folder.save({"core/x": np.full(40, 99)}, {})
        device.folder.close()
        if system.count <= at:
            break
        at += 1
    assert at > 60 and typed > 20


@pytest.mark.soak
def test_a_power_cut_takes_nothing_that_was_committed(monkeypatch):
    cuts, draw = 0, random.Random(0)
    monkeypatch.setattr(slots, "fcntl", SimpleNamespace(flock=lambda *_: None, LOCK_EX=0, LOCK_NB=0))
    while cuts < (1_000_000 if SOAK else 1500):
        disk, device = Disk(), Device("/calibration")
        for _ in range(20):
            system = Failing(draw.randrange(60), draw.choice(["before", "after", "torn"]), target=disk)
            with using(monkeypatch, system):
                try:
                    device.live(draw, steps=4)
                except Killed:
                    cuts += 1
            disk.cut_power(draw)


def test_the_model_of_a_medium_forgets_what_is_not_synced(monkeypatch):
    """The test above can fail: without its fsyncs, the folder loses states."""
    draw = random.Random(0)
    monkeypatch.setattr(slots, "fcntl", SimpleNamespace(flock=lambda *_: None, LOCK_EX=0, LOCK_NB=0))
    lost = 0
    for _ in range(30):
        disk, device = Disk(), Device("/calibration")
        monkeypatch.setattr(disk, "fsync", lambda handle: None, raising=False)
        with using(monkeypatch, disk):
            device.live(draw, steps=4)
            disk.cut_power(draw)
            try:
                device.start()
            except AssertionError:
                lost += 1
    assert lost > 5


CHILD = """
import sys, numpy as np
from caq.calibration.slots import MAX_TRIALS, StateFolder
folder = StateFolder(sys.argv[1], "a" * 64, lambda state: True)
number = 0 if folder.state is None else int(folder.state.arrays["core/x"][0])
while True:
    number += 1
    folder.save({"core/x": np.full(5000, number)}, {})
    if number % 3:
        folder.mark_good()
    print(number, flush=True)
"""


@pytest.mark.soak
def test_kill_9_at_random_moments_leaves_the_old_state_or_the_new_one(tmp_path):
    draw = random.Random(0)
    path = tmp_path / "calibration"
    for _ in range(1000 if SOAK else 6):
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(path)], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        first = child.stdout.readline()  # it is at work
        time.sleep(draw.random() * 0.05)
        child.send_signal(signal.SIGKILL)
        committed = int((first + child.communicate()[0]).split()[-1])
        with StateFolder(path, A, lambda state: True) as folder:
            assert folder.state is not None and folder.problems == []
            values = folder.state.arrays["core/x"]
            assert (values == values[0]).all() and values.shape == (5000,)
            assert committed <= values[0] <= committed + 1

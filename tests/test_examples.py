"""The examples run, for a day each."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def run(name: str, *arguments: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "examples" / name), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


def test_the_single_file_actor_critic_trains() -> None:
    lines = run("train_cleanrl.py", "--days", "2").splitlines()
    first, last = (float(line.split()[-1]) for line in (lines[0], lines[-1]))
    assert last > first + 50


def test_stable_baselines3_trains() -> None:
    pytest.importorskip("stable_baselines3")
    rows = dict(line.split() for line in run("train_sb3.py", "--steps", "2304").splitlines())
    assert float(rows["w4a4"]) > float(rows["full"]) and float(rows["PPO"]) > 0

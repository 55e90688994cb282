"""Steps per second of the environments, beside Gymnasium's own CartPole in the same run.

    python -m benchmarks.environments [--rounds 40] [--devices 4096]

Single environments are made by gymnasium.make, with its wrappers, and take turns of 2,000 steps with CartPole-v1,
resets included. `of_cartpole` is the ratio of the medians. The vector environment steps all devices through whole days,
automatic resets included. Times are of the thread, on one core: other processes on the machine do not count, but for
what they take of caches. Actions are drawn beforehand.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

import simulators  # noqa: F401  registers the environments
from caq.progress import progress

RESULTS = Path(__file__).parent / "results" / "environments.json"
CARTPOLE, OURS = "CartPole-v1", ("caq/BatteryTrace-v0", "caq/LayerBits-v0")
STEPS = 2000
#: What the issue asks for: steps/s over CartPole's, device-steps/s.
LEAST_OF_CARTPOLE, LEAST_DEVICE_STEPS = 1 / 3, 5e6


def turn(env: gymnasium.Env[Any, Any], actions: list[Any]) -> float:
    """Steps per second of the thread's time."""
    start = time.thread_time()
    for action in actions:
        _, _, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            env.reset()
    return len(actions) / (time.thread_time() - start)


def singles(rounds: int) -> dict[str, list[float]]:
    """Steps per second of each environment, `rounds` turns."""
    envs = {name: gymnasium.make(name) for name in (CARTPOLE, *OURS)}
    actions: dict[str, list[Any]] = {}
    for name, env in envs.items():
        env.reset(seed=0)
        env.action_space.seed(0)
        actions[name] = [env.action_space.sample() for _ in range(STEPS)]
        turn(env, actions[name])
    found: dict[str, list[float]] = {name: [] for name in envs}
    with progress("single environments", rounds) as advance:
        for _ in range(rounds):
            for name, env in envs.items():
                found[name].append(turn(env, actions[name]))
            advance("")
    return found


def vector(devices: int, rounds: int) -> list[float]:
    """Device-steps per second of the thread's time, of each of `rounds` days."""
    env = gymnasium.make_vec(OURS[0], devices, vectorization_mode="vector_entry_point")
    env.reset(seed=0)
    rng = np.random.default_rng(0)
    actions = [rng.integers(env.unwrapped.single_action_space.n, size=devices) for _ in range(16)]  # type: ignore[attr-defined]
    steps = env.unwrapped.world.steps + 1  # type: ignore[attr-defined]  # and the reset
    found = []
    with progress("vector environment", rounds) as advance:
        for _ in range(rounds):
            start = time.thread_time()
            for i in range(steps):
                env.step(actions[i % len(actions)])
            found.append(devices * steps / (time.thread_time() - start))
            advance("")
    return found


def summary(rates: list[float]) -> dict[str, int]:
    return {"median": round(statistics.median(rates)), "best": round(max(rates)), "worst": round(min(rates))}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--devices", type=int, default=4096)
    args = parser.parse_args()
    single, many = singles(args.rounds), vector(args.devices, args.rounds)
    medians = {name: statistics.median(rates) for name, rates in single.items()}
    result = {
        "command": f"python -m benchmarks.environments --rounds {args.rounds} --devices {args.devices}",
        "cpu": cpu(),
        "load_average": round(os.getloadavg()[0], 1),
        "versions": {"python": platform.python_version(), "numpy": np.__version__, "gymnasium": gymnasium.__version__},
        "steps_per_s": {name: summary(rates) for name, rates in single.items()},
        "of_cartpole": {name: round(medians[name] / medians[CARTPOLE], 3) for name in OURS},
        "devices": args.devices,
        "device_steps_per_s": summary(many),
    }
    print(json.dumps(result, indent=1))
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    good = medians[OURS[0]] >= LEAST_OF_CARTPOLE * medians[CARTPOLE] and statistics.median(many) >= LEAST_DEVICE_STEPS
    return 0 if good else 1


def cpu() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    raise SystemExit(main())

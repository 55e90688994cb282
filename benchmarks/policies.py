"""Policies on days of held-out devices, beside every fixed operating point and an oracle that knows the day.

    python -m benchmarks.policies [--seeds 20] [--devices 32] [--plot]

A seed is a block of devices that no other one has, and that no policy was trained or chosen on, each with its day and
the charge it begins with. Intervals are of the mean over seeds (Student's t, 95 %); of shares of the oracle's gain over
the best fixed point they are bootstrapped over seeds. The best fixed point is the best one on these very days. Days
kept: days without a moment off, of those that the oracle has none in. `charging known` is what the oracle's plan
returns if it is told when the device will be charged, how warm it is and what memory is free, but of requests only what
is usual by the hour.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import timeit
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.environments import cpu
from caq.context import Context
from caq.graph import Cost
from caq.model import OperatingPoint
from caq.progress import progress
from policies import ThresholdPolicy
from policies.evaluate import Chooser, Played, fixed, of_oracle, of_policy, one_by_one, play, starts
from policies.learned import LearnedPolicy
from policies.lyapunov import LyapunovPolicy
from policies.oracle import Oracle
from policies.pacing import PacingPolicy, read_habits
from policies.points import PointTable
from policies.price import PricePolicy
from policies.seen import PointPolicy
from policies.train.days import Lives, days_of, lives_of
from simulators.envs import Scenario

RESULTS = Path(__file__).parent / "results"
TRAINED = Path(__file__).parent.parent / "policies" / "trained"
HABITS, PRICE = TRAINED / "camera-habits.npz", TRAINED / "camera-price.npz"
LEVELS = 65
#: What plans are not told, and of how many levels and in how many seeds they are.
UNTOLD_LEVELS, UNTOLD_SEEDS = 33, 4
UNTOLD: dict[str, tuple[str, ...]] = {
    "nothing": (),
    "charging": ("charging",),
    "requests": ("requests",),
    "memory": ("memory_available",),
    "temperature": ("ambient_c",),
    "charging and requests": ("charging", "requests"),
}
#: What Lyapunov's parameters are chosen from, on validation devices.
TARGETS, VS = (0.8, 0.9, 1.0, 1.1, 1.2), (0.3, 0.6, 1.0, 2.0, 3.0, 6.0)
VALIDATION_DEVICES = 256
#: Those to which the days before make a difference.
REMEMBER = ("pacing", "price")
#: What the best policy is to reach, and how fast the learned one is to be.
LEAST_GAIN, LEAST_KEPT, MOST_US = 0.75, 0.95, 50.0


def choose_lyapunov(points: PointTable) -> LyapunovPolicy:
    """The best of a grid on validation devices."""
    validation = days_of("validation", VALIDATION_DEVICES)
    charge, energy_j = starts(validation, 0), validation.battery.energy_j
    tried = [LyapunovPolicy(points, energy_j, target, v) for target in TARGETS for v in VS]
    return max(tried, key=lambda policy: play(validation, charge, of_policy(policy)).returns.mean())


def threshold() -> ThresholdPolicy:
    """The shipped rules: the table of costs has points named as they ask."""
    return ThresholdPolicy.from_yaml(Path(__file__).parent.parent / "policies" / "phone.yaml")


def contenders(first: Scenario, ours: dict[str, PointPolicy]) -> dict[str, Callable[[Lives], Chooser]]:
    """How to play each policy in the days of devices."""
    found: dict[str, Callable[[Lives], Chooser]] = {
        name: lambda lives, i=i: fixed(i) for i, name in enumerate(first.costs.names)
    }
    found["threshold"] = lambda lives: one_by_one(threshold, lives.days)
    for name, policy in ours.items():
        remembers = name in REMEMBER
        found[name] = lambda lives, policy=policy, remembers=remembers: of_policy(
            policy, lives.before if remembers else None
        )
    found["oracle"] = lambda lives: of_oracle(Oracle(lives.days, all_days(lives.days), LEVELS))
    return found


def all_days(scenario: Scenario) -> Any:
    return np.arange(len(scenario.days))


def as_usual(scenario: Scenario, training: Scenario, columns: tuple[str, ...]) -> Scenario:
    """The same days, but with columns (T,) that are the mean of training devices' days."""
    days = scenario.days
    mean = {name: np.broadcast_to(getattr(training.days, name).mean(0), days.requests.shape) for name in columns}
    return replace(scenario, days=replace(days, **mean))


def foresight(returns: dict[str, list[Played]], best: str, devices: int) -> dict[str, float]:
    """Share of the oracle's gain over the best fixed point that is left, by what its plan is not told."""
    training = days_of("train", VALIDATION_DEVICES)
    seeds = min(UNTOLD_SEEDS, len(returns[best]))
    floor, top = (np.mean([day.returns.mean() for day in returns[name][:seeds]]) for name in (best, "oracle"))
    found = {}
    for what, columns in UNTOLD.items():
        means = []
        for seed in range(seeds):
            days = lives_of("held_out", devices, seed).days
            oracle = Oracle(as_usual(days, training, columns), all_days(days), UNTOLD_LEVELS)
            means.append(play(days, starts(days, seed), of_oracle(oracle)).returns.mean())
        found[what] = round(float((np.mean(means) - floor) / (top - floor)), 3)
    return found


def interval(values: Any) -> dict[str, float]:
    """Mean over seeds (S,), and half the width of its 95 % interval."""
    from scipy.stats import t

    half = t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return {"mean": round(float(values.mean()), 2), "half_width": round(float(half), 2)}


def share_of_gain(policy: Any, best: Any, oracle: Any) -> dict[str, float]:
    """Of the oracle's gain over the best fixed point, returns (S,) each; 95 % by bootstrap over seeds."""
    rows = np.random.default_rng(0).integers(len(policy), size=(2000, len(policy)))
    share = (policy - best)[rows].mean(1) / (oracle - best)[rows].mean(1)
    low, high = np.quantile(share, (0.025, 0.975))
    mean = (policy - best).mean() / (oracle - best).mean()
    return {"mean": round(float(mean), 3), "low": round(float(low), 3), "high": round(float(high), 3)}


def summary(played: dict[str, list[Played]], points: tuple[str, ...]) -> dict[str, Any]:
    """All that is reported, of each policy's days by seed."""
    returns = {name: np.array([day.returns.mean() for day in days]) for name, days in played.items()}
    best = max(points, key=lambda name: returns[name].mean())
    feasible = [day.off_steps == 0 for day in played["oracle"]]
    policies = {}
    for name, days in played.items():
        kept = np.concatenate([(day.off_steps == 0)[can] for day, can in zip(days, feasible, strict=True)])
        served = sum(day.served.sum() for day in days)
        policies[name] = {
            "return": interval(returns[name]),
            "over_best_fixed": interval(returns[name] - returns[best]),
            "over_threshold": interval(returns[name] - returns["threshold"]),
            "share_of_oracle_gain": share_of_gain(returns[name], returns[best], returns["oracle"]),
            "days_kept": round(float(kept.mean()), 4),
            "accuracy": round(float(sum((day.accuracy * day.served).sum() for day in days) / served), 4),
            "off_steps_a_day": round(float(np.mean([day.off_steps.mean() for day in days])), 2),
            "switches_a_day": round(float(np.mean([day.switches.mean() for day in days])), 1),
        }
    share = float(np.mean(np.concatenate(feasible)))
    return {"best_fixed": best, "days_the_oracle_keeps": round(share, 4), "policies": policies}


def refinement(scenario: Scenario, charge: Any) -> dict[str, dict[str, float]]:
    """The oracle's plan and what it returns, by levels of charge."""
    found = {}
    for levels in (LEVELS // 2 + 1, LEVELS, 2 * LEVELS - 1):
        oracle = Oracle(scenario, all_days(scenario), levels)
        returned = play(scenario, charge, of_oracle(oracle)).returns.mean()
        found[str(levels)] = {"plan": round(float(oracle.value(charge).mean()), 3), "return": round(float(returned), 3)}
    return found


def learned() -> dict[str, LearnedPolicy]:
    """The shipped networks by the name of their algorithm."""
    files = [file for file in sorted(TRAINED.glob("camera-*.npz")) if file not in (HABITS, PRICE)]
    return {file.stem.removeprefix("camera-"): LearnedPolicy.load(file) for file in files}


def decision_us(policies: dict[str, PointPolicy]) -> dict[str, float]:
    """Least time of a `select` on a context with all fields, us."""
    context = Context.from_values(
        state_of_charge=0.5, charging=False, power_w=0.04, memory_available=0.8, temperature_c=25.0, cpu_load=0.01,
        screen_brightness=0.0, time_s=3600.0,
    )  # fmt: skip
    found = {}
    for name, policy in policies.items():
        policy.start(1)
        names = policy.points.names
        offered = tuple(OperatingPoint(point, (), 0.7, "accuracy", 1, Cost(1, 1, 1)) for point in names)
        timer = timeit.Timer(partial(policy.select, context, offered, names[0]))
        found[name] = round(min(timer.repeat(200, 20)) / 20 * 1e6, 1)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--devices", type=int, default=32)
    parser.add_argument("--plot", action="store_true")
    args = parser.parse_args()
    first = lives_of("held_out", args.devices).days
    points = PointTable.of(first.costs, first.device.memory_bytes)
    networks = learned()
    ours = {
        "lyapunov": choose_lyapunov(points),
        "pacing": PacingPolicy(points, read_habits(HABITS)),
        "price": PricePolicy.load(PRICE),
        **networks,
    }
    policies = contenders(first, ours)
    played: dict[str, list[Played]] = {name: [] for name in policies}
    with progress("policies", args.seeds) as advance:
        for seed in range(args.seeds):
            lives = lives_of("held_out", args.devices, seed)
            charge = starts(lives.days, seed)
            for name, make in policies.items():
                played[name].append(play(lives.days, charge, make(lives)))
            advance(f"seed {seed}")
    found = summary(played, first.costs.names)
    result = {
        "command": f"python -m benchmarks.policies --seeds {args.seeds} --devices {args.devices}",
        "cpu": cpu(),
        "versions": {"python": platform.python_version(), "numpy": np.__version__},
        "seeds": args.seeds,
        "devices_of_a_seed": args.devices,
        "oracle_by_levels": refinement(first, starts(first, 0)),
        "lyapunov": {"target": ours["lyapunov"].target, "v_j2": ours["lyapunov"].v_j2},
        "decision_us": decision_us(ours),
        "share_of_gain_if_not_told": foresight(played, found["best_fixed"], args.devices),
        **found,
    }
    (RESULTS / "policies.json").write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))
    if args.plot:
        plot(result, played, RESULTS / "policies.png")
    return judge(result)


def table(result: dict[str, Any]) -> str:
    lines = ["policy           return        over best fixed  share of gain          kept  accuracy  off  switches"]
    for name, row in result["policies"].items():
        share = row["share_of_oracle_gain"]
        lines.append(
            f"{name:15s} {row['return']['mean']:6.1f} ± {row['return']['half_width']:4.1f} "
            f"{row['over_best_fixed']['mean']:7.1f} ± {row['over_best_fixed']['half_width']:4.1f}"
            f"   {share['mean']:5.0%} ({share['low']:4.0%} to {share['high']:4.0%}) {row['days_kept']:6.1%} "
            f"{row['accuracy']:8.1%} {row['off_steps_a_day']:5.1f} {row['switches_a_day']:6.1f}"
        )
    return "\n".join(lines)


def judge(result: dict[str, Any]) -> int:
    """0 if pacing and the learned price are what they should be; says what is not."""
    rows = result["policies"]
    ours = ["pacing", "price"]
    failed = []
    for name in ours:
        for over in ("over_best_fixed", "over_threshold"):
            if rows[name][over]["mean"] <= rows[name][over]["half_width"]:
                failed.append(f"{name}: {over}")
    best = max(ours, key=lambda name: rows[name]["return"]["mean"])
    if rows[best]["share_of_oracle_gain"]["mean"] < LEAST_GAIN:
        failed.append(
            f"{best}: {rows[best]['share_of_oracle_gain']['mean']:.0%} of the oracle's gain, of {LEAST_GAIN:.0%}"
        )
    failed += [f"{name}: days kept" for name in ours if rows[name]["days_kept"] < LEAST_KEPT]
    failed += [f"{name}: {us} us" for name, us in result["decision_us"].items() if us > MOST_US and name == "price"]
    for what in failed:
        print(f"not met: {what}", file=sys.stderr)
    return 1 if failed else 0


def plot(result: dict[str, Any], played: dict[str, list[Played]], path: Path) -> None:
    import matplotlib.pyplot as plt

    figure, (bars, day) = plt.subplots(1, 2, figsize=(12, 4.6), layout="constrained")
    names = [name for name in result["policies"] if result["policies"][name]["over_best_fixed"]["mean"] > -40]
    rows = [result["policies"][name]["over_best_fixed"] for name in names]
    kinds = {"oracle": "tab:green"}
    fixed_points = set(list(result["policies"])[: list(result["policies"]).index("threshold")])
    colours = [kinds.get(name, "silver" if name in fixed_points else "tab:blue") for name in names]
    bars.barh(names, [r["mean"] for r in rows], xerr=[r["half_width"] for r in rows], color=colours, capsize=3)
    bars.axvline(0, color="black", linewidth=0.8)
    bars.invert_yaxis()
    bars.set_xlabel(
        f"return of a day over {result['best_fixed']}'s, the best fixed point (95 %, {result['seeds']} seeds)"
    )
    oracle, learned_price = played["oracle"][0], played["price"][0]
    device = int(np.argmax(np.where(oracle.off_steps == 0, oracle.returns - learned_price.returns, -np.inf)))
    hours = np.linspace(0, 24, len(oracle.state_of_charge))
    for name in (result["best_fixed"], "pacing", "price", "oracle"):
        colour = {"price": "tab:red", **kinds}.get(name)
        day.plot(hours, played[name][0].state_of_charge[:, device], label=name, color=colour)
    day.set(xlabel="hour", ylabel="state of charge", xlim=(0, 24), ylim=(0, 1), xticks=range(0, 25, 4))
    day.set_title("the day of seed 0 in which the oracle gains most over price", fontsize=10)
    day.legend()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    raise SystemExit(main())

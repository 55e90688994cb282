"""How close generated days are to recorded ones: python -m benchmarks.traces --data DIR [--plot]

DIR holds context_extrasensory and memory_bitbrains. The generator was fitted to the training side of their devices
(`simulators.traces.fit`); here its days are compared with the devices held out. Those were seen once, in a picture,
before charging came to follow recorded rates, for which the two humps of the training side were the reason. Generated
phones are looked at just when real ones recorded: for each real phone REPLICAS are generated and only the minutes kept
in which it recorded; minutes with an empty battery are dropped, because a phone that is off records nothing.

Distances are those of Kolmogorov-Smirnov (largest difference of the distribution functions, 0..1) and of Wasserstein
(in the unit of the quantity). The yardstick is how far real devices are from each other: the same distances between
random halves of all real devices (median and 90th percentile of HALVES splits), and between the training side and the
devices held out. Results: benchmarks/results/traces.json.

--train compares with the training side instead, and writes nothing: for choices.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import ks_2samp, wasserstein_distance

from caq.progress import progress
from simulators.traces.days import DAY_STEPS, phone_days
from simulators.traces.fit import Steps, rates, steps
from simulators.traces.real import DAY_S, machines, phones, screen_on, train_and_held_out
from simulators.traces.trace import Trace

RESULTS = Path(__file__).parent / "results" / "traces.json"
REPLICAS = 8
HALVES = 50
THIN = 7
#: Seed of the generated days; not one that the fit uses.
SEED = 20261

Floats = NDArray[np.float64]
#: Values of a quantity by device.
ByDevice = list[Floats]

#: Quantities and their units, in the order of the picture.
UNITS = {
    "drain": "% an hour, over 60 minutes off the charger",
    "charge": "% an hour, over 20 minutes below 80 %",
    "charging session": "minutes",
    "time between chargers": "minutes",
    "screen session": "minutes",
    "charged": "hours a day, of a device",
    "state of charge": "1",
    "available memory": "1",
    "change of memory in 5 minutes": "1",
}


def quantities(traces: Sequence[Trace]) -> dict[str, ByDevice]:
    """Of phones."""
    found: dict[str, ByDevice] = {name: [] for name in UNITS if "memory" not in name}
    for trace in traces:
        charging = trace.columns["charging"]
        walked = steps([trace], [charging])
        found["drain"].append(-windows(walked, 0, 60, 2.0))
        found["charge"].append(windows(walked, 1, 20, 0.8))
        found["charging session"].append(sessions(walked, 1))
        found["time between chargers"].append(sessions(walked, 0))
        on = screen_on(trace)
        if not np.isnan(on).all():
            found["screen session"].append(sessions(steps([trace], [on]), 1))
        found["charged"].append(np.array([24 * np.nanmean(charging)]))
        level = trace.columns["state_of_charge"]
        found["state of charge"].append(level[~np.isnan(level)])
    return found


def windows(found: Steps, on: int, minutes: float, below: float) -> Floats:
    """Percent an hour gained over windows that tile each stretch of the state `on` while below a level."""
    parts = rates(found, (found.on == on) & ~found.changed & (found.level < below), minutes)
    return np.concatenate([100 * gained for _, gained in parts]) if parts else np.empty(0)


def sessions(found: Steps, on: int) -> Floats:
    """Minutes of each stretch in the state `on` whose beginning and end were seen."""
    stretches = found.stretches((found.on == on) & found.seen)
    return np.array([found.minutes[rows].sum() for rows in stretches if found.changed[rows[-1]]])


def as_recorded(real: Sequence[Trace], seed: int) -> list[Trace]:
    """Generated phones in the minutes in which real ones recorded, REPLICAS of each."""
    spans = [np.unique(trace.times_s // DAY_S, return_inverse=True)[1] for trace in real]
    made = phone_days(REPLICAS * len(real), days=1 + max(int(span.max()) for span in spans), seed=seed)
    traces = []
    for replica in range(REPLICAS):
        for at, (trace, day) in enumerate(zip(real, spans, strict=True)):
            minute = day * DAY_STEPS + (trace.times_s % DAY_S // 60).astype(np.intp)
            columns = {
                name: made.columns[name][replica * len(real) + at, minute].astype(np.float64).round(4)
                for name in ("state_of_charge", "charging", "screen_brightness")
            }
            if np.isnan(screen_on(trace)).all():
                columns["screen_brightness"][:] = np.nan
            alive = columns["state_of_charge"] > 0
            kept = {name: column[alive] for name, column in columns.items()}
            if alive.any():
                traces.append(Trace(trace.times_s[alive], kept, "simulators.traces.phone_days", True))
    return traces


def memory(traces: Sequence[Floats]) -> dict[str, ByDevice]:
    """Of columns of available memory every 5 minutes; every THIN-th value, since there are plenty."""
    changes = [np.diff(column)[::THIN] for column in traces]
    return {"available memory": [column[::THIN] for column in traces], "change of memory in 5 minutes": changes}


def distances(a: ByDevice, b: ByDevice) -> dict[str, float]:
    first, second = np.concatenate(a), np.concatenate(b)
    return {
        "ks": float(ks_2samp(first, second).statistic),
        "wasserstein": float(wasserstein_distance(first, second)),
    }


def halves(real: ByDevice, seed: int) -> dict[str, list[float]]:
    """Distances between random halves: [median, 90th percentile]."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(HALVES):
        order = rng.permutation(len(real))
        sides = order[: len(real) // 2], order[len(real) // 2 :]
        found.append(distances(*([real[device] for device in side] for side in sides)))
    return {kind: [float(q) for q in np.quantile([f[kind] for f in found], [0.5, 0.9])] for kind in found[0]}


def compare(train: Mapping[str, ByDevice], out: Mapping[str, ByDevice], made: Mapping[str, ByDevice]) -> dict[str, Any]:
    """Of each quantity the distances, and five quantiles of each side."""
    result = {}
    with progress("distances", len(train)) as advance:
        for name in train:
            sides = {"train": train[name], "held_out": out[name], "generated": made[name]}
            result[name] = {
                "unit": UNITS[name],
                "generated_to_held_out": distances(made[name], out[name]),
                "train_to_held_out": distances(train[name], out[name]),
                "halves_of_real": halves(train[name] + out[name], 0),
                "values": {side: sum(map(len, values)) for side, values in sides.items()},
                "quantiles_5_25_50_75_95": {
                    side: np.quantile(np.concatenate(values), [0.05, 0.25, 0.5, 0.75, 0.95]).round(3).tolist()
                    for side, values in sides.items()
                },
            }
            advance(name)
    return result


def timing() -> dict[str, Any]:
    start_s, cpu_s = time.perf_counter(), time.process_time()
    phone_days(4096)
    return {
        "device_days": 4096,
        "seconds": round(time.perf_counter() - start_s, 2),
        "processor_seconds": round(time.process_time() - cpu_s, 2),
    }


def plot(train: Mapping[str, ByDevice], out: Mapping[str, ByDevice], made: Mapping[str, ByDevice], path: Path) -> None:
    """Distribution functions side by side."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    picture, axes = pyplot.subplots(3, 3, figsize=(13, 10), layout="constrained")
    sides = (
        ("held out", out, "#1769aa", "-"),
        ("trained on", train, "#98a4b0", "-"),
        ("generated", made, "#d9730d", "--"),
    )
    for ax, (name, unit) in zip(axes.flat, UNITS.items(), strict=True):
        for label, side, colour, style in sides:
            values = np.sort(np.concatenate(side[name]))
            devices = "" if label == "generated" else f", {sum(len(v) > 0 for v in side[name])} devices"
            ax.plot(values, np.arange(1, len(values) + 1) / len(values), style, color=colour, label=label + devices)
        low, high = np.quantile(np.concatenate([v for _, side, *_ in sides for v in side[name]]), [0.001, 0.995])
        ax.set(title=name, xlabel=unit, ylabel="share at or below", ylim=(0, 1.02), xlim=(low, high))
        if unit == "minutes":
            ax.set(xscale="symlog", xlim=(0, max(high, 1)))
        ax.grid(color="#e3e8ee")
        ax.legend(fontsize=7, loc="lower right")
    picture.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description="Compares generated days with recorded ones.")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR")
    parser.add_argument("--train", action="store_true", help="compare with the training side, and write nothing")
    parser.add_argument("--plot", type=Path, nargs="?", const=RESULTS.with_suffix(".png"), metavar="FILE.png")
    args = parser.parse_args()
    train, out = train_and_held_out(phones(args.data))
    virtual = [[t.columns["memory_available"] for t in side] for side in train_and_held_out(machines(args.data))]
    target = train if args.train else out
    weeks = phone_days(4 * len(virtual[1]), days=7, seed=SEED).columns["memory_available"].astype(np.float64)
    sides = [quantities(side) for side in (train, out, as_recorded(target, SEED))]
    for side, columns in zip(sides, (*virtual, list(weeks[:, ::5])), strict=True):
        side.update(memory(columns))
    result = compare(sides[0], sides[0] if args.train else sides[1], sides[2])
    for name, found in result.items():
        print(f"{name}, {found['unit']}")
        for key, value in found.items():
            if key != "unit":
                print(f"    {key:24} {json.dumps(value)}")
    if args.plot:
        plot(sides[0], sides[0] if args.train else sides[1], sides[2], args.plot)
    if not args.train:
        about = {"seed": SEED, "replicas": REPLICAS, "python": platform.python_version(), "numpy": np.__version__}
        devices = {"train": [t.device for t in train], "held_out": [t.device for t in out]}
        RESULTS.write_text(json.dumps({**about, "phones": devices, "speed": timing(), "quantities": result}, indent=1))
        print(f"{RESULTS}: written")


if __name__ == "__main__":
    main()

"""The battery's errors on cells and conditions left out of the fit, and the time of a step.

    CAQ_DATA=FOLDER python -m benchmarks.battery [--only errors speed]

Fits simulators/profiles/batteries/ anew: nasa-18650.yaml, and a phone's and a sensor's battery scaled from it. What the
cases mean stands in simulators/fit/battery.py. The circuit's form and its priors were chosen with errors of these cells
in view, so the errors are a little flattered. Writes benchmarks/results/battery.json and battery.png.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.recordings import folder
from simulators.battery import Battery, scaled
from simulators.fit import battery, li_ion
from simulators.fit.battery import Prediction
from simulators.fit.li_ion import LOAD_STEPS, TAIL_STEPS
from simulators.parameters import SHIPPED, load_battery, write

RESULTS = Path(__file__).parent / "results" / "battery.json"
HEAD = "Written by `python -m benchmarks.battery`; the errors are in benchmarks/results/battery.json."
SCALED = {
    "phone-4000mah": (4.0, "a phone's battery of 4 Ah, scaled from an 18650 cell"),
    "sensor-500mah": (0.5, "a sensor's battery of 0.5 Ah, scaled from an 18650 cell"),
}
DEVICES = 4096


def errors() -> dict[str, Any]:
    """Fits, writes the profiles and the picture; returns the errors."""
    discharges, skipped = li_ion.read(folder())
    checked = battery.check(discharges)
    plot([fold["previous_discharge"] for fold in checked["cell"]], RESULTS.with_suffix(".png"))
    profiles = SHIPPED / "batteries"
    cell = battery.fit(discharges).parameters(24, "Li-ion 18650 cell, NASA's at 24 C")
    write(cell, profiles / "nasa-18650.yaml", HEAD)
    for name, (capacity_ah, title) in SCALED.items():
        write(scaled(cell, capacity_ah, title), profiles / f"{name}.yaml", HEAD)
    return {"discharges_left_out_of_everything": skipped, **battery.report(checked)}


def speed(seconds: float = 3.0) -> dict[str, Any]:
    """us of a step of DEVICES devices, discharging and charging."""
    found: dict[str, Any] = {"devices": DEVICES, "numpy": np.__version__, "machine": platform.machine()}
    rng = np.random.default_rng(0)
    for dtype in (np.float32, np.float64):
        battery_ = Battery(load_battery("phone-4000mah"), dtype)
        state = battery_.start(rng.uniform(0.1, 1, DEVICES))
        power, celsius = (rng.uniform(a, b, DEVICES).astype(dtype) for a, b in ((-5, 5), (5, 40)))
        times: list[float] = []
        end = time.perf_counter() + seconds
        while (start := time.perf_counter()) < end:
            battery_.step(state, power, celsius, 60.0)
            times.append(time.perf_counter() - start)
        found[np.dtype(dtype).name] = {
            "p10_us": round(float(np.percentile(times, 10)) * 1e6, 1),
            "median_us": round(float(np.median(times)) * 1e6, 1),
            "p90_us": round(float(np.percentile(times, 90)) * 1e6, 1),
        }
    return found


def plot(predictions: Sequence[Prediction], path: Path) -> None:
    """Three discharges of each cell left out, new to worn out: measured and predicted from the one before."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    picture, axes = pyplot.subplots(3, 3, figsize=(12, 8.4), layout="constrained", sharey=True)
    for ax, found in zip(axes.flat, predictions, strict=True):
        d = found.discharges
        minutes = np.cumsum(d.duration_s, axis=0) / 60
        for color, k in enumerate(np.linspace(1, len(d.cell) - 1, 3).astype(int)):
            shown = slice(0, LOAD_STEPS + TAIL_STEPS)
            label = f"discharge {d.cycle[k]}: {found.rmse_v[k] * 1000:.0f} mV, {found.cutoff_error[k]:+.1%}"
            ax.plot(minutes[shown, k], d.voltage_v[shown, k], color=f"C{color}", label=label)
            ax.plot(minutes[shown, k], found.voltage_v[shown, k], "--", color=f"C{color}")
        ax.axhline(li_ion.CUTOFF_V, color="gray", linewidth=0.6)
        ax.set(title=f"{found.cell}, {d.load_a[0]:.0f} A at {d.ambient_c[0]} C", ylim=(1.7, 4.2))
        ax.legend(fontsize=8, loc="lower left")
    for ax in axes[:, 0]:
        ax.set_ylabel("V")
    for ax in axes[-1]:
        ax.set_xlabel("minutes under load")
    picture.suptitle(
        "Cells left out of the fit: measured (line), predicted (dashed) with capacity and resistance from the "
        "discharge before.\nIn the legend: voltage RMSE down to the cut-off (gray), error of the time to it."
    )
    picture.savefig(path, dpi=80)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.battery", description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=("errors", "speed"), default=["errors", "speed"])
    args = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in args.only:
        results[name] = {"errors": errors, "speed": speed}[name]()
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps({k: v for k, v in results.items() if k in args.only}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The thermal model's errors on runs left out of the fit.

    CAQ_DATA=FOLDER python -m benchmarks.thermal

Fits simulators/profiles/thermal/ anew: raspberry-pi-4.yaml and atlas-200.yaml. What the cases mean stands in
simulators/fit/thermal.py. Writes benchmarks/results/thermal.json and thermal.png.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.recordings import folder
from simulators.fit import runs, thermal
from simulators.fit.runs import STEP_S
from simulators.fit.thermal import Prediction
from simulators.parameters import SHIPPED, write

RESULTS = Path(__file__).parent / "results" / "thermal.json"
HEAD = "Written by `python -m benchmarks.thermal`; the errors are in benchmarks/results/thermal.json."
#: The second mounting of a Pi is for the errors only.
PROFILES = {"pi": "raspberry-pi-4", "atlas": "atlas-200"}


def plot(folds: Sequence[dict[str, Prediction]], path: Path) -> None:
    """Measured and predicted temperature of each run left out."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    picture, axes = pyplot.subplots(3, 4, figsize=(14, 8.4), layout="constrained")
    for ax, fold in zip(axes.flat, folds, strict=False):
        run = fold["mean_room"].run
        minutes = (np.arange(len(run.power_w)) + 1) * STEP_S / 60
        ax.plot(minutes, run.temperature_c[:, 0], color="black", linewidth=1, label="measured")
        for case in ("mean_room", "first_half_hour"):
            found = fold[case]
            rmse = np.sqrt(np.mean(found.error**2))
            shown = found.scored
            ax.plot(minutes[shown], found.temperature_c[shown], "--", label=f"{case.replace('_', ' ')}: {rmse:.1f} K")
        ax.set(title=run.names[0])
        ax.legend(fontsize=8)
    for ax in axes.flat[len(folds) :]:
        ax.set_visible(False)
    for ax in axes[:, 0]:
        ax.set_ylabel("C")
    for ax in axes[-1]:
        ax.set_xlabel("minutes")
    picture.suptitle(
        "Runs left out of the fit; the room's temperature is the mean of the other runs', or fits the first half hour"
    )
    picture.savefig(path, dpi=80)


def main() -> int:
    folds, results = [], {}
    for board in runs.BOARDS:
        found, blank = runs.read(folder(), board), thermal.BLANKS[board]
        left = thermal.leave_out(found, blank)
        results[board] = thermal.report(left)
        folds += left
        if board in PROFILES:
            write(thermal.fit(found, blank), SHIPPED / "thermal" / f"{PROFILES[board]}.yaml", HEAD)
    plot(folds, RESULTS.with_suffix(".png"))
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Do bit flips add to the ladder's other rungs? usc_had, in integers, at 2, 4 and 8 bits.

    python -m benchmarks.flips --folder DATA                  # choices were made on these streams
    python -m benchmarks.flips --folder DATA --reported       # other people on both sides

The flip network learns from a model of all sources but one, which streams: it never sees a target. Each method is the
ladder without twins, with labels (benchmarks.calibrate_stream), and then:

    ladder      nothing
    flips       flips by the trained network
    evidence    flips by a rule in its place: speed in proportion to the evidence's strength
    random      the rule, with random feedback: flips in random directions, about as many

each with the guard, and without (`free`). Accuracies are in %, of the target's test half and of the source's after the
last batch, mean over streams and seeds; flipped: share of codes, in %. They go to benchmarks/results/flips.json, or
flips_choices.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.calibrate_stream import CORE, accuracy
from benchmarks.calibrate_streams import DEV, REPORTED, WIDTHS, Phase, Protocol, usc_had
from caq.calibration.calibrator import Calibrator, make_core
from caq.calibration.config import WITH_FLIPS, WITHOUT_TWINS, CalibratorConfig
from caq.calibration.core import CoreSet
from caq.model import Model
from caq.progress import progress
from caq.sections import StoredFlips
from caq.supernet.flips import Drift, FlipConfig, train_flips

RESULTS = Path(__file__).parent / "results"
METHODS = ("ladder", "flips", "evidence", "random")


def drift_of(folder: Path, cache: Path, sources: tuple[int, ...], seed: int) -> Drift:
    """A model of all sources but the last, which drifts."""
    protocol = usc_had(folder, cache, (sources[:-1], sources[-1:]), seed)
    ((phase,),) = protocol.streams
    x, y = (np.concatenate([getattr(batch, name) for batch in phase.batches]) for name in "xy")
    return Drift(protocol.model, protocol.train.x, protocol.train.y, x, y)


def by_rule(network: StoredFlips, feedback: np.ndarray) -> StoredFlips:
    """A network whose speed is a quarter of the evidence's strength, its first feature."""
    w1, w2 = np.zeros_like(network.w1), np.zeros_like(network.w2)
    w1[:, 0, 0], w2[:, 0] = 32, 16
    return StoredFlips(w1, np.zeros_like(network.b1), w2, np.zeros_like(network.b2), feedback)


def networks(network: StoredFlips, seed: int) -> dict[str, StoredFlips | None]:
    """The flip network of each method."""
    shape = network.feedback.shape
    random = np.random.default_rng(seed).integers(-127, 128, shape).astype(np.int8)
    rules = {"evidence": by_rule(network, network.feedback), "random": by_rule(network, random)}
    return {"ladder": None, "flips": network, **rules}


def run(protocol: Protocol, model: Model, core: CoreSet, phase: Phase, config: CalibratorConfig) -> dict[str, Any]:
    """A stream from its first batch to its last."""
    with Calibrator(model, core, config=config) as calibrator:
        for batch in phase.batches:
            calibrator.partial_fit(batch.x, batch.y)
        found, history, flips = calibrator.coded, calibrator.history, calibrator.model.parameters.flips
    return {
        "target": accuracy(model, found, phase.test),
        "source": accuracy(model, found, protocol.source_test),
        "flipped": [0.0] * len(WIDTHS) if flips is None else (100 * (flips != 0).mean(1)).tolist(),
        "promoted": sum(record["promoted"] for record in history if record["what"] == "flips"),
    }


def table(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over streams and seeds."""
    lines = []
    for method in dict.fromkeys(row["method"] for row in rows):
        some = [row for row in rows if row["method"] == method]
        means = {
            what: np.mean([row[what] for row in some], axis=0).round(1).tolist()
            for what in ("target", "source", "flipped")
        }
        promoted = round(float(np.mean([row["promoted"] for row in some])), 1)
        lines.append({"method": method, "streams": len(some), **means, "promoted": promoted})
    return lines


def command(args: argparse.Namespace) -> str:
    """The command line of these settings, without the caller's folders."""
    text = f"python -m benchmarks.flips --folder DATA --seeds {' '.join(map(str, args.seeds))}"
    text += "" if args.targets is None else f" --targets {args.targets}"
    text += "" if args.methods == METHODS else f" --methods {' '.join(args.methods)}"
    text += "" if own_rates(args) is None else f" --rates {args.rates[0]:g} {args.rates[1]:g}"
    return text + " --reported" * args.reported


def own_rates(args: argparse.Namespace) -> tuple[float, float] | None:
    """Rates that were asked for, if they are not the configuration's."""
    low, high = args.rates
    return None if (low, high) == CalibratorConfig.flip_rates else (low, high)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="has usc_had/")
    parser.add_argument("--cache", type=Path, default=Path("runs/calibrate"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--targets", type=int, help="only so many of the people that stream")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--rates", type=float, nargs=2, default=CalibratorConfig.flip_rates, help="at 2 and at 8 bits")
    parser.add_argument("--reported", action="store_true", help="the streams that are reported")
    args = parser.parse_args()

    sources, targets = REPORTED if args.reported else DEV
    people, rows = (sources, targets[: args.targets]), []
    with progress("flips", len(args.seeds) * len(people[1]) * len(args.methods) * 2) as advance:
        for seed in args.seeds:
            protocol = usc_had(args.folder, args.cache, people, seed)
            core = make_core(protocol.model, protocol.train.x, protocol.train.y, size=CORE, seed=seed)
            drift = drift_of(args.folder, args.cache, sources, seed)
            network = train_flips(protocol.model, [drift], FlipConfig(seed=seed))
            for name, own in networks(network, seed).items():
                if name not in args.methods:
                    continue
                rungs = WITHOUT_TWINS if own is None else WITH_FLIPS
                config = CalibratorConfig(seed=seed, rungs=rungs, flip_rates=tuple(args.rates))
                for guarded in (True, False):
                    method = name if guarded else f"{name} free"
                    for (phase,) in protocol.streams:
                        model, how = protocol.model.replace(flip_network=own), replace(config, guarded=guarded)
                        found = run(protocol, model, core, phase, how)
                        rows.append({"method": method, "seed": seed, "stream": phase.name, **found})
                        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
                        advance(f"{method} {phase.name}")
    result = {
        "command": command(args),
        "versions": {"torch": torch.__version__, "numpy": np.__version__, "python": platform.python_version()},
        "widths": WIDTHS,
        "table": table(rows),
        "rows": rows,
    }
    stem = "flips" + ("" if args.reported else "_choices")
    stem += "" if own_rates(args) is None else f"_{args.rates[0]:g}_{args.rates[1]:g}"
    (RESULTS / f"{stem}.json").write_text(json.dumps(result, indent=1) + "\n")
    for line in result["table"]:
        print(json.dumps(line))
    return 0


if __name__ == "__main__":
    sys.exit(main())

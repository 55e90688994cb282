"""What continual calibration is worth on streams of other people and of noise, in integers, at 8, 4 and 2 bits.

    python -m benchmarks.calibrate_stream --folder DATA

DATA has usc_had/ and speech_commands_kws12/; benchmarks.calibrate_streams says what the streams are, and on which of
them choices were made (--dev shows those). Methods:

    none         no adaptation
    bn           batch norm re-estimated from each batch, without labels and without a guard
    unlabelled   the ladder, without labels
    biases       the ladder's second rung alone, with labels
    unguarded    the ladder without its guard, with labels
    sets         the ladder without twins, with labels
    ladder       the ladder, with labels

Accuracies are in %, of the target's test half and of the source's, after the last batch of each phase, mean over
streams and seeds. Models are kept in --cache. Time and memory of a step: milliseconds of the first, which measures the
source, and the median of later ones; the most that Python and numpy hold at once beyond what they held before, in MiB.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.calibrate_beside import samples, untrained_resnet8
from benchmarks.calibrate_streams import DEV, REPORTED, WIDTHS, Part, Phase, Protocol, kws12, usc_had
from caq.calibration.calibrator import Calibrator, make_core
from caq.calibration.config import WITHOUT_TWINS, CalibratorConfig
from caq.calibration.core import CoreSet
from caq.calibration.sets import coded, logits, parameter_sets
from caq.model import Model
from caq.progress import progress

RESULTS = Path(__file__).parent / "results"
CORE = 200
#: Method -> its configuration, and whether it is given labels; none is None.
METHODS: dict[str, tuple[CalibratorConfig, bool] | None] = {
    "none": None,
    "bn": (CalibratorConfig(rungs=("statistics",), guarded=False), False),
    "unlabelled": (CalibratorConfig(), False),
    "biases": (CalibratorConfig(rungs=("biases",)), True),
    "unguarded": (CalibratorConfig(guarded=False), True),
    "sets": (CalibratorConfig(rungs=WITHOUT_TWINS), True),
    "ladder": (CalibratorConfig(), True),
}


def accuracy(factory: Model, calibrated: Model, part: Part) -> list[float]:
    """In %, at each of WIDTHS; calibrated: as `Calibrator.coded`."""
    sets = tuple(s for s in parameter_sets(factory) if s.name in [f"w{w}a{w}" for w in WIDTHS])
    codes = factory.encode(factory.batch(part.x)[0])[0].astype(np.int16)
    return [100 * float((z.argmax(1) == part.y).mean()) for z in logits(calibrated, sets, codes).values()]


def run(
    protocol: Protocol, core: CoreSet, phases: tuple[Phase, ...], method: tuple[CalibratorConfig, bool] | None
) -> Iterator[dict[str, Any]]:
    """A row for each phase: accuracy on its test half and on the source's when it has ended, promotions and time."""
    calibrator = None if method is None else Calibrator(protocol.model, core, config=method[0])
    for phase in phases:
        promoted, ms = 0, [0.0]
        for batch in phase.batches:
            if calibrator is not None and method is not None:
                result = calibrator.partial_fit(batch.x, batch.y if method[1] else None)
                assert result is not None  # drift is not waited for
                promoted, ms = promoted + sum(r["promoted"] for r in result.records), [*ms, result.ms]
        calibrated = coded(protocol.model) if calibrator is None else calibrator.coded
        target, source = (accuracy(protocol.model, calibrated, part) for part in (phase.test, protocol.source_test))
        yield {"phase": phase.name, "target": target, "source": source, "promoted": promoted, "ms": max(ms)}


def table(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over seeds and streams; usc_had's people are one line."""
    found = []
    keys = dict.fromkeys((r["data"], "people" if r["data"] == "usc_had" else r["phase"], r["method"]) for r in rows)
    for data, phase, method in keys:
        some = [r for r in rows if (r["data"], r["method"]) == (data, method) and phase in ("people", r["phase"])]
        line: dict[str, Any] = {"data": data, "phase": phase, "method": method, "streams": len(some)}
        for what in ("target", "source"):
            values = np.mean([r[what] for r in some], axis=0)
            line |= {f"{what} w{w}": round(float(v), 1) for w, v in zip(WIDTHS, values, strict=True)}
        found.append(line | {"promoted": round(float(np.mean([r["promoted"] for r in some])), 1)})
    return found


def step_cost() -> dict[str, Any]:
    """Time and memory of a step on an untrained ResNet-8 for 32 x 32 images, with 20 samples and a core set of 20."""
    (x, y), model = samples(), untrained_resnet8()
    core, found = make_core(model, x, y, size=20), {}
    for name, method in METHODS.items():
        if method is None:
            continue
        calibrator, ms = Calibrator(model, core, config=method[0]), []
        for i in range(6):
            batch = slice(20 * i, 20 * i + 20)
            if i == 5:
                tracemalloc.start()
            result = calibrator.partial_fit(x[batch], y[batch] if method[1] else None)
            assert result is not None
            ms.append(result.ms)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        # The first step measures the source; the last is slowed down by being traced.
        found[name] = {
            "first_ms": round(ms[0]),
            "ms": round(float(np.median(ms[1:5]))),
            "peak_mib": round(peak / 2**20, 2),
        }
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="has usc_had/ and speech_commands_kws12/")
    parser.add_argument("--cache", type=Path, default=Path("runs/calibrate"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of usc_had's models and streams")
    parser.add_argument("--kws-seeds", type=int, nargs="+", default=[0], help="one takes 17 minutes to train")
    parser.add_argument("--dev", action="store_true", help="the streams that choices are made on; nothing is written")
    args = parser.parse_args()

    rows = []
    cases = [*(("usc_had", seed) for seed in args.seeds), *(("kws12", seed) for seed in args.kws_seeds)]
    with progress("calibrate", len(cases) * len(METHODS)) as advance:
        for data, seed in cases:
            if data == "usc_had":
                protocol = usc_had(args.folder, args.cache, DEV if args.dev else REPORTED, seed)
            else:
                protocol = kws12(args.folder, args.cache, args.dev, seed)
            core = make_core(protocol.model, protocol.train.x, protocol.train.y, size=CORE, seed=seed)
            for name, method in METHODS.items():
                given = None if method is None else (replace(method[0], seed=seed), method[1])
                for phases in protocol.streams:
                    found = run(protocol, core, phases, given)
                    rows += [{"data": data, "seed": seed, "method": name, **row} for row in found]
                advance(f"{data} {seed} {name}")
    result = {
        "command": "python -m benchmarks.calibrate_stream --folder DATA",
        "seeds": {"usc_had": args.seeds, "kws12": args.kws_seeds},
        "numpy": np.__version__,
        "python": platform.python_version(),
        "core_samples": CORE,
        "table": table(rows),
        "step_resnet8_20_samples": step_cost(),
        "rows": rows,
    }
    if args.dev:
        print(json.dumps(result["table"], indent=1))
    else:
        (RESULTS / "calibrate_stream.json").write_text(json.dumps(result, indent=1) + "\n")
        print(json.dumps({k: result[k] for k in ("table", "step_resnet8_20_samples")}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())

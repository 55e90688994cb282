"""Settings of peers, chosen on a person that no reported figure is of: the first of usc_had's DEV streams.

    python -m benchmarks.continual.choose --folder DATA

The one of highest accuracy, mean of target and source and of all widths, is what benchmarks.continual.methods has.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.calibrate_streams import DEV, WIDTHS, usc_had
from benchmarks.continual.forward import ZerothOrder, ZerothOrderSettings
from benchmarks.continual.methods import METHODS, backprop
from benchmarks.continual.start import Method, Start
from benchmarks.continual.stream import follow, last, start_of
from caq.progress import progress

RESULTS = Path(__file__).parent.parent / "results"
#: Learning rate and passes over each batch, of experience replay; its kin and LSQ get the same.
REPLAY = ((1e-3, 5), (1e-3, 10), (3e-3, 5), (3e-3, 10))
ZEROTH_RATES = (1e-4, 1e-3, 1e-2)


def candidates() -> Iterator[tuple[str, dict[str, float], Callable[[Start], Method]]]:
    """Method, settings, and what makes it."""
    yield "none", {}, METHODS["none"]
    for rate, epochs in REPLAY:
        yield "er", {"rate": rate, "epochs": epochs}, backprop("er", rate, epochs)
    for rate in ZEROTH_RATES:
        settings = ZerothOrderSettings(rate=rate)
        yield "qzo", {"rate": rate, "steps": settings.steps}, lambda start, s=settings: ZerothOrder(start, s)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="has usc_had/")
    parser.add_argument("--cache", type=Path, default=Path("runs/continual"))
    args = parser.parse_args()
    protocol = usc_had(args.folder, args.cache, DEV, seed=0)
    protocol = replace(protocol, streams=protocol.streams[:1])
    start, rows = start_of(protocol, 0), []
    tried = list(candidates())
    with progress("choose", len(tried)) as advance:
        for name, settings, make in tried:
            found = follow(protocol, start, make)
            row: dict[str, Any] = {"method": name, **settings, "seconds": round(sum(r["seconds"] for r in found), 1)}
            row |= {what: last(found, what) for what in ("target", "source")}
            row["mean"] = round(sum(row["target"] + row["source"]) / (2 * len(WIDTHS)), 2)
            rows.append(row)
            print(json.dumps(row), flush=True)
            advance(name)
    result = {"command": "python -m benchmarks.continual.choose --folder DATA", "widths": WIDTHS, "rows": rows}
    (RESULTS / "continual_choices.json").write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

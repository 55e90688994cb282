"""The command: python -m simulators.fit battery|thermal --data FOLDER --out FILE.yaml

--data is the folder that holds `li_ion_nasa` and `thermal_power_tiansuan` (CAQ_DATA by default). Cross-validation runs
first and is printed; --no-check leaves it out. --report also writes it as JSON. Exit codes: 0; 1 on bad input.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from caq.errors import CaqError, ConfigError
from simulators.fit import battery, li_ion, runs, thermal
from simulators.parameters import write


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    try:
        if args.data is None:
            raise ConfigError("--data is missing: the folder of the recordings (or set CAQ_DATA)")
        report = args.run(args)
        if args.report is not None:
            args.report.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    except (CaqError, OSError) as error:
        print(f"simulators.fit: {error}", file=sys.stderr)
        return 1
    return 0


def _battery(args: argparse.Namespace) -> dict[str, Any]:
    discharges, skipped = li_ion.read(args.data)
    for line in skipped:
        print(f"left out: {line}", file=sys.stderr)
    report: dict[str, Any] = {}
    if args.check:
        report = battery.report(battery.check(discharges))
        for left in ("cell", "condition"):
            _table(left, report[left], ("voltage_rmse_mv", "time_to_cutoff_error_percent"))
    title = f"Li-ion 18650 cell, NASA's at {args.ambient} C"
    if args.ambient not in discharges.ambient_c:
        raise ConfigError(f"--ambient: no cell was at {args.ambient} C")
    write(
        battery.fit(discharges).parameters(args.ambient, title),
        args.out,
        "Written by `python -m simulators.fit battery`",
    )
    return report


def _thermal(args: argparse.Namespace) -> dict[str, Any]:
    found, blank = runs.read(args.data, args.board), thermal.BLANKS[args.board]
    report = {}
    if args.check:
        report = thermal.report(thermal.leave_out(found, blank))
        _table("run", report, ("rmse_k", "worst_k"))
    write(thermal.fit(found, blank), args.out, "Written by `python -m simulators.fit thermal`")
    return report


def _table(left: str, cases: dict[str, Any], keys: Sequence[str]) -> None:
    print(f"errors with each {left} left out of the fit")
    for case, errors in cases.items():
        print(f"  {case:20}" + "  ".join(f"{key} {errors[key]}" for key in keys))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m simulators.fit", description=__doc__.splitlines()[0])
    kinds = parser.add_subparsers(required=True, metavar="battery|thermal")
    folder = os.environ.get("CAQ_DATA")
    for name, run in (("battery", _battery), ("thermal", _thermal)):
        kind = kinds.add_parser(name)
        kind.set_defaults(run=run)
        kind.add_argument(
            "--data", type=Path, default=Path(folder) if folder else None, help="folder of the recordings"
        )
        kind.add_argument("--out", type=Path, required=True, help="the YAML file to write")
        kind.add_argument("--report", type=Path, help="a JSON file for the errors")
        kind.add_argument("--no-check", dest="check", action="store_false", help="no cross-validation")
        if name == "battery":
            kind.add_argument("--ambient", type=int, default=24, help="C; whose cells' capacity and ageing to write")
        else:
            kind.add_argument("--board", choices=sorted(runs.BOARDS), default="pi")
    return parser


if __name__ == "__main__":
    sys.exit(main())

"""`caq record`: the live context of this device goes into a file that `caq run --trace` replays."""

from __future__ import annotations

import argparse
import math
import time
from typing import Any

from caq.cli.arguments import positive
from caq.cli.output import Output
from caq.context import ContextMonitor, recording
from caq.context.reading import Context
from caq.context.recorder import Recorder
from caq.progress import progress

HELP = "record this device's context into a CSV file that `caq run --trace` replays"

#: Loads and counters need an interval: sources are asked twice before the first row.
WARM_UP_S = 0.1
#: Values are not stale before this age, however short the period: asking all sources takes a while.
FRESH_S = 2.0


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", required=True, metavar="FILE.csv", help="must not exist, unless --append is given")
    parser.add_argument("--append", action="store_true", help="go on with an earlier recording in that file")
    parser.add_argument(
        "--period", type=positive, default=1.0, metavar="S", help="seconds between rows; default %(default)s"
    )
    parser.add_argument("--duration", type=positive, metavar="S", help="for S seconds; default: until Ctrl-C")


def execute(args: argparse.Namespace, output: Output) -> dict[str, Any]:
    monitor = ContextMonitor(args.period, stale_after_s=max(5 * args.period, FRESH_S))
    missing: dict[str, str] = {}
    monitor.poll()
    time.sleep(WARM_UP_S)
    monitor.poll()
    with Recorder(args.out, append=args.append) as recorder:
        try:
            with monitor:
                _record(args, monitor, recorder, missing, output)
        except KeyboardInterrupt:
            # The usual way to end a recording: every row is in the file.
            if not recorder.rows:
                raise
    output.say(f"{recorder.rows} rows in {args.out}, the last at {recorder.last_s:g} s")
    return {
        "out": args.out,
        "rows": recorder.rows,
        "last_t_s": recorder.last_s,
        "period_s": args.period,
        "missing": missing,
    }


def _record(
    args: argparse.Namespace, monitor: ContextMonitor, recorder: Recorder, missing: dict[str, str], output: Output
) -> None:
    """Rows on a fixed schedule, of which a busy machine may miss some; fields that become missing go into `missing`."""
    rows = None if args.duration is None else math.ceil(args.duration / args.period)
    start_s, row = time.monotonic(), 0
    with progress("recording", rows) as advance:
        while rows is None or row < rows:
            time.sleep(max(0.0, start_s + row * args.period - time.monotonic()))
            context = monitor.read()
            t_s = recorder.add(context)
            _say_missing(context, missing, output)
            advance(f"{t_s:.0f} s")
            row = max(row + 1, math.floor((time.monotonic() - start_s) / args.period))


def _say_missing(context: Context, missing: dict[str, str], output: Output) -> None:
    """Says once why a field has no value."""
    for name in recording.COLUMNS:
        if name != recording.TIME and name not in missing and context.value(name) is None:
            missing[name] = context.reading(name).reason or "the last value is too old"
            output.say(f"{name}: left empty: {missing[name]}")

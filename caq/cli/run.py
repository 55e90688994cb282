"""`caq run`: samples go through the runtime while the context, live or recorded, moves its operating point."""

from __future__ import annotations

import argparse
import itertools
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caq.cli.arguments import add_artifact, add_data, positive, whole
from caq.cli.inputs import test_samples
from caq.cli.output import Output, percent
from caq.cli.points import bits_by_layer, describe_widths
from caq.cli.replay import describe_switch, replay
from caq.context import ContextMonitor, RecordedContext
from caq.engine import Engine
from caq.errors import ConfigError, nearest
from caq.runtime import FixedPolicy, Policy, Runtime, Switch, nothing_to_read

HELP = "run test samples while a policy follows this device's context, or a recorded one"

#: Of the live context and its policy, if nothing else is asked for.
PERIOD_S = 1.0
#: For the first readings of the live context, of which some sources need two.
LONGEST_WAIT_S = 2.0


def configure(parser: argparse.ArgumentParser) -> None:
    add_artifact(parser)
    add_data(parser)
    parser.add_argument(
        "--policy",
        default="phone",
        metavar="POINT|phone|rules.yaml",
        help="a point to stay at, or rules; default phone",
    )
    parser.add_argument("--samples", type=whole(1), metavar="N", help="use N samples of the test split; default all")
    parser.add_argument(
        "--period", type=positive, metavar="S", help="seconds between decisions; default 1, or each row"
    )
    parser.add_argument(
        "--seconds", type=positive, metavar="S", help="go on for S seconds, of the trace if there is one"
    )
    parser.add_argument("--trace", metavar="FILE.csv|.npz", help="replay a recorded context, in simulated time")
    parser.add_argument(
        "--per-row", type=whole(1), default=1, metavar="K", help="samples a decision of a trace; default 1"
    )
    parser.add_argument(
        "--speed", type=positive, metavar="X", help="seconds of the trace a second; default: no waiting"
    )


def execute(args: argparse.Namespace, output: Output) -> dict[str, Any]:
    if args.speed is not None and args.trace is None:
        args.usage_error("--speed needs --trace")
    engine = Engine(args.artifact)
    x, y = test_samples(args.data, engine.model, count=args.samples)
    policy = choose_policy(args.policy, engine)
    tally = Tally(engine, y)
    switches: list[Switch] = []
    if args.trace is None:
        context, note = "live", ""
        failures = _run_live(args, engine, policy, x, tally, switches, output)
    else:
        trace = RecordedContext.from_file(args.trace)
        context = f"{args.trace} ({'generated' if trace.generated else 'recorded'})"
        note = nothing_to_read(policy, trace)
        failures = _run_trace(args, engine, policy, trace, x, tally, switches, output)
    for failure in failures:
        output.say(f"{failure.time_s:.1f} s: {failure.reason}")
    points = tally.points()
    rows = [
        {
            "point": p["point"],
            "inferences": p["inferences"],
            "accuracy": "-" if p["accuracy"] is None else f"{p['accuracy']:.4f}",
            **bits_by_layer(p),
        }
        for p in points
    ]
    output.table(f"inferences: {tally.inferences}, switches: {len(switches)}, context: {context}", rows)
    if tally.accuracy is not None:
        output.say(f"accuracy {percent(tally.accuracy)}")
    if note:
        output.say(note)
    return {
        "artifact": args.artifact,
        "data": args.data,
        "policy": args.policy,
        "context": context,
        "notes": [note] if note else [],
        "samples": len(x),
        "inferences": tally.inferences,
        "accuracy": tally.accuracy,
        "layers": [layer.name for layer in engine.model.graph.layers],
        "points": points,
        "switches": [describe_switch(switch) for switch in switches],
        "policy_failures": [describe_switch(failure) for failure in failures],
    }


def choose_policy(name: str, engine: Engine) -> Policy:
    """The policy that `--policy` names. Raises ConfigError for one that does not exist or does not fit."""
    from policies import ThresholdPolicy

    if name in engine.points:
        return FixedPolicy(name)
    if name == "phone":
        return ThresholdPolicy.default(engine.points)
    if Path(name).suffix in (".yaml", ".yml") or Path(name).is_file():
        return ThresholdPolicy.from_yaml(name)
    raise ConfigError(f"no operating point, policy or file of rules {name!r}{nearest(name, [*engine.points, 'phone'])}")


class Tally:
    """Counts inferences, and right ones where the model classifies, by operating point. y: labels (N,)."""

    def __init__(self, engine: Engine, y: NDArray[np.int64]) -> None:
        self._engine = engine
        self._y = y
        self._ran: Counter[str] = Counter()
        self._right: Counter[str] = Counter()

    def add(self, chosen: NDArray[np.int64], outputs: NDArray[np.int16], point: str) -> None:
        """Outputs (k, classes) of the samples at the indices `chosen` (k,)."""
        self._ran[point] += len(chosen)
        self._right[point] += int((outputs.argmax(1) == self._y[chosen]).sum())

    @property
    def inferences(self) -> int:
        return self._ran.total()

    @property
    def accuracy(self) -> float | None:
        """None where the task is to reconstruct."""
        return self._share(self._right.total(), self.inferences)

    def points(self) -> list[dict[str, Any]]:
        """Points that ran, in the artifact's order, with the widths of each layer."""
        return [
            {
                "point": name,
                "inferences": self._ran[name],
                "accuracy": self._share(self._right[name], self._ran[name]),
                **describe_widths(self._engine.model.graph, point),
            }
            for name, point in self._engine.points.items()
            if name in self._ran
        ]

    def _share(self, right: int, ran: int) -> float | None:
        return right / ran if ran and self._engine.model.task == "classify" else None


def _run_live(
    args: argparse.Namespace,
    engine: Engine,
    policy: Policy,
    x: NDArray[np.generic],
    tally: Tally,
    switches: list[Switch],
    output: Output,
) -> list[Switch]:
    """One sample at a time, all of them once or over and over for `--seconds`; returns failures of the policy."""
    period_s = args.period or PERIOD_S
    order = iter(range(len(x))) if args.seconds is None else itertools.cycle(range(len(x)))
    seen = 0
    start_s = time.monotonic()

    def on_switch(switch: Switch) -> None:
        switches.append(_since(start_s, switch))

    with ContextMonitor(period_s) as monitor:
        # Without this the first decision would rest on a context in which nothing has been read yet.
        monitor.wait_ready(LONGEST_WAIT_S)
        with Runtime(engine, policy, monitor, period_s=period_s, on_switch=on_switch) as runtime:
            runtime.step()  # so that the first inference already runs where the policy wants it
            for index in order:
                seen = _say_new(switches, seen, output)
                if args.seconds is not None and time.monotonic() - start_s >= args.seconds:
                    break
                chosen = np.array([index])
                tally.add(chosen, *runtime.run_at(x[chosen]))
        _say_new(switches, seen, output)
        return [_since(start_s, entry) for entry in runtime.history if entry.kept]


def _since(start_s: float, switch: Switch) -> Switch:
    """The switch with its time counted from `start_s`: the clock's own zero means nothing to a reader."""
    return replace(switch, time_s=switch.time_s - start_s)


def _run_trace(
    args: argparse.Namespace,
    engine: Engine,
    policy: Policy,
    trace: RecordedContext,
    x: NDArray[np.generic],
    tally: Tally,
    switches: list[Switch],
    output: Output,
) -> list[Switch]:
    """`--per-row` samples at each decision, in the order of the split; returns failures of the policy."""
    times_s = _decision_times(trace, args.period, args.seconds)
    picks = np.arange(len(times_s) * args.per_row).reshape(-1, args.per_row) % len(x)
    seen = 0
    with Runtime(engine, policy, trace, on_switch=switches.append) as runtime:
        rows = zip(_paced(times_s, args.speed), picks, strict=True)
        for chosen, (outputs, point) in zip(picks, replay(runtime, rows, x), strict=True):
            seen = _say_new(switches, seen, output)
            tally.add(chosen, outputs, point)
        return [entry for entry in runtime.history if entry.kept]


def _decision_times(trace: RecordedContext, period_s: float | None, seconds: float | None) -> NDArray[np.float64]:
    """The trace's rows, or one time each period; of its first `seconds`."""
    first, last = float(trace.times_s[0]), float(trace.times_s[-1])
    times_s = trace.times_s if period_s is None else np.arange(first, last + period_s / 2, period_s)
    return times_s if seconds is None else times_s[times_s < first + seconds]


def _paced(times_s: NDArray[np.float64], speed: float | None) -> Iterator[float]:
    """The times, each when it has come at `speed`; without one, at once."""
    start_s = time.monotonic()
    for t_s in times_s.tolist():
        if speed is not None:
            time.sleep(max(0.0, start_s + (t_s - float(times_s[0])) / speed - time.monotonic()))
        yield t_s


def _say_new(switches: list[Switch], seen: int, output: Output) -> int:
    """Prints the switches after the first `seen`; returns how many there are."""
    for switch in switches[seen:]:
        output.say(f"{switch.time_s:.1f} s: {switch.from_point} -> {switch.to_point}: {switch.reason}")
        seen += 1
    return seen

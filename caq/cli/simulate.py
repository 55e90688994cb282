"""`caq simulate`: an artifact on a simulated device through a day, with one policy or several side by side."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from caq.artifact import load
from caq.cli.arguments import add_artifact, add_seed, positive, whole
from caq.cli.inputs import test_samples
from caq.cli.output import Output, number, percent
from caq.cli.policies import HELP as POLICY_HELP
from caq.cli.policies import Setting, named_policy, policy_names
from caq.cli.replay import describe_switch
from caq.cli.train import check_writable
from caq.costs import load_profile, profile_names
from caq.engine import Engine
from caq.errors import DataError
from caq.model import Model
from caq.progress import progress

if TYPE_CHECKING:
    from simulators.day import Day
    from simulators.device import Device, PointCosts
    from simulators.envs.scenario import Scenario
    from simulators.simulate import Log, Samples

HELP = "take an artifact through a day on a simulated device, and compare policies"

#: More lines than that nobody can tell apart in a picture.
MOST_POLICIES = 5


def configure(parser: argparse.ArgumentParser) -> None:
    add_artifact(parser)
    parser.add_argument(
        "--policy",
        default="threshold",
        metavar="NAME,...",
        help=f"up to {MOST_POLICIES} to compare: {POLICY_HELP}; default %(default)s",
    )
    parser.add_argument(
        "--profile",
        default="bit-serial",
        metavar="NAME|FILE.yaml",
        help=f"what inference costs: {', '.join(profile_names())}, or a file; default %(default)s",
    )
    parser.add_argument(
        "--device",
        default="camera",
        metavar="NAME|FILE.yaml",
        help="battery, heat and requests (see simulators.device); default %(default)s",
    )
    parser.add_argument("--points", metavar="NAME,...", help="operating points to use; default: all of the artifact's")
    day = parser.add_argument_group("the day")
    day.add_argument("--trace", metavar="FILE.csv|.npz", help="a recorded day; default: one that is generated")
    day.add_argument("--day", type=whole(0), default=0, metavar="N", help="number of the generated day; default 0")
    day.add_argument("--start-hour", type=_hour, default=0.0, metavar="H", help="when the trace begins; default 0")
    day.add_argument("--charge", type=_share, metavar="0..1", help="at the start; default: that of the trace, or full")
    day.add_argument("--rate", type=positive, metavar="R", help="requests a second, the mean; default: the device's")
    day.add_argument("--requests", metavar="FILE.csv", help="recorded times of requests (see simulators.arrivals)")
    day.add_argument("--step", type=positive, default=60.0, metavar="S", help="seconds between decisions; default 60")
    add_seed(parser)
    run = parser.add_argument_group("inference")
    run.add_argument(
        "--execute", dest="run_samples", action="store_true", help="run a real sample for each request that is served"
    )
    run.add_argument("--data", metavar="NAME|FILE.npz", help="samples for --execute: digits, or a file (see caq.data)")
    run.add_argument("--samples", type=whole(1), metavar="N", help="use N samples of the test split; default all")
    parser.add_argument(
        "--report", type=Path, default=Path("report.html"), metavar="FILE.html", help="default %(default)s"
    )


def execute(args: argparse.Namespace, output: Output) -> dict[str, Any]:
    if args.run_samples != (args.data is not None):
        args.usage_error("--execute and --data belong together")
    from caq.cli.day_pictures import day_pictures
    from caq.cli.page import write_page
    from simulators.device import PointCosts, read_device
    from simulators.envs.scenario import scenario
    from simulators.simulate import summary

    names = policy_names(args.policy)
    if len(names) > MOST_POLICIES:
        args.usage_error(f"--policy: at most {MOST_POLICIES} at a time, not {len(names)}")
    check_writable(args.report)
    device, model = read_device(args.device), load(args.artifact)
    costs = PointCosts.of(model, load_profile(args.profile))
    if args.points is not None:
        costs = costs.choose(args.points.split(","))
    day = _day(args, device)
    world = scenario(device, costs, days=day.inputs)
    samples = _samples(args, model, len(day.requests)) if args.run_samples else None
    logs = {name: _run(name, model, world, day, samples) for name in names}
    summaries = {name: summary(log) for name, log in logs.items()}
    rows = _rows(summaries, args.run_samples)
    notes = (*day.notes, f"Operating points: {costs.source}.", f"Device: {device.title}.", *_doubts(summaries))
    title = f"{Path(args.artifact).name} on a simulated device: {', '.join(names)}"
    write_page(args.report, title, day_pictures(logs, world), rows, notes)
    output.table(f"{len(day.requests)} requests", rows)
    for note in notes:
        output.say(note)
    output.say(f"wrote {args.report}")
    return {
        "artifact": args.artifact,
        "profile": args.profile,
        "device": args.device,
        "day": day.inputs.source,
        "day_generated": day.inputs.generated,
        "seed": args.seed,
        "step_s": world.days.step_s,
        "duration_s": world.days.step_s * world.days.steps,
        "executed": args.run_samples,
        "data": args.data,
        "points": _points(costs),
        "policies": {name: summaries[name] | _events(logs[name]) for name in names},
        "notes": list(notes),
        "report": str(args.report),
    }


def _day(args: argparse.Namespace, device: Device) -> Day:
    from simulators.arrivals import read_arrivals
    from simulators.day import generated_day, recorded_day
    from simulators.traces import read

    if args.requests is not None and args.rate is not None:
        args.usage_error("--rate makes requests up, and --requests gives those recorded: give one of them")
    arrival_s = None if args.requests is None else read_arrivals(args.requests)
    if args.trace is None:
        charge = 1.0 if args.charge is None else args.charge
        return generated_day(device, args.day, args.seed, args.step, args.rate, charge, arrival_s)
    start_s, drawn = args.start_hour * 3600, (args.seed, args.step, args.rate, args.charge)
    return recorded_day(read(args.trace), device, *drawn, start_s, arrival_s=arrival_s)


def _samples(args: argparse.Namespace, model: Model, requests: int) -> Samples:
    from simulators.simulate import Samples

    if model.task != "classify":
        raise DataError(f"{args.artifact}: --execute counts right labels, and this model does not classify")
    x, y = test_samples(args.data, model, count=args.samples)
    return Samples(x, y, requests, args.seed)


def _run(name: str, model: Model, world: Scenario, day: Day, samples: Samples | None) -> Log:
    from simulators.simulate import Simulation

    engine = Engine(model)
    simulation = Simulation(world, day)
    chosen = {point: engine.points[point] for point in world.costs.names}
    policy = named_policy(name, Setting(chosen, world, simulation))
    with progress(name, world.days.steps) as advance:
        return simulation.run(engine, policy, samples=samples, advance=advance)


def _points(costs: PointCosts) -> list[dict[str, Any]]:
    from simulators.device import COLUMNS

    rows = zip(costs.names, *(getattr(costs, column).tolist() for column in COLUMNS), strict=True)
    return [dict(zip(("name", *COLUMNS), row, strict=True)) for row in rows]


def _events(log: Log) -> dict[str, Any]:
    return {
        "switch_list": [describe_switch(switch) for switch in log.switches],
        "policy_failures": [describe_switch(failure) for failure in log.failures],
    }


def _rows(summaries: dict[str, dict[str, Any]], executed: bool) -> list[dict[str, object]]:
    return [_row(name, s, executed) for name, s in summaries.items()]


def _row(name: str, s: dict[str, Any], executed: bool) -> dict[str, object]:
    seen = s["observed"]
    observed = (
        "-" if seen is None else f"{percent(seen['accuracy'])} ({100 * seen['low']:.1f}..{100 * seen['high']:.1f})"
    )
    shares = sorted(((share, point) for point, share in s["point_shares"].items() if share > 0), reverse=True)
    return {
        "policy": name,
        "lifetime": "the day" if s["lifetime_s"] is None else f"{s['lifetime_s'] / 3600:.1f} h",
        "on": percent(s["on_share"]),
        "served": s["served"],
        "late": s["late"],
        "dropped": s["dropped"],
        "accuracy": "-" if s["accuracy"] is None else percent(s["accuracy"]),
        **({"observed (95 %)": observed} if executed else {}),
        "energy J": number(s["energy_j"]),
        **{f"{part} J": number(s[f"{part}_j"]) for part in ("inference", "idle", "screen", "apps")},
        "switches": s["switches"],
        **{f"h below {percent(float(limit))}": f"{below / 3600:.1f}" for limit, below in s["below_s"].items()},
        "h too hot": f"{s['throttled_s'] / 3600:.1f}",
        "h short of memory": f"{s['over_memory_s'] / 3600:.1f}",
        "time in each point": ", ".join(f"{point} {percent(share)}" for share, point in shares),
    }


def _doubts(summaries: dict[str, dict[str, Any]]) -> Sequence[str]:
    """What a reader must not overlook."""
    found = []
    for name, s in summaries.items():
        if s["failures"]:
            found.append(f"{name} failed {s['failures']} times and kept its point: see the log.")
        seen = s["observed"]
        if seen is not None and not seen["low"] <= s["accuracy"] <= seen["high"]:
            off = 100 * (seen["accuracy"] - s["accuracy"])
            found.append(f"{name}: the accuracy observed is {off:+.2f} points from the one looked up, beyond chance.")
    return found


def _share(text: str) -> float:
    return _within(text, 0.0, 1.0)


def _hour(text: str) -> float:
    return _within(text, 0.0, 23.999)


def _within(text: str, low: float, high: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not low <= value <= high:
        raise argparse.ArgumentTypeError(f"a number from {low:g} to {high:g} is expected, not {text!r}")
    return value

"""`caq demo`: a model is trained, then a phone's day moves it between its operating points, and a page shows how."""

from __future__ import annotations

import argparse
import importlib.util
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caq import artifact, data
from caq.cli.arguments import add_seed, whole
from caq.cli.output import Output, percent
from caq.cli.points import widest_cost
from caq.cli.replay import describe_switch, replay
from caq.cli.report import DayLog, write_report
from caq.cli.train import check_writable, report
from caq.context import RecordedContext, recording
from caq.engine import Engine
from caq.errors import MissingExtraError
from caq.graph import Assignment, Cost
from caq.model import OperatingPoint
from caq.runtime import Policy, Runtime, Switch, nothing_to_read

HELP = "train a small model, replay a phone's day, and write a page that shows what the policy did"

MODEL = "resnet8"
#: Samples at each row of the trace.
PER_ROW = 4
#: Rows over which the report's accuracy rolls: an hour of the generated day.
WINDOW = 60
#: The baselines, and the bits of each.
BASELINES = {"always 8-bit": 8, "always 2-bit": 2}
ADAPTIVE = "adaptive"
NEEDED = {"torch": ("torch", "train"), "sklearn": ("scikit-learn", "train"), "matplotlib": ("matplotlib", "sim")}
NOTES = (
    "The battery, the charger and the temperature are given by the trace: the model's own draw does not move them.",
    "Costs are bit-MACs (multiply-accumulates times weight bits times activation bits) and bytes of weights read. They "
    "are no measurement of energy or time.",
    "Every inference ran in integers at the widths shown, the baselines on the same samples as the adaptive run.",
)


@dataclass(frozen=True, eq=False)
class Strategy:
    """One way through the day, N rows of k samples.

    right (N, k) bool; bit_macs and weight_bytes: (N,) of one inference; shares: of the time in each point, by name.
    """

    name: str
    right: NDArray[np.bool_]
    bit_macs: NDArray[np.int64]
    weight_bytes: NDArray[np.int64]
    shares: dict[str, float]
    switches: tuple[Switch, ...] = ()


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("demo"), metavar="DIR", help="folder to write; default demo")
    parser.add_argument("--trace", metavar="FILE.csv|.npz", help="a recorded day; default: one that is generated")
    add_seed(parser)
    parser.add_argument("--epochs", type=whole(1), default=10, metavar="N", help="default %(default)s")


def execute(args: argparse.Namespace, output: Output) -> dict[str, Any]:
    for module, (package, extra) in NEEDED.items():
        if importlib.util.find_spec(module) is None:
            raise MissingExtraError(package, extra)

    from policies import ThresholdPolicy

    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "digits.caq"
    check_writable(path)
    trace_path, trace = _trace(args)
    digits = data.load("digits")
    picks = np.random.default_rng(args.seed).integers(0, len(digits.y_test), (len(trace.times_s), PER_ROW))
    with _one_thread():
        written = _train(digits, path, args, output)
        engine = Engine(path)
        policy = ThresholdPolicy.default(engine.points)
        strategies, point = _replay(engine, policy, trace, digits, picks)
    rows, origin = _rows(engine, strategies), _origin(trace_path, trace)
    output.table(f"{trace_path}, {PER_ROW} samples at each of its {len(point)} rows", rows)
    unread = nothing_to_read(policy, trace)
    notes = (origin, *([unread] if unread else []), *NOTES)
    page = args.out / "report.html"
    title = "A day of adaptive inference" if args.trace is None else f"Adaptive inference over {trace_path.name}"
    write_report(page, title, _day(engine, trace, strategies, point), rows, notes)
    output.say("\n" + "\n".join(notes))
    output.say(f"wrote {page}")
    return {
        **written,
        "trace": str(trace_path),
        "trace_generated": trace.generated,
        "report": str(page),
        "strategies": [_describe(engine, strategy) for strategy in strategies],
        "switches": [describe_switch(switch) for switch in strategies[0].switches],
        "notes": list(notes),
    }


@contextmanager
def _one_thread() -> Iterator[None]:
    """Holds torch and numpy to one thread: the same model whatever the machine has, and as fast with work this small.

    Where other programs are busy it is several times as fast, because threads that wait for each other spin.
    """
    import torch

    # A requirement of scikit-learn, and so installed where the digits are.
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(before)


def _trace(args: argparse.Namespace) -> tuple[Path, RecordedContext]:
    """The given trace, or a generated one after it has been written."""
    from simulators.traces import phone_day

    if args.trace is not None:
        return Path(args.trace), RecordedContext.from_file(args.trace)
    path = args.out / "day.csv"
    recording.write(path, phone_day(args.seed), {"generated": "true", "seed": str(args.seed)})
    return path, RecordedContext.from_csv(path)


def _origin(path: Path, trace: RecordedContext) -> str:
    if trace.generated:
        return f"The day in {path.name} is generated (simulators.traces), not recorded from a phone."
    return f"The context was replayed from {path.name}, a recording."


def _train(digits: data.Dataset, path: Path, args: argparse.Namespace, output: Output) -> dict[str, Any]:
    from caq.supernet.pipeline import train_model
    from caq.supernet.train import TrainConfig

    output.say(f"training {MODEL} on digits, {args.epochs} epochs ...")
    start_s = time.monotonic()
    model = train_model(digits, MODEL, TrainConfig(epochs=args.epochs, seed=args.seed))
    artifact.save(model, path)
    output.say(f"trained and measured in {time.monotonic() - start_s:.0f} s")
    return report(model, path, output)


def _replay(
    engine: Engine, policy: Policy, trace: RecordedContext, digits: data.Dataset, picks: NDArray[np.int64]
) -> tuple[list[Strategy], list[str]]:
    """The adaptive run and the baselines, and the adaptive run's point at each row."""
    from caq.progress import progress

    x, y = digits.x_test, digits.y_test
    right, point, switches = [], [], list[Switch]()
    with (
        Runtime(engine, policy, trace, on_switch=switches.append) as runtime,
        progress("replaying the day", len(picks)) as advance,
    ):
        rows = zip(trace.times_s.tolist(), picks, strict=True)
        for chosen, (outputs, name) in zip(picks, replay(runtime, rows, x), strict=True):
            right.append(outputs.argmax(1) == y[chosen])
            point.append(name)
            advance(name)
    costs = [engine.points[name].cost for name in point]
    strategies = [_strategy(ADAPTIVE, np.array(right), costs, _shares(trace.times_s, point), tuple(switches))]
    for name, bits in BASELINES.items():
        assignment = engine.model.graph.uniform(bits)
        hits = _hits(engine, assignment, x[picks.ravel()], y[picks.ravel()], name).reshape(picks.shape)
        cost = engine.model.graph.cost(assignment)
        strategies.append(_strategy(name, hits, [cost] * len(picks), {f"w{bits}a{bits}": 1.0}))
    return strategies, point


def _hits(
    engine: Engine, assignment: Assignment, x: NDArray[np.generic], y: NDArray[np.int64], name: str
) -> NDArray[np.bool_]:
    """Which of the samples x (N, ...) an assignment gets right."""
    from caq.progress import progress

    plan, batch = engine.build(assignment), 256
    starts = range(0, len(x), batch)
    outputs = []
    with progress(name, len(starts)) as advance:
        for start in starts:
            outputs.append(engine.run_plan(plan, x[start : start + batch]))
            advance("")
    return np.concatenate(outputs).argmax(1) == y


def _strategy(
    name: str,
    right: NDArray[np.bool_],
    costs: list[Cost],
    shares: dict[str, float],
    switches: tuple[Switch, ...] = (),
) -> Strategy:
    bit_macs = np.array([cost.bit_macs for cost in costs])
    weight_bytes = np.array([cost.weight_bytes for cost in costs])
    return Strategy(name, right, bit_macs, weight_bytes, shares, switches)


def _shares(times_s: NDArray[np.float64], point: list[str]) -> dict[str, float]:
    """Share of the time in each point, most first; the last row lasts as long as rows usually do."""
    steps = np.diff(times_s)
    lasting = np.append(steps, np.median(steps) if len(steps) else 1.0)
    names = np.array(point)
    shares = {name: float(lasting[names == name].sum() / lasting.sum()) for name in dict.fromkeys(point)}
    return dict(sorted(shares.items(), key=lambda pair: -pair[1]))


def _describe(engine: Engine, strategy: Strategy) -> dict[str, Any]:
    widest = widest_cost(engine.model.graph)
    return {
        "strategy": strategy.name,
        "accuracy": float(strategy.right.mean()),
        "inferences": strategy.right.size,
        "bit_macs_mean": float(strategy.bit_macs.mean()),
        "bit_macs_share": float(strategy.bit_macs.mean()) / widest.bit_macs,
        "weight_bytes_share": float(strategy.weight_bytes.mean()) / widest.weight_bytes,
        "switches": len(strategy.switches),
        "time_shares": strategy.shares,
    }


def _rows(engine: Engine, strategies: list[Strategy]) -> list[dict[str, object]]:
    return [
        {
            "strategy": d["strategy"],
            "accuracy, %": round(100 * d["accuracy"], 1),
            "inferences": d["inferences"],
            "bit-MACs, % of 8-bit": round(100 * d["bit_macs_share"], 1),
            "weight bytes, % of 8-bit": round(100 * d["weight_bytes_share"], 1),
            "switches": d["switches"],
            "time in each point": ", ".join(f"{name} {percent(share)}" for name, share in d["time_shares"].items()),
        }
        for d in (_describe(engine, strategy) for strategy in strategies)
    ]


def _day(engine: Engine, trace: RecordedContext, strategies: list[Strategy], point: list[str]) -> DayLog:
    used = sorted((p for p in engine.points.values() if p.name in point), key=_bit_macs, reverse=True)
    names = [p.name for p in used]
    readings = [trace.seek(t_s) for t_s in trace.times_s.tolist()]
    charge = [context.value("state_of_charge") for context in readings]
    return DayLog(
        t_s=trace.times_s,
        state_of_charge=np.array([np.nan if value is None else value for value in charge]),
        charging=np.array([context.value("charging") is True for context in readings]),
        point=np.array([names.index(name) for name in point]),
        point_names=names,
        layer_names=[layer.name for layer in engine.model.graph.layers],
        widths=np.array([[pair.weight for pair in p.assignment] for p in used]),
        accuracy={strategy.name: _rolling(strategy.right) for strategy in strategies},
        bit_macs={strategy.name: strategy.bit_macs * PER_ROW for strategy in strategies},
        baseline=next(iter(BASELINES)),
    )


def _bit_macs(point: OperatingPoint) -> int:
    return point.cost.bit_macs


def _rolling(right: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(N,) mean over the last `WINDOW` rows of `right` (N, k); unknown until there are as many, or all."""
    window = min(WINDOW, len(right))
    sums = np.cumsum(np.concatenate([[0.0], right.mean(1)]))
    rolled = (sums[window:] - sums[:-window]) / window
    return np.concatenate([np.full(window - 1, np.nan), rolled])

"""How often detectors of drift cry wolf, how often they see it, and how late: on people and on noise.

    python -m benchmarks.drift --folder DATA

DATA has usc_had/ and speech_commands_kws12/; benchmarks.drift_streams says what the streams are. Every detector of
statistics is fitted to a model's training samples, its threshold to streams of validation samples of the same subject:
`margin` times the highest statistic on any of them. What is left to choose, margin, memory and least deviation, is
chosen once for each signal, on subjects 1 to 3 as sources and 4 to 6 as targets at both widths: of the settings that
raise the fewest false alarms those that see most, then the soonest. Reported are sources 7 to 10 with targets 11 to 14,
and keywords, at both widths, with these settings. Detectors of errors have the defaults of caq, and see validation
samples first.

An alarm is HITS samples in a row on which a detector of statistics says drift, or one on which a detector of errors
does. false_alarms: streams without drift that raised one, in %; per_1000: such streams for 1,000 samples of them; seen:
streams with drift where an alarm was raised within 200 samples of it, in %; delay: samples from drift to alarm, median
and 90th percentile of those seen. Models are kept in --cache.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.drift_streams import WIDTHS, Case, Domain, kws12, usc_had
from caq.calibration.drift import Detector, StatisticsShift
from caq.calibration.error_streams import ADWIN, DDM, PageHinkley
from caq.calibration.signals import channel_statistics, entropy, saturation
from caq.engine import Engine
from caq.graph import Graph
from caq.model import Model, OperatingPoint
from caq.plan import Parameters
from caq.progress import progress

RESULTS = Path(__file__).parent / "results"
WITHIN = 200
HITS = 8
#: What is chosen from.
MARGINS, MEMORIES = (0.7, 0.85, 1.0, 1.25, 1.5, 2.0, 3.0), (16, 32, 64)
#: In codes, and in shares.
LEAST = {"input": (0.0, 0.5), "features": (0.0, 0.5), "saturation": (0.0, 1e-3, 1e-2), "entropy": (0.0, 1e-2)}
ERROR_DETECTORS: dict[str, Callable[[], Detector]] = {"DDM": DDM, "PageHinkley": PageHinkley, "ADWIN": ADWIN}


@dataclass(frozen=True)
class Setting:
    """Of a StatisticsShift: threshold over the highest statistic of validation streams, 1 / decay, least deviation."""

    margin: float
    memory: int
    least: float = 0.0


class Signals:
    """Signals and errors of domains under one model at one width."""

    def __init__(self, model: Model, width: int) -> None:
        self.engine, self.features = Engine(model), Engine(last_feature_map(model))
        for engine in (self.engine, self.features):
            engine.select(f"w{width}a{width}")

    def of(self, domain: Domain) -> dict[str, NDArray[np.float64]]:
        """(N, F) float64 by name; "errors" are (N, 1), 0 or 1."""
        outputs = self.engine.run(domain.x)
        graph = self.features.model.graph
        codes = self.features.run(domain.x).reshape(len(domain.x), *graph.shapes[-1])
        return {
            "input": channel_statistics(self.engine.model.encode(domain.x)[0]),
            "features": channel_statistics(codes),
            "saturation": saturation(codes, graph.ops[-1].low, graph.ops[-1].high),
            "entropy": entropy(self.engine.probabilities(outputs)),
            "errors": (outputs.argmax(axis=1) != domain.y).astype(np.float64)[:, None],
        }


def last_feature_map(model: Model) -> Model:
    """`model` up to what its global pool reads, with a point for each width."""
    whole, old = model.graph, model.parameters
    count = next(i for i, op in reversed(list(enumerate(whole.ops))) if op.kind == "avg_pool")
    graph = Graph(whole.input_shape, whole.ops[:count], whole.widths)
    layers, channels = len(graph.layers), graph.channels
    parameters = Parameters(
        old.gain[:, :channels],
        old.gain_exponent[:, :layers],
        old.bias[:, :channels],
        old.bias_exponent[:, :layers],
        old.steps[: count + 1],
        old.ratios[:layers],
    )
    uniform = [(f"w{w}a{w}", graph.uniform(w)) for w in graph.widths]
    points = tuple(OperatingPoint(name, a, 0.0, "accuracy", 0, graph.cost(a)) for name, a in uniform)
    planes = model.planes[:, : graph.plane_bytes]
    return model.replace(graph=graph, parameters=parameters, planes=planes, points=points, label_names=())


class Measured:
    """A case's signals at one width, and streams of them from a seed."""

    def __init__(self, case: Case, width: int, streams: int) -> None:
        signals = Signals(case.model, width)
        self.case, self.streams = case, streams
        self.train, self.validation = signals.of(case.train), signals.of(case.validation)
        self.same = signals.of(case.same)
        self.others = {name: signals.of(domain) for name, domain in case.others.items()}

    def fitted(self, name: str, memory: int, least: float) -> StatisticsShift:
        """A detector with this case's reference; its threshold is the highest statistic of validation streams."""
        rng = np.random.default_rng(1)
        order = [self.case.validation.stream(rng) for _ in range(20)]
        shift = StatisticsShift.fit(self.train[name], 1.0, 1 / memory, least)
        highest = float(statistics(shift, self.validation[name][np.array(order)])[:, memory - 1 :].max())
        # Where no validation sample ever saturates, any change is more than that.
        shift.threshold = max(highest, np.finfo(np.float64).tiny)
        return shift

    def pairs(self, name: str) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
        """For each other domain, streams (S, T, F) without drift, and what they go on with (S, T', F)."""
        for other, signals in self.others.items():
            before, after = [], []
            for seed in range(self.streams):
                rng = np.random.default_rng(seed)
                before.append(self.same[name][self.case.same.stream(rng)])
                after.append(signals[name][self.case.others[other].stream(rng, WITHIN)])
            yield np.stack(before), np.stack(after)

    def of_statistics(self, name: str, settings: Sequence[Setting]) -> list[Alarms]:
        """What a detector of statistics does at each setting."""
        found = [Alarms() for _ in settings]
        for memory, least in {(s.memory, s.least) for s in settings}:
            shift = self.fitted(name, memory, least)
            for before, after in self.pairs(name):
                seen = statistics(shift, np.concatenate([before, after], axis=1))
                seen[:, : memory - 1] = 0  # its warm-up
                for setting, alarms in zip(settings, found, strict=True):
                    if (setting.memory, setting.least) == (memory, least):
                        above = in_a_row(seen > setting.margin * shift.threshold, HITS)
                        alarms.add(above[:, : before.shape[1]], above[:, before.shape[1] :])
        return found

    def of_errors(self, detector: Detector) -> Alarms:
        """What a detector of errors does; validation samples are its past."""
        found = Alarms()
        for before, after in self.pairs("errors"):
            for stream, drifted in zip(before[:, :, 0], after[:, :, 0], strict=True):
                detector.reset()
                past = self.validation["errors"][:, 0]
                above = []
                for x in np.concatenate([past, stream, drifted]):
                    detector.update(x)
                    above.append(detector.drift_detected)
                alarms = np.array([above[len(past) :]])
                found.add(alarms[:, : len(stream)], alarms[:, len(stream) :])
        return found


class Alarms:
    """On streams: whether the part without drift raised an alarm, its length, and the samples to one after drift."""

    def __init__(self) -> None:
        self.false: list[bool] = []
        self.length: list[int] = []
        self.delays: list[int | None] = []

    def add(self, before: NDArray[np.bool_], after: NDArray[np.bool_]) -> None:
        """Takes the alarms (S, T) on streams before and after drift."""
        self.false += before.any(axis=1).tolist()
        self.length += [before.shape[1]] * len(before)
        self.delays += [int(row.argmax()) + 1 if row.any() else None for row in after]


def statistics(shift: StatisticsShift, streams: NDArray[np.float64]) -> NDArray[np.float64]:
    """`shift.statistic` after each sample of streams (S, T, F), all streams at once -> (S, T)."""
    reference = shift.to_arrays()
    used = reference["deviation"] > 0
    z = (streams[:, :, used] - reference["mean"][used]) / reference["deviation"][used]
    z = np.clip(z, -shift.LIMIT, shift.LIMIT)
    average, found = np.zeros((len(z), z.shape[2])), np.empty(z.shape[:2])
    for t in range(z.shape[1]):
        average = (1 - shift.decay) * average + shift.decay * z[:, t]
        variance = shift.decay / (2 - shift.decay) * (1 - (1 - shift.decay) ** (2 * (t + 1)))
        found[:, t] = (average**2).mean(axis=1) / variance
    return found


def in_a_row(flags: NDArray[np.bool_], hits: int) -> NDArray[np.bool_]:
    """Where (S, T) the last `hits` flags were all set, as `Debounced` counts until its first alarm."""
    total = np.cumsum(np.pad(flags, ((0, 0), (hits, 0))), axis=1)
    return total[:, hits:] - total[:, :-hits] == hits


def summary(runs: list[Alarms]) -> dict[str, Any]:
    """What the module's docstring says, over all runs of a detector."""
    false = [alarm for run in runs for alarm in run.false]
    delays = [delay for run in runs for delay in run.delays]
    seen = [delay for delay in delays if delay is not None]
    row: dict[str, Any] = {
        "streams": len(false),
        "false_alarms": round(100 * sum(false) / len(false), 1),
        "per_1000": round(1000 * sum(false) / sum(n for run in runs for n in run.length), 2),
        "seen": round(100 * len(seen) / len(delays), 1),
    }
    if seen:
        row["delay"] = [int(np.percentile(seen, q)) for q in (50, 90)]
    return row


def choose(measured: list[Measured], name: str) -> tuple[Setting, dict[str, Any]]:
    """The setting of fewest false alarms, then of most drift seen, then of the shortest delay; and its figures."""
    settings = [Setting(*s) for s in itertools.product(MARGINS, MEMORIES, LEAST[name])]
    runs = [m.of_statistics(name, settings) for m in measured]
    rows = [summary([run[i] for run in runs]) for i in range(len(settings))]
    best = min(range(len(rows)), key=lambda i: _rank(rows[i]))
    return settings[best], rows[best]


def _rank(row: dict[str, Any]) -> tuple[float, float, float]:
    return row["false_alarms"], -row["seen"], row.get("delay", [WITHIN])[0]


def accuracy(measured: list[Measured]) -> dict[str, float]:
    """Accuracy (%) of the same domain, and of the others, mean over cases."""
    same = [100 - 100 * float(m.same["errors"].mean()) for m in measured]
    others = [100 - 100 * float(s["errors"].mean()) for m in measured for s in m.others.values()]
    return {"same": round(float(np.mean(same)), 1), "others": round(float(np.mean(others)), 1)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="has usc_had/ and speech_commands_kws12/")
    parser.add_argument("--streams", type=int, default=12, help="streams of each pair of source and target")
    parser.add_argument("--cache", type=Path, default=Path("runs/drift"))
    args = parser.parse_args()

    chosen_on = [usc_had(args.folder, args.cache, source, [4, 5, 6]) for source in (1, 2, 3)]
    people = [usc_had(args.folder, args.cache, source, [11, 12, 13, 14]) for source in (7, 8, 9, 10)]
    keywords = kws12(args.folder, args.cache)
    noises = {name: replace(keywords, others={name: domain}) for name, domain in keywords.others.items()}
    reported = {"usc_had": people, **{f"kws12, {name}": [case] for name, case in noises.items()}}
    settings: dict[str, Setting] = {}
    result: dict[str, Any] = {
        "command": f"python -m benchmarks.drift --folder DATA --streams {args.streams}",
        "numpy": np.__version__,
        "python": platform.python_version(),
        "hits": HITS,
        "chosen": {},
        "rows": [],
        "accuracy": {},
    }
    with progress("drift", len(LEAST) + len(WIDTHS) * len(reported)) as advance:
        measured = [Measured(case, width, args.streams) for case in chosen_on for width in WIDTHS]
        for name in LEAST:
            settings[name], rows = choose(measured, name)
            result["chosen"][name] = {**asdict(settings[name]), **rows}
            advance(name)
        for width in reversed(WIDTHS):
            for data, cases in reported.items():
                measured = [Measured(case, width, args.streams) for case in cases]
                result["accuracy"][f"{data}, w{width}a{width}"] = accuracy(measured)
                for name in LEAST:
                    rows = summary([m.of_statistics(name, [settings[name]])[0] for m in measured])
                    result["rows"].append({"data": data, "width": width, "detector": f"{name} statistics", **rows})
                for name, make in ERROR_DETECTORS.items():
                    rows = summary([m.of_errors(make()) for m in measured])
                    result["rows"].append({"data": data, "width": width, "detector": f"errors, {name}", **rows})
                advance(data)
    (RESULTS / "drift.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())

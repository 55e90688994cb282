"""`caq calibrate`: streams a domain through an artifact that is calibrated as it goes, and measures what that does."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from caq import artifact
from caq.calibration.calibrator import Calibrator, make_core
from caq.calibration.config import WITH_FLIPS, WITHOUT_TWINS, CalibratorConfig
from caq.calibration.core import CoreSet
from caq.calibration.sets import coded, logits, parameter_sets
from caq.cli.arguments import MAX_SEED, add_artifact, add_data, add_seed, domains, positive, whole
from caq.cli.inputs import fitting
from caq.cli.output import Output, percent
from caq.data import Dataset
from caq.errors import ConfigError, DataError
from caq.model import Model
from caq.progress import progress

#: Samples that are drawn if nothing is said.
CORE_SIZE = 200
HELP = "calibrate an artifact on a stream of another domain, and measure every width on it and on the source"
METHODS = {
    "ladder": CalibratorConfig(),
    "sets": CalibratorConfig(rungs=WITHOUT_TWINS),
    "flips": CalibratorConfig(rungs=WITH_FLIPS),
    "bn": CalibratorConfig(rungs=("statistics",), guarded=False),
    "none": None,
}


class Part(NamedTuple):
    """Samples x (N, ...) and labels y (N,)."""

    x: NDArray[np.generic]
    y: NDArray[np.int64]


class Stream(NamedTuple):
    """What the core set is drawn from, what is tested on, and the batches."""

    source: Part
    source_test: Part
    target_test: Part
    batches: list[Part]


def configure(parser: argparse.ArgumentParser) -> None:
    add_artifact(parser)
    add_data(parser)
    parser.add_argument(
        "--source-domains",
        type=domains,
        metavar="N,...",
        help="that the model was trained on, to draw a core set from; default: the artifact's own core set",
    )
    parser.add_argument(
        "--target-domain", type=whole(-MAX_SEED), required=True, metavar="N", help="half streams, half is tested on"
    )
    parser.add_argument("--batches", type=whole(1), default=10, metavar="N", help="default %(default)s")
    parser.add_argument(
        "--method",
        choices=METHODS,
        default="ladder",
        help="default %(default)s; sets is without twins, flips has that rung instead of them, bn has no guard",
    )
    parser.add_argument("--unlabelled", action="store_true", help="the stream has no labels")
    parser.add_argument(
        "--core-size", type=whole(2), metavar="N", help=f"samples to draw, or all there are; default: {CORE_SIZE}"
    )
    parser.add_argument("--max-ms", type=positive, metavar="MS", help="that a step may compute; default: no limit")
    parser.add_argument(
        "--state", type=Path, metavar="DIR", help="keep there what is learnt, and resume from it; default: nowhere"
    )
    parser.add_argument("--picture", type=Path, metavar="FILE.png", help="draw accuracy over the stream")
    add_seed(parser)


def execute(args: argparse.Namespace, output: Output) -> dict[str, Any]:
    from dataclasses import replace

    model = artifact.load(args.artifact)
    stream = _stream(fitting(args.data, model), args)
    config = METHODS[args.method]
    measure = partial(_row, model, stream)
    rows: list[dict[str, Any]] = [measure(0, coded(model), coded(model), None)]
    history: list[dict[str, Any]] = []
    problems: tuple[str, ...] = ()
    first = 0
    with progress("calibrate", len(stream.batches)) as advance:
        if config is None:
            for i, batch in enumerate(stream.batches):
                rows.append(measure(i + 1, coded(model), coded(model), batch))
                advance(f"batch {i + 1}")
        else:
            config = replace(config, max_ms=args.max_ms, seed=args.seed)
            core = _core(model, stream, args)
            with Calibrator(args.artifact, core, args.state, config) as calibrator:
                problems, first = calibrator.problems, min(calibrator.steps, len(stream.batches))
                if first:
                    output.say(f"{args.state}: resumes after batch {first}")
                    rows[0] = measure(first, calibrator.coded, calibrator.coded, None)
                for i, batch in enumerate(stream.batches[first:], first):
                    before = calibrator.coded
                    result = calibrator.partial_fit(batch.x, None if args.unlabelled else batch.y)
                    assert result is not None  # drift is not waited for
                    rows.append({**measure(i + 1, before, calibrator.coded, batch), "ms": round(result.ms, 1)})
                    advance(f"batch {i + 1}")
                history = list(calibrator.history)
    for problem in problems:
        output.say(problem)
    output.table(f"{args.artifact}, domain {args.target_domain}: accuracy", list(_lines(rows)))
    promoted = [record for record in history if record["promoted"]]
    if config is not None:
        output.say(f"{len(promoted)} of {len(history)} candidates were promoted")
    if args.picture is not None:
        from caq.cli.calibrate_plot import draw

        draw(rows, args.picture)
        output.say(f"{args.picture}: the stream")
    return {
        "artifact": args.artifact,
        "method": args.method,
        "source_domains": None if args.source_domains is None else list(args.source_domains),
        "target_domain": args.target_domain,
        "samples": {name: len(getattr(stream, name).y) for name in ("source_test", "target_test")},
        "resumed_after": first,
        "rows": rows,
        "history": history,
        "problems": list(problems),
    }


def _core(model: Model, stream: Stream, args: argparse.Namespace) -> CoreSet:
    """The artifact's core set, or one that is drawn from the sources."""
    if args.source_domains is not None:
        size = min(args.core_size or CORE_SIZE, len(stream.source.y))
        return make_core(model, *stream.source, size=size, seed=args.seed)
    if model.core is None:
        raise ConfigError(
            f"{args.artifact}: there is no core set in it; make one with `caq core`, or pass --source-domains"
        )
    if args.core_size is not None:
        raise ConfigError(
            "core-size: the artifact's core set is taken as it is; leave it out, or pass --source-domains"
        )
    return CoreSet.from_stored(model.core, model.graph.widths)


def _stream(dataset: Dataset, args: argparse.Namespace) -> Stream:
    """Sources are the domains that were named, or all but the target.

    The core set is drawn from training rows. Where the test split has no row of a source, half of them is tested on.

    Raises DataError on domains without rows.
    """
    if dataset.domain_train is None or dataset.domain_test is None:
        raise DataError(f"{dataset.name}: domain_train and domain_test are needed to stream a domain")
    rng = np.random.default_rng(args.seed)
    x, y = np.concatenate([dataset.x_train, dataset.x_test]), np.concatenate([dataset.y_train, dataset.y_test])
    domain = np.concatenate([dataset.domain_train, dataset.domain_test])
    training = np.arange(len(x)) < len(dataset.x_train)
    target = domain == args.target_domain
    ours = ~target if args.source_domains is None else np.isin(domain, args.source_domains)
    if (ours & target).any():
        raise DataError(f"domain {args.target_domain} is a source and the target")
    source, tested = (rng.permutation(np.flatnonzero(ours & part)) for part in (training, ~training))
    if not len(tested):
        source, tested = source[: len(source) // 2], source[len(source) // 2 :]
    rows = rng.permutation(np.flatnonzero(target))
    if not len(source) or len(rows) < 2 * args.batches:
        known = np.unique(domain).tolist()
        raise DataError(
            f"{dataset.name}: {len(source)} training samples of the sources, {len(rows)} of the target, of which "
            f"{args.batches} batches are asked for; domains: {known}"
        )
    streamed, rest = rows[: len(rows) // 2], rows[len(rows) // 2 :]
    batches = [Part(x[part], y[part]) for part in np.array_split(streamed, args.batches)]
    parts = [Part(x[part], y[part]) for part in (source, tested, rest)]
    return Stream(parts[0], parts[1], parts[2], batches)


def _row(model: Model, stream: Stream, number: int, before: Model, after: Model, batch: Part | None) -> dict[str, Any]:
    """Accuracy, 0..1, of each set: on a batch before it was calibrated with, on the tests after it.

    before, after: `coded` ones of `model`, calibrated.
    """
    row: dict[str, Any] = {"batch": number}
    if batch is not None:
        row["on_batch"] = _accuracy(model, before, batch)
    parts = {"target": stream.target_test, "source": stream.source_test}
    return {**row, **{name: _accuracy(model, after, part) for name, part in parts.items()}}


def _accuracy(model: Model, calibrated: Model, part: Part) -> dict[str, float]:
    codes = model.encode(model.batch(part.x)[0])[0].astype(np.int16)
    found = logits(calibrated, parameter_sets(model), codes)
    return {name: round(float((z.argmax(1) == part.y).mean()), 6) for name, z in found.items()}


def _lines(rows: list[dict[str, Any]]) -> Iterator[dict[str, object]]:
    for row in (rows[0], rows[-1]):
        for name in row["target"]:
            yield {
                "after batch": row["batch"],
                "set": name,
                "target": percent(row["target"][name]),
                "source": percent(row["source"][name]),
            }

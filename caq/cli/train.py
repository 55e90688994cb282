"""`caq train`: trains a network of the zoo and writes its artifact."""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from caq import artifact, data
from caq.cli.arguments import add_core, add_data, add_training, core_config, whole
from caq.cli.output import Output
from caq.cli.points import (
    describe_core,
    describe_features,
    describe_points,
    explain_core,
    explain_features,
    explain_points,
    print_points,
)
from caq.errors import ConfigError
from caq.model import Model

HELP = "train a network for all widths, learn its operating points, and write x.caq; also in several processes"


def configure(parser: argparse.ArgumentParser) -> None:
    add_data(parser)
    parser.add_argument("--model", required=True, metavar="NAME", help="network of the zoo: resnet8, ds_cnn, mlp, ...")
    parser.add_argument("--out", required=True, type=Path, metavar="x.caq", help="file to write")
    parser.add_argument("--epochs", type=whole(1), default=30, metavar="N", help="default %(default)s")
    parser.add_argument(
        "--rotation",
        type=float,
        default=0.0,
        metavar="DEGREES",
        help="turn the axes of motion sensors at random by up to as much; channels are x, y, z of one after the other",
    )
    parser.add_argument(
        "--masking",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="of spectrograms, mask a band of rows and one of columns at random, each up to this share of them",
    )
    add_training(parser, 8e-3, "saved after each epoch; resumed if it exists")
    add_core(parser, "core-", required=False)
    parser.add_argument(
        "--flips",
        action="store_true",
        help="train a network that flips bits in calibration; of data with domains, a fifth is kept back for it",
    )


def execute(args: argparse.Namespace, output: Output) -> dict[str, Any]:
    check_writable(args.out)
    dataset = data.load(args.data)
    measured = dataset.tested_on(args.domain)

    from caq.costs import DEFAULT_BUDGETS, Budget
    from caq.supernet import pipeline
    from caq.supernet.conversion import DEFAULT_WIDTHS
    from caq.supernet.distributed import joined
    from caq.supernet.flips import FlipConfig
    from caq.supernet.train import Outputs, TrainConfig

    if args.threads is not None:
        import torch

        torch.set_num_threads(args.threads)
    config = TrainConfig(args.epochs, args.batch_size, args.learning_rate, seed=args.seed)
    config = replace(config, rotation=args.rotation, masking=args.masking)
    budgets = DEFAULT_BUDGETS if args.budgets is None else [Budget(*budget) for budget in args.budgets]
    conditional = [Budget(*budget) for budget in args.conditional]
    widths = args.widths or DEFAULT_WIDTHS
    core, flips = core_config(args), FlipConfig(seed=args.seed) if args.flips else None
    with joined() as team:
        output.muted = not team.first
        outputs = Outputs(args.checkpoint, args.tensorboard, quiet=output.muted)
        model = pipeline.train_model(measured, args.model, config, widths, budgets, outputs, conditional, core, flips)
    if not team.first:
        return {}
    if args.domain is not None:
        # The weights come from the whole training split: the digest is that of the data as given.
        origin = {"data_sha256": dataset.sha256, "test_domain": args.domain}
        model = model.replace(provenance={**model.provenance, **origin})
    artifact.save(model, args.out)
    return report(model, args.out, output)


def check_writable(path: Path) -> None:
    """Raises ConfigError if a file could not be written to `path`: hours of training must not end with that."""
    if path.is_dir():
        raise ConfigError(f"{path}: is a folder; name a file in it")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ConfigError(f"{path.parent}: no file can be written there: {error.strerror}") from error


def report(model: Model, path: Path, output: Output) -> dict[str, Any]:
    """Says what was written, and returns it for `--json`."""
    records = describe_points(model.graph, model.points)
    size = path.stat().st_size
    print_points(output, f"{path}: {size} bytes", records)
    explain_points(output, model.graph, model.points)
    core = describe_core(model)
    if core is not None:
        output.say(explain_core(core))
    features = describe_features(model)
    if features is not None:
        output.say(explain_features(features))
    found = {"artifact": str(path), "file_bytes": size, "task": model.task, "points": records}
    return {**found, "core": core, "features": features}

"""`caq convert`: makes an artifact of a network that is trained already."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

from caq import artifact, data
from caq.cli.arguments import add_data, add_training, whole
from caq.cli.output import Output
from caq.cli.train import check_writable, report
from caq.errors import ConfigError
from caq.model import TASKS

HELP = "make x.caq from a trained network: an ONNX file, or the weights of a network of the zoo or your own"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="FILE", help="an ONNX file; a state_dict with --model or --module")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--model", metavar="NAME", help="the state_dict is of this network of the zoo")
    which.add_argument("--module", metavar="PACKAGE.MODULE:FUNCTION", help="the state_dict is of what this makes")
    add_data(parser)
    parser.add_argument("--out", required=True, type=Path, metavar="x.caq", help="file to write")
    parser.add_argument(
        "--mean",
        type=_numbers,
        default=(0.0,),
        metavar="F[,F...]",
        help="the network takes (x - mean) / std of the samples in --data; one number or one a channel; default 0",
    )
    parser.add_argument("--std", type=_numbers, default=(1.0,), metavar="F[,F...]", help="see --mean; default 1")
    parser.add_argument(
        "--standardise",
        action="store_true",
        help="instead: by mean and deviation of each channel in the training split, as `caq train` does",
    )
    parser.add_argument("--task", choices=sorted(TASKS), help="default: classify, but for --model autoencoder")
    parser.add_argument(
        "--samples", type=whole(2), default=1024, metavar="N", help="to calibrate on, unlabelled; default %(default)s"
    )
    parser.add_argument("--finetune-epochs", type=whole(0), default=0, metavar="N", help="default: none")
    add_training(parser, 5e-4, "of fine-tuning; resumed if it exists")


def execute(args: argparse.Namespace, output: Output) -> dict[str, Any]:
    check_writable(args.out)
    if args.standardise and (args.mean, args.std) != ((0.0,), (1.0,)):
        raise ConfigError("--standardise takes mean and deviation from the data; leave out --mean and --std")
    dataset = data.load(args.data)
    measured = dataset.tested_on(args.domain)

    from caq.costs import DEFAULT_BUDGETS, Budget
    from caq.scaling import Moments
    from caq.supernet import trained
    from caq.supernet.conversion import DEFAULT_WIDTHS
    from caq.supernet.distributed import joined
    from caq.supernet.pipeline import task_of
    from caq.supernet.train import Outputs, TrainConfig

    if args.threads is not None:
        import torch

        torch.set_num_threads(args.threads)
    if args.model is not None:
        source = trained.load_zoo(args.source, dataset, args.model)
    elif args.module is not None:
        source = trained.load_module(args.source, args.module)
    else:
        source = trained.load_onnx(args.source, dataset)
    # Rounding between layers was calibrated already: nothing is gained by training without it first.
    training = TrainConfig(args.finetune_epochs or 1, args.batch_size, args.learning_rate, rounding_from=0.0)
    config = trained.ConvertConfig(
        samples=args.samples,
        moments=None if args.standardise else Moments(args.mean, args.std),
        seed=args.seed,
        task=args.task or task_of(source.name),
        finetune=training if args.finetune_epochs else None,
    )
    budgets = DEFAULT_BUDGETS if args.budgets is None else [Budget(*pair) for pair in args.budgets]
    conditional = [Budget(*budget) for budget in args.conditional]
    widths = args.widths or DEFAULT_WIDTHS
    with joined() as team:
        output.muted = not team.first
        for note in source.notes:
            output.say(f"{args.source}: {note}")
        outputs = Outputs(args.checkpoint, args.tensorboard, quiet=output.muted)
        model, reference = trained.convert_trained(source, measured, config, widths, budgets, outputs, conditional)
    if not team.first:
        return {}
    if args.domain is not None:
        origin = {"data_sha256": dataset.sha256, "test_domain": args.domain}
        model = model.replace(provenance={**model.provenance, **origin})
    artifact.save(model, args.out)
    found = report(model, args.out, output)
    output.say(
        f"the float network has {TASKS[model.task]} {reference:.4f} on the same input codes; if you know it to have "
        "another, then --mean, --std or the order of the labels are wrong"
    )
    return {**found, "source": str(args.source), "source_sha256": source.sha256, "float_score": reference}


def _numbers(text: str) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = (math.nan,)
    if not all(map(math.isfinite, values)):
        raise argparse.ArgumentTypeError(f"{text!r}: write it like 0.5 or 123.7,116.3,103.5")
    return values

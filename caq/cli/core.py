"""`caq core`: draws a core set for an artifact from data, and keeps it in the artifact."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from caq import artifact
from caq.calibration.making import draw_core, with_calibration_data
from caq.cli.arguments import add_artifact, add_core, add_data, add_seed, core_config, domains
from caq.cli.inputs import fitting
from caq.cli.output import Output
from caq.cli.points import describe_core, describe_features, explain_core, explain_features
from caq.cli.train import check_writable
from caq.errors import DataError
from caq.progress import progress

HELP = "draw a core set for calibration from the training split, by misses of each width, and keep it in the artifact"


def configure(parser: argparse.ArgumentParser) -> None:
    add_artifact(parser)
    add_data(parser)
    add_core(parser, "", required=True)
    parser.add_argument("--domains", type=domains, metavar="N,...", help="draw from these domains; default: all")
    parser.add_argument("--out", type=Path, metavar="y.caq", help="file to write; default: x.caq itself")
    add_seed(parser)


def execute(args: argparse.Namespace, output: Output) -> dict[str, Any]:
    path = Path(args.artifact) if args.out is None else args.out
    check_writable(path)
    model, config = artifact.load(args.artifact), core_config(args)
    assert config is not None  # the options say so
    data = fitting(args.data, model)
    x, y = data.x_train, data.y_train
    if args.domains is not None:
        if data.domain_train is None:
            raise DataError(f"{data.name}: domain_train is needed to draw from some domains")
        chosen = np.isin(data.domain_train, args.domains)
        if not chosen.any():
            known = np.unique(data.domain_train).tolist()
            raise DataError(f"{data.name}: no training sample of domains {args.domains}; there are {known}")
        x, y = x[chosen], y[chosen]
    core = draw_core(model, x, y, config, progress)
    model = with_calibration_data(model, core, x, y, config)
    artifact.save(model, path)
    size, found = path.stat().st_size, describe_core(model)
    assert found is not None
    output.say(f"{path}: {size} bytes")
    output.say(explain_core(found))
    features = describe_features(model)
    if features is not None:
        output.say(explain_features(features))
    return {"artifact": str(path), "file_bytes": size, "drawn_from": len(x), "core": found, "features": features}

"""`caq pack`: an artifact in fewer bytes, to be sent or stored, and back."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from caq import artifact
from caq.cli.arguments import add_artifact
from caq.cli.output import Output
from caq.cli.train import check_writable

HELP = "write an artifact in fewer bytes, to be sent or stored; every command reads it"


def configure(parser: argparse.ArgumentParser) -> None:
    add_artifact(parser)
    parser.add_argument("--out", type=Path, metavar="y.caq", help="file to write; default: x.caq itself")
    parser.add_argument("--undo", action="store_true", help="write the plain file, which can be mapped")


def execute(args: argparse.Namespace, output: Output) -> dict[str, Any]:
    source = Path(args.artifact)
    path = source if args.out is None else args.out
    check_writable(path)
    model = artifact.load(source)
    before = source.stat().st_size
    artifact.save(model, path, packed=not args.undo)
    after = path.stat().st_size
    output.say(f"{path}: {after} bytes, {after / before:.3f} of {source}'s {before}")
    return {"artifact": str(path), "packed": not args.undo, "bytes": after, "bytes_before": before}

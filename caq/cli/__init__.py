"""The `caq` command. Each command is a module: HELP, `configure` for its options, `execute` for its work.

Exit codes: 0; 1 on bad input or a file that cannot be used; 2 on wrong usage; 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import sys
from collections.abc import Sequence

import caq
from caq.cli import (
    calibrate,
    convert,
    core,
    cost,
    demo,
    doctor,
    evaluate,
    fleet,
    info,
    pack,
    profile,
    record,
    run,
    search,
    simulate,
    train,
)
from caq.cli.output import Output
from caq.errors import CaqError

COMMANDS = {
    "train": train,
    "convert": convert,
    "search": search,
    "core": core,
    "calibrate": calibrate,
    "eval": evaluate,
    "info": info,
    "pack": pack,
    "cost": cost,
    "run": run,
    "simulate": simulate,
    "fleet": fleet,
    "record": record,
    "profile": profile,
    "doctor": doctor,
    "demo": demo,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line; returns the exit code. Raises SystemExit on wrong usage, as argparse does."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal that cannot show a degree sign must not end a command.
            stream.reconfigure(errors="backslashreplace")
    args = _parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="caq: %(levelname)s: %(message)s")
    try:
        return _run(args, Output(args.json))
    except KeyboardInterrupt:
        print("caq: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader has left; the interpreter would complain when it flushes what is still buffered.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _run(args: argparse.Namespace, output: Output) -> int:
    try:
        output.finish(args.execute(args, output))
    except BrokenPipeError:
        raise
    except (CaqError, OSError) as error:
        output.fail(error)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="caq", description="Context-aware adaptive quantization.")
    parser.add_argument("--version", action="version", version=f"caq {caq.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, module in COMMANDS.items():
        command = commands.add_parser(name, help=module.HELP, description=module.HELP)
        command.add_argument("--json", action="store_true", help="print one JSON object on standard output")
        module.configure(command)
        command.set_defaults(execute=module.execute, usage_error=command.error)
    return parser

"""Options that commands share, and the types of their values."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path

from caq.calibration.core import METHODS
from caq.calibration.making import CoreConfig

# numpy and torch take larger seeds, but not all the sums that are made of them.
MAX_SEED = 2**31 - 1


def whole(low: int, high: int = MAX_SEED) -> Callable[[str], int]:
    """The type of an integer from `low` to `high`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"an integer from {low} to {high} is expected, not {text!r}")
        return value

    return parse


def positive(text: str) -> float:
    """The type of a finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"a finite number above 0 is expected, not {text!r}")
    return value


def add_artifact(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("artifact", metavar="x.caq", help="the model")


def add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", required=True, metavar="NAME|FILE.npz", help="digits, or a file (see caq.data)")


def add_domain(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--domain", type=whole(-MAX_SEED), metavar="N", help="measure on this domain of the test split")


def domains(text: str) -> tuple[int, ...]:
    """The type of a list of domains."""
    return tuple(sorted({whole(-MAX_SEED)(part) for part in text.split(",")}))


def add_seed(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=whole(0), default=0, metavar="N", help="default %(default)s")


def add_points(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--widths", type=_widths, metavar="2,4,8", help="bits to serve; default 2,3,4,5,6,8")
    parser.add_argument(
        "--budgets",
        type=budgets,
        metavar="NAME=SHARE[:COST],...",
        help="points to learn; share 0 is the cheapest assignment, 1 the widest; COST is bytes, bit_macs, "
        "latency@PROFILE or energy@PROFILE (see caq cost), or else bytes and bit_macs together; default: full, "
        "balanced and saver",
    )
    parser.add_argument(
        "--conditional",
        type=budgets,
        default=[],
        metavar="NAME=SHARE[:COST],...",
        help="points whose inferences each take one of three branches, so that their mean cost fits the share",
    )


def _widths(text: str) -> list[int]:
    return sorted({whole(1, 8)(part) for part in text.split(",")})


def budgets(text: str) -> list[tuple[str, float, str]]:
    found = []
    for part in text.split(","):
        name, _, rest = part.partition("=")
        share, _, cost = rest.partition(":")
        try:
            found.append((name.strip(), float(share), cost.strip()))
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"{text!r}: write it like saver=0.22,full=1 or quick=0.3:latency@bit-serial"
            ) from None
    if len({name for name, *_ in found}) != len(found):
        raise argparse.ArgumentTypeError(f"{text!r}: a name stands there twice")
    return found


def add_core(parser: argparse.ArgumentParser, prefix: str, required: bool) -> None:
    """How to draw a core set; `core_config` reads it. prefix: of the options; required: whether there is to be one."""
    size = parser.add_mutually_exclusive_group(required=True) if required else parser
    size.add_argument(f"--{prefix}size", dest="core_size", type=whole(2), metavar="N", help="samples of the core set")
    size.add_argument(f"--{prefix}bytes", dest="core_bytes", type=whole(1), metavar="B", help="that it may take")
    parser.add_argument(
        f"--{prefix}method",
        dest="core_method",
        choices=METHODS,
        default="pmf",
        help="pmf keeps the distribution of misses, count prefers samples with many; default %(default)s",
    )
    parser.add_argument(
        f"--{prefix}per-class",
        dest="core_per_class",
        type=whole(0),
        default=1,
        metavar="N",
        help="samples that each class has at least; default %(default)s",
    )
    parser.add_argument(
        f"--{prefix}penalty",
        dest="core_penalty",
        type=whole(0),
        metavar="N",
        help="misses of a sample that a width never got right; default, and at most: those of the most missed one",
    )
    parser.add_argument(
        f"--{prefix}features",
        dest="core_features",
        type=whole(0),
        default=0,
        metavar="N",
        help="other samples to keep features of, which the classifier is fitted to on the device; default %(default)s",
    )


def core_config(args: argparse.Namespace) -> CoreConfig | None:
    """What `add_core` asks for; None without a size."""
    if args.core_size is None and args.core_bytes is None:
        return None
    return CoreConfig(
        args.core_size,
        args.core_bytes,
        args.core_method,
        args.core_per_class,
        args.core_penalty,
        args.seed,
        args.core_features,
    )


def add_training(parser: argparse.ArgumentParser, learning_rate: float, checkpoint: str) -> None:
    """What `caq train` and fine-tuning take alike. learning_rate: the default; checkpoint: help on that file."""
    parser.add_argument("--batch-size", type=whole(2), default=64, metavar="N", help="default %(default)s")
    parser.add_argument(
        "--learning-rate", type=float, default=learning_rate, metavar="F", help="at its peak; default %(default)s"
    )
    add_seed(parser)
    add_points(parser)
    beside = f"{checkpoint}; the epochs that train gates' points have a file beside it, its name with -points"
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help=beside)
    parser.add_argument("--tensorboard", type=Path, metavar="DIR", help="folder for losses and learning rates")
    add_domain(parser)
    parser.add_argument("--threads", type=whole(1, 1024), metavar="N", help="of torch; default: its own choice")

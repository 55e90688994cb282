"""Operating points of a supernet: gates choose them half-way, and then the weights learn them.

Joint training gives an assignment that it never drew what its neighbours learnt. The second half of the epochs
therefore trains the gates' own assignments, each with its own row of batch norm (SwitchableNorm), beside the widest,
the narrowest and drawn ones, by a schedule of its own: the learning rate rises and falls again.
docs/joint-training.md has what that gains.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from caq.costs import DEFAULT_BUDGETS, Budget
from caq.graph import Assignment
from caq.supernet.batches import Samples
from caq.supernet.distributed import first_only
from caq.supernet.gates import GateConfig, learn_gate
from caq.supernet.network import Supernet
from caq.supernet.train import Outputs, TrainConfig, reestimate_norms, train_supernet


class Point(NamedTuple):
    """What a gate chose for a budget, and its row of batch norm (Supernet.add_row)."""

    name: str
    assignment: Assignment
    row: int


def train_gated(
    supernet: Supernet,
    train: Samples,
    config: TrainConfig,
    budgets: Sequence[Budget] = DEFAULT_BUDGETS,
    outputs: Outputs = Outputs(),  # noqa: B008
) -> tuple[Point, ...]:
    """Trains `supernet` in place, learns a gate for each budget, and trains their points; returns these.

    `config.point_epochs` of the epochs are the points', if there are budgets. Their checkpoint lies beside that of
    `outputs`, its name with "-points". Raises what `train_supernet` and `learn_gate` raise.
    """
    if not budgets:
        train_supernet(supernet, train, config, outputs)
        return ()
    return train_halves(
        supernet, train, config, lambda: learn_points(supernet, train, config, budgets, outputs.quiet), outputs
    )


def train_halves(
    supernet: Supernet,
    train: Samples,
    config: TrainConfig,
    choose: Callable[[], tuple[Point, ...]],
    outputs: Outputs = Outputs(),  # noqa: B008
) -> tuple[Point, ...]:
    """As `train_gated`, with points that `choose` gives when all but `config.point_epochs` are over; returns these."""
    own = config.point_epochs
    train_supernet(supernet, train, replace(config, epochs=config.epochs - own), outputs)
    points = choose()
    if own:
        path, board = outputs.checkpoint, outputs.tensorboard
        outputs = replace(
            outputs,
            checkpoint=path and path.with_stem(f"{path.stem}-points"),
            tensorboard=board and board / "points",
        )
        config = replace(config, epochs=own, rounding_from=0.0, joint_from=0.0)
        train_supernet(supernet, train, config, outputs, [(p.assignment, p.row) for p in points])
    return points


def learn_points(
    supernet: Supernet, train: Samples, config: TrainConfig, budgets: Sequence[Budget], quiet: bool = False
) -> tuple[Point, ...]:
    """Learns a gate for each budget on the weights as they are, and gives each a row of batch norm of its own.

    Of several processes the first learns. Raises ConfigError on a budget that cannot be kept.
    """
    chosen = _learnt(supernet, train, config, budgets, quiet)
    return tuple(
        Point(budget.name, assignment, supernet.add_row(assignment))
        for budget, assignment in zip(budgets, chosen, strict=True)
    )


@first_only
def _learnt(
    supernet: Supernet, train: Samples, config: TrainConfig, budgets: Sequence[Budget], quiet: bool
) -> list[Assignment]:
    if budgets:
        for width in supernet.widths:
            reestimate_norms(supernet, train, supernet.graph.uniform(width))
    gates = GateConfig(batch_size=config.batch_size, seed=config.seed, quiet=quiet)
    return [learn_gate(supernet, train, budget, gates, config.task) for budget in budgets]

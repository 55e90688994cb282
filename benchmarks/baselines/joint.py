"""Joint training with everything that papers differ in as a setting: what baselines and variants of ours are made of.

`Plan()` is the recipe of `caq.supernet.train.train_supernet`. Networks, quantizers, schedule, augmentation
and batch norm per width are the same in all of them: rows differ in how the widths are trained together, no more.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from caq.errors import ConfigError, TrainingError
from caq.graph import Assignment
from caq.supernet.batches import Samples
from caq.supernet.distributed import Processes, processes
from caq.supernet.network import Supernet
from caq.supernet.train import Learn, Outputs, TrainConfig, distillation_loss, random_assignment, train_steps

#: The loss of logits (n, classes).
Criterion = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Plan:
    """How the widths of a supernet learn from a batch.

    every_width: all widths, instead of the widest, a random assignment and the narrowest.
    summed: gradients of all assignments are summed and the weights updated once, instead of after each.
    wider: the soft targets are those of the next wider assignment (recursive distillation), not of the widest.
    labels: share of cross entropy on labels in the loss of all but the widest, 0..1; the rest is on soft targets.
    smoothing: label smoothing wherever labels are used, 0..1.
    upwards: the narrowest is updated first, the widest last; soft targets are computed before.
    widest_range: only the widest assignment's gradient moves the range of the weights (the limit of ALRS, a learning
    rate of scales that falls by 10 with every narrower width).
    turns: the assignments take turns, one a batch, instead of all learning from every batch.
    mixup: samples are mixed with others, with shares drawn from Beta(mixup, mixup); 0 does not mix (Zhang et al.,
    "mixup: Beyond Empirical Risk Minimization", 2018).
    """

    every_width: bool = False
    summed: bool = False
    wider: bool = False
    labels: float = 0.5
    smoothing: float = 0.0
    upwards: bool = False
    widest_range: bool = False
    turns: bool = False
    mixup: float = 0.0

    def __post_init__(self) -> None:
        if (self.summed and (self.upwards or self.widest_range)) or (self.upwards and self.wider):
            raise ConfigError("a plan with upwards, widest_range or wider contradicts another of its settings")


def train_joint(
    supernet: Supernet,
    train: Samples,
    config: TrainConfig,
    plan: Plan = Plan(),
    outputs: Outputs = Outputs(),  # noqa: B008
    after: Callable[[int], None] = lambda epoch: None,
) -> None:
    """Trains `supernet` in place by `plan`. after: called after each batch with the epoch, from 0."""
    epoch = 0

    def begin(now: int) -> None:
        nonlocal epoch
        epoch = now
        first = min(math.ceil(config.rounding_from * config.epochs), config.epochs - 1)
        if epoch == first:
            supernet.fit_steps(next(train.typical(512, 512))[0], narrow=False)
        supernet.set_rounding(epoch >= first)

    def step(x: Tensor, y: Tensor, rng: np.random.Generator, learn: Learn) -> float:
        x, criterion = augmented(x, y, plan, rng)
        loss = _updates(supernet, plan, _assignments(supernet, plan, rng), x, criterion, learn)
        after(epoch)
        return loss

    train_steps(supernet, train, config, outputs, step, begin, _one_process())
    supernet.set_rounding(True)


def train_plain(
    model: nn.Module,
    train: Samples,
    config: TrainConfig,
    plan: Plan = Plan(),
    outputs: Outputs = Outputs(),  # noqa: B008
    after: Callable[[int], None] = lambda epoch: None,
) -> None:
    """Trains a float network in place with what `plan` says about labels; the rest as in `train_joint`."""
    epoch = 0

    def begin(now: int) -> None:
        nonlocal epoch
        epoch = now

    def step(x: Tensor, y: Tensor, rng: np.random.Generator, learn: Learn) -> float:
        x, criterion = augmented(x, y, plan, rng)
        loss = criterion(model(x))
        learn(loss)
        after(epoch)
        return float(loss.detach())

    train_steps(model, train, config, outputs, step, begin, _one_process())


def augmented(x: Tensor, y: Tensor, plan: Plan, rng: np.random.Generator) -> tuple[Tensor, Criterion]:
    """What `plan` makes of a batch (n, C, H, W), and the loss of logits (n, classes) on its labels."""
    share, other = 1.0, y
    if plan.mixup:
        share = rng.beta(plan.mixup, plan.mixup)
        order = torch.from_numpy(rng.permutation(len(x)))
        x, other = share * x + (1 - share) * x[order], y[order]

    def criterion(logits: Tensor) -> Tensor:
        loss = functional.cross_entropy(logits, y, label_smoothing=plan.smoothing)
        if share == 1.0:
            return loss
        return share * loss + (1 - share) * functional.cross_entropy(logits, other, label_smoothing=plan.smoothing)

    return x, criterion


def _one_process() -> Processes:
    if (team := processes()).count > 1:
        raise TrainingError(f"baselines of joint training run in one process, not in {team.count}")
    return team


def _assignments(supernet: Supernet, plan: Plan, rng: np.random.Generator) -> list[Assignment]:
    """What a batch trains, from the widest down."""
    graph, widths = supernet.graph, supernet.widths
    if plan.every_width or len(widths) == 1:
        return [graph.uniform(width) for width in reversed(widths)]
    others = widths[1:-1]
    uniform = others and rng.integers(2) == 0
    third = graph.uniform(int(rng.choice(others))) if uniform else random_assignment(graph, rng)
    widest, narrowest = graph.uniform(widths[-1]), graph.uniform(widths[0])
    if plan.turns:  # the widest is always there: it teaches
        return [[widest], [widest, third], [widest, narrowest]][rng.integers(3)]
    return [widest, third, narrowest]


def _updates(
    supernet: Supernet, plan: Plan, assignments: list[Assignment], x: Tensor, criterion: Criterion, learn: Learn
) -> float:
    """One batch; returns the loss on labels of the widest assignment."""
    target: Tensor | None = None
    losses = []
    widest = 0.0
    if plan.upwards:
        supernet.set_assignment(assignments[0])
        with torch.no_grad():
            target = supernet(x)
    for i in reversed(range(len(assignments))) if plan.upwards else range(len(assignments)):
        supernet.set_assignment(assignments[i])
        for layer in supernet.layers:
            layer.log_range.requires_grad_(i == 0 or not plan.widest_range)
        logits = supernet(x)
        loss = criterion(logits)
        if i == 0:
            widest = float(loss.detach())
        elif target is not None and plan.labels < 1:
            loss = plan.labels * loss + (1 - plan.labels) * distillation_loss("classify", logits, target)
        if target is None or plan.wider:
            target = logits.detach()
        if plan.summed:
            losses.append(loss)
        elif not plan.turns or i == len(assignments) - 1:
            learn(loss)
    if plan.summed:
        learn(torch.stack(losses).sum())
    return widest

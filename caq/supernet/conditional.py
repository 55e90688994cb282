"""Input-conditional gates, learned: branches for budgets around the target, and the network that routes between them.

The middle branch is the static gate of the budget; a cheaper and a dearer branch share its prefix (caq.conditional) and
are learned as it was. Each gets batch-norm statistics of its own. The routing network is a linear layer on the channel
sums of the gate's tensor. It learns from what the lowered branches, run in integers, lose on samples. Some of these are
strange to the weights: trained ones come out right at every width, and alone could teach it that width never matters.

It draws hard Gumbel-softmax samples of the branch, with a temperature that falls, under a multiplier on the mean cost
(Jang et al., "Categorical Reparameterization with Gumbel-Softmax", 2017; the device's cost and an argmax without noise
at inference, where DQNet's controller averages bits and keeps its noise). Weights are rounded to integers while it
learns; at the end the biases are moved so that the mean cost over samples strange to the weights fits the budget.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from caq.conditional import SCORE_LIMIT, Branch, ConditionalGate, free_layers
from caq.costs import Budget, affordable_cost, cost_table
from caq.engine import Engine
from caq.errors import ConfigError
from caq.graph import Assignment, Graph
from caq.model import Model
from caq.plan import build_plan
from caq.reference import run_steps
from caq.supernet.batches import Samples
from caq.supernet.gates import Fixed, Gate, GateConfig, learn_assignment
from caq.supernet.network import Supernet
from caq.supernet.train import reestimate_norms

#: The most that may be spent before the gate, of all multiply-accumulates: what comes before cannot be saved.
PREFIX_SHARE = 0.25
#: What the cheap and the dear branch may cost, where 0 is the cheapest with this prefix and 1 the static gate.
SPREAD = (0.4, 2.0)
BRANCHES = 1 + len(SPREAD)
#: Samples that the prefix is run on at once.
CHUNK = 256


@dataclass(frozen=True)
class RouteConfig:
    """How a routing network learns, on all samples at once, of which it takes at most `samples`."""

    steps: int = 400
    learning_rate: float = 0.02
    weight_decay: float = 1.0
    temperature: tuple[float, float] = (2.0, 0.2)
    samples: int = 8192
    seed: int = 0


@dataclass(frozen=True, eq=False)
class RouteData:
    """What routing learns from: raw samples x (N, ...), as the engine takes them.

    y: labels (N,), or None to learn from how far outputs are from those of the widest branch. fresh: (N,) bool, which
    samples are strange to the weights; the budget is fitted on them.
    """

    x: NDArray[np.generic]
    y: NDArray[np.integer] | None
    fresh: NDArray[np.bool_]

    def part(self, indices: NDArray[np.integer]) -> RouteData:
        """Those at `indices`."""
        return RouteData(self.x[indices], None if self.y is None else self.y[indices], self.fresh[indices])


@dataclass(frozen=True)
class Branches:
    """Assignments, the cheapest first, that agree on what comes before `tensor`, which the gate reads.

    static: which of them is the static gate of the budget.
    """

    tensor: int
    assignments: tuple[Assignment, ...]
    static: int = 0


def gate_tensor(graph: Graph) -> int:
    """The last tensor of 8 bits before which at most PREFIX_SHARE of the multiply-accumulates are spent.

    Raises ConfigError where no width is free after it.
    """
    total, spent, found = sum(layer.macs for layer in graph.layers), 0, 0
    macs = {layer.op: layer.macs for layer in graph.layers}
    for t in range(len(graph.ops)):
        spent += macs.get(t - 1, 0)
        if spent <= PREFIX_SHARE * total and graph.ranges[t][0] >= -128 and graph.ranges[t][1] <= 255:
            found = t
    if not free_layers(graph, found)[0]:
        raise ConfigError("conditional: the network has no layer after the tensor that a gate could read")
    return found


def check_conditional(graph: Graph, budgets: Sequence[Budget]) -> None:
    """Raises ConfigError on a budget of which a gate of `graph` could not leave enough for the branches."""
    for budget in budgets:
        tensor, table = gate_tensor(graph), cost_table(graph, budget.cost)
        most, own = affordable_cost(graph, budget.share, budget.cost), table.gate(tensor, BRANCHES)
        if most - own < table.least:
            raise ConfigError(
                f"conditional budget {budget.name!r}: {most:.4f} is allowed, the cheapest assignment costs "
                f"{table.least:.4f} and the gate {own:.4f}; give a larger share"
            )


def learn_branches(supernet: Supernet, train: Samples, budget: Budget, config: GateConfig, task: str) -> Branches:
    """Learns the branches of a conditional gate for `budget`, which its mean cost with the gate's own has to fit.

    Raises ConfigError on a budget that leaves no choice.
    """
    graph = supernet.graph
    tensor, table = gate_tensor(graph), cost_table(graph, budget.cost)
    most = affordable_cost(graph, budget.share, budget.cost) - table.gate(tensor, BRANCHES)
    static = learn_assignment(supernet, train, Gate(graph, budget.cost), most, config, task, budget.name)
    fixed = Fixed(static, *free_layers(graph, tensor))
    allowed_weights, allowed_activations = fixed.allowed(graph)
    choices = np.where(allowed_weights[:, :, None] & allowed_activations[:, None], table.layers, np.nan)
    least, widest = (table.fixed + float(f(choices, axis=(1, 2)).sum()) for f in (np.nanmin, np.nanmax))
    found = [static]
    for factor, word in zip(SPREAD, ("cheap", "dear"), strict=True):
        cost = min(least + factor * (table.of(graph, static) - least), widest)
        gate = Gate(graph, budget.cost, fixed)
        found.append(learn_assignment(supernet, train, gate, cost, config, task, f"{budget.name}, {word} branch"))
    distinct = sorted(set(found), key=lambda a: table.of(graph, a))
    if len(distinct) < 2:
        raise ConfigError(f"conditional budget {budget.name!r}: its branches are all alike; give another share")
    return Branches(tensor, tuple(distinct), distinct.index(static))


@torch.no_grad()
def estimate_branches(
    supernet: Supernet, train: Samples, branches: Branches, rows: Sequence[int] = ()
) -> list[tuple[Assignment, int]]:
    """Estimates a row of batch-norm statistics a branch on `train`; returns the assignments with their rows.

    rows: those of branches that were trained; else they are added. Before the gate all rows are made as the first one
    is, as what is computed there may not depend on the branch.
    """
    before = [layer.index for layer in supernet.graph.layers if layer.op < branches.tensor]
    rows = rows or [supernet.add_row(assignment) for assignment in branches.assignments]
    found = list(zip(branches.assignments, rows, strict=True))
    for assignment, row in found:
        kept = before if row != rows[0] else []
        for i in kept:
            if (norm := supernet.layers[i].norm) is not None:
                for array in (norm.gamma, norm.beta, norm.mean, norm.var):
                    array[row] = array[rows[0]]
        reestimate_norms(supernet, train, assignment, row, kept)
    return found


def unrouted(graph: Graph, branches: Branches, first_set: int) -> ConditionalGate:
    """A gate that always takes the first branch; the branches' own parameter sets begin with `first_set`."""
    count, channels = len(branches.assignments), graph.shapes[branches.tensor][2]
    own = [Branch(assignment, first_set + i) for i, assignment in enumerate(branches.assignments)]
    return ConditionalGate(branches.tensor, 0, ((0,) * channels,) * count, (0,) * count, tuple(own))


def output_losses(task: str, outputs: Sequence[Tensor], target: Tensor) -> Tensor:
    """What each sample loses at each branch, (N, B), of outputs (N, K) a branch.

    target: labels (N,) int64 for cross entropy, or values (N, K): another network's outputs where the task is to
    classify, for the divergence from them, and what to reconstruct elsewhere, for the mean squared error.
    """
    if target.dim() == 1:
        losses = [functional.cross_entropy(y, target, reduction="none") for y in outputs]
    elif task == "classify":
        wanted = functional.log_softmax(target, 1)
        losses = [
            functional.kl_div(functional.log_softmax(y, 1), wanted, reduction="none", log_target=True).sum(1)
            for y in outputs
        ]
    else:
        losses = [(y - target).square().mean(1) for y in outputs]
    return torch.stack(losses, 1)


def learn_gate_of(model: Model, budget: Budget, data: RouteData, config: RouteConfig) -> Model:
    """`model` with the gate of a budget's conditional point learned.

    Raises ConfigError if no branch fits the budget, DataError on samples of another shape or dtype.
    """
    data = data.part(np.sort(np.random.default_rng(config.seed).permutation(len(data.x))[: config.samples]))
    x, y = data.x, data.y
    graph, engine = model.graph, Engine(model)
    chosen = engine.points[budget.name]
    assert chosen.gate is not None
    tensor, branches = chosen.gate.tensor, chosen.gate.branches
    table = cost_table(graph, budget.cost)
    costs = [table.of(graph, b.assignment) + table.gate(tensor, len(branches)) for b in branches]
    most = affordable_cost(graph, budget.share, budget.cost)
    if min(costs) > most:
        raise ConfigError(
            f"conditional budget {budget.name!r}: allows {most:.3f}, its cheapest branch costs {min(costs):.3f}"
        )
    plans = [engine.build(b.assignment, b.parameter_set) for b in branches]
    outputs = [torch.from_numpy(engine.run_plan(plan, x) * np.float32(engine.output_step)) for plan in plans]
    if model.task == "classify":
        target = outputs[int(np.argmax(costs))] if y is None else torch.from_numpy(np.asarray(y, np.int64))
    else:
        target = torch.from_numpy(model.encode(x)[0].reshape(len(x), -1) * np.float32(model.scaling.step))
    shift, sums = _sums(model, tensor, branches[0], x)
    losses = output_losses(model.task, outputs, target)
    weights, bias = learn_route(sums, losses, costs, most, config, data.fresh)
    gate = ConditionalGate(tensor, shift, tuple(map(tuple, weights.tolist())), tuple(bias.tolist()), branches)
    points = tuple(p._replace(gate=gate) if p is chosen else p for p in model.points)
    return model.replace(points=points)


def _sums(model: Model, tensor: int, branch: Branch, x: NDArray[np.generic]) -> tuple[int, NDArray[np.int64]]:
    """The shift with which no score can overflow, and the channel sums (N, C) of a gate's tensor, so shifted."""
    rows, columns, channels = model.graph.shapes[tensor]
    largest = rows * columns * max(map(abs, model.graph.ranges[tensor]))
    # Biases centre the products, and may have to outweigh their differences to fit the budget.
    most = SCORE_LIMIT // (8 * 128 * channels)
    shift = max(0, math.ceil(math.log2(largest / most)))
    plan = build_plan(model.graph, model.parameters, model.planes, branch.assignment, branch.parameter_set)
    codes, _ = model.encode(x)
    parts = []
    for start in range(0, len(codes), CHUNK):
        live = run_steps(plan, {0: codes[start : start + CHUNK].astype(np.int32)}, 0, tensor)
        parts.append(live[tensor].sum(axis=(1, 2), dtype=np.int64))
    return shift, np.concatenate(parts) >> shift


class Router(nn.Module):
    """Scores (N, B) of channel sums (N, C), by weights that are rounded to 8 bits on the way.

    scale: (C,) by which sums are divided; centre: (C,) taken off before.
    """

    def __init__(self, sums: Tensor, branches: int) -> None:
        super().__init__()
        self.centre = sums.mean(0)
        deviation = sums.std(0)
        # Channels that hardly vary would ask for weights so large that the others' are rounded away.
        self.scale = deviation.clamp(min=float(deviation.square().mean().sqrt()) / 4 + 1e-6)
        self.weight = nn.Parameter(torch.zeros(branches, sums.shape[1]))
        self.bias = nn.Parameter(torch.zeros(branches))

    def integers(self) -> tuple[Tensor, float]:
        """Weights (B, C) from -127 to 127, and how many of their units are 1 in real scores."""
        real = self.weight / self.scale
        unit = 127 / float(real.detach().abs().max().clamp(min=1e-12))
        rounded = torch.floor(real.detach() * unit + 0.5)
        return real * unit + (rounded - real * unit).detach(), unit

    def forward(self, sums: Tensor) -> Tensor:
        weight, unit = self.integers()
        return functional.linear(sums - self.centre, weight / unit, self.bias)


def learn_route(
    sums: NDArray[np.int64],
    losses: Tensor,
    costs: Sequence[float],
    most: float,
    config: RouteConfig,
    fresh: NDArray[np.bool_],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Weights (B, C) and bias (B,), integers, of a gate that loses little and costs at most `most` on average.

    sums: (N, C) channel sums as the gate gets them. losses: (N, B). costs: (B,) of each branch, at least one within
    `most`. fresh: (N,) on which samples the budget is fitted.
    """
    x, price = torch.from_numpy(sums).float(), torch.tensor(costs, dtype=torch.float32)
    losses = losses / losses.mean().clamp(min=1e-9)
    multiplier = 0.0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        router = Router(x, len(costs))
        optimizer = torch.optim.AdamW(router.parameters(), config.learning_rate, weight_decay=config.weight_decay)
        start, end = config.temperature
        for i in range(config.steps):
            scores = router(x)
            drawn = functional.gumbel_softmax(scores, start * (end / start) ** (i / config.steps), hard=True)
            excess = (functional.softmax(scores, 1) @ price).mean() / most - 1
            loss = (drawn * losses).sum(1).mean() + multiplier * excess
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            multiplier = max(0.0, multiplier + 0.02 * float(excess.detach()))
    # Where the budget does not bind, cheaper branches are as good, and dearer ones are not forced on the samples.
    cheapest = 0.0 if multiplier == 0 else -1e4
    with torch.no_grad():
        weight, unit = router.integers()
        weights = weight.numpy().astype(np.float64)
        bias = router.bias.numpy() * unit - weights @ router.centre.numpy().astype(np.float64)
    whole = weights.astype(np.int64)
    return whole, fit_bias(sums[fresh] @ whole.T, bias, np.array(costs) * unit, most * unit, cheapest)


def fit_bias(
    scores: NDArray[np.int64],
    bias: NDArray[np.float64],
    costs: NDArray[np.float64],
    most: float,
    cheapest: float = 0.0,
) -> NDArray[np.int64]:
    """Rounded biases (B,), with which the mean cost of what scores (N, B) choose is as near below `most` as can be.

    From each bias its branch's cost is taken, times a price of at least `cheapest`. Some branch costs at most `most`.
    """

    def at(price: float) -> NDArray[np.int64]:
        raised = bias - price * (costs - costs.min())
        return np.floor(raised - raised.max() + 0.5).astype(np.int64)

    def mean_cost(price: float) -> float:
        return float(costs[(scores + at(price)).argmax(1)].mean())

    low, high = cheapest, max(1.0, -cheapest)
    if mean_cost(low) <= most:
        return at(low)
    while mean_cost(high) > most:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if mean_cost(middle) > most else (low, middle)
    return at(high)

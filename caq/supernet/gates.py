"""Static gates: gating networks that learn each layer's widths for a budget on the device's cost.

A gate has one logit per layer and width, for weights and for activations. While it learns, each layer computes with a
hard Gumbel-softmax sample of its widths (straight-through gradients; Jang et al., "Categorical Reparameterization with
Gumbel-Softmax", 2017), its outputs are compared with those of the widest assignment, and a multiplier on the budget's
violation rises until the expected cost fits. At run time a gate is the argmax: an assignment, at no cost.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from caq.costs import CostTable, check_cost, cost_table
from caq.errors import ConfigError
from caq.graph import Assignment, Graph, LayerWidths
from caq.progress import progress
from caq.quant import TOP_WIDTH
from caq.supernet.batches import Samples
from caq.supernet.heap import freed_memory_kept
from caq.supernet.network import Supernet
from caq.supernet.train import distillation_loss


@dataclass(frozen=True)
class Budget:
    """A gate's name, and where between the cheapest assignment (0) and the widest width everywhere (1) it may be.

    cost: of what, by a name of caq.costs.table: "" (size and work together), "bytes", "bit_macs", "latency@cortex-m7",
    "energy@my_device.yaml". Raises ConfigError on anything else.
    """

    name: str
    share: float
    cost: str = ""

    def __post_init__(self) -> None:
        if not self.name.replace("_", "").isalnum() or not 0 <= self.share <= 1:
            raise ConfigError(f"a budget is a name and a share from 0 to 1, not {self.name!r} and {self.share}")
        check_cost(self.cost)


DEFAULT_BUDGETS = (Budget("full", 0.6), Budget("balanced", 0.3), Budget("saver", 0.08))


@dataclass(frozen=True)
class GateConfig:
    """How a gate learns: steps of `batch_size` samples, and the temperature's first and last value."""

    steps: int = 120
    batch_size: int = 64
    learning_rate: float = 0.08
    temperature: tuple[float, float] = (2.0, 0.3)
    seed: int = 0
    quiet: bool = False


#: What the widest assignment must cost at least over the cheapest, so that a budget says something.
LEAST_RANGE = 1.02


def relative_cost(graph: Graph, assignment: Assignment, cost: str = "") -> float:
    """What `assignment` costs, relative to 8 bits everywhere; by default the mean of weight bytes and bit-MACs."""
    return cost_table(graph, cost).of(graph, assignment)


def affordable_cost(graph: Graph, share: float, cost: str = "") -> float:
    """The `relative_cost` that a budget's share allows.

    Raises ConfigError where widths hardly change the cost: no gate could be learned for it.
    """
    table = cost_table(graph, cost)
    widest = table.of(graph, graph.uniform(graph.widths[-1]))
    if widest < table.least * LEAST_RANGE and len(graph.widths) > 1:
        raise ConfigError(
            f"budget on {cost!r}: the widest assignment costs {widest / table.least - 1:.1%} more than the cheapest; "
            "on this device narrower widths save next to nothing, so give the budget in bytes or bit_macs"
        )
    return table.least + share * (widest - table.least)


def check_budgets(graph: Graph, budgets: Sequence[Budget]) -> None:
    """Raises ConfigError on a budget that no gate of `graph` could be learned for."""
    for budget in budgets:
        affordable_cost(graph, budget.share, budget.cost)


@dataclass(frozen=True)
class Fixed:
    """Where a gate has no choice: the widths of `assignment`, but where a layer's weights or activations are free."""

    assignment: Assignment
    free_weights: Sequence[int]
    free_activations: Sequence[int]

    def allowed(self, graph: Graph) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Which widths of weights and of activations a gate may choose, (layers, widths) each."""
        parts = []
        for kind, free in (("weight", self.free_weights), ("activation", self.free_activations)):
            chosen = np.array([getattr(pair, kind) for pair in self.assignment])
            # Input that is read at 8 bits in a graph of narrower widths: there is no such choice, nor any other.
            index = np.searchsorted(graph.widths, np.minimum(chosen, graph.widths[-1]))
            allowed = np.eye(len(graph.widths), dtype=bool)[index]
            allowed[list(free)] = True
            parts.append(allowed)
        return parts[0], parts[1]


class Gate(nn.Module):
    """Logits of one gate: (layers, widths) for weights and for activations; `cost` as of a Budget."""

    def __init__(self, graph: Graph, cost: str = "", fixed: Fixed | None = None) -> None:
        super().__init__()
        self.graph = graph
        every = np.ones((len(graph.layers), len(graph.widths)), bool)
        self._allowed = (every, every) if fixed is None else fixed.allowed(graph)
        self.table: CostTable = cost_table(graph, cost)
        # A gate starts wide and gives up bits only for its budget.
        start = torch.linspace(-1, 1, len(graph.widths)).repeat(len(graph.layers), 1)
        self.weight_logits = nn.Parameter(start.clone())
        self.activation_logits = nn.Parameter(start.clone())
        self.costs = torch.tensor(self.table.layers, dtype=torch.float32)

    def _logits(self) -> tuple[Tensor, Tensor]:
        """Of what may be chosen; the rest is -inf."""
        weight, activation = (torch.from_numpy(~allowed) for allowed in self._allowed)
        return (
            self.weight_logits.masked_fill(weight, -torch.inf),
            self.activation_logits.masked_fill(activation, -torch.inf),
        )

    def sample(self, temperature: float) -> tuple[Tensor, Tensor]:
        """One-hot (layers, widths) draws with straight-through gradients."""
        weight, activation = (functional.gumbel_softmax(logits, temperature, hard=True) for logits in self._logits())
        return weight, activation

    def expected_cost(self) -> Tensor:
        """`relative_cost` in expectation over the gate's choices; differentiable."""
        weights, activations = (functional.softmax(logits, 1) for logits in self._logits())
        return self.table.fixed + torch.einsum("lw,la,lwa->", weights, activations, self.costs)

    def assignment(self, most: float) -> Assignment:
        """The argmax, made to cost at most `most` (relative) and to leave nothing of it unused.

        While it costs too much, the layer changes its widths that loses the least logit for what it saves; then, while
        wider ones fit, the one that gains the most for what it costs. Raises ConfigError if nothing fits.
        """
        count, layers = len(self.graph.widths), np.arange(len(self.graph.layers))
        weight, activation = np.divmod(np.arange(count**2), count)  # a layer's pairs of widths
        wider = (weight >= weight[:, None]) & (activation >= activation[:, None]) & ~np.eye(count**2, dtype=bool)
        costs = self.table.layers.reshape(len(layers), -1)
        logits = (
            (self.weight_logits[:, :, None] + self.activation_logits[:, None]).detach().numpy().reshape(costs.shape)
        )
        reads_input = np.array([layer.reads_input for layer in self.graph.layers])
        may_weigh, may_read = self._allowed
        allowed = may_weigh[:, weight] & (may_read[:, activation] | reads_input[:, None])
        allowed &= ~reads_input[:, None] | (activation == count - 1)
        chosen = np.where(allowed, logits, -np.inf).argmax(1)

        def change(possible: NDArray[np.bool_], score: NDArray[np.float64]) -> None:
            layer, pair = np.unravel_index(np.where(possible, score, -np.inf).argmax(), score.shape)
            chosen[layer] = pair

        with np.errstate(divide="ignore", invalid="ignore"):
            while True:
                more, gain = costs - costs[layers, chosen, None], logits - logits[layers, chosen, None]
                now = self.table.fixed + costs[layers, chosen].sum()
                if now <= most + 1e-12:
                    break
                if not (possible := allowed & (more < 0)).any():
                    raise ConfigError(f"no assignment costs at most {most:.3f}; the cheapest costs {now:.3f}")
                change(possible, gain / -more)
            while (possible := allowed & wider[chosen] & (now + more <= most + 1e-12)).any():
                change(possible, np.where(more > 0, gain / more, np.inf))
                more, gain = costs - costs[layers, chosen, None], logits - logits[layers, chosen, None]
                now = self.table.fixed + costs[layers, chosen].sum()
        return tuple(
            LayerWidths(self.graph.widths[w], TOP_WIDTH if layer.reads_input else self.graph.widths[a])
            for layer, w, a in zip(self.graph.layers, weight[chosen], activation[chosen], strict=True)
        )


def _forever(train: Samples, config: GateConfig) -> Iterator[tuple[Tensor, Tensor]]:
    # Not the order in which the weights were trained.
    for epoch in itertools.count():
        yield from train.epoch(config.batch_size, config.seed + 7919, epoch)


def learn_gate(supernet: Supernet, train: Samples, budget: Budget, config: GateConfig, task: str) -> Assignment:
    """Learns the assignment of a budget; the supernet's weights stay as they are."""
    most = affordable_cost(supernet.graph, budget.share, budget.cost)
    return learn_assignment(supernet, train, Gate(supernet.graph, budget.cost), most, config, task, budget.name)


@freed_memory_kept()
def learn_assignment(
    supernet: Supernet, train: Samples, gate: Gate, most: float, config: GateConfig, task: str, title: str
) -> Assignment:
    """Trains `gate` until its assignment costs at most `most`, relative to 8 bits everywhere. Raises ConfigError."""
    optimizer = torch.optim.Adam(gate.parameters(), config.learning_rate, betas=(0.9, 0.99))
    trained = {name: p.requires_grad for name, p in supernet.named_parameters()}
    supernet.requires_grad_(False)
    widest = supernet.graph.uniform(supernet.widths[-1])
    multiplier, first = 1.0, None
    batches = _forever(train, config)
    with torch.random.fork_rng(devices=[]), progress(f"gate {title}", config.steps, not config.quiet) as advance:
        torch.manual_seed(config.seed)
        for i in range(config.steps):
            x, _ = next(batches)
            supernet.eval()
            supernet.set_assignment(widest)
            with torch.no_grad():
                target = supernet(x)
            start, end = config.temperature
            weight_mix, activation_mix = gate.sample(start * (end / start) ** (i / config.steps))
            for layer, w, a in zip(supernet.layers, weight_mix, activation_mix, strict=True):
                layer.mix = (w, a)
            distance = distillation_loss(task, supernet(x), target)
            first = distance.detach().clamp(min=1e-6) if first is None else first
            excess = gate.expected_cost() / most - 1
            # Distances are divided by the first one, so that one schedule fits tasks of any scale.
            loss = distance / first + multiplier * functional.relu(excess)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            multiplier = max(0.0, multiplier + 0.2 * float(excess.detach()))
            advance(f"distance {float(distance.detach()):.4f}, cost {float(gate.expected_cost().detach()):.2f}")
    for name, p in supernet.named_parameters():
        p.requires_grad_(trained[name])
    supernet.set_assignment(widest)
    return gate.assignment(most)

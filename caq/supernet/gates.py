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

from caq.costs import Budget, CostTable, affordable_cost, cost_table
from caq.graph import Assignment, Graph
from caq.progress import progress
from caq.search.choices import Choices
from caq.supernet.batches import Samples
from caq.supernet.heap import freed_memory_kept
from caq.supernet.network import Supernet
from caq.supernet.train import distillation_loss


@dataclass(frozen=True)
class GateConfig:
    """How a gate learns: steps of `batch_size` samples, and the temperature's first and last value."""

    steps: int = 120
    batch_size: int = 64
    learning_rate: float = 0.08
    temperature: tuple[float, float] = (2.0, 0.3)
    seed: int = 0
    quiet: bool = False


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
        self.choices = Choices.of(graph, cost).within(*self._allowed)
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

        Widths are given up, and taken, for the logits that they lose and gain (`Choices.fitted`). Raises ConfigError if
        nothing fits.
        """
        logits = (self.weight_logits[:, :, None] + self.activation_logits[:, None]).detach().double().numpy()
        scores = logits.reshape(len(logits), -1)
        chosen = np.where(self.choices.allowed, scores, -np.inf).argmax(1)
        return self.choices.assignment(self.choices.fitted(chosen, scores, most))


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

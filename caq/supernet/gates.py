"""Static gates: gating networks that learn each layer's widths for a budget on the device's cost.

A gate has one logit per layer and width, for weights and for activations. While it learns, each layer computes with a
hard Gumbel-softmax sample of its widths (straight-through gradients; Jang et al., "Categorical Reparameterization with
Gumbel-Softmax", 2017), its outputs are compared with those of the widest assignment, and a multiplier on the budget's
violation rises until the expected cost fits. At run time a gate is the argmax: an assignment, at no cost.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
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


class Gate(nn.Module):
    """Logits of one gate: (layers, widths) for weights and for activations; `cost` as of a Budget."""

    def __init__(self, graph: Graph, cost: str = "") -> None:
        super().__init__()
        self.graph = graph
        self.table: CostTable = cost_table(graph, cost)
        self.choices = Choices.of(graph, cost)
        # A gate starts wide and gives up bits only for its budget.
        start = torch.linspace(-1, 1, len(graph.widths)).repeat(len(graph.layers), 1)
        self.weight_logits = nn.Parameter(start.clone())
        self.activation_logits = nn.Parameter(start.clone())
        self.costs = torch.tensor(self.table.layers, dtype=torch.float32)

    def sample(self, temperature: float) -> tuple[Tensor, Tensor]:
        """One-hot (layers, widths) draws with straight-through gradients."""
        return (
            functional.gumbel_softmax(self.weight_logits, temperature, hard=True),
            functional.gumbel_softmax(self.activation_logits, temperature, hard=True),
        )

    def expected_cost(self) -> Tensor:
        """`relative_cost` in expectation over the gate's choices; differentiable."""
        weights, activations = functional.softmax(self.weight_logits, 1), functional.softmax(self.activation_logits, 1)
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


@freed_memory_kept()
def learn_gate(supernet: Supernet, train: Samples, budget: Budget, config: GateConfig, task: str) -> Assignment:
    """Learns the assignment of a budget; the supernet's weights stay as they are."""
    most = affordable_cost(supernet.graph, budget.share, budget.cost)
    gate = Gate(supernet.graph, budget.cost)
    optimizer = torch.optim.Adam(gate.parameters(), config.learning_rate, betas=(0.9, 0.99))
    trained = {name: p.requires_grad for name, p in supernet.named_parameters()}
    supernet.requires_grad_(False)
    widest = supernet.graph.uniform(supernet.widths[-1])
    multiplier, first = 1.0, None
    batches = _forever(train, config)
    with torch.random.fork_rng(devices=[]), progress(f"gate {budget.name}", config.steps, not config.quiet) as advance:
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

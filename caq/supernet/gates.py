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

import torch
from torch import Tensor, nn
from torch.nn import functional

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
    """A gate's name, and where between the cost of the narrowest width everywhere (0) and the widest (1) it may be."""

    name: str
    share: float

    def __post_init__(self) -> None:
        if not self.name.replace("_", "").isalnum() or not 0 <= self.share <= 1:
            raise ConfigError(f"a budget is a name and a share from 0 to 1, not {self.name!r} and {self.share}")


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


def relative_cost(graph: Graph, assignment: Assignment) -> float:
    """Mean of the weight bytes and the bit-MACs of `assignment`, each relative to 8 bits everywhere."""
    cost, full = graph.cost(assignment), graph.cost((LayerWidths(TOP_WIDTH, TOP_WIDTH),) * len(assignment))
    return (cost.weight_bytes / full.weight_bytes + cost.bit_macs / full.bit_macs) / 2


def affordable_cost(graph: Graph, share: float) -> float:
    """The `relative_cost` that a budget's share allows."""
    narrowest, widest = (relative_cost(graph, graph.uniform(graph.widths[i])) for i in (0, -1))
    return narrowest + share * (widest - narrowest)


class Gate(nn.Module):
    """Logits of one gate: (layers, widths) for weights and for activations."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph
        # A gate starts wide and gives up bits only for its budget.
        start = torch.linspace(-1, 1, len(graph.widths)).repeat(len(graph.layers), 1)
        self.weight_logits = nn.Parameter(start.clone())
        self.activation_logits = nn.Parameter(start.clone())
        self.bits = torch.tensor(graph.widths, dtype=torch.float32)
        self.weights = torch.tensor([layer.weights for layer in graph.layers], dtype=torch.float32)
        self.macs = torch.tensor([layer.macs for layer in graph.layers], dtype=torch.float32)
        self.reads_input = torch.tensor([layer.reads_input for layer in graph.layers])

    def sample(self, temperature: float) -> tuple[Tensor, Tensor]:
        """One-hot (layers, widths) draws with straight-through gradients."""
        return (
            functional.gumbel_softmax(self.weight_logits, temperature, hard=True),
            functional.gumbel_softmax(self.activation_logits, temperature, hard=True),
        )

    def expected_cost(self) -> Tensor:
        """`relative_cost` in expectation over the gate's choices; differentiable."""
        weight_bits = functional.softmax(self.weight_logits, 1) @ self.bits
        activation_bits = functional.softmax(self.activation_logits, 1) @ self.bits
        activation_bits = torch.where(self.reads_input, torch.full_like(activation_bits, TOP_WIDTH), activation_bits)
        size = (self.weights * weight_bits).sum() / (self.weights.sum() * TOP_WIDTH)
        work = (self.macs * weight_bits * activation_bits).sum() / (self.macs.sum() * TOP_WIDTH**2)
        return (size + work) / 2

    def assignment(self, most: float) -> Assignment:
        """The argmax, made to cost at most `most` (relative) and to leave nothing of it unused.

        While it costs too much, the layer steps down that loses the least logit for what it saves; then, while a step
        up still fits, the one that gains the most for what it costs. Raises ConfigError if nothing fits.
        """
        chosen = [self.weight_logits.argmax(1).tolist(), self.activation_logits.argmax(1).tolist()]
        while (now := self._cost(chosen)) > most + 1e-12:
            down = self._steps(chosen, -1)
            if not down:
                raise ConfigError(f"no assignment costs at most {most:.3f}; the narrowest costs {now:.3f}")
            _, kind, i = max((gain / abs(self._changed(chosen, kind, i, -1) - now), kind, i) for gain, kind, i in down)
            chosen[kind][i] -= 1
        while True:
            now = self._cost(chosen)
            up = [(gain, kind, i, self._changed(chosen, kind, i, 1) - now) for gain, kind, i in self._steps(chosen, 1)]
            fitting = [(gain / cost, kind, i) for gain, kind, i, cost in up if now + cost <= most + 1e-12]
            if not fitting:
                return self._pairs(chosen)
            _, kind, i = max(fitting)
            chosen[kind][i] += 1

    def _steps(self, chosen: list[list[int]], by: int) -> list[tuple[float, int, int]]:
        """Change of logit, kind (0 weights, 1 activations) and layer of every step by one width."""
        logits = (self.weight_logits.detach(), self.activation_logits.detach())
        return [
            (float(logits[kind][i, j + by] - logits[kind][i, j]), kind, i)
            for kind in (0, 1)
            for i, j in enumerate(chosen[kind])
            if 0 <= j + by < len(self.graph.widths) and not (kind == 1 and self.graph.layers[i].reads_input)
        ]

    def _changed(self, chosen: list[list[int]], kind: int, i: int, by: int) -> float:
        trial = [list(choice) for choice in chosen]
        trial[kind][i] += by
        return self._cost(trial)

    def _cost(self, chosen: list[list[int]]) -> float:
        return relative_cost(self.graph, self._pairs(chosen))

    def _pairs(self, chosen: list[list[int]]) -> Assignment:
        return tuple(
            LayerWidths(self.graph.widths[w], TOP_WIDTH if layer.reads_input else self.graph.widths[a])
            for layer, w, a in zip(self.graph.layers, *chosen, strict=True)
        )


def _forever(train: Samples, config: GateConfig) -> Iterator[tuple[Tensor, Tensor]]:
    # Not the order in which the weights were trained.
    for epoch in itertools.count():
        yield from train.epoch(config.batch_size, config.seed + 7919, epoch)


@freed_memory_kept()
def learn_gate(supernet: Supernet, train: Samples, budget: Budget, config: GateConfig, task: str) -> Assignment:
    """Learns the assignment of a budget; the supernet's weights stay as they are."""
    most = affordable_cost(supernet.graph, budget.share)
    gate = Gate(supernet.graph)
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

"""Peers that learn by back-propagation in torch: experience replay, DER++, ER-ACE, A-GEM, and LSQ on all there is.

Each width has a float supernet of its own, which learns at that width alone, with batch norm in training: the best
that it can have for itself. All that there is learns: weights of every layer through their rounding (straight-through),
their ranges and the steps of activations (LSQ, Esser et al., "Learned step size quantization", 2020), batch norm. What
is measured is the integers that the supernet is lowered to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.continual.memory import Memory, as_inputs
from benchmarks.continual.start import Codes, Labels, Start
from caq.model import Model
from caq.supernet import Supernet
from caq.supernet.lower import lower


@dataclass(frozen=True)
class Settings:
    """epochs: passes over each batch of the stream; rate: Adam's; batch: samples of the stream in a step, with as many
    of the memory; alpha, beta: of DER++, the weights of old outputs and of old labels."""

    epochs: int = 10
    rate: float = 1e-3
    batch: int = 40
    alpha: float = 0.5
    beta: float = 0.5


class Learner:
    """The supernet of one width, its optimizer and its memory. with_outputs: whether the memory keeps outputs."""

    def __init__(self, start: Start, width: int, settings: Settings, with_outputs: bool) -> None:
        self.supernet: Supernet = start.supernet()
        self.supernet.set_assignment(self.supernet.graph.uniform(width))
        self.step = start.model.scaling.step
        self.settings, self.width = settings, width
        self.optimizer = torch.optim.Adam(self.supernet.parameters(), settings.rate)
        outputs = self.evaluated(as_inputs(start.core.x)) if with_outputs else None
        self.memory = Memory(start.core, outputs, start.seed)
        self.rng = np.random.default_rng(start.seed)

    def outputs(self, *codes: Tensor) -> tuple[Tensor, ...]:
        """Outputs (n, K) of parts of one batch, codes (n, C, H, W) each, with batch norm as the supernet's mode is."""
        z = self.supernet(torch.cat(codes).float() * self.step)
        return torch.split(z, [len(part) for part in codes])

    @torch.no_grad()
    def evaluated(self, codes: Tensor) -> Tensor:
        """Outputs (n, K) with batch norm's own statistics."""
        self.supernet.eval()
        return self.outputs(codes)[0]

    def learn(self, loss: Tensor) -> None:
        """A step down the gradient of a loss."""
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def gradient(self, loss: Tensor) -> Tensor:
        """Of all parameters, as one vector; 0 where the loss does not reach them."""
        parameters = list(self.supernet.parameters())
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        parts = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]
        return torch.cat([part.flatten() for part in parts])

    def follow(self, gradient: Tensor) -> None:
        """A step down a gradient, as `gradient` gives it."""
        parameters = list(self.supernet.parameters())
        parts = torch.split(gradient, [p.numel() for p in parameters])
        for p, part in zip(parameters, parts, strict=True):
            p.grad = part.reshape(p.shape)
        self.optimizer.step()

    def minibatches(self, x: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """All samples in `epochs` orders, at least 2 at a time."""
        parts = max(1, round(len(y) / self.settings.batch))
        for _ in range(self.settings.epochs):
            for chosen in np.array_split(self.rng.permutation(len(y)), parts):
                yield x[chosen], y[chosen]


#: One step on samples (n, C, H, W) of the stream and their labels (n,).
Rule = Callable[[Learner, Tensor, Tensor], None]


def replay(learner: Learner, x: Tensor, y: Tensor) -> None:
    """Experience replay: as many old samples beside the new (Chaudhry et al., "On tiny episodic memories", 2019)."""
    memory, old = learner.memory, learner.memory.draw(len(y))
    z, z_old = learner.outputs(x, memory.x[old])
    learner.learn(functional.cross_entropy(z, y) + functional.cross_entropy(z_old, memory.y[old]))


def replay_asymmetric(learner: Learner, x: Tensor, y: Tensor) -> None:
    """ER-ACE: new samples compete among the classes of their own batch only (Caccia et al., "New insights on reducing
    abrupt representation change in online continual learning", 2022)."""
    memory, old = learner.memory, learner.memory.draw(len(y))
    z, z_old = learner.outputs(x, memory.x[old])
    absent = torch.ones(z.shape[1], dtype=torch.bool)
    absent[y] = False
    loss = functional.cross_entropy(z.masked_fill(absent, -torch.inf), y)
    learner.learn(loss + functional.cross_entropy(z_old, memory.y[old]))


def dark_replay(learner: Learner, x: Tensor, y: Tensor) -> None:
    """DER++: old samples keep their outputs, others their labels (Buzzega et al., "Dark experience for general
    continual learning", 2020, equation 6)."""
    memory, settings = learner.memory, learner.settings
    dark, old = memory.draw(len(y)), memory.draw(len(y))
    z, z_dark, z_old = learner.outputs(x, memory.x[dark], memory.x[old])
    assert memory.outputs is not None  # LEARNERS asks for them
    loss = functional.cross_entropy(z, y) + settings.alpha * functional.mse_loss(z_dark, memory.outputs[dark])
    learner.learn(loss + settings.beta * functional.cross_entropy(z_old, memory.y[old]))


def averaged_gem(learner: Learner, x: Tensor, y: Tensor) -> None:
    """A-GEM: a gradient that would harm old samples loses what harms them (Chaudhry et al., "Efficient lifelong
    learning with A-GEM", 2019, equation 11)."""
    memory, old = learner.memory, learner.memory.draw(len(y))
    g = learner.gradient(functional.cross_entropy(learner.outputs(x)[0], y))
    reference = learner.gradient(functional.cross_entropy(learner.outputs(memory.x[old])[0], memory.y[old]))
    along = torch.dot(g, reference)
    learner.follow(g - along / reference.square().sum() * reference if along < 0 else g)


def everything(learner: Learner, x: Tensor, y: Tensor) -> None:
    """LSQ on new samples and the whole memory in every step: an upper bound."""
    z = torch.cat(learner.outputs(x, learner.memory.x))
    learner.learn(functional.cross_entropy(z, torch.cat([y, learner.memory.y])))


class Backprop:
    """A learner for each width, and a rule that they learn by."""

    def __init__(self, start: Start, rule: Rule, settings: Settings, with_outputs: bool = False) -> None:
        self._start, self._rule = start, rule
        self.learners = {w: Learner(start, w, settings, with_outputs) for w in start.widths}

    def step(self, x: Codes, y: Labels) -> None:
        samples, labels = as_inputs(x), torch.from_numpy(y.astype(np.int64))
        for learner in self.learners.values():
            learner.supernet.train()
            for part, its_labels in learner.minibatches(samples, labels):
                self._rule(learner, part, its_labels)
            outputs = None if learner.memory.outputs is None else learner.evaluated(samples)
            learner.memory.add(samples, labels, outputs)

    def model(self, width: int) -> Model:
        return lowered(self._start, self.learners[width].supernet)


class RangeRefresh:
    """Ranges of activations fitted anew to the stream and the core set, by least squared error; needs no labels."""

    def __init__(self, start: Start) -> None:
        self._start = start
        self._supernets = {w: start.supernet().eval() for w in start.widths}
        self._core, self._step = as_inputs(start.core.x), start.model.scaling.step

    @torch.no_grad()
    def step(self, x: Codes, y: Labels) -> None:
        inputs = torch.cat([as_inputs(x), self._core]).float() * self._step
        for width, supernet in self._supernets.items():
            supernet.set_assignment(supernet.graph.uniform(width))
            for node in supernet.operations:
                node.fitting = node.fitting_narrow = True
            supernet(inputs)
            for node in supernet.operations:
                node.fitting = node.fitting_narrow = False

    def model(self, width: int) -> Model:
        return lowered(self._start, self._supernets[width])


def lowered(start: Start, supernet: Supernet) -> Model:
    """A supernet in integers, as a `coded` model."""
    found = lower(supernet, start.model.scaling.step)
    return start.model.replace(graph=found.graph, parameters=found.parameters, planes=found.planes())

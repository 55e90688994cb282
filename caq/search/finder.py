"""The search: sensitivities, an exact choice by them, then evolution on measured losses.

1. Sensitivity: the loss of lowering one layer's weights, or its activations, to each width with all else at its widest
   (as HAWQ and HAQ rank layers; Dong et al., 2019, Wang et al., 2019). Losses are taken to add up.
2. The assignment of least total sensitivity within the budget (`Choices.cheapest_loss`), and others that fit it.
3. They do not add up, least of all at low widths. So evolution (as in Guo et al., "Single Path One-Shot Neural
   Architecture Search", 2020) measures what it tries: children of the best assignments with a few layers changed, made
   to fill the budget again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from caq.costs import Budget, affordable_cost
from caq.errors import ConfigError
from caq.graph import Assignment, LayerWidths
from caq.model import Model
from caq.search.choices import Choices
from caq.search.objective import Objective

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: How to show progress: a description and the number of steps -> a context that gives what to call after each.
Progress = Callable[[str, int], AbstractContextManager[Callable[[str], None]]]

#: Deviation of the noise on sensitivities' logarithms by which a child is repaired, so that repairs differ.
REPAIR_NOISE = 1.0


@dataclass(frozen=True)
class SearchConfig:
    """How long to search: assignments measured in evolution, those that have children, and the random generator's seed.

    norm_samples: how many samples batch norm is re-estimated from for each of them.
    """

    steps: int = 300
    parents: int = 10
    norm_samples: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 0 or self.parents < 1 or self.norm_samples < 2:
            given = f"{self.steps}, {self.parents} and {self.norm_samples}"
            raise ConfigError(f"steps >= 0, parents >= 1 and norm_samples >= 2 are needed, not {given}")


class Found(NamedTuple):
    """An assignment with its loss (see Objective), and the loss of the one that evolution began with."""

    assignment: Assignment
    loss: float
    sensitivity_loss: float


class Finder:
    """Searches assignments of `model` for budgets, judged on samples x (N, *sample_shape) that need no labels.

    Raises ConfigError on a model of one width, DataError on samples that it does not take.
    """

    def __init__(
        self,
        model: Model,
        x: NDArray[np.generic],
        config: SearchConfig = SearchConfig(),
        progress: Progress = lambda description, steps: nullcontext(lambda note: None),
    ) -> None:
        if len(model.graph.widths) == 1:
            raise ConfigError(f"the model serves {model.graph.widths[0]} bits only: there is nothing to search")
        if len(model.planes) < model.graph.widths[-1]:
            raise ConfigError(f"only {len(model.planes)} bit planes were read; load the model with all its widths")
        self.model, self.config, self._progress = model, config, progress
        self.objective = Objective(model, x, config.norm_samples)

    @cached_property
    def sensitivity(self) -> NDArray[np.float64]:
        """Loss (L, W, A) of each layer at each pair of widths, all others at their widest."""
        graph = self.model.graph
        widest, widths = graph.uniform(graph.widths[-1]), graph.widths
        losses = np.zeros((len(graph.layers), len(widths), len(widths)))
        with self._progress("sensitivity", len(graph.layers)) as advance:
            for i, layer in enumerate(graph.layers):
                top = widest[i]
                for j, width in enumerate(widths[:-1]):
                    losses[i, j, :] += self._lowered(widest, i, LayerWidths(width, top.activation))
                    if not layer.reads_input:
                        losses[i, :, j] += self._lowered(widest, i, LayerWidths(top.weight, width))
                advance(layer.name)
        return losses

    def _lowered(self, widest: Assignment, index: int, pair: LayerWidths) -> float:
        return self.objective((*widest[:index], pair, *widest[index + 1 :]))

    def by_sensitivity(self, budget: Budget) -> Assignment:
        """The assignment of least total sensitivity within a budget: what the search starts from.

        Raises ConfigError on a budget that widths hardly change.
        """
        choices, most = self._limits(budget)
        return choices.assignment(choices.cheapest_loss(self._losses(), most))

    def _limits(self, budget: Budget) -> tuple[Choices, float]:
        graph = self.model.graph
        return Choices.of(graph, budget.cost), affordable_cost(graph, budget.share, budget.cost)

    def _losses(self) -> NDArray[np.float64]:
        return self.sensitivity.reshape(len(self.model.graph.layers), -1)

    def find(self, budget: Budget, begin: Sequence[Assignment] = ()) -> Found:
        """The best assignment found within a budget.

        begin: assignments to begin from besides sensitivity's, the uniform ones and the model's own points; each is
        made to fit. The same model, samples, budget and seed give the same answer. Raises ConfigError on a budget that
        widths hardly change.
        """
        choices, most = self._limits(budget)
        graph, losses, rng = self.model.graph, self._losses(), np.random.default_rng(self.config.seed)
        start = choices.assignment(choices.cheapest_loss(losses, most))
        given = [*begin, *map(graph.uniform, graph.widths), *(p.assignment for p in self.model.points)]
        first = [start, *(self._fitted(choices, a, -losses, most) for a in given)]
        with self._progress(f"search {budget.name}", self.config.steps) as advance:
            ranked = sorted((self.objective(a), a) for a in dict.fromkeys(first))
            seen = set(first)
            for _ in range(self.config.steps):
                child = self._child(choices, ranked, rng, losses, most)
                advance(f"loss {ranked[0][0]:.4f}")
                if child not in seen:
                    seen.add(child)
                    ranked = sorted([*ranked, (self.objective(child), child)])[: self.config.parents]
        return Found(ranked[0][1], ranked[0][0], self.objective(start))

    def _fitted(self, choices: Choices, a: Assignment, scores: NDArray[np.float64], most: float) -> Assignment:
        return choices.assignment(choices.fitted(choices.indices(a), scores, most))

    def _child(
        self,
        choices: Choices,
        ranked: Sequence[tuple[float, Assignment]],
        rng: np.random.Generator,
        losses: NDArray[np.float64],
        most: float,
    ) -> Assignment:
        """A parent, or half of two, with one to three widths changed by a step, made to fit."""
        count, layers = len(self.model.graph.widths), self.model.graph.layers
        mother, father = (choices.indices(ranked[int(i)][1]) for i in rng.integers(len(ranked), size=2))
        mixed = rng.random(len(mother)) < (0.5 if rng.integers(2) else 0.0)
        weight, activation = np.divmod(np.where(mixed, father, mother), count)
        for i in rng.integers(len(layers), size=int(rng.integers(1, 4))):
            changed = weight if rng.integers(2) or layers[i].reads_input else activation
            changed[i] = np.clip(changed[i] + rng.choice((-1, 1)), 0, count - 1)
        noise = np.exp(REPAIR_NOISE * rng.standard_normal((len(layers), 1)))
        return choices.assignment(choices.fitted(weight * count + activation, -losses * noise, most))

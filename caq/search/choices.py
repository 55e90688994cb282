"""A pair of widths for every layer, at a limited cost: the exact choice for additive losses, and greedy repairs.

Choices are (L,) indices of pairs: with W widths, pair `w * W + a` has weights of the w-th width and activations of the
a-th. A layer that reads the network's input may only take the last a.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from caq.costs import cost_table
from caq.errors import ConfigError
from caq.graph import Assignment, Graph, LayerWidths
from caq.quant import TOP_WIDTH

#: Parts that what a budget leaves over the cheapest choice is divided in: what `cheapest_loss` may leave unused of it
#: is a layer's share of one part.
CELLS = 8192
_ROUNDING = 1e-12


@dataclass(frozen=True, eq=False)
class Choices:
    """What a graph's layers may choose from, for a cost by name.

    costs: (L, W * W) relative to 8 bits everywhere; `fixed` is added to their sum. allowed: (L, W * W) bool.
    """

    graph: Graph
    fixed: float
    costs: NDArray[np.float64]
    allowed: NDArray[np.bool_]

    @classmethod
    def of(cls, graph: Graph, cost: str = "") -> Choices:
        """Raises ConfigError on an unknown cost."""
        table, count = cost_table(graph, cost), len(graph.widths)
        reads_input = np.array([layer.reads_input for layer in graph.layers])
        allowed = ~reads_input[:, None] | (np.arange(count**2) % count == count - 1)
        return cls(graph, table.fixed, table.layers.reshape(len(graph.layers), -1), allowed)

    def within(self, weights: NDArray[np.bool_], activations: NDArray[np.bool_]) -> Choices:
        """Only pairs of widths that are allowed, (L, W) each; the network's input is read as it always is."""
        weight, activation = np.divmod(np.arange(self.costs.shape[1]), len(self.graph.widths))
        reads_input = np.array([layer.reads_input for layer in self.graph.layers])
        pairs = weights[:, weight] & (activations[:, activation] | reads_input[:, None])
        return replace(self, allowed=self.allowed & pairs)

    def cost(self, chosen: NDArray[np.int64]) -> float:
        """Relative cost of (L,) indices."""
        return self.fixed + float(self.costs[np.arange(len(chosen)), chosen].sum())

    def fits(self, chosen: NDArray[np.int64], most: float) -> bool:
        """Whether a choice costs at most `most`, but for rounding."""
        return self.cost(chosen) <= most + _ROUNDING

    def assignment(self, chosen: NDArray[np.int64]) -> Assignment:
        """(L,) indices as an assignment."""
        widths = self.graph.widths
        pairs = zip(self.graph.layers, *np.divmod(chosen, len(widths)), strict=True)
        return tuple(LayerWidths(widths[w], TOP_WIDTH if layer.reads_input else widths[a]) for layer, w, a in pairs)

    def indices(self, assignment: Assignment) -> NDArray[np.int64]:
        """An assignment as (L,) indices, activations of 8 bits as the widest that the graph serves."""
        index = {width: i for i, width in enumerate(self.graph.widths)}
        last = len(index) - 1
        return np.array([index[p.weight] * len(index) + index.get(p.activation, last) for p in assignment])

    def cheapest_loss(self, losses: NDArray[np.float64], most: float) -> NDArray[np.int64]:
        """The choice of least total loss (L, W * W) that costs at most `most`: a multiple-choice knapsack.

        By dynamic programming over the cost, in CELLS parts, each choice's cost rounded up. Raises ConfigError if
        nothing costs so little.
        """
        costs = np.where(self.allowed, self.costs, np.inf)
        least = costs.min(1, keepdims=True)
        spare = most - self.fixed - float(least.sum())
        if spare < -_ROUNDING:
            raise ConfigError(f"no assignment costs at most {most:.3f}; the cheapest costs {most - spare:.3f}")
        with np.errstate(invalid="ignore", divide="ignore"):
            cells = np.where(costs > least, np.ceil((costs - least) / max(spare, 0.0) * CELLS - 1e-6), 0)
        cells = np.minimum(cells, CELLS + 1).astype(np.int64)
        best, picks = np.zeros(CELLS + 1), []
        for row, loss in zip(cells, losses, strict=True):
            tried = np.full((len(row), CELLS + 1), np.inf)
            for k in np.flatnonzero(row <= CELLS):
                tried[k, row[k] :] = best[: CELLS + 1 - row[k]] + loss[k]
            picks.append(tried.argmin(0))
            best = tried.min(0)
        chosen, left = np.zeros(len(cells), np.int64), CELLS
        for i in range(len(cells) - 1, -1, -1):
            chosen[i] = picks[i][left]
            left -= cells[i, chosen[i]]
        return chosen

    def fitted(self, chosen: NDArray[np.int64], scores: NDArray[np.float64], most: float) -> NDArray[np.int64]:
        """A choice made to cost at most `most`, and to leave nothing of it unused.

        While it costs too much, the layer changes its pair that loses the least score (L, W * W) for what it saves;
        then, while wider ones fit, the one that gains the most for what it costs. Raises ConfigError if nothing fits.
        """
        chosen, layers = chosen.copy(), np.arange(len(chosen))
        weight, activation = np.divmod(np.arange(self.costs.shape[1]), len(self.graph.widths))
        wider = (weight >= weight[:, None]) & (activation >= activation[:, None]) & ~np.eye(len(weight), dtype=bool)

        def differences() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
            return self.costs - self.costs[layers, chosen, None], scores - scores[layers, chosen, None]

        def change(possible: NDArray[np.bool_], worth: NDArray[np.float64]) -> None:
            layer, pair = np.unravel_index(np.where(possible, worth, -np.inf).argmax(), worth.shape)
            chosen[layer] = pair

        with np.errstate(divide="ignore", invalid="ignore"):
            while not self.fits(chosen, most):
                more, gain = differences()
                if not (possible := self.allowed & (more < 0)).any():
                    cheapest = self.cost(chosen)
                    raise ConfigError(f"no assignment costs at most {most:.3f}; the cheapest costs {cheapest:.3f}")
                change(possible, gain / -more)
            while True:
                more, gain = differences()
                possible = self.allowed & wider[chosen] & (self.cost(chosen) + more <= most + _ROUNDING)
                if not possible.any():
                    return chosen
                change(possible, np.where(more > 0, gain / more, np.inf))

"""Budgets: how much of a cost an operating point may take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from caq.costs.table import check_cost, cost_table
from caq.errors import ConfigError
from caq.graph import Assignment, Graph


@dataclass(frozen=True)
class Budget:
    """A point's name, and where between the cheapest assignment (0) and the widest width everywhere (1) it may be.

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

#: What the widest assignment must cost at least over the cheapest, so that a budget says something.
LEAST_RANGE = 1.02


def relative_cost(graph: Graph, assignment: Assignment, cost: str = "") -> float:
    """What `assignment` costs, relative to 8 bits everywhere; by default the mean of weight bytes and bit-MACs."""
    return cost_table(graph, cost).of(graph, assignment)


def affordable_cost(graph: Graph, share: float, cost: str = "") -> float:
    """The `relative_cost` that a budget's share allows.

    Raises ConfigError where widths hardly change the cost: no assignment could be chosen by it.
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
    """Raises ConfigError on a budget that no assignment of `graph` could be chosen for."""
    for budget in budgets:
        affordable_cost(graph, budget.share, budget.cost)

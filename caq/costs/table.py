"""Costs as tables: what each layer costs at each pair of widths, so that the cost of a choice is a dot product.

A cost is named by a text:

    ""                 mean of weight bytes and bit-MACs, each relative to 8 bits everywhere
    bytes              bytes of weights read
    bit_macs           multiply-accumulates x weight bits x activation bits
    latency@PROFILE    seconds on a device profile, shipped or a .yaml file
    energy@PROFILE     joules
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING

import numpy as np

from caq.conditional import gate_cost
from caq.costs.profile import LayerCost, Profile
from caq.costs.read import load_profile
from caq.errors import ConfigError, nearest
from caq.graph import Assignment, Graph, Layer, LayerWidths
from caq.quant import TOP_WIDTH, plane_bytes

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: What a profile tells, and which field of LayerCost that is.
MODELLED = {"latency": "latency_s", "energy": "energy_j"}
_TOP = LayerWidths(TOP_WIDTH, TOP_WIDTH)


def _bytes(layer: Layer, pair: LayerWidths) -> float:
    return float(plane_bytes(layer.weights) * pair.weight)


def _bit_macs(layer: Layer, pair: LayerWidths) -> float:
    return float(layer.macs * pair.weight * pair.activation)


COUNTS = {"bytes": _bytes, "bit_macs": _bit_macs}
#: The fields of Cost that hold the same of a conditional gate.
GATE_COUNTS = {"bytes": "weight_bytes", "bit_macs": "bit_macs"}


@dataclass(frozen=True, eq=False)
class CostTable:
    """Costs relative to 8 bits everywhere: of an assignment, `fixed` plus, for each layer, one entry of `layers`.

    layers: (L, W, A) float64; W and A follow the graph's `widths`, for weights and for activations. A layer that reads
    the network's input reads it at 8 bits always: its entries are alike along A. unit: what 1 is, in the cost's own
    unit (bytes, bit-MACs, s, J; 1 for the mean). price: a layer's entry at any pair of widths. gate: what a conditional
    gate costs that reads a tensor and has so many branches.
    """

    name: str
    fixed: float
    layers: NDArray[np.float64]
    unit: float
    price: Callable[[Layer, LayerWidths], float]
    gate: Callable[[int, int], float]

    def of(self, graph: Graph, assignment: Assignment) -> float:
        """Relative cost of an assignment of the graph that the table is of."""
        return self.fixed + sum(map(self.price, graph.layers, assignment))

    @property
    def least(self) -> float:
        """Relative cost of the cheapest assignment."""
        return self.fixed + float(self.layers.min((1, 2)).sum())


def check_cost(name: str) -> str:
    """Returns `name` if it names a cost whose profile can be read. Raises ConfigError."""
    _parsed(name)
    return name


def cost_table(graph: Graph, name: str = "") -> CostTable:
    """The table of a cost by name (see above). Raises ConfigError on an unknown one.

    On a profile with levels of memory, weights lie where those of the widest assignment do, which is the slowest level
    that any assignment needs.
    """
    what, profile = _parsed(name)
    if profile is not None:
        return _modelled(graph, name, profile, what)
    full = {key: sum(price(layer, _TOP) for layer in graph.layers) for key, price in COUNTS.items()}

    def gate(key: str, tensor: int, branches: int) -> float:
        return float(getattr(gate_cost(graph, tensor, branches), GATE_COUNTS[key]))

    if what:
        return _table(graph, name, COUNTS[what], lambda t, n: gate(what, t, n))
    return _table(
        graph,
        name,
        lambda layer, pair: sum(COUNTS[k](layer, pair) / full[k] for k in COUNTS) / 2,
        lambda t, n: sum(gate(k, t, n) / full[k] for k in COUNTS) / 2,
    )


def _parsed(name: str) -> tuple[str, Profile | None]:
    what, at, profile = name.partition("@")
    if at:
        if what not in MODELLED:
            raise ConfigError(f"cost {name!r}: a profile tells {' and '.join(MODELLED)}{nearest(what, MODELLED)}")
        return what, load_profile(profile)
    if name and name not in COUNTS:
        known = (*COUNTS, *(f"{m}@PROFILE" for m in MODELLED))
        raise ConfigError(f"unknown cost {name!r}{nearest(name, known)}")
    return name, None


def _modelled(graph: Graph, name: str, profile: Profile, what: str) -> CostTable:
    level = profile.level(graph, graph.uniform(graph.widths[-1]))
    figure: Callable[[LayerCost], float] = attrgetter(MODELLED[what])
    without_weights = set(range(len(graph.ops))) - {layer.op for layer in graph.layers}
    fixed = [profile.overhead(graph), *(profile.op_cost(graph, i, level) for i in sorted(without_weights))]
    return _table(
        graph,
        name,
        lambda layer, pair: figure(profile.op_cost(graph, layer.op, level, layer, pair)),
        lambda tensor, branches: figure(profile.gate_cost(graph, level, tensor, branches)),
        sum(map(figure, fixed)),
    )


def _table(
    graph: Graph,
    name: str,
    price: Callable[[Layer, LayerWidths], float],
    gate: Callable[[int, int], float],
    fixed: float = 0.0,
) -> CostTable:
    unit = fixed + sum(price(layer, _TOP) for layer in graph.layers)
    if unit <= 0:
        raise ConfigError(f"cost {name!r}: 8 bits everywhere cost nothing, so nothing can be compared with them")
    layers = [
        [[price(layer, _pair(layer, w, a)) / unit for a in graph.widths] for w in graph.widths]
        for layer in graph.layers
    ]
    return CostTable(
        name,
        fixed / unit,
        np.array(layers),
        unit,
        lambda layer, pair: price(layer, pair) / unit,
        lambda tensor, branches: gate(tensor, branches) / unit,
    )


def _pair(layer: Layer, weight: int, activation: int) -> LayerWidths:
    return LayerWidths(weight, TOP_WIDTH if layer.reads_input else activation)

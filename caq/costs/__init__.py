"""What an assignment costs: bytes, multiply-accumulates, and latency and energy on a device that a profile describes.

    profile = load_profile("cortex-m7")           # a shipped one by name (see `profile_names`), or a file of your own
    profile.cost(graph, assignment).latency_s     # and energy_j, weight_bytes, activation_bytes
    cost_table(graph, "energy@bit-serial")        # per layer and pair of widths: what gates learn with

Nothing here measures: latency and energy are modelled, each figure with its source (caq.costs.profile).
"""

from caq.costs.budget import DEFAULT_BUDGETS, Budget, affordable_cost, check_budgets, relative_cost
from caq.costs.profile import DeviceCost, LayerCost, Level, Profile, Quantity, Source, Tile
from caq.costs.read import load_profile, parse_profile, profile_names
from caq.costs.table import CostTable, check_cost, cost_table

__all__ = [
    "DEFAULT_BUDGETS",
    "Budget",
    "CostTable",
    "DeviceCost",
    "LayerCost",
    "Level",
    "Profile",
    "Quantity",
    "Source",
    "Tile",
    "affordable_cost",
    "check_budgets",
    "check_cost",
    "cost_table",
    "load_profile",
    "parse_profile",
    "profile_names",
    "relative_cost",
]

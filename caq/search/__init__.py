"""Finds assignments for a budget from a `.caq` file and unlabelled samples: no training, no torch.

finder = Finder(model, samples)                           # measures what lowering each layer costs
found = finder.find(Budget("commute", 0.2, "bit_macs"))
model = with_point(model, "commute", found.assignment, samples, x_test, y_test)
caq.save(model, "x.caq")
"""

from caq.search.finder import Finder, Found, SearchConfig
from caq.search.objective import Objective
from caq.search.points import check_new, with_point

__all__ = ["Finder", "Found", "Objective", "SearchConfig", "check_new", "with_point"]

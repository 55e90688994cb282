"""Calibration on the device: what keeps a model accurate when its widths change. Needs numpy and the kernels only.

norms = NormEstimator(model, samples)              # unlabelled samples, in the data's own layout
parameters = norms.estimate(assignment)            # with a set more: what batch norm would make of this mix
"""

from caq.calibration.cuts import Cut, Moments, measure_outputs
from caq.calibration.norms import NormEstimator

__all__ = ["Cut", "Moments", "NormEstimator", "measure_outputs"]

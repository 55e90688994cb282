"""Continual calibration on the device: what keeps a model accurate as its data drift or its widths change.

Needs numpy and the kernels only.

norms          batch norm's statistics re-estimated in the integer graph, from unlabelled samples
cuts           what a layer puts out before it is rounded and clamped, measured by the engine's own kernels
state          what calibration has learnt, as bytes: named arrays and notes, bound to one artifact
slots          those bytes in a folder, in two slots: a crash or a power cut leaves the old state or the new one
core           the core set: few samples that keep the distribution of quantization misses of all training data
signals        what drift shows itself in, for each sample, without labels
drift          detectors of drift in such signals, and an alarm that does not chatter
error_streams  detectors of drift in errors, when labels come
guard          whether a candidate may take the place of the calibration in force, and an audit record
"""

from caq.calibration.cuts import Cut, Moments, measure_outputs
from caq.calibration.norms import NormEstimator

__all__ = ["Cut", "Moments", "NormEstimator", "measure_outputs"]

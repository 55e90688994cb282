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

calibrator     all of it together: a stream climbs a ladder of rungs, what the guard promotes is kept, durably
config         how to calibrate
rungs          the ladder, with its budget of time (deadline)
statistics     the first rung: means and deviations of each layer's outputs brought back to the source's
biases         the second rung: biases of the classes, from labels
head           the third rung: the classifier, from labels
domains        a rung for inputs of two domains: a second parameter set, and a gate (twins) that picks one of both
judge          what candidates are judged on, and which parameter sets (sets) they are kept for
watch          the drift detector that starts calibration, if it is not always on
background     a calibrator in a thread, beside inference that never waits for it
settings       that thread's YAML file
audit          its audit log
waiting        samples whose label may come yet
learnt         what was learnt of a stream, as one immutable object and as arrays of a state
"""

from caq.calibration.calibrator import Calibrator
from caq.calibration.cuts import Cut, Moments, measure_outputs
from caq.calibration.norms import NormEstimator

__all__ = ["Calibrator", "Cut", "Moments", "NormEstimator", "measure_outputs"]

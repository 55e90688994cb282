"""Continual calibration on the device: what keeps a model accurate as its data drift. Needs numpy and the kernels only.

state          what calibration has learnt, as bytes: named arrays and notes, bound to one artifact
slots          those bytes in a folder, in two slots: a crash or a power cut leaves the old state or the new one
core           the core set: few samples that keep the distribution of quantization misses of all training data
signals        what drift shows itself in, for each sample, without labels
drift          detectors of drift in such signals, and an alarm that does not chatter
error_streams  detectors of drift in errors, when labels come
guard          whether a candidate may take the place of the calibration in force, and an audit record
"""

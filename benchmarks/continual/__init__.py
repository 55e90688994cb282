"""Continual calibration beside its peers: the same streams, the same bytes of core set, at 8, 4 and 2 bits."""

"""Traces of devices: recorded ones, a scripted day, and days generated after recorded ones."""

from simulators.traces.scripted import phone_day
from simulators.traces.trace import Split, Trace, read, resample, split, write

__all__ = ["Split", "Trace", "phone_day", "read", "resample", "split", "write"]

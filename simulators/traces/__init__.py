"""Traces of devices: recorded ones, a scripted day, and days generated after recorded ones."""

from simulators.traces.days import Days, phone_days
from simulators.traces.scripted import phone_day
from simulators.traces.trace import Split, Trace, read, resample, split, write

__all__ = ["Days", "Split", "Trace", "phone_day", "phone_days", "read", "resample", "split", "write"]

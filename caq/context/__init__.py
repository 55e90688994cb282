"""The context of the device: readings with provenance, live from its sensors or replayed from a recording."""

import logging

from caq.context.monitor import ContextMonitor
from caq.context.probe import ProbeRow, probe
from caq.context.reading import FIELDS, Context, FieldSpec, Quality, Reading, checked, missing, sensed
from caq.context.sources import Source, default_sources
from caq.context.trace import RecordedContext

__all__ = [
    "FIELDS",
    "Context",
    "ContextMonitor",
    "FieldSpec",
    "ProbeRow",
    "Quality",
    "Reading",
    "RecordedContext",
    "Source",
    "checked",
    "default_sources",
    "missing",
    "probe",
    "sensed",
]

# Whatever logs imports this package. caq itself does not import logging: the engine starts without it.
logging.getLogger("caq").addHandler(logging.NullHandler())

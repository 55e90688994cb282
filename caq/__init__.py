"""caq: a context-aware adaptive quantization runtime. See README.md for the first ten minutes.

    from caq import Runtime
    from policies import ThresholdPolicy

    with Runtime("model.caq", policy=ThresholdPolicy.from_yaml("rules.yaml")) as rt:
        label = rt.predict(sample)

Importing caq needs neither torch nor gymnasium; `caq.supernet`, which trains, needs torch.
"""

from __future__ import annotations

import logging

from caq.artifact import load, save
from caq.engine import Engine
from caq.errors import CaqError
from caq.model import Model, OperatingPoint
from caq.runtime import Runtime

__version__ = "0.1.0"
__all__ = ["CaqError", "Engine", "Model", "OperatingPoint", "Runtime", "load", "save"]

logging.getLogger(__name__).addHandler(logging.NullHandler())

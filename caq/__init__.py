"""caq: a context-aware adaptive quantization runtime. See README.md for the first ten minutes.

    from caq import Runtime
    from policies import ThresholdPolicy

    with Runtime("model.caq", policy=ThresholdPolicy.from_yaml("rules.yaml")) as rt:
        label = rt.predict(sample)

Importing caq needs neither torch nor gymnasium; `caq.supernet`, which trains, needs torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from caq.artifact import load, save
from caq.engine import Engine
from caq.errors import CaqError
from caq.model import Model, OperatingPoint

if TYPE_CHECKING:
    from caq.runtime import Runtime

__version__ = "0.1.0"
__all__ = ["CaqError", "Engine", "Model", "OperatingPoint", "Runtime", "load", "save"]


if not TYPE_CHECKING:  # for type checkers it would hide names that do not exist

    def __getattr__(name: str) -> object:
        """Imports the runtime when it is first asked for: sensors and logging take longer to import than the engine."""
        if name not in ("Runtime", "context", "governor", "runtime"):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from caq.runtime import Runtime  # and with it its submodules become attributes of caq

        globals()["Runtime"] = Runtime
        return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

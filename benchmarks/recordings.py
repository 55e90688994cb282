"""Where the recordings lie that a benchmark fits."""

from __future__ import annotations

import os
from pathlib import Path

from caq.errors import ConfigError


def folder() -> Path:
    """The folder CAQ_DATA. Raises ConfigError if it is not set."""
    if not (found := os.environ.get("CAQ_DATA")):
        raise ConfigError("set CAQ_DATA to the folder that holds li_ion_nasa and thermal_power_tiansuan")
    return Path(found)

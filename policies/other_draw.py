"""What a device draws beside inference, as far as it can tell: what else would be taken for requests."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from caq.errors import ConfigError
from policies.arrays import Arrays
from policies.seen import Seen


@dataclass(frozen=True)
class OtherDraw:
    """W, each >= 0, as in `simulators.device.Device`: while idle, more for its screen, more at full brightness, more
    while other apps take the whole processor. Raises ConfigError that names the field."""

    idle_power_w: float
    screen_power_w: float = 0.0
    bright_power_w: float = 0.0
    apps_power_w: float = 0.0

    def __post_init__(self) -> None:
        for name in DRAWS:
            if not 0 <= getattr(self, name) < np.inf:
                raise ConfigError(f"{name}: must be at least 0, not {getattr(self, name)}")

    @classmethod
    def of(cls, device: Any) -> OtherDraw:
        """That of a device, which has fields of these names."""
        return cls(*(getattr(device, name) for name in DRAWS))

    @classmethod
    def read(cls, arrays: Arrays) -> OtherDraw:
        """From numbers of a file. Raises WeightsError, ConfigError."""
        return cls(*(arrays.number(name) for name in DRAWS))

    def arrays(self) -> dict[str, Any]:
        """For a file that `read` reads."""
        return {name: np.float64(value) for name, value in asdict(self).items()}

    def watts(self, xp: Any, seen: Seen, brightness: Any) -> Any:
        """Drawn since the last decision, a number or (N,) as `xp` has it (`policies.numbers`); NaN where it depends on
        what is not known. brightness: of the screen, as it was at the last decision."""
        found = self.idle_power_w
        if self.screen_power_w or self.bright_power_w:
            found = found + self.screen_power_w * (brightness > 0) + self.bright_power_w * brightness
        if self.apps_power_w:
            found = found + self.apps_power_w * xp.of(seen.apps_load)
        return found


#: The fields, in their order.
DRAWS = tuple(field.name for field in fields(OtherDraw))

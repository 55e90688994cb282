"""Pictures of episodes, by matplotlib."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from caq.errors import ConfigError, MissingExtraError, nearest
from simulators.world import Outcome

if TYPE_CHECKING:
    from caq.graph import LayerWidths
    from simulators.envs.scenario import Scenario

log = logging.getLogger(__name__)
_SIZE_PX, _DPI = (720, 480), 100


def check_render_mode(mode: str | None, metadata: Mapping[str, Any]) -> str | None:
    """Returns `mode`. Raises ConfigError if there is none of that name."""
    if mode is not None and mode not in metadata["render_modes"]:
        raise ConfigError(f"no render_mode {mode!r}{nearest(str(mode), metadata['render_modes'])}")
    return mode


class Canvas:
    """A figure of 720 x 480 pixels, kept between frames: in a window (mode human) or only in memory (rgb_array).

    Where matplotlib has no window to open, human draws in memory and a warning is logged. Raises MissingExtraError
    without matplotlib.
    """

    def __init__(self, mode: str) -> None:
        try:
            from matplotlib import pyplot
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
        except ImportError:
            raise MissingExtraError("matplotlib", "sim") from None
        self._human, self._window = mode == "human", False
        size = (_SIZE_PX[0] / _DPI, _SIZE_PX[1] / _DPI)
        if self._human:
            self.figure: Any = pyplot.figure(figsize=size, dpi=_DPI)
            self._window = self.figure.canvas.required_interactive_framework is not None
            if self._window:
                return
            pyplot.close(self.figure)
            log.warning("render_mode human: matplotlib's backend %s opens no window", pyplot.get_backend())
        self.figure = Figure(size, dpi=_DPI)
        FigureCanvasAgg(self.figure)

    def day(self, steps: Sequence[tuple[float, ...]], scenario: Scenario) -> NDArray[np.uint8] | None:
        """Charge, operating point and requests of the steps so far."""
        self.figure.clear()
        top, middle, bottom = self.figure.subplots(3, 1, sharex=True, height_ratios=(2, 1.4, 1.4))
        days = scenario.days
        hours = (days.start_s + np.arange(len(steps)) * days.step_s) / 3600
        table = np.array(steps, np.float64).reshape(-1, 4 + len(Outcome._fields))
        charge, charger, point, _, accuracy, served, late, dropped, *_ = table.T
        asked = np.maximum(served + dropped, 1)
        top.fill_between(hours, 0, 100, charger > 0, step="post", color="#f2c14e", alpha=0.35, lw=0, label="charger")
        top.plot(hours, 100 * charge, color="#1b6ca8", label="charge")
        first_h, last_h = days.start_s / 3600, (days.start_s + days.steps * days.step_s) / 3600
        top.set(ylabel="charge, %", ylim=(0, 102), title=scenario.device.title, xlim=(first_h, last_h))
        top.title.set_fontsize(9)
        top.legend(loc="lower left", fontsize=8)
        middle.step(hours, point, where="post", color="#444444")
        middle.set(ylabel="point", ylim=(-0.5, len(scenario.costs) - 0.5))
        middle.set_yticks(range(len(scenario.costs)), scenario.costs.names, fontsize=7)
        right = 100 * (served - late) * accuracy / asked
        bottom.fill_between(hours, right, step="post", color="#3a9d5d", alpha=0.8, lw=0, label="right, in time")
        bottom.plot(hours, 100 * dropped / asked, color="#c0392b", lw=1, label="dropped")
        bottom.set(ylabel="requests, %", ylim=(0, 102), xlabel="hour of the day")
        bottom.legend(loc="lower left", fontsize=8)
        self.figure.align_ylabels()
        self.figure.subplots_adjust(left=0.11, right=0.98, top=0.93, bottom=0.11, hspace=0.12)
        return self._shown()

    def layers(self, chosen: Sequence[LayerWidths], names: Sequence[str], left: float) -> NDArray[np.uint8] | None:
        """Widths of the layers so far; `left` of the budget."""
        self.figure.clear()
        axes = self.figure.subplots()
        at = np.arange(len(chosen))
        axes.bar(at - 0.2, [pair.weight for pair in chosen], 0.4, color="#1b6ca8", label="weights")
        axes.bar(at + 0.2, [pair.activation for pair in chosen], 0.4, color="#f2c14e", label="activations")
        axes.set(ylabel="bits", ylim=(0, 9.5), xlim=(-0.6, len(names) - 0.4))
        axes.set_title(f"budget left: {max(left, 0.0):.3f} of 8 bits everywhere", fontsize=9)
        axes.set_xticks(range(len(names)), names, rotation=30, ha="right", fontsize=7)
        axes.legend(loc="upper right", fontsize=8, ncols=2)
        self.figure.tight_layout()
        return self._shown()

    def _shown(self) -> NDArray[np.uint8] | None:
        canvas = self.figure.canvas
        if self._window:
            self.figure.show()
            canvas.draw_idle()
            canvas.flush_events()
            return None
        canvas.draw()
        return None if self._human else np.asarray(canvas.buffer_rgba())[..., :3].copy()

    def close(self) -> None:
        """Closes the window, if there is one."""
        if self._window:
            from matplotlib import pyplot

            pyplot.close(self.figure)

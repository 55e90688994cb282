"""Pictures of simulated days: the same day under each of several policies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from caq.cli.page import CHARGING, LINES, MUTED, Drawn, Picture, clock, labels, legend, percent, pictures, rows_in, runs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from simulators.envs.scenario import Scenario
    from simulators.simulate import Log

#: Accuracies are of the requests of this long.
WINDOW_S = 3600.0
#: Light for the point that takes least energy, dark for the one that takes most.
POINT_COLOURS = "YlGnBu"
OFF = "#c9ced6"


@dataclass(frozen=True, eq=False)
class _Days:
    logs: Mapping[str, Log]
    scenario: Scenario

    @property
    def ends_s(self) -> NDArray[np.float64]:
        """(T,) when steps end."""
        return np.arange(1, self.scenario.days.steps + 1, dtype=np.float64) * self.scenario.days.step_s

    def lines(self) -> list[tuple[str, Log, str]]:
        """From the last one to the first, so that the first is drawn on top; `legend` turns them round."""
        return [(name, log, colour) for (name, log), colour in zip(self.logs.items(), LINES, strict=False)][::-1]


def day_pictures(logs: Mapping[str, Log], scenario: Scenario) -> list[Drawn]:
    """Draws the logs, by policy, of one day of a scenario. Raises MissingExtraError without matplotlib."""
    days, names = _Days(logs, scenario), ", ".join(logs)
    executed = any(log.steps.executed.any() for log in logs.values())
    of = "observed" if executed else "looked up"
    return pictures(
        [
            Picture(
                "State of charge, charging shaded",
                f"State of charge over time, charging shaded, of {names}",
                partial(_charge, days),
            ),
            Picture("Temperature", f"Temperature over time of {names}", partial(_temperature, days)),
            Picture(
                "Operating point in force",
                f"A band for each of {names}, coloured by operating point",
                partial(_points, days),
                rows_in([*logs, *_used(days)]),
            ),
            Picture(
                f"Accuracy of the last hour's requests, {of}",
                f"Accuracy over time of {names}",
                partial(_accuracy, days),
            ),
            Picture("Requests that wait", f"Length of the queue over time of {names}", partial(_queue, days)),
            Picture(
                "Requests late or dropped, so far",
                f"Cumulated late and dropped requests of {names}",
                partial(_lost, days),
            ),
        ]
    )


def _charge(days: _Days, figure: Figure) -> None:
    axes, times = _axes(days, figure)
    charging = next(iter(days.logs.values())).steps.charging >= 0.5
    for start, end in runs(charging):
        if charging[start]:
            axes.axvspan(times[start], times[end], color=CHARGING, linewidth=0)
    for name, log, colour in days.lines():
        axes.plot(times, log.steps.state_of_charge, color=colour, label=name)
    axes.set_ylim(0, 1.02)
    percent(axes)
    legend(figure, axes)


def _temperature(days: _Days, figure: Figure) -> None:
    axes, times = _axes(days, figure)
    axes.plot(times, days.scenario.days.ambient_c[0], color=MUTED, linewidth=1.0, linestyle=":", label="air")
    for name, log, colour in days.lines():
        axes.plot(times, log.steps.temperature_c, color=colour, label=name)
    hottest = max(float(log.steps.temperature_c.max()) for log in days.logs.values())
    limit = days.scenario.thermal.throttle_above_c
    if hottest > limit - 15:
        axes.axhline(limit, color=MUTED, linewidth=1.0, linestyle="--", label="throttles")
    axes.set_ylabel("°C")
    legend(figure, axes)


def _points(days: _Days, figure: Figure) -> None:
    import matplotlib
    from matplotlib.patches import Patch

    axes, times = _axes(days, figure)
    names, used = days.scenario.costs.names, _used(days)
    shades = np.linspace(0.95, 0.15, len(used))
    colours = {name: matplotlib.colormaps[POINT_COLOURS](shade) for name, shade in zip(used, shades, strict=True)}
    for row, log in enumerate(days.logs.values()):
        point = np.where(log.steps.off, -1, log.steps.point)
        for start, end in runs(point):
            colour = OFF if point[start] < 0 else colours[names[point[start]]]
            axes.broken_barh(
                [(times[start], times[end] - times[start])], (row - 0.38, 0.76), facecolor=colour, linewidth=0
            )
    axes.set_yticks(range(len(days.logs)), labels(list(days.logs)))
    axes.set_ylim(len(days.logs) - 0.4, -0.6)
    axes.grid(False)
    off = [Patch(color=OFF, label="off")] if any(log.steps.off.any() for log in days.logs.values()) else []
    figure.legend(
        handles=[*(Patch(color=colour, label=name) for name, colour in colours.items()), *off],
        loc="outside upper left",
        ncols=4,
        columnspacing=1.2,
    )


def _used(days: _Days) -> list[str]:
    """Points that any policy used, the one that takes most energy first."""
    names = days.scenario.costs.names
    used = {names[at] for log in days.logs.values() for at in np.unique(log.steps.point[~log.steps.off]).tolist()}
    energy = dict(zip(names, days.scenario.costs.energy_j.tolist(), strict=True))
    return sorted(used, key=lambda name: -energy[name])


def _accuracy(days: _Days, figure: Figure) -> None:
    axes, times = _axes(days, figure)
    lowest, highest = 1.0, 0.0
    for name, log, colour in days.lines():
        s = log.steps
        executed = bool(s.executed.any())
        right, served = (s.right, s.executed) if executed else (s.accuracy * s.served, s.served)
        rolled = _rolled(right, served, log.step_s)
        axes.plot(times, rolled, color=colour, label=name)
        if np.isfinite(rolled).any():
            lowest, highest = min(lowest, float(np.nanmin(rolled))), max(highest, float(np.nanmax(rolled)))
        if executed:
            axes.plot(
                times, _rolled(s.accuracy * s.served, s.served, log.step_s), color=colour, linewidth=0.9, linestyle=":"
            )
    axes.set_ylim(max(0.0, np.floor(lowest * 20 - 0.5) / 20), min(1.01, highest + 0.02))
    percent(axes)
    legend(figure, axes)


def _rolled(right: NDArray[Any], served: NDArray[Any], step_s: float) -> NDArray[np.float64]:
    """(T,) share of what was right among what was served in the last WINDOW_S; NaN if nothing was."""
    steps = max(1, round(WINDOW_S / step_s))
    sums = [np.cumsum(np.concatenate([np.zeros(steps), column])) for column in (right, served)]
    recent, count = (column[steps:] - column[:-steps] for column in sums)
    return np.divide(recent, count, out=np.full(len(right), np.nan), where=count > 0.5)


def _queue(days: _Days, figure: Figure) -> None:
    axes, times = _axes(days, figure)
    for name, log, colour in days.lines():
        axes.plot(times, log.steps.queue, color=colour, label=name)
    axes.set_ylim(0, 1.05 * max(1, *(int(log.steps.queue.max()) for log in days.logs.values())))
    legend(figure, axes)


def _lost(days: _Days, figure: Figure) -> None:
    from matplotlib.ticker import EngFormatter

    axes, times = _axes(days, figure)
    for name, log, colour in days.lines():
        axes.plot(times, np.cumsum(log.steps.late + log.steps.dropped), color=colour, label=name)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(EngFormatter(sep=" "))
    legend(figure, axes)


def _axes(days: _Days, figure: Figure) -> tuple[Axes, NDArray[np.float64]]:
    axes = figure.subplots()
    return axes, clock(axes, days.ends_s)

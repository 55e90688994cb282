"""report.html: one self-contained page on a day of adaptive inference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from caq.cli.page import (
    CHARGING,
    INK,
    LINES,
    MUTED,
    Picture,
    clock,
    labels,
    legend,
    percent,
    pictures,
    rows_in,
    runs,
    write_page,
)
from caq.errors import DataError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Light for few bits, dark for many: the same colours in the heat map and on the time line.
WIDTH_COLOURS = "YlGnBu"
MIN_BITS, MAX_BITS = 2, 8


@dataclass(frozen=True, eq=False)
class DayLog:
    """What happened, N rows in rising time; P operating points of L layers.

    t_s              (N,) seconds since the start
    state_of_charge  (N,) 0..1, NaN where unknown
    charging         (N,) bool
    point            (N,) index into `point_names`: the operating point in use
    point_names      P names
    layer_names      L names
    widths           (P, L) bits, 2..8
    accuracy         by strategy, (N,) 0..1: the rolling observed accuracy, NaN where unknown
    bit_macs         by strategy, (N,) bit-MACs spent in each row (not cumulated)
    baseline         the strategy in `bit_macs` whose total is 100 %: the one that always runs 8 bits

    Strategies are drawn in their order, so put the adaptive one first. Raises DataError naming a field whose
    length or range does not fit.
    """

    t_s: np.ndarray
    state_of_charge: np.ndarray
    charging: np.ndarray
    point: np.ndarray
    point_names: Sequence[str]
    layer_names: Sequence[str]
    widths: np.ndarray
    accuracy: Mapping[str, np.ndarray]
    bit_macs: Mapping[str, np.ndarray]
    baseline: str

    def __post_init__(self) -> None:
        rows = len(self.t_s)
        if rows < 2:
            raise DataError(f"report: t_s: needs at least 2 rows, has {rows}")
        if not (np.diff(self.t_s) > 0).all():
            raise DataError("report: t_s: must rise")
        columns = {name: getattr(self, name) for name in ("state_of_charge", "charging", "point")}
        columns |= {f"accuracy of {name}": values for name, values in self.accuracy.items()}
        columns |= {f"bit_macs of {name}": values for name, values in self.bit_macs.items()}
        for name, values in columns.items():
            if len(values) != rows:
                raise DataError(f"report: {name}: {len(values)} rows, t_s has {rows}")
        shape = (len(self.point_names), len(self.layer_names))
        if np.shape(self.widths) != shape or 0 in shape:
            raise DataError(f"report: widths: shape {np.shape(self.widths)}, the names need {shape}")
        if not np.isin(self.point, np.arange(shape[0])).all():
            raise DataError(f"report: point: an index is outside 0..{shape[0] - 1}")
        for name, strategies in (("accuracy", self.accuracy), ("bit_macs", self.bit_macs)):
            if not 1 <= len(strategies) <= len(LINES):
                raise DataError(f"report: {name}: needs 1 to {len(LINES)} strategies")
        if not np.nansum(self.bit_macs.get(self.baseline, 0)) > 0:
            raise DataError(f"report: baseline: {self.baseline!r} spends no bit-MACs")


def write_report(
    path: str | Path,
    title: str,
    day: DayLog,
    rows: Sequence[Mapping[str, object]],
    notes: Sequence[str] = (),
) -> None:
    """Writes the page to `path`, whole or not at all.

    rows   of the table: values by column name; the first row names the columns, floats are cut to 4 digits
    notes  paragraphs of plain text below it

    Raises MissingExtraError without matplotlib.
    """
    write_page(path, title, pictures(_pictures(day)), rows, notes)


def _pictures(day: DayLog) -> list[Picture]:
    names = ", ".join(day.accuracy)
    points, layers = rows_in(day.point_names), rows_in(day.layer_names)
    return [
        Picture("Battery", "State of charge over time, charging shaded", partial(_draw_battery, day=day)),
        Picture(
            "Operating point in use", "Steps between operating points over time", partial(_draw_points, day=day), points
        ),
        Picture("Observed accuracy, rolling", f"Accuracy over time of {names}", partial(_draw_accuracy, day=day), 3.2),
        Picture(
            "Weight bits per layer", "Heat map of layers by operating points", partial(_draw_widths, day=day), layers
        ),
        Picture(
            f"Bit-MACs spent, of {day.baseline}",
            f"Cumulated bit-MACs of {names}",
            partial(_draw_bit_macs, day=day),
            3.2,
        ),
    ]


def _draw_battery(figure: Figure, day: DayLog) -> None:
    axes = figure.subplots()
    times = clock(axes, day.t_s)
    charging = np.asarray(day.charging, bool)
    label: str | None = "charging"
    for start, end in runs(charging):
        if charging[start]:
            axes.axvspan(times[start], times[end], color=CHARGING, linewidth=0, label=label)
            label = None
    axes.plot(times, day.state_of_charge, color=LINES[0], label="state of charge")
    axes.set_ylim(0, 1.02)
    percent(axes)
    figure.legend(loc="outside upper left", ncols=2)


def _bits_colour(bits: float) -> Any:
    import matplotlib

    return matplotlib.colormaps[WIDTH_COLOURS](0.12 + 0.8 * (bits - MIN_BITS) / (MAX_BITS - MIN_BITS))


def _draw_points(figure: Figure, day: DayLog) -> None:
    axes = figure.subplots()
    times = clock(axes, day.t_s)
    point = np.asarray(day.point)
    bits = np.mean(day.widths, axis=1)
    for start, end in runs(point):
        name = point[start]
        axes.broken_barh(
            [(times[start], times[end] - times[start])],
            (name - 0.38, 0.76),
            facecolor=_bits_colour(bits[name]),
            linewidth=0,
        )
    axes.plot(times, point, color=MUTED, linewidth=0.8, drawstyle="steps-post")
    axes.set_yticks(range(len(day.point_names)), labels(day.point_names))
    axes.set_ylim(len(day.point_names) - 0.4, -0.6)


def _draw_widths(figure: Figure, day: DayLog) -> None:
    axes = figure.subplots()
    axes.grid(False)
    points, layers = np.shape(day.widths)
    for p in range(points):
        for layer in range(layers):
            bits = day.widths[p][layer]
            axes.add_patch(_cell(p, layer, _bits_colour(bits)))
            axes.text(p, layer, f"{bits:g}", ha="center", va="center", color="white" if bits > 5 else INK, size=9)
    axes.set_xlim(-0.5, points - 0.5)
    axes.set_ylim(layers - 0.5, -0.5)
    axes.set_yticks(range(layers), labels(day.layer_names))
    shown = labels(day.point_names)
    axes.set_xticks(range(points), shown)
    axes.tick_params(length=0, labelsize=9.5)
    if sum(map(len, shown)) > 36:
        for text in axes.get_xticklabels():
            text.set(rotation=40, ha="right", rotation_mode="anchor")
    for side in axes.spines.values():
        side.set_visible(False)


def _cell(x: int, y: int, colour: Any) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x - 0.47, y - 0.45), 0.94, 0.9, facecolor=colour, linewidth=0)


def _draw_accuracy(figure: Figure, day: DayLog) -> None:
    axes = figure.subplots()
    times = clock(axes, day.t_s)
    first = next(iter(day.accuracy))
    for (name, values), colour in _from_back(day.accuracy):
        # The first one is broad and behind the others: strategies that agree hide each other otherwise.
        width, opacity, order = (4.0, 0.5, 2.0) if name == first else (1.2, 1.0, 2.1)
        axes.plot(times, values, color=colour, label=name, linewidth=width, alpha=opacity, zorder=order)
    low = np.nanmin([np.nanmin(values) if np.isfinite(values).any() else 1.0 for values in day.accuracy.values()])
    # Whole tenths below the lowest value, so small differences near the top stay visible.
    axes.set_ylim(max(0.0, np.floor(low * 10 - 0.5) / 10), 1.01)
    percent(axes)
    legend(figure, axes)


def _draw_bit_macs(figure: Figure, day: DayLog) -> None:
    axes = figure.subplots()
    times = clock(axes, day.t_s)
    whole = np.nansum(day.bit_macs[day.baseline])
    for (name, values), colour in _from_back(day.bit_macs):
        share = np.nancumsum(values) / whole
        axes.plot(times, share, color=colour, label=f"{name}: {share[-1]:.0%}")
    axes.set_ylim(bottom=0)
    percent(axes)
    legend(figure, axes)


def _from_back(strategies: Mapping[str, np.ndarray]) -> list[tuple[tuple[str, np.ndarray], str]]:
    """Strategies with their colours, the first one last so that it is drawn on top."""
    return list(zip(strategies.items(), LINES, strict=False))[::-1]

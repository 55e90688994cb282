"""report.html: one self-contained page on a day of adaptive inference.

Pictures are SVG drawn by matplotlib without a display, embedded as data URIs with a text alternative each. They are
narrow, so a phone shows them one below the other at a legible size, and a desktop in two columns. The same inputs
and matplotlib give the same bytes.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from caq.errors import DataError, MissingExtraError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, GRID = "#1f2933", "#667381", "#e3e8ee"
LINES = ("#1769aa", "#4a5561", "#d9730d", "#2f8f5b", "#9b3fa5")
CHARGING = "#dcefdc"
# Light for few bits, dark for many: the same colours in the heat map and on the time line.
WIDTH_COLOURS = "YlGnBu"
MIN_BITS, MAX_BITS = 2, 8
FIGURE_WIDTH_IN = 5.4
# Any: matplotlib's stubs want a literal type with its 300 keys.
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "caq",
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GRID,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}


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
    page = _page(title, _pictures(day), rows, notes)
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(page, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _pictures(day: DayLog) -> list[tuple[str, str, str]]:
    """(caption, text alternative, SVG data URI) of each picture."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError("matplotlib", "sim") from None
    names = ", ".join(day.accuracy)
    pictures: list[tuple[str, str, Callable[[Figure, DayLog], None], float]] = [
        ("Battery", "State of charge over time, charging shaded", _draw_battery, 2.9),
        ("Operating point in use", "Steps between operating points over time", _draw_points, _rows_in(day.point_names)),
        ("Observed accuracy, rolling", f"Accuracy over time of {names}", _draw_accuracy, 3.2),
        ("Weight bits per layer", "Heat map of layers by operating points", _draw_widths, _rows_in(day.layer_names)),
        (f"Bit-MACs spent, of {day.baseline}", f"Cumulated bit-MACs of {names}", _draw_bit_macs, 3.2),
    ]
    drawn = []
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        for caption, alternative, draw, height_in in pictures:
            figure = Figure(figsize=(FIGURE_WIDTH_IN, height_in), layout="constrained")
            draw(figure, day)
            buffer = io.BytesIO()
            figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
            data = base64.b64encode(buffer.getvalue()).decode()
            drawn.append((caption, alternative, f"data:image/svg+xml;base64,{data}"))
    return drawn


def _rows_in(names: Sequence[str]) -> float:
    """Height in inches of a picture with one line of text per name."""
    return max(2.6, 1.3 + 0.27 * len(names))


def _clock(axes: Axes, t_s: np.ndarray) -> np.ndarray:
    """Labels the time axis; returns times in its unit, hours or, beyond four days, days."""
    hours = (t_s[-1] - t_s[0]) <= 4 * 86400
    times = (t_s - t_s[0]) / (3600 if hours else 86400)
    axes.set_xlabel("hours" if hours else "days")
    axes.set_xlim(0, times[-1])
    axes.locator_params(axis="x", nbins=8, steps=[1, 2, 3, 6, 10])
    return times


def _runs(values: np.ndarray) -> list[tuple[int, int]]:
    """[start, end) of each stretch of equal values; `end` is where the next stretch begins, or the last row."""
    edges = [0, *(np.flatnonzero(np.diff(values)) + 1).tolist(), len(values) - 1]
    return [(a, b) for a, b in pairwise(edges) if b > a]


def _percent(axes: Axes) -> None:
    from matplotlib.ticker import PercentFormatter

    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))


def _draw_battery(figure: Figure, day: DayLog) -> None:
    axes = figure.subplots()
    times = _clock(axes, day.t_s)
    charging = np.asarray(day.charging, bool)
    label: str | None = "charging"
    for start, end in _runs(charging):
        if charging[start]:
            axes.axvspan(times[start], times[end], color=CHARGING, linewidth=0, label=label)
            label = None
    axes.plot(times, day.state_of_charge, color=LINES[0], label="state of charge")
    axes.set_ylim(0, 1.02)
    _percent(axes)
    figure.legend(loc="outside upper left", ncols=2)


def _bits_colour(bits: float) -> Any:
    import matplotlib

    return matplotlib.colormaps[WIDTH_COLOURS](0.12 + 0.8 * (bits - MIN_BITS) / (MAX_BITS - MIN_BITS))


def _draw_points(figure: Figure, day: DayLog) -> None:
    axes = figure.subplots()
    times = _clock(axes, day.t_s)
    point = np.asarray(day.point)
    bits = np.mean(day.widths, axis=1)
    for start, end in _runs(point):
        name = point[start]
        axes.broken_barh(
            [(times[start], times[end] - times[start])],
            (name - 0.38, 0.76),
            facecolor=_bits_colour(bits[name]),
            linewidth=0,
        )
    axes.plot(times, point, color=MUTED, linewidth=0.8, drawstyle="steps-post")
    axes.set_yticks(range(len(day.point_names)), _labels(day.point_names))
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
    axes.set_yticks(range(layers), _labels(day.layer_names))
    labels = _labels(day.point_names)
    axes.set_xticks(range(points), labels)
    axes.tick_params(length=0, labelsize=9.5)
    if sum(map(len, labels)) > 36:
        for text in axes.get_xticklabels():
            text.set(rotation=40, ha="right", rotation_mode="anchor")
    for side in axes.spines.values():
        side.set_visible(False)


def _cell(x: int, y: int, colour: Any) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x - 0.47, y - 0.45), 0.94, 0.9, facecolor=colour, linewidth=0)


def _draw_accuracy(figure: Figure, day: DayLog) -> None:
    axes = figure.subplots()
    times = _clock(axes, day.t_s)
    first = next(iter(day.accuracy))
    for (name, values), colour in _from_back(day.accuracy):
        # The first one is broad and behind the others: strategies that agree hide each other otherwise.
        width, opacity, order = (4.0, 0.5, 2.0) if name == first else (1.2, 1.0, 2.1)
        axes.plot(times, values, color=colour, label=name, linewidth=width, alpha=opacity, zorder=order)
    low = np.nanmin([np.nanmin(values) if np.isfinite(values).any() else 1.0 for values in day.accuracy.values()])
    # Whole tenths below the lowest value, so small differences near the top stay visible.
    axes.set_ylim(max(0.0, np.floor(low * 10 - 0.5) / 10), 1.01)
    _percent(axes)
    _legend(figure, axes)


def _draw_bit_macs(figure: Figure, day: DayLog) -> None:
    axes = figure.subplots()
    times = _clock(axes, day.t_s)
    whole = np.nansum(day.bit_macs[day.baseline])
    for (name, values), colour in _from_back(day.bit_macs):
        share = np.nancumsum(values) / whole
        axes.plot(times, share, color=colour, label=f"{name}: {share[-1]:.0%}")
    axes.set_ylim(bottom=0)
    _percent(axes)
    _legend(figure, axes)


def _from_back(strategies: Mapping[str, np.ndarray]) -> list[tuple[tuple[str, np.ndarray], str]]:
    """Strategies with their colours, the first one last so that it is drawn on top."""
    return list(zip(strategies.items(), LINES, strict=False))[::-1]


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    columns = 3 if sum(map(len, labels)) <= 42 and len(labels) <= 3 else 2
    figure.legend(handles[::-1], labels[::-1], loc="outside upper left", ncols=columns, columnspacing=1.2)


def _labels(names: Sequence[str], longest: int = 20) -> list[str]:
    """Names that fit beside an axis: without what all of them share, then without the middle."""
    shown = list(names)
    if len(names) > 1 and max(map(len, names)) > longest:
        head = _shared(shown)
        rests = [name[head:] for name in shown]
        tail = _shared([rest[::-1] for rest in rests])
        shown = [f"{'…' if head else ''}{rest[: len(rest) - tail]}{'…' if tail else ''}" for rest in rests]
    end = longest // 3
    return [n if len(n) <= longest else f"{n[: longest - end - 1]}…{n[-end:]}" for n in shown]


def _shared(names: Sequence[str]) -> int:
    """How many characters all names have in common at the start."""
    return sum(1 for _ in takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False)))


PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light; }}
body {{ margin: 0; background: #f4f6f8; color: #1f2933; font: 16px/1.5 system-ui, sans-serif; }}
main {{ max-width: 1120px; margin: 0 auto; padding: 24px 16px 48px; }}
h1 {{ font-size: 1.6rem; line-height: 1.25; margin: 0 0 16px; overflow-wrap: anywhere; }}
.pictures {{ columns: 2 400px; column-gap: 16px; margin-bottom: 16px; }}
figure {{ margin: 0 0 16px; break-inside: avoid; }}
figure, .table {{ background: #fff; border: 1px solid #e3e8ee; border-radius: 10px; padding: 12px; }}
figcaption {{ font-weight: 600; margin-bottom: 6px; }}
img {{ display: block; width: 100%; height: auto; }}
.table {{ overflow-x: auto; }}
table {{ border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }}
th, td {{ padding: 7px 12px; text-align: left; border-bottom: 1px solid #e3e8ee; }}
td.number, td:first-child {{ white-space: nowrap; }}
tr:last-child td {{ border-bottom: 0; }}
th {{ color: #52606d; font-size: .88rem; }}
.number {{ text-align: right; }}
.notes {{ color: #52606d; max-width: 72ch; }}
</style>
</head>
<body>
<main>
<h1>{title}</h1>
<div class="pictures">
{pictures}
</div>
{table}
{notes}
</main>
</body>
</html>
"""


def _page(
    title: str,
    pictures: Sequence[tuple[str, str, str]],
    rows: Sequence[Mapping[str, object]],
    notes: Sequence[str],
) -> str:
    figures = [
        f'<figure><figcaption>{escape(caption)}</figcaption><img alt="{escape(alternative)}" src="{uri}"></figure>'
        for caption, alternative, uri in pictures
    ]
    paragraphs = [f"<p>{escape(note)}</p>" for note in notes]
    return PAGE.format(
        title=escape(title),
        pictures="\n".join(figures),
        table=_table(rows),
        notes="\n".join(['<div class="notes">', *paragraphs, "</div>"]) if paragraphs else "",
    )


def _table(rows: Sequence[Mapping[str, object]]) -> str:
    if not rows:
        return ""
    columns = list(rows[0])
    numeric = {name for name in columns if all(_is_number(row.get(name)) for row in rows)}

    def line(tag: str, cells: Sequence[tuple[str, str]]) -> str:
        marked = (f"<{tag}{' class=number' if name in numeric else ''}>{escape(t)}</{tag}>" for name, t in cells)
        return f"<tr>{''.join(marked)}</tr>"

    head = line("th", [(name, name) for name in columns])
    body = [line("td", [(name, _cell_text(row.get(name))) for name in columns]) for row in rows]
    return "\n".join(['<div class="table"><table>', head, *body, "</table></div>"])


def _is_number(value: object) -> bool:
    return value is None or (isinstance(value, (int, float, np.number)) and not isinstance(value, bool))


def _cell_text(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, (float, np.floating)) else str(value)

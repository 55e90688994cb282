"""One self-contained page: pictures, a table and notes.

Pictures are SVG drawn by matplotlib without a display, embedded as data URIs with a text alternative each. They are
narrow, so a phone shows them one below the other at a legible size, and a desktop in two columns. The same inputs
and matplotlib give the same bytes.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Callable, Mapping, Sequence
from html import escape
from itertools import pairwise, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from caq.errors import MissingExtraError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, GRID = "#1f2933", "#667381", "#e3e8ee"
LINES = ("#1769aa", "#4a5561", "#d9730d", "#2f8f5b", "#9b3fa5")
CHARGING = "#dcefdc"
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


class Picture(NamedTuple):
    """draw: fills a figure of height_in inches. alternative: what it shows, in words."""

    caption: str
    alternative: str
    draw: Callable[[Figure], None]
    height_in: float = 2.9


class Drawn(NamedTuple):
    """A picture as an SVG data URI."""

    caption: str
    alternative: str
    uri: str


def write_page(
    path: str | Path,
    title: str,
    drawn: Sequence[Drawn],
    rows: Sequence[Mapping[str, object]],
    notes: Sequence[str] = (),
) -> None:
    """Writes the page to `path`, whole or not at all.

    rows   of the table: values by column name; the first row names the columns, floats are cut to 4 digits
    notes  paragraphs of plain text below it
    """
    page = _page(title, drawn, rows, notes)
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(page, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def pictures(wanted: Sequence[Picture]) -> list[Drawn]:
    """Draws them. Raises MissingExtraError without matplotlib."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError("matplotlib", "sim") from None
    drawn = []
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        for caption, alternative, draw, height_in in wanted:
            figure = Figure(figsize=(FIGURE_WIDTH_IN, height_in), layout="constrained")
            draw(figure)
            buffer = io.BytesIO()
            figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
            data = base64.b64encode(buffer.getvalue()).decode()
            drawn.append(Drawn(caption, alternative, f"data:image/svg+xml;base64,{data}"))
    return drawn


def rows_in(names: Sequence[str]) -> float:
    """Height in inches of a picture with one line of text per name."""
    return max(2.6, 1.3 + 0.27 * len(names))


def clock(axes: Axes, t_s: np.ndarray) -> np.ndarray:
    """Labels the time axis; returns times in its unit, hours or, beyond four days, days."""
    hours = (t_s[-1] - t_s[0]) <= 4 * 86400
    times = (t_s - t_s[0]) / (3600 if hours else 86400)
    axes.set_xlabel("hours" if hours else "days")
    axes.set_xlim(0, times[-1])
    axes.locator_params(axis="x", nbins=8, steps=[1, 2, 3, 6, 10])
    return times


def runs(values: np.ndarray) -> list[tuple[int, int]]:
    """[start, end) of each stretch of equal values; `end` is where the next stretch begins, or the last row."""
    edges = [0, *(np.flatnonzero(np.diff(values)) + 1).tolist(), len(values) - 1]
    return [(a, b) for a, b in pairwise(edges) if b > a]


def percent(axes: Axes) -> None:
    from matplotlib.ticker import PercentFormatter

    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))


def legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    columns = 3 if sum(map(len, labels)) <= 42 and len(labels) <= 3 else 2
    figure.legend(handles[::-1], labels[::-1], loc="outside upper left", ncols=columns, columnspacing=1.2)


def labels(names: Sequence[str], longest: int = 20) -> list[str]:
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
    drawn: Sequence[Drawn],
    rows: Sequence[Mapping[str, object]],
    notes: Sequence[str],
) -> str:
    figures = [
        f'<figure><figcaption>{escape(caption)}</figcaption><img alt="{escape(alternative)}" src="{uri}"></figure>'
        for caption, alternative, uri in drawn
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

"""What a command prints: text for a person, or one JSON object for a program."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

#: One line of a table: cells by column. All rows of a table have the columns of the first.
Row = Mapping[str, object]
GAP = "  "


class Output:
    """Text goes to standard output, or to standard error with `--json`, where standard output is for the result.

    muted: nothing but an error is printed, as by all but the first of several processes.
    """

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self.muted = False

    def say(self, text: str) -> None:
        """Prints a line at once: a run of minutes is followed by a person, or by a pipe."""
        if self.muted:
            return
        print(text, file=sys.stderr if self.as_json else sys.stdout, flush=True)

    def table(self, title: str, rows: Sequence[Row]) -> None:
        """Prints a table; with `--json` nothing, since the result holds the same figures."""
        if self.muted or self.as_json or not rows:
            return
        if not (sys.stdout.isatty() and _print_rich(title, rows)):
            print("\n".join(["", title, *_plain(rows)]), flush=True)

    def finish(self, result: Mapping[str, Any]) -> None:
        """Ends a command that succeeded."""
        if self.as_json and not self.muted:
            print(json.dumps(result, allow_nan=False))
        sys.stdout.flush()

    def fail(self, error: Exception) -> None:
        """Ends a command that failed."""
        message = _message(error)
        print(f"caq: error: {message}", file=sys.stderr)
        if self.as_json and not self.muted:
            print(json.dumps({"error": {"type": type(error).__name__, "message": message}}), flush=True)


def percent(share: float) -> str:
    """`0.4213` as `42.1 %`."""
    return f"{100 * share:.1f} %"


def number(value: float) -> str:
    """Four significant digits, with a prefix beyond a thousand: `1234567` as `1.235 M`."""
    for factor, prefix in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= factor:
            return f"{value / factor:.4g}{prefix}"
    return f"{value:.4g}"


def _message(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def _numeric(rows: Sequence[Row], column: str) -> bool:
    """Whether a column is aligned to the right."""
    return all(re.match(r"-?\d|-?$", str(row[column])) for row in rows)


def _plain(rows: Sequence[Row]) -> list[str]:
    lines = [""] * (len(rows) + 1)
    for column in rows[0]:
        cells = [column, *(str(row[column]) for row in rows)]
        width = max(map(len, cells))
        numeric = _numeric(rows, column)
        lines = [
            line + (cell.rjust(width) if numeric else cell.ljust(width)) + GAP
            for line, cell in zip(lines, cells, strict=True)
        ]
    return [line.rstrip() for line in lines]


def _print_rich(title: str, rows: Sequence[Row]) -> bool:
    """Prints with rich; returns whether it is installed."""
    try:
        from rich.box import SIMPLE_HEAD
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        return False
    # Text, because a name in a file may hold what rich would take for markup.
    table = Table(title=Text(title, "bold"), title_justify="left", box=SIMPLE_HEAD)
    for column in rows[0]:
        table.add_column(Text(column), justify="right" if _numeric(rows, column) else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row.values()))
    Console().print(table)
    return True

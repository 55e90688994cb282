"""A progress bar on a terminal, and nothing where output is piped."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

#: Called after each unit of work with a short text on how it goes.
Advance = Callable[[str], None]


@contextmanager
def progress(description: str, total: int | None, enabled: bool = True) -> Iterator[Advance]:
    """Shows `total` units of work (None: nobody knows) on standard error; yields a function to call after each."""
    if not (enabled and sys.stderr.isatty()):
        yield lambda text: None
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    except ImportError:
        yield lambda text: None
        return
    columns = ("[bold]{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[note]}"), console=Console(stderr=True)) as bar:
        task = bar.add_task(description, total=total, note="")
        yield lambda text: bar.update(task, advance=1, note=text)

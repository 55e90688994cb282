"""A picture of accuracy over a calibrated stream."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from caq.cli.page import STYLE
from caq.cli.report import WIDTH_COLOURS
from caq.errors import MissingExtraError

TITLES = {"on_batch": "each batch, before it is learnt", "target": "target, test half", "source": "source, test"}


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draws the rows of `caq calibrate`: a panel each for batch, target and source, a line for each parameter set.

    Raises MissingExtraError without matplotlib.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator, PercentFormatter
    except ImportError:
        raise MissingExtraError("matplotlib", "sim") from None
    names = list(rows[0]["target"])
    colours = [matplotlib.colormaps[WIDTH_COLOURS](0.35 + 0.6 * i / max(len(names) - 1, 1)) for i in range(len(names))]
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        figure = Figure(figsize=(11, 3.6), layout="constrained")
        axes = figure.subplots(1, len(TITLES), sharey=True)
        for panel, (key, title) in zip(axes, TITLES.items(), strict=True):
            some = [row for row in rows if key in row]
            for name, colour in zip(names, colours, strict=True):
                panel.plot(
                    [r["batch"] for r in some], [r[key][name] for r in some], "o-", color=colour, label=name, ms=4
                )
            panel.set_title(title)
            panel.set_xlabel("batches")
            panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes[0].yaxis.set_major_formatter(PercentFormatter(1))
        axes[0].set_ylabel("accuracy")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right center")
        figure.savefig(path, dpi=130)

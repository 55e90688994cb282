"""`caq fleet`: thousands of simulated devices over a grid of policies, profiles and seeds."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from caq.cli.arguments import whole
from caq.cli.output import Output, number, percent
from caq.cli.policies import HELP as POLICY_HELP
from caq.progress import progress

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from simulators.fleet import Runner

HELP = "simulate thousands of devices over a grid of policies and profiles"

#: Height in inches that a row of the picture takes.
ROW_IN = 0.32


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "grid",
        metavar="grid.yaml",
        help=f"policies, profiles, seeds (see simulators.fleet); policies: {POLICY_HELP}",
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="for finished chunks, which are not done again, and a page",
    )
    parser.add_argument("--workers", type=whole(1, 1024), default=1, metavar="N", help="processes; default 1")
    parser.add_argument(
        "--ray",
        nargs="?",
        const="",
        metavar="HOST:PORT|auto",
        help="on a Ray cluster; without an address, one started here",
    )


def execute(args: argparse.Namespace, output: Output) -> dict[str, Any]:
    if args.ray is not None and args.workers != 1:
        args.usage_error("--workers and --ray do not go together")
    from caq.cli.chooser import make_chooser
    from caq.cli.page import Picture, pictures, write_page
    from simulators.fleet import Folder, digest, read_grid, run_fleet, summarise

    grid = read_grid(args.grid)
    folder, tasks = Folder(args.out, grid), grid.tasks()
    with progress(grid.title, len(tasks)) as advance:
        results = run_fleet(grid, folder, make_chooser, _runner(args), advance)
    summary, mark = summarise(grid, results), digest(results)
    rows = [_row(record) for record in summary]
    notes = (
        f"{grid.devices} devices of each of {len(grid.profiles)} profiles, with each of {len(grid.seeds)} seeds, under "
        f"each policy; days are generated. Intervals are of 95 %, over devices.",
        f"All figures of all devices have the SHA-256 {mark}: the same grid gives the same.",
    )
    height_in = 1.2 + ROW_IN * len(summary)
    drawn = [
        Picture(caption, f"{caption} by policy and profile", partial(draw, summary), height_in)
        for caption, draw in (("Reward a day", _rewards), ("Accuracy and days that lasted", _outcomes))
    ]
    write_page(args.out / "report.html", grid.title, pictures(drawn), rows, notes)
    output.table(grid.title, rows)
    for note in notes:
        output.say(note)
    output.say(f"wrote {args.out / 'report.html'}")
    return {
        "grid": args.grid,
        "title": grid.title,
        "out": str(args.out),
        "device_days": sum(task.devices for task in tasks) * len(grid.policies),
        "sha256": mark,
        "rows": summary,
        "report": str(args.out / "report.html"),
    }


def _runner(args: argparse.Namespace) -> Runner:
    from simulators.workers import processes, ray_cluster

    return processes(args.workers) if args.ray is None else ray_cluster(args.ray or None)


def _row(record: dict[str, Any]) -> dict[str, object]:
    def share(name: str) -> str:
        return "-" if record[name] is None else percent(record[name])

    half = record["reward_half"]
    return {
        "profile": record["profile"],
        "policy": record["policy"],
        "device-days": record["devices"],
        "reward": f"{record['reward']:.2f}" + ("" if half is None else f" ± {half:.2f}"),
        "accuracy": share("accuracy"),
        "served": share("served"),
        "late": share("late"),
        "dropped": share("dropped"),
        "days that lasted": share("lasted"),
        "lifetime of others, h": "-" if record["lifetime_h"] is None else f"{record['lifetime_h']:.1f}",
        "energy J": number(record["energy_j"]),
        "switches": f"{record['switches']:.1f}",
        "h below 20 %": f"{record['below_20_h']:.1f}",
        "h too hot": f"{record['throttled_h']:.2f}",
        "h short of memory": f"{record['over_memory_h']:.2f}",
    }


def _rewards(summary: list[dict[str, Any]], figure: Figure) -> None:
    from caq.cli.page import LINES

    axes = figure.subplots()
    halves = [0.0 if record["reward_half"] is None else record["reward_half"] for record in summary]
    axes.barh(_names(summary), [record["reward"] for record in summary], xerr=halves, color=LINES[0], height=0.6)
    axes.invert_yaxis()


def _outcomes(summary: list[dict[str, Any]], figure: Figure) -> None:
    from matplotlib.ticker import PercentFormatter

    from caq.cli.page import LINES, legend

    axes = figure.subplots()
    names = _names(summary)
    for key, label, colour in (("accuracy", "accuracy", LINES[0]), ("lasted", "days that lasted", LINES[2])):
        shown = [(name, record[key]) for name, record in zip(names, summary, strict=True) if record[key] is not None]
        axes.plot([value for _, value in shown], [name for name, _ in shown], "o", color=colour, label=label)
    axes.set_xlim(0, 1.02)
    axes.margins(y=0.15)
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.invert_yaxis()
    legend(figure, axes)


def _names(summary: list[dict[str, Any]]) -> list[str]:
    several = len({record["profile"] for record in summary}) > 1
    return [f"{r['policy']}, {r['profile']}" if several else r["policy"] for r in summary]

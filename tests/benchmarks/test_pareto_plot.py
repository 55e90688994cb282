"""Rows of several benchmarks in one picture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.pareto import verdicts
from benchmarks.pareto_plot import means, plot, rows_beside
from caq.costs import Budget


def row(method: str, point: str, seed: int, accuracy: float, cost: float | None = 0.5) -> dict[str, object]:
    figures = {"accuracy": accuracy, "bytes": cost, "bit_macs": cost, "agreement": accuracy, "loss": 0.1}
    return {"method": method, "seed": seed, "point": point, **figures}


def test_rows_of_other_methods_and_the_same_seeds_are_drawn_beside(tmp_path: Path) -> None:
    first = [row("supernet", "w8a8", 0, 0.9, 1.0), row("search", "saver", 0, 0.8)]
    (tmp_path / "pareto_d_m.json").write_text(json.dumps({"rows": first}))
    second = [
        row("supernet", "w8a8", 0, 0.5, 1.0),
        row("fp32", "fp32", 0, 0.95, None),
        row("fp32", "fp32", 1, 0.1, None),
    ]
    (tmp_path / "third_d_m.json").write_text(json.dumps({"rows": [row("fp32", "fp32", 0, 0.2, None)]}))
    (tmp_path / "slicing_d_m.json").write_text(json.dumps({"rows": second}))
    (tmp_path / "pareto_e_m.json").write_text(json.dumps({"rows": [row("random", "saver", 0, 0.1)]}))
    (tmp_path / "accuracy_d_m.json").write_text(json.dumps({"table": []}))
    found = rows_beside(tmp_path, "d", "m", first)
    assert [(r["method"], r["accuracy"]) for r in found] == [("supernet", 0.9), ("search", 0.8), ("fp32", 0.95)]
    pytest.importorskip("matplotlib")
    plot(found, "d, m", tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_means_and_spread_over_seeds() -> None:
    found = means([row("a", "x", 0, 0.5), row("a", "x", 1, 0.7), row("fp32", "fp32", 0, 0.9, None)])
    assert [(r["accuracy"], r["lowest"], r["highest"], r["seeds"]) for r in found] == [
        (pytest.approx(0.6), 0.5, 0.7, 2),
        (0.9, 0.9, 0.9, 1),
    ]
    assert found[1]["bytes"] is None


def test_a_gate_is_compared_with_the_best_width_that_costs_no_less() -> None:
    rows = [row("supernet", "saver", 0, 0.8, 0.4), row("supernet", "w2a2", 0, 0.9, 0.3)]
    rows += [row("supernet", "w4a4", 0, 0.7, 0.5), row("supernet", "w8a8", 0, 0.75, 1.0)]
    rows += [row(m, "saver", 0, 0.6, 0.4) for m in ("search", "sensitivity", "random")]
    (found,) = verdicts(rows, (Budget("saver", 0.1),))
    assert found["over_uniform"]["accuracy"] == pytest.approx(0.05)
    assert found["over_random"]["accuracy"] == pytest.approx(0.2)

"""The fit behind the device profiles finds prices that are known, and says how wrong it is where it cannot."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.costs.fit import Row, Terms, fit, leave_out, summary
from benchmarks.costs.host import Step, Timed, assignments
from benchmarks.costs.host_fit import fit_sums, leave_model_out, predict, sums
from caq.costs import Level, Profile, Quantity, Tile
from tests import models

PRICES = {"mac": 2.0, "output": 40.0, "byte": 3.0}
NETWORKS = {"a": (900, 10, 5), "b": (200, 30, 2), "c": (500, 3, 60), "d": (50, 1, 40), "e": (700, 90, 1)}


def rows(noise: float = 0.0) -> list[Row]:
    """Five networks on three systems, of which one is twice as slow and one as fast as the median."""
    rng = np.random.default_rng(0)
    return [
        Row(system, name, dict(zip(PRICES, counts, strict=True)), factor * exact * float(np.exp(noise * rng.normal())))
        for system, factor in (("slow", 2.0), ("median", 1.0), ("fast", 0.5))
        for name, counts in NETWORKS.items()
        if (exact := sum(price * n for price, n in zip(PRICES.values(), counts, strict=True)))
    ]


def test_known_prices_and_speeds_are_found() -> None:
    found = fit(rows(), Terms(("mac", "output"), ("byte",), ridge=1e-9))
    assert found.prices == pytest.approx(PRICES, rel=1e-3)
    assert found.factors == pytest.approx({"slow": 2, "median": 1, "fast": 0.5}, rel=1e-3)
    left = leave_out(rows(), Terms(tuple(PRICES)), lambda row: row.model, own=True)
    assert summary(left)["largest"] < 0.01 and len(left) == 15


def test_a_ridge_shrinks_extra_terms_only() -> None:
    loose, tight = (fit(rows(), Terms(("mac", "output"), ("byte",), ridge=r)).prices for r in (1e-6, 100.0))
    assert tight["byte"] < 0.01 * loose["byte"] and tight["mac"] > 0.5 * loose["mac"]


def test_prices_are_never_negative() -> None:
    wrong = [row._replace(counts={**row.counts, "junk": 1000 / row.measured}) for row in rows()]
    assert min(fit(wrong, Terms((*PRICES, "junk"))).prices.values()) >= 0


def test_what_was_left_out_was_not_looked_at() -> None:
    spoiled = [row._replace(measured=row.measured * 100) if row.model == "b" else row for row in rows()]
    by = {row.model: row for row in leave_out(spoiled, Terms(tuple(PRICES)), lambda row: row.model, own=True)}
    assert by["b"].error == pytest.approx(-0.99, abs=1e-3)
    typical = leave_out(rows(), Terms(tuple(PRICES)), lambda row: row.system, own=False)
    found = summary(typical)["by_group"]
    assert isinstance(found, dict) and found["slow"] < -0.4 and found["fast"] > 0.4


@pytest.mark.parametrize("combine", ["sum", "max"])
def test_steps_and_inferences_of_a_made_up_machine(combine: str) -> None:
    """Times that follow the model itself are explained by it, each network left out in turn."""
    nothing = Quantity(0.0, "")
    levels = tuple(Level(name, Quantity(size, ""), nothing, nothing) for name, size in (("L1", 256), ("L2", 2**20)))
    profile = Profile("", "", "byte", "panels", combine, Tile(), levels, {}, {}, nothing, {})
    truth = {"mac": 5e-12, "output": 2e-10, "narrowed": 5e-11, "op": 5e-8, "inference": 1e-6, "activation_byte": 3e-11}
    truth |= {"weight_byte": 4e-11, "weight_byte beyond L1": 4e-11, "input": 1e-9, "element": 2e-11}
    made = []
    for seed in range(8):
        graph = models.model(seed).graph
        steps = tuple(Step((op,), 1.0) for op in range(len(graph.ops)))
        empty = Timed(f"net {seed}", graph, steps, {name: 1.0 for name, _ in assignments(graph)})
        seconds = [predict(row, truth, combine) for row in sums(profile, empty)]
        timed = tuple(Step(step.ops, s) for step, s in zip(steps, seconds, strict=False))
        made.append(
            empty._replace(steps=timed, inference=dict(zip(empty.inference, seconds[len(steps) :], strict=True)))
        )
    found = [row for timed in made for row in sums(profile, timed)]
    prices = fit_sums(found, profile, ridge=1e-4)
    assert max(abs(predict(row, prices, combine) / row.seconds - 1) for row in found if row.whole) < 0.02
    wholes, steps_left = leave_model_out(found, profile, ridge=1e-4)
    assert summary(wholes)["median"] < 0.03 and len(wholes) + len(steps_left) == len(found)

"""Conditional points: the native engine against the reference bit for bit, and what a gate must not be."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest

from caq import program
from caq.artifact import dumps, loads, save
from caq.conditional import MAX_BRANCHES, ConditionalGate, choose, gate_cost, mean_cost
from caq.engine import Engine
from caq.errors import AssignmentError, DataError, SchemaError
from caq.graph import LayerWidths
from caq.model import Model
from caq.runtime import Runtime
from tests import models
from tests.conditional_models import gated, readable, with_gate
from tests.native_graphs import SPECIAL, Net
from tests.test_native import ISAS, soil


def points_with_gates(m: Model) -> list[str]:
    return [p.name for p in m.points if p.gate is not None]


def disagreements(m: Model, count: int = 6, seed: int = 0) -> tuple[list[str], int]:
    """Where native engines differ from the reference at conditional points, and how many branches were taken."""
    rng = np.random.default_rng(seed)
    x = models.samples(m, count, seed)
    reference, found, branches = Engine(m, kernels="reference"), [], 0
    wanted = {name: reference.run_routed(x, reference.build_point(name)) for name in reference.points}
    for isa in ISAS:
        for lean, threads in ((False, 1), (True, 1), (bool(seed % 2), 3)):
            engine = Engine(m, isa=isa, lean=lean, threads=threads)
            assert engine.program is not None
            if threads > 1:
                engine.program.pointer.team.grain = 1
            for name, (y, taken) in wanted.items():
                engine.select(name)
                soil(engine.program, rng)
                many, routes = engine.run_routed(x)
                soil(engine.program, rng)
                one = engine.run(x[0])
                same = np.array_equal(many, y) and np.array_equal(routes, taken) and np.array_equal(one, y[0])
                if not same or not np.array_equal(engine.run(x), y):
                    found.append(f"{isa}{' lean' * lean} x{threads} {name}")
                branches = max(branches, len(set(taken.tolist())))
    return found, branches


@pytest.fixture(autouse=True)
def four_cpus(monkeypatch):
    monkeypatch.setattr(program, "cpus", lambda: 4)


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("seed", range(10))
def test_models_of_every_operation(seed, dtype):
    found, branches = disagreements(gated(models.model(seed, dtype), seed), seed=seed)
    assert found == []
    assert branches >= 2


@pytest.mark.parametrize("build", SPECIAL, ids=lambda build: build.__name__)
def test_special_graphs(build: Callable[[Net], None]):
    """A gate on each tensor in turn: fused adds, views, buffers in place, codes that are narrowed when written."""
    net = Net(5, 7, 3)
    build(net)
    m = net.model(0)
    for t in readable(m.graph):
        assert disagreements(with_gate(m, 0, t), count=3)[0] == []


def test_a_batch_gets_what_its_samples_get_alone_and_what_their_branches_give():
    m = with_gate(models.model(3), 3, 4)
    engine, x = Engine(m), models.samples(m, 40, 1)
    engine.select("conditional")
    y, taken = engine.run_routed(x)
    assert set(taken) == {0, 1, 2}
    for sample, outputs, branch in zip(x, y, taken, strict=True):
        alone, own = engine.run_routed(sample)
        assert own == branch and own.shape == ()
        np.testing.assert_array_equal(alone, outputs)
    for i, branch in enumerate(m.points[-1].branches):
        plan = engine.build(branch.assignment, branch.parameter_set)
        np.testing.assert_array_equal(engine.run_plan(plan, x)[taken == i], y[taken == i])


def test_points_without_a_gate_have_one_branch():
    m = with_gate(models.model(3), 3, 4)
    without, engine, x = Engine(models.model(3)), Engine(m), models.samples(m, 5)
    for name in without.points:
        without.select(name)
        engine.select(name)
        y, taken = engine.run_routed(x)
        np.testing.assert_array_equal(y, without.run(x))
        assert not taken.any() and len(m.points[0].branches) == 1 and m.points[0].shares == (1.0,)


@pytest.mark.parametrize("lean", [False, True])
def test_threads_and_switches(lean):
    """Each answer is that of the point that was active when its inference began."""
    m = with_gate(models.model(5), 5, 5)
    reference, x = Engine(m), models.samples(m, 16, 2)
    right = {name: reference.run_plan(reference.build_point(name), x) for name in reference.points}
    engine, wrong, stop = Engine(m, lean=lean), [], threading.Event()

    def infer() -> None:
        while not stop.is_set():
            y, point = engine.run_at(x)
            if not np.array_equal(y, right[point]):
                wrong.append(point)

    threads = [threading.Thread(target=infer) for _ in range(4)]
    for thread in threads:
        thread.start()
    for i in range(300):
        engine.select(("conditional", "w2a2", "conditional", "mixed")[i % 4])
        if i % 50 == 0:
            engine.trim()
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("lean", [False, True])
def test_files_mapped_or_read(lean, tmp_path):
    m, path = gated(models.model(2, "float32"), 2), tmp_path / "m.caq"
    save(m, path)
    again = loads(path.read_bytes())
    assert again.points == m.points and dumps(again) == path.read_bytes()
    x, plain, mapped = models.samples(m, 6), Engine(m), Engine(path, lean=lean, mapped=True)
    for name in points_with_gates(m):
        plain.select(name)
        mapped.select(name)
        mapped.trim()
        np.testing.assert_array_equal(mapped.run(x), plain.run(x))


def test_a_point_is_served_only_where_all_its_branches_can_be():
    m = with_gate(models.model(1), 1, 3)
    widths = {pair.weight for branch in m.points[-1].branches for pair in branch.assignment}
    assert max(widths) > 2
    assert "conditional" not in Engine(m, max_width=2).points and "conditional" in Engine(m).points


def test_a_runtime_runs_it():
    m = with_gate(models.model(1), 1, 3)
    x = models.samples(m, 4)
    with Runtime(m, "conditional", auto=False) as runtime:
        engine = Engine(m)
        engine.select("conditional")
        np.testing.assert_array_equal(runtime(x), engine.run(x))


def test_bad_samples_are_refused():
    m = with_gate(models.model(0, "float32"), 0, 2)
    engine = Engine(m)
    engine.select("conditional")
    bad = models.samples(m, 3)
    bad[1].flat[0] = np.nan
    for run in (engine.run, engine.run_routed):
        with pytest.raises(DataError, match="NaN or infinite"):
            run(bad)


def test_a_parameter_set_of_a_branch_serves_its_weight_widths():
    m = with_gate(models.model(2), 2, 3)
    engine, branch = Engine(m), m.points[-1].branches[1]
    engine.build(branch.assignment, branch.parameter_set)
    other = tuple(pair._replace(weight=2 if pair.weight == 8 else 8) for pair in branch.assignment)
    with pytest.raises(AssignmentError, match="fits the weight widths of conditional only"):
        engine.build(other, branch.parameter_set)


def test_the_lowest_branch_wins_a_tie_and_sums_are_shifted_down():
    gate = ConditionalGate(1, 1, ((2,), (2,), (-1,)), (0, 0, 0), ())
    codes = np.array([[[[3]]], [[[-3]]], [[[0]]], [[[-1]]]], np.int32)
    assert choose(gate, codes).tolist() == [0, 2, 0, 2]


def test_costs_are_means_over_the_scored_samples_and_count_the_gate():
    m = with_gate(models.model(4), 4, 3)
    point, graph = m.points[-1], m.graph
    assert point.gate is not None
    own = gate_cost(graph, 3, 3)
    assert own.macs == 3 * graph.shapes[3][2] and own.weight_bytes == own.macs + 12 and own.bit_macs == own.macs * 256
    for field, extra in zip(point.cost._fields, own, strict=True):
        costs = [getattr(graph.cost(b.assignment), field) for b in point.branches]
        mean = sum(s * c for s, c in zip(point.shares, costs, strict=True)) + extra
        assert abs(getattr(point.cost, field) - mean) <= 0.5 + 1e-6
    unmeasured = point.gate._replace(branches=tuple(b._replace(taken=0) for b in point.branches))
    alike = point.gate._replace(branches=tuple(b._replace(taken=7) for b in point.branches))
    assert mean_cost(graph, unmeasured) == mean_cost(graph, alike)
    assert point._replace(samples=0, gate=unmeasured).shares == (1 / 3,) * 3
    moved = point._replace(samples=4).measured(graph, [4, 0, 0])
    alone = graph.cost(point.branches[0].assignment)
    assert moved.shares == (1.0, 0.0, 0.0) and moved.cost.macs == alone.macs + own.macs
    assert moved.cost.bit_macs == alone.bit_macs + own.bit_macs


BAD = {
    "2 to 16, not 1|2 to 16 branches, not 1": lambda g: g._replace(
        branches=g.branches[:1], weights=g.weights[:1], bias=g.bias[:1]
    ),
    f"2 to {MAX_BRANCHES} branches, not 17": lambda g: g._replace(
        branches=g.branches[:1] * 17, weights=g.weights[:1] * 17, bias=g.bias[:1] * 17
    ),
    "reads tensor -1": lambda g: g._replace(tensor=-1),
    "reads tensor 99": lambda g: g._replace(tensor=99),
    "weights are not 3 rows of": lambda g: g._replace(weights=g.weights[:2]),
    "with a bias each": lambda g: g._replace(bias=g.bias[:2]),
    "the channels of tensor": lambda g: g._replace(weights=tuple(row[:-1] for row in g.weights)),
    "weights are -128 to 127": lambda g: g._replace(weights=((128,) * len(g.weights[0]), *g.weights[1:])),
    "shift is 0 to 31": lambda g: g._replace(shift=32),
    "may leave 32 bits": lambda g: g._replace(bias=(2**31 - 1, *g.bias[1:])),
    "branch 1: the model has": lambda g: g._replace(
        branches=(g.branches[0], g.branches[1]._replace(assignment=()), g.branches[2])
    ),
    "branch 2: no parameter set 99": lambda g: g._replace(
        branches=(*g.branches[:2], g.branches[2]._replace(parameter_set=99))
    ),
    "branches' gains or biases differ": lambda g: g._replace(
        branches=(*g.branches[:2], g.branches[2]._replace(parameter_set=3))
    ),
}


@pytest.mark.parametrize("words", BAD)
def test_gates_that_cannot_work(words):
    m = with_gate(models.model(0), 0, 3)
    point = m.points[-1]
    assert point.gate is not None
    bad = point._replace(gate=BAD[words](point.gate))
    with pytest.raises(SchemaError, match=f"point 'conditional': .*({words})"):
        m.replace(points=(bad,))


def test_what_is_computed_before_the_gate_must_be_alike():
    net = Net(5, 7, 3)
    net.head(net.conv(net.conv(0, 6), 6, 3))
    m = with_gate(net.model(0), 0, 1)
    point = m.points[-1]
    assert point.gate is not None
    one, two, _ = point.assignment
    narrower = (LayerWidths(2 if one.weight > 2 else 7, 8), two._replace(activation=2 if two.activation > 2 else 7))
    for layer, pair in enumerate(narrower):
        other = list(point.assignment)
        other[layer] = pair
        branches = (*point.branches[:2], point.branches[2]._replace(assignment=tuple(other)))
        name = m.graph.layers[layer].name
        with pytest.raises(SchemaError, match=f"branch 2: layer '{name}' is {pair} there and .* must have it alike"):
            m.replace(points=(point._replace(gate=point.gate._replace(branches=branches)),))
    # The third layer's weights are free, and so is what it reads after the gate.
    free = list(point.assignment)
    free[1] = free[1]._replace(weight=7)
    free[2] = LayerWidths(7, 7)
    branches = (*point.branches[:2], point.branches[2]._replace(assignment=tuple(free)))
    m.replace(points=(point._replace(gate=point.gate._replace(branches=branches)),))

"""Codes of a parameter set's own, flipped or of the last layer, on both kinds of kernels."""

from __future__ import annotations

import numpy as np
import pytest

from caq.artifact import dumps
from caq.calibration.sets import factory_head, parameter_sets
from caq.engine import Engine
from caq.errors import ConfigError, SchemaError
from caq.plan import build_plan, layer_codes
from caq.planes import check_flips, check_head, own_planes, pack_flips, unpack_flips
from tests import models
from tests.conditional_models import with_gate

MODEL = models.model(0)
GRAPH = MODEL.graph
SETS = len(MODEL.parameters.gain)


def flips(*rows: int) -> np.ndarray:
    found = np.zeros((SETS, GRAPH.weights), np.int8)
    for row in rows:
        found[row] = np.random.default_rng(row).integers(-1, 2, GRAPH.weights)
    return found


@pytest.mark.parametrize("row", range(len(GRAPH.widths)))
def test_codes_move_by_one_and_stay_in_their_range(row):
    width = GRAPH.widths[row]
    own, assignment = flips(row), GRAPH.uniform(width)
    planes = own_planes(GRAPH, MODEL.planes, assignment, row, own, None)
    start = 0
    for layer in GRAPH.layers:
        before, after = (layer_codes(GRAPH, p, layer, width).astype(int) for p in (MODEL.planes, planes))
        change = own[row, start : start + layer.weights]
        np.testing.assert_array_equal(after, np.clip(before + change, -(1 << (width - 1)), (1 << (width - 1)) - 1))
        start += layer.weights
    np.testing.assert_array_equal(planes[width:], MODEL.planes[width:])
    # A width's set is read by layers of that width, and by no others.
    other = GRAPH.uniform(GRAPH.widths[row - 1])
    assert own_planes(GRAPH, MODEL.planes, other, None, own, None) is MODEL.planes
    assert own_planes(GRAPH, MODEL.planes, assignment, None, None, None) is MODEL.planes


@pytest.mark.parametrize("lean", [False, True])
def test_engines_agree_and_no_other_point_changes_a_bit(lean):
    x = models.samples(MODEL, 30)
    plain, native, reference = Engine(MODEL), Engine(MODEL, lean=lean), Engine(MODEL, kernels="reference")
    for row, name in enumerate(("w2a2", "w4a4", "w8a8", "mixed")):
        parameters = MODEL.parameters.replace(flips=flips(row))
        for engine in (native, reference):
            engine.adopt(parameters)
        for point in plain.points:
            for engine in (plain, native, reference):
                engine.select(point)
            np.testing.assert_array_equal(native.run(x), reference.run(x))
            assert np.array_equal(native.run(x), plain.run(x)) == (point != name)
    native.trim()
    native.adopt(MODEL.parameters)
    np.testing.assert_array_equal(native.run(x), plain.run(x))


def test_layers_of_a_mixed_assignment_read_the_sets_of_their_widths():
    own = flips(0, 1, 2)
    mixed = next(p.assignment for p in MODEL.points if p.name == "mixed")
    plan = build_plan(GRAPH, MODEL.parameters.replace(flips=own), MODEL.planes, mixed)
    for layer, pair in zip(GRAPH.layers, mixed, strict=True):
        alone = GRAPH.uniform(pair.weight)
        whole = build_plan(GRAPH, MODEL.parameters.replace(flips=own), MODEL.planes, alone)
        np.testing.assert_array_equal(plan.steps[layer.op].multiplicands, whole.steps[layer.op].multiplicands)


def head(*rows: int) -> np.ndarray:
    """The factory's, but for some sets."""
    found = factory_head(MODEL, parameter_sets(MODEL))
    for which in parameter_sets(MODEL):
        if which.row in rows:
            limit = 1 << (which.assignment[-1].weight - 1)
            found[which.row] = np.random.default_rng(which.row).integers(-limit, limit, found.shape[1])
    return found


@pytest.mark.parametrize("lean", [False, True])
def test_a_head_is_of_its_set_alone_and_engines_agree_on_it(lean):
    x = models.samples(MODEL, 30)
    plain, native, reference = Engine(MODEL), Engine(MODEL, lean=lean), Engine(MODEL, kernels="reference")
    for row, name in enumerate(("none", "w2a2", "w4a4", "w8a8", "mixed"), -1):
        for engine in (native, reference):
            engine.adopt(MODEL.parameters.replace(head=head(row)))
        for point in plain.points:
            for engine in (plain, native, reference):
                engine.select(point)
            np.testing.assert_array_equal(native.run(x), reference.run(x))
            assert np.array_equal(native.run(x), plain.run(x)) == (point != name)


@pytest.mark.parametrize("lean", [False, True])
def test_branches_of_a_gate_may_have_heads_of_their_own(lean):
    gated, x = with_gate(MODEL, 0, 3), models.samples(MODEL, 30)
    plain, native, reference = Engine(gated), Engine(gated, lean=lean), Engine(gated, kernels="reference")
    own = factory_head(gated, parameter_sets(gated))
    for branch in gated.points[-1].branches[1:]:
        assert branch.parameter_set is not None
        limit = 1 << (branch.assignment[-1].weight - 1)
        own[branch.parameter_set] = np.random.default_rng(0).integers(-limit, limit, own.shape[1])
    for engine in (native, reference):
        engine.adopt(gated.parameters.replace(head=own))
    for engine in (plain, native, reference):
        engine.select("conditional")
    y, taken = native.run_routed(x)
    wanted, routes = reference.run_routed(x)
    np.testing.assert_array_equal(y, wanted)
    np.testing.assert_array_equal(taken, routes)
    np.testing.assert_array_equal(y[taken == 0], plain.run(x)[taken == 0])
    assert len(set(taken.tolist())) > 1 and not np.array_equal(y, plain.run(x))


def test_flips_are_added_to_a_head():
    last, row = GRAPH.layers[-1], 1
    width = GRAPH.widths[row]
    own, moved = head(row), flips(row)
    planes = own_planes(GRAPH, MODEL.planes, GRAPH.uniform(width), row, moved, own)
    wanted = np.clip(own[row].astype(int) + moved[row, -last.weights :], -(1 << (width - 1)), (1 << (width - 1)) - 1)
    np.testing.assert_array_equal(layer_codes(GRAPH, planes, last, width), wanted)
    assert not np.array_equal(wanted, own[row])


def test_heads_that_no_set_can_have_are_refused():
    weights = GRAPH.layers[-1].weights
    for bad in (head().astype(np.int16), head()[1:], head()[:, 1:]):
        with pytest.raises(SchemaError, match="head"):
            check_head(bad, SETS, weights)
        with pytest.raises(SchemaError, match="head"):
            MODEL.parameters.replace(head=bad).check(GRAPH)
    wide = MODEL.parameters.replace(head=np.full_like(head(), 2))  # of more than the 2 bits of the first set
    for kernels in ("native", "reference"):
        engine = Engine(MODEL, kernels=kernels)
        engine.select("w2a2")
        with pytest.raises(SchemaError, match="more than 2 bits"):
            engine.adopt(wide)
    with pytest.raises(SchemaError, match="a device's state"):
        dumps(MODEL.replace(parameters=MODEL.parameters.replace(head=head())))


def test_packing():
    own = flips(0, 3)
    packed = pack_flips(own)
    assert packed.shape == (2, SETS, -(-GRAPH.weights // 8))
    np.testing.assert_array_equal(unpack_flips(packed, GRAPH.weights), own)
    with pytest.raises(SchemaError, match="up and down"):
        unpack_flips(np.full_like(packed, 255), GRAPH.weights)


def test_what_no_set_can_have_is_refused():
    for bad in (flips().astype(np.int16), flips()[1:], flips()[:, 1:], flips() + np.int8(2), flips() - np.int8(2)):
        with pytest.raises(SchemaError, match="flips"):
            check_flips(bad, SETS, GRAPH.weights)
        with pytest.raises(SchemaError, match="flips"):
            MODEL.parameters.replace(flips=bad).check(GRAPH)
    with pytest.raises(SchemaError, match="a device's state"):
        dumps(MODEL.replace(parameters=MODEL.parameters.replace(flips=flips())))
    gated = with_gate(MODEL, 0, 3)
    with pytest.raises(ConfigError, match="gates"):
        own = np.zeros((len(gated.parameters.gain), GRAPH.weights), np.int8)
        Engine(gated).adopt(gated.parameters.replace(flips=own))

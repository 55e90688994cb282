"""Flipped codes: a parameter set's own, over planes that all share, on both kinds of kernels."""

from __future__ import annotations

import numpy as np
import pytest

from caq.artifact import dumps
from caq.engine import Engine
from caq.errors import ConfigError, SchemaError
from caq.plan import build_plan, layer_codes
from caq.planes import check_flips, flipped_planes, pack_flips, unpack_flips
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
    planes = flipped_planes(GRAPH, MODEL.planes, assignment, row, own)
    start = 0
    for layer in GRAPH.layers:
        before, after = (layer_codes(GRAPH, p, layer, width).astype(int) for p in (MODEL.planes, planes))
        change = own[row, start : start + layer.weights]
        np.testing.assert_array_equal(after, np.clip(before + change, -(1 << (width - 1)), (1 << (width - 1)) - 1))
        start += layer.weights
    np.testing.assert_array_equal(planes[width:], MODEL.planes[width:])
    # A width's set is read by layers of that width, and by no others.
    other = GRAPH.uniform(GRAPH.widths[row - 1])
    assert flipped_planes(GRAPH, MODEL.planes, other, None, own) is MODEL.planes
    assert flipped_planes(GRAPH, MODEL.planes, assignment, None, None) is MODEL.planes


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

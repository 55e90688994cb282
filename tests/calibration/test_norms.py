"""Batch norm re-estimated in integers: moments as the reference kernels have them, restored to what they were."""

from __future__ import annotations

import numpy as np
import pytest

from caq.calibration import Cut, NormEstimator, measure_outputs
from caq.calibration.norms import has_norm, with_own_set
from caq.errors import AssignmentError, DataError
from caq.graph import Assignment, Layer
from caq.kernels import reference
from caq.model import Model
from caq.plan import affine, build_plan
from caq.quant import TOP_WIDTH, multiplicand_unit, requantize
from caq.reference import run_step
from tests import models


def reference_outputs(model: Model, layer: Layer, assignment: Assignment, row: int, x: np.ndarray) -> np.ndarray:
    """A layer's outputs before rounding and clamping, (N * positions, C), by the reference kernels, in output codes."""
    graph, p = model.graph, model.parameters
    steps = build_plan(graph, p, model.planes, assignment, row).steps
    live = [model.encode(x)[0].astype(np.int32)]
    for step in steps[: layer.op]:
        live.append(run_step(step, [live[t] for t in step.op.inputs]))
    step, pair = steps[layer.op], assignment[layer.index]
    assert step.multiplicands is not None
    codes = live[step.op.inputs[0]]
    if step.narrow is not None:
        codes = requantize(codes, step.narrow, *step.narrow_range)
    o = step.op
    sums = reference.conv_accumulate(codes, step.multiplicands, o.stride, o.padding, o.dilation, o.groups, step.limit)
    gain, bias = affine(p, layer, row)
    if pair.activation != TOP_WIDTH:
        gain = gain * p.ratios[layer.index, graph.widths.index(pair.activation)]
    return (sums * gain + bias).reshape(-1, layer.channels)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("name", ["w8a8", "mixed"])
def test_moments_are_those_of_the_reference_kernels(seed: int, name: str) -> None:
    model = models.model(seed)
    point = next(p for p in model.points if p.name == name)
    row = model.graph.widths.index(8) if point.parameter_set is None else point.parameter_set
    x = models.samples(model, 70)
    for layer in model.graph.layers:
        found = measure_outputs(Cut(model, layer.index), model.parameters, point.assignment, row, x)
        outputs = reference_outputs(model, layer, point.assignment, row, x)
        # Where a cut leaves one reader, its input is rounded once and not twice: less than a code of difference.
        scale = outputs.std(0).max()
        assert np.abs(found.mean - outputs.mean(0)).max() < 0.02 * scale + 0.5
        assert np.abs(found.deviation - outputs.std(0)).max() < 0.02 * scale + 0.5


@pytest.mark.parametrize("seed", range(6))
def test_outputs_get_back_the_mean_and_deviation_of_their_width(seed: int) -> None:
    model = models.model(seed)
    graph, x = model.graph, models.samples(model, 64)
    assignment = models.mixed(graph, np.random.default_rng(seed + 100))
    found = NormEstimator(model, x).estimate(assignment)
    found.check(graph)
    own, before = len(found.gain) - 1, with_own_set(model.parameters, graph, assignment)
    changed = 0.0
    for layer in graph.layers:
        cut, width = Cut(model, layer.index), assignment[layer.index].weight
        target = measure_outputs(cut, model.parameters, graph.uniform(width), graph.widths.index(width), x)
        after = measure_outputs(cut, found, assignment, own, x)
        without = measure_outputs(cut, before, assignment, own, x)
        # A channel without deviation, or one whose gain may not grow so much, gets its mean back all the same.
        (new, _), (old, _) = (affine(p, layer, own) for p in (found, before))
        free = (after.deviation > 0) & (np.abs(new) < 7.9 * np.abs(old))
        scale = max(1.0, float(np.abs(target.mean).max() + target.deviation.max()))
        assert np.abs(after.mean - target.mean).max() < 0.01 * scale
        assert np.abs(after.deviation - target.deviation)[free].max(initial=0) < 0.01 * scale
        changed = max(changed, float(np.abs(without.mean - target.mean).max()))
    assert changed > 1  # else the test would pass without an estimate


def test_one_width_everywhere_keeps_its_set() -> None:
    model = models.model(3)
    norms = NormEstimator(model, models.samples(model, 32))
    for row, width in enumerate(model.graph.widths):
        found = norms.estimate(model.graph.uniform(width))
        for layer in model.graph.layers:
            for a, b in zip(affine(found, layer, len(found.gain) - 1), affine(found, layer, row), strict=True):
                assert np.allclose(a, b, rtol=1e-3, atol=1e-3 * np.abs(b).max())


def test_what_was_measured_before_changes_nothing() -> None:
    model = models.model(1)
    x, rng = models.samples(model, 32), np.random.default_rng(0)
    used, wanted = NormEstimator(model, x), models.mixed(model.graph, rng)
    for _ in range(3):
        used.estimate(models.mixed(model.graph, rng))
    a, b = used.estimate(wanted), NormEstimator(model, x).estimate(wanted)
    assert np.array_equal(a.gain, b.gain) and np.array_equal(a.bias, b.bias)
    assert np.array_equal(a.gain_exponent, b.gain_exponent) and np.array_equal(a.bias_exponent, b.bias_exponent)
    assert len(model.parameters.gain) == 4  # the model's own are as they were


def test_a_layer_without_batch_norm_keeps_its_gains() -> None:
    model = models.model(2)
    p, layer = model.parameters, model.graph.layers[1]
    assert all(has_norm(p, model.graph, known) for known in model.graph.layers)
    span = slice(layer.first_channel, layer.first_channel + layer.channels)
    gain, exponent, bias, bias_exponent = p.gain.copy(), p.gain_exponent.copy(), p.bias.copy(), p.bias_exponent.copy()
    for row, width in enumerate(model.graph.widths):
        gain[row, span], bias[row, span] = gain[0, span], bias[0, span]
        bias_exponent[row, layer.index] = bias_exponent[0, layer.index]
        units = multiplicand_unit(width) / multiplicand_unit(2)
        exponent[row, layer.index] = exponent[0, layer.index] + round(np.log2(units))
    bare = p.replace(gain=gain, gain_exponent=exponent, bias=bias, bias_exponent=bias_exponent)
    model = model.replace(parameters=bare)
    assert [has_norm(bare, model.graph, known) for known in model.graph.layers].count(False) == 1
    assignment = models.mixed(model.graph, np.random.default_rng(5))
    found = NormEstimator(model, models.samples(model, 32)).estimate(assignment)
    row = model.graph.widths.index(assignment[1].weight)
    for a, b in zip(affine(found, layer, len(found.gain) - 1), affine(found, layer, row), strict=True):
        assert np.array_equal(a, b)


def test_bad_samples_and_assignments() -> None:
    model = models.model(0)
    with pytest.raises(DataError, match="samples of shape"):
        NormEstimator(model, np.zeros((4, 2), np.uint8))
    with pytest.raises(AssignmentError, match="the model has"):
        NormEstimator(model, models.samples(model, 4)).estimate(())
    with pytest.raises(DataError):
        norms = NormEstimator(model, models.samples(model, 4).astype(np.float32))
        norms.estimate(model.graph.uniform(2))

"""The graph's shapes, costs and refusals, against a count of windows one by one."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caq.errors import AssignmentError, SchemaError
from caq.graph import MAX_DIM, MAX_OPS, MAX_TENSOR, Cost, Graph, LayerWidths, Op, output_bits, parse_assignment
from caq.plan import Written, adding, build_plan, layer_fixed_point, only_readers, rescaling, written
from caq.quant import requantize
from tests import models

CONV = Op("conv", (0,), "c", channels=2)
SHAPE = (4, 5, 3)


def graph(*ops, shape=SHAPE, widths=(2, 8)):
    return Graph(shape, tuple(ops), widths)


def positions(size, before, after, kernel, stride, dilation):
    """How many windows fit, by trying each start."""
    return sum(
        start + (kernel - 1) * dilation < before + size + after for start in range(0, before + size + after, stride)
    )


WINDOWS = st.tuples(
    *(st.integers(1, 9), st.integers(0, 3), st.integers(0, 3), st.integers(1, 4), st.integers(1, 4), st.integers(1, 3))
)


@settings(max_examples=200, deadline=None)
@given(WINDOWS, WINDOWS, st.sampled_from(["conv", "max_pool", "avg_pool"]))
def test_shapes_of_windows(rows, columns, kind):
    (h, top, bottom, kh, sh, dh), (w, left, right, kw, sw, dw) = rows, columns
    fields = {"kernel": (kh, kw), "stride": (sh, sw), "padding": (top, bottom, left, right), "dilation": (dh, dw)}
    first = Op("clamp", (0,))
    op = Op(kind, (1,), **({**fields, "channels": 5} if kind == "conv" else fields))
    last = Op("conv", (2,), channels=1)
    wanted = (positions(*rows), positions(*columns), 5 if kind == "conv" else 3)
    misses = [
        any(all(not before <= s + k * d < before + size for k in range(kernel)) for s in range(0, n * stride, stride))
        for (size, before, _, kernel, stride, d), n in ((rows, wanted[0]), (columns, wanted[1]))
    ]
    try:
        g = graph(first, op, last, shape=(h, w, 3))
    except SchemaError as e:
        # Refusing a pool that has no empty window is allowed only for padding or gaps that no real pool has.
        odd = max(top, bottom) > (kh - 1) * dh or max(left, right) > (kw - 1) * dw
        odd |= (dh > h and top + bottom > 0) or (dw > w and left + right > 0)
        assert 0 in wanted or (kind != "conv" and odd), str(e)
    else:
        assert g.shapes[2] == wanted
        assert kind == "conv" or not any(misses)


def test_shapes_of_other_kinds():
    g = graph(
        Op("conv", (0,), channels=6, groups=3),
        Op("add", (1, 1), low=-128, high=127),
        Op("concat", (1, 2, 1), low=-128, high=127),
        Op("clamp", (3,), low=-3, high=9),
        Op("reshape", (4,), shape=(1, 1, 360)),
        Op("conv", (5,), channels=7, low=-(2**15), high=2**15 - 1),
    )
    assert g.shapes == (SHAPE, (4, 5, 6), (4, 5, 6), (4, 5, 18), (4, 5, 18), (1, 1, 360), (1, 1, 7))
    assert g.ranges == ((-128, 127), (0, 255), (-128, 127), (-128, 127), (-3, 9), (-3, 9), (-(2**15), 2**15 - 1))
    assert [g.signed(t) for t in range(7)] == [True, False, True, True, True, True, True]
    assert [output_bits(op) for op in g.ops] == [8, 8, 8, 8, 8, 16]


def refused(message, *ops, **kwargs):
    with pytest.raises(SchemaError, match=message):
        graph(*ops, **kwargs)


def test_refusals_name_the_operation():
    refused("1 to 4096 operations, not 0")
    refused("1 to 4096 operations, not 4097", *[CONV] * (MAX_OPS + 1))
    refused(r"input: shape \(0, 5, 3\)", CONV, shape=(0, 5, 3))
    refused("input: shape", CONV, shape=(5, 3))
    refused("input: shape", CONV, shape=(MAX_DIM, MAX_DIM, 1))
    refused(r"ops\[0\] \(softmax\): unknown kind; known: conv", Op("softmax", (0,)))
    refused(r"ops\[0\] \(conv c\): 2 inputs, takes 1 to 1", CONV._replace(inputs=(0, 0)))
    refused("1 inputs, takes 2 to 8", CONV, Op("add", (1,)))
    refused("inputs .1,., but only tensors 0 to 0 exist", CONV._replace(inputs=(1,)))
    refused("only tensors 0 to 0 exist", CONV._replace(inputs=(-1,)))
    refused("only tensors 0 to 1 exist", CONV, Op("clamp", (2,)))
    refused("tensors .1. are read by no operation", CONV, CONV._replace(name="d"))
    refused("at least one conv", Op("clamp", (0,)))
    for field, value in (
        ("kernel", (0, 1)),
        ("stride", (1, 0)),
        ("dilation", (0, 1)),
        ("groups", 0),
        ("padding", (0, 0, -1, 0)),
        ("kernel", (MAX_DIM + 1, 1)),
        ("padding", (MAX_DIM + 1, 0, 0, 0)),
    ):
        refused("kernel, stride, dilation and groups are 1 to", CONV._replace(**{field: value}))
    for channels in (0, -1, MAX_DIM + 1):
        refused("channels are 1 to", CONV._replace(channels=channels))
    refused(r"adds shapes \[\(4, 5, 2\), \(4, 5, 3\)\], which differ", CONV, Op("add", (1, 0)))
    half = CONV._replace(stride=(2, 1))
    refused("which differ in height or width", half, Op("concat", (1, 0)))
    refused("does not reshape to", CONV, Op("reshape", (1,), shape=(1, 1, 41)))
    refused("does not reshape to", CONV, Op("reshape", (1,), shape=(40,)))
    refused("is not three sizes", CONV, Op("reshape", (1,), shape=(-1, -1, 40)))
    refused("larger than its padded input", CONV._replace(kernel=(5, 1)))
    refused("larger than its padded input", CONV._replace(kernel=(1, 3), dilation=(1, 3)))
    refused("2 groups divide neither", CONV._replace(groups=2))
    refused("3 groups divide neither", CONV._replace(groups=3))
    refused("is not three sizes", CONV, Op("concat", (1,) * 64), shape=(2**10, 2**10, 1))


def test_refusals_of_ranges():
    for low, high in (
        (1, 5),
        (-5, 0),
        (-129, 2**15),
        (-128, 128),
        (0, 2**15),
        (-(2**15) - 1, 5),
        (-1, 255),
        (5, 1),
        (1, 1),
    ):
        refused("is no range of codes", CONV._replace(low=low, high=high))
    for low, high in ((0, 255), (0, 1), (-128, 127), (-1, 1), (-(2**15), 2**15 - 1), (0, 256)):
        graph(CONV._replace(low=low, high=high))
    wide = CONV._replace(low=-(2**15), high=2**15 - 1)
    for reader in (Op("clamp", (1,)), Op("max_pool", (1,)), Op("conv", (1,), channels=1), Op("add", (1, 1))):
        refused("reads 16-bit codes", wide, reader)
    flat = Op("reshape", (1,), shape=(1, 1, 40))
    assert graph(wide, flat).ranges[-1] == (-(2**15), 2**15 - 1)
    refused("reads 16-bit codes", wide, flat, Op("conv", (2,), channels=1))


def test_refusals_of_sizes():
    refused("too many", Op("conv", (0,), "big", channels=1), shape=(1, 1, 32897))
    graph(Op("conv", (0,), "big", channels=1), shape=(1, 1, 32896))
    refused("'big': 273678336 weights", Op("conv", (0,), "big", channels=32768, kernel=(87, 96)), shape=(87, 96, 1))
    pad = Op("conv", (0,), channels=1, padding=(MAX_DIM,) * 4, stride=(MAX_DIM, MAX_DIM))
    refused(f"with its padding .* is larger than {MAX_TENSOR}", pad)
    refused("multiply-accumulates", Op("conv", (0,), channels=1, kernel=(100, 100)), shape=(4096, 4096, 1))
    pool = Op("max_pool", (0,), kernel=(2000, 2000))
    refused("multiply-accumulates", pool, Op("conv", (1,), channels=1), shape=(8000, 8000, 1))


def test_refusals_of_pools_with_windows_of_padding_only():
    conv = Op("conv", (1,), channels=1)
    for fields in (
        {"kernel": (2, 1), "padding": (2, 0, 0, 0)},
        {"kernel": (1, 2), "padding": (0, 0, 0, 2)},
        # Every second row: with one row of input between the padding, both can miss it.
        {"kernel": (2, 1), "padding": (2, 2, 0, 0), "dilation": (2, 1)},
        {"kernel": (1, 2), "padding": (0, 0, 2, 2), "dilation": (1, 2)},
    ):
        refused("windows with nothing in them", Op("max_pool", (0,), **fields), conv, shape=(1, 1, 1))
        refused("windows with nothing in them", Op("avg_pool", (0,), **fields), conv, shape=(1, 1, 1))


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        ("conv", "shape", (1, 1, 1)),
        ("add", "kernel", (2, 2)),
        ("concat", "channels", 4),
        ("clamp", "groups", 3),
        ("max_pool", "low", -1),
        ("max_pool", "high", 100),
        ("avg_pool", "channels", 2),
        ("reshape", "low", -5),
        ("reshape", "padding", (1, 0, 0, 0)),
    ],
)
def test_a_kind_refuses_fields_that_it_does_not_use(kind, field, value):
    inputs = (1, 1) if kind in ("add", "concat") else (1,)
    fields = {"shape": (1, 1, 40)} if kind == "reshape" else {"channels": 1} if kind == "conv" else {}
    graph(CONV, Op(kind, inputs, **fields))
    refused(f"does not use {field}", CONV, Op(kind, inputs, **{**fields, field: value}))


@pytest.mark.parametrize("widths", [(), (1,), (9,), (4, 4), (8, 2)])
def test_widths_are_ascending_and_known(widths):
    refused("widths", CONV, widths=widths)


def test_operations_survive_json():
    for seed in range(6):
        for i, op in enumerate(models.model(seed).graph.ops):
            assert Op.from_json("op", i, json.loads(json.dumps(op.to_json(i)))) == op


@pytest.mark.parametrize(
    ("index", "op", "data"),
    [
        (2, Op("add", (1, 2)), {"add": "", "in": [1, 2]}),
        (2, Op("clamp", (2,), "x", high=127), {"clamp": "x", "high": 127}),
        (3, Op("clamp", (2,), "x", high=127), {"clamp": "x", "in": [2], "high": 127}),
        (0, Op("conv", (0,), channels=4, kernel=(3, 3), stride=(2, 1)), {"conv": "", "c": 4, "k": 3, "s": [2, 1]}),
        (0, Op("conv", (0,), channels=4, padding=(1, 1, 1, 1)), {"conv": "", "c": 4, "p": 1}),
        (0, Op("conv", (0,), channels=4, padding=(1, 1, 0, 0)), {"conv": "", "c": 4, "p": [1, 1, 0, 0]}),
        (0, Op("conv", (0,), channels=4, dilation=(2, 2), groups=2), {"conv": "", "c": 4, "d": 2, "g": 2}),
        (0, Op("reshape", (0,), shape=(1, 1, 1)), {"reshape": "", "shape": [1, 1, 1]}),
        (0, Op("clamp", (0,), low=-128, high=127), {"clamp": "", "low": -128, "high": 127}),
    ],
)
def test_operations_have_one_notation(index, op, data):
    assert op.to_json(index) == data and list(op.to_json(index)) == list(data)
    assert Op.from_json("op", index, data) == op


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "an operation is an object"),
        ({}, "an operation is an object that begins with its kind and name"),
        ({"conv": 1}, "op.conv: 1 is no name"),
        ({"c": 4, "conv": ""}, "op.c: 4 is no name"),
        ({"conv": "", "in": 0}, "op.in"),
        ({"conv": "", "in": [True]}, "op.in"),
        ({"conv": "", "in": [0.0]}, "op.in"),
        ({"conv": "", "in": [2**31]}, "op.in"),
        ({"conv": "", "c": False}, "op.c"),
        ({"conv": "", "k": True}, "op.k: True has the wrong type"),
        ({"conv": "", "k": [3]}, "op.k"),
        ({"conv": "", "p": [1, 2]}, "op.p"),
        ({"conv": "", "low": [1, 1]}, "op.low"),
        ({"conv": "", "shape": 1}, "op.shape"),
        ({"conv": "", "bits": 8}, "unknown field 'bits'"),
        ({"conv": "", "kernel": 3}, "unknown field 'kernel'"),
        ({"conv": "", "in": [5]}, "op.in: .5. has a shorter notation"),
        ({"conv": "", "k": [3, 3]}, "op.k: .3, 3. has a shorter notation"),
        ({"conv": "", "s": 1}, "op.s: 1 has a shorter notation"),
    ],
)
def test_operations_refuse_json_of_wrong_types_and_longer_notations(data, message):
    with pytest.raises(SchemaError, match=message):
        Op.from_json("op", 5, data)


def test_widths_print_and_parse():
    assert str(LayerWidths(4, 8)) == "w4a8"
    assert parse_assignment("w8a8, w2a4") == (LayerWidths(8, 8), LayerWidths(2, 4))
    for bad in ("", "w8", "a8", "w8a", "8a8", "wa", "w8a8,", "w-1a8", "w٤a8", "w" + "9" * 5000 + "a8", "w8a8x"):
        with pytest.raises(AssignmentError, match="write it like w4a8"):
            parse_assignment(bad)


def test_assignments_are_checked():
    g = graph(CONV._replace(low=0, high=255), Op("conv", (1,), "d", channels=1), widths=(2, 4))
    assert g.uniform(2) == (LayerWidths(2, 8), LayerWidths(2, 2))
    assert g.check_assignment((LayerWidths(4, 8), LayerWidths(2, 8)))
    for pairs, message in (
        ("w4a8", "2 layers, the assignment 1"),
        ("w8a8,w4a4", "layer 'c': weights of 8 bits"),
        ("w4a4,w4a4", "layer 'c' reads the network's input"),
        ("w4a8,w4a3", "layer 'd': activations of 3 bits"),
    ):
        with pytest.raises(AssignmentError, match=message):
            g.check_assignment(parse_assignment(pairs))
    with pytest.raises(AssignmentError, match="weights of 3 bits"):
        g.uniform(3)


def test_cost_by_hand():
    g = graph(
        Op("conv", (0,), channels=2, kernel=(3, 3), low=0, high=255),  # 2 x 3 outputs, 54 weights in 7 bytes
        Op("conv", (1,), channels=2, groups=2),  # 2 weights in 1 byte
    )
    assert g.cost(parse_assignment("w8a8,w2a4")) == Cost(7 * 8 + 2, 2 * 3 * 54 * 64 + 2 * 3 * 2 * 8, 2 * 3 * 56)
    assert (g.channels, g.weights, g.plane_bytes) == (4, 56, 8)
    assert [layer.accumulator_limit(LayerWidths(2, 4), signed) for layer in g.layers for signed in (True, False)] == [
        27 * 8 * 3,
        27 * 15 * 3,
        8 * 3,
        15 * 3,
    ]


def test_plans_refuse_what_was_not_read():
    m = models.model(0)
    narrow = m.planes[:2]
    build_plan(m.graph, m.parameters, narrow, m.graph.uniform(2))
    with pytest.raises(AssignmentError, match="weights of 8 bits: only 2 bit planes"):
        build_plan(m.graph, m.parameters, narrow, m.graph.uniform(8))
    for missing in (-1, 4):
        with pytest.raises(AssignmentError, match=f"no parameter set {missing}"):
            build_plan(m.graph, m.parameters, m.planes, m.graph.uniform(8), missing)


def test_plans_name_what_cannot_be_computed():
    m = models.model(0)
    layer = m.graph.layers[1]
    exponents = np.full_like(m.parameters.gain_exponent, 60)
    with pytest.raises(SchemaError, match=f"layer {m.graph.layers[0].name!r} at w8a8: .* out of range"):
        build_plan(m.graph, m.parameters.replace(gain_exponent=exponents), m.planes, m.graph.uniform(8))
    ratios = np.full_like(m.parameters.ratios, 2.0**-20)
    with pytest.raises(SchemaError, match=f"layer {layer.name!r} at w4a4: .* out of range"):
        build_plan(m.graph, m.parameters.replace(ratios=ratios), m.planes, m.graph.uniform(4))
    steps = m.parameters.steps.copy()
    steps[0] = 2.0**40
    with pytest.raises(SchemaError, match="clamp 'x'"):
        rescaling(Op("clamp", (0,), "x"), m.graph, steps, 0, 1)
    with pytest.raises(SchemaError, match="add 'x': its inputs' steps"):
        adding(Op("add", (0, 0), "x"), steps, 1)


def test_what_one_layer_alone_reads_is_written_at_its_width():
    a = Op("conv", (0,), "a", channels=6, kernel=(3, 3), low=0, high=200)
    b = Op("conv", (1,), "b", channels=6, low=-128, high=127)
    c = Op("conv", (2,), "c", channels=6, low=0, high=255)
    g = graph(a, b, c, Op("add", (3, 2), low=-128, high=127), widths=(2, 4, 8))
    assert only_readers(g) == {0: 1}  # an add reads b too, and c is read by no layer
    m = models.from_graph(g, np.random.default_rng(0))
    p = m.parameters
    ratio = float(p.ratios[1, 1])
    most = min(15, int(np.floor(200 / ratio + 0.5)))
    assert written(g, p.ratios, g.uniform(4)) == [
        Written(ratio, 0, most),
        Written(1.0, -128, 127),
        Written(1.0, 0, 255),
    ]
    assert {w.ratio for w in written(g, p.ratios, g.uniform(8))} == {1.0}
    # One rounding, of the sum's own value.
    fixed = layer_fixed_point(g, p, g.layers[0], LayerWidths(4, 8), output_ratio=ratio)
    sums = np.random.default_rng(1).integers(-40000, 40000, (1000, 6)).astype(np.int32)
    gain = np.ldexp(p.gain[1, :6].astype(float), int(p.gain_exponent[1, 0]))
    bias = np.ldexp(p.bias[1, :6].astype(float), int(p.bias_exponent[1, 0]))
    real = np.clip((sums * gain + bias) / ratio, 0, most)
    assert np.abs(requantize(sums, fixed, 0, most) - real).max() < 0.52
    assert [step.narrow is not None for step in build_plan(g, p, m.planes, g.uniform(4)).steps] == [
        False,
        False,
        True,
        False,
    ]


@pytest.mark.parametrize("steps", [(1.0, 1.0), (0.3, 2.0), (1e-9, 1.0), (2.0**15 - 1, 1.0)])
def test_adding_is_exact_rounding(steps):
    op = Op("add", (0, 1), "x")
    values = np.array([*steps, 1.0], np.float32)
    if max(steps) >= 2**14:
        with pytest.raises(SchemaError):
            adding(op, values, 2)
        return
    multipliers, offset, shift = adding(op, values, 2)
    assert all(0 <= k < 2**15 for k in multipliers) and 0 < shift <= 30
    for a in (-128, -1, 0, 77, 255):
        for b in (-128, 0, 3, 255):
            y = (a * multipliers[0] + b * multipliers[1] + offset) >> shift
            assert abs(y - (a * float(values[0]) + b * float(values[1]))) < 0.52


@pytest.mark.parametrize("name", ["gain", "bias", "gain_exponent", "bias_exponent", "steps", "ratios"])
def test_parameters_refuse_shapes_and_dtypes(name):
    m = models.tiny()
    array = getattr(m.parameters, name)
    for bad in (array[..., :-1], array[None], array.astype(np.float64), array.astype(np.int64)):
        with pytest.raises(SchemaError, match="the graph asks for"):
            m.parameters.replace(**{name: bad}).check(m.graph)


def test_parameters_refuse_values():
    m = models.tiny()
    for name, values in (
        ("steps", (np.nan, np.inf, 0.0, -1.0, 1e-40, 2.0**61)),
        ("ratios", (np.nan, np.inf, 0.0, -1.0, 1e-40, 2.0**61)),
        ("gain_exponent", (101, -101)),
        ("bias_exponent", (127, -128)),
    ):
        for value in values:
            array = getattr(m.parameters, name).copy()
            array.flat[-1] = value
            with pytest.raises(SchemaError, match=name):
                m.parameters.replace(**{name: array}).check(m.graph)
    few = {n: getattr(m.parameters, n)[:1] for n in ("gain", "bias", "gain_exponent", "bias_exponent")}
    with pytest.raises(SchemaError, match="1 parameter sets for 2 widths"):
        m.parameters.replace(**few).check(m.graph)


def test_where_layers_start():
    graphs = [models.model(seed).graph for seed in range(4)]
    for g in graphs:
        channel = byte = 0
        for layer in g.layers:
            assert (layer.first_channel, layer.first_byte) == (channel, byte)
            channel += layer.channels
            byte += -(-layer.weights // 8)
        assert (channel, byte) == (g.channels, g.plane_bytes)


def test_what_reads_the_input_reads_it_at_8_bits():
    g = graph(
        Op("max_pool", (0,), kernel=(2, 2)),
        Op("reshape", (1,), shape=(1, 1, 36)),
        Op("conv", (2,), channels=36),
        Op("clamp", (2,), low=-128, high=127),
        Op("conv", (4,), channels=36),
        Op("add", (3, 5)),
    )
    assert g.uniform(2) == parse_assignment("w2a8,w2a2")

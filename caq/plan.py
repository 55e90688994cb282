"""Plans: a graph, its parameters and an assignment, turned into the integers that the kernels need.

A plan is immutable, its arrays are read-only. Switching a width means building (or reusing) another plan; an inference
keeps the one that it began with.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from caq.errors import AssignmentError, SchemaError
from caq.graph import Assignment, Graph, Layer, LayerWidths, Op, output_bits
from caq.planes import check_flips, check_head, own_planes
from caq.quant import (
    TOP_WIDTH,
    FixedPoint,
    activation_range,
    fixed_point,
    multiplicands,
    plane_bytes,
    requantize,
    unpack,
)
from caq.record import NamedTuple, Record

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Exponents of stored gains and biases stay in this range, so that no product of them leaves float64's exact range.
EXPONENT_RANGE = (-100, 100)
_DTYPES: dict[str, np.dtype[Any]] = {
    "gain": np.dtype(np.int16),
    "bias": np.dtype(np.int16),
    "gain_exponent": np.dtype(np.int8),
    "bias_exponent": np.dtype(np.int8),
    "steps": np.dtype(np.float32),
    "ratios": np.dtype(np.float32),
}


class Parameters(Record):
    """What a layer's integers are derived from; S sets, C channels of all layers together, L layers, T tensors.

    A *set* holds batch norm's effect at one weight width (set i belongs to the i-th width), or at one operating point
    whose statistics were re-estimated for it (later sets). A channel's gain is `gain * 2.0**gain_exponent` of its
    layer: output codes per accumulator unit when the layer's input is read at 8 bits. Its bias, likewise, is in
    output codes.

    flips, head: of a device that calibrates, (S, weights) and (S, weights of the last layer) int8 (caq.planes); None
    elsewhere.

    gain, bias: (S, C) int16; gain_exponent, bias_exponent: (S, L) int8; steps: (T,) float32, the real value of one
    code of each tensor; ratios: (L, W) float32, the step of a layer's input at each width over its step at 8 bits.
    """

    gain: NDArray[np.int16]
    gain_exponent: NDArray[np.int8]
    bias: NDArray[np.int16]
    bias_exponent: NDArray[np.int8]
    steps: NDArray[np.float32]
    ratios: NDArray[np.float32]
    flips: NDArray[np.int8] | None = None
    head: NDArray[np.int8] | None = None

    def check(self, graph: Graph) -> None:
        """Raises SchemaError unless every array has its dtype and fits `graph`, and every value is in range."""
        sets, layers = len(self.gain) if self.gain.ndim else 0, len(graph.layers)
        shapes = {
            "gain": (sets, graph.channels),
            "bias": (sets, graph.channels),
            "gain_exponent": (sets, layers),
            "bias_exponent": (sets, layers),
            "steps": (len(graph.shapes),),
            "ratios": (layers, len(graph.widths)),
        }
        for name, shape in shapes.items():
            found, dtype = getattr(self, name), _DTYPES[name]
            if found.shape != shape or found.dtype != dtype:
                raise SchemaError(f"{name} is {found.dtype} {found.shape}, the graph asks for {dtype.name} {shape}")
        if sets < len(graph.widths):
            raise SchemaError(f"{sets} parameter sets for {len(graph.widths)} widths")
        for name in ("gain_exponent", "bias_exponent"):
            low, high = EXPONENT_RANGE
            if (getattr(self, name) < low).any() or (getattr(self, name) > high).any():
                raise SchemaError(f"{name}: exponents are {low} to {high}")
        for name in ("steps", "ratios"):
            values = getattr(self, name)
            if not (np.isfinite(values) & (values >= 2.0**-60) & (values <= 2.0**60)).all():
                raise SchemaError(f"{name}: a step is a finite positive number, and no denormal one")
        if self.flips is not None:
            check_flips(self.flips, sets, graph.weights)
        if self.head is not None:
            check_head(self.head, sets, graph.layers[-1].weights)


class Step(NamedTuple):
    """One operation, ready to run; what its kind does not use is empty.

    low, high: of a conv's codes. narrow: to the layer's own activation width, into `narrow_range`; None at 8 bits, and
    where the input was written at that width. multiplicands: (O, rows, columns,
    C / groups) int8. limit: bound on its partial sums with these weights. requantize: per input for concat, else one.
    add: multipliers, offset, shift.
    """

    op: Op
    requantize: tuple[FixedPoint, ...] = ()
    low: int = 0
    high: int = 0
    narrow: FixedPoint | None = None
    narrow_range: tuple[int, int] = (0, 0)
    multiplicands: NDArray[np.int8] | None = None
    limit: int = 0
    add: tuple[tuple[int, ...], int, int] = ((), 0, 0)


class Plan(NamedTuple):
    """Steps in the order of execution for one assignment; `last_use[t]` is the step after which tensor t is dead."""

    graph: Graph
    assignment: Assignment
    steps: tuple[Step, ...]
    last_use: tuple[int, ...]


@contextmanager
def naming(where: str) -> Iterator[None]:
    """Says where a SchemaError was raised."""
    try:
        yield
    except SchemaError as e:
        raise SchemaError(f"{where}: {e}") from None


def layer_codes(graph: Graph, planes: NDArray[np.uint8], layer: Layer, width: int) -> NDArray[np.int8]:
    """The `width`-bit codes of one layer: planes (>= width, graph.plane_bytes) uint8 -> (weights,) int8."""
    span = slice(layer.first_byte, layer.first_byte + plane_bytes(layer.weights))
    return unpack(planes[:width, span], layer.weights)


def narrowing(ratio: float, width: int, signed: bool) -> tuple[FixedPoint, tuple[int, int]]:
    """How a tensor's 8-bit codes become codes of `width` bits whose step is `ratio` times larger, and their range."""
    limit = activation_range(TOP_WIDTH, signed)
    scale = np.array([1.0 / float(ratio)])
    return fixed_point(scale, np.zeros(1), max(limit[1], -limit[0])), activation_range(width, signed)


class Written(NamedTuple):
    """What a layer writes: codes from `low` to `high` whose step is `ratio` times that of its output's 8-bit codes."""

    ratio: float
    low: int
    high: int


def only_readers(graph: Graph) -> dict[int, int]:
    """The layers whose output one other layer reads and nothing else does: index of the writer -> of the reader."""
    readers: dict[int, list[int]] = {}
    for i, op in enumerate(graph.ops):
        for t in op.inputs:
            readers.setdefault(t, []).append(i)
    by_op = {layer.op: layer.index for layer in graph.layers}
    alone = {layer.index: readers.get(layer.op + 1, []) for layer in graph.layers}
    return {i: by_op[ops[0]] for i, ops in alone.items() if len(ops) == 1 and ops[0] in by_op}


def written(graph: Graph, ratios: NDArray[np.float32], assignment: Assignment) -> list[Written]:
    """What each layer writes at `assignment`; ratios: (L, W), of Parameters.

    Where one layer alone reads it, that one's activation width at once: rounding twice, to 8 bits and then to fewer,
    would lose more and take longer. Raises SchemaError.
    """
    outputs = [Written(1.0, graph.ops[layer.op].low, graph.ops[layer.op].high) for layer in graph.layers]
    for writer, reader in only_readers(graph).items():
        width, (_, *limits) = assignment[reader].activation, outputs[writer]
        if width == TOP_WIDTH:
            continue
        ratio = float(ratios[reader, graph.widths.index(width)])
        with naming(f"layer {graph.layers[reader].name!r} at {assignment[reader]}: input"):
            fixed, bounds = narrowing(ratio, width, graph.signed(graph.layers[writer].op + 1))
        low, high = requantize(np.array(limits, np.int32)[:, None], fixed, *bounds)[:, 0].tolist()
        outputs[writer] = Written(ratio, low, high)
    return outputs


def affine(parameters: Parameters, layer: Layer, row: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Gain and bias (O,) of a layer in parameter set `row`: see Parameters."""
    span = slice(layer.first_channel, layer.first_channel + layer.channels)
    gain = np.ldexp(parameters.gain[row, span].astype(np.float64), int(parameters.gain_exponent[row, layer.index]))
    bias = np.ldexp(parameters.bias[row, span].astype(np.float64), int(parameters.bias_exponent[row, layer.index]))
    return gain, bias


def to_mantissas(values: NDArray[np.float64]) -> tuple[NDArray[np.int16], int]:
    """Gains or biases of a layer as they are stored, mantissas with one exponent: values are mantissas * 2**exponent.

    Values too large or small for EXPONENT_RANGE become the nearest that it has.
    """
    _, exponent = np.frexp(np.abs(values).max())
    least, most = EXPONENT_RANGE
    exponent = min(max(int(exponent) - 15, least), most)
    mantissas = np.floor(np.ldexp(values, -exponent) + 0.5)
    return np.minimum(np.maximum(mantissas, -(2**15) + 1), 2**15 - 1).astype(np.int16), exponent


def layer_fixed_point(
    graph: Graph,
    parameters: Parameters,
    layer: Layer,
    widths: LayerWidths,
    index: int | None = None,
    output_ratio: float = 1.0,
) -> FixedPoint:
    """A layer's requantization at `widths`, from parameter set `index` (None: the set of its weight width).

    output_ratio: of what it writes (`Written`).
    """
    row = graph.widths.index(widths.weight) if index is None else index
    gain, bias = affine(parameters, layer, row)
    if widths.activation != TOP_WIDTH:
        gain = gain * np.float64(parameters.ratios[layer.index, graph.widths.index(widths.activation)])
    gain, bias = gain / output_ratio, bias / output_ratio
    signed = graph.signed(graph.ops[layer.op].inputs[0])
    with naming(f"layer {layer.name!r} at {widths}"):
        return fixed_point(gain, bias, layer.accumulator_limit(widths, signed), output_bits(graph.ops[layer.op]))


def rescaling(op: Op, graph: Graph, steps: NDArray[np.float32], source: int, target: int) -> FixedPoint:
    """Requantization of tensor `source` to the step of tensor `target`: a concat's input, a clamp, or an average."""
    window = op.kernel[0] * op.kernel[1] if op.kind == "avg_pool" else 1
    low, high = graph.ranges[source]
    scale = np.float64(steps[source]) / (np.float64(steps[target]) * window)
    with naming(f"{op.kind} {op.name!r}"):
        return fixed_point(np.array([scale]), np.zeros(1), max(high, -low) * window, output_bits(op))


def adding(op: Op, steps: NDArray[np.float32], target: int) -> tuple[tuple[int, ...], int, int]:
    """Multipliers, offset and shift of an add: y = (sum of x_i * multiplier_i + offset) >> shift.

    Raises SchemaError when one input's step is so much larger than the output's that no multiplier of 15 bits fits.
    """
    scales = [float(steps[t]) / float(steps[target]) for t in op.inputs]
    shift = 15 - int(np.frexp(max(scales))[1])
    if not 0 < shift <= 30:
        raise SchemaError(f"add {op.name!r}: its inputs' steps are {scales} times its output's")
    multipliers = tuple(min(int(np.floor(np.ldexp(s, shift) + 0.5)), 2**15 - 1) for s in scales)
    return multipliers, 1 << (shift - 1), shift


def build_plan(
    graph: Graph,
    parameters: Parameters,
    planes: NDArray[np.uint8],
    assignment: Assignment,
    parameter_set: int | None = None,
) -> Plan:
    """Builds the plan of `assignment`.

    planes: (>= widest weight width of the assignment, graph.plane_bytes) uint8. parameter_set: the operating point's
    own set, or None for the sets of the layers' widths. Raises AssignmentError, also where that set or those planes
    were not read, and SchemaError on parameters that cannot be computed with.
    """
    graph.check_assignment(assignment)
    if (widest := max(pair.weight for pair in assignment)) > len(planes):
        raise AssignmentError(f"weights of {widest} bits: only {len(planes)} bit planes were read")
    if parameter_set is not None and not 0 <= parameter_set < len(parameters.gain):
        raise AssignmentError(f"no parameter set {parameter_set}: there are {len(parameters.gain)}")
    planes = own_planes(graph, planes, assignment, parameter_set, parameters.flips, parameters.head)
    layers = {layer.op: layer for layer in graph.layers}
    outputs, direct = written(graph, parameters.ratios, assignment), set(only_readers(graph).values())
    steps = []
    for i, op in enumerate(graph.ops):
        if op.kind == "conv":
            layer = layers[i]
            narrows = assignment[layer.index].activation != TOP_WIDTH and layer.index not in direct
            pair, output = assignment[layer.index], outputs[layer.index]
            steps.append(_layer_step(graph, parameters, planes, layer, pair, parameter_set, output, narrows))
        elif op.kind == "add":
            steps.append(Step(op, add=adding(op, parameters.steps, i + 1)))
        elif op.kind in ("max_pool", "reshape"):
            steps.append(Step(op))
        else:
            steps.append(Step(op, tuple(rescaling(op, graph, parameters.steps, t, i + 1) for t in op.inputs)))
    for step in steps:
        _make_read_only(step)
    last_use = [len(graph.ops)] * len(graph.shapes)
    for i, op in enumerate(graph.ops):
        for t in op.inputs:
            last_use[t] = i
    return Plan(graph, assignment, tuple(steps), tuple(last_use))


def _make_read_only(step: Step) -> None:
    fixed_points = [*step.requantize, *([step.narrow] if step.narrow is not None else [])]
    arrays = [array for f in fixed_points for array in f]
    for array in [*arrays, *([step.multiplicands] if step.multiplicands is not None else [])]:
        array.flags.writeable = False


def _layer_step(
    graph: Graph,
    parameters: Parameters,
    planes: NDArray[np.uint8],
    layer: Layer,
    widths: LayerWidths,
    parameter_set: int | None,
    output: Written,
    narrows: bool,
) -> Step:
    op = graph.ops[layer.op]
    signed = graph.signed(op.inputs[0])
    narrow, narrow_range = None, (0, 0)
    if narrows:
        ratio = parameters.ratios[layer.index, graph.widths.index(widths.activation)]
        with naming(f"layer {layer.name!r} at {widths}: input"):
            narrow, narrow_range = narrowing(ratio, widths.activation, signed)
    m = multiplicands(layer_codes(graph, planes, layer, widths.weight), widths.weight).reshape(layer.weight_shape)
    largest_activation = max(map(abs, activation_range(widths.activation, signed)))
    return Step(
        op,
        (layer_fixed_point(graph, parameters, layer, widths, parameter_set, output.ratio),),
        output.low,
        output.high,
        narrow,
        narrow_range,
        m,
        int(np.abs(m.astype(np.int32)).sum(axis=(1, 2, 3)).max()) * largest_activation,
    )

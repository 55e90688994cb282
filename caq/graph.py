"""The integer graph: which operations a model consists of, their shapes, and what they cost at a width.

A graph is a list of operations in the order of execution. Tensor 0 is the network's input and operation i makes
tensor i + 1, so an operation can only read what was made before it: a cycle cannot be written down. The last tensor
is the network's output, and every other tensor is read by someone.

Tensors are channels-last, (H, W, C) a sample: a series (T, C) is (1, T, C), a vector (F,) is (1, 1, F). Their codes
have no zero point: 0 is zero. A tensor whose lowest code is 0 is unsigned.

    kind      reads   does
    conv      1       convolution (also 1-d, depthwise, and linear as 1 x 1), bias, requantization, clamp to [low, high]
    add       2..8    sum of inputs of different steps, requantized and clamped
    concat    2..64   concatenation along the channels, each input requantized to the common step
    clamp     1       requantization and clamp: an activation that follows no operation that could absorb it
    max_pool  1       padding never wins
    avg_pool  1       sum over the window, padding counts as zero, requantized; the divisor is the window's size
    reshape   1       to `shape`, in channels-first order, as torch reshapes

A *layer* is a conv: what has weights has a width. A layer that reads the network's input (be it reshaped or
max-pooled) reads it at 8 bits always.
"""

from __future__ import annotations

import math
import re
import reprlib
from functools import cached_property
from typing import Any

from caq.errors import AssignmentError, SchemaError
from caq.quant import ACCUMULATOR_LIMIT, TOP_WIDTH, check_widths, multiplicand_limit, plane_bytes
from caq.record import NamedTuple, Record

KINDS = {  # kind -> fewest and most inputs
    "conv": (1, 1),
    "add": (2, 8),
    "concat": (2, 64),
    "clamp": (1, 1),
    "max_pool": (1, 1),
    "avg_pool": (1, 1),
    "reshape": (1, 1),
}
#: Kinds that write codes of a new step (the others pass their input's step on).
REQUANTIZING = ("conv", "add", "concat", "clamp", "avg_pool")

MAX_OPS = 4096
MAX_DIM = 2**16
MAX_TENSOR = 2**26
MAX_LAYER_WEIGHTS = 2**28
#: Multiply-accumulates (or comparisons) of one operation: a file of a few bytes must not ask for hours.
MAX_WORK = 2**36

#: Fields that a kind uses, besides kind, inputs and name.
_WINDOW = ("kernel", "stride", "padding", "dilation")
_USES = {
    "conv": ("channels", *_WINDOW, "groups", "low", "high"),
    "add": ("low", "high"),
    "concat": ("low", "high"),
    "clamp": ("low", "high"),
    "max_pool": _WINDOW,
    "avg_pool": (*_WINDOW, "low", "high"),
    "reshape": ("shape",),
}

#: Keys of an operation in a file, after {kind: name}, in their order.
_KEYS = {
    "in": "inputs",
    "c": "channels",
    "k": "kernel",
    "s": "stride",
    "p": "padding",
    "d": "dilation",
    "g": "groups",
    "low": "low",
    "high": "high",
    "shape": "shape",
}

Shape = tuple[int, int, int]


class LayerWidths(NamedTuple):
    """Bits of one layer's weights and of the activations that it reads; written `w4a8`."""

    weight: int
    activation: int

    def __str__(self) -> str:
        return f"w{self.weight}a{self.activation}"

    @classmethod
    def parse(cls, text: str) -> LayerWidths:
        """Reads `w4a8`. Raises AssignmentError."""
        match = re.fullmatch("w([0-9]{1,2})a([0-9]{1,2})", text.strip())
        if match is None:
            raise AssignmentError(f"{text!r} is not a pair of widths; write it like w4a8")
        return cls(int(match[1]), int(match[2]))


#: One pair of widths for every layer, in the order of execution.
Assignment = tuple[LayerWidths, ...]


def parse_assignment(text: str) -> Assignment:
    """Reads `w8a8,w4a8,...`. Raises AssignmentError."""
    return tuple(LayerWidths.parse(part) for part in text.split(","))


class Cost(NamedTuple):
    """What one inference costs at an assignment.

    weight_bytes: bytes of bit planes read; bit_macs: multiply-accumulates weighted by weight bits x activation bits;
    macs: multiply-accumulates.
    """

    weight_bytes: int
    bit_macs: int
    macs: int


class Op(NamedTuple):
    """One operation; fields that its kind does not use keep their defaults. Paddings: top, bottom, left, right."""

    kind: str
    inputs: tuple[int, ...]
    name: str = ""
    channels: int = 0
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    low: int = 0
    high: int = 255
    shape: tuple[int, ...] = ()

    def to_json(self, index: int) -> dict[str, Any]:
        """Operation `index` of a graph as a file has it: short keys, nothing at its default, equal numbers once."""
        data: dict[str, Any] = {self.kind: self.name}
        defaults = _defaults(index)
        for key, name in _KEYS.items():
            value = getattr(self, name)
            if value != defaults[name]:
                once = name in _WINDOW and len(set(value)) == 1
                data[key] = value[0] if once else list(value) if isinstance(value, tuple) else value
        return data

    @classmethod
    def from_json(cls, at: str, index: int, data: object) -> Op:
        """Reads what `to_json` wrote, and no longer notation of it. Raises SchemaError that names the field."""
        if not isinstance(data, dict) or not data:
            raise SchemaError(f"{at}: an operation is an object that begins with its kind and name")
        (kind, name), *fields = data.items()
        if not isinstance(name, str):
            raise SchemaError(f"{at}.{kind[:40]}: {reprlib.repr(name)} is no name")
        values = _defaults(index)
        for key, value in fields:
            if key not in _KEYS:
                raise SchemaError(f"{at}: unknown field {reprlib.repr(key)}")
            attribute = _KEYS[key]
            if attribute in _WINDOW and _is_int(value):
                value = [value] * len(values[attribute])
            if isinstance(values[attribute], int):
                good = _is_int(value)
            else:
                length = len(values[attribute]) if attribute in _WINDOW else None
                good = isinstance(value, list) and all(map(_is_int, value)) and length in (None, len(value))
            if not good:
                raise SchemaError(f"{at}.{key}: {reprlib.repr(value)} has the wrong type or length")
            values[attribute] = tuple(value) if isinstance(value, list) else value
        op = cls(kind=kind, name=name, **values)
        shortest = op.to_json(index)
        for key, value in fields:
            if shortest.get(key) != value:
                raise SchemaError(f"{at}.{key}: {reprlib.repr(value)} has a shorter notation")
        return op


_DEFAULTS = {name: Op._field_defaults.get(name) for name in _KEYS.values()}


def _defaults(index: int) -> dict[str, Any]:
    """What the fields of `_KEYS` are where a file leaves them out: operation `index` reads the tensor made last."""
    return {**_DEFAULTS, "inputs": (index,)}


def output_bits(op: Op) -> int:
    """Bits of an operation's codes: 8, or 16 where it makes the network's output."""
    return 16 if op.low < -128 or op.high > 255 else 8


def _is_int(value: object) -> bool:
    return type(value) is int and abs(value) < 2**31


class Layer(NamedTuple):
    """A conv and what is known of it: `index` counts layers, `op` operations."""

    index: int  # type: ignore[assignment]  # as if a tuple were no sequence
    op: int
    name: str
    weight_shape: tuple[int, int, int, int]  # output channels, rows, columns, input channels of a group
    macs: int
    reads_input: bool
    first_channel: int  # where its channels start among those of all layers
    first_byte: int  # where its codes start in each bit plane

    @property
    def weights(self) -> int:
        return math.prod(self.weight_shape)

    @property
    def channels(self) -> int:
        return self.weight_shape[0]

    @property
    def fan_in(self) -> int:
        return math.prod(self.weight_shape[1:])

    def accumulator_limit(self, widths: LayerWidths, signed: bool) -> int:
        """Largest magnitude that an accumulator can reach at these widths."""
        activation = 1 << (widths.activation - 1) if signed else (1 << widths.activation) - 1
        return self.fan_in * activation * multiplicand_limit(widths.weight)


class Graph(Record):
    """A validated list of operations. Raises SchemaError at construction, naming the operation.

    input_shape: (H, W, C) of one sample. widths: the weight widths that the model serves, ascending.
    """

    input_shape: Shape
    ops: tuple[Op, ...]
    widths: tuple[int, ...]

    def __post_init__(self) -> None:
        try:
            ascending = check_widths(self.widths) == self.widths
        except AssignmentError as e:
            raise SchemaError(str(e)) from None
        if not ascending:
            raise SchemaError(f"widths {self.widths}: give them in ascending order")
        if not 0 < len(self.ops) <= MAX_OPS:
            raise SchemaError(f"a graph has 1 to {MAX_OPS} operations, not {len(self.ops)}")
        made = len(self.shapes) - 1  # which checks every operation
        read = {t for op in self.ops for t in op.inputs}
        if idle := set(range(made)) - read:
            raise SchemaError(f"tensors {sorted(idle)} are read by no operation")
        if not self.layers:
            raise SchemaError("a graph has at least one conv")
        for layer in self.layers:
            if layer.weights > MAX_LAYER_WEIGHTS or layer.fan_in * 255 * 128 > ACCUMULATOR_LIMIT:
                raise SchemaError(f"layer {layer.name!r}: {layer.weights} weights, {layer.fan_in} a sum: too many")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Graph):
            return NotImplemented
        return (self.input_shape, self.ops, self.widths) == (other.input_shape, other.ops, other.widths)

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash((self.input_shape, self.ops, self.widths))

    @cached_property
    def _tensors(self) -> tuple[tuple[Shape, ...], tuple[tuple[int, int], ...]]:
        """Shape, and lowest and highest code, of the input and of each operation's output. Raises SchemaError."""
        shapes, ranges = [_checked("input", self.input_shape)], [(-128, 127)]
        for i, op in enumerate(self.ops):
            at = f"ops[{i}] ({op.kind[:40]} {op.name[:80]})".replace(" )", ")")
            _check_fields(at, op, i)
            low, high = ranges[op.inputs[0]]
            if op.kind in REQUANTIZING:
                least, most = (-(2**15), 2**15 - 1) if output_bits(op) == 16 else (-128, 255 if op.low == 0 else 127)
                if not least <= op.low <= 0 < op.high <= most:
                    raise SchemaError(f"{at}: [{op.low}, {op.high}] is no range of codes of 8 or 16 bits with 0 in it")
                low, high = op.low, op.high
            if op.kind != "reshape" and any(not -128 <= ranges[t][0] <= ranges[t][1] <= 255 for t in op.inputs):
                raise SchemaError(f"{at}: reads 16-bit codes, which only the network's output has")
            shapes.append(_checked(at, _output_shape(at, op, [shapes[t] for t in op.inputs])))
            per_output = shapes[op.inputs[0]][2] // op.groups if op.kind == "conv" else 1
            if math.prod(shapes[-1]) * math.prod(op.kernel) * per_output > MAX_WORK:
                raise SchemaError(f"{at}: more than {MAX_WORK} multiply-accumulates")
            ranges.append((low, high))
        return tuple(shapes), tuple(ranges)

    @cached_property
    def shapes(self) -> tuple[Shape, ...]:
        """(H, W, C) of each tensor: the input, then each operation's output."""
        return self._tensors[0]

    @cached_property
    def ranges(self) -> tuple[tuple[int, int], ...]:
        """Lowest and highest code of each tensor."""
        return self._tensors[1]

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """The convs, in the order of execution."""
        layers: list[Layer] = []
        first, first_byte = 0, 0
        as_given = {0}  # tensors that hold the input's own codes
        for i, op in enumerate(self.ops):
            if op.kind in ("reshape", "max_pool") and op.inputs[0] in as_given:
                as_given.add(i + 1)
            if op.kind == "conv":
                shape = (op.channels, *op.kernel, self.shapes[op.inputs[0]][2] // op.groups)
                h, w, _ = self.shapes[i + 1]
                macs = h * w * math.prod(shape)
                reads_input = op.inputs[0] in as_given
                layers.append(Layer(len(layers), i, op.name, shape, macs, reads_input, first, first_byte))
                first += op.channels
                first_byte += plane_bytes(layers[-1].weights)
        return tuple(layers)

    @property
    def channels(self) -> int:
        """Output channels of all layers together."""
        return sum(layer.channels for layer in self.layers)

    @property
    def weights(self) -> int:
        """Weights of all layers together."""
        return sum(layer.weights for layer in self.layers)

    @property
    def plane_bytes(self) -> int:
        """Bytes of one bit plane of all layers; each layer starts at a byte."""
        return sum(plane_bytes(layer.weights) for layer in self.layers)

    def signed(self, tensor: int) -> bool:
        """Whether a tensor's codes are signed."""
        return self.ranges[tensor][0] < 0

    def uniform(self, width: int) -> Assignment:
        """Every layer at `width`, but that the network's input is read at 8 bits."""
        pairs = (LayerWidths(width, TOP_WIDTH if layer.reads_input else width) for layer in self.layers)
        return self.check_assignment(tuple(pairs))

    def check_assignment(self, assignment: Assignment) -> Assignment:
        """Returns `assignment`. Raises AssignmentError, naming the layer, unless this graph can serve it."""
        if len(assignment) != len(self.layers):
            raise AssignmentError(f"the model has {len(self.layers)} layers, the assignment {len(assignment)}")
        for layer, pair in zip(self.layers, assignment, strict=True):
            if pair.weight not in self.widths:
                raise AssignmentError(f"layer {layer.name!r}: weights of {pair.weight} bits; there are {self.widths}")
            if layer.reads_input and pair.activation != TOP_WIDTH:
                raise AssignmentError(f"layer {layer.name!r} reads the network's input, always w{pair.weight}a8")
            if pair.activation not in (*self.widths, TOP_WIDTH):
                served = sorted({*self.widths, TOP_WIDTH})
                raise AssignmentError(
                    f"layer {layer.name!r}: activations of {pair.activation} bits; there are {served}"
                )
        return assignment

    def cost(self, assignment: Assignment) -> Cost:
        """What one inference costs at `assignment`."""
        pairs = list(zip(self.layers, assignment, strict=True))
        return Cost(
            weight_bytes=sum(plane_bytes(layer.weights) * p.weight for layer, p in pairs),
            bit_macs=sum(layer.macs * p.weight * p.activation for layer, p in pairs),
            macs=sum(layer.macs for layer in self.layers),
        )


def _check_fields(at: str, op: Op, index: int) -> None:
    if op.kind not in KINDS:
        raise SchemaError(f"{at}: unknown kind; known: {', '.join(KINDS)}")
    fewest, most = KINDS[op.kind]
    if not fewest <= len(op.inputs) <= most:
        raise SchemaError(f"{at}: {len(op.inputs)} inputs, takes {fewest} to {most}")
    if not all(0 <= t <= index for t in op.inputs):
        raise SchemaError(f"{at}: inputs {op.inputs}, but only tensors 0 to {index} exist here")
    positive = (*op.kernel, *op.stride, *op.dilation, op.groups)
    if not all(0 < v <= MAX_DIM for v in positive) or not all(0 <= v <= MAX_DIM for v in op.padding):
        raise SchemaError(f"{at}: kernel, stride, dilation and groups are 1 to {MAX_DIM}, padding from 0")
    if op.kind == "conv" and not 0 < op.channels <= MAX_DIM:
        raise SchemaError(f"{at}: channels are 1 to {MAX_DIM}, not {op.channels}")
    set_fields = {name for name, default in Op._field_defaults.items() if getattr(op, name) != default}
    unused = set_fields - {"name", *_USES[op.kind]}
    if unused:
        raise SchemaError(f"{at}: does not use {', '.join(sorted(unused))}")


def _checked(at: str, shape: tuple[int, ...]) -> Shape:
    if len(shape) != 3 or not all(0 < v <= MAX_DIM for v in shape) or math.prod(shape) > MAX_TENSOR:
        raise SchemaError(f"{at}: shape {shape} is not three sizes of 1 to {MAX_DIM}, {MAX_TENSOR} together")
    return shape[0], shape[1], shape[2]


def _output_shape(at: str, op: Op, inputs: list[Shape]) -> Shape:
    h, w, c = inputs[0]
    if op.kind == "add":
        if any(shape != inputs[0] for shape in inputs):
            raise SchemaError(f"{at}: adds shapes {inputs}, which differ")
        return inputs[0]
    if op.kind == "concat":
        if any(shape[:2] != (h, w) for shape in inputs):
            raise SchemaError(f"{at}: concatenates shapes {inputs}, which differ in height or width")
        return h, w, sum(shape[2] for shape in inputs)
    if op.kind == "reshape":
        if len(op.shape) != 3 or math.prod(op.shape) != h * w * c:
            raise SchemaError(f"{at}: {inputs[0]} does not reshape to {op.shape}")
        return op.shape[0], op.shape[1], op.shape[2]
    if op.kind == "clamp":
        return inputs[0]
    top, bottom, left, right = op.padding
    if (h + top + bottom) * (w + left + right) * c > MAX_TENSOR:
        raise SchemaError(f"{at}: with its padding {op.padding} the input {inputs[0]} is larger than {MAX_TENSOR}")
    rows = h + top + bottom - op.dilation[0] * (op.kernel[0] - 1) - 1
    columns = w + left + right - op.dilation[1] * (op.kernel[1] - 1) - 1
    if rows < 0 or columns < 0:
        raise SchemaError(f"{at}: the kernel {op.kernel} is larger than its padded input {inputs[0]}")
    if op.kind != "conv":
        extent = [(k - 1) * d + 1 for k, d in zip(op.kernel, op.dilation, strict=True)]
        # Where padding is as long as the window, or the window's gaps as the input, a window can miss the input.
        empty = [
            max(before, after) >= span or (before + after > 0 and gap > size)
            for before, after, span, gap, size in (
                (top, bottom, extent[0], op.dilation[0], h),
                (left, right, extent[1], op.dilation[1], w),
            )
        ]
        if any(empty):
            raise SchemaError(f"{at}: padding {op.padding} leaves windows with nothing in them")
    elif c % op.groups or op.channels % op.groups:
        raise SchemaError(f"{at}: {op.groups} groups divide neither {c} input nor {op.channels} output channels")
    return rows // op.stride[0] + 1, columns // op.stride[1] + 1, op.channels if op.kind == "conv" else c

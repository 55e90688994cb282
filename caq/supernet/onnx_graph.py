"""What reading an ONNX file needs: its nodes, its constants, and the module that is being built of them."""

from __future__ import annotations

import math
import re
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx, nn

from caq.errors import UnsupportedError, WeightsError
from caq.graph import MAX_DIM, MAX_TENSOR

Size = tuple[int, ...]
ZERO_PAD: dict[int, type[nn.Module]] = {1: nn.ZeroPad1d, 2: nn.ZeroPad2d}
#: Longest name that a layer takes over from its node; TensorFlow Lite strings together all that it fused.
MAX_NAME = 40


class Value(NamedTuple):
    """A tensor: the module's node, its shape (a sample, channels first), and the file's tensor as indices into it."""

    node: fx.Node
    shape: Size
    order: NDArray[np.int64]


class NotChannelsFirst(UnsupportedError):
    """An operation reads a tensor whose positions and channels are not where it expects them."""


class Node:
    """One operation of the file: its type, name, inputs, and attributes that have not been used yet."""

    def __init__(self, proto: Any, index: int) -> None:
        from onnx.helper import get_attribute_value

        self.type: str = proto.op_type if proto.domain in ("", "ai.onnx") else f"{proto.domain}.{proto.op_type}"
        self.name: str = proto.name or (proto.output[0] if proto.output else f"number {index}")
        self.index = index
        self.inputs: list[str] = list(proto.input)
        self.output: str = proto.output[0]
        self.more_outputs = [name for name in proto.output[1:] if name]
        self.attributes = {a.name: get_attribute_value(a) for a in proto.attribute}

    def axis(self, axis: int, rank: int) -> int:
        """An axis of the file's tensor, counted from 0, whose first is the batch."""
        self.need(-rank <= axis < rank, f"axis {axis} of {rank} dimensions")
        return int(axis) % rank

    @property
    def label(self) -> str:
        """Its name as a module has it."""
        label = re.sub(r"\W+", "_", self.name).strip("_")
        if not label or len(label) > MAX_NAME or label[0].isdigit():
            return f"{self.type.lower()}_{self.index}"
        return label

    def take(self, name: str, default: Any) -> Any:
        """An attribute, once."""
        return self.attributes.pop(name, default)

    def refuse(self, what: str, error: type[UnsupportedError] = UnsupportedError) -> NoReturn:
        raise error(f"{self.type} {self.name!r}: {what}")

    def need(self, condition: bool, what: str) -> None:
        """Raises UnsupportedError unless `condition`."""
        if not condition:
            self.refuse(what)


class Reader:
    """What is known so far: constants and values by name, and the module under construction.

    layers: convolutions and matrix products by the name of their output. users: how often a name is read.
    """

    def __init__(self, model: Any, path: str) -> None:
        self.model = model
        self.path = path
        self.graph = fx.Graph()
        self.modules: dict[str, nn.Module] = {}
        self.constants: dict[str, NDArray[Any]] = {}
        self.values: dict[str, Value] = {}
        self.layers: dict[str, nn.Module] = {}
        self.users: dict[str, int] = {}
        self.notes: list[str] = []
        self.opset = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=1)

    def stored(self, tensor: Any) -> NDArray[Any]:
        """A tensor of the file. Raises WeightsError if it is damaged."""
        from onnx import numpy_helper

        try:
            array = np.asarray(numpy_helper.to_array(tensor))
        except (ValueError, TypeError, KeyError) as error:
            raise WeightsError(f"{self.path}: {tensor.name!r} cannot be read: {error}") from error
        return array

    def constant(self, node: Node) -> NDArray[Any]:
        """What a Constant holds."""
        (name, value), *others = node.attributes.items() or [("", None)]
        if name == "value" and not others:
            return self.stored(value)
        node.need(name in ("value_float", "value_floats", "value_int", "value_ints") and not others, "no number")
        return np.array(value, np.float32 if "float" in name else np.int64)

    def weights(self, node: Node, index: int) -> torch.Tensor:
        """Input `index` as a float32 constant. Raises WeightsError on NaN, UnsupportedError on anything computed."""
        name = node.inputs[index]
        if name not in self.constants:
            node.refuse(f"its input {name!r} is computed; weights are constants")
        array = self.constants[name]
        node.need(array.dtype.kind == "f", f"its constant {name!r} is {array.dtype}, not a real number")
        if not np.isfinite(array).all():
            raise WeightsError(f"{self.path}: {name!r}, read by {node.type} {node.name!r}, holds NaN or infinity")
        return torch.from_numpy(np.array(array, np.float32))

    def integers(self, node: Node, index: int, attribute: str) -> list[int] | None:
        """Sizes or axes, which newer opsets have as an input and older ones as an attribute."""
        if len(node.inputs) > index and node.inputs[index]:
            array = self.constants.get(node.inputs[index])
            if array is None or array.dtype.kind != "i":
                node.refuse(f"its {attribute} are computed; export with fixed sizes, or fold them with onnxsim")
            return [int(v) for v in array.ravel()]
        value = node.take(attribute, None)
        return None if value is None else [int(v) for v in value]

    def bound(self, node: Node, index: int, attribute: str, default: float) -> float:
        """A number, which newer opsets have as an input and older ones as an attribute."""
        if len(node.inputs) > index and node.inputs[index]:
            return float(self.weights(node, index).reshape(()))
        return float(node.take(attribute, default))

    def input(self, node: Node, index: int = 0) -> Value:
        """A tensor that the node reads."""
        if node.inputs[index] not in self.values:
            node.refuse(f"its input {node.inputs[index]!r} is a constant")
        return self.values[node.inputs[index]]

    def channels_first(self, node: Node, value: Value) -> Value:
        """`value` with the file's own shape; inserts a reshape where that differs from the module's."""
        if not in_order(value.order):
            node.refuse("reads channels that are not first; only Transpose may change the order", NotChannelsFirst)
        if value.order.shape == value.shape:
            return value
        shape = value.order.shape
        return Value(self.graph.call_method("reshape", (value.node, (-1, *shape))), shape, value.order)

    def windowed(self, node: Node) -> tuple[Value, int]:
        """The input of a convolution or pool, channels first, and how many dimensions its positions have."""
        value = self.channels_first(node, self.input(node))
        spatial = len(value.shape) - 1
        node.need(spatial in (1, 2), f"samples of {value.shape}; (C, T) and (C, H, W) are supported")
        return value, spatial

    def call(self, node: Node, module: nn.Module, source: fx.Node, suffix: str = "") -> fx.Node:
        """`module`, named after `node`, on `source`."""
        name = node.label + suffix
        while name in self.modules:
            name += "_"
        self.modules[name] = module.eval()
        return self.graph.call_module(name, (source,))

    def made(self, node: Node, result: fx.Node, shape: Size) -> Value:
        """A new tensor, channels first."""
        self.check_size(node, shape)
        return Value(result, shape, np.arange(math.prod(shape)).reshape(shape))

    def check_size(self, node: Node, shape: Size) -> None:
        """Raises UnsupportedError on a tensor that is empty or too large."""
        fits = min(shape) > 0 and max(shape) <= MAX_DIM and math.prod(shape) <= MAX_TENSOR
        node.need(fits, f"makes samples of {shape}")

    def window(self, node: Node, size: Size, kernel: Size) -> tuple[Size, Size, Size, Size]:
        """stride, pads (all begins, then all ends), dilation, output size."""
        spatial = len(size)
        stride = tuple(node.take("strides", [1] * spatial))
        dilation = tuple(node.take("dilations", [1] * spatial))
        pads = tuple(node.take("pads", [0] * 2 * spatial))
        auto = node.take("auto_pad", b"NOTSET").decode()
        good = len(stride) == len(dilation) == len(kernel) == spatial and len(pads) == 2 * spatial
        node.need(good and min(*kernel, *stride, *dilation) > 0 and min(pads) >= 0, "a window of other dimensions")
        node.need(max(*kernel, *stride, *dilation, *pads) <= MAX_DIM, "a window that is too large")
        reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
        if auto in ("SAME_UPPER", "SAME_LOWER"):
            total = [max((-(-n // s) - 1) * s + r - n, 0) for n, s, r in zip(size, stride, reach, strict=True)]
            less, more = [t // 2 for t in total], [t - t // 2 for t in total]
            pads = (*less, *more) if auto == "SAME_UPPER" else (*more, *less)
        else:
            node.need(auto in ("NOTSET", "VALID", ""), f"auto_pad={auto}")
        ends = zip(size, pads[:spatial], pads[spatial:], reach, stride, strict=True)
        return stride, pads, dilation, tuple((n + a + b - r) // s + 1 for n, a, b, r, s in ends)

    def padded(self, node: Node, value: Value, pads: Size) -> fx.Node:
        """`value` behind zeros on its positions; pads: all begins, then all ends."""
        spatial = len(pads) // 2
        ends = [end for axis in reversed(range(spatial)) for end in (pads[axis], pads[spatial + axis])]
        return self.call(node, ZERO_PAD[spatial](tuple(ends)), value.node, "_pad")


def in_order(order: NDArray[np.int64]) -> bool:
    """Whether the elements lie as the module has them."""
    return bool((order.ravel() == np.arange(order.size)).all())


def fill(module: nn.Module, **arrays: torch.Tensor | None) -> None:
    """Sets parameters and buffers by name; None leaves one as it is."""
    state = module.state_dict()
    state.update({name: array for name, array in arrays.items() if array is not None})
    module.load_state_dict(state)

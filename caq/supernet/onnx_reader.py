"""Reads an ONNX file into a torch module, for `caq convert`. Needs the extra `onnx`.

A network of the operations that have an integer form here is a short list, and so is this mapping (OPERATIONS). What
it does not know it refuses, naming operation and node; nothing of the file is executed.

Layout: the module takes and passes channels first, whatever the file does. Each tensor carries `order`, an array of
the tensor's own shape in the file (a sample of it) that says where in the module's tensor each element lies. Transpose,
Reshape, Flatten, Squeeze and Unsqueeze only change `order`; a convolution asks that it be channels first again, a
matrix product takes any order by permuting its columns. So a channels-last file (tf2onnx: a Transpose behind the input,
another in front of a Flatten) becomes a channels-first module without a transposition.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx, nn

from caq.errors import DataError, MissingExtraError, UnsupportedError, WeightsError
from caq.graph import MAX_DIM, MAX_TENSOR

Size = tuple[int, ...]
CONV: dict[int, type[nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d}
NORM: dict[int, type[nn.Module]] = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d}
MAX_POOL: dict[int, type[nn.Module]] = {1: nn.MaxPool1d, 2: nn.MaxPool2d}
AVG_POOL: dict[int, type[nn.Module]] = {1: nn.AvgPool1d, 2: nn.AvgPool2d}
GLOBAL_POOL: dict[int, type[nn.Module]] = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d}
ZERO_PAD: dict[int, type[nn.Module]] = {1: nn.ZeroPad1d, 2: nn.ZeroPad2d}
#: What is computed while reading where all inputs are constants: how exporters store weights, not what networks do.
FOLDED = ("Cast", "DequantizeLinear", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
#: Longest name that a layer takes over from its node; TensorFlow Lite strings together all that it fused.
MAX_NAME = 40


class Imported(NamedTuple):
    """A float network read from a file.

    network: takes (N, C, H, W), (N, C, T) or (N, F) float32, in evaluation mode. sample_shape: the same, channels last:
    (H, W, C), (T, C) or (F,); a sample of the data has the same number of values in the same order. notes: what was
    left out, for a person.
    """

    network: nn.Module
    sample_shape: Size
    notes: tuple[str, ...] = ()


class _Value(NamedTuple):
    """A tensor: the module's node, its shape (a sample, channels first), and the file's tensor as indices into it."""

    node: fx.Node
    shape: Size
    order: NDArray[np.int64]


class _NotChannelsFirst(UnsupportedError):
    """An operation reads a tensor whose positions and channels are not where it expects them."""


def read_onnx(path: str | Path, sample_shape: Size) -> Imported:
    """Reads the float network at `path`, for data whose samples are (H, W, C), (T, C) or (F,) `sample_shape`.

    A last Softmax is left out: it changes no decision. Raises WeightsError on a file that is not ONNX or whose weights
    are missing, NaN or infinite, UnsupportedError naming operation and node, DataError if the samples do not fit,
    MissingExtraError without onnx.
    """
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError:
        raise MissingExtraError("onnx", "onnx") from None
    try:
        model = onnx.load(path, load_external_data=False)
        onnx.checker.check_model(model)
    except (DecodeError, onnx.checker.ValidationError, RuntimeError, ValueError) as error:
        raise WeightsError(f"{path}: not a valid ONNX file: {str(error).splitlines()[0]}") from error
    except OSError as error:
        raise WeightsError(f"{path}: {error.strerror}") from error
    given = _input_shape(model.graph, str(path))
    problem: UnsupportedError | None = None
    for shape, order in _readings(given, sample_shape, str(path)):
        try:
            network, notes = _Reader(model, str(path)).read(shape, order)
        except _NotChannelsFirst as error:
            problem = problem or error
            continue
        return Imported(network.eval(), (*shape[1:], shape[0]), notes)
    assert problem is not None
    raise problem


def _input_shape(graph: Any, path: str) -> Size:
    """The shape of one sample of the only input."""
    stored = {tensor.name for tensor in graph.initializer}
    inputs = [i for i in graph.input if i.name not in stored]
    if len(inputs) != 1 or len(graph.output) != 1:
        raise UnsupportedError(f"{path}: {len(inputs)} inputs and {len(graph.output)} outputs; a model has one of each")
    dims = inputs[0].type.tensor_type.shape.dim
    shape = tuple(dim.dim_value for dim in dims[1:])
    if not 1 <= len(shape) <= 3 or min(shape) < 1:
        given = [dim.dim_value or dim.dim_param for dim in dims]
        raise UnsupportedError(f"{path}: the input is {given}: a batch, then 1 to 3 fixed sizes, are supported")
    if max(shape) > MAX_DIM or math.prod(shape) > MAX_TENSOR:
        raise UnsupportedError(f"{path}: an input of {shape} is too large")
    return shape


def _readings(given: Size, sample: Size, path: str) -> Iterator[tuple[Size, NDArray[np.int64]]]:
    """How an input of shape `given` may hold samples of shape `sample`, channels last: channels-first shape, order.

    First as it lies, then channels first: only a graph that transposes its input before it uses it accepts the former.
    """

    def size(shape: Size) -> Size:
        return tuple(n for n in shape if n > 1)

    fits = False
    if size(given) == size(sample) or given == (math.prod(sample),):
        fits = True
        shape = (given[-1], *given[:-1])
        yield shape, np.moveaxis(np.arange(math.prod(shape)).reshape(shape), 0, -1)
    if len(given) > 1 and size((*given[1:], given[0])) == size(sample):
        fits = True
        yield given, np.arange(math.prod(given)).reshape(given)
    if not fits:
        raise DataError(f"{path}: the network takes samples of {given}; the data has {sample}, channels last")


class _Node:
    """One operation of the file: its type, name, inputs, and attributes that have not been used yet."""

    def __init__(self, proto: Any, index: int) -> None:
        from onnx.helper import get_attribute_value

        self.type: str = proto.op_type
        self.name: str = proto.name or (proto.output[0] if proto.output else f"number {index}")
        self.index = index
        self.inputs: list[str] = list(proto.input)
        self.output: str = proto.output[0]
        self.more_outputs = [name for name in proto.output[1:] if name]
        self.attributes = {a.name: get_attribute_value(a) for a in proto.attribute}

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


class _Reader:
    """Builds the module; each method named after an operation gives the value that it makes."""

    def __init__(self, model: Any, path: str) -> None:
        self.model = model
        self.path = path
        self.graph = fx.Graph()
        self.modules: dict[str, nn.Module] = {}
        self.constants: dict[str, NDArray[Any]] = {}
        self.values: dict[str, _Value] = {}
        self.users: dict[str, int] = {}
        self.notes: list[str] = []
        self.opset = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=1)

    def read(self, shape: Size, order: NDArray[np.int64]) -> tuple[nn.Module, tuple[str, ...]]:
        graph = self.model.graph
        for tensor in graph.initializer:
            self.constants[tensor.name] = self._stored(tensor)
        for proto in graph.node:
            for name in proto.input:
                self.users[name] = self.users.get(name, 0) + 1
        result = graph.output[0].name
        self.users[result] = self.users.get(result, 0) + 1
        source = next(i.name for i in graph.input if i.name not in self.constants)
        self.values[source] = _Value(self.graph.placeholder("x"), shape, order)
        for index, proto in enumerate(graph.node):
            self._operation(_Node(proto, index), proto)
        if result not in self.values:
            raise UnsupportedError(f"{self.path}: the output {result!r} does not depend on the input")
        last = self.values[result]
        flat = last.order.ravel()
        if not _rising(flat) and not _rising(np.moveaxis(flat.reshape(last.order.shape), -1, 0).ravel()):
            raise UnsupportedError(f"{self.path}: the output {result!r} is in an order that is not the network's own")
        self.graph.output(last.node)
        return fx.GraphModule(self.modules, self.graph), tuple(self.notes)

    def _operation(self, node: _Node, proto: Any) -> None:
        inputs = [name for name in node.inputs if name]
        if node.type == "Constant":
            self.constants[node.output] = self._constant(node)
        elif node.type in FOLDED and all(name in self.constants for name in inputs):
            from onnx.reference import ReferenceEvaluator

            feeds = {name: self.constants[name] for name in inputs}
            try:
                self.constants[node.output] = np.asarray(ReferenceEvaluator(proto).run(None, feeds)[0])
            except Exception as error:  # whatever numpy makes of a malformed node
                node.refuse(f"cannot be computed from its constants: {error}")
        else:
            handler = OPERATIONS.get(node.type)
            if handler is None:
                what = f"has no integer form here. Supported: {', '.join(sorted(OPERATIONS))}"
                node.refuse(f"{what}. Leave preprocessing out of the file; fold shape computations with onnxsim")
            for name in inputs:
                if name not in self.values and name not in self.constants:
                    node.refuse(f"reads {name!r}, which nothing makes")
            node.need(not any(self.users.get(name) for name in node.more_outputs), "more than one output is used")
            value = handler(self, node)
            node.need(not node.attributes, f"the attributes {sorted(node.attributes)} are not supported")
            size = math.prod(value.shape)
            node.need(0 < size <= MAX_TENSOR and max(value.shape) <= MAX_DIM, f"makes samples of {value.shape}")
            self.values[node.output] = value

    # Constants

    def _stored(self, tensor: Any) -> NDArray[Any]:
        from onnx import TensorProto, numpy_helper

        if tensor.data_location == TensorProto.EXTERNAL:
            raise WeightsError(f"{self.path}: {tensor.name!r} lies in another file; save the model as one file")
        try:
            array = np.asarray(numpy_helper.to_array(tensor))
        except (ValueError, TypeError, KeyError) as error:
            raise WeightsError(f"{self.path}: {tensor.name!r} cannot be read: {error}") from error
        return array

    def _constant(self, node: _Node) -> NDArray[Any]:
        (name, value), *others = node.attributes.items() or [("", None)]
        if name == "value" and not others:
            return self._stored(value)
        node.need(name in ("value_float", "value_floats", "value_int", "value_ints") and not others, "no number")
        return np.array(value, np.float32 if "float" in name else np.int64)

    def _weights(self, node: _Node, index: int) -> torch.Tensor:
        """Input `index` as a float32 constant. Raises WeightsError on NaN, UnsupportedError on anything computed."""
        name = node.inputs[index]
        if name not in self.constants:
            node.refuse(f"its input {name!r} is computed; weights are constants")
        array = self.constants[name]
        node.need(array.dtype.kind == "f", f"its constant {name!r} is {array.dtype}, not a real number")
        if not np.isfinite(array).all():
            raise WeightsError(f"{self.path}: {name!r}, read by {node.type} {node.name!r}, holds NaN or infinity")
        return torch.from_numpy(np.array(array, np.float32))

    def _integers(self, node: _Node, index: int, attribute: str) -> list[int] | None:
        """Sizes or axes, which newer opsets have as an input and older ones as an attribute."""
        if len(node.inputs) > index and node.inputs[index]:
            array = self.constants.get(node.inputs[index])
            if array is None or array.dtype.kind != "i":
                node.refuse(f"its {attribute} are computed; export with fixed sizes, or fold them with onnxsim")
            return [int(v) for v in array.ravel()]
        value = node.take(attribute, None)
        return None if value is None else [int(v) for v in value]

    def _bound(self, node: _Node, index: int, attribute: str, default: float) -> float:
        if len(node.inputs) > index and node.inputs[index]:
            return float(self._weights(node, index).reshape(()))
        return float(node.take(attribute, default))

    # Values

    def _input(self, node: _Node, index: int = 0) -> _Value:
        if node.inputs[index] not in self.values:
            node.refuse(f"its input {node.inputs[index]!r} is a constant")
        return self.values[node.inputs[index]]

    def _channels_first(self, node: _Node, value: _Value) -> _Value:
        """`value` with the file's own shape; inserts a reshape where that differs from the module's."""
        if not _rising(value.order.ravel()):
            node.refuse("reads channels that are not first; only Transpose may change the order", _NotChannelsFirst)
        if value.order.shape == value.shape:
            return value
        shape = value.order.shape
        return _Value(self.graph.call_method("reshape", (value.node, (-1, *shape))), shape, value.order)

    def _windowed(self, node: _Node) -> tuple[_Value, int]:
        """The input of a convolution or pool, channels first, and how many dimensions its positions have."""
        value = self._channels_first(node, self._input(node))
        spatial = len(value.shape) - 1
        node.need(spatial in (1, 2), f"samples of {value.shape}; (C, T) and (C, H, W) are supported")
        return value, spatial

    def _call(self, node: _Node, module: nn.Module, source: fx.Node, suffix: str = "") -> fx.Node:
        name = node.label + suffix
        while name in self.modules:
            name += "_"
        self.modules[name] = module.eval()
        return self.graph.call_module(name, (source,))

    def _moved(self, value: _Value, node: fx.Node, shape: Size) -> _Value:
        return _Value(node, shape, np.arange(math.prod(shape)).reshape(shape))

    def _window(self, node: _Node, size: Size, kernel: Size) -> tuple[Size, Size, Size, Size]:
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

    def _padded(self, node: _Node, value: _Value, pads: Size) -> fx.Node:
        """`value` behind zeros on its positions; pads: all begins, then all ends."""
        spatial = len(pads) // 2
        ends = [end for axis in reversed(range(spatial)) for end in (pads[axis], pads[spatial + axis])]
        return self._call(node, ZERO_PAD[spatial](tuple(ends)), value.node, "_pad")

    # Operations

    def conv(self, node: _Node) -> _Value:
        value, spatial = self._windowed(node)
        weight = self._weights(node, 1)
        groups = int(node.take("group", 1))
        node.need(weight.dim() == spatial + 2, f"weights of {tuple(weight.shape)} for samples of {value.shape}")
        kernel = tuple(weight.shape[2:])
        node.need(tuple(node.take("kernel_shape", kernel)) == kernel, "kernel_shape is not that of the weights")
        node.need(
            groups > 0 and weight.shape[1] * groups == value.shape[0] and weight.shape[0] % groups == 0,
            f"weights of {tuple(weight.shape)} in {groups} groups for {value.shape[0]} channels",
        )
        bias = self._weights(node, 2) if len(node.inputs) > 2 and node.inputs[2] else None
        node.need(bias is None or bias.shape == weight.shape[:1], "a bias of another size than its channels")
        stride, pads, dilation, out = self._window(node, value.shape[1:], kernel)
        even = pads[:spatial] == pads[spatial:]
        source = value.node if even else self._padded(node, value, pads)
        channels, filters = value.shape[0], len(weight)
        padding = pads[:spatial] if even else (0,) * spatial
        module = CONV[spatial](channels, filters, kernel, stride, padding, dilation, groups, bias=bias is not None)
        _fill(module, weight=weight, bias=bias)
        return self._moved(value, self._call(node, module, source), (filters, *out))

    def matmul(self, node: _Node) -> _Value:
        return self._linear(node, self._weights(node, 1).T, None)

    def gemm(self, node: _Node) -> _Value:
        transposed = node.take("transB", 0), node.take("transA", 0)
        node.need(not transposed[1], "transA=1")
        scale, bias_scale = float(node.take("alpha", 1.0)), float(node.take("beta", 1.0))
        weight = self._weights(node, 1)
        node.need(weight.dim() == 2, f"weights of {tuple(weight.shape)}")
        bias = self._weights(node, 2) if len(node.inputs) > 2 and node.inputs[2] else None
        return self._linear(
            node, (weight if transposed[0] else weight.T) * scale, None if bias is None else bias * bias_scale
        )

    def _linear(self, node: _Node, weight: torch.Tensor, bias: torch.Tensor | None) -> _Value:
        """weight: (outputs, features), features in the file's order."""
        value = self._input(node)
        shape = value.order.shape
        node.need(len(shape) == 1, f"samples of {shape}; a matrix product takes (N, features)")
        node.need(
            weight.dim() == 2 and weight.shape[1] == len(value.order),
            f"weights of {tuple(weight.shape)} for {len(value.order)} features",
        )
        outputs = len(weight)
        columns = torch.empty_like(weight)
        columns[:, torch.from_numpy(value.order)] = weight
        source = value.node if len(value.shape) == 1 else self.graph.call_method("reshape", (value.node, (-1, *shape)))
        module = nn.Linear(weight.shape[1], outputs, bias=True)
        bias = torch.zeros(outputs) if bias is None else bias
        node.need(bias.numel() in (1, outputs), f"a bias of {tuple(bias.shape)} for {outputs} outputs")
        _fill(module, weight=columns, bias=bias.reshape(-1).expand(outputs))
        return self._moved(value, self._call(node, module, source), (outputs,))

    def batch_normalization(self, node: _Node) -> _Value:
        value = self._channels_first(node, self._input(node))
        node.need(not node.take("training_mode", 0), "training_mode=1; export in evaluation mode")
        node.take("momentum", None), node.take("spatial", None)
        gain, offset, mean, variance = (self._weights(node, i) for i in range(1, 5))
        channels = value.shape[0]
        node.need(all(t.shape == (channels,) for t in (gain, offset, mean, variance)), f"not {channels} channels")
        node.need(bool((variance >= 0).all()), "a variance below 0")
        module = NORM[len(value.shape) - 1](channels, eps=float(node.take("epsilon", 1e-5)))
        _fill(module, weight=gain, bias=offset, running_mean=mean, running_var=variance)
        return self._moved(value, self._call(node, module, value.node), value.shape)

    def relu(self, node: _Node) -> _Value:
        value = self._input(node)
        return value._replace(node=self._call(node, nn.ReLU(), value.node))

    def clip(self, node: _Node) -> _Value:
        value = self._input(node)
        low, high = self._bound(node, 1, "min", -math.inf), self._bound(node, 2, "max", math.inf)
        node.need(low <= 0 < high, f"a range of {low} to {high}, which excludes 0")
        module = nn.ReLU() if (low, high) == (0.0, math.inf) else nn.Hardtanh(low, high)
        return value._replace(node=self._call(node, module, value.node))

    def add(self, node: _Node) -> _Value:
        constant = [name for name in node.inputs if name in self.constants]
        if constant:
            return self._add_bias(node, node.inputs.index(constant[0]))
        first, second = self._input(node, 0), self._input(node, 1)
        same = first.shape == second.shape and np.array_equal(first.order, second.order)
        node.need(same, f"a sum of samples of {first.order.shape} and {second.order.shape} that do not match")
        return first._replace(node=self.graph.call_function(operator.add, (first.node, second.node)))

    def _add_bias(self, node: _Node, index: int) -> _Value:
        """A constant per channel becomes the bias of the layer in front of it."""
        source, bias = node.inputs[1 - index], self._weights(node, index)
        value = self._input(node, 1 - index)
        module = self.modules.get(str(value.node.target)) if value.node.op == "call_module" else None
        layer = isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear) and self.users[source] == 1
        node.need(layer, "a constant is added to something other than the output of a convolution or matrix product")
        assert isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear)
        channels, spatial = value.shape[0], len(value.shape) - 1
        wanted = (channels, *[1] * spatial)
        shape = (*[1] * (spatial + 1 - bias.dim()), *bias.shape) if bias.dim() <= spatial + 1 else tuple(bias.shape[1:])
        in_order = value.order.shape == value.shape and bias.numel() in (1, channels)
        node.need(in_order and (bias.numel() == 1 or shape == wanted), f"a constant of {tuple(bias.shape)} is added")
        with torch.no_grad():
            before = torch.zeros(channels) if module.bias is None else module.bias
            module.bias = nn.Parameter(before + bias.reshape(-1))
        return value

    def concat(self, node: _Node) -> _Value:
        values = [self._input(node, i) for i in range(len(node.inputs))]
        rank = values[0].order.ndim
        axis = int(node.take("axis", 1)) % (rank + 1) - 1
        positions = {v.shape[1:] for v in values}
        fits = axis >= 0 and len(positions) == 1 and all(v.order.ndim == rank for v in values)
        node.need(fits, f"samples of {[v.order.shape for v in values]} along axis {axis + 1}")
        offsets = np.cumsum([0, *(math.prod(v.shape) for v in values)])
        parts = [v.order + offset for v, offset in zip(values, offsets[:-1], strict=True)]
        try:
            order = np.concatenate(parts, axis)
        except ValueError:
            node.refuse(f"samples of {[v.order.shape for v in values]} along axis {axis + 1}")
        shape = (sum(v.shape[0] for v in values), *values[0].shape[1:])
        return _Value(self.graph.call_function(torch.cat, ([v.node for v in values], 1)), shape, order)

    def max_pool(self, node: _Node) -> _Value:
        node.take("storage_order", 0)
        return self._pool(node, MAX_POOL)

    def average_pool(self, node: _Node) -> _Value:
        return self._pool(node, AVG_POOL)

    def _pool(self, node: _Node, modules: dict[int, type[nn.Module]]) -> _Value:
        value, spatial = self._windowed(node)
        kernel = tuple(node.take("kernel_shape", ()))
        node.need(len(kernel) == spatial, f"kernel_shape {kernel} for samples of {value.shape}")
        node.need(not node.take("ceil_mode", 0), "ceil_mode=1")
        counted = bool(node.take("count_include_pad", 0))
        stride, pads, dilation, out = self._window(node, value.shape[1:], kernel)
        options: dict[str, Any] = {"dilation": dilation} if modules is MAX_POOL else {}
        if modules is AVG_POOL:
            node.need(counted or not any(pads), "an average that leaves out the padding")
            node.need(set(dilation) == {1}, f"dilations {dilation}")
        node.need(pads[:spatial] == pads[spatial:], f"pads {list(pads)}, which differ at the two ends")
        node.need(all(2 * p <= k for p, k in zip(pads, kernel, strict=False)), f"pads {list(pads)} for {kernel}")
        module = modules[spatial](kernel, stride, pads[:spatial], **options)
        return self._moved(value, self._call(node, module, value.node), (value.shape[0], *out))

    def global_average_pool(self, node: _Node) -> _Value:
        value, spatial = self._windowed(node)
        shape = (value.shape[0], *[1] * spatial)
        return self._moved(value, self._call(node, GLOBAL_POOL[spatial](1), value.node), shape)

    def reduce_mean(self, node: _Node) -> _Value:
        value, spatial = self._windowed(node)
        axes = self._integers(node, 1, "axes") or []
        keep = bool(node.take("keepdims", 1))
        node.need(not node.take("noop_with_empty_axes", 0), "noop_with_empty_axes=1")
        over = sorted(axis % (spatial + 2) for axis in axes)
        node.need(over == list(range(2, spatial + 2)), f"axes {axes}; only all positions of each channel")
        shape = (value.shape[0], *[1] * spatial)
        pooled = self._moved(value, self._call(node, GLOBAL_POOL[spatial](1), value.node), shape)
        return pooled if keep else pooled._replace(order=pooled.order.reshape(-1))

    def pad(self, node: _Node) -> _Value:
        value = self._channels_first(node, self._input(node))
        pads = self._integers(node, 1, "pads") or []
        axes = self._integers(node, 3, "axes")
        mode = node.take("mode", b"constant").decode()
        fill = self._bound(node, 2, "value", 0.0)
        node.need(mode == "constant" and fill == 0, f"padding with {fill if mode == 'constant' else mode}")
        rank = len(value.shape) + 1
        ends = np.zeros((2, rank), np.int64)
        where = [axis % rank for axis in axes] if axes is not None else list(range(rank))
        node.need(len(pads) == 2 * len(where), f"pads {pads} for {rank} dimensions")
        ends[:, where] = np.array(pads, np.int64).reshape(2, -1)
        node.need(not ends[:, :2].any() and rank > 2, f"pads {pads}; only positions can be padded")
        node.need(0 <= ends.min() and ends.max() <= MAX_DIM, f"pads {pads}")
        shape = (value.shape[0], *(n + int(e) for n, e in zip(value.shape[1:], ends[:, 2:].sum(0), strict=True)))
        return self._moved(value, self._padded(node, value, tuple(ends[:, 2:].ravel().tolist())), shape)

    def identity(self, node: _Node) -> _Value:
        if node.type == "Dropout":
            training = self.constants.get(node.inputs[2]) if len(node.inputs) > 2 else None
            node.need(training is None or not training.any(), "training_mode; export in evaluation mode")
            node.take("ratio", None), node.take("seed", None)
        return self._input(node)

    def softmax(self, node: _Node) -> _Value:
        value, last = self._input(node), self.model.graph.output[0].name
        after = {proto.input[0]: proto.output[0] for proto in self.model.graph.node if proto.op_type == "Identity"}
        name = node.output
        while name in after:
            name = after[name]
        node.need(name == last, "not at the end of the network")
        axis = int(node.take("axis", -1 if self.opset >= 13 else 1))
        node.need(value.order.ndim == 1 and axis in (1, -1), f"axis {axis} of samples of {value.order.shape}")
        self.notes.append(f"left out {node.type} {node.name[:MAX_NAME]!r} at the end: it changes no decision")
        return value

    def transpose(self, node: _Node) -> _Value:
        value = self._input(node)
        rank = value.order.ndim + 1
        axes = list(node.take("perm", reversed(range(rank))))
        node.need(sorted(axes) == list(range(rank)) and axes[0] == 0, f"perm {axes}; samples must stay apart")
        return value._replace(order=value.order.transpose([axis - 1 for axis in axes[1:]]))

    def reshape(self, node: _Node) -> _Value:
        value = self._input(node)
        target = self._integers(node, 1, "shape") or []
        node.need(not node.take("allowzero", 0), "allowzero=1")
        node.need(len(target) > 1, f"to {target}; samples must stay apart")
        before = (0, *value.order.shape)
        sample = [before[i] if n == 0 and i < len(before) else n for i, n in enumerate(target)][1:]
        if target[0] == -1:
            whole = -1 not in sample
        else:  # 0 copies the batch; a number is the batch of a file that was exported with one
            whole = target[0] == 0 or target[0] == self._batch()
        fits = whole and (-1 in sample or math.prod(sample) == value.order.size)
        node.need(fits, f"{before[1:]} to {target}; samples must stay apart")
        return self._viewed(node, value, sample)

    def flatten(self, node: _Node) -> _Value:
        value = self._input(node)
        axis = int(node.take("axis", 1))
        node.need(axis in (1, -value.order.ndim), f"axis {axis}; samples must stay apart")
        return self._viewed(node, value, [-1])

    def squeeze(self, node: _Node) -> _Value:
        value = self._input(node)
        axes = self._integers(node, 1, "axes")
        rank = value.order.ndim + 1
        drop = [i for i in range(1, rank) if value.order.shape[i - 1] == 1]
        drop = drop if axes is None else [axis % rank for axis in axes]
        good = all(0 < axis and value.order.shape[axis - 1] == 1 for axis in drop) and len(drop) < rank - 1
        node.need(good, f"axes {axes} of samples of {value.order.shape}")
        return self._viewed(node, value, [n for i, n in enumerate(value.order.shape, 1) if i not in drop])

    def unsqueeze(self, node: _Node) -> _Value:
        value = self._input(node)
        axes = self._integers(node, 1, "axes") or []
        rank = value.order.ndim + 1 + len(axes)
        at = sorted(axis % rank for axis in axes)
        node.need(0 not in at and len(set(at)) == len(at), f"axes {axes}; samples must stay apart")
        sample = list(value.order.shape)
        for axis in at:
            sample.insert(axis - 1, 1)
        return self._viewed(node, value, sample)

    def _batch(self) -> int:
        """The size of the batch that the file was exported for; 0 if it takes any."""
        source = next(i for i in self.model.graph.input if i.name not in {t.name for t in self.model.graph.initializer})
        return int(source.type.tensor_type.shape.dim[0].dim_value)

    def _viewed(self, node: _Node, value: _Value, sample: Sequence[int]) -> _Value:
        try:
            return value._replace(order=value.order.reshape(tuple(sample)))
        except ValueError:
            node.refuse(f"{value.order.shape} to {tuple(sample)}, which holds another number of values")


def _rising(order: NDArray[np.int64]) -> bool:
    return bool((order == np.arange(order.size)).all())


def _fill(module: nn.Module, **arrays: torch.Tensor | None) -> None:
    state = module.state_dict()
    state.update({name: array for name, array in arrays.items() if array is not None})
    module.load_state_dict(state)


#: Type in the file -> how it is read.
OPERATIONS: dict[str, Callable[[_Reader, _Node], _Value]] = {
    "Add": _Reader.add,
    "AveragePool": _Reader.average_pool,
    "BatchNormalization": _Reader.batch_normalization,
    "Clip": _Reader.clip,
    "Concat": _Reader.concat,
    "Conv": _Reader.conv,
    "Dropout": _Reader.identity,
    "Flatten": _Reader.flatten,
    "Gemm": _Reader.gemm,
    "GlobalAveragePool": _Reader.global_average_pool,
    "Identity": _Reader.identity,
    "LogSoftmax": _Reader.softmax,
    "MatMul": _Reader.matmul,
    "MaxPool": _Reader.max_pool,
    "Pad": _Reader.pad,
    "ReduceMean": _Reader.reduce_mean,
    "Relu": _Reader.relu,
    "Reshape": _Reader.reshape,
    "Softmax": _Reader.softmax,
    "Squeeze": _Reader.squeeze,
    "Transpose": _Reader.transpose,
    "Unsqueeze": _Reader.unsqueeze,
}

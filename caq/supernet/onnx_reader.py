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
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import fx, nn

from caq.errors import CaqError, DataError, MissingExtraError, UnsupportedError, WeightsError
from caq.graph import MAX_DIM, MAX_TENSOR
from caq.supernet.onnx_graph import Node, NotChannelsFirst, Reader, Size, Value, in_order
from caq.supernet.onnx_operations import OPERATIONS

#: What is computed while reading where all inputs are constants: how exporters store weights and paddings.
FOLDED = (
    *("Cast", "Concat", "ConstantOfShape", "DequantizeLinear", "Gather", "Identity"),
    *("Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"),
)


class Imported(NamedTuple):
    """A float network read from a file.

    network: takes (N, C, H, W), (N, C, T) or (N, F) float32, in evaluation mode. sample_shape: the same, channels last:
    (H, W, C), (T, C) or (F,); a sample of the data has the same number of values in the same order. notes: what was
    left out, for a person. files: the file, and those beside it that hold its weights.
    """

    network: nn.Module
    sample_shape: Size
    notes: tuple[str, ...]
    files: tuple[Path, ...]


def read_onnx(path: str | Path, sample_shape: Size) -> Imported:
    """Reads the float network at `path`, for data whose samples are (H, W, C), (T, C) or (F,) `sample_shape`.

    A last Softmax is left out: it changes no decision. Raises WeightsError on a file that is not ONNX or whose weights
    are missing, NaN or infinite, UnsupportedError naming operation and node, DataError if the samples do not fit,
    MissingExtraError without onnx.
    """
    model, files = _load(Path(path))
    given = _input_shape(model.graph, str(path))
    problem: UnsupportedError | None = None
    for shape, order in _readings(given, sample_shape, str(path)):
        try:
            reader = Reader(model, str(path))
            network = _build(reader, shape, order)
        except NotChannelsFirst as error:
            problem = problem or error
            continue
        return Imported(network.eval(), (*shape[1:], shape[0]), tuple(reader.notes), files)
    assert problem is not None
    raise problem


def _load(path: Path) -> tuple[Any, tuple[Path, ...]]:
    """The checked model, its weights loaded, and the files it came from."""
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError:
        raise MissingExtraError("onnx", "onnx") from None
    try:
        model = onnx.load(path, format="protobuf", load_external_data=False)
        tensors = [t for t in model.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
        names = {entry.value for tensor in tensors for entry in tensor.external_data if entry.key == "location"}
        # onnx refuses links, and files that are not in the model's folder.
        onnx.load_external_data_for_model(model, str(path.parent))
        onnx.checker.check_model(model)
    except OSError as error:
        raise WeightsError(f"{path}: {error.strerror or error}") from error
    except (DecodeError, onnx.checker.ValidationError, RuntimeError, ValueError) as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0]  # some damage has no message
        raise WeightsError(f"{path}: not a valid ONNX file: {why}") from error
    return model, (path, *(path.parent / name for name in sorted(names)))


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


def _build(reader: Reader, shape: Size, order: NDArray[np.int64]) -> nn.Module:
    """The module whose input has `shape`, channels first, in the `order` of the file."""
    graph = reader.model.graph
    for tensor in graph.initializer:
        reader.constants[tensor.name] = reader.stored(tensor)
    result = graph.output[0].name
    for name in [name for proto in graph.node for name in proto.input] + [result]:
        reader.users[name] = reader.users.get(name, 0) + 1
    source = next(i.name for i in graph.input if i.name not in reader.constants)
    reader.values[source] = Value(reader.graph.placeholder("x"), shape, order)
    for index, proto in enumerate(graph.node):
        node = Node(proto, index)
        inputs = [name for name in node.inputs if name]
        if node.type == "Constant":
            reader.constants[node.output] = reader.constant(node)
        elif node.type in FOLDED and all(name in reader.constants for name in inputs):
            reader.constants[node.output] = _folded(reader, node, proto)
        else:
            reader.values[node.output] = _operation(reader, node)
    if result not in reader.values:
        raise UnsupportedError(f"{reader.path}: the output {result!r} does not depend on the input")
    last = reader.values[result]
    if not in_order(last.order) and not in_order(np.moveaxis(last.order, -1, 0)):
        raise UnsupportedError(f"{reader.path}: the output {result!r} has neither its channels first nor last")
    output = last.node
    if in_order(last.order) and last.order.shape != last.shape:
        output = reader.graph.call_method("reshape", (last.node, (-1, *last.order.shape)))
    reader.graph.output(output)
    return fx.GraphModule(reader.modules, reader.graph)


def _operation(reader: Reader, node: Node) -> Value:
    handler = OPERATIONS.get(node.type)
    if handler is None:
        node.refuse(
            f"has no integer form here. Supported: {', '.join(OPERATIONS)}. Leave preprocessing out of the file "
            "(--mean, --std); onnxsim folds computed shapes"
        )
    for name in filter(None, node.inputs):
        node.need(name in reader.values or name in reader.constants, f"reads {name!r}, which nothing makes")
    node.need(not any(reader.users.get(name) for name in node.more_outputs), "more than one output is used")
    try:
        value = handler(reader, node)
    except CaqError:
        raise
    except (IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:  # inputs or attributes of another kind
        node.refuse(f"cannot be read: {error}")
    node.need(not node.attributes, f"the attributes {sorted(node.attributes)} are not supported")
    return value


def _folded(reader: Reader, node: Node, proto: Any) -> NDArray[Any]:
    from onnx.reference import ReferenceEvaluator

    feeds = {name: reader.constants[name] for name in node.inputs if name}
    size = sum(array.size for array in feeds.values())
    if node.type == "ConstantOfShape":
        size = math.prod(int(n) for array in feeds.values() for n in array.ravel())
    node.need(size <= MAX_TENSOR, "is too large")
    try:
        results: Any = ReferenceEvaluator(proto, opsets={"": reader.opset}).run(None, feeds)
        return np.asarray(results[0])
    except Exception as error:  # whatever numpy makes of a malformed node
        node.refuse(f"cannot be computed from its constants: {error}")

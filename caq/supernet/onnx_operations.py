"""The operations of ONNX that have an integer form here: each function reads a node and gives the value it makes."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from caq.graph import MAX_DIM
from caq.supernet.onnx_graph import MAX_NAME, Node, Reader, Value, fill

CONV: dict[int, type[nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d}
NORM: dict[int, type[nn.Module]] = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d}
MAX_POOL: dict[int, type[nn.Module]] = {1: nn.MaxPool1d, 2: nn.MaxPool2d}
AVG_POOL: dict[int, type[nn.Module]] = {1: nn.AvgPool1d, 2: nn.AvgPool2d}
GLOBAL_POOL: dict[int, type[nn.Module]] = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d}


def conv(reader: Reader, node: Node) -> Value:
    value, spatial = reader.windowed(node)
    weight = reader.weights(node, 1)
    groups = int(node.take("group", 1))
    node.need(weight.dim() == spatial + 2, f"weights of {tuple(weight.shape)} for samples of {value.shape}")
    kernel = tuple(weight.shape[2:])
    node.need(tuple(node.take("kernel_shape", kernel)) == kernel, "kernel_shape is not that of the weights")
    node.need(
        groups > 0 and weight.shape[1] * groups == value.shape[0] and weight.shape[0] % groups == 0,
        f"weights of {tuple(weight.shape)} in {groups} groups for {value.shape[0]} channels",
    )
    bias = reader.weights(node, 2) if len(node.inputs) > 2 and node.inputs[2] else None
    node.need(bias is None or bias.shape == weight.shape[:1], "a bias of another size than its channels")
    stride, pads, dilation, out = reader.window(node, value.shape[1:], kernel)
    even = pads[:spatial] == pads[spatial:]
    source = value.node if even else reader.padded(node, value, pads)
    channels, filters = value.shape[0], len(weight)
    padding = pads[:spatial] if even else (0,) * spatial
    module = CONV[spatial](channels, filters, kernel, stride, padding, dilation, groups, bias=bias is not None)
    fill(module, weight=weight, bias=bias)
    reader.layers[node.output] = module
    return reader.made(node, reader.call(node, module, source), (filters, *out))


def matmul(reader: Reader, node: Node) -> Value:
    return _linear(reader, node, reader.weights(node, 1).T, None)


def gemm(reader: Reader, node: Node) -> Value:
    transposed = node.take("transB", 0), node.take("transA", 0)
    node.need(not transposed[1], "transA=1")
    scale, bias_scale = float(node.take("alpha", 1.0)), float(node.take("beta", 1.0))
    weight = reader.weights(node, 1)
    node.need(weight.dim() == 2, f"weights of {tuple(weight.shape)}")
    bias = reader.weights(node, 2) if len(node.inputs) > 2 and node.inputs[2] else None
    return _linear(
        reader, node, (weight if transposed[0] else weight.T) * scale, None if bias is None else bias * bias_scale
    )


def _linear(reader: Reader, node: Node, weight: torch.Tensor, bias: torch.Tensor | None) -> Value:
    """weight: (outputs, features), features in the file's order."""
    value = reader.input(node)
    shape = value.order.shape
    node.need(len(shape) == 1, f"samples of {shape}; a matrix product takes (N, features)")
    node.need(
        weight.dim() == 2 and weight.shape[1] == len(value.order),
        f"weights of {tuple(weight.shape)} for {len(value.order)} features",
    )
    outputs = len(weight)
    columns = torch.empty_like(weight)
    columns[:, torch.from_numpy(value.order)] = weight
    source = value.node if len(value.shape) == 1 else reader.graph.call_method("reshape", (value.node, (-1, *shape)))
    module = nn.Linear(weight.shape[1], outputs, bias=True)
    bias = torch.zeros(outputs) if bias is None else bias
    node.need(bias.numel() in (1, outputs), f"a bias of {tuple(bias.shape)} for {outputs} outputs")
    fill(module, weight=columns, bias=bias.reshape(-1).expand(outputs))
    reader.layers[node.output] = module
    return reader.made(node, reader.call(node, module, source), (outputs,))


def batch_normalization(reader: Reader, node: Node) -> Value:
    value = reader.channels_first(node, reader.input(node))
    node.need(not node.take("training_mode", 0), "training_mode=1; export in evaluation mode")
    node.take("momentum", None), node.take("spatial", None)
    gain, offset, mean, variance = (reader.weights(node, i) for i in range(1, 5))
    channels = value.shape[0]
    node.need(all(t.shape == (channels,) for t in (gain, offset, mean, variance)), f"not {channels} channels")
    node.need(bool((variance >= 0).all()), "a variance below 0")
    module = NORM[len(value.shape) - 1](channels, eps=float(node.take("epsilon", 1e-5)))
    fill(module, weight=gain, bias=offset, running_mean=mean, running_var=variance)
    return reader.made(node, reader.call(node, module, value.node), value.shape)


def relu(reader: Reader, node: Node) -> Value:
    value = reader.input(node)
    return value._replace(node=reader.call(node, nn.ReLU(), value.node))


def clip(reader: Reader, node: Node) -> Value:
    value = reader.input(node)
    low, high = reader.bound(node, 1, "min", -math.inf), reader.bound(node, 2, "max", math.inf)
    node.need(low <= 0 < high, f"a range of {low} to {high}, which excludes 0")
    module = nn.ReLU() if (low, high) == (0.0, math.inf) else nn.Hardtanh(low, high)
    return value._replace(node=reader.call(node, module, value.node))


def add(reader: Reader, node: Node) -> Value:
    constant = [name for name in node.inputs if name in reader.constants]
    if constant:
        return _add_bias(reader, node, node.inputs.index(constant[0]))
    first, second = reader.input(node, 0), reader.input(node, 1)
    same = first.shape == second.shape and np.array_equal(first.order, second.order)
    node.need(same, f"a sum of samples of {first.order.shape} and {second.order.shape} that do not match")
    made = reader.graph.create_node("call_function", operator.add, (first.node, second.node), name=node.label)
    return first._replace(node=made)


def _add_bias(reader: Reader, node: Node, index: int) -> Value:
    """A constant per channel becomes the bias of the layer in front of it."""
    source, bias = node.inputs[1 - index], reader.weights(node, index)
    value, module = reader.input(node, 1 - index), reader.layers.get(source)
    if module is None or reader.users[source] > 1:
        node.refuse("adds a constant to something other than a convolution or matrix product that nothing else reads")
    assert isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear)
    # Broadcast as ONNX does, with the batch in front: every channel has one number at all positions.
    shape = (1, *value.shape)
    per_channel = (1, value.shape[0], *[1] * (len(value.shape) - 1))
    aligned = (*[1] * (len(shape) - bias.dim()), *bias.shape)
    node.need(aligned in (per_channel, (1,) * len(shape)), f"adds a constant of {tuple(bias.shape)} to {value.shape}")
    with torch.no_grad():
        before = torch.zeros(value.shape[0]) if module.bias is None else module.bias
        module.bias = nn.Parameter(before + bias.reshape(-1))
    reader.layers[node.output] = module
    return value


def concat(reader: Reader, node: Node) -> Value:
    values = [reader.input(node, i) for i in range(len(node.inputs))]
    rank = values[0].order.ndim
    axis = node.axis(node.take("axis", 1), rank + 1) - 1
    positions = {v.shape[1:] for v in values}
    fits = axis >= 0 and len(positions) == 1 and all(v.order.ndim == rank for v in values)
    node.need(fits, f"samples of {[v.order.shape for v in values]} along axis {axis + 1}")
    shape = (sum(v.shape[0] for v in values), *values[0].shape[1:])
    reader.check_size(node, shape)
    offsets = np.cumsum([0, *(math.prod(v.shape) for v in values)])
    parts = [v.order + offset for v, offset in zip(values, offsets[:-1], strict=True)]
    try:
        order = np.concatenate(parts, axis)
    except ValueError:
        node.refuse(f"samples of {[v.order.shape for v in values]} along axis {axis + 1}")
    made = reader.graph.create_node("call_function", torch.cat, ([v.node for v in values], 1), name=node.label)
    return Value(made, shape, order)


def max_pool(reader: Reader, node: Node) -> Value:
    node.take("storage_order", 0)
    return _pool(reader, node, MAX_POOL)


def average_pool(reader: Reader, node: Node) -> Value:
    return _pool(reader, node, AVG_POOL)


def _pool(reader: Reader, node: Node, modules: dict[int, type[nn.Module]]) -> Value:
    value, spatial = reader.windowed(node)
    kernel = tuple(node.take("kernel_shape", ()))
    node.need(len(kernel) == spatial, f"kernel_shape {kernel} for samples of {value.shape}")
    node.need(not node.take("ceil_mode", 0), "ceil_mode=1")
    counted = bool(node.take("count_include_pad", 0))
    stride, pads, dilation, out = reader.window(node, value.shape[1:], kernel)
    options: dict[str, Any] = {"dilation": dilation} if modules is MAX_POOL else {}
    if modules is AVG_POOL:
        node.need(counted or not any(pads), "an average that leaves out the padding")
        node.need(set(dilation) == {1}, f"dilations {dilation}")
    node.need(pads[:spatial] == pads[spatial:], f"pads {list(pads)}, which differ at the two ends")
    node.need(all(2 * p <= k for p, k in zip(pads, kernel, strict=False)), f"pads {list(pads)} for {kernel}")
    module = modules[spatial](kernel, stride, pads[:spatial], **options)
    return reader.made(node, reader.call(node, module, value.node), (value.shape[0], *out))


def global_average_pool(reader: Reader, node: Node) -> Value:
    value, spatial = reader.windowed(node)
    shape = (value.shape[0], *[1] * spatial)
    return reader.made(node, reader.call(node, GLOBAL_POOL[spatial](1), value.node), shape)


def reduce_mean(reader: Reader, node: Node) -> Value:
    value, spatial = reader.windowed(node)
    axes = reader.integers(node, 1, "axes") or []
    keep = bool(node.take("keepdims", 1))
    node.need(not node.take("noop_with_empty_axes", 0), "noop_with_empty_axes=1")
    over = sorted(node.axis(axis, spatial + 2) for axis in axes)
    node.need(over == list(range(2, spatial + 2)), f"axes {axes}; only all positions of each channel")
    shape = (value.shape[0], *[1] * spatial)
    pooled = reader.made(node, reader.call(node, GLOBAL_POOL[spatial](1), value.node), shape)
    return pooled if keep else pooled._replace(order=pooled.order.reshape(-1))


def pad(reader: Reader, node: Node) -> Value:
    value = reader.channels_first(node, reader.input(node))
    pads = reader.integers(node, 1, "pads") or []
    axes = reader.integers(node, 3, "axes")
    mode = node.take("mode", b"constant").decode()
    fill = reader.bound(node, 2, "value", 0.0)
    node.need(mode == "constant" and fill == 0, f"padding with {fill if mode == 'constant' else mode}")
    rank = len(value.shape) + 1
    ends = np.zeros((2, rank), np.int64)
    where = [node.axis(axis, rank) for axis in axes] if axes is not None else list(range(rank))
    node.need(len(pads) == 2 * len(where), f"pads {pads} for {rank} dimensions")
    ends[:, where] = np.array(pads, np.int64).reshape(2, -1)
    node.need(not ends[:, :2].any() and rank > 2, f"pads {pads}; only positions can be padded")
    node.need(ends.min() >= 0 and ends.max() <= MAX_DIM, f"pads {pads}")
    shape = (value.shape[0], *(n + int(e) for n, e in zip(value.shape[1:], ends[:, 2:].sum(0), strict=True)))
    return reader.made(node, reader.padded(node, value, tuple(ends[:, 2:].ravel().tolist())), shape)


def identity(reader: Reader, node: Node) -> Value:
    if node.type == "Dropout":
        training = reader.constants.get(node.inputs[2]) if len(node.inputs) > 2 else None
        node.need(training is None or not training.any(), "training_mode; export in evaluation mode")
        node.take("ratio", None), node.take("seed", None)
    return reader.input(node)


def softmax(reader: Reader, node: Node) -> Value:
    value, last = reader.input(node), reader.model.graph.output[0].name
    after = {proto.input[0]: proto.output[0] for proto in reader.model.graph.node if proto.op_type == "Identity"}
    name = node.output
    while name in after:
        name = after[name]
    node.need(name == last, "not at the end of the network")
    axis = int(node.take("axis", -1 if reader.opset >= 13 else 1))
    node.need(value.order.ndim == 1 and axis in (1, -1), f"axis {axis} of samples of {value.order.shape}")
    reader.notes.append(f"left out {node.type} {node.name[:MAX_NAME]!r} at the end: it changes no decision")
    return value


def transpose(reader: Reader, node: Node) -> Value:
    value = reader.input(node)
    rank = value.order.ndim + 1
    axes = list(node.take("perm", reversed(range(rank))))
    node.need(sorted(axes) == list(range(rank)) and axes[0] == 0, f"perm {axes}; samples must stay apart")
    return value._replace(order=value.order.transpose([axis - 1 for axis in axes[1:]]))


def reshape(reader: Reader, node: Node) -> Value:
    value = reader.input(node)
    target = reader.integers(node, 1, "shape") or []
    node.need(not node.take("allowzero", 0) or 0 not in target, "an empty tensor")
    node.need(len(target) > 1, f"to {target}; samples must stay apart")
    before = (0, *value.order.shape)
    sample = [before[i] if n == 0 and i < len(before) else n for i, n in enumerate(target)][1:]
    # 0 copies the batch; a number is the batch of a file that was exported with one.
    whole = -1 not in sample if target[0] == -1 else target[0] in (0, _batch(reader))
    fits = whole and (-1 in sample or math.prod(sample) == value.order.size)
    node.need(fits, f"{before[1:]} to {target}; samples must stay apart")
    return _viewed(reader, node, value, sample)


def flatten(reader: Reader, node: Node) -> Value:
    value = reader.input(node)
    axis = int(node.take("axis", 1))
    node.need(axis in (1, -value.order.ndim), f"axis {axis}; samples must stay apart")
    return _viewed(reader, node, value, [-1])


def squeeze(reader: Reader, node: Node) -> Value:
    value = reader.input(node)
    axes = reader.integers(node, 1, "axes")
    rank = value.order.ndim + 1
    drop = [i for i in range(1, rank) if value.order.shape[i - 1] == 1]
    drop = drop if axes is None else [node.axis(axis, rank) for axis in axes]
    good = all(axis > 0 and value.order.shape[axis - 1] == 1 for axis in drop) and len(drop) < rank - 1
    node.need(good, f"axes {axes} of samples of {value.order.shape}")
    return _viewed(reader, node, value, [n for i, n in enumerate(value.order.shape, 1) if i not in drop])


def unsqueeze(reader: Reader, node: Node) -> Value:
    value = reader.input(node)
    axes = reader.integers(node, 1, "axes") or []
    rank = value.order.ndim + 1 + len(axes)
    at = sorted(node.axis(axis, rank) for axis in axes)
    node.need(0 not in at and len(set(at)) == len(at), f"axes {axes}; samples must stay apart")
    sample = list(value.order.shape)
    for axis in at:
        sample.insert(axis - 1, 1)
    return _viewed(reader, node, value, sample)


def _batch(reader: Reader) -> int:
    """The size of the batch that the file was exported for; 0 if it takes any."""
    source = next(i for i in reader.model.graph.input if i.name not in {t.name for t in reader.model.graph.initializer})
    return int(source.type.tensor_type.shape.dim[0].dim_value)


def _viewed(reader: Reader, node: Node, value: Value, sample: Sequence[int]) -> Value:
    try:
        return value._replace(order=value.order.reshape(tuple(sample)))
    except ValueError:
        node.refuse(f"{value.order.shape} to {tuple(sample)}, which holds another number of values")


#: Type in the file -> how it is read.
OPERATIONS: dict[str, Callable[[Reader, Node], Value]] = {
    "Add": add,
    "AveragePool": average_pool,
    "BatchNormalization": batch_normalization,
    "Clip": clip,
    "Concat": concat,
    "Conv": conv,
    "Dropout": identity,
    "Flatten": flatten,
    "Gemm": gemm,
    "GlobalAveragePool": global_average_pool,
    "Identity": identity,
    "LogSoftmax": softmax,
    "MatMul": matmul,
    "MaxPool": max_pool,
    "Pad": pad,
    "ReduceMean": reduce_mean,
    "Relu": relu,
    "Reshape": reshape,
    "Softmax": softmax,
    "Squeeze": squeeze,
    "Transpose": transpose,
    "Unsqueeze": unsqueeze,
}

"""Turns a user's nn.Module into a switchable supernet, without rewriting it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from caq.errors import AssignmentError, UnsupportedError
from caq.graph import Shape
from caq.quant import check_widths
from caq.supernet.capture import Item, capture
from caq.supernet.layers import (
    Activation,
    Add,
    AvgPool,
    Clip,
    Concat,
    MaxPool,
    Node,
    Reshape,
    SwitchableLayer,
    Window,
)
from caq.supernet.network import Supernet

DEFAULT_WIDTHS = (2, 3, 4, 5, 6, 8)


def convert(model: nn.Module, example: Tensor, widths: Sequence[int] = DEFAULT_WIDTHS) -> Supernet:
    """Returns a supernet that starts from `model`'s weights; `model` itself is not changed.

    The model is read in evaluation mode, and every module of it is left in the mode that it is in. example:
    (N, C, H, W), (N, C, T) or (N, F) float32, two samples or more, standardised as the model will see its input.
    widths: weight widths to serve, 2..8. Quantizer steps are fitted to `example`, so a batch of real data is better
    than noise. Raises UnsupportedError naming operation and module, AssignmentError on bad widths, DataError on a bad
    example.
    """
    try:
        served = check_widths(tuple(widths))
    except TypeError:
        raise AssignmentError(f"widths {widths!r}: give a sequence of bit widths, such as (4, 8)") from None
    items = _fuse(capture(model, example))
    supernet = Supernet(*build_nodes(items, served), _hwc(tuple(example.shape[1:])), served)
    supernet.fit_steps(supernet.to_internal(example))
    return supernet


def _fuse(items: list[Item]) -> list[Item]:
    """Splits norms and activations that follow a concat of convolutions over its inputs, so that they can be folded."""
    users: dict[int, list[int]] = {}
    for i, item in enumerate(items):
        for t in item.inputs:
            users.setdefault(t, []).append(i)

    insertions: dict[int, list[Item]] = {}
    removed: set[int] = set()
    for i, item in enumerate(items):
        if item.kind != "concat" or len(set(item.inputs)) != len(item.inputs):
            continue
        if not all(t >= 0 and items[t].kind == "conv" and users[t] == [i] for t in item.inputs):
            continue
        tail = i
        while len(users.get(tail, [])) == 1 and items[users[tail][0]].kind in ("norm", "act"):
            tail = users[tail][0]
            start = 0
            for t in item.inputs:
                size = items[t].shape[0]
                span = slice(start, start + size) if items[tail].kind == "norm" else None
                moved = Item(items[tail].kind, items[tail].name, [t], items[t].shape, items[tail].module)
                moved.clip, moved.channels = items[tail].clip, span
                insertions.setdefault(t, []).append(moved)
                start += size
            removed.add(tail)

    result: list[Item] = []
    where: dict[int, int] = {-1: -1}
    for i, item in enumerate(items):
        if i in removed:
            where[i] = where[item.inputs[0]]
            continue
        item.inputs = [where[t] for t in item.inputs]
        result.append(item)
        where[i] = len(result) - 1
        for extra in insertions.get(i, []):
            extra.inputs = [where[i]]
            result.append(extra)
            where[i] = len(result) - 1
    return result


def build_nodes(items: list[Item], widths: tuple[int, ...]) -> tuple[list[Node], list[tuple[int, ...]]]:
    """One node per operation that is left after folding, and the tensors that each reads."""
    users: dict[int, list[int]] = {}
    for i, item in enumerate(items):
        for t in item.inputs:
            users.setdefault(t, []).append(i)

    nodes: list[Node] = []
    sources: list[tuple[int, ...]] = []
    tensor = {-1: 0}  # item -> tensor of the graph
    absorbed: set[int] = set()
    as_given = {0}  # tensors that hold the input's own codes
    signed = {0: True}  # tensor -> whether its codes are signed

    def follow(i: int, kind: str) -> int | None:
        """The item of `kind` that alone reads item i, which is then absorbed."""
        after = users.get(i, [])
        if len(after) == 1 and items[after[0]].kind == kind:
            absorbed.add(after[0])
            return after[0]
        return None

    for i, item in enumerate(items):
        if i in absorbed:
            continue
        covered = [i]
        if item.kind == "conv" and (norm := follow(i, "norm")) is not None:
            covered.append(norm)
        clip = item.clip
        if item.kind in ("conv", "norm", "add", "concat") and (act := follow(covered[-1], "act")) is not None:
            clip = items[act].clip
            covered.append(act)
        ts = tuple(tensor[t] for t in item.inputs)
        if clip.signed and item.kind in ("add", "concat", "avg_pool") and not any(signed[t] for t in ts):
            clip = Clip(0.0, clip.high)
        node = _node(item, [items[k] for k in covered], clip, widths, signed[ts[0]], ts[0] in as_given)
        if isinstance(node, Reshape) and item.inputs[0] >= 0 and node.shape == _hwc(items[item.inputs[0]].shape):
            tensor[i] = ts[0]
            continue
        nodes.append(node)
        sources.append(ts)
        tensor |= dict.fromkeys(covered, len(nodes))
        if node.clip is None and ts[0] in as_given:
            as_given.add(len(nodes))
        signed[len(nodes)] = node.clip.signed if node.clip is not None else signed[ts[0]]
    if not any(isinstance(node, SwitchableLayer) for node in nodes):
        raise UnsupportedError("the model has no convolution and no linear layer: nothing to quantize")
    # 16-bit codes pass through a final reshape unchanged.
    final = nodes[sources[-1][0] - 1] if isinstance(nodes[-1], Reshape) else nodes[-1]
    final.output = None
    return nodes, sources


def _node(
    item: Item, covered: list[Item], clip: Clip, widths: tuple[int, ...], signed: bool, reads_input: bool
) -> Node:
    if item.kind in ("conv", "norm"):
        norm = next((other for other in covered if other.kind == "norm"), None)
        return _layer(item, norm, widths, signed, reads_input, clip)
    if item.kind == "add":
        return Add(item.name, clip)
    if item.kind == "concat":
        return Concat(item.name, clip)
    if item.kind == "act":
        return Activation(item.name, clip)
    if item.kind == "reshape":
        return Reshape(item.name, _hwc(item.shape))
    assert item.window is not None
    return MaxPool(item.name, item.window) if item.kind == "max_pool" else AvgPool(item.name, item.window, clip)


def _layer(
    item: Item, norm: Item | None, widths: tuple[int, ...], signed: bool, reads_input: bool, clip: Clip
) -> SwitchableLayer:
    module = item.module
    bias: Tensor | None = None
    if item.kind == "norm":
        # A norm that nothing can absorb becomes a depthwise 1 x 1 convolution with weights of one.
        channels = item.shape[0]
        weight, window, groups = torch.ones(channels, 1, 1, 1), Window((1, 1)), channels
    elif isinstance(module, nn.Linear):
        weight, window, groups = module.weight.detach()[:, :, None, None], Window((1, 1)), 1
        bias = module.bias
    else:
        assert isinstance(module, nn.Conv1d | nn.Conv2d) and item.window is not None
        weight = module.weight.detach()
        weight = weight[:, :, None, :] if weight.dim() == 3 else weight
        window, groups, bias = item.window, module.groups, module.bias
    bias = bias.detach() if bias is not None else None
    if norm is None and bias is None:
        bias = torch.zeros(len(weight))
    if norm is not None and bias is not None:
        # Batch norm subtracts whatever the bias adds; its mean takes the bias along.
        shift, bias = bias, None
    else:
        shift = torch.zeros(len(weight))
    layer = SwitchableLayer(
        item.name, weight, bias, window, groups, widths, signed, reads_input, clip, norm is not None
    )
    if norm is not None:
        source = norm.module
        assert isinstance(source, nn.BatchNorm1d | nn.BatchNorm2d) and layer.norm is not None
        span = norm.channels or slice(None)
        with torch.no_grad():
            if source.affine:
                layer.norm.gamma.copy_(source.weight[span].expand_as(layer.norm.gamma))
                layer.norm.beta.copy_(source.bias[span].expand_as(layer.norm.beta))
            assert source.running_mean is not None and source.running_var is not None
            layer.norm.mean.copy_((source.running_mean[span] - shift).expand_as(layer.norm.mean))
            layer.norm.var.copy_(source.running_var[span].expand_as(layer.norm.var))
        layer.norm.eps = source.eps
    return layer


def _hwc(shape: tuple[int, ...]) -> Shape:
    """A sample's shape in torch, (C, H, W), (C, T) or (F,), as the graph writes it."""
    if not 1 <= len(shape) <= 3:
        raise UnsupportedError(f"a sample of shape {shape}: (C, H, W), (C, T) and (F,) are supported")
    if len(shape) == 3:
        return shape[1], shape[2], shape[0]
    return (1, shape[1], shape[0]) if len(shape) == 2 else (1, 1, shape[0])

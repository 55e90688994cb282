"""Turns a user's nn.Module into a switchable supernet, without rewriting it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from caq.errors import UnsupportedError
from caq.graph import Assignment, Graph, Op, Shape
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

DEFAULT_WIDTHS = (2, 3, 4, 5, 6, 8)


def convert(model: nn.Module, example: Tensor, widths: Sequence[int] = DEFAULT_WIDTHS) -> Supernet:
    """Returns a supernet that starts from `model`'s weights; `model` itself is not changed.

    example: (N, C, H, W), (N, C, T) or (N, F) float, standardised as the model will see its input. widths: weight
    widths to serve, 2..8. Quantizer steps and batch-norm statistics are fitted to `example`, so a batch of real data
    is better than noise. Raises UnsupportedError naming operation and module, AssignmentError on bad widths.
    """
    served = check_widths(tuple(widths))
    items = _fuse(capture(model, example))
    supernet = Supernet(*_build(items, served), _hwc(tuple(example.shape[1:])), served)
    supernet.fit_steps(supernet.to_internal(example))
    return supernet


class Supernet(nn.Module):
    """One set of weights that is a model at every assignment; forward computes the assignment last set.

    nodes and sources are the operations and the tensors that each reads, as in caq.graph: 0 is the input.
    """

    def __init__(
        self, nodes: Iterable[Node], sources: list[tuple[int, ...]], input_shape: Shape, widths: tuple[int, ...]
    ) -> None:
        super().__init__()
        self.nodes = nn.ModuleList(nodes)
        self.sources = sources
        self.input_shape = input_shape
        self.widths = widths
        # Codes of 16 bits that leave room for outputs four times as large as those of `fit_steps`.
        self.register_buffer("output_step", torch.tensor(2.0**-10))
        self.output_step: Tensor
        self._last_use = {t: i for i, ts in enumerate(sources) for t in ts}
        self.graph = Graph(input_shape, tuple(self.op(i) for i in range(len(sources))), widths)
        self.set_assignment(self.graph.uniform(widths[-1]))

    @property
    def layers(self) -> list[SwitchableLayer]:
        """What has widths, in the order of execution: `graph.layers[i]` describes `layers[i]`."""
        return [node for node in self.nodes if isinstance(node, SwitchableLayer)]

    def set_assignment(self, assignment: Assignment, row: int | None = None) -> None:
        """Chooses what forward computes; row: the statistics of an operating point. Raises AssignmentError."""
        self.graph.check_assignment(assignment)
        for layer, pair in zip(self.layers, assignment, strict=True):
            layer.widths, layer.row, layer.mix = pair, row, None

    def to_internal(self, x: Tensor) -> Tensor:
        """(N, C, H, W), (N, C, T) or (N, F) as (N, C, H, W)."""
        h, w, c = self.input_shape
        return x.reshape(len(x), c, h, w).contiguous(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        """Real outputs (N, classes) of inputs (N, C, H, W), (N, C, T) or (N, F), which should be codes * step."""
        live = {0: self.to_internal(x)}
        for i, (node, ts) in enumerate(zip(self.nodes, self.sources, strict=True)):
            live[i + 1] = node(*(live[t] for t in ts))
            for t in set(ts):
                if self._last_use[t] == i:
                    del live[t]
        return live[len(self.sources)].flatten(1)

    def set_rounding(self, rounding: bool) -> None:
        """Whether forward rounds what passes between layers to 8 bits, as the integer graph does."""
        for node in self.nodes:
            node.rounding = rounding

    @torch.no_grad()
    def fit_steps(self, x: Tensor, narrow: bool = True) -> None:
        """Fits the steps to what flows on a batch at the widest assignment, with the batch's own statistics.

        narrow: also those below 8 bits, which training learns.
        """
        training = self.training
        norms = [layer.norm for layer in self.layers if layer.norm is not None]
        saved = [norm.momentum for norm in norms]
        for norm in norms:
            norm.momentum = 0.0
        self.set_rounding(True)
        for node in self.nodes:
            node.fitting, node.fitting_narrow = True, narrow
        self.train()
        self.set_assignment(self.graph.uniform(self.widths[-1]))
        self.output_step.copy_((self.forward(x).abs().max() * 4 / 2**15).clamp(min=2.0**-30))
        for node in self.nodes:
            node.fitting = False
        for norm, momentum in zip(norms, saved, strict=True):
            norm.momentum = momentum
        self.train(training)

    @property
    def code_range(self) -> tuple[int, int]:
        """The network's output has 16 bits."""
        return -(2**15), 2**15 - 1

    def step(self, tensor: int) -> float:
        """The real value of one code of a tensor but the input, as the float32 number that lowering stores."""
        node, ts = self.nodes[tensor - 1], self.sources[tensor - 1]
        assert isinstance(node, Node)
        if node.clip is None:
            return self.step(ts[0])
        return float(self.output_step) if node.output is None else node.output.step

    def op(self, i: int) -> Op:
        """Operation i as the integer graph writes it."""
        node, inputs = self.nodes[i], self.sources[i]
        assert isinstance(node, Node)
        fields: dict[str, object] = {}
        if isinstance(node, SwitchableLayer):
            fields = {"channels": len(node.weight), "groups": node.groups}
        window = getattr(node, "window", None)
        if window is not None:
            fields |= {"kernel": window.kernel, "stride": window.stride, "padding": window.padding}
            fields |= {"dilation": window.dilation}
        if isinstance(node, Reshape):
            fields = {"shape": node.shape}
        elif node.clip is not None:
            low, high = node.clip.codes(*(node.output or self).code_range, self.step(i + 1))
            fields |= {"low": low, "high": high}
        return Op(node.kind, inputs, node.name, **fields)  # type: ignore[arg-type]


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


def _build(items: list[Item], widths: tuple[int, ...]) -> tuple[list[Node], list[tuple[int, ...]]]:
    users: dict[int, list[int]] = {}
    for i, item in enumerate(items):
        for t in item.inputs:
            users.setdefault(t, []).append(i)

    nodes: list[Node] = []
    sources: list[tuple[int, ...]] = []
    tensor = {-1: 0}  # item -> tensor of the graph
    absorbed: set[int] = set()
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
        node = _node(item, [items[k] for k in covered], clip, ts, widths, signed[ts[0]])
        if isinstance(node, Reshape) and item.inputs[0] >= 0 and node.shape == _hwc(items[item.inputs[0]].shape):
            tensor[i] = ts[0]
            continue
        nodes.append(node)
        sources.append(ts)
        tensor |= dict.fromkeys(covered, len(nodes))
        signed[len(nodes)] = node.clip.signed if node.clip is not None else signed[ts[0]]
    if not any(isinstance(node, SwitchableLayer) for node in nodes):
        raise UnsupportedError("the model has no convolution and no linear layer: nothing to quantize")
    # 16-bit codes pass through a final reshape unchanged.
    final = nodes[sources[-1][0] - 1] if isinstance(nodes[-1], Reshape) else nodes[-1]
    final.output = None
    return nodes, sources


def _node(
    item: Item, covered: list[Item], clip: Clip, ts: tuple[int, ...], widths: tuple[int, ...], signed: bool
) -> Node:
    if item.kind in ("conv", "norm"):
        norm = next((other for other in covered if other.kind == "norm"), None)
        return _layer(item, norm, widths, signed, ts[0] == 0, clip)
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
    bias = None
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

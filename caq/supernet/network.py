"""The supernet: one set of weights that is a model at every assignment of widths."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from caq.graph import Assignment, Graph, Op, Shape
from caq.supernet.layers import Node, Reshape, SwitchableLayer


def channels_last(x: Tensor) -> Tensor:
    """A copy of (N, C, H, W) with its channels last in memory, so that whatever follows has them there too.

    contiguous(memory_format=channels_last) would leave a single channel as it is, and all that follows channels first.
    """
    return torch.empty(x.shape, dtype=x.dtype, memory_format=torch.channels_last).copy_(x)


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
    def operations(self) -> list[Node]:
        """The nodes, in the order of execution."""
        return [node for node in self.nodes if isinstance(node, Node)]

    @property
    def layers(self) -> list[SwitchableLayer]:
        """What has widths, in the order of execution: `graph.layers[i]` describes `layers[i]`."""
        return [node for node in self.operations if isinstance(node, SwitchableLayer)]

    def set_assignment(self, assignment: Assignment, row: int | None = None) -> None:
        """Chooses what forward computes; row: the statistics of an operating point. Raises AssignmentError."""
        self.graph.check_assignment(assignment)
        for layer, pair in zip(self.layers, assignment, strict=True):
            layer.widths, layer.row, layer.mix = pair, row, None

    def add_row(self, assignment: Assignment) -> int:
        """Appends a row of batch norm for an operating point, begun as those of its widths; returns its index.

        Without batch norm there is nothing to append, and the row is but a number.
        """
        pairs = zip(self.layers, assignment, strict=True)
        rows = {layer.norm.add_row(pair.weight) for layer, pair in pairs if layer.norm is not None}
        return max(rows, default=0)

    def to_internal(self, x: Tensor) -> Tensor:
        """(N, C, H, W), (N, C, T) or (N, F) as (N, C, H, W), channels last in memory."""
        h, w, c = self.input_shape
        return channels_last(x.reshape(len(x), c, h, w))

    def forward(self, x: Tensor) -> Tensor:
        """Real outputs (N, classes) of inputs (N, C, H, W), (N, C, T) or (N, F), which should be codes * step.

        Outputs with positions, (N, C, H, W) or (N, C, T) in the model, are flattened channels last, (H, W, C) or
        (T, C): as the data has its samples, and as `Engine.run` returns them.
        """
        live = {0: self.to_internal(x)}
        for i, (node, ts) in enumerate(zip(self.nodes, self.sources, strict=True)):
            live[i + 1] = node(*(live[t] for t in ts))
            for t in set(ts):
                if self._last_use[t] == i:
                    del live[t]
        return live[len(self.sources)].permute(0, 2, 3, 1).flatten(1)

    def set_rounding(self, rounding: bool) -> None:
        """Whether forward rounds what passes between layers to 8 bits, as the integer graph does."""
        for node in self.operations:
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
        for node in self.operations:
            node.fitting, node.fitting_narrow = True, narrow
        self.train()
        self.set_assignment(self.graph.uniform(self.widths[-1]))
        self.output_step.copy_((self.forward(x).abs().max() * 4 / 2**15).clamp(min=2.0**-30))
        for node in self.operations:
            node.fitting = False
        for norm, momentum in zip(norms, saved, strict=True):
            norm.momentum = momentum
        self.train(training)

    @property
    def code_range(self) -> tuple[int, int]:
        """The network's output has 16 bits."""
        return -(2**15), 2**15 - 1

    def step(self, node: Node) -> float:
        """The real value of one code that a node with a step of its own writes, a float32 number."""
        return float(self.output_step) if node.output is None else node.output.step

    def op(self, i: int) -> Op:
        """Operation i as the integer graph writes it."""
        node, inputs = self.operations[i], self.sources[i]
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
            low, high = node.clip.codes(*(node.output or self).code_range, self.step(node))
            fields |= {"low": low, "high": high}
        return Op(node.kind, inputs, node.name, **fields)  # type: ignore[arg-type]

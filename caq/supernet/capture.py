"""Reads a user's nn.Module with torch.fx: from modules and functions to the few operations that have an integer form.

`capture` returns plain `Item`s in the order of execution. Dropout and identities are gone, zero padding is folded into
the convolutions that follow it; everything else stays one to one. `caq.supernet.convert` fuses them.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from caq.errors import UnsupportedError
from caq.supernet.layers import Clip, Window


@dataclass
class Item:
    """One operation: `kind` as in caq.graph, or "norm" or "act"; `inputs` are indices of items, -1 is the input.

    shape: of one output sample as torch has it, (C, H, W), (C, T) or (F,).
    """

    kind: str
    name: str
    inputs: list[int]
    shape: tuple[int, ...]
    module: nn.Module | None = None
    window: Window | None = None
    clip: Clip = field(default_factory=Clip)
    channels: slice | None = None  # of a norm that was split over a concat's inputs


def capture(model: nn.Module, example: Tensor) -> list[Item]:
    """Traces `model` (evaluation mode) on `example` (N, C, H, W), (N, C, T) or (N, F).

    Raises UnsupportedError naming the operation and the module's path.
    """
    try:
        traced = fx.symbolic_trace(model)
    except Exception as e:
        raise UnsupportedError(
            f"{type(model).__name__}.forward cannot be traced: {e}. Control flow must not depend on the data"
        ) from e
    was_training = model.training
    traced.eval()
    with torch.no_grad():
        ShapeProp(traced).propagate(example)
    model.train(was_training)
    return _Reader(traced).read()


class _Reader:
    def __init__(self, traced: fx.GraphModule) -> None:
        self.traced = traced
        self.items: list[Item] = []
        self.index: dict[fx.Node, int] = {}
        self.pads: dict[int, tuple[int, int, int, int]] = {}

    def read(self) -> list[Item]:
        output = None
        for node in self.traced.graph.nodes:
            if node.op == "placeholder":
                if -1 in self.index.values():
                    raise UnsupportedError(f"{node.name}: a model has one input")
                self.index[node] = -1
            elif node.op == "output":
                output = node.args[0]
            elif node.op == "call_module":
                self._module(node, self.traced.get_submodule(node.target))
            elif node.op in ("call_function", "call_method"):
                self._function(node)
            else:
                _refuse(node, f"the attribute {node.target}; use nn.Conv, nn.Linear and nn.BatchNorm modules")
        if not isinstance(output, fx.Node):
            raise UnsupportedError("a model returns one tensor")
        if self.index[output] != len(self.items) - 1 or self.pads:
            raise UnsupportedError("the model must end with its output, and padding must precede a convolution")
        return self.items

    def _add(self, node: fx.Node, kind: str, inputs: list[fx.Node], **fields: Any) -> None:
        indices = [self._operand(node, source) for source in inputs]
        if kind not in ("conv", "avg_pool") and any(i in self.pads for i in indices):
            _refuse(node, "zero padding in front of anything but a convolution")
        for i in {i for i in indices if i in self.pads}:
            top, bottom, left, right = self.pads[i]
            window: Window = fields["window"]
            own = window.padding
            padding = (own[0] + top, own[1] + bottom, own[2] + left, own[3] + right)
            fields["window"] = Window(window.kernel, window.stride, padding, window.dilation)
            indices = [self.items[i].inputs[0]]
            if i == len(self.items) - 1:
                self.items.pop()
                del self.pads[i]
        self.index[node] = len(self.items)
        self.items.append(Item(kind, _path(node), indices, _shape(node), **fields))

    def _operand(self, node: fx.Node, source: Any) -> int:
        if not isinstance(source, fx.Node):
            _refuse(node, f"the constant {source!r} as an operand")
        return self.index[source]

    def _module(self, node: fx.Node, module: nn.Module) -> None:
        source: Any = node.args[0]
        if isinstance(module, nn.Conv1d | nn.Conv2d):
            if module.padding_mode != "zeros" or module.transposed:
                _refuse(node, f"padding_mode={module.padding_mode!r}")
            self._add(node, "conv", [source], module=module, window=_conv_window(module))
        elif isinstance(module, nn.Linear):
            if len(_shape(node)) != 1:
                _refuse(node, "Linear on more than (N, features)")
            self._add(node, "conv", [source], module=module, window=Window((1, 1)))
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            if module.running_mean is None:
                _refuse(node, "batch norm without running statistics")
            self._add(node, "norm", [source], module=module)
        elif isinstance(module, nn.ReLU | nn.ReLU6 | nn.Hardtanh):
            # nn.ReLU6 is a Hardtanh
            clip = Clip(0.0) if isinstance(module, nn.ReLU) else Clip(module.min_val, module.max_val)
            self._activation(node, source, clip)
        elif isinstance(module, nn.MaxPool1d | nn.MaxPool2d | nn.AvgPool1d | nn.AvgPool2d):
            options = {k: getattr(module, k, None) for k in ("stride", "padding", "dilation", "ceil_mode")}
            options |= {k: getattr(module, k, None) for k in ("count_include_pad", "divisor_override")}
            kind = "max_pool" if isinstance(module, nn.MaxPool1d | nn.MaxPool2d) else "avg_pool"
            self._pool(node, kind, source, module.kernel_size, **options)
        elif isinstance(module, nn.AdaptiveAvgPool1d | nn.AdaptiveAvgPool2d):
            self._adaptive(node, "avg_pool", source, module.output_size)
        elif isinstance(module, nn.AdaptiveMaxPool1d | nn.AdaptiveMaxPool2d):
            self._adaptive(node, "max_pool", source, module.output_size)
        elif isinstance(module, nn.Flatten | nn.Unflatten):
            self._add(node, "reshape", [source])
        elif isinstance(module, nn.Dropout | nn.Dropout1d | nn.Dropout2d | nn.Identity):
            self.index[node] = self.index[source]
        elif isinstance(module, nn.ZeroPad1d | nn.ZeroPad2d | nn.ConstantPad1d | nn.ConstantPad2d):
            if getattr(module, "value", 0) != 0:
                _refuse(node, f"padding with {module.value}")
            left, right, *rest = module.padding
            top, bottom = rest or (0, 0)
            self._add(node, "reshape", [source])
            self.pads[self.index[node]] = (top, bottom, left, right)
        else:
            _refuse(node, type(module).__name__)

    def _function(self, node: fx.Node) -> None:
        args: list[Any]
        kwargs: dict[str, Any]
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
        args, kwargs = list(node.args), dict(node.kwargs)
        relu = {"relu", "relu_"}
        if node.target in (operator.add, operator.iadd, torch.add) or name in ("add", "add_"):
            if kwargs.get("alpha", 1) != 1:
                _refuse(node, "add with alpha")
            self._add(node, "add", [*args, *([kwargs["other"]] if "other" in kwargs else [])])
        elif name in ("cat", "concat", "concatenate"):
            dim = kwargs.get("dim", args[1] if len(args) > 1 else 0)
            if dim not in (1, -len(_shape(node))):
                _refuse(node, f"concatenation along dimension {dim}; only the channels (1)")
            self._add(node, "concat", list(args[0] if args else kwargs["tensors"]))
        elif name in relu:
            self._activation(node, args[0], Clip(0.0))
        elif name == "relu6":
            self._activation(node, args[0], Clip(0.0, 6.0))
        elif name in ("hardtanh", "hardtanh_", "clamp", "clamp_", "clip"):
            names = ("min_val", "max_val") if "hardtanh" in name else ("min", "max")
            defaults = (-1.0, 1.0) if "hardtanh" in name else (None, None)
            low, high = (
                kwargs.get(n, args[1 + i] if len(args) > 1 + i else d)
                for i, (n, d) in enumerate(zip(names, defaults, strict=True))
            )
            self._activation(node, args[0], Clip(-math.inf if low is None else low, math.inf if high is None else high))
        elif name in ("max_pool1d", "max_pool2d", "avg_pool1d", "avg_pool2d", "_max_pool1d", "_max_pool2d"):
            kind = "max_pool" if "max" in name else "avg_pool"
            order: tuple[str, ...] = ("stride", "padding", "dilation", "ceil_mode")
            if kind == "avg_pool":
                order = ("stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
            options = {**dict(zip(order, args[2:], strict=False)), **kwargs}
            kernel = args[1] if len(args) > 1 else options.pop("kernel_size")
            options.pop("kernel_size", None), options.pop("return_indices", None)
            self._pool(node, kind, args[0], kernel, **options)
        elif name.startswith("adaptive_avg_pool") or name.startswith("adaptive_max_pool"):
            size = args[1] if len(args) > 1 else kwargs["output_size"]
            self._adaptive(node, "avg_pool" if "avg" in name else "max_pool", args[0], size)
        elif name == "mean":
            dims = kwargs.get("dim", args[1] if len(args) > 1 else None)
            rank = len(_shape(args[0]))
            dims = [dims] if isinstance(dims, int) else list(dims or ())
            if sorted(d % (rank + 1) for d in dims) != list(range(2, rank + 1)):
                _refuse(node, f"mean over {dims}; only over all positions of each channel")
            self._adaptive(node, "avg_pool", args[0], 1)
        elif name in ("flatten", "view", "reshape", "unflatten", "unsqueeze", "squeeze"):
            self._add(node, "reshape", [args[0]])
        elif name in ("dropout", "contiguous", "alpha_dropout", "feature_dropout"):
            self.index[node] = self.index[args[0]]
        else:
            _refuse(node, name)

    def _activation(self, node: fx.Node, source: fx.Node, clip: Clip) -> None:
        if not clip.low <= 0 < clip.high:
            _refuse(node, f"a clip to [{clip.low}, {clip.high}], which excludes 0")
        self._add(node, "act", [source], clip=clip)

    def _pool(self, node: fx.Node, kind: str, source: fx.Node, kernel: Any, **options: Any) -> None:
        if options.get("ceil_mode"):
            _refuse(node, "ceil_mode=True")
        padding = _pair(options.get("padding") or 0, node, over=0)
        if options.get("divisor_override") or (options.get("count_include_pad") is False and any(padding)):
            _refuse(node, "an average whose divisor is not the window's size")
        size = _pair(kernel, node)
        stride = _pair(options.get("stride") or kernel, node)
        window = Window(size, stride, (padding[0],) * 2 + (padding[1],) * 2, _pair(options.get("dilation") or 1, node))
        self._add(node, kind, [source], window=window)

    def _adaptive(self, node: fx.Node, kind: str, source: fx.Node, size: Any) -> None:
        shape = _shape(source)
        spatial = (1, *shape[1:])[-2:]
        sizes = tuple(size) if isinstance(size, tuple | list) else (size,) * (len(shape) - 1)
        wanted = [n if w is None else w for n, w in zip(spatial, (1, *sizes)[-2:], strict=True)]
        if any(n % w for n, w in zip(spatial, wanted, strict=True)):
            _refuse(node, f"adaptive pooling of {spatial} to {wanted}, which does not divide")
        kernel = (spatial[0] // wanted[0], spatial[1] // wanted[1])
        self._add(node, kind, [source], window=Window(kernel, kernel))


def _conv_window(module: nn.Conv1d | nn.Conv2d) -> Window:
    def two(values: tuple[int, ...], over: int) -> tuple[int, int]:
        return (over, values[0]) if len(values) == 1 else (values[0], values[1])

    kernel, stride = two(module.kernel_size, 1), two(module.stride, 1)
    dilation = two(module.dilation, 1)
    if module.padding == "same":
        total = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        padding = (total[0] // 2, total[0] - total[0] // 2, total[1] // 2, total[1] - total[1] // 2)
    elif module.padding == "valid":
        padding = (0, 0, 0, 0)
    else:
        rows, columns = two(module.padding, 0)  # type: ignore[arg-type]
        padding = (rows, rows, columns, columns)
    return Window(kernel, stride, padding, dilation)


def _pair(value: Any, node: fx.Node, over: int = 1) -> tuple[int, int]:
    """(rows, columns) of a size that torch gives as a number or a tuple; of a series, whose rows are `over`."""
    values = tuple(value) if isinstance(value, tuple | list) else (value,)
    if len(values) == 2:
        return values[0], values[1]
    return (values[0] if len(_shape(node)) == 3 else over), values[0]


def _shape(node: fx.Node) -> tuple[int, ...]:
    return tuple(node.meta["tensor_meta"].shape[1:])


def _path(node: fx.Node) -> str:
    """The module's path, or the function's name behind the path of the module that calls it."""
    if node.op == "call_module":
        return str(node.target)
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    where = stack[-1][0] if stack else ""
    return f"{where}.{node.name}" if where else str(node.name)


def _refuse(node: fx.Node, what: str) -> NoReturn:
    supported = "Conv1d/2d, Linear, BatchNorm, ReLU, ReLU6, Hardtanh, add, cat, pooling, flatten, reshape, dropout"
    raise UnsupportedError(f"{_path(node)}: {what} has no integer form here. Supported: {supported}")

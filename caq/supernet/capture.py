"""Reads a user's nn.Module with torch.fx: from modules and functions to the few operations that have an integer form.

`capture` returns plain `Item`s in the order of execution. Dropout and identities are gone, zero padding is folded into
the convolutions that follow it; everything else stays one to one. `caq.supernet.convert` fuses them.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import is_lazy

from caq.errors import DataError, UnsupportedError
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
    """Traces `model` in evaluation mode on `example` (N, C, H, W), (N, C, T) or (N, F); both stay as they are.

    Raises DataError on another example, UnsupportedError naming the operation and the module's path.
    """
    _check_example(example)
    _check_model(model)
    with _evaluating(model), torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            expected = model(example.clone())
        except Exception as e:
            raise UnsupportedError(
                f"{type(model).__name__} cannot take the example, {tuple(example.shape)}: {_first_line(e)}"
            ) from e
        if not isinstance(expected, Tensor):
            raise UnsupportedError(f"a model returns one tensor; {type(model).__name__} a {type(expected).__name__}")
        if not expected.isfinite().all():
            raise UnsupportedError(f"{type(model).__name__} returns NaN or infinity on the example")
        try:
            # A module of torch's own is not looked into unless it is the root.
            leaf = fx.Tracer().is_leaf_module(model, "")
            traced = fx.symbolic_trace(nn.Sequential(model) if leaf else model)
        except Exception as e:
            raise UnsupportedError(
                f"{type(model).__name__}.forward cannot be traced: {_first_line(e)}. "
                "Control flow must not depend on the data"
            ) from e
        _bypass_in_place(traced)
        for node in reversed(traced.graph.nodes):
            if not node.users and node.op not in ("placeholder", "output"):
                traced.graph.erase_node(node)
        torch.manual_seed(0)
        try:
            found = _Shapes(traced).run(example.clone())
        except Exception as e:
            raise UnsupportedError(f"{type(model).__name__} cannot be run as traced: {_first_line(e)}") from e
        same = isinstance(found, Tensor) and (found.shape, found.dtype) == (expected.shape, expected.dtype)
        if not same or not torch.allclose(found, expected, rtol=1e-3, atol=1e-5):
            raise UnsupportedError(
                f"{type(model).__name__}.forward computes something else when it is traced: write x = x + y where "
                "x += y changes a tensor that is read again, and let forward change nothing but its variables"
            )
        return _Reader(traced, len(example)).read()


def _check_example(example: Tensor) -> None:
    if not isinstance(example, Tensor):
        raise DataError(f"the example is a torch tensor, not a {type(example).__name__}")
    if example.dtype != torch.float32 or example.device.type != "cpu":
        raise DataError(f"the example is float32 on the CPU, not {example.dtype} on {example.device}")
    if not 2 <= example.dim() <= 4:
        raise DataError(f"the example is (N, C, H, W), (N, C, T) or (N, F), not {tuple(example.shape)}")
    if len(example) < 2 or not example.numel():
        raise DataError(f"the example is a batch of at least two samples, not {tuple(example.shape)}")
    if not example.isfinite().all():
        raise DataError("the example holds NaN or infinity")


def _check_model(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise UnsupportedError(f"the model is an nn.Module, not a {type(model).__name__}")
    for name, parameter in model.named_parameters():
        if is_lazy(parameter):
            raise UnsupportedError(f"{name} has no shape yet: run the model once before it is converted")
        if parameter.dtype != torch.float32 or parameter.device.type != "cpu":
            raise UnsupportedError(
                f"{name} is {parameter.dtype} on {parameter.device}: convert a float32 model on the CPU, model.float()"
            )


def _first_line(e: Exception) -> str:
    return f"{type(e).__name__}: {str(e).strip()}".split("\n")[0]


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards every module is in its own mode again, a frozen batch norm in evaluation."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


class _Shapes(fx.Interpreter):
    """Runs the graph and notes in each node's meta: `shape` of a tensor, or `value` of what holds no tensor."""

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            n.meta["shape"] = tuple(result.shape)
        elif not _holds_tensor(result):
            n.meta["value"] = result
        return result


def _holds_tensor(value: Any) -> bool:
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, tuple | list):
        return isinstance(value, Tensor)
    return any(map(_holds_tensor, value))


_VIEWS = ("flatten", "view", "reshape", "unflatten", "unsqueeze", "squeeze")
_IDENTITIES = ("dropout", "dropout1d", "dropout2d", "contiguous", "alpha_dropout", "feature_dropout")
_IDENTITY_MODULES = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Identity)


def _bypass_in_place(traced: fx.GraphModule) -> None:
    """Lets whoever reads a tensor after an operation changed it in place read that operation's result instead."""
    order = {node: i for i, node in enumerate(traced.graph.nodes)}
    memory: dict[fx.Node, fx.Node] = {}  # node -> the node that made its memory
    same: dict[fx.Node, fx.Node] = {}  # node -> the first node that is the very same tensor
    for node in traced.graph.nodes:
        memory[node] = same[node] = node
        source = next(iter(node.all_input_nodes), None)
        if source is None or node.op == "output":
            continue
        module = traced.get_submodule(node.target) if node.op == "call_module" else None
        name = _function_name(node) if module is None else ""
        in_place = bool(getattr(module, "inplace", False) or node.kwargs.get("inplace"))
        in_place |= name == "iadd" or (name.endswith("_") and not name.endswith("__"))
        if in_place or name in _IDENTITIES or isinstance(module, _IDENTITY_MODULES):
            memory[node], same[node] = memory[source], same[source]
        elif name in _VIEWS or isinstance(module, nn.Flatten | nn.Unflatten):
            memory[node] = memory[source]
        if not in_place:
            continue
        for other in [n for n in memory if memory[n] is memory[node] and n is not node]:
            for user in [u for u in other.users if order[u] > order[node]]:
                if same[other] is not same[node]:
                    _reject(node, f"it changes {other.name} in place, which {user.name} reads through a reshape")
                user.replace_input_with(other, node)


class _Reader:
    def __init__(self, traced: fx.GraphModule, samples: int) -> None:
        self.traced = traced
        self.samples = samples
        self.items: list[Item] = []
        self.index: dict[fx.Node, int] = {}
        self.pads: dict[fx.Node, tuple[int, int, int, int]] = {}  # nodes that pad the item of their index
        self.owners: dict[int, fx.Node] = {}  # id of a parameter -> the node that uses it

    def read(self) -> list[Item]:
        output: Any = None
        for node in self.traced.graph.nodes:
            if node.op == "placeholder":
                if not self.index:
                    self.index[node] = -1
                elif node.users:
                    _reject(node, "a model has one input")
            elif node.op == "output":
                output = node.args[0]
            elif node.op == "get_attr":
                _refuse(node, f"the attribute {node.target}; use nn.Conv, nn.Linear and nn.BatchNorm modules")
            elif "shape" in node.meta:
                if node.meta["shape"][:1] != (self.samples,):
                    _reject(node, f"makes {node.meta['shape']} of a batch of {self.samples}; samples must stay apart")
                if node.op == "call_module":
                    self._module(node, self.traced.get_submodule(node.target))
                else:
                    self._function(node)
            elif "value" not in node.meta:
                _refuse(node, f"{_function_name(node)}, which returns several tensors,")
        if output in self.pads:
            _refuse(output, "zero padding in front of anything but a convolution")
        if self.index.get(output, -1) < 0:
            raise UnsupportedError("the model returns its input: there is nothing to quantize")
        return self.items

    def _add(self, node: fx.Node, kind: str, inputs: list[Any], **fields: Any) -> None:
        indices = [self._operand(node, source) for source in inputs]
        for source in inputs:
            if source not in self.pads:
                continue
            if kind not in ("conv", "avg_pool") or isinstance(fields.get("module"), nn.Linear):
                _refuse(node, "zero padding in front of anything but a convolution")
            window: Window = fields["window"]
            ends = zip(window.padding, self.pads[source], strict=True)
            top, bottom, left, right = (own + extra for own, extra in ends)
            fields["window"] = Window(window.kernel, window.stride, (top, bottom, left, right), window.dilation)
        self.index[node] = len(self.items)
        self.items.append(Item(kind, _path(node), indices, _shape(node), **fields))

    def _pass(self, node: fx.Node, source: Any) -> None:
        """`node` is `source`."""
        self.index[node] = self._operand(node, source)
        if source in self.pads:
            self.pads[node] = self.pads[source]

    def _pad(self, node: fx.Node, source: Any, padding: Any, mode: str, value: Any) -> None:
        index = self._operand(node, source)
        if mode != "constant" or value not in (None, 0):
            _refuse(node, f"padding with {value if mode == 'constant' else mode}")
        left, right, top, bottom = (*padding, 0, 0, 0, 0)[:4]
        dims = len(_shape(node)) - 1
        if min(padding, default=0) < 0 or len(padding) > 4 or (dims < 2 and (top or bottom)) or dims < 1:
            _refuse(node, f"padding of {tuple(padding)} on samples of {dims + 1} dimensions")
        if source in self.pads:
            _refuse(node, "zero padding in front of anything but a convolution")
        self.index[node] = index
        self.pads[node] = (top, bottom, left, right)

    def _operand(self, node: fx.Node, source: Any) -> int:
        if not isinstance(source, fx.Node) or source not in self.index:
            _refuse(node, f"the constant {source!r} as an operand")
        return self.index[source]

    def _module(self, node: fx.Node, module: nn.Module) -> None:
        source: Any = next(iter(node.all_input_nodes))
        for parameter in module.parameters():
            if (first := self.owners.setdefault(id(parameter), node)) is not node:
                what = "is used twice" if first.target == node.target else f"shares its weights with {_path(first)}"
                _reject(node, f"{what}; every use would become a layer of its own: give it a module of its own")
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
        elif isinstance(module, _IDENTITY_MODULES):
            self._pass(node, source)
        elif isinstance(module, nn.ZeroPad1d | nn.ZeroPad2d | nn.ConstantPad1d | nn.ConstantPad2d):
            self._pad(node, source, module.padding, "constant", getattr(module, "value", 0))
        else:
            _refuse(node, type(module).__name__)

    def _function(self, node: fx.Node) -> None:
        args: list[Any]
        kwargs: dict[str, Any]
        name = _function_name(node)
        # What sizes and sums of sizes came to on the example stands for them.
        args = list(fx.node.map_arg(node.args, lambda n: n.meta.get("value", n)))
        kwargs = dict(fx.node.map_arg(node.kwargs, lambda n: n.meta.get("value", n)))
        if "input" in kwargs:
            args = [kwargs.pop("input"), *args]
        if node.target in (operator.add, operator.iadd, torch.add) or name in ("add", "add_"):
            if kwargs.get("alpha", 1) != 1:
                _refuse(node, "add with alpha")
            operands = [*args, *([kwargs["other"]] if "other" in kwargs else [])]
            shapes = [_shape(x) for x in operands if isinstance(x, fx.Node)]
            if len(set(shapes)) > 1:
                _refuse(node, f"a sum of samples of different shapes, {' and '.join(map(str, shapes))},")
            self._add(node, "add", operands)
        elif name in ("cat", "concat", "concatenate"):
            dim = kwargs.get("dim", args[1] if len(args) > 1 else 0)
            if dim not in (1, -len(_shape(node))):
                _refuse(node, f"concatenation along dimension {dim}; only the channels (1)")
            self._add(node, "concat", list(args[0] if args else kwargs["tensors"]))
        elif name in ("relu", "relu_"):
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
        elif name in _VIEWS:
            self._add(node, "reshape", [args[0]])
        elif name in _IDENTITIES:
            self._pass(node, args[0])
        elif name == "pad":
            options = {**dict(zip(("pad", "mode", "value"), args[1:], strict=False)), **kwargs}
            self._pad(node, args[0], options["pad"], options.get("mode", "constant"), options.get("value"))
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
    """Of one sample."""
    return tuple(node.meta["shape"][1:])


def _function_name(node: fx.Node) -> str:
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))


def _path(node: fx.Node) -> str:
    """The module's path, or the function's name behind the path of the module that calls it."""
    if node.op == "call_module":
        return str(node.target)
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    where = stack[-1][0] if stack else ""
    return f"{where}.{node.name}" if where else str(node.name)


def _reject(node: fx.Node, why: str) -> NoReturn:
    raise UnsupportedError(f"{_path(node)}: {why}")


def _refuse(node: fx.Node, what: str) -> NoReturn:
    supported = "Conv1d/2d, Linear, BatchNorm, ReLU, ReLU6, Hardtanh, add, cat, pooling, flatten, reshape, dropout"
    _reject(node, f"{what} has no integer form here. Supported: {supported}, zero padding")

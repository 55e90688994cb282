"""How a graph's steps and tensors lie for the native kernels: fused steps, and views into one arena.

That follows from the graph and the tensors' steps, so models that differ in gains, biases or weights share it:
calibration makes many of those.

Fusion: a conv's requantization and clamp are part of it; a residual add whose one term is a conv's output that nobody
else reads is done by that conv, while the codes are in registers. Narrowing to a layer's activation width is part of
the requantization of a conv that writes for that layer alone (plan.written), and else done by whoever writes the
layer's input, if nobody else reads that. A conditional gate counts as a reader of what is alive where it decides: that
stays in 8 bits, and no step reaches across (caq.native_conditional runs such points).
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from caq.conditional import crossing
from caq.graph import Assignment, Graph, Op, output_bits
from caq.kernels import _native
from caq.memory import Buffer, aligned, lower_bound, place
from caq.model import Model
from caq.plan import Written, adding, only_readers, rescaling, written
from caq.quant import TOP_WIDTH, FixedPoint, requantize

if TYPE_CHECKING:
    from numpy.typing import NDArray

ffi, lib = _native.ffi, _native.lib

#: Kernels read whole vectors past the end of a tensor.
SLACK = 256
#: Stands among a tensor's readers for a conditional gate: what it reads, and what other branches read, stays as it is.
_GATE = -1
#: Assignments of which a layout keeps what its layers write.
_MOST_ASSIGNMENTS = 64


class Kept(list[Any]):
    """Memory that C structs point to, for as long as they do."""

    def array(self, kind: str, array: NDArray[Any]) -> Any:
        """A pointer to the array's own bytes, kept."""
        self.append(ffi.from_buffer(kind, np.ascontiguousarray(array)))
        return self[-1]

    def new(self, kind: str, count: int) -> Any:
        """Memory of zeros, kept."""
        self.append(ffi.new(kind, count))
        return self[-1]


def layout_of(model: Model, isa: int) -> Layout:
    """The layout of a model for instruction set `isa`; of those made last, the same one. Raises SchemaError."""
    gates = tuple(sorted({p.gate.tensor for p in model.points if p.gate is not None}))
    steps, ratios = model.parameters.steps, model.parameters.ratios
    return _layout(model.graph, steps.tobytes(), ratios.tobytes(), gates, isa)


@lru_cache(maxsize=32)
def _layout(graph: Graph, steps: bytes, ratios: bytes, gates: tuple[int, ...], isa: int) -> Layout:
    of_layers = np.frombuffer(ratios, np.float32).reshape(len(graph.layers), len(graph.widths))
    return Layout(graph, np.frombuffer(steps, np.float32), of_layers, gates, isa)


class _Tensor:
    """A tensor that has memory of its own; reshapes that move nothing share it."""

    def __init__(self, shape: tuple[int, int, int], item: int, zero: int) -> None:
        self.shape, self.item, self.zero = shape, item, zero
        self.halo = [0, 0, 0, 0]  # top, bottom, left, right
        self.readers: list[int] = []  # ops, and _GATE

    @property
    def row(self) -> int:
        return (self.shape[1] + self.halo[2] + self.halo[3]) * self.shape[2] * self.item

    @property
    def size(self) -> int:
        return (self.shape[0] + self.halo[0] + self.halo[1]) * self.row

    @property
    def first_pixel(self) -> int:
        return self.halo[0] * self.row + self.halo[2] * self.shape[2] * self.item


class Layout:
    """Nothing changes after it is made.

    steps: (T,) float32 and ratios: (L, W) float32, of caq.plan.Parameters; gates: the tensors that conditional gates
    read. order: the operation of each step. arena_bytes: of an arena for one inference; peak_bytes and
    lower_bound_bytes: of its tensors as planned, and the most that are alive at once. panel_bytes, requantize_bytes: of
    all layers. c_steps: the C structs, as long as this object lives. Raises SchemaError on steps that cannot be
    computed with.
    """

    def __init__(
        self,
        graph: Graph,
        steps: NDArray[np.float32],
        ratios: NDArray[np.float32],
        gates: tuple[int, ...],
        isa: int,
    ) -> None:
        self._graph, self._scales, self._ratios, self._isa = graph, steps, ratios, isa
        self._kept = Kept()
        self._layers = {layer.op: layer for layer in graph.layers}
        self._root = _shared(graph)
        self._tensors = _tensors(graph, self._root)
        for t in {t for gate in gates for t in crossing(graph, gate)}:
            self._tensors[self._root[t]].readers.append(_GATE)
        alone = only_readers(graph)
        self._direct = {graph.layers[i].op for i in alone}  # convs whose reader says what they write
        self._reads_direct = {graph.layers[i].op for i in alone.values()}
        self.fused = _fused_adds(graph, self._root, self._tensors)  # conv -> add
        self.order = [i for i in range(len(graph.ops)) if i not in self.fused.values() and self._root[i + 1] == i + 1]
        self.arena_bytes = self._plan_memory()
        self.c_steps = ffi.new("caq_step[]", max(1, len(self.order)))
        self.panel_bytes = self.requantize_bytes = 0
        for at, op in enumerate(self.order):
            self._fill(self.c_steps[at], op)
        self._written: dict[Assignment, list[Written]] = {}

    def written(self, assignment: Assignment) -> list[Written]:
        """`caq.plan.written`. Raises SchemaError."""
        found = self._written.get(assignment)
        if found is None:
            found = written(self._graph, self._ratios, assignment)
            if len(self._written) == _MOST_ASSIGNMENTS:
                self._written = {}
            self._written[assignment] = found
        return found

    def _target(self, op: int) -> int:
        """The tensor that an op's step writes."""
        return self._root[self.fused.get(op, op) + 1]

    def _sources(self, op: int) -> list[int]:
        """The graph's tensors that an op's step reads."""
        ops = self._graph.ops
        residual = [t for t in ops[self.fused[op]].inputs if t != op + 1] if op in self.fused else []
        return [*ops[op].inputs, *residual]

    def _plan_memory(self) -> int:
        """Gives every tensor a place in the arena, and returns the arena's size.

        A step that reads each code just before it writes it may write in place.
        """
        ops, tensors = self._graph.ops, self._tensors
        first, last = {0: -1}, {self._root[-1]: len(self.order)}
        for at, op in enumerate(self.order):
            first[self._target(op)] = at
            for t in self._sources(op):
                last[self._root[t]] = at
        storage = {t: t for t in first}  # tensor -> the one whose buffer it lies in
        end = dict(last)
        for at, op in enumerate(self.order):
            kind, out = ops[op].kind, self._target(op)
            read = [self._root[t] for t in self._sources(op)]
            candidates = {"add": read, "clamp": read, "conv": [t for t in read[1:] if t != read[0]]}
            for t in candidates.get(kind, []):
                same = (tensors[t].shape, tensors[t].halo, tensors[t].item)
                if last[t] == at and same == (tensors[out].shape, tensors[out].halo, tensors[out].item):
                    storage[out] = storage[t]
                    end[storage[t]] = last[out]
                    break
        roots = [t for t in first if storage[t] == t]
        buffers = [Buffer(tensors[t].size, first[t], end[t]) for t in roots]
        self._narrow_places: dict[int, int] = {}
        scratch = []
        for at, op in enumerate(self.order):
            t = self._root[ops[op].inputs[0]]
            if ops[op].kind == "conv" and not self._layers[op].reads_input and not self._narrowed_when_written(op):
                scratch.append(op)
                buffers.append(Buffer(tensors[t].size, at, at))
        offsets, self.peak_bytes = place(buffers)
        self.lower_bound_bytes = lower_bound(buffers)
        places = dict(zip(roots, offsets, strict=False))
        self._offsets = {t: places[storage[t]] for t in first}
        self._narrow_places = dict(zip(scratch, offsets[len(roots) :], strict=True))
        stride = max(op.stride[1] for op in ops)
        return aligned(self.peak_bytes) + SLACK + 64 * stride

    def _narrowed_when_written(self, conv: int) -> bool:
        source = self._root[self._graph.ops[conv].inputs[0]]
        return conv in self._reads_direct or (source != 0 and len(self._tensors[source].readers) == 1)

    def view(self, view: Any, tensor: int) -> None:
        """Fills in how one of the graph's tensors lies; it may be another shape of what shares its memory."""
        root, shape = self._tensors[self._root[tensor]], self._graph.shapes[tensor]
        t = root if shape == root.shape else _Tensor(shape, root.item, root.zero)
        view.offset = self._offsets[self._root[tensor]] + t.first_pixel
        view.row, view.bytes, view.zero = t.row, t.item, t.zero
        view.h, view.w, view.c = t.shape
        view.top, view.bottom, view.left, view.right = t.halo

    def _fill(self, step: Any, index: int) -> None:
        graph, steps = self._graph, self._scales
        op = graph.ops[index]
        sources, target = self._sources(index), self._target(index)
        step.inputs = self._kept.new("caq_view[]", len(sources))
        step.input_count = len(sources)
        for i, t in enumerate(sources):
            self.view(step.inputs[i], t)
        self.view(step.output, target)
        step.layer = step.narrow_at = -1
        readers = self._tensors[target].readers
        narrows = len(readers) == 1 and graph.ops[readers[0]].kind == "conv" and index not in self._direct
        step.narrowed_by = self._layers[readers[0]].index if narrows else -1
        step.low, step.high = op.low, op.high
        window = step.conv.window
        window.kernel_h, window.kernel_w = op.kernel
        window.stride_h, window.stride_w = op.stride
        window.dilation_h, window.dilation_w = op.dilation
        window.top, window.bottom, window.left, window.right = op.padding
        if op.kind == "conv":
            step.kind = lib.CAQ_CONV
            self._fill_conv(step, index, sources[0])
        elif op.kind == "add":
            step.kind = lib.CAQ_ADD
            self._fill_sum(step.sum, op, *adding(op, steps, index + 1))
        elif op.kind == "max_pool":
            step.kind = lib.CAQ_MAX_POOL
        elif op.kind == "reshape":
            step.kind = lib.CAQ_RESHAPE
        elif op.kind == "avg_pool":
            step.kind = lib.CAQ_AVG_POOL
            f = rescaling(op, graph, steps, op.inputs[0], index + 1)
            step.requantize = self._kept.array("int32_t[]", np.concatenate(_rows(f)))
        else:
            step.kind = lib.CAQ_LOOKUP
            step.tables = self._kept.array("int16_t[]", np.concatenate([self._table(op, index, t) for t in op.inputs]))

    def _fill_conv(self, step: Any, index: int, source: int) -> None:
        graph = self._graph
        op, layer = graph.ops[index], self._layers[index]
        conv = step.conv
        conv.in_channels, conv.out_channels, conv.groups = graph.shapes[source][2], op.channels, op.groups
        conv.in_zero, conv.out_bytes = self._tensors[self._root[source]].zero, self._tensors[self._target(index)].item
        step.layer, step.first_channel, step.first_plane_byte = layer.index, layer.first_channel, layer.first_byte
        step.in_signed = graph.signed(op.inputs[0])
        step.narrow_at = self._narrow_places.get(index, -1)
        step.panel_at, step.requantize_at = self.panel_bytes, self.requantize_bytes
        conv.one_pixel = graph.shapes[index + 1][:2] == (1, 1)
        pointer = ffi.addressof(conv)
        self.panel_bytes = aligned(self.panel_bytes + lib.caq_panel_bytes(self._isa, pointer, TOP_WIDTH))
        self.requantize_bytes = aligned(self.requantize_bytes + lib.caq_requantize_bytes(self._isa, pointer))
        if index in self.fused:
            added = self.fused[index]
            addition = graph.ops[added]
            multipliers, offset, shift = adding(addition, self._scales, added + 1)
            if addition.inputs[0] != index + 1:
                multipliers = multipliers[::-1]
            self._fill_sum(step.sum, addition, multipliers, offset, shift)

    def _fill_sum(self, s: Any, op: Op, multipliers: tuple[int, ...], offset: int, shift: int) -> None:
        for i, k in enumerate(multipliers):
            s.multiplier[i] = k
        s.offset, s.shift, s.low, s.high = offset, shift, op.low, op.high

    def _table(self, op: Op, index: int, source: int) -> NDArray[np.int16]:
        """What each byte of tensor `source` becomes, as the arena holds it."""
        f = rescaling(op, self._graph, self._scales, source, index + 1)
        codes = np.arange(256, dtype=np.int32)[:, None] - self._tensors[self._root[source]].zero
        out = self._tensors[self._target(index)]
        return (requantize(codes, f, op.low, op.high)[:, 0] + out.zero).astype(np.int16)


def _rows(f: FixedPoint) -> list[NDArray[np.int32]]:
    parts = (f.bias, f.pre_shift, f.multiplier, f.offset, f.post_shift)
    return [a.astype(np.int32) for a in parts]


def _shared(graph: Graph) -> list[int]:
    """For each tensor the one whose memory it shares: its own, or that of a reshape's input if no code moves.

    A layer that pads its input wants a halo in the input's own shape, so such a reshape is carried out.
    """
    root = list(range(len(graph.shapes)))
    padded = {op.inputs[0] for op in graph.ops if op.kind == "conv" and any(op.padding)}
    for i, op in enumerate(graph.ops):
        source, target = graph.shapes[op.inputs[0]], graph.shapes[i + 1]
        moves = any(h * w > 1 and c > 1 for h, w, c in (source, target))
        shared = [t for t in range(i + 1) if root[t] == root[op.inputs[0]]]
        if op.kind == "reshape" and not moves and i + 1 not in padded and not padded.intersection(shared):
            root[i + 1] = root[op.inputs[0]]
    return root


def _tensors(graph: Graph, root: list[int]) -> dict[int, _Tensor]:
    """The tensors that have memory, with their halos and readers."""
    tensors = {}
    for t in set(root):
        wide = t > 0 and any(not -128 <= v <= 255 for v in graph.ranges[t])
        tensors[t] = _Tensor(graph.shapes[t], 2 if wide else 1, 128 if graph.signed(t) and not wide else 0)
    for i, op in enumerate(graph.ops):
        if root[i + 1] != i + 1:
            continue
        for t in op.inputs:
            tensors[root[t]].readers.append(i)
            if op.kind == "conv":
                halo = tensors[root[t]].halo
                halo[:] = map(max, halo, op.padding)
    return tensors


def _fused_adds(graph: Graph, root: list[int], tensors: dict[int, _Tensor]) -> dict[int, int]:
    """Which adds are done by which conv: the later one of the two terms, if nobody else reads it."""
    fused = {}
    for i, op in enumerate(graph.ops):
        if op.kind != "add" or len(op.inputs) != 2 or output_bits(op) != 8:
            continue
        conv = max(op.inputs) - 1
        distinct = len({root[t] for t in op.inputs}) == 2
        if distinct and conv >= 0 and graph.ops[conv].kind == "conv" and tensors[conv + 1].readers == [i]:
            fused[conv] = i
    return fused

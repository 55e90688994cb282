"""Lowers a model to a program of the native kernels: fused steps, views into one arena, prepared weights.

What does not depend on an operating point (steps, views, the arena's layout) is made once. An operating point adds a
`NativePlan`: panels of weights, requantization and narrowing tables, which no one writes after it is made.

Fusion: a conv's requantization and clamp are part of it; a residual add whose one term is a conv's output that nobody
else reads is done by that conv, while the codes are in registers; narrowing to a layer's activation width is done by
whoever writes the layer's input, if nobody else reads that.
"""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from caq.errors import ConfigError, SchemaError
from caq.graph import Assignment, Graph, Op, output_bits
from caq.kernels import _native
from caq.memory import ALIGNMENT, Buffer, aligned, lower_bound, place
from caq.model import Model
from caq.plan import Parameters, adding, layer_fixed_point, naming, narrowing, rescaling
from caq.quant import TOP_WIDTH, FixedPoint, requantize
from caq.scaling import check_finite

if TYPE_CHECKING:
    from numpy.typing import NDArray

ffi, lib = _native.ffi, _native.lib

_DTYPES = {"uint8": 0, "int16": 1, "float32": 2}
_ENCODED_AT_ONCE = 256
_SLACK = 256  # kernels read whole vectors past the end of a tensor

# Looked up once: a call should cost little more than its kernels.
_run, _from_buffer, _empty = lib.caq_run, ffi.from_buffer, np.empty
_INT16, _INT16_ARRAY = np.dtype(np.int16), ffi.typeof("int16_t[]")


def isa_names() -> dict[str, str]:
    """Each instruction set, and "" if it runs here, or why it does not."""
    reasons = {1: "", 0: "not built for this machine", -1: "this CPU does not have it"}
    return {ffi.string(lib.caq_isa_name(i)).decode(): reasons[lib.caq_isa_runs(i)] for i in range(lib.caq_isa_count())}


def choose_isa(wanted: str | None = None) -> int:
    """Index of the instruction set `wanted`, or that the environment variable CAQ_ISA names, or of the best one here.

    Raises ConfigError if that one is unknown or does not run here.
    """
    names = isa_names()
    wanted = wanted or os.environ.get("CAQ_ISA")
    if not wanted:
        return max(i for i, reason in enumerate(names.values()) if not reason)
    if names.get(wanted, "unknown"):
        good = ", ".join(name for name, reason in names.items() if not reason)
        raise ConfigError(f"instruction set {wanted!r}: {names.get(wanted, 'unknown')}; choose one of {good}")
    return list(names).index(wanted)


@dataclass(eq=False)
class _Tensor:
    """A tensor that has memory of its own; reshapes that move nothing share it."""

    shape: tuple[int, int, int]
    item: int
    zero: int
    halo: list[int] = field(default_factory=lambda: [0, 0, 0, 0])  # top, bottom, left, right
    readers: list[int] = field(default_factory=list)  # ops

    @property
    def row(self) -> int:
        return (self.shape[1] + self.halo[2] + self.halo[3]) * self.shape[2] * self.item

    @property
    def size(self) -> int:
        return (self.shape[0] + self.halo[0] + self.halo[1]) * self.row

    @property
    def first_pixel(self) -> int:
        return self.halo[0] * self.row + self.halo[2] * self.shape[2] * self.item


class Program:
    """A model's steps for the native kernels.

    lean: plans hold no panels; each inference unpacks every layer into its arena: slower, and the least memory.
    isa: name of an instruction set; by default the best one, or what CAQ_ISA names. arena_bytes: of an arena for one
    inference; peak_bytes and lower_bound_bytes: of its tensors as planned, and the most that are alive at once.
    panel_bytes: of all layers' panels. Raises SchemaError on parameters that cannot be computed with, ConfigError on an
    instruction set that does not run here.
    """

    def __init__(self, model: Model, *, lean: bool = False, isa: str | None = None) -> None:
        self.model, self.lean, self.isa = model, lean, choose_isa(isa)
        graph = model.graph
        self._keep: list[Any] = []  # memory that C structs point to
        self._layers = {layer.op: layer for layer in graph.layers}
        self._root = _shared(graph)
        self._tensors = _tensors(graph, self._root)
        self._fused = _fused_adds(graph, self._root, self._tensors)  # conv -> add
        self.order = [i for i in range(len(graph.ops)) if i not in self._fused.values() and self._root[i + 1] == i + 1]
        self.arena_bytes = self._plan_memory()
        self._steps = ffi.new("caq_step[]", max(1, len(self.order)))
        self.panel_bytes = self.requantize_bytes = 0
        for at, op in enumerate(self.order):
            self._fill(self._steps[at], op)
        self._program = self._make_program()
        scratch = int(lib.caq_scratch_bytes(self.isa, self._program))
        self._program.scratch = aligned(self.arena_bytes)
        if lean:
            self.arena_bytes = self._program.scratch + scratch + _SLACK
        self._scratch = np.empty(scratch, np.uint8)
        self._arenas: list[Any] = []
        self._dtype, self._shape = np.dtype(model.scaling.dtype), model.sample_shape
        self.outputs = math.prod(graph.shapes[-1])

    @property
    def pointer(self) -> Any:
        """The C struct, as long as this object lives."""
        return self._program

    def name_of(self, step: int) -> str:
        """Kind and name of a step, with what is fused into it."""
        op = self.model.graph.ops[self.order[step]]
        added = self._fused.get(self.order[step])
        name = f"{op.kind} {op.name}".strip()
        return name if added is None else f"{name} + {self.model.graph.ops[added].name or 'add'}"

    def ops_of(self, step: int) -> tuple[int, ...]:
        """Indices of the graph's operations that a step carries out: its own, and an add that is fused into it."""
        op = self.order[step]
        return (op, self._fused[op]) if op in self._fused else (op,)

    def _target(self, op: int) -> int:
        """The tensor that an op's step writes."""
        return self._root[self._fused.get(op, op) + 1]

    def _sources(self, op: int) -> list[int]:
        """The graph's tensors that an op's step reads."""
        ops = self.model.graph.ops
        residual = [t for t in ops[self._fused[op]].inputs if t != op + 1] if op in self._fused else []
        return [*ops[op].inputs, *residual]

    def _plan_memory(self) -> int:
        """Gives every tensor a place in the arena, and returns the arena's size.

        A step that reads each code just before it writes it may write in place.
        """
        ops, tensors = self.model.graph.ops, self._tensors
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
        return aligned(self.peak_bytes) + _SLACK + 64 * stride

    def _narrowed_when_written(self, conv: int) -> bool:
        source = self._root[self.model.graph.ops[conv].inputs[0]]
        return source != 0 and len(self._tensors[source].readers) == 1

    def _view(self, view: Any, tensor: int) -> None:
        """Fills in how one of the graph's tensors lies; it may be another shape of what shares its memory."""
        root, shape = self._tensors[self._root[tensor]], self.model.graph.shapes[tensor]
        t = root if shape == root.shape else _Tensor(shape, root.item, root.zero)
        view.offset = self._offsets[self._root[tensor]] + t.first_pixel
        view.row, view.bytes, view.zero = t.row, t.item, t.zero
        view.h, view.w, view.c = t.shape
        view.top, view.bottom, view.left, view.right = t.halo

    def _fill(self, step: Any, index: int) -> None:
        graph, steps = self.model.graph, self.model.parameters.steps
        op = graph.ops[index]
        sources, target = self._sources(index), self._target(index)
        step.inputs = self._new("caq_view[]", len(sources))
        step.input_count = len(sources)
        for i, t in enumerate(sources):
            self._view(step.inputs[i], t)
        self._view(step.output, target)
        step.layer = step.narrow_at = -1
        readers = self._tensors[target].readers
        narrows = len(readers) == 1 and graph.ops[readers[0]].kind == "conv"
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
            step.requantize = self._array("int32_t[]", np.concatenate(_rows(f)))
        else:
            step.kind = lib.CAQ_LOOKUP
            step.tables = self._array("int16_t[]", np.concatenate([self._table(op, index, t) for t in op.inputs]))

    def _fill_conv(self, step: Any, index: int, source: int) -> None:
        graph = self.model.graph
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
        self.panel_bytes = aligned(self.panel_bytes + lib.caq_panel_bytes(self.isa, pointer))
        self.requantize_bytes = aligned(self.requantize_bytes + lib.caq_requantize_bytes(self.isa, pointer))
        if index in self._fused:
            added = self._fused[index]
            addition = graph.ops[added]
            multipliers, offset, shift = adding(addition, self.model.parameters.steps, added + 1)
            if addition.inputs[0] != index + 1:
                multipliers = multipliers[::-1]
            self._fill_sum(step.sum, addition, multipliers, offset, shift)

    def _fill_sum(self, s: Any, op: Op, multipliers: tuple[int, ...], offset: int, shift: int) -> None:
        for i, k in enumerate(multipliers):
            s.multiplier[i] = k
        s.offset, s.shift, s.low, s.high = offset, shift, op.low, op.high

    def _table(self, op: Op, index: int, source: int) -> NDArray[np.int16]:
        """What each byte of tensor `source` becomes, as the arena holds it."""
        f = rescaling(op, self.model.graph, self.model.parameters.steps, source, index + 1)
        codes = np.arange(256, dtype=np.int32)[:, None] - self._tensors[self._root[source]].zero
        out = self._tensors[self._target(index)]
        return (requantize(codes, f, op.low, op.high)[:, 0] + out.zero).astype(np.int16)

    def _make_program(self) -> Any:
        model, p, s = self.model, self.model.parameters, self.model.scaling
        program = ffi.new("caq_program *")
        program.steps, program.step_count = self._steps, len(self.order)
        self._view(program.input, 0)
        self._view(program.output, len(model.graph.ops))
        program.dtype, program.scaling_channels = _DTYPES[s.dtype], s.channels
        # The channels' integers over and over, so that the kernels read them as they read the samples.
        times = -(-_ENCODED_AT_ONCE // s.channels)
        program.scaling_period = times * s.channels
        rows = [np.tile(row.astype(np.int32), times + 1) for row in (s.multiplier, s.offset, s.shift)]
        program.scaling = self._array("int32_t[]", np.concatenate(rows))
        program.resolution = self._array("float[]", np.tile(s.resolution, times + 1))
        program.sample_bytes = int(np.prod(model.sample_shape)) * np.dtype(s.dtype).itemsize
        program.gain, program.bias = self._array("int16_t[]", p.gain), self._array("int16_t[]", p.bias)
        program.gain_exponent = self._array("int8_t[]", p.gain_exponent)
        program.bias_exponent = self._array("int8_t[]", p.bias_exponent)
        program.channels, program.layers = p.gain.shape[1], len(model.graph.layers)
        program.planes, program.plane_bytes = self._array("uint8_t[]", model.planes), model.planes.shape[1]
        return program

    def _new(self, kind: str, count: int) -> Any:
        memory = ffi.new(kind, count)
        self._keep.append(memory)
        return memory

    def _array(self, kind: str, array: NDArray[Any]) -> Any:
        """A pointer to the array's own bytes, which this object keeps."""
        pointer = ffi.from_buffer(kind, np.ascontiguousarray(array))
        self._keep.append(pointer)
        return pointer

    def borrow_arena(self) -> Any:
        """Memory for one inference, to be given back to `arenas`."""
        try:
            return self._arenas.pop()
        except IndexError:
            return ffi.from_buffer("uint8_t[]", aligned_empty(self.arena_bytes))

    def return_arena(self, arena: Any) -> None:
        """Keeps the memory for the next inference."""
        self._arenas.append(arena)

    def trim(self) -> None:
        """Frees the arenas that no inference uses."""
        self._arenas.clear()


class Tables:
    """What an assignment needs besides panels: requantization and narrowing; small, and filled once.

    The assignment has passed `graph.check_assignment`, and its planes were read.
    """

    def __init__(self, program: Program, assignment: Assignment, parameter_set: int | None) -> None:
        model, layers = program.model, len(assignment)
        self.assignment, self.parameter_set = assignment, parameter_set
        self.choices = ffi.new("caq_choice[]", layers)
        index = {w: i for i, w in enumerate(model.graph.widths)}
        for i, pair in enumerate(assignment):
            c = self.choices[i]
            c.weight_width, c.activation_width = pair.weight, pair.activation
            c.set = index[pair.weight] if parameter_set is None else parameter_set
            c.ratio = 1.0 if pair.activation == TOP_WIDTH else float(model.parameters.ratios[i, index[pair.activation]])
        self.requantize = ffi.from_buffer("uint8_t[]", aligned_empty(program.requantize_bytes))
        self.narrow = ffi.from_buffer("uint8_t[]", np.empty(256 * layers, np.uint8))
        self.filled = False


class NativePlan:
    """An assignment's panels and tables, ready to run; immutable, and shared by threads.

    One thread at a time may make plans of a program. weight_bytes: what the panels take. Raises SchemaError, naming the
    layer, on parameters that cannot be computed with.
    """

    def __init__(self, program: Program, tables: Tables) -> None:
        self._program, self._tables = program, tables
        self.weight_bytes = 0 if program.lean else program.panel_bytes
        self._panels = ffi.from_buffer("int8_t[]", aligned_empty(self.weight_bytes))
        self._layers = ffi.new("caq_layer[]", len(tables.assignment))
        refused = lib.caq_prepare(
            program.isa,
            program.pointer,
            tables.choices,
            ffi.NULL if program.lean else self._panels,
            tables.requantize,
            tables.narrow,
            not tables.filled,
            ffi.from_buffer("uint8_t[]", program._scratch),
            self._layers,
        )
        if refused:
            model = program.model
            _explain(model.graph, model.parameters, tables.assignment, tables.parameter_set, refused - 1)
        tables.filled = True

    @property
    def assignment(self) -> Assignment:
        """The widths that this plan computes with."""
        return self._tables.assignment

    def run_sample(self, x: NDArray[np.generic]) -> NDArray[np.int16] | None:
        """Output codes (outputs,) of one sample; None if `x` is anything but a good one, which `run` has words for."""
        p = self._program
        if x.__class__ is not np.ndarray or x.dtype != p._dtype or x.shape != p._shape:
            return None
        try:
            source = _from_buffer(x)
        except (ValueError, BufferError):  # not contiguous
            return None
        y = _empty(p.outputs, _INT16)
        arena = p.borrow_arena()
        bad = _run(p.isa, p._program, self._layers, source, 1, _from_buffer(_INT16_ARRAY, y), arena)
        p._arenas.append(arena)
        return None if bad else y

    def run(self, x: NDArray[np.generic]) -> NDArray[np.int16]:
        """Output codes (N, outputs) of a batch (N, *sample_shape).

        Raises DataError on another dtype, NaN and infinity.
        """
        p = self._program
        p.model.scaling.check(x)
        x = np.ascontiguousarray(x)
        y = np.empty((len(x), p.outputs), np.int16)
        arena = p.borrow_arena()
        bad = _run(p.isa, p._program, self._layers, _from_buffer(x), len(x), _from_buffer(_INT16_ARRAY, y), arena)
        p.return_arena(arena)
        if bad:
            check_finite(x, "samples")
        return y

    def time_steps(self, x: NDArray[np.generic], repeat: int, rounds: int) -> list[float]:
        """Seconds of each step of the program for one sample: the least of `rounds` means over `repeat` runs."""
        p = self._program
        arena = p.borrow_arena()
        y = np.empty(p.outputs, np.int16)
        _run(
            p.isa,
            p._program,
            self._layers,
            _from_buffer(np.ascontiguousarray(x)),
            1,
            _from_buffer(_INT16_ARRAY, y),
            arena,
        )
        best = [math.inf] * len(p.order)
        for _ in range(rounds):
            for step in range(len(p.order)):
                start = time.perf_counter()
                lib.caq_run_step(p.isa, p._program, self._layers, step, repeat, arena)
                best[step] = min(best[step], (time.perf_counter() - start) / repeat)
        p.return_arena(arena)
        return best


def _explain(
    graph: Graph, parameters: Parameters, assignment: Assignment, parameter_set: int | None, index: int
) -> None:
    """Raises the SchemaError that the reference raises on the layer's parameters."""
    layer, pair = graph.layers[index], assignment[index]
    if pair.activation != 8:
        ratio = parameters.ratios[index, graph.widths.index(pair.activation)]
        with naming(f"layer {layer.name!r} at {pair}: input"):
            narrowing(ratio, pair.activation, graph.signed(graph.ops[layer.op].inputs[0]))
    layer_fixed_point(graph, parameters, layer, pair, parameter_set)
    raise SchemaError(f"layer {layer.name!r} at {pair}: its parameters cannot be computed with")


def aligned_empty(size: int) -> NDArray[np.uint8]:
    """Uninitialized bytes that begin at a cache line."""
    memory = np.empty(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size]


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

"""Lowers a model to a program of the native kernels: fused steps, views into one arena, prepared weights.

What does not depend on an operating point (steps, views, the arena's layout) is made once. An operating point adds a
`NativePlan`: panels of weights, requantization and narrowing tables, which no one writes after it is made.

Fusion: a conv's requantization and clamp are part of it; a residual add whose one term is a conv's output that nobody
else reads is done by that conv, while the codes are in registers. Narrowing to a layer's activation width is part of
the requantization of a conv that writes for that layer alone (plan.written), and else done by whoever writes the
layer's input, if nobody else reads that. A conditional gate counts as a reader of what is alive where it decides: that
stays in 8 bits, and no step reaches across (caq.native_conditional runs such points).
"""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from caq.conditional import crossing
from caq.errors import ConfigError
from caq.graph import Graph, Op, output_bits
from caq.kernels import _native
from caq.memory import ALIGNMENT, Buffer, aligned, lower_bound, place
from caq.model import Model
from caq.plan import adding, only_readers, rescaling
from caq.quant import TOP_WIDTH, FixedPoint, requantize

if TYPE_CHECKING:
    from numpy.typing import NDArray

ffi, lib = _native.ffi, _native.lib

_DTYPES = {"uint8": 0, "int16": 1, "float32": 2}
_VECTOR, _LONGEST_PERIOD = 64, 4096  # items that are encoded at once; items that scaling repeats after, at most
_OUTPUTS_AT_ONCE = 2**16  # bytes
_SLACK = 256  # kernels read whole vectors past the end of a tensor
#: From this size on a block is a mapping of its own: what an allocator is given back, it may keep.
_OWN_MAPPING = 2**20

#: Why an instruction set does not run.
NOT_BUILT, CPU_LACKS = "not built for this machine", "this CPU does not have it"

#: Stands among a tensor's readers for a conditional gate: what it reads, and what other branches read, stays as it is.
_GATE = -1

INT16_ARRAY = ffi.typeof("int16_t[]")


def isa_names() -> dict[str, str]:
    """Each instruction set, and "" if it runs here, or why it does not."""
    reasons = {1: "", 0: NOT_BUILT, -1: CPU_LACKS}
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


def usable_threads(wanted: int) -> int:
    """`wanted`, or the number of CPUs that this process may run on if that is less.

    Raises ConfigError unless it is an integer of at least 1, and for more than 1 where the kernels have no threads.
    """
    if isinstance(wanted, bool) or not isinstance(wanted, int | np.integer) or wanted < 1:
        raise ConfigError(f"threads is how many CPUs an inference may use, an integer of at least 1, not {wanted!r}")
    if wanted > 1 and not lib.caq_team_bytes(2):
        raise ConfigError(f"threads: the kernels were built without POSIX threads, so 1 is what there is, not {wanted}")
    return min(int(wanted), cpus())


def cpus() -> int:
    """How many CPUs this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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


class Program:
    """A model's steps for the native kernels.

    lean: plans hold no panels; each inference unpacks every layer into its arena: slower, and the least memory.
    threads: that an inference's large steps are cut for; see `usable_threads`.
    isa: name of an instruction set; by default the best one, or what CAQ_ISA names. arena_bytes: of an arena for one
    inference; peak_bytes and lower_bound_bytes: of its tensors as planned, and the most that are alive at once.
    panel_bytes: of all layers' panels. Raises SchemaError on parameters that cannot be computed with, ConfigError on an
    instruction set that does not run here, and on threads that cannot be had.
    """

    def __init__(self, model: Model, *, lean: bool = False, isa: str | None = None, threads: int = 1) -> None:
        self.model, self.lean, self.isa, self.threads = model, lean, choose_isa(isa), usable_threads(threads)
        graph = model.graph
        self._keep: list[Any] = []  # memory that C structs point to
        self._layers = {layer.op: layer for layer in graph.layers}
        self._root = _shared(graph)
        self._tensors = _tensors(graph, self._root)
        for t in {t for p in model.points if p.gate is not None for t in crossing(graph, p.gate.tensor)}:
            self._tensors[self._root[t]].readers.append(_GATE)
        alone = only_readers(graph)
        self._direct = {graph.layers[i].op for i in alone}  # convs whose reader says what they write
        self._reads_direct = {graph.layers[i].op for i in alone.values()}
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
        self._scratch = ffi.from_buffer("uint8_t[]", np.empty(0 if lean else scratch, np.uint8))
        self.arenas: list[Any] = []  # that no inference uses
        self.spare_outputs: list[tuple[NDArray[np.int16], Any]] = []
        self.outputs = math.prod(graph.shapes[-1])
        if self.threads > 1:
            self._program.team = self._team = _start_team(self.threads)

    @property
    def pointer(self) -> Any:
        """The C struct, as long as this object lives."""
        return self._program

    def pointer_with(self, planes: NDArray[np.uint8]) -> Any:
        """As `pointer`, with other bit planes, as long as this object and what is returned live."""
        program, memory = ffi.new("caq_program *", self._program[0]), ffi.from_buffer("uint8_t[]", planes)
        program.planes = memory

        def keep(program: Any, _memory: Any = memory) -> None:  # which must stay until then
            pass

        return ffi.gc(program, keep)

    def name_of(self, step: int) -> str:
        """Name of a step, with that of the add that is fused into it."""
        ops, op = self.model.graph.ops, self.order[step]
        return " + ".join(ops[i].name or ops[i].kind for i in (op, self._fused.get(op)) if i is not None)

    def panel_bytes_of(self, step: int, width: int) -> int:
        """Bytes of weights that a step's kernel reads when they have `width` bits; 0 for a step without weights."""
        s = self._steps[step]
        return int(lib.caq_panel_bytes(self.isa, ffi.addressof(s.conv), width)) if s.kind == lib.CAQ_CONV else 0

    def tensor_bytes_of(self, step: int) -> int:
        """Bytes of the tensors that a step reads and of the one that it writes, halos included."""
        s = self._steps[step]
        return sum((v.h + v.top + v.bottom) * v.row for v in (*s.inputs[0 : s.input_count], s.output))

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
        return conv in self._reads_direct or (source != 0 and len(self._tensors[source].readers) == 1)

    def view(self, view: Any, tensor: int) -> None:
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
        self.panel_bytes = aligned(self.panel_bytes + lib.caq_panel_bytes(self.isa, pointer, TOP_WIDTH))
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
        self.view(program.input, 0)
        self.view(program.output, len(model.graph.ops))
        program.dtype = _DTYPES[s.dtype]
        # The channels' integers over and over, so that the kernels read them as they read the samples.
        period = math.lcm(s.channels, _VECTOR)
        if period > _LONGEST_PERIOD:
            period = s.channels
        program.scaling_period = period
        rows = [np.tile(row.astype(np.int32), period // s.channels) for row in (s.multiplier, s.offset, s.shift)]
        program.scaling = self._array("int32_t[]", np.concatenate(rows))
        program.resolution = self._array("float[]", np.tile(s.resolution, period // s.channels))
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

    def make_arena(self) -> Any:
        """Memory for one inference."""
        return ffi.from_buffer("uint8_t[]", aligned_empty(self.arena_bytes))

    def borrow_arena(self) -> Any:
        """Memory for one inference, to be appended to `arenas` after it."""
        try:
            return self.arenas.pop()
        except IndexError:
            return self.make_arena()

    def make_outputs(self) -> tuple[NDArray[np.int16], Any]:
        """An array for the outputs of one sample, and a pointer to it.

        Arrays are made several at once, as rows of one, since making one takes as long as a small layer.
        """
        rows = max(1, min(64, _OUTPUTS_AT_ONCE // (2 * self.outputs)))
        y = np.empty((rows, self.outputs), np.int16)
        start = ffi.from_buffer("int16_t[]", y)
        first, *rest = ((row, start + i * self.outputs) for i, row in enumerate(y))
        self.spare_outputs.extend(rest)
        return first

    def pointers(self, x: NDArray[np.generic], y: NDArray[np.int16]) -> tuple[Any, Any]:
        """Of a sample and its outputs, for `NativePlan.bound`; they keep the arrays."""
        return ffi.from_buffer(x), ffi.from_buffer(INT16_ARRAY, y)

    def trim(self) -> None:
        """Frees the arenas that no inference uses, and arrays for outputs to come."""
        self.arenas.clear()
        self.spare_outputs.clear()


def _start_team(threads: int) -> Any:
    """Threads that share inferences, until what is returned is collected."""
    memory = aligned_empty(lib.caq_team_bytes(threads))
    team = ffi.cast("caq_team *", ffi.from_buffer(memory))
    if error := lib.caq_team_start(team, threads):
        raise ConfigError(f"threads: {threads} cannot be started ({os.strerror(error)}); ask for fewer")

    def stop(team: Any, _memory: NDArray[np.uint8] = memory) -> None:  # which must stay until then
        lib.caq_team_stop(team)

    return ffi.gc(team, stop)


def aligned_empty(size: int) -> NDArray[np.uint8]:
    """Uninitialized bytes that begin at a cache line. Raises MemoryError."""
    if size >= _OWN_MAPPING:
        from caq.pages import block  # small models do without

        return block(size)
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

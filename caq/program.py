"""Lowers a model to a program of the native kernels: its layout (caq.layout), its parameters and its memory.

What does not depend on an operating point is made once. An operating point adds a
`NativePlan`: panels of weights, requantization and narrowing tables, which no one writes after it is made.
"""

from __future__ import annotations

import math
import os
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from caq.errors import ConfigError
from caq.kernels import _native
from caq.layout import SLACK, Kept, layout_of
from caq.memory import ALIGNMENT, aligned
from caq.model import Model

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from caq.graph import Assignment
    from caq.plan import Written

ffi, lib = _native.ffi, _native.lib

_DTYPES = {"uint8": 0, "int16": 1, "float32": 2}
_VECTOR, _LONGEST_PERIOD = 64, 4096  # items that are encoded at once; items that scaling repeats after, at most
_OUTPUTS_AT_ONCE = 2**16  # bytes
#: From this size on a block is a mapping of its own: what an allocator is given back, it may keep.
_OWN_MAPPING = 2**20

#: Why an instruction set does not run.
NOT_BUILT, CPU_LACKS = "not built for this machine", "this CPU does not have it"

INT16_ARRAY = ffi.typeof("int16_t[]")


@cache
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
        self._layout = layout = layout_of(model, self.isa)
        self.order, self.arena_bytes = layout.order, layout.arena_bytes
        self.peak_bytes, self.lower_bound_bytes = layout.peak_bytes, layout.lower_bound_bytes
        self.panel_bytes, self.requantize_bytes = layout.panel_bytes, layout.requantize_bytes
        self._kept = Kept()
        self._program = self._make_program()
        scratch = int(lib.caq_scratch_bytes(self.isa, self._program))
        self._program.scratch = aligned(self.arena_bytes)
        if lean:
            self.arena_bytes = self._program.scratch + scratch + SLACK
        self._scratch = ffi.from_buffer("uint8_t[]", np.empty(0 if lean else scratch, np.uint8))
        self.arenas: list[Any] = []  # that no inference uses
        self.spare_outputs: list[tuple[NDArray[np.int16], Any]] = []
        self.outputs = math.prod(model.graph.shapes[-1])
        self._rows = ffi.typeof(f"int16_t[][{self.outputs}]")
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

    def written(self, assignment: Assignment) -> list[Written]:
        """What each layer writes (caq.plan). Raises SchemaError."""
        return self._layout.written(assignment)

    def view(self, view: Any, tensor: int) -> None:
        """Fills in how one of the graph's tensors lies in an arena."""
        self._layout.view(view, tensor)

    def name_of(self, step: int) -> str:
        """Name of a step, with that of the add that is fused into it."""
        ops, op = self.model.graph.ops, self.order[step]
        return " + ".join(ops[i].name or ops[i].kind for i in (op, self._layout.fused.get(op)) if i is not None)

    def panel_bytes_of(self, step: int, width: int) -> int:
        """Bytes of weights that a step's kernel reads when they have `width` bits; 0 for a step without weights."""
        s = self._layout.c_steps[step]
        return int(lib.caq_panel_bytes(self.isa, ffi.addressof(s.conv), width)) if s.kind == lib.CAQ_CONV else 0

    def tensor_bytes_of(self, step: int) -> int:
        """Bytes of the tensors that a step reads and of the one that it writes, halos included."""
        s = self._layout.c_steps[step]
        return sum((v.h + v.top + v.bottom) * v.row for v in (*s.inputs[0 : s.input_count], s.output))

    def ops_of(self, step: int) -> tuple[int, ...]:
        """Indices of the graph's operations that a step carries out: its own, and an add that is fused into it."""
        op = self.order[step]
        return (op, self._layout.fused[op]) if op in self._layout.fused else (op,)

    def _make_program(self) -> Any:
        model, p, s = self.model, self.model.parameters, self.model.scaling
        program = ffi.new("caq_program *")
        program.steps, program.step_count = self._layout.c_steps, len(self.order)
        self.view(program.input, 0)
        self.view(program.output, len(model.graph.ops))
        program.dtype = _DTYPES[s.dtype]
        # The channels' integers over and over, so that the kernels read them as they read the samples.
        period = math.lcm(s.channels, _VECTOR)
        if period > _LONGEST_PERIOD:
            period = s.channels
        program.scaling_period = period
        rows = [np.tile(row.astype(np.int32), period // s.channels) for row in (s.multiplier, s.offset, s.shift)]
        program.scaling = self._kept.array("int32_t[]", np.concatenate(rows))
        program.resolution = self._kept.array("float[]", np.tile(s.resolution, period // s.channels))
        program.sample_bytes = int(np.prod(model.sample_shape)) * np.dtype(s.dtype).itemsize
        program.gain, program.bias = self._kept.array("int16_t[]", p.gain), self._kept.array("int16_t[]", p.bias)
        program.gain_exponent = self._kept.array("int8_t[]", p.gain_exponent)
        program.bias_exponent = self._kept.array("int8_t[]", p.bias_exponent)
        program.channels, program.layers = p.gain.shape[1], len(model.graph.layers)
        program.planes, program.plane_bytes = self._kept.array("uint8_t[]", model.planes), model.planes.shape[1]
        return program

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
        first, *rest = zip(y, ffi.from_buffer(self._rows, y), strict=True)
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

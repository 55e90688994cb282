"""Plans of the native kernels: an assignment's panels and tables, ready to run a program (caq.program)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from caq.errors import SchemaError
from caq.graph import Assignment, Graph
from caq.plan import Parameters, layer_fixed_point, naming, narrowing, written
from caq.planes import own_planes
from caq.program import INT16_ARRAY, Program, aligned_empty, ffi, lib
from caq.quant import TOP_WIDTH
from caq.scaling import check_finite

if TYPE_CHECKING:
    from numpy.typing import NDArray

_ndarray, _run, _from_buffer = np.ndarray, lib.caq_run, ffi.from_buffer


class Tables:
    """What an assignment needs besides panels: requantization and narrowing; small, and filled once.

    The assignment has passed `graph.check_assignment`, and its planes were read.
    """

    def __init__(self, program: Program, assignment: Assignment, parameter_set: int | None) -> None:
        model, layers = program.model, len(assignment)
        self.assignment, self.parameter_set = assignment, parameter_set
        self.choices = ffi.new("caq_choice[]", layers)
        index = {w: i for i, w in enumerate(model.graph.widths)}
        outputs = program.written(assignment)
        for i, pair in enumerate(assignment):
            c = self.choices[i]
            c.weight_width, c.activation_width = pair.weight, pair.activation
            c.set = index[pair.weight] if parameter_set is None else parameter_set
            c.ratio = 1.0 if pair.activation == TOP_WIDTH else float(model.parameters.ratios[i, index[pair.activation]])
            c.output_ratio, c.low, c.high = outputs[i]
        self.requantize = ffi.from_buffer("uint8_t[]", aligned_empty(program.requantize_bytes))
        self.narrow = ffi.from_buffer("uint8_t[]", np.empty(256 * layers, np.uint8))
        self.filled = False


class NativePlan:
    """An assignment's panels and tables, ready to run; immutable, and shared by threads.

    One thread at a time may make plans of a program. weight_bytes: what the panels take. Raises SchemaError, naming the
    layer, on parameters that cannot be computed with. It and every inference without panels raise IntegrityError if the
    bit planes lie in a mapped file that was changed.
    """

    def __init__(self, program: Program, tables: Tables) -> None:
        model = program.model
        model.check_file()
        p, assignment, row = model.parameters, tables.assignment, tables.parameter_set
        planes = own_planes(model.graph, model.planes, assignment, row, p.flips, p.head)
        self._program, self._tables, self._planes = program, tables, planes
        self._pointer = program.pointer if planes is model.planes else program.pointer_with(planes)
        self.weight_bytes = 0 if program.lean else program.panel_bytes
        self._panels = ffi.from_buffer("int8_t[]", aligned_empty(self.weight_bytes))
        self._layers = ffi.new("caq_layer[]", len(tables.assignment))
        arena = program.borrow_arena() if program.lean else None
        refused = lib.caq_prepare(
            program.isa,
            self._pointer,
            tables.choices,
            ffi.NULL if program.lean else self._panels,
            tables.requantize,
            tables.narrow,
            not tables.filled,
            program._scratch if arena is None else arena + program.pointer.scratch,
            self._layers,
        )
        if arena is not None:
            program.arenas.append(arena)
        if refused:
            _explain(model.graph, model.parameters, tables.assignment, tables.parameter_set, refused - 1)
        tables.filled = True
        self._call = partial(_run, program.isa, self._pointer, self._layers)
        self._look_up()

    def _look_up(self) -> None:
        """Once, as a call should cost little more than its kernels."""
        program = self._program
        self._reads_planes, self._arenas, self._outputs = program.lean, program.arenas, program.spare_outputs
        self._dtype, self._shape = np.dtype(program.model.scaling.dtype), program.model.sample_shape

    @property
    def program(self) -> Program:
        """What it runs."""
        return self._program

    @property
    def assignment(self) -> Assignment:
        """The widths that this plan computes with; those of its first branch if it has several."""
        return self.assignments[0]

    @property
    def assignments(self) -> tuple[Assignment, ...]:
        """The widths that this plan computes with, of each branch."""
        return (self._tables.assignment,)

    def run_sample(self, x: NDArray[np.generic]) -> NDArray[np.int16] | None:
        """Output codes (outputs,) of one sample; None if `x` is anything but a good one, which `run` has words for."""
        if x.__class__ is not _ndarray or x.dtype != self._dtype or x.shape != self._shape:
            return None
        try:
            source = _from_buffer(x)
        except (ValueError, BufferError):  # not contiguous
            return None
        if self._reads_planes:
            self._program.model.check_file()
        try:
            y, target = self._outputs.pop()
        except IndexError:
            y, target = self._program.make_outputs()
        try:
            arena = self._arenas.pop()
        except IndexError:
            arena = self._program.make_arena()
        bad = self._call(source, 1, target, arena)
        self._arenas.append(arena)
        return None if bad else y

    def bound(self, source: Any, target: Any, arena: Any) -> Callable[[], int]:
        """What runs the sample at pointer `source` into pointer `target`; it returns nonzero on NaN and infinity."""
        call = partial(self._call, source, 1, target, arena)
        return partial(self._after_check, call) if self._reads_planes else call

    def _after_check(self, call: Callable[[], int]) -> int:
        self._program.model.check_file()
        return call()

    def run(self, x: NDArray[np.generic]) -> NDArray[np.int16]:
        """Output codes (N, outputs) of a batch (N, *sample_shape).

        Raises DataError on another dtype, NaN and infinity.
        """
        return self._run_batch(self._call, x)

    def _run_batch(self, call: Callable[..., int], x: NDArray[np.generic]) -> NDArray[np.int16]:
        p = self._program
        p.model.scaling.check(x)
        if p.lean:
            p.model.check_file()
        x = np.ascontiguousarray(x)
        y = np.empty((len(x), p.outputs), np.int16)
        arena = p.borrow_arena()
        bad = call(_from_buffer(x), len(x), _from_buffer(INT16_ARRAY, y), arena)
        p.arenas.append(arena)
        if bad:
            check_finite(x, "samples")
        return y

    def run_routed(self, x: NDArray[np.generic]) -> tuple[NDArray[np.int16], NDArray[np.int32]]:
        """As `run`, and the branch (N,) that each sample took: 0, since there is no other."""
        return self.run(x), np.zeros(len(x), np.int32)

    def time_steps(self, x: NDArray[np.generic], repeat: int, rounds: int) -> list[float]:
        """Seconds of each step of the program for one sample: the least of `rounds` means over `repeat` runs."""
        p = self._program
        arena = p.borrow_arena()
        y = np.empty(p.outputs, np.int16)
        x = np.ascontiguousarray(x)
        self._call(_from_buffer(x), 1, _from_buffer(INT16_ARRAY, y), arena)
        best = self._timed(lib.caq_run_step, arena, repeat, rounds)
        p.arenas.append(arena)
        return best

    @property
    def branches(self) -> tuple[NativePlan, ...]:
        """The plan of each branch: this one, since there is no other."""
        return (self,)

    def time_gate(self, repeat: int) -> float:
        """Seconds that a gate takes, as a mean over `repeat` calls from Python: 0, since there is none."""
        return 0.0

    def time_unpacking(self, repeat: int, rounds: int) -> list[float]:
        """Of each step's seconds, those that a lean plan unpacks its weights in; zeros where the plan holds panels."""
        p = self._program
        if not p.lean:
            return [0.0] * len(p.order)
        arena = p.borrow_arena()
        best = self._timed(lib.caq_unpack_step, arena, repeat, rounds)
        p.arenas.append(arena)
        return best

    def _timed(self, call: Any, arena: Any, repeat: int, rounds: int) -> list[float]:
        p = self._program
        best = [math.inf] * len(p.order)
        for _ in range(rounds):
            for step in range(len(p.order)):
                start = time.perf_counter()
                call(p.isa, self._pointer, self._layers, step, repeat, arena)
                best[step] = min(best[step], (time.perf_counter() - start) / repeat)
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
    output = written(graph, parameters.ratios, assignment)[index]
    layer_fixed_point(graph, parameters, layer, pair, parameter_set, output.ratio)
    raise SchemaError(f"layer {layer.name!r} at {pair}: its parameters cannot be computed with")


def softmax(codes: NDArray[np.int16], factor: int) -> NDArray[np.uint16]:
    """kernels.reference.softmax of codes (N, C)."""
    codes = np.ascontiguousarray(codes, np.int16)
    p = np.empty(codes.shape, np.uint16)
    for row, target in zip(codes, p, strict=True):
        lib.caq_softmax(
            ffi.from_buffer("int16_t[]", row), len(row), factor, ffi.from_buffer("uint16_t[]", target, True)
        )
    return p

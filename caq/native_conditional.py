"""Conditional operating points in the native kernels: one call runs the prefix, the gate and the rest of the branch."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from caq.conditional import ConditionalGate
from caq.graph import Assignment
from caq.native import NativePlan, Tables
from caq.program import Program, ffi, lib

if TYPE_CHECKING:
    from numpy.typing import NDArray


class ConditionalPlan(NativePlan):
    """The plans of a gate's branches and the gate, ready to run; immutable, and shared by threads.

    tables: of each branch. The panels of all branches are there, so no inference waits. The program's model has a point
    with this gate. Raises as NativePlan does.
    """

    def __init__(self, program: Program, tables: Sequence[Tables], gate: ConditionalGate) -> None:
        self._program = program
        self._branches = tuple(NativePlan(program, table) for table in tables)
        self.weight_bytes = sum(plan.weight_bytes for plan in self._branches)
        layers = len(program.model.graph.layers)
        self._layers = ffi.new("caq_layer[]", layers * len(tables))
        for i, plan in enumerate(self._branches):
            ffi.memmove(self._layers + i * layers, plan._layers, ffi.sizeof(plan._layers))
        self._weights = ffi.from_buffer("int8_t[]", np.array(gate.weights, np.int8))
        self._bias = ffi.from_buffer("int32_t[]", np.array(gate.bias, np.int32))
        self.gate = ffi.new("caq_gate *")
        self.gate.step = sum(op < gate.tensor for op in program.order)
        self.gate.branches, self.gate.shift = len(tables), gate.shift
        self.gate.weights, self.gate.bias = self._weights, self._bias
        if program.lean and any(plan._planes is not program.model.planes for plan in self._branches):
            self._own = [ffi.from_buffer("uint8_t[]", plan._planes) for plan in self._branches]
            self._own_planes = self.gate.planes = ffi.new("uint8_t *[]", self._own)
        program.view(self.gate.input, gate.tensor)
        self._run_gated = partial(lib.caq_run_gated, program.isa, program.pointer, self._layers, self.gate)
        self._call = partial(self._run_gated, ffi.NULL)
        self._look_up()

    @property
    def branches(self) -> tuple[NativePlan, ...]:
        """The plan of each branch, which computes what samples that take it get."""
        return self._branches

    @property
    def assignments(self) -> tuple[Assignment, ...]:
        """The widths that this plan computes with, of each branch."""
        return tuple(plan.assignment for plan in self._branches)

    def run_routed(self, x: NDArray[np.generic]) -> tuple[NDArray[np.int16], NDArray[np.int32]]:
        """As `run`, and the branch (N,) that each sample took."""
        taken = np.empty(len(x), np.int32)
        return self._run_batch(partial(self._run_gated, ffi.from_buffer("int32_t[]", taken)), x), taken

    def time_gate(self, repeat: int) -> float:
        """Seconds that the gate takes, as a mean over `repeat` calls from Python, on whatever the arena holds."""
        arena = self._program.borrow_arena()
        start = time.perf_counter()
        for _ in range(repeat):
            lib.caq_choose(self._program.isa, self.gate, arena)
        seconds = (time.perf_counter() - start) / repeat
        self._program.arenas.append(arena)
        return seconds

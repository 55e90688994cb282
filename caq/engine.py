"""Runs a model in integers, and switches its widths.

`Engine` holds one immutable plan at a time. `select` builds the plan of another operating point aside and swaps one
reference, so an inference that is under way finishes with the plan that it began with.
"""

from __future__ import annotations

import math
from _thread import allocate_lock  # threading.Lock without the rest of threading, which takes as long as this package
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from caq.artifact import check_max_width, load
from caq.conditional import Branch, ConditionalGate
from caq.errors import AssignmentError, ConfigError, DataError, nearest
from caq.graph import Assignment, LayerWidths
from caq.model import Model, OperatingPoint
from caq.native import NativePlan, Tables
from caq.native import softmax as native_softmax
from caq.plan import Parameters, build_plan
from caq.program import Program, isa_names
from caq.quant import plane_bytes
from caq.scaling import check_finite

if TYPE_CHECKING:
    from os import PathLike

    from numpy.typing import NDArray

    from caq.reference import ReferencePlan

KERNELS = ("native", "reference")

#: What an engine runs.
AnyPlan: TypeAlias = "NativePlan | ReferencePlan"


def _weights(assignment: Assignment) -> list[int]:
    return [pair.weight for pair in assignment]


class Engine:
    """A model that serves its operating points, one at a time, to any number of threads.

    source: path of a `.caq` file, or a `Model`. max_width: read no bit planes beyond this weight width; points that
    need more are not offered. kernels: "native", or "reference" for the slow ones that define right. lean: unpack
    weights at every inference instead of at a switch, for the least memory. mapped: leave the bit planes in the file,
    mapped, so that the system can have their memory; see `caq.pages` for what the file must not undergo then. isa: an
    instruction set by name, for comparisons. threads: CPUs that one inference may use, as far as this process may run
    on so many; `threads` says how many it uses. The first operating point is selected.

    With more than one thread, large layers are cut into parts, which changes no bit of an answer. The threads belong to
    one inference at a time: one that begins while another has them runs on its caller's thread alone, and so does every
    inference of a child process that was forked off. They end with the engine.

    At a conditional point each sample of a batch takes one of the point's branches, which its gate picks on the way;
    `run_routed` says which one. The panels of all branches are resident while the point is.

    Plans of points that were selected stay resident, so that selecting them again swaps one reference; `trim` frees
    them. Raises ArtifactError on a file that cannot be trusted, AssignmentError if no point is left, ConfigError on a
    source, a width, kernels or an instruction set that there is not, on threads that cannot be had, and on a file that
    cannot be mapped. Later calls raise IntegrityError if they need planes of a mapped file that was changed since.
    """

    def __init__(
        self,
        source: str | PathLike[str] | Model,
        *,
        max_width: int = 8,
        kernels: str = "native",
        lean: bool = False,
        mapped: bool = False,
        isa: str | None = None,
        threads: int = 1,
    ) -> None:
        if kernels not in KERNELS:
            raise ConfigError(f"kernels: one of {', '.join(KERNELS)} is expected, not {kernels!r}")
        check_max_width(max_width)
        if mapped and isinstance(source, Model) and source.mapped is None:
            raise ConfigError("mapped: this model is in memory; pass its path, or caq.load(path, mapped=True)")
        self.model = (
            source if isinstance(source, Model) else load(source, max_width=max_width, mapped=mapped, sections=False)
        )
        self._factory = self.model
        available = min(len(self.model.planes), max_width)
        needed = {p.name: max(max(_weights(b.assignment)) for b in p.branches) for p in self.model.points}
        served = {p.name: p for p in self.model.points if needed[p.name] <= available}
        if not served:
            least = min(needed.values())
            raise AssignmentError(
                f"no operating point has weights of at most {max_width} bits: the narrowest has {least}, "
                f"and {len(self.model.planes)} bit planes were read"
            )
        self.points: Mapping[str, OperatingPoint] = MappingProxyType(served)
        self.label_names = self.model.label_names
        self._program = Program(self.model, lean=lean, isa=isa, threads=threads) if kernels == "native" else None
        self._plans: dict[str, AnyPlan] = {}
        self._tables: dict[str, tuple[Tables, ...]] = {}
        self._lock = allocate_lock()
        first = next(iter(served))
        self._active: tuple[str, AnyPlan] = (first, self._resident(first))

    @property
    def program(self) -> Program | None:
        """The native kernels' steps; None with the reference kernels."""
        return self._program

    @property
    def threads(self) -> int:
        """How many threads an inference may use: 1 with the reference kernels."""
        return self._program.threads if self._program else 1

    @property
    def point(self) -> str:
        """Name of the operating point that the next inference will use."""
        return self._active[0]

    @property
    def plan(self) -> AnyPlan:
        """The plan that the next inference will use."""
        return self._active[1]

    def select(self, point: str) -> None:
        """Switches to an operating point by name. Raises AssignmentError for an unknown one."""
        self._known(point)
        with self._lock:
            self._active = (point, self._plans.get(point) or self._resident(point))

    def _known(self, point: str) -> OperatingPoint:
        if not isinstance(point, str):
            known = ", ".join(self.points)
            raise AssignmentError(f"a point is selected by its name, not by {type(point).__name__}; known: {known}")
        if point not in self.points:
            raise AssignmentError(f"no operating point {point!r}{nearest(point, self.points)}")
        return self.points[point]

    def adopt(self, parameters: Parameters, gates: Mapping[str, ConditionalGate] = MappingProxyType({})) -> None:
        """Takes other gains, biases and codes, as calibration finds them, at the point that is selected.

        gates: of points, by their names, at which the input's domain picks the parameter set (caq.calibration.domains);
        sets beyond the file's own are theirs. Other points are as in the file.

        The model, the program and the plans are made aside; an inference that is under way finishes with the plan that
        it began with. Plans of other points are made anew when they are selected. Raises ConfigError on parameters of
        another shape, or with other steps or ratios, which calibration leaves alone, on gates of other points, and on
        flips where points are conditional; SchemaError on parameters or gates that cannot be computed with. The engine
        is as it was then.
        """
        old = self._factory.parameters
        fixed = [(getattr(old, name), getattr(parameters, name)) for name in ("steps", "ratios")]
        sets, shape = len(old.gain) * (2 if gates else 1), parameters.gain.shape
        if shape != (sets, *old.gain.shape[1:]) or not all(np.array_equal(a, b) for a, b in fixed):
            raise ConfigError("parameters: gains and biases of this model's sets may change, and nothing else")
        parameters.check(self.model.graph)
        if strange := set(gates) - {p.name for p in self._factory.points if p.gate is None}:
            raise ConfigError(f"gates: {', '.join(sorted(strange))} is no point that has no gate here")
        points = tuple(p._replace(gate=gates.get(p.name, p.gate)) for p in self._factory.points)
        if parameters.flips is not None and any(p.gate is not None for p in points):
            raise ConfigError("parameters: flips, and points with gates, whose branches must share their codes")
        with self._lock:
            before = (self.model, self._program, self._plans, self._tables, self.points)
            try:
                self.model = self.model.replace(parameters=parameters, points=points)
                self.points = MappingProxyType({p.name: p for p in points if p.name in self.points})
                if (p := self._program) is not None:
                    isa = list(isa_names())[p.isa]
                    self._program = Program(self.model, lean=p.lean, isa=isa, threads=p.threads)
                self._plans, self._tables = {}, {}
                self._active = (self.point, self._resident(self.point))
            except BaseException:
                self.model, self._program, self._plans, self._tables, self.points = before
                raise

    def _resident(self, point: str) -> AnyPlan:
        plan = self._plans[point] = self._make(self.points[point])
        return plan

    def _make(self, point: OperatingPoint) -> AnyPlan:
        """The plan of an operating point; one thread at a time."""
        if (program := self._program) is None:
            return self._reference(point.branches, point.gate)
        tables = self._tables.get(point.name)
        if tables is None:
            tables = tuple(Tables(program, b.assignment, b.parameter_set) for b in point.branches)
        if point.gate is None:
            plan = NativePlan(program, tables[0])
        else:
            from caq.native_conditional import ConditionalPlan  # most models do without

            plan = ConditionalPlan(program, tables, point.gate)
        self._tables[point.name] = tables
        return plan

    def trim(self) -> None:
        """Gives back to the system what can be made, or read, again.

        That is plans of other points than the active one, memory of past inferences, and of mapped bit planes those
        that the active plan does not read at an inference: all, or, without panels, those below its widths.
        """
        with self._lock:
            active = self._active[1]
            self._plans = {name: plan for name, plan in self._plans.items() if plan is active}
            if self._program is not None:
                self._program.trim()
            if self.model.mapped is not None:
                self.model.mapped.give_back(self._planes_read(active.assignments))

    def _planes_read(self, assignments: Sequence[Assignment]) -> list[tuple[int, int]]:
        """First byte and length of what inferences read of each layer's bit planes, at one assignment or another."""
        if self._program is None or not self._program.lean:
            return []
        graph = self.model.graph
        return [
            (plane * graph.plane_bytes + layer.first_byte, plane_bytes(layer.weights))
            for layer, *pairs in zip(graph.layers, *assignments, strict=True)
            for plane in range(max(pair.weight for pair in pairs))
        ]

    def build(self, assignment: Assignment, parameter_set: int | None = None) -> AnyPlan:
        """The plan of any assignment, not only a point's; run it with `run_plan`. Raises AssignmentError.

        parameter_set: that of an operating point with the same weight widths, since gains are in units of those.
        """
        with self._lock:
            return self._built(self.model, assignment, parameter_set)

    def _built(self, model: Model, assignment: Assignment, parameter_set: int | None) -> AnyPlan:
        if not isinstance(assignment, tuple) or not all(isinstance(pair, LayerWidths) for pair in assignment):
            raise AssignmentError(
                "an assignment is a tuple of LayerWidths; caq.graph.parse_assignment('w8a8,w4a4') makes one from text"
            )
        if parameter_set is not None:
            owners = [(p.name, b) for p in model.points for b in p.branches if b.parameter_set == parameter_set]
            if not owners:
                raise AssignmentError(f"no parameter set {parameter_set!r} of an operating point; leave it out")
            if all(_weights(branch.assignment) != _weights(assignment) for _, branch in owners):
                names = ", ".join(dict(owners))
                raise AssignmentError(
                    f"parameter set {parameter_set} fits the weight widths of {names} only; leave it out"
                )
        graph, planes = model.graph, model.planes
        graph.check_assignment(assignment)
        if (widest := max(_weights(assignment))) > len(planes):
            raise AssignmentError(f"weights of {widest} bits: only {len(planes)} bit planes were read")
        if self._program is None:
            return self._reference((Branch(assignment, parameter_set),))
        return NativePlan(self._program, Tables(self._program, assignment, parameter_set))

    def build_point(self, point: str) -> AnyPlan:
        """The plan of an operating point, without selecting it; run it with `run_plan`. Raises AssignmentError."""
        with self._lock:  # what is adopted meanwhile has other sets
            return self._make(self._known(point))

    def _reference(self, branches: Sequence[Branch], gate: ConditionalGate | None = None) -> ReferencePlan:
        from caq.reference import ReferencePlan  # slow, and seldom wanted

        model = self.model
        model.check_file()
        parts = model.graph, model.parameters, model.planes
        return ReferencePlan(model, tuple(build_plan(*parts, b.assignment, b.parameter_set) for b in branches), gate)

    def run(self, x: NDArray[np.generic]) -> NDArray[np.int16]:
        """Output codes (classes,) int16 of one sample, or (N, classes) of a batch, in the data's own layout and dtype.

        A sample is (H, W, C) or (H, W), (T, C) or (F,), as in the training data. Outputs with positions, those of an
        autoencoder of convolutions or a segmentation, are flattened likewise: (H, W, C) or (T, C), channels last.
        Raises DataError on a wrong shape or dtype, and on NaN and infinity. Codes times `output_step` are the real
        outputs.
        """
        plan = self._active[1]
        y = plan.run_sample(x)
        return self.run_plan(plan, x) if y is None else y

    def bind(self) -> Binding:
        """Arrays for one sample and its outputs, to be used again and again: the least that an inference can cost."""
        return Binding(self)

    def run_at(self, x: NDArray[np.generic]) -> tuple[NDArray[np.int16], str]:
        """As `run`, and the name of the operating point that this very inference ran at."""
        point, plan = self._active
        return self.run_plan(plan, x), point

    def run_plan(self, plan: AnyPlan, x: NDArray[np.generic]) -> NDArray[np.int16]:
        """As `run`, with a plan of the caller's."""
        y = plan.run_sample(x)
        if y is not None:
            return y
        samples, single = self.model.batch(x)
        y = plan.run(samples)
        return y[0] if single else y

    def run_routed(
        self, x: NDArray[np.generic], plan: AnyPlan | None = None
    ) -> tuple[NDArray[np.int16], NDArray[np.int32]]:
        """As `run`, and the branch of its operating point's gate that each sample took: () int32, or (N,) of a batch.

        All 0 where there is no gate. plan: the caller's own, or None for the active one.
        """
        samples, single = self.model.batch(x)
        y, taken = (self._active[1] if plan is None else plan).run_routed(samples)
        return (y[0], taken[0]) if single else (y, taken)

    def probabilities(self, y: NDArray[np.int16]) -> NDArray[np.float32]:
        """The softmax of output codes (..., classes) that `run` gave, in steps of 1/65535; within 2e-4 of the real one.

        Computed in integers, so it is the same on every CPU. Raises DataError on other shapes and dtypes.
        """
        classes = math.prod(self.model.graph.shapes[-1])
        if not isinstance(y, np.ndarray) or y.dtype != np.int16 or not y.ndim or y.shape[-1] != classes:
            raise DataError(f"output codes (..., {classes}) int16 are expected, as Engine.run gives them")
        from caq.kernels.reference import softmax, softmax_factor

        rows, factor = y.reshape(-1, classes), softmax_factor(self.output_step)
        p = softmax(rows, factor) if self._program is None else native_softmax(rows, factor)
        return (p.reshape(y.shape) / np.float32(65535)).astype(np.float32)

    @property
    def output_step(self) -> float:
        """The real value of one output code."""
        return float(self.model.parameters.steps[-1])


class Binding:
    """Arrays of one sample and its outputs, bound to an engine, as inference loops have them.

    x: the sample, in the data's own layout and dtype: write into it, then call `run`, which writes output codes
    (classes,) int16 to y. Nothing is allocated or copied between. Each `run` is at the engine's point of that moment.
    A binding belongs to one thread at a time; an engine may have many. It keeps the plan of its last `run`.
    """

    def __init__(self, engine: Engine) -> None:
        model = engine.model
        self._engine = engine
        self.x: NDArray[np.generic] = np.zeros(model.sample_shape, model.scaling.dtype)
        self.y: NDArray[np.int16] = np.zeros(math.prod(model.graph.shapes[-1]), np.int16)
        self._program: Program | None = None
        self._plan: AnyPlan | None = None

    def run(self) -> None:
        """Runs the sample in `x`. Raises DataError on NaN and infinity; y has no meaning then."""
        plan = self._engine._active[1]
        if plan is not self._plan:
            self._call = self._bound(plan)
            self._plan = plan
        if self._call():
            check_finite(self.x, "x")

    def _bound(self, plan: AnyPlan) -> Callable[[], int]:
        if isinstance(plan, NativePlan):
            if plan.program is not self._program:  # another one may need a larger arena
                self._program = plan.program
                self._memory = (*plan.program.pointers(self.x, self.y), plan.program.make_arena())
            return plan.bound(*self._memory)

        def reference() -> int:
            self.y[:] = plan.run(self.x[np.newaxis])[0]
            return 0

        return reference

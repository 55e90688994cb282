"""What a `.caq` file says, in memory: a model with its operating points."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from caq.conditional import Branch, ConditionalGate, check_gate, check_prefix, mean_cost
from caq.errors import DataError
from caq.graph import Assignment, Cost, Graph
from caq.plan import Parameters, naming
from caq.record import NamedTuple, Record
from caq.scaling import InputScaling

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from caq.pages import MappedPlanes
    from caq.sections import StoredCore, StoredFeatures, StoredFlips

#: What a model may be trained for, and how it is scored.
TASKS = {"classify": "accuracy", "reconstruct": "r2"}


class OperatingPoint(NamedTuple):
    """A named assignment with what was measured at it.

    score: of `metric` ("accuracy", 0..1, or "r2") on `samples` test samples, run in integers. parameter_set: row of the
    parameters that were re-estimated for this point; None where the widths' own rows serve. gate: of a conditional
    point, whose inferences each take one of its branches; `assignment` and `parameter_set` are then those of the first
    branch, and `cost` is the mean over the scored samples, the gate's own included.
    """

    name: str
    assignment: Assignment
    score: float
    metric: str
    samples: int
    cost: Cost
    parameter_set: int | None = None
    gate: ConditionalGate | None = None

    @property
    def branches(self) -> tuple[Branch, ...]:
        """The ways that an inference may take: those of the gate, or the one that there is."""
        return (Branch(self.assignment, self.parameter_set, self.samples),) if self.gate is None else self.gate.branches

    def measured(self, graph: Graph, taken: Sequence[int]) -> OperatingPoint:
        """A conditional point whose branches took so many of the scored samples each, with the mean cost of that."""
        assert self.gate is not None
        branches = tuple(b._replace(taken=int(n)) for b, n in zip(self.gate.branches, taken, strict=True))
        gate = self.gate._replace(branches=branches)
        return self._replace(gate=gate, cost=mean_cost(graph, gate))

    @property
    def shares(self) -> tuple[float, ...]:
        """How often each branch was taken by the scored samples, 0..1; all alike if none were scored."""
        taken = [branch.taken for branch in self.branches]
        return tuple(n / sum(taken) if any(taken) else 1 / len(taken) for n in taken)


class Model(Record):
    """All that a `.caq` file holds.

    planes: (w, graph.plane_bytes) uint8, most significant first; w is below 8 when only narrower widths were read.
    sample_shape: of one sample in the data's own layout. mapped: the file that `planes` lie in, if they were not read
    into memory; None as soon as they are others. core, flip_network, features: what calibration starts from, flips bits
    with and fits classifiers to, if the file has them and they were read. Raises SchemaError on a conditional point
    whose gate cannot work.
    """

    graph: Graph
    parameters: Parameters
    planes: NDArray[np.uint8]
    scaling: InputScaling
    sample_shape: tuple[int, ...]
    points: tuple[OperatingPoint, ...]
    label_names: tuple[str, ...]
    task: str
    provenance: dict[str, str | int | float]
    mapped: MappedPlanes | None = None
    core: StoredCore | None = None
    flip_network: StoredFlips | None = None
    features: StoredFeatures | None = None

    def __post_init__(self) -> None:
        if self.mapped is not None and self.mapped.planes is not self.planes:
            object.__setattr__(self, "mapped", None)
        for point in self.points:
            if point.gate is not None:
                with naming(f"point {point.name!r}"):
                    check_gate(self.graph, point.gate)
                    check_prefix(self.graph, self.parameters, point.gate)

    def check_file(self) -> None:
        """Raises IntegrityError if the bit planes lie in a mapped file that was changed since it was verified."""
        if self.mapped is not None:
            self.mapped.check()

    def batch(self, x: NDArray[np.generic]) -> tuple[NDArray[np.generic], bool]:
        """One sample or a batch as a batch (N, *sample_shape), and whether it was one sample.

        Raises DataError on another shape.
        """
        shapes = [self.sample_shape]
        if self.sample_shape[-1] == 1 and len(self.sample_shape) == 3:
            shapes.append(self.sample_shape[:2])
        try:
            x = np.asarray(x)
        except ValueError as e:
            raise DataError(f"samples of shape {self.sample_shape} are expected, not a ragged list: {e}") from None
        single = x.shape in shapes
        if not single and (x.shape[1:] not in shapes or len(x) == 0):
            raise DataError(f"samples of shape {self.sample_shape}, or a batch of them, are expected, not {x.shape}")
        return x.reshape(-1, *self.sample_shape), single

    def encode(self, x: NDArray[np.generic]) -> tuple[NDArray[np.int8], bool]:
        """Input codes (N, H, W, C) int8 of one sample or a batch, and whether it was one sample.

        Raises DataError on another shape or dtype, on NaN and on infinity.
        """
        samples, single = self.batch(x)
        return self.scaling.encode(samples).reshape(-1, *self.graph.input_shape), single

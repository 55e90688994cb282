"""The parameter sets of a model, each with the assignment that it is for; and the model as one that reads input codes.

A *set* is a row of `Parameters.gain` and its kin. Nothing but what runs at a set reads it, so a set can be calibrated
without a bit of another's answers changing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from caq.graph import Assignment, Graph
from caq.model import Model
from caq.native import NativePlan, Program, Tables
from caq.plan import Parameters, affine, layer_codes, to_mantissas
from caq.scaling import InputScaling

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Samples that are run at once.
_BATCH = 64


class ParameterSet(NamedTuple):
    """A row of the parameters, the assignment that it is calibrated at, and a name: of a width, `w4a4`, or a point."""

    name: str
    row: int
    assignment: Assignment


def parameter_sets(model: Model) -> tuple[ParameterSet, ...]:
    """Every set of a model: the widths', with that width everywhere, then those of the points that have their own.

    A conditional point has those of its branches, `name/0`, `name/1` and so on.
    """
    graph = model.graph
    uniform = [ParameterSet(f"w{w}a{w}", row, graph.uniform(w)) for row, w in enumerate(graph.widths)]
    own: dict[int, ParameterSet] = {}
    for point in model.points:
        branches = (
            [(point.name, point)]
            if point.gate is None
            else [(f"{point.name}/{i}", branch) for i, branch in enumerate(point.gate.branches)]
        )
        for name, part in branches:
            if part.parameter_set is not None:
                own.setdefault(part.parameter_set, ParameterSet(name, part.parameter_set, part.assignment))
    return (*uniform, *(which for _, which in sorted(own.items())))


def coded(model: Model) -> Model:
    """The model as one whose samples are its input's codes, int16 (H, W, C): what a core set keeps, it can run."""
    channels = model.graph.input_shape[2]
    scaling = InputScaling(
        "int16",
        model.scaling.step,
        np.full(channels, 2**14, np.int16),
        np.full(channels, 2**13, np.int32),
        np.full(channels, 14, np.uint8),
        np.ones(channels, np.float32),
    )
    return model.replace(scaling=scaling, sample_shape=model.graph.input_shape, points=())


def up_to(model: Model, tensor: int) -> Model:
    """A `coded` model whose output is a tensor of it, not the input."""
    whole, parameters = model.graph, model.parameters
    graph = Graph(whole.input_shape, whole.ops[:tensor], whole.widths)
    layers, channels = len(graph.layers), graph.channels
    own = Parameters(
        parameters.gain[:, :channels],
        parameters.gain_exponent[:, :layers],
        parameters.bias[:, :channels],
        parameters.bias_exponent[:, :layers],
        parameters.steps[: tensor + 1],
        parameters.ratios[:layers],
    )
    return model.replace(graph=graph, parameters=own, planes=model.planes[:, : graph.plane_bytes], points=())


def logits(
    model: Model, sets: tuple[ParameterSet, ...], x: NDArray[np.int16], check: Callable[[], None] = lambda: None
) -> dict[str, NDArray[np.float64]]:
    """The real outputs (N, classes) of a model that is `coded`, at each of some sets, by their names.

    Points of the model, by the name of a set, have the gate that says whether an input takes the set or its twin
    (caq.calibration.twins). check: called before each set, and may raise.
    """
    program, found = Program(model), {}
    gates = {point.name: point.gate for point in model.points}
    for which in sets:
        check()
        gate = gates.get(which.name)
        if gate is None:
            plan = NativePlan(program, Tables(program, which.assignment, which.row))
        else:
            from caq.native_conditional import ConditionalPlan  # sets without a gate do without

            tables = [Tables(program, b.assignment, b.parameter_set) for b in gate.branches]
            plan = ConditionalPlan(program, tables, gate)
        found[which.name] = run(plan, x) * np.float64(model.parameters.steps[-1])
    return found


def run(plan: NativePlan, x: NDArray[np.int16]) -> NDArray[np.int16]:
    """Output codes (N, outputs), a few samples at a time: so many are encoded at once, and no more."""
    return np.concatenate([plan.run(x[i : i + _BATCH]) for i in range(0, len(x), _BATCH)])


def factory_head(model: Model, sets: tuple[ParameterSet, ...]) -> NDArray[np.int8]:
    """The codes (S, weights) of the last layer at the width of each of all sets, for `Parameters.head`."""
    layer = model.graph.layers[-1]
    found = np.zeros((len(model.parameters.gain), layer.weights), np.int8)
    for which in sets:
        found[which.row] = layer_codes(model.graph, model.planes, layer, which.assignment[-1].weight)
    return found


#: What a set has of its own: always, and codes, if some are to change.
ROWS = ("gain", "gain_exponent", "bias", "bias_exponent")
CODES = ("flips", "head")


def by_row(parameters: Parameters, sets: tuple[ParameterSet, ...], values: list[NDArray[Any]]) -> NDArray[Any]:
    """(S, ...) of an array for each of some sets; 0 for those that nothing runs at."""
    found = np.zeros((len(parameters.gain), *values[0].shape), values[0].dtype)
    found[[which.row for which in sets]] = values
    return found


def with_rows(parameters: Parameters, sets: tuple[ParameterSet, ...], other: Parameters) -> Parameters:
    """`parameters` with some sets of `other`."""
    names = [*ROWS, *(name for name in CODES if getattr(parameters, name) is not None)]
    changed: Mapping[str, NDArray[np.generic]] = {name: getattr(parameters, name).copy() for name in names}
    rows = [which.row for which in sets]
    for name, values in changed.items():
        values[rows] = getattr(other, name)[rows]
    return parameters.replace(**changed)


def blended(graph: Graph, old: Parameters, new: Parameters, share: float) -> Parameters:
    """Gains and biases a part of the way, 0..1, from `old` to `new`, which have the same steps and ratios.

    Codes are the new ones: there is nothing between one and the next.
    """
    if share == 1:
        return new
    found = old.replace(**{name: getattr(old, name).copy() for name in ROWS}, flips=new.flips, head=new.head)
    for layer in graph.layers:
        span = slice(layer.first_channel, layer.first_channel + layer.channels)
        for row in range(len(old.gain)):
            (gain, bias), (gain_to, bias_to) = affine(old, layer, row), affine(new, layer, row)
            if (gain == gain_to).all() and (bias == bias_to).all():
                continue  # the same numbers in the same mantissas
            exponents = found.gain_exponent, found.bias_exponent
            found.gain[row, span], exponents[0][row, layer.index] = to_mantissas(gain + share * (gain_to - gain))
            found.bias[row, span], exponents[1][row, layer.index] = to_mantissas(bias + share * (bias_to - bias))
    return found

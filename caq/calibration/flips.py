"""Bit flips: codes of weights changed by one, by a small network and without back-propagation.

A device cannot afford gradients of a whole network, but each layer can have an estimate of its own. Training stores
what a class' output gains, on the mean, from a code more of each channel: the *feedback* B (direct feedback alignment,
Nokland 2016, with the mean Jacobian in place of a random matrix). With the error of the answers e = softmax(z) - y,

    d = (B e) [the output is not clamped]     g = sum over samples and positions of d x     (one product a layer)

stands for the gradient by a layer's multiplicands. What a flip is worth depends on more than g, so a network of some
hundred integers, trained on what straight-through calibration (LSQ) does to codes at that width, turns FEATURES of each
weight into a speed in the direction -g. Speeds add up in a *latent* for each weight, from -1 to 1 code of its width. A
weight begins where its lower bits say, within the interval that its code spans, as straight-through estimation begins
from real weights; its code is flipped while the latent takes it out of there. So a code never leaves the factory's by
more than one, few flip at a time, and those first that lie at an edge, which costs least.

Latents and flips belong to a parameter set (caq.calibration.sets): a set has its own codes, over bit planes that all
share and nobody writes, so other widths keep every bit (docs/adr/0010-flips.md).

S sets, W widths, L layers, n weights of all layers, C channels of all layers, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from caq.calibration.sets import ParameterSet
from caq.calibration.statistics import Check
from caq.graph import Graph, Layer
from caq.kernels.reference import pad, windows
from caq.model import Model
from caq.plan import Parameters, Plan, affine, build_plan, layer_codes
from caq.quant import TOP_WIDTH, requantize
from caq.reference import run_step
from caq.sections import StoredFlips

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Of each weight, in units of 1 / 32, from -4 to 4. "Toward" is along -g: positive if -g points to the larger code.
FEATURES = (
    "strength",  # |g| over the layer's root mean square
    "agreement",  # |sum of g over parts of the samples| / sum of |g|
    "range",  # the code's place in its range, -1 to 1, toward
    "latent",  # the latent, toward
    "input shift",  # mean of the input's channel on the stream less that on the source, in deviations
    "output shift",  # the same of the output's channel, toward
    "depth",  # of the layer, 0 to 1
    "gain",  # log2 of the channel's gain over the layer's mean
)
UNIT = 32
#: Latents are kept in units of 1 / LATENT of a code of the width.
LATENT = 127
#: Samples that are looked at together: they bound memory. Parts that agreement is measured over.
_TOGETHER, _PARTS = 8, 4


class Evidence(NamedTuple):
    """What samples say about a layer's weights (O, rows, columns, C / groups), all float32.

    gradient, agreement: as the weights. input_shift: (1 or O, 1, 1, C / groups); output_shift: (O,).
    """

    gradient: NDArray[np.float32]
    agreement: NDArray[np.float32]
    input_shift: NDArray[np.float32]
    output_shift: NDArray[np.float32]


def layer_slices(graph: Graph) -> list[slice]:
    """Where each layer's weights lie among those of all layers."""
    ends = np.cumsum([layer.weights for layer in graph.layers]).tolist()
    return [slice(end - layer.weights, end) for end, layer in zip(ends, graph.layers, strict=True)]


def positions(model: Model, which: ParameterSet) -> NDArray[np.float32]:
    """Where each weight (n,) of a set lies in the interval that its code spans, 0 to 1, by the bits below its width.

    A half where there are none.
    """
    graph, top = model.graph, len(model.planes)
    found = []
    for layer, pair in zip(graph.layers, which.assignment, strict=True):
        below = top - pair.weight
        low = layer_codes(graph, model.planes, layer, top).astype(np.int16) & ((1 << below) - 1)
        found.append(((low + 0.5) / (1 << below)).astype(np.float32))
    return np.concatenate(found)


def flips_of(latents: NDArray[np.int8], at: NDArray[np.float32]) -> NDArray[np.int8]:
    """-1, 0 or 1 for latents (n,): whether weights that began at `positions` have left their codes' intervals."""
    return np.clip(np.floor(at + latents / np.float32(LATENT)), -1, 1).astype(np.int8)


class FlipsRung:
    """Moves latents of one set after the other, of a `coded` model with the factory's codes.

    network: Model.flip_network. rate: codes that a speed of 1 moves a latent by, for each weight width. rounds: how
    often a batch is looked at, each time half of it.
    """

    def __init__(self, model: Model, network: StoredFlips, rate: Callable[[int], float], rounds: int) -> None:
        self._model, self._network, self._rate, self._rounds = model, network, rate, rounds
        self._slices = layer_slices(model.graph)

    def propose(
        self,
        which: ParameterSet,
        parameters: Parameters,
        latents: NDArray[np.int8],
        x: NDArray[np.int8],
        y: NDArray[np.integer],
        weights: NDArray[np.floating],
        source: NDArray[np.bool_],
        rng: np.random.Generator,
        check: Check,
    ) -> NDArray[np.int8]:
        """Latents (n,) of this set after samples x (N, H, W, C), y (N,) that weigh `weights` (N,).

        source: (N,), which samples are the factory's. check: may raise before each look; nothing is changed.
        """
        found, at = latents.copy(), positions(self._model, which)
        for _ in range(self._rounds):
            chosen = np.sort(rng.permutation(len(x))[: -(-len(x) // 2)])
            parts = x[chosen], y[chosen], weights[chosen], source[chosen]
            plan = self.plan_of(self._model, which, parameters, flips_of(found, at))
            evidence = gather(self._model, which, parameters, plan, self._network.feedback, *parts, check)
            for layer, e in zip(self._model.graph.layers, evidence, strict=True):
                span = self._slices[layer.index]
                codes, pair = codes_of(plan, layer), which.assignment[layer.index]
                features, toward = describe(self._model, which, parameters, layer, e, codes, found[span])
                row = self._model.graph.widths.index(pair.weight)
                moved = speeds(self._network, row, features) * toward * self._rate(pair.weight) * LATENT
                found[span] = np.clip(np.rint(found[span] + moved), -LATENT, LATENT)
        return found

    @staticmethod
    def plan_of(model: Model, which: ParameterSet, parameters: Parameters, flips: NDArray[np.int8]) -> Plan:
        """The reference kernels' plan of a set with flips (n,)."""
        own = np.zeros((len(parameters.gain), model.graph.weights), np.int8)
        own[which.row] = flips
        return build_plan(model.graph, parameters.replace(flips=own), model.planes, which.assignment, which.row)


def codes_of(plan: Plan, layer: Layer) -> NDArray[np.int8]:
    """The codes (n,) of a layer at its width in a plan."""
    m, width = plan.steps[layer.op].multiplicands, plan.assignment[layer.index].weight
    assert m is not None
    codes: NDArray[np.int8] = m if width == TOP_WIDTH else (m - 1) >> 1
    return codes.reshape(-1)


def gather(
    model: Model,
    which: ParameterSet,
    parameters: Parameters,
    plan: Plan,
    feedback: NDArray[np.int8],
    x: NDArray[np.int8],
    y: NDArray[np.integer],
    weights: NDArray[np.floating],
    source: NDArray[np.bool_],
    check: Check,
) -> list[Evidence]:
    """Evidence of each layer: see `FlipsRung.propose`. feedback: (C, K)."""
    graph, step = model.graph, float(parameters.steps[-1])
    sums = [np.zeros((_PARTS, *layer.weight_shape), np.float32) for layer in graph.layers]
    shifts = [_Shift(graph.shapes[graph.ops[layer.op].inputs[0]][2]) for layer in graph.layers]
    outputs = [_Shift(layer.channels) for layer in graph.layers]
    share = weights / weights.sum()
    for number, start in enumerate(range(0, len(x), _TOGETHER)):
        check()
        some = slice(start, start + _TOGETHER)
        live = [x[some].astype(np.int32)]
        for s in plan.steps:
            live.append(run_step(s, [live[t] for t in s.op.inputs]))
        error = _softmax(live[-1].reshape(len(live[0]), -1) * np.float64(step))
        error[np.arange(len(error)), y[some]] -= 1
        error *= share[some, None]
        for layer in graph.layers:
            s, span = plan.steps[layer.op], slice(layer.first_channel, layer.first_channel + layer.channels)
            put_out, read = live[layer.op + 1], live[s.op.inputs[0]]
            if s.narrow is not None:
                read = requantize(read, s.narrow, *s.narrow_range)
            free = (put_out > s.low) & (put_out < s.high)
            d = (error @ feedback[span].T.astype(np.float64)).astype(np.float32)[:, None, None] * free
            sums[layer.index][number % _PARTS] += weight_products(read, d, layer, s.op.groups, plan)
            shifts[layer.index].add(read, source[some])
            outputs[layer.index].add(put_out, source[some])
    found = []
    for layer in graph.layers:
        gain = np.abs(affine(parameters, layer, which.row)[0]).astype(np.float32).reshape(-1, 1, 1, 1)
        parts, groups = sums[layer.index] * gain, graph.ops[layer.op].groups
        total, size = parts.sum(0), np.abs(parts).sum(0)
        agreement = np.divide(np.abs(total), size, out=np.zeros_like(total), where=size > 0)
        shift = np.repeat(shifts[layer.index].value().reshape(groups, 1, 1, -1), layer.channels // groups, 0)
        found.append(Evidence(total, agreement, shift, outputs[layer.index].value()))
    return found


def weight_products(
    x: NDArray[np.int32], d: NDArray[np.float32], layer: Layer, groups: int, plan: Plan
) -> NDArray[np.float32]:
    """Sums (O, rows, columns, C / groups) of d (N, H', W', O) times the inputs x (N, H, W, C) that each weight read."""
    op = plan.steps[layer.op].op
    out, rows, columns, each = layer.weight_shape
    view = windows(pad(x, op.padding), op.kernel, op.stride, op.dilation)
    found = np.empty(layer.weight_shape, np.float32)
    for g in range(groups):
        span = slice(g * (out // groups), (g + 1) * (out // groups))
        read = view[:, :, :, g * each : (g + 1) * each].transpose(0, 1, 2, 4, 5, 3).astype(np.float32)
        found[span] = (d[..., span].reshape(-1, out // groups).T @ read.reshape(-1, rows * columns * each)).reshape(
            -1, rows, columns, each
        )
    return found


def describe(
    model: Model,
    which: ParameterSet,
    parameters: Parameters,
    layer: Layer,
    e: Evidence,
    codes: NDArray[np.int8],
    latents: NDArray[np.int8],
) -> tuple[NDArray[np.int8], NDArray[np.int8]]:
    """FEATURES (n, F) int8 of a layer's weights, and the direction (n,) of -g: -1, 0 or 1."""
    width = which.assignment[layer.index].weight
    gain = np.log2(np.maximum(np.abs(affine(parameters, layer, which.row)[0]), 2.0**-100))
    toward = -np.sign(e.gradient).reshape(-1).astype(np.int8)
    rms = float(np.sqrt(np.mean(np.square(e.gradient, dtype=np.float64)))) or 1.0

    def spread(values: NDArray[Any]) -> NDArray[Any]:
        return np.broadcast_to(values, layer.weight_shape).reshape(-1)

    columns: list[NDArray[Any]] = [
        np.abs(e.gradient).reshape(-1) / rms,
        e.agreement.reshape(-1),
        (codes + 0.5) / 2.0 ** (width - 1) * toward,
        latents / LATENT * toward,
        spread(e.input_shift),
        spread(e.output_shift.reshape(-1, 1, 1, 1)) * toward,
        np.full(len(codes), layer.index / max(len(model.graph.layers) - 1, 1)),
        spread((gain - gain.mean()).reshape(-1, 1, 1, 1)),
    ]
    stacked = np.stack([np.rint(c.clip(-4, 127 / UNIT) * UNIT) for c in columns], axis=1)
    return stacked.astype(np.int8), toward


def speeds(network: StoredFlips, row: int, features: NDArray[np.int8]) -> NDArray[np.float32]:
    """The network's output (n,) for features (n, F) at the width of `row`, about -1 to 1.

    Integers: hidden = clip((w1 f + b1) >> 5, 0, 127), out = w2 hidden + b2, in units of 2**-11. Sums stay below 2**24,
    so that float32 adds them exactly.
    """
    w1, b1 = network.w1[row].astype(np.float32), network.b1[row].astype(np.float32)
    hidden = np.clip(np.floor((features.astype(np.float32) @ w1.T + b1) / UNIT), 0, 127)
    out = hidden @ network.w2[row].astype(np.float32) + np.float32(network.b2[row])
    return np.clip(out / np.float32(2**11), -1, 1)


class _Shift:
    """How far the mean of each of some channels moved from the source to the stream, in deviations of the source."""

    def __init__(self, channels: int) -> None:
        self._sums, self._counts = np.zeros((2, 2, channels)), np.zeros(2)

    def add(self, x: NDArray[np.int32], source: NDArray[np.bool_]) -> None:
        for i, part in enumerate((x[source], x[~source])):
            flat = part.reshape(-1, x.shape[3]).astype(np.float64)
            self._sums[i] += flat.sum(0), np.square(flat).sum(0)
            self._counts[i] += len(flat)

    def value(self) -> NDArray[np.float32]:
        """(channels,); zeros without samples of both."""
        if not self._counts.all():
            return np.zeros(self._sums.shape[2], np.float32)
        (mean, square), (now, _) = self._sums / self._counts[:, None, None]
        return ((now - mean) / np.sqrt(np.maximum(square - mean**2, 0) + 1)).astype(np.float32)


def _softmax(z: NDArray[Any]) -> NDArray[np.float64]:
    p: NDArray[np.float64] = np.exp(z - z.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


def flip_counts(graph: Graph, flips: NDArray[np.int8]) -> Iterator[int]:
    """How many codes of each layer are flipped in flips (n,)."""
    return (int(np.count_nonzero(flips[span])) for span in layer_slices(graph))

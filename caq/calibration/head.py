"""The third rung: the classifier, fitted to labels by itself, without back-propagation.

The last layer is linear in its features: what it reads, codes of the integer graph. So its weights and biases are those
of a logistic regression that is drawn to the factory's: what that minimizes, how it is solved and how it is put into
codes is in caq.calibration.classifier.

Samples are the core set's of the factory, or those whose features the artifact has (`Model.features`), and the last
labelled ones of the stream, as features: a few bytes each.
Those stay true, because the layers before stay the factory's, so nothing has to be run again; a candidate of this rung
takes them back there, if another rung changed them.

Codes are a parameter set's own (caq.planes), so other sets keep every bit.

S sets, K classes, D features, N samples, M samples that are kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from caq.calibration.biases import output_layer
from caq.calibration.classifier import (
    STEPS,
    Classifier,
    Codes,
    Problem,
    deviations,
    fit_classifier,
    move_codes,
    round_classifier,
)
from caq.calibration.sets import ParameterSet, coded, parameter_sets, run, up_to
from caq.calibration.statistics import Check
from caq.errors import ConfigError, StateFormatError, UnsupportedError
from caq.graph import Graph, Layer
from caq.model import Model
from caq.native import NativePlan, Program, Tables
from caq.plan import Parameters, affine, layer_codes, narrowing, to_mantissas
from caq.quant import TOP_WIDTH, multiplicands, requantize
from caq.sections import StoredFeatures

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from caq.calibration.state import Arrays

#: Samples of the source that share its weight; beyond these each adds as much again, since it says more.
_SHARING = 850
#: Of the mean variance of features, what each has besides: a feature that is 0 everywhere asks for no code.
_FLOOR = 1e-2


@dataclass(frozen=True, eq=False)
class Examples:
    """The last labelled samples of the stream: features (S, M, D), of each set, uint8 or int8; labels y (M,) int16."""

    features: NDArray[Any]
    y: NDArray[np.int16]

    @classmethod
    def empty(cls, model: Model) -> Examples:
        """Of no sample; with D = 0 for a model that has no linear classifier."""
        dtype, size = _layout(model)
        return cls(np.zeros((len(model.parameters.gain), 0, size), dtype), np.zeros(0, np.int16))

    def with_samples(self, features: NDArray[Any], y: NDArray[np.integer], most: int) -> Examples:
        """With features (S, N, D) and labels y (N,); the last `most` stay."""
        labels = np.concatenate([self.y, y.astype(np.int16)])
        stay = slice(max(len(labels) - most, 0), None)
        joined = np.concatenate([self.features, features.astype(self.features.dtype)], axis=1)
        return Examples(joined[:, stay], labels[stay])

    def grown(self, most: int) -> Examples:
        """As large as `most` samples make it."""
        sets, _, size = self.features.shape
        return self.with_samples(np.zeros((sets, most, size), self.features.dtype), np.zeros(most, np.int16), most)

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """For `caq.calibration.state`."""
        return {"features": self.features, "y": self.y}

    @classmethod
    def from_arrays(cls, arrays: Arrays, model: Model) -> Examples:
        """What `to_arrays` gave. Raises StateFormatError on anything else."""
        (dtype, size), sets = _layout(model), len(model.parameters.gain)
        features, y = arrays.get("features"), arrays.get("y")
        if features is None or y is None or features.dtype != dtype or y.dtype != np.int16 or y.ndim != 1:
            raise StateFormatError(f"head: features {dtype} and labels (M,) int16 are expected")
        if features.shape != (sets, len(y), size):
            raise StateFormatError(f"head: features {(sets, len(y), size)} are expected, not {features.shape}")
        if len(y) and not 0 <= y.min() <= y.max() < model.graph.layers[-1].channels:
            raise StateFormatError("head: labels do not fit the model")
        return cls(features.copy(), y.copy())


class Fit(NamedTuple):
    """The classifier that samples ask for at a set, in real units and in codes, and the factory's.

    mean (D,), covariance (D, D): of the features.
    """

    wanted: Classifier
    factory: Classifier
    codes: Codes
    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]


class HeadRung:
    """Fits the classifier of one set after the other, of a `coded` model with the factory's parameters.

    x (N, H, W, C) int16, y (N,): samples of the factory to fit, where the model has no features of its own;
    core_weight: of all that stand for the source together, up to _SHARING. ridge, spread: see `classifier`.

    Raises UnsupportedError on a model without a linear classifier.
    """

    def __init__(
        self,
        model: Model,
        x: NDArray[np.int16],
        y: NDArray[np.integer],
        core_weight: float,
        ridge: float,
        spread: float,
    ) -> None:
        self._model, self._layer = model, linear_layer(model.graph)
        self._x, self._y, self._weight, self._ridge, self._spread = x, y, core_weight, ridge, spread
        self._before = _without_last(model)
        self._source: dict[int, tuple[NDArray[np.int32], NDArray[np.integer]]] = {}

    def features(
        self, which: ParameterSet, x: NDArray[np.int16], parameters: Parameters | None = None
    ) -> NDArray[np.int32]:
        """What the classifier reads (N, D) of samples x (N, H, W, C); parameters: others than the factory's."""
        if parameters is None:
            return _features(self._model, self._before, which, x)
        model = self._model.replace(parameters=parameters.replace(head=None))
        return _features(model, _without_last(model), which, x)

    def _source_of(self, which: ParameterSet, check: Check) -> tuple[NDArray[np.int32], NDArray[np.integer]]:
        """Features (N, D) and labels (N,) that stand for the source at a set."""
        if which.row not in self._source:
            check()
            stored = self._model.features
            if stored is not None and which.row < len(stored.codes):  # points' own sets come after the widths'
                self._source[which.row] = stored.codes[which.row].astype(np.int32), stored.y
            else:
                self._source[which.row] = self.features(which, self._x), self._y
        return self._source[which.row]

    def fit(
        self, which: ParameterSet, features: NDArray[Any], y: NDArray[np.integer], check: Check, most: int = STEPS
    ) -> Fit:
        """The classifier for features (M, D), y (M,) of the stream and the source; check: may raise now and then.

        most: steps of the fit.
        """
        old, old_y = self._source_of(which, check)
        x, count = np.concatenate([old, features]).astype(np.float64), len(old)
        labels = np.concatenate([old_y, y])
        samples = np.concatenate([np.full(count, self._weight / min(max(count, 1), _SHARING)), np.ones(len(y))])
        factory, width = self._factory(which), which.assignment[-1].weight
        within = np.concatenate([deviations(x[:count], old_y), deviations(x[count:], y)]) * np.sqrt(self._spread / 2)
        problem = Problem(x, labels, samples, factory, self._ridge, within)
        wanted = fit_classifier(problem, check, most)
        mean = samples @ x / samples.sum()
        d = x - mean
        covariance = (d * samples[:, None]).T @ d / samples.sum()
        covariance[np.diag_indices_from(covariance)] += _FLOOR * np.trace(covariance) / len(mean) + 1e-12
        codes = round_classifier(wanted, mean, covariance, width, check)
        return Fit(wanted, factory, move_codes(problem, codes, width, check), mean, covariance)

    def candidate(
        self,
        parameters: Parameters,
        fits: Mapping[int, Fit],
        share: float,
        sets: tuple[ParameterSet, ...],
        check: Check,
        below: Parameters | None = None,
    ) -> Parameters:
        """`parameters`, which have a head, with some sets a part, 0..1, of the way from the factory's to their fits.

        fits: by row. check: may raise now and then. below: what the layers before get, instead of the factory's.
        """
        for which in sets:
            parameters = self._with_head(parameters, which, fits[which.row], share, check, below)
        return parameters

    def _with_head(
        self,
        parameters: Parameters,
        which: ParameterSet,
        fit: Fit,
        share: float,
        check: Check,
        below: Parameters | None = None,
    ) -> Parameters:
        assert parameters.head is not None  # the ladder has prepared them
        factory, layer, row = self._model.parameters, self._layer, which.row
        width = which.assignment[-1].weight
        if share == 1:
            m, unit, biases = fit.codes
        else:
            part = (old + share * (new - old) for old, new in zip(fit.factory, fit.wanted, strict=True))
            m, unit, biases = round_classifier(Classifier(*part), fit.mean, fit.covariance, width, check)
        names = ("gain", "gain_exponent", "bias", "bias_exponent")
        found = {name: getattr(parameters, name).copy() for name in names}
        for name, values in found.items():
            values[row] = getattr(below or factory, name)[row]
        span, step = slice(layer.first_channel, layer.first_channel + layer.channels), float(factory.steps[-1])
        found["gain"][row, span], found["gain_exponent"][row, layer.index] = to_mantissas(unit / self._unit(which))
        found["bias"][row, span], found["bias_exponent"][row, layer.index] = to_mantissas(biases / step)
        head = parameters.head.copy()
        codes = m if width == TOP_WIDTH else (m - 1) / 2
        head[row] = codes.astype(np.int8).reshape(-1)
        if parameters.flips is not None:  # they would change the features that it is fitted to
            found["flips"] = parameters.flips.copy()
            found["flips"][row] = 0
        return parameters.replace(**found, head=head)

    def _factory(self, which: ParameterSet) -> Classifier:
        """The factory's, in real units for codes of features."""
        model, layer = self._model, self._layer
        width = which.assignment[-1].weight
        m = multiplicands(layer_codes(model.graph, model.planes, layer, width), width).reshape(layer.channels, -1)
        gain, bias = affine(model.parameters, layer, which.row)
        return Classifier(m * (gain * self._unit(which))[:, None], bias * float(model.parameters.steps[-1]))

    def _unit(self, which: ParameterSet) -> float:
        """The real output that a gain of 1 makes of one multiplicand unit and one code of the features."""
        p, pair = self._model.parameters, which.assignment[-1]
        at = self._model.graph.widths.index(pair.activation) if pair.activation != TOP_WIDTH else None
        return float(p.steps[-1]) * (1.0 if at is None else float(p.ratios[self._layer.index, at]))


def draw_features(
    model: Model,
    x: NDArray[np.generic],
    y: NDArray[np.integer],
    count: int,
    *,
    seed: int = 0,
    without: NDArray[np.integer] | None = None,
) -> StoredFeatures:
    """Features of some samples of the source, drawn at random from x (N, ...), y (N,), in the data's own layout.

    without: indices of samples that are not to be drawn: those of the core set, some of which judge what is fitted.
    Raises UnsupportedError on a model without a linear classifier, ConfigError if there are not so many samples.
    """
    linear_layer(model.graph)
    left = np.setdiff1d(np.arange(len(y)), np.zeros(0, np.int64) if without is None else without)
    if not 0 < count <= len(left):
        raise ConfigError(f"features {count}: 1 to {len(left)} samples are possible, beside those of the core set")
    chosen = np.sort(np.random.default_rng(seed).permutation(left)[:count])
    plain, codes = coded(model), model.encode(model.batch(x)[0][chosen])[0].astype(np.int16)
    before, (dtype, _) = _without_last(plain), _layout(plain)
    sets = parameter_sets(model)[: len(model.graph.widths)]
    found = np.stack([_features(plain, before, which, codes) for which in sets])
    return StoredFeatures(found.astype(dtype), np.asarray(y)[chosen].astype(np.int16))


def have_features(model: Model, codes: NDArray[np.int8], y: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Which samples, codes (N, H, W, C), y (N,), have the class and features of one in `Model.features`, (N,)."""
    stored, found = model.features, np.zeros(len(codes), bool)
    if stored is None or not len(codes):
        return found
    plain = coded(model)
    (dtype, _), widest = _layout(plain), parameter_sets(model)[len(model.graph.widths) - 1]
    own = _features(plain, _without_last(plain), widest, codes.astype(np.int16)).astype(dtype)
    known = {(label, row.tobytes()) for label, row in zip(stored.y.tolist(), stored.codes[-1], strict=True)}
    rows = zip(np.asarray(y).tolist(), own, strict=True)
    return np.array([(label, row.tobytes()) in known for label, row in rows])


def _features(model: Model, before: Model, which: ParameterSet, x: NDArray[np.int16]) -> NDArray[np.int32]:
    """What the classifier of a `coded` model reads (N, D) of samples x (N, H, W, C); before: `_without_last` of it."""
    layer, pair, program = model.graph.layers[-1], which.assignment[-1], Program(before)
    codes = run(NativePlan(program, Tables(program, which.assignment[:-1], which.row)), x).astype(np.int32)
    if pair.activation == TOP_WIDTH:
        return codes
    ratio = model.parameters.ratios[layer.index, model.graph.widths.index(pair.activation)]
    return requantize(codes, *_narrow(model.graph, layer, float(ratio), pair.activation))


def linear_layer(graph: Graph) -> Layer:
    """The layer that is linear in all that it reads, and makes the network's output.

    Raises UnsupportedError, with the reason, where there is none.
    """
    layer = output_layer(graph)
    if layer is None:
        raise UnsupportedError("the network's output comes from no layer with one answer a sample")
    op = graph.ops[layer.op]
    h, w, _ = graph.shapes[op.inputs[0]]
    if op.groups != 1 or op.kernel != (h, w) or any(op.padding):
        raise UnsupportedError(f"layer {layer.name!r}, the last one, does not read all features for each class")
    if len(graph.layers) == 1 or layer.op == 0:
        raise UnsupportedError(f"layer {layer.name!r} is the only one; there are no features to read")
    return layer


def _narrow(graph: Graph, layer: Layer, ratio: float, width: int) -> tuple[Any, int, int]:
    fixed, (low, high) = narrowing(ratio, width, graph.signed(graph.ops[layer.op].inputs[0]))
    return fixed, low, high


def _layout(model: Model) -> tuple[np.dtype[Any], int]:
    """Of features as they are kept: their type and how many there are."""
    try:
        layer = linear_layer(model.graph)
    except UnsupportedError:
        return np.dtype(np.uint8), 0
    signed = model.graph.signed(model.graph.ops[layer.op].inputs[0])
    return np.dtype(np.int8 if signed else np.uint8), layer.weights // layer.channels


def _without_last(model: Model) -> Model:
    """A `coded` model up to what its last layer reads."""
    return up_to(model, model.graph.ops[-1].inputs[0])

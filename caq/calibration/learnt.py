"""All that calibration has learnt of a stream: immutable, and as arrays for `caq.calibration.state`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from caq.calibration.biases import Past, output_layer
from caq.calibration.core import CoreSet
from caq.calibration.head import Examples
from caq.calibration.sets import parameter_sets
from caq.calibration.state import Arrays, State, owned, random_from_array, random_to_array
from caq.calibration.statistics import Running
from caq.calibration.twins import Calibration
from caq.calibration.waiting import WaitingRoom
from caq.errors import SchemaError, StateFormatError
from caq.model import Model
from caq.plan import Parameters
from caq.planes import check_head, pack_flips, unpack_flips

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from caq.calibration.domains import Domain

#: What calibration changes of the parameters.
CALIBRATED = ("gain", "gain_exponent", "bias", "bias_exponent")


@dataclass(frozen=True, eq=False)
class Learnt:
    """parameters: in force; statistics, biases: what the rungs know of the stream; core: the core set, in input codes.

    pending, pending_y: samples (N, H, W, C) int8 that no step has seen yet, and their labels (N,) int16; the first has
    the id `core.seen`. waiting: samples that steps saw, and whose label may come yet. steps: that were done; turn:
    which set the next one begins with; watch: samples that are still to be calibrated with since the last alarm.
    random: the state of a generator, (6,) uint64. latents: of caq.calibration.flips, (S, n) int8, or (0, 0) without
    that rung. examples: what the classifier is fitted to (caq.calibration.head). domain: what the rung of that name
    knows; None without it.
    """

    parameters: Parameters
    statistics: Running
    biases: Past
    core: CoreSet
    pending: NDArray[np.int8]
    pending_y: NDArray[np.int16]
    waiting: WaitingRoom
    random: NDArray[np.uint64]
    latents: NDArray[np.int8]
    examples: Examples
    domain: Domain | None = None
    steps: int = 0
    turn: int = 0
    watch: int = 0

    @classmethod
    def nothing(cls, model: Model, core: CoreSet, seed: int, flips: bool = False) -> Learnt:
        """As the model leaves the factory. flips: whether bits are to be flipped."""
        sets, none = len(model.parameters.gain), np.zeros((0, *model.graph.input_shape), np.int8)
        random = random_to_array(np.random.default_rng(seed))
        statistics, biases = Running.empty(model.parameters), Past.empty(sets, classes(model))
        waiting = WaitingRoom.empty(model.graph.input_shape)
        latents = np.zeros((sets, model.graph.weights) if flips else (0, 0), np.int8)
        parameters = model.parameters.replace(flips=np.zeros_like(latents)) if flips else model.parameters
        stream = none, np.zeros(0, np.int16), waiting, random
        return cls(parameters, statistics, biases, core, *stream, latents, Examples.empty(model))

    @property
    def calibration(self) -> Calibration:
        """What is in force."""
        return Calibration(self.parameters, None if self.domain is None else self.domain.twins)

    def with_calibration(self, calibration: Calibration) -> Learnt:
        """With another in force."""
        domain = self.domain
        if domain is not None and calibration.twins is not None:
            domain = replace(domain, twins=calibration.twins)
        return replace(self, parameters=calibration.parameters, domain=domain)

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """For `caq.calibration.state`."""
        counts = np.array([self.steps, self.turn, self.watch], np.int64)
        return {
            **owned("parameters", {name: getattr(self.parameters, name) for name in CALIBRATED}),
            **owned("statistics", self.statistics.to_arrays()),
            **owned("biases", self.biases.to_arrays()),
            **owned("core", self.core.to_arrays()),
            **owned("waiting", self.waiting.to_arrays()),
            **owned("flips", self._flips_to_arrays()),
            **owned("head", self._head_to_arrays()),
            **owned("domain", {} if self.domain is None else self.domain.to_arrays()),
            **owned("stream", {"x": self.pending, "y": self.pending_y, "random": self.random, "counts": counts}),
        }

    def _flips_to_arrays(self) -> dict[str, NDArray[Any]]:
        flips = self.parameters.flips
        return {} if flips is None else {"latents": self.latents, "flips": pack_flips(flips)}

    def _head_to_arrays(self) -> dict[str, NDArray[Any]]:
        head = self.parameters.head
        return {**self.examples.to_arrays(), **({} if head is None else {"codes": head})}

    @classmethod
    def from_state(cls, state: State, model: Model) -> Learnt:
        """What `to_arrays` gave. Raises StateFormatError on anything that does not fit the model."""
        factory, sets, stream = model.parameters, len(model.parameters.gain), state.part("stream")
        pending, y, counts = (_array(stream, name) for name in ("x", "y", "counts"))
        good = counts.shape == (3,) and counts.dtype == np.int64 and (counts >= 0).all() and counts[1] < sets
        if not good or pending.shape != (len(y), *model.graph.input_shape) or pending.dtype != np.int8:
            raise StateFormatError("stream: counts or samples do not fit the model")
        core, random = CoreSet.from_arrays(state.part("core")), _array(stream, "random")
        random_from_array(random)
        check_core(core, model)
        parameters, latents = _with_flips(_parameters(state.part("parameters"), model), state.part("flips"), model)
        head, domain = state.part("head"), state.part("domain")
        if domain and state.part("flips"):
            raise StateFormatError("domain: flips are there too, which twins cannot have")
        return cls(
            _with_head(parameters, head, model),
            Running.from_arrays(state.part("statistics"), factory),
            Past.from_arrays(state.part("biases"), sets, classes(model)),
            core,
            pending,
            _labels(y, known_labels(model)),
            WaitingRoom.from_arrays(state.part("waiting"), model.graph.input_shape, known_labels(model)),
            random,
            latents,
            Examples.from_arrays(head, model),
            _domain(domain, model) if domain else None,
            *(int(count) for count in counts),
        )


def classes(model: Model) -> int:
    """How many classes the model's output biases tell apart; 0 if it has none."""
    layer = output_layer(model.graph)
    return layer.channels if layer is not None and model.task == "classify" else 0


def known_labels(model: Model) -> int:
    """How many labels a sample may have."""
    return int(np.prod(model.graph.shapes[-1]))


def check_core(core: CoreSet, model: Model) -> None:
    """Raises StateFormatError unless the core set holds input codes of the model and labels that it knows."""
    shape = model.graph.input_shape
    if core.x.dtype != np.int8 or core.x.shape[1:] != shape or core.widths != model.graph.widths:
        raise StateFormatError(
            f"core set: {shape} int8 codes at widths {model.graph.widths} are expected, not "
            f"{core.x.shape[1:]} {core.x.dtype} at {core.widths}; caq.calibration.calibrator.make_core makes them"
        )
    if len(core) and core.y.max() >= known_labels(model):
        raise StateFormatError(f"core set: label {core.y.max()} is none of the model's")


def _parameters(arrays: Arrays, model: Model) -> Parameters:
    parameters = model.parameters.replace(**{name: _array(arrays, name) for name in CALIBRATED})
    if parameters.gain.shape != model.parameters.gain.shape:
        raise StateFormatError(f"parameters: {len(model.parameters.gain)} sets are expected")
    try:
        parameters.check(model.graph)
    except SchemaError as e:
        raise StateFormatError(f"parameters: {e}") from None
    return parameters


def _with_flips(parameters: Parameters, arrays: Arrays, model: Model) -> tuple[Parameters, NDArray[np.int8]]:
    if not arrays:
        return parameters, np.zeros((0, 0), np.int8)
    sets, weights = len(parameters.gain), model.graph.weights
    latents, packed = _array(arrays, "latents"), _array(arrays, "flips")
    shapes = (latents.shape, packed.shape) == ((sets, weights), (2, sets, -(-weights // 8)))
    if not shapes or latents.dtype != np.int8 or packed.dtype != np.uint8:
        raise StateFormatError(f"flips: {sets} sets of {weights} weights are expected, not {latents.shape}")
    try:
        return parameters.replace(flips=unpack_flips(packed, weights)), latents.copy()
    except SchemaError as e:
        raise StateFormatError(str(e)) from None


def _with_head(parameters: Parameters, arrays: Arrays, model: Model) -> Parameters:
    if "codes" not in arrays:
        return parameters
    try:
        check_head(arrays["codes"], len(parameters.gain), model.graph.layers[-1].weights)
    except SchemaError as e:
        raise StateFormatError(str(e)) from None
    return parameters.replace(head=arrays["codes"].copy())


def _labels(y: NDArray[Any], count: int) -> NDArray[np.int16]:
    if y.dtype != np.int16 or (len(y) and not -1 <= y.min() <= y.max() < count):
        raise StateFormatError("stream: labels do not fit the model")
    return y


def _domain(arrays: Arrays, model: Model) -> Domain:
    from caq.calibration.domains import Domain  # states without any do not need it

    return Domain.from_arrays(arrays, model, parameter_sets(model))


def _array(arrays: Arrays, name: str) -> NDArray[Any]:
    if name not in arrays:
        raise StateFormatError(f"{name}: this array is missing")
    return arrays[name]

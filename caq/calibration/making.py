"""Makes a core set: how it is to be drawn, and misses of a model whose training did not count them.

Training counts how often a width forgets a sample. A finished model forgets nothing, so its gains are perturbed, as
training did with its weights: each pass multiplies every channel's gain by its own factor, and a sample that the
widest set gets right is missed by each width that then gets it wrong. On usc_had (ResNet-8, three people, one seed) the
ranks of misses counted so correlate by 0.78 with those of training; noise on the inputs has 0.76 to 0.77, and one pass
without perturbation 0.74, with three levels of misses where eight perturbed passes have 21.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from caq.calibration.core import METHODS, CoreSet, MissCounter
from caq.calibration.head import draw_features, linear_layer
from caq.calibration.sets import coded, logits, parameter_sets
from caq.errors import ConfigError, UnsupportedError
from caq.graph import Graph
from caq.model import Model
from caq.plan import Parameters

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: How to show progress: a description and the number of steps -> a context that gives what to call after each.
Progress = Callable[[str, int], AbstractContextManager[Callable[[str], None]]]
#: Perturbed passes, and the deviation of a gain's factor from 1.
PASSES, PERTURBATION = 8, 0.05


@dataclass(frozen=True)
class CoreConfig:
    """How a core set is drawn (caq.calibration.core).

    size: samples; max_bytes: a budget for all of them, instead or as well. method: of METHODS. per_class: samples that
    each class has at least. penalty: misses of a sample that a width never got right, capped at those of the most
    missed one; None: that many. features: other samples of which the artifact has features (Model.features).
    """

    size: int | None = None
    max_bytes: int | None = None
    method: str = "pmf"
    per_class: int = 1
    penalty: int | None = None
    seed: int = 0
    features: int = 0

    def __post_init__(self) -> None:
        if self.size is None and self.max_bytes is None:
            raise ConfigError("a core set needs a size or a number of bytes")
        if self.method not in METHODS or min(self.per_class, self.penalty or 0, self.features) < 0:
            raise ConfigError(f"{self}: methods are {', '.join(METHODS)}; per_class, penalty, features are 0 or more")

    def select(
        self, x: NDArray[Any], y: NDArray[np.integer], misses: NDArray[np.integer], widths: tuple[int, ...]
    ) -> CoreSet:
        """CoreSet.select with these settings."""
        return CoreSet.select(
            x,
            y,
            misses,
            widths,
            size=self.size,
            max_bytes=self.max_bytes,
            method=self.method,
            per_class=self.per_class,
            seed=self.seed,
        )


def with_calibration_data(
    model: Model, core: CoreSet, x: NDArray[np.generic], y: NDArray[np.integer], config: CoreConfig
) -> Model:
    """`model` with a core set that was drawn from samples x (N, ...), y (N,), and with features of others of them.

    Raises what caq.calibration.head.draw_features raises.
    """
    features = None
    if config.features:
        features = draw_features(model, x, y, config.features, seed=config.seed, without=-1 - core.ids)
    return model.replace(core=core.stored(), features=features)


def check_features(graph: Graph, left: int, config: CoreConfig) -> None:
    """Raises what `with_calibration_data` would: before hours of training. left: samples beside the core set's."""
    if config.features:
        linear_layer(graph)
        if config.features > left:
            raise ConfigError(f"features {config.features}: at most {left} samples are there beside the core set's")


def draw_core(
    model: Model,
    x: NDArray[np.generic],
    y: NDArray[np.integer],
    config: CoreConfig,
    progress: Progress,
) -> CoreSet:
    """A core set of samples x (N, ...), y (N,) of the source, in the data's own layout, by misses of perturbed passes.

    Raises UnsupportedError on a model without classes, DataError on
    samples that the model does not take, and what CoreSet.select raises.
    """
    if model.task != "classify":
        raise UnsupportedError(f"a model that is to {model.task}: a core set needs classes to miss")
    model, widths = model.replace(core=None), model.graph.widths
    codes, labels, plain = model.encode(model.batch(x)[0])[0], np.asarray(y), coded(model)
    config.select(codes, labels, np.zeros((len(widths), len(codes)), np.uint8), widths)  # what cannot be drawn, at once
    rng, counter = np.random.default_rng(config.seed), MissCounter(len(codes), widths)
    with progress("misses", PASSES + 1) as advance:
        correct = _correct(plain, codes, labels)
        right = np.broadcast_to(correct[-1:], correct.shape)
        for i in range(PASSES + 1):
            counter.update(right)
            counter.update(_correct(_perturbed(plain, rng), codes, labels) if i else correct)
            advance(f"pass {i + 1}")
    return config.select(codes, labels, counter.misses(config.penalty), widths)


def _correct(model: Model, codes: NDArray[np.int8], labels: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Which samples each width of a `coded` model gets right, (W, N)."""
    widths = parameter_sets(model)[: len(model.graph.widths)]
    return np.stack([z.argmax(1) == labels for z in logits(model, widths, codes.astype(np.int16)).values()])


def _perturbed(model: Model, rng: np.random.Generator) -> Model:
    p: Parameters = model.parameters
    factors = 1 + PERTURBATION * rng.standard_normal(p.gain.shape)
    gain = np.clip(np.rint(p.gain * factors), -(2**15) + 1, 2**15 - 1).astype(np.int16)
    return model.replace(parameters=p.replace(gain=gain))

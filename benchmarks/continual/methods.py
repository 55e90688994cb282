"""Every method by its name. What needs torch imports it when it is made, so that the others run without.

    none            no adaptation
    ranges          activation ranges fitted anew
    bn, bn_prior    batch norm re-estimated; with the factory's statistics as a pseudo-count of 64 samples
    bias            bias correction
    squant          rounding flips without data; squant_bn: and batch norm re-estimated
    qzo             zeroth order on the scales
    er, der_pp, er_ace, a_gem   replay with back-propagation
    lsq             back-propagation on the whole core set and the batch: an upper bound
    ours            the calibrator, with labels; half of the core set's bytes are features of source samples
    ours_sets       without twins of the sets for another domain, and gates
    ours_unguarded  without its guard; ours_core: all bytes are the core set's, as they are in all that follow
    ours_unlabelled without labels; ours_headless: statistics and biases alone
    ours_random     with a core set drawn at random; ours_fixed: with one that no sample of the stream comes into

All but none, ranges, bn, bn_prior, bias, squant, squant_bn and ours_unlabelled read labels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from benchmarks.continual.forward import BiasCorrection, Unchanged, ZerothOrder, ZerothOrderSettings
from benchmarks.continual.ours import BATCH_NORM, Ours, random_core, with_features
from benchmarks.continual.start import Codes, Labels, Method, Start
from caq.calibration.config import WITHOUT_TWINS, CalibratorConfig
from caq.model import Model

#: The best of benchmarks.continual.choose at 5 passes over a batch; 10 take twice the time and gain 0.9 points.
RATE, EPOCHS = 1e-3, 5
ZEROTH_ORDER = ZerothOrderSettings()


class EachWidth:
    """A method of which every width has one for itself, made from a start of its own."""

    def __init__(self, methods: dict[int, Method]) -> None:
        self._methods = methods

    def step(self, x: Codes, y: Labels) -> None:
        for method in self._methods.values():
            method.step(x, y)

    def model(self, width: int) -> Model:
        return self._methods[width].model(width)


def _ours(config: CalibratorConfig, labelled: bool = True) -> Callable[[Start], Method]:
    return lambda start: Ours(start, config, labelled)


def _ranges(start: Start) -> Method:
    from benchmarks.continual.backprop import RangeRefresh

    return RangeRefresh(start)


def _squant(start: Start) -> Method:
    from benchmarks.continual.squant import SQuant

    return SQuant(start)


def _squant_bn(start: Start) -> Method:
    flipped = _squant(start)
    return EachWidth({w: Ours(replace(start, model=flipped.model(w)), BATCH_NORM, False) for w in start.widths})


def backprop(name: str, rate: float = RATE, epochs: int = EPOCHS) -> Callable[[Start], Method]:
    """A peer with back-propagation, with settings of the caller's."""

    def make(start: Start) -> Method:
        from benchmarks.continual import backprop

        rules = {
            "er": backprop.replay,
            "der_pp": backprop.dark_replay,
            "er_ace": backprop.replay_asymmetric,
            "a_gem": backprop.averaged_gem,
            "lsq": backprop.everything,
        }
        settings = backprop.Settings(epochs=epochs, rate=rate)
        return backprop.Backprop(start, rules[name], settings, with_outputs=name == "der_pp")

    return make


#: Methods whose artifact has features of source samples.
FEATURED = ("ours", "ours_unguarded", "ours_sets")
BACKPROP = ("er", "der_pp", "er_ace", "a_gem", "lsq")
METHODS: dict[str, Callable[[Start], Method]] = {
    "none": Unchanged,
    "ranges": _ranges,
    "bn": _ours(BATCH_NORM, labelled=False),
    "bn_prior": _ours(replace(BATCH_NORM, prior=64.0), labelled=False),
    "bias": BiasCorrection,
    "squant": _squant,
    "squant_bn": _squant_bn,
    "qzo": lambda start: ZerothOrder(start, ZEROTH_ORDER),
    **{name: backprop(name) for name in BACKPROP},
    "ours": lambda start: Ours(with_features(start), CalibratorConfig()),
    "ours_sets": lambda start: Ours(with_features(start), CalibratorConfig(rungs=WITHOUT_TWINS)),
    "ours_core": _ours(CalibratorConfig()),
    "ours_unlabelled": _ours(CalibratorConfig(), labelled=False),
    "ours_headless": _ours(CalibratorConfig(rungs=("statistics", "biases"))),
    "ours_unguarded": lambda start: Ours(with_features(start), CalibratorConfig(guarded=False)),
    "ours_random": lambda start: Ours(random_core(start), CalibratorConfig()),
    "ours_fixed": _ours(CalibratorConfig(keep=1.0)),
}

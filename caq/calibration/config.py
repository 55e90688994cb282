"""How to calibrate."""

from __future__ import annotations

from dataclasses import dataclass

from caq.calibration.guard import Limits
from caq.calibration.state import MAX_STATE_BYTES
from caq.errors import ConfigError

#: What there is, from the cheapest.
RUNGS = ("statistics", "biases", "head", "domain", "flips")
#: What is there if nothing is said: without what needs a network in the artifact.
LADDER = RUNGS[:4]
#: Without a second set for each; and with flips instead, as codes of layers that domains share may not flip.
WITHOUT_TWINS = LADDER[:3]
WITH_FLIPS = (*WITHOUT_TWINS, "flips")
#: Floors against disaster, wider than the guard's own: a slice of a core set has a few samples of a class. Gain and
#: forgetting are measured in cross entropy (caq.calibration.judge).
LIMITS = Limits(gain=None, point=0.1, class_=0.5, factory=0.05)


@dataclass(frozen=True)
class CalibratorConfig:
    """How to calibrate.

    rungs: of RUNGS, in their order. guarded: False promotes whatever a rung proposes, for comparisons. limits: of
    accuracy on the guard's slice; forgetting: most growth of cross entropy on the factory's samples in it, nats, and
    head_forgetting: where the classifier is fitted. prior, memory: samples that the factory's statistics weigh as, and
    that the stream's do at most (twins' 100); bias_prior: how strongly output biases are drawn to the factory's;
    bias_memory: as memory, for labelled samples. core_weight: of a core sample in the fit of biases, one of the stream
    has 1. keep: share of the core set that samples of the factory keep. batch: samples that `learn_one` collects for a
    step. waiting: samples without a label that are kept for one that comes late. head_weight: of the source's samples
    together in the fit of the classifier, one of the stream has 1; head_ridge, head_spread: how strongly that is drawn
    to the factory's (caq.calibration.head); head_samples: the last labelled ones of the stream that it is fitted to.
    on_drift: calibrate only with the `follow` samples after an alarm of the drift detector. pseudo_labels: how sure, 0
    to 1, the widest set's answer is to be to stand for a label, for the biases of a step that has no label; None: none
    does. flip_rates: codes that a speed of 1 moves a latent by, at 2 and at 8 bits, geometric between; flip_rounds: how
    often flips look at a batch. max_ms: that a step may compute; max_bytes: of the state.
    """

    rungs: tuple[str, ...] = LADDER
    guarded: bool = True
    limits: Limits = LIMITS
    forgetting: float = 0.05
    prior: float = 64.0
    memory: float = 200.0
    bias_prior: float = 1.0
    bias_memory: float = 400.0
    core_weight: float = 3.0
    head_weight: float = 300.0
    head_ridge: float = 0.03
    head_spread: float = 10.0
    head_samples: int = 400
    head_forgetting: float = 0.3
    keep: float = 0.5
    batch: int = 20
    waiting: int = 100
    on_drift: bool = False
    follow: int = 400
    pseudo_labels: float | None = None
    max_ms: float | None = None
    max_bytes: int = MAX_STATE_BYTES
    flip_rates: tuple[float, float] = (0.05, 0.4)
    flip_rounds: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        if not set(self.rungs) <= set(RUNGS) or list(self.rungs) != [r for r in RUNGS if r in self.rungs]:
            raise ConfigError(f"rungs {self.rungs}: some of {', '.join(RUNGS)} are expected, in this order")
        if {"domain", "flips"} <= set(self.rungs):
            raise ConfigError(f"rungs {self.rungs}: domains share the codes of first layers; leave domain or flips out")
        if not 0 < min(self.flip_rates) <= max(self.flip_rates) <= 1 or self.flip_rounds < 1:
            raise ConfigError(f"{self}: flip_rates are above 0 and at most 1, flip_rounds 1 or more")
        positive = (self.prior, self.memory, self.bias_prior, self.bias_memory, self.core_weight, self.batch)
        if min(*positive, self.head_weight, self.head_ridge) <= 0 or not 0 <= self.keep <= 1:
            raise ConfigError(f"{self}: priors, memories, weights and batch are above 0, shares 0 to 1")
        none_below = (self.follow, self.waiting, self.head_samples, self.head_spread)
        if min(none_below) < 0 or not min(self.forgetting, self.head_forgetting) >= 0:
            raise ConfigError(f"{self}: follow, waiting, limits of forgetting, head_samples and _spread are 0 or more")
        if self.pseudo_labels is not None and not 0 <= self.pseudo_labels <= 1:
            raise ConfigError(f"pseudo_labels {self.pseudo_labels}: a probability, 0 to 1, or None, is expected")
        if self.max_ms is not None and not self.max_ms > 0:
            raise ConfigError(f"max_ms {self.max_ms}: a positive number of milliseconds, or None, is expected")

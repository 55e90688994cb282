"""Trains what flips bits on a device (caq.calibration.flips): the feedback of a model, and the network.

The network learns from drifts that are at hand when a model is made: people, sites or noise that the model was not
trained on, or corruptions of what it was. On each, straight-through estimation (STE) calibrates the codes of each width
by true gradients, with all samples; what the network sees are FEATURES that a device could have, from few of them. Its
target is the sign of the change that STE made to a code, in the direction that the features are relative to: so it
learns to expect how much of what its evidence says is real.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from caq.calibration.calibrator import Calibrator, make_core
from caq.calibration.config import WITHOUT_TWINS, CalibratorConfig
from caq.calibration.flips import (
    FEATURES,
    LATENT,
    UNIT,
    FlipsRung,
    codes_of,
    describe,
    flips_of,
    gather,
    layer_slices,
    positions,
)
from caq.calibration.sets import ParameterSet, coded, parameter_sets
from caq.data import Dataset
from caq.model import Model
from caq.plan import Parameters
from caq.quant import MIN_WIDTH, TOP_WIDTH
from caq.sections import StoredFlips
from caq.supernet.conditional import RouteData
from caq.supernet.differentiable import DifferentiableModel, rounded

if TYPE_CHECKING:
    from numpy.typing import NDArray


#: From how many codes on STE's latents count as a change: a half would be seldom reached at 2 bits.
CHANGED = 0.25
#: Samples of a drift that are learnt from.
MOST_DRIFTED = 1000


@dataclass(frozen=True)
class FlipConfig:
    """How to train. steps, batch, rates: of STE (Adam), the rate in codes at 2 and at 8 bits, geometric between.

    looks: how often each case is looked at as a device would, with `core` and `seen` samples. hidden: units of the
    network; fits: its steps. samples: that the feedback is a mean over.
    """

    steps: int = 60
    batch: int = 96
    rates: tuple[float, float] = (0.01, 0.1)
    looks: int = 1
    core: int = 60
    seen: int = 40
    hidden: int = 16
    fits: int = 400
    samples: int = 256
    seed: int = 0


class Drift(NamedTuple):
    """A model, labelled samples of what it was trained on, and of what it was not, in the data's own layout."""

    model: Model
    x: NDArray[np.generic]
    y: NDArray[np.integer]
    drifted_x: NDArray[np.generic]
    drifted_y: NDArray[np.integer]


def train_flips(model: Model, drifts: Sequence[Drift], config: FlipConfig = FlipConfig()) -> StoredFlips:
    """What `Model.flip_network` is to be. drifts: of this model, or of others with as many widths."""
    first = drifts[0]
    rng = np.random.default_rng(config.seed)
    chosen = rng.permutation(len(first.x))[: config.samples]
    own = feedback(coded(model), model.encode(model.batch(first.x[chosen])[0])[0])
    examples = [_examples(drift, config, rng) for drift in drifts]
    parts = []
    for of_width in zip(*examples, strict=True):
        features, targets = zip(*of_width, strict=True)
        parts.append(_fit(np.concatenate(features), np.concatenate(targets), config))
    w1, b1, w2, b2 = (np.stack(part) for part in zip(*parts, strict=True))
    return StoredFlips(w1, b1, w2, b2, own)


def feedback(model: Model, x: NDArray[np.int8]) -> NDArray[np.int8]:
    """The mean Jacobian (C, K) int8 of a `coded` model's outputs by its layers', over samples, positions and widths.

    x: input codes (N, H, W, C). Where an output is clamped it counts for nothing. Each layer has a scale of its own.
    """
    graph = model.graph
    total = [torch.zeros(layer.channels, math.prod(graph.shapes[-1])) for layer in graph.layers]
    for which in parameter_sets(model)[: len(graph.widths)]:
        network = DifferentiableModel(model, which)
        z = network(x, [codes.clone().requires_grad_() for codes in network.codes])
        free = [
            ((y > graph.ops[layer.op].low) & (y < graph.ops[layer.op].high)).float()
            for y, layer in zip(network.outputs, graph.layers, strict=True)
        ]
        counts = [f.sum((0, 2, 3)).clamp(min=1) for f in free]
        rows = []
        for k in range(z.shape[1]):
            grads = torch.autograd.grad(z[:, k].sum(), network.outputs, retain_graph=True)
            rows.append([(g * f).sum((0, 2, 3)) / n for g, f, n in zip(grads, free, counts, strict=True)])
        total = [t + torch.stack([row[i] for row in rows], 1) for i, t in enumerate(total)]
    scaled = [t / t.abs().max().clamp(min=1e-30) * 127 for t in total]
    return torch.cat(scaled).round().to(torch.int8).numpy()


def calibrate_codes(
    model: Model,
    which: ParameterSet,
    parameters: Parameters,
    x: NDArray[np.int8],
    y: NDArray[np.integer],
    weights: NDArray[np.floating],
    config: FlipConfig,
) -> NDArray[np.float32]:
    """Latents (n,), -1 to 1 code, after STE on samples x (N, H, W, C), y (N,) that weigh `weights`."""
    network = DifferentiableModel(model, which, parameters)
    limits = [2 ** (pair.weight - 1) for pair in which.assignment]
    latents = [torch.zeros_like(codes, requires_grad=True) for codes in network.codes]
    begins = _by_layer(model, positions(model, which))
    groups = [
        {"params": [latent], "lr": _rate(pair.weight, config.rates)}
        for latent, pair in zip(latents, which.assignment, strict=True)
    ]
    optimizer, rng = torch.optim.Adam(groups), np.random.default_rng(config.seed)
    answers, share = torch.from_numpy(y.astype(np.int64)), torch.from_numpy(weights.astype(np.float32))
    for _ in range(config.steps):
        chosen = rng.permutation(len(x))[: config.batch]
        codes = [
            rounded(c + at - 0.5 + latent).clamp(-limit, limit - 1)
            for c, at, latent, limit in zip(network.codes, begins, latents, limits, strict=True)
        ]
        loss = functional.cross_entropy(network(x[chosen], codes), answers[chosen], reduction="none")
        optimizer.zero_grad()
        (loss @ share[chosen] / share[chosen].sum()).backward()
        optimizer.step()
        with torch.no_grad():
            for latent in latents:
                latent.clamp_(-1, 1)
    return np.concatenate([t.detach().permute(0, 2, 3, 1).reshape(-1).numpy() for t in latents])


def _by_layer(model: Model, values: NDArray[np.float32]) -> list[Tensor]:
    """Values (n,) of all weights as (O, C, rows, columns) of each layer."""
    parts = (
        values[span].reshape(layer.weight_shape)
        for span, layer in zip(layer_slices(model.graph), model.graph.layers, strict=True)
    )
    return [torch.from_numpy(part).permute(0, 3, 1, 2) for part in parts]


def _rate(width: int, ends: tuple[float, float]) -> float:
    return float(ends[0] * (ends[1] / ends[0]) ** ((width - MIN_WIDTH) / (TOP_WIDTH - MIN_WIDTH)))


def _examples(
    drift: Drift, config: FlipConfig, rng: np.random.Generator
) -> list[tuple[NDArray[np.int8], NDArray[np.float32]]]:
    """Of each width: features (M, F) and targets (M,), -1 to 1."""
    model, plain = drift.model, coded(drift.model)
    core = make_core(model, drift.x, drift.y, size=config.core, seed=config.seed)
    settings = CalibratorConfig(rungs=WITHOUT_TWINS, guarded=False, seed=config.seed)
    with Calibrator(model, core, config=settings) as calibrator:
        calibrator.partial_fit(drift.drifted_x, drift.drifted_y)
        parameters = calibrator.model.parameters
    codes, labels = model.encode(model.batch(drift.drifted_x)[0])[0], np.asarray(drift.drifted_y)
    x, y = np.concatenate([core.x, codes]), np.concatenate([core.y, labels])
    weights = np.where(np.arange(len(y)) < len(core), settings.core_weight, 1.0)
    own, found = feedback(plain, core.x), []
    for which in parameter_sets(plain)[: len(plain.graph.widths)]:
        at = positions(plain, which)
        latents = calibrate_codes(plain, which, parameters, x, y, weights, config)
        features, targets = [], []
        for look in range(config.looks):
            # From how far STE has come, as what the network says adds up on a device.
            now = np.rint(latents * LATENT * look / config.looks).astype(np.int8)
            seen = len(core) + rng.permutation(len(codes))[: config.seen]
            chosen = np.concatenate([rng.permutation(len(core))[: len(core) // 2], seen])
            parts = x[chosen], y[chosen], weights[chosen], chosen < len(core)
            plan = FlipsRung.plan_of(plain, which, parameters, flips_of(now, at))
            evidence = gather(plain, which, parameters, plan, own, *parts, lambda: None)
            start = 0
            for layer, e in zip(plain.graph.layers, evidence, strict=True):
                span = slice(start, start := start + layer.weights)
                f, toward = describe(plain, which, parameters, layer, e, codes_of(plan, layer), now[span])
                features.append(f)
                targets.append(np.sign(latents[span]) * (np.abs(latents[span]) > CHANGED) * toward)
        found.append((np.concatenate(features), np.concatenate(targets).astype(np.float32)))
    return found


def _fit(
    features: NDArray[np.int8], targets: NDArray[np.float32], config: FlipConfig
) -> tuple[NDArray[np.int8], NDArray[np.int16], NDArray[np.int8], NDArray[np.int16]]:
    """The network of one width, in integers, by squared error: so its output is what is to be expected."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        hidden, out = nn.Linear(len(FEATURES), config.hidden), nn.Linear(config.hidden, 1)
    x, y = torch.from_numpy(features.astype(np.float32) / UNIT), torch.from_numpy(targets)
    optimizer = torch.optim.Adam([*hidden.parameters(), *out.parameters()], 1e-2)
    rng = np.random.default_rng(config.seed)
    for _ in range(config.fits):
        chosen = torch.from_numpy(rng.integers(len(x), size=4096))
        loss = (out(hidden(x[chosen]).clamp(0, 127 / UNIT))[:, 0] - y[chosen]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def whole(t: Tensor, unit: int, bits: int) -> NDArray[np.int64]:
        limit = 2 ** (bits - 1)
        return (t.detach() * unit).round().clamp(-limit, limit - 1).long().numpy()

    return (
        whole(hidden.weight, UNIT, 8).astype(np.int8),
        whole(hidden.bias, UNIT * UNIT, 16).astype(np.int16),
        whole(out.weight[0], 64, 8).astype(np.int8),
        whole(out.bias, UNIT * 64, 16).astype(np.int16)[0],
    )


def drifts_of(model: Model, trained: Dataset, held: RouteData | None, seed: int) -> list[Drift]:
    """Drifts that a model can be taken through: domains that were held back from its training, or two corruptions."""
    rng = np.random.default_rng(seed)
    if held is not None:
        assert held.y is not None  # hold_back gives labels
        fresh = rng.permutation(np.flatnonzero(held.fresh))[:MOST_DRIFTED]
        return [Drift(model, trained.x_train, trained.y_train, held.x[fresh], held.y[fresh])]
    found = []
    for i in range(2):
        chosen = rng.permutation(len(trained.x_train))[:MOST_DRIFTED]
        drifted = corrupted(trained.x_train[chosen], seed + i)
        found.append(Drift(model, trained.x_train, trained.y_train, drifted, trained.y_train[chosen]))
    return found


def corrupted(x: NDArray[np.generic], seed: int) -> NDArray[np.generic]:
    """Samples x (N, ...) as another sensor may deliver them: with another gain and offset in each channel, and noise.

    For data without domains. Gains are 0.6 to 1.6, offsets and noise up to half the channel's deviation.
    """
    rng, axes = np.random.default_rng(seed), tuple(range(x.ndim - 1))
    values = x.astype(np.float64)
    mean, deviation = values.mean(axes), values.std(axes)
    gain, offset = np.exp(rng.uniform(np.log(0.6), np.log(1.6), mean.shape)), rng.uniform(-0.5, 0.5, mean.shape)
    noise = rng.standard_normal(x.shape) * rng.uniform(0, 0.5)
    values = mean + (values - mean) * gain + (offset + noise) * deviation
    if x.dtype.kind != "f":
        limits = np.iinfo(x.dtype.name)
        values = np.clip(np.rint(values), limits.min, limits.max)
    return values.astype(x.dtype)

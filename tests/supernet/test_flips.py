"""What flips bits on a device is trained: true gradients, feedback that stands for them, and the network."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from caq import artifact
from caq.calibration.calibrator import Calibrator
from caq.calibration.config import WITH_FLIPS, CalibratorConfig
from caq.calibration.core import CoreSet
from caq.calibration.flips import FEATURES, FlipsRung, gather, positions
from caq.calibration.making import CoreConfig
from caq.calibration.sets import coded, logits, parameter_sets
from caq.costs import Budget
from caq.data import Dataset, load
from caq.errors import ConfigError
from caq.model import Model
from caq.sections import FLIP_FEATURES
from caq.supernet.differentiable import DifferentiableModel, rounded
from caq.supernet.flips import FlipConfig, calibrate_codes, corrupted, drifts_of, feedback, train_flips
from caq.supernet.pipeline import train_model
from caq.supernet.train import Outputs, TrainConfig
from tests import models

SMALL = FlipConfig(steps=4, batch=40, looks=2, core=20, seen=10, hidden=4, fits=60, samples=40)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    data = load("digits")
    part = {name: getattr(data, name)[:240] for name in ("x_train", "y_train")}
    return replace(data, **part, x_test=data.x_test[:60], y_test=data.y_test[:60], domain_train=np.arange(240) % 5)


@pytest.fixture(scope="module")
def trained(digits: Dataset) -> Model:
    config = TrainConfig(epochs=4, batch_size=32)
    return train_model(digits, "resnet8", config, (2, 8), (), Outputs(quiet=True), core=CoreConfig(20), flips=SMALL)


@pytest.mark.parametrize("seed", [0, 1])
def test_torch_computes_what_the_kernels_do(seed: int) -> None:
    model = coded(models.model(seed))
    x = np.random.default_rng(seed).integers(-128, 128, (20, *model.graph.input_shape)).astype(np.int8)
    for which in parameter_sets(model):
        z = logits(model, (which,), x.astype(np.int16))[which.name] / float(model.parameters.steps[-1])
        with torch.no_grad():
            found = DifferentiableModel(model, which)(x).numpy() / float(model.parameters.steps[-1])
        # Random models amplify each rounding that floats do elsewhere; outputs have 16 bits.
        assert np.corrcoef(z.ravel(), found.ravel())[0, 1] > 0.98


def test_rounding_is_that_of_the_kernels_and_lets_gradients_pass() -> None:
    x = torch.tensor([-1.5, -0.5, 0.49, 0.5, 2.5], requires_grad=True)
    y = rounded(x)
    assert y.tolist() == [-1, 0, 0, 1, 3]
    y.sum().backward()
    assert x.grad is not None and x.grad.tolist() == [1] * 5


def test_feedback_stands_for_the_gradient(trained: Model, digits: Dataset) -> None:
    model = coded(trained)
    x, y = trained.encode(digits.x_train)[0], digits.y_train
    own = feedback(model, x[:100])
    for which in parameter_sets(model)[:2]:
        network = DifferentiableModel(model, which)
        codes = [c.clone().requires_grad_() for c in network.codes]
        loss = torch.nn.functional.cross_entropy(network(x[100:140], codes), torch.from_numpy(y[100:140]))
        true = torch.autograd.grad(loss, codes)
        plan = FlipsRung.plan_of(model, which, model.parameters, np.zeros(model.graph.weights, np.int8))
        parts = x[100:140], y[100:140], np.ones(40), np.arange(40) < 20
        found = gather(model, which, model.parameters, plan, own, *parts, lambda: None)
        alike = [
            float(torch.cosine_similarity(t.permute(0, 2, 3, 1).flatten(), torch.from_numpy(e.gradient).flatten(), 0))
            for t, e in zip(true, found, strict=True)
        ]
        assert alike[-1] > 0.95 and np.median(alike) > 0.5, alike


def test_straight_through_calibration_lowers_the_loss(trained: Model, digits: Dataset) -> None:
    model, which = coded(trained), parameter_sets(coded(trained))[0]
    x, y = trained.encode(corrupted(digits.x_train, 3))[0], digits.y_train
    latents = calibrate_codes(model, which, model.parameters, x, y, np.ones(240), replace(SMALL, steps=30, batch=96))
    assert latents.shape == (model.graph.weights,) and np.abs(latents).max() <= 1
    own = np.zeros((len(model.parameters.gain), model.graph.weights), np.int8)
    own[0] = np.floor(positions(model, which) + latents).clip(-1, 1)
    flipped = model.replace(parameters=model.parameters.replace(flips=own))
    before, after = (logits(m, (which,), x.astype(np.int16))["w2a2"] for m in (model, flipped))

    def loss(z: np.ndarray) -> float:
        return float(torch.nn.functional.cross_entropy(torch.from_numpy(z), torch.from_numpy(y)))

    assert loss(after) < loss(before)


def test_an_artifact_has_its_network_and_calibrates_with_it(trained: Model, digits: Dataset) -> None:
    model = artifact.loads(artifact.dumps(trained))
    network = model.flip_network
    assert network is not None and network.w1.shape == (2, 4, FLIP_FEATURES) and len(FEATURES) == FLIP_FEATURES
    assert model.core is not None
    core = CoreSet.from_stored(model.core, model.graph.widths)
    config = CalibratorConfig(rungs=WITH_FLIPS, guarded=False, flip_rates=(0.5, 0.5))
    with Calibrator(model, core, config=config) as calibrator:
        calibrator.partial_fit(corrupted(digits.x_train[:60], 1), digits.y_train[:60])
        flips = calibrator.model.parameters.flips
    assert flips is not None and flips.any()


def test_the_same_seed_gives_the_same_network(trained: Model, digits: Dataset) -> None:
    plain = replace(digits, domain_train=None)
    drifts = drifts_of(trained, plain, None, 0)
    assert len(drifts) == 2 and not np.array_equal(drifts[0].drifted_x, drifts[1].drifted_x)
    first, again = (train_flips(trained, drifts[:1], SMALL) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))


def test_corruption_keeps_dtype_and_range() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (20, 8, 8, 3)).astype(np.uint8)
    found = corrupted(images, 1)
    assert found.dtype == np.uint8 and found.shape == images.shape and not np.array_equal(found, images)
    assert corrupted(images.astype(np.float32), 1).dtype == np.float32
    np.testing.assert_array_equal(corrupted(images, 1), found)


def test_what_cannot_have_a_network_is_refused(digits: Dataset) -> None:
    for network, conditional in (("autoencoder", ()), ("mlp", (Budget("smart", 0.5),))):
        with pytest.raises(ConfigError, match="flips"):
            train_model(digits, network, TrainConfig(epochs=1), conditional=conditional, flips=SMALL)

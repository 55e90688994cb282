"""Training's integer simulation and the reference engine agree on every logit; benchmarks.contract runs many more."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.contract import NETWORKS, differing_logits, subject
from caq import artifact
from caq.data import from_arrays
from caq.engine import Engine
from caq.measure import score
from caq.supernet.conversion import convert
from caq.supernet.lower import lower
from caq.supernet.pipeline import assemble, prepare
from caq.supernet.simulate import simulate_conditional
from caq.supernet.train import TrainConfig, task_loss
from tests.conditional_models import readable, with_gate
from tests.models import samples


@pytest.mark.parametrize("name", NETWORKS)
def test_no_logit_differs(name: str) -> None:
    differing, compared = differing_logits(subject(name, seed=1, samples=1), assignments=3, seed=2)
    assert compared >= 4 * 10
    assert differing == 0


@pytest.mark.parametrize("name", ["resnet8", "ds_cnn", "inception_time", "mlp"])
def test_conditional_points_agree_too(name: str) -> None:
    s = subject(name, seed=1, samples=1)
    tensors = readable(s.model.graph)
    for t in (tensors[1], tensors[len(tensors) // 2]):
        m = with_gate(s.model, 1, t)
        point, x = m.points[-1], samples(m, 12, 1)
        assert point.gate is not None
        codes = torch.from_numpy(m.encode(x)[0]).permute(0, 3, 1, 2)
        wanted, routes = simulate_conditional(
            s.supernet, replace(s.lowered, parameters=m.parameters), codes, point.gate
        )
        for kernels in ("native", "reference"):
            engine = Engine(m, kernels=kernels)
            outputs, taken = engine.run_routed(x, engine.build_point("conditional"))
            np.testing.assert_array_equal(taken, routes.numpy())
            np.testing.assert_array_equal(outputs, wanted.numpy())
        assert len(set(routes.tolist())) > 1


@pytest.mark.parametrize("name", ["mlp", "image_autoencoder"])
def test_the_comparison_can_fail(name: str) -> None:
    s = subject(name, seed=1, samples=1)
    s.lowered.codes[0][...] ^= 1
    differing, _ = differing_logits(s, assignments=3, seed=2)
    assert differing > 0


@pytest.mark.parametrize("name", ["ds_cnn", "mlp"])
def test_what_is_beside_codes_and_parameters_is_small_even_in_small_networks(name: str) -> None:
    model = subject(name, seed=0, samples=1).model
    points = tuple(p._replace(score=0.123456 + i / 100, samples=4890) for i, p in enumerate(model.points))
    data = artifact.dumps(model.replace(points=points))
    with artifact.Reader(io.BytesIO(data), name) as reader:
        assert len(data) <= 1.05 * (model.graph.weights + reader.tensors["parameters"].nbytes)


@pytest.mark.parametrize("shape", [(6, 5, 3), (12, 4)])
def test_a_network_that_returns_its_input_reconstructs_it_everywhere(shape: tuple[int, ...]) -> None:
    """Loss in training and score in integers: both compare outputs with inputs position by position."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (32, *shape)).astype(np.uint8)
    y = np.arange(32) % 2
    kind = np.array("image" if len(shape) == 3 else "series")
    data = from_arrays("copies", {"x_train": x, "y_train": y, "x_test": x, "y_test": y, "kind": kind})
    channels = shape[-1]
    network = (nn.Conv2d if len(shape) == 3 else nn.Conv1d)(channels, channels, 1, bias=False)
    with torch.no_grad():
        network.weight.copy_(torch.eye(channels).reshape(network.weight.shape))
    prepared = prepare(data, network, 0)
    inputs, labels = next(prepared.train.plain(32))
    supernet = convert(network, prepared.as_network_input(inputs), (8,))
    with torch.no_grad():
        loss = task_loss("reconstruct", supernet(inputs), inputs, labels)
    assert loss < 1e-3 * inputs.var()
    widest = supernet.graph.uniform(8)
    config = TrainConfig(epochs=1, task="reconstruct")
    model = assemble(lower(supernet, prepared.scaling.step), data, prepared, [("w8a8", widest, None)], config)
    engine = Engine(model)
    assert score(engine, engine.plan, x, y) > 0.999
    real = engine.run(x) * engine.output_step
    torch.testing.assert_close(torch.from_numpy(real).float(), supernet(inputs).detach(), rtol=0, atol=0.05)

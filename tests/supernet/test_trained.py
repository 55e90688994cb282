"""From a trained network to an artifact: weights that fit or do not, calibration, fine-tuning."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from caq import artifact
from caq.costs import Budget
from caq.data import Dataset, from_arrays
from caq.errors import CaqError, ConfigError, DataError, UnsupportedError, WeightsError
from caq.model import Model
from caq.scaling import Moments
from caq.supernet import Supernet, convert, trained
from caq.supernet.batches import Samples
from caq.supernet.calibrate import add_norms, calibrate, choose_codes, fit_activation_steps, floating, input_covariances
from caq.supernet.pipeline import prepare
from caq.supernet.quantizers import nested_values, weight_codes
from caq.supernet.train import Outputs, TrainConfig, reestimate_norms, train_float

QUIET = Outputs(quiet=True)
WIDTHS = (2, 4, 8)
STEP = 0.02


class Small(nn.Module):
    """Convolutions with biases as a network has them whose batch norms were folded, a residual sum, and a depthwise."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.deep = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.wide = nn.Conv2d(12, 12, 1)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.wide(torch.relu(self.deep(x))))
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


def images(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise under a bar whose direction and colour are the class."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 4, count)
    x = rng.integers(0, 150, (count, 8, 8, 3))
    for i, label in enumerate(y):
        at = rng.integers(0, 8)
        if label % 2:
            x[i, :, at, label // 2] += 90
        else:
            x[i, at, :, label // 2] += 90
    return x.astype(np.uint8), y


@pytest.fixture(scope="module")
def data() -> Dataset:
    (x, y), (v, w) = images(600, 0), images(300, 1)
    return from_arrays("bars", {"x_train": x, "y_train": y, "x_test": v, "y_test": w})


@pytest.fixture(scope="module")
def small(data: Dataset) -> nn.Module:
    """Trained on (x - 100) / 64."""
    torch.manual_seed(0)
    prepared = prepare(data, Small(), 0, moments=Moments((100.0,), (64.0,)))
    train_float(prepared.network, prepared.train, TrainConfig(12, 32, 1e-2), QUIET)
    return prepared.network.eval()


@pytest.fixture
def weights(small: nn.Module, tmp_path: Path) -> Path:
    torch.save(small.state_dict(), tmp_path / "w.pt")
    return tmp_path / "w.pt"


def as_trained(network: nn.Module) -> trained.Trained:
    return trained.Trained("small", network, None, "w.pt", "0" * 64)


CONFIG = trained.ConvertConfig(samples=200, moments=Moments((100.0,), (64.0,)))


def scores(model: Model) -> dict[str, float]:
    return {p.name: p.score for p in model.points}


def test_eight_bits_are_as_good_as_float(data: Dataset, small: nn.Module) -> None:
    before = {name: value.clone() for name, value in small.state_dict().items()}
    budgets = (Budget("half", 0.5),)
    model, reference = trained.convert_trained(as_trained(small), data, CONFIG, WIDTHS, budgets, QUIET)
    found = scores(model)
    assert reference > 0.7 and list(found) == ["half", "w8a8", "w4a4", "w2a2"]
    assert abs(found["w8a8"] - reference) < 0.02 and found["w4a4"] > reference - 0.1 and found["half"] > reference - 0.1
    assert model.provenance["source_sha256"] == "0" * 64 and model.provenance["source"] == "w.pt"
    assert model.provenance["epochs"] == 0 and model.provenance["calibration_samples"] == 200
    assert model.provenance["float_score"] == pytest.approx(reference, abs=1e-6)
    assert all(torch.equal(value, before[name]) for name, value in small.state_dict().items())


def test_widths_without_eight(data: Dataset, small: nn.Module) -> None:
    model, reference = trained.convert_trained(as_trained(small), data, CONFIG, (3, 5), (), QUIET)
    assert scores(model)["w5a5"] > reference - 0.05


def test_input_codes_are_finer_where_few_values_are_large(small: nn.Module) -> None:
    """What clips is rare, and the network does not depend on it."""
    rng = np.random.default_rng(0)
    x = rng.normal(0, 1, (200, 6)).astype(np.float32)
    x[:, 5] = rng.exponential(20, 200) * (rng.random(200) < 0.05)
    network = nn.Linear(6, 3)
    with torch.no_grad():
        network.weight[:, 5] = 0.0
    data = from_arrays("tails", {f"{key}_{part}": value for part in ("train", "test") for key, value in _xy(x).items()})
    usual = prepare(data, network, 0, moments=trained.AS_GIVEN)
    step = trained.choose_input_step(network, usual, x, trained.AS_GIVEN, "classify")
    assert step < 0.5 * usual.scaling.step
    assert prepare(data, network, 0, moments=trained.AS_GIVEN, step=step).scaling.step == np.float32(step)


def _xy(x: np.ndarray) -> dict[str, np.ndarray]:
    return {"x": x, "y": np.arange(len(x)) % 3}


def test_other_moments_are_another_network(data: Dataset, small: nn.Module) -> None:
    wrong = replace(CONFIG, moments=trained.AS_GIVEN)
    _, reference = trained.convert_trained(as_trained(small), data, wrong, (8,), (), QUIET)
    assert reference < 0.6


def test_the_same_seed_gives_the_same_file_and_labels_are_not_read(
    data: Dataset, small: nn.Module, tmp_path: Path
) -> None:
    shuffled = replace(data, y_train=data.y_train[::-1].copy())
    files = []
    for i, (source, seed) in enumerate(((data, 0), (shuffled, 0), (data, 1))):
        config = replace(CONFIG, seed=seed)
        model, _ = trained.convert_trained(as_trained(small), source, config, WIDTHS, (Budget("a", 0.4),), QUIET)
        same = {"data_sha256": "", "seed": 0}
        artifact.save(model.replace(provenance={**model.provenance, **same}), tmp_path / f"{i}.caq")
        files.append((tmp_path / f"{i}.caq").read_bytes())
    assert files[0] == files[1] != files[2]


def test_conditional_gates_learn_without_labels(data: Dataset, small: nn.Module) -> None:
    shuffled = replace(data, y_train=data.y_train[::-1].copy())
    budgets = (Budget("smart", 0.4),)
    gates = []
    for source in (data, shuffled):
        model, _ = trained.convert_trained(as_trained(small), source, CONFIG, WIDTHS, (), QUIET, budgets)
        point = model.points[0]
        assert point.gate is not None and len(point.branches) >= 2 and scores(model)["smart"] == point.score
        gates.append((point.gate.weights, point.gate.bias))
    assert gates[0] == gates[1]


def test_a_short_fine_tune_helps_where_calibration_does_not_suffice(data: Dataset, small: nn.Module) -> None:
    calibrated, _ = trained.convert_trained(as_trained(small), data, CONFIG, WIDTHS, (), QUIET)
    config = replace(CONFIG, finetune=TrainConfig(6, 32, 2e-3, rounding_from=0.0))
    tuned, _ = trained.convert_trained(as_trained(small), data, config, WIDTHS, (), QUIET)
    assert tuned.provenance["epochs"] == 6
    assert scores(tuned)["w2a2"] > scores(calibrated)["w2a2"] + 0.03


def test_a_reconstruction(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    basis = rng.normal(size=(3, 10))
    x = (rng.normal(size=(400, 3)) @ basis).astype(np.float32)
    y = np.zeros(400, np.int64)
    data = from_arrays("plane", {"x_train": x[:300], "y_train": y[:300], "x_test": x[300:], "y_test": y[300:]})
    onto = torch.from_numpy(np.linalg.pinv(basis) @ basis).float()
    network = nn.Sequential(nn.Linear(10, 10, bias=False))
    with torch.no_grad():
        network[0].weight.copy_(onto.T)
    config = replace(CONFIG, moments=trained.AS_GIVEN, task="reconstruct")
    model, reference = trained.convert_trained(as_trained(network), data, config, (4, 8), (), QUIET)
    found = scores(model)
    assert reference > 0.999 and found["w8a8"] > 0.999 and found["w8a8"] > found["w4a4"] > 0.99
    with pytest.raises(DataError, match="10 outputs, the data 1 classes"):
        trained.convert_trained(as_trained(network), data, CONFIG, (8,), (), QUIET)


# Weights


def test_weights_that_fit(weights: Path, small: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    network = Small()
    state = torch.load(weights, weights_only=True)
    trained.load_weights(network, weights)
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    found = trained.load_module(weights, f"{__name__}:Small")
    assert found.name == "Small" and torch.equal(found.network.head.weight, state["head.weight"])  # type: ignore[union-attr]


def test_a_network_of_the_zoo(data: Dataset, tmp_path: Path) -> None:
    network = prepare(data, "mlp", 3).network
    state = {name: value for name, value in network.state_dict().items() if not name.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "w.pt")
    found = trained.load_zoo(tmp_path / "w.pt", data, "mlp")
    assert found.sample_shape == (192,) and found.name == "mlp" and len(found.sha256) == 64
    x = torch.randn(4, 192)
    torch.testing.assert_close(found.network.eval()(x), network.eval()(x))


def without(state: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: without(s, "deep.bias"), "lacks deep.bias; it is of another network"),
        (lambda s: {}, "lacks deep.bias, deep.weight, head.bias, head.weight, stem.bias and 3 more"),
        (lambda s: {**s, "extra": torch.zeros(1)}, "holds extra, which the network does not have"),
        (lambda s: {**s, "head.bias": torch.zeros(5)}, r"head.bias is \(5,\), the network's is \(4,\)"),
        (lambda s: {**s, "head.bias": torch.full((4,), np.nan)}, "head.bias holds NaN"),
        (lambda s: {"state_dict": s, "epoch": 3}, "a dict of epoch, state_dict, not tensors by name"),
        (lambda s: torch.zeros(3), "a Tensor, not tensors by name"),
        (lambda s: [1, 2], "a list"),
    ],
)
def test_weights_that_do_not_fit(
    change: Callable[[dict[str, Any]], Any], message: str, weights: Path, small: nn.Module
) -> None:
    torch.save(change(small.state_dict()), weights)
    with pytest.raises(WeightsError, match=message):
        trained.load_weights(Small(), weights)


class Trap:
    """Leaves a trace if it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("write", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_nothing_in_a_file_is_executed(write: Callable[[Any, Path], None], tmp_path: Path) -> None:
    write({"head.bias": Trap(tmp_path / "trace")}, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match="weights_only"):
        trained.load_weights(Small(), tmp_path / "w.pt")
    assert not (tmp_path / "trace").exists()


def test_damaged_weights(weights: Path) -> None:
    good, rng = weights.read_bytes(), np.random.default_rng(0)
    cases = [b"", b"PK\x03\x04", b"no weights", *(good[: int(n)] for n in rng.integers(0, len(good), 20))]
    for _ in range(60):
        damaged = bytearray(good)
        for at in rng.integers(0, len(good), 3):
            damaged[at] = rng.integers(256)
        cases.append(bytes(damaged))
    refused = 0
    for case in cases:
        weights.write_bytes(case)
        try:
            trained.load_weights(Small(), weights)
        except CaqError:
            refused += 1
    assert refused >= 23
    with pytest.raises(WeightsError, match="No such file"):
        trained.load_weights(Small(), weights.with_name("none.pt"))


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("Small", "write it like package.module:function"),
        ("no.such.module:make", "ModuleNotFoundError"),
        (f"{__name__}:missing", "AttributeError"),
        (f"{__name__}:Trap", "TypeError"),
        (f"{__name__}:without", "TypeError"),
        ("collections:Counter", "makes a Counter, not a torch.nn.Module"),
    ],
)
def test_factories_that_make_no_network(factory: str, message: str, weights: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        trained.load_module(weights, factory)


def test_a_factory_in_the_working_directory(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "caq_test_mine.py").write_text(f"from {__name__} import Small as make\n")
    monkeypatch.chdir(tmp_path)
    assert isinstance(trained.load_module(weights, "caq_test_mine:make").network, Small)


def test_a_network_that_cannot_be_converted(data: Dataset) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 4), nn.Sigmoid())
    with pytest.raises(UnsupportedError, match="Sigmoid"):
        trained.convert_trained(as_trained(network), data, CONFIG, (8,), (), QUIET)


# Calibration


@pytest.fixture
def samples() -> Samples:
    rng = np.random.default_rng(0)
    codes = rng.normal(0, 40, (160, 3, 8, 8)).round().clip(-128, 127)
    return Samples(torch.from_numpy(codes.astype(np.int8)), torch.zeros(160, dtype=torch.int64), STEP)


@pytest.fixture
def supernet(small: nn.Module, samples: Samples) -> Supernet:
    return convert(small, next(samples.typical(64, 64))[0], WIDTHS)


def test_floating_is_the_float_network(small: nn.Module, supernet: Supernet, samples: Samples) -> None:
    x = next(samples.plain(160))[0]
    with torch.no_grad():
        expected = small(x)
        with floating(supernet):
            torch.testing.assert_close(supernet(x), expected)
        add_norms(supernet, samples)
        assert all(layer.norm is not None and layer.bias is None for layer in supernet.layers)
        with floating(supernet):
            torch.testing.assert_close(supernet(x), expected, rtol=1e-4, atol=1e-4)
            # The statistics are those of these very samples.
            for width in WIDTHS:
                supernet.set_assignment(supernet.graph.uniform(8))
                assert width in supernet.layers[0].norm.widths  # type: ignore[union-attr]
            supernet.train()
            torch.testing.assert_close(supernet(x), expected, rtol=1e-3, atol=1e-3)


def test_covariances_are_those_of_what_weights_meet(supernet: Supernet, samples: Samples) -> None:
    with torch.no_grad():
        found = input_covariances(supernet, samples, torch.Generator().manual_seed(0))
    assert [tuple(c.shape) for c in found] == [(1, 27, 27), (12, 9, 9), (1, 12, 12), (1, 12, 12)]
    x = next(samples.plain(160))[0]
    patches = torch.nn.functional.unfold(x, 3, padding=1).transpose(0, 1).flatten(1)
    torch.testing.assert_close(found[0][0], torch.cov(patches, correction=0), rtol=1e-3, atol=1e-4)


def test_codes_serve_all_widths_at_once(supernet: Supernet, samples: Samples) -> None:
    """The output's relative error at each width, against rounding to nearest in the same range."""
    with torch.no_grad():
        covariances = input_covariances(supernet, samples, torch.Generator().manual_seed(0))
        layer, covariance = supernet.layers[0], covariances[0][0]
        weights = layer.weight.detach().clone().flatten(1)
        choose_codes(layer, covariances[0], WIDTHS)
        codes = weight_codes(layer.weight, layer.scale).flatten(1).float()
        rounded = torch.floor(weights / layer.scale[:, None] + 0.5).clamp(-128, 127)
        assert torch.equal(layer.weight.flatten(1) / layer.scale[:, None] - codes < 0.01, torch.ones_like(codes) > 0)

        def errors(codes: Tensor, width: int) -> Tensor:
            values = nested_values(codes, width)
            common, own = ((weights @ covariance) * values).sum(1), ((values @ covariance) * values).sum(1)
            return 1 - common**2 / (own * ((weights @ covariance) * weights).sum(1))

        for width in (2, 4):
            assert errors(codes, width).mean() < errors(rounded, width).mean()
        assert errors(codes, 8).max() < 0.01


def test_steps_leave_statistics_alone_and_do_not_harm(supernet: Supernet, samples: Samples) -> None:
    x = next(samples.typical(128, 128))[0]
    with torch.no_grad():
        add_norms(supernet, samples)
        before = [layer.norm.mean.clone() for layer in supernet.layers if layer.norm is not None]
        steps = [layer.narrow["2"].step for layer in supernet.layers[1:]]
        fit_activation_steps(supernet, x, 2)
        after = [layer.norm.mean for layer in supernet.layers if layer.norm is not None]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert steps != [layer.narrow["2"].step for layer in supernet.layers[1:]]


def test_calibration_is_better_than_what_conversion_starts_with(
    small: nn.Module, data: Dataset, supernet: Supernet
) -> None:
    prepared = prepare(data, small, 0, moments=Moments((100.0,), (64.0,)))
    x = next(prepared.train.plain(300))[0]
    errors = {}
    for calibrated in (False, True):
        supernet = convert(small, prepared.example(), WIDTHS)
        if calibrated:
            calibrate(supernet, prepared.train, quiet=True)
        supernet.eval()
        with torch.no_grad():
            for width in WIDTHS:
                assignment = supernet.graph.uniform(width)
                if calibrated:
                    reestimate_norms(supernet, prepared.train, assignment)
                supernet.set_assignment(assignment)
                errors[width, calibrated] = float((supernet(x) - small(x)).square().mean() / small(x).var())
    assert all(errors[width, True] < 0.7 * errors[width, False] for width in WIDTHS), errors
    assert errors[8, True] < 0.005

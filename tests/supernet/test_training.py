"""Training: seeded, resumable to the same bytes, and refusing what it cannot do."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from caq import artifact
from caq.costs import DEFAULT_BUDGETS, Budget, affordable_cost, relative_cost
from caq.data import Dataset, load
from caq.errors import ConfigError, DataError, TrainingError
from caq.supernet import convert
from caq.supernet.heap import freed_memory_kept
from caq.supernet.network import channels_last
from caq.supernet.pipeline import prepare, train_model
from caq.supernet.quantizers import ActivationQuantizer
from caq.supernet.train import Outputs, TrainConfig, accuracy, predict, reestimate_norms, train_float, train_supernet

CONFIG = TrainConfig(epochs=3, batch_size=32, seed=5)
QUIET = Outputs(quiet=True)


def trained(data: Dataset, config: TrainConfig, outputs: Outputs = QUIET) -> bytes:
    model = train_model(data, "mlp", config, widths=(2, 4, 8), budgets=(Budget("small", 0.4),), outputs=outputs)
    return artifact.dumps(model)


class Killed(Exception):
    pass


def test_the_same_seed_gives_the_same_artifact_and_a_resumed_run_too(
    digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trained(digits, CONFIG)
    assert trained(digits, CONFIG) == whole
    assert trained(digits, replace(CONFIG, seed=6)) != whole

    checkpoint = tmp_path / "run" / "checkpoint.pt"
    original = torch.optim.AdamW.step
    steps = 0

    def dying(self: torch.optim.AdamW, closure: None = None) -> None:
        nonlocal steps
        steps += 1
        if steps == 50:  # in the second epoch of thirteen batches, each of three steps
            raise Killed
        original(self, closure)

    monkeypatch.setattr(torch.optim.AdamW, "step", dying)
    with pytest.raises(Killed):
        trained(digits, CONFIG, Outputs(checkpoint, quiet=True))
    monkeypatch.undo()
    assert torch.load(checkpoint, weights_only=True)["epochs"] == 1
    assert trained(digits, CONFIG, Outputs(checkpoint, quiet=True)) == whole


def test_a_checkpoint_of_other_settings_or_a_damaged_one_is_refused(digits: Dataset, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint.pt"
    config = replace(CONFIG, epochs=1)
    trained(digits, config, Outputs(checkpoint, quiet=True))
    other = replace(digits, y_train=(digits.y_train + 1) % 10)
    for data, settings in ((digits, replace(config, learning_rate=1e-3)), (other, config)):
        with pytest.raises(TrainingError, match=r"checkpoint\.pt is of another model, data set or configuration"):
            trained(data, settings, Outputs(checkpoint, quiet=True))
    raw = checkpoint.read_bytes()
    for damaged in (b"", raw[:100], raw[: len(raw) // 2]):
        checkpoint.write_bytes(damaged)
        with pytest.raises(TrainingError, match=r"checkpoint\.pt cannot be resumed"):
            trained(digits, config, Outputs(checkpoint, quiet=True))


def test_one_set_of_weights_learns_every_width(digits: Dataset) -> None:
    data = load("digits")
    model = train_model(data, "mlp", TrainConfig(epochs=15, seed=0), outputs=QUIET)
    scores = {p.name: p.score for p in model.points}
    assert min(scores.values()) > 0.9, scores
    assert model.points[0].samples == len(data.y_test)
    # A gate keeps its budget, and its own statistics are its own.
    shares = {p.name: relative_cost(model.graph, p.assignment) for p in model.points}
    saver, balanced = (affordable_cost(model.graph, b.share) for b in (DEFAULT_BUDGETS[2], DEFAULT_BUDGETS[1]))
    assert shares["w2a2"] <= shares["saver"] <= saver < shares["balanced"] <= balanced < shares["w8a8"]
    assert [p.parameter_set for p in model.points[:3]] == [6, 7, 8]


def test_tensorboard_logs_are_written_when_asked(digits: Dataset, tmp_path: Path) -> None:
    trained(digits, replace(CONFIG, epochs=1), Outputs(tensorboard=tmp_path / "logs", quiet=True))
    assert [p.name.startswith("events") for p in (tmp_path / "logs").iterdir()] == [True]


def test_a_diverging_run_says_so(digits: Dataset) -> None:
    with pytest.raises(TrainingError, match="lower the learning rate"):
        prepared = prepare(digits, "mlp", 0)
        for p in prepared.network.parameters():
            torch.nn.init.constant_(p, float("inf"))
        train_float(_Vectors(prepared.network), prepared.train, CONFIG, QUIET)


class _Vectors(torch.nn.Module):
    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x.flatten(1))  # type: ignore[no-any-return]


@pytest.mark.parametrize("bad", [{"epochs": 0}, {"batch_size": 1}, {"learning_rate": 0.0}, {"learning_rate": 2.0}])
def test_bad_settings(bad: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        TrainConfig(**bad)  # type: ignore[arg-type]
    with pytest.raises(ConfigError):
        Budget("saver", -0.1)


def test_reestimated_statistics_belong_to_their_assignment(digits: Dataset) -> None:
    prepared = prepare(digits, "mlp", 0)
    supernet = convert(prepared.network, prepared.example(), (2, 8))
    before = [layer.norm.mean.clone() for layer in supernet.layers if layer.norm is not None]
    reestimate_norms(supernet, prepared.train, supernet.graph.uniform(2))
    after = [layer.norm.mean for layer in supernet.layers if layer.norm is not None]
    for b, a in zip(before, after, strict=True):
        assert not torch.equal(b[0], a[0])
        assert torch.equal(b[1], a[1])
    assert supernet.add_row(supernet.graph.uniform(8)) == 2
    frozen = [a.clone() for a in after]
    reestimate_norms(supernet, prepared.train, supernet.graph.uniform(8), 2)
    for f, layer in zip(frozen, [x for x in supernet.layers if x.norm is not None], strict=True):
        assert layer.norm is not None
        assert torch.equal(f[:2], layer.norm.mean[:2])


def test_training_beats_chance_with_one_width(digits: Dataset) -> None:
    prepared = prepare(digits, "mlp", 0)
    supernet = convert(prepared.network, prepared.example(), (3,))
    train_supernet(supernet, prepared.train, replace(CONFIG, epochs=10), QUIET)
    supernet.set_assignment(supernet.graph.uniform(3))
    assert accuracy(predict(supernet, prepared.train), prepared.train.labels) > 0.8


def test_what_would_fail_at_the_end_fails_at_the_start(digits: Dataset) -> None:
    with pytest.raises(ConfigError, match="w8a8 would name two"):
        train_model(digits, "mlp", CONFIG, budgets=(Budget("w8a8", 0.5),), outputs=QUIET)
    with pytest.raises(DataError, match="network has 7 outputs, the data 10"):
        train_model(digits, torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 7)), CONFIG, outputs=QUIET)
    with pytest.raises(DataError, match="all samples are the same"):
        train_model(replace(digits, x_train=np.full_like(digits.x_train, 3)), "mlp", CONFIG, outputs=QUIET)


def test_training_leaves_torch_as_it_was(digits: Dataset) -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    trained(digits, replace(CONFIG, epochs=1))
    assert torch.equal(torch.rand(3), expected)
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_network_of_ones_own_without_batch_norm(digits: Dataset) -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(1, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(288, 10)
    )
    model = train_model(digits, network, TrainConfig(epochs=8, batch_size=32), (2, 4, 8), outputs=QUIET)
    assert model.provenance["model"] == "Sequential"
    assert {p.name: p for p in model.points}["w8a8"].score > 0.8


@pytest.mark.parametrize("joint_from", [0.0, 1.0])
def test_before_joint_training_only_the_widest_learns(digits: Dataset, joint_from: float) -> None:
    prepared = prepare(digits, "mlp", 0)
    supernet = convert(prepared.network, prepared.example(), (2, 8))
    narrow = supernet.layers[1].narrow["2"]
    assert isinstance(narrow, ActivationQuantizer)
    before = narrow.step
    train_supernet(supernet, prepared.train, replace(CONFIG, epochs=1, joint_from=joint_from), QUIET)
    assert (narrow.step == before) == (joint_from == 1.0)


@pytest.mark.parametrize(("widths", "updates"), [((2, 4, 8), 3), ((4,), 1)])
def test_the_optimizer_steps_once_for_each_assignment_of_a_batch(
    digits: Dataset, monkeypatch: pytest.MonkeyPatch, widths: tuple[int, ...], updates: int
) -> None:
    prepared = prepare(digits, "mlp", 0)
    supernet = convert(prepared.network, prepared.example(), widths)
    original, taken = torch.optim.AdamW.step, []

    def counting(self: torch.optim.AdamW, closure: None = None) -> None:
        weight = supernet.layers[0].weight
        taken.append((supernet.layers[0].widths.weight, float(weight.grad.norm()) if weight.grad is not None else 0.0))
        original(self, closure)

    monkeypatch.setattr(torch.optim.AdamW, "step", counting)
    train_supernet(supernet, prepared.train, replace(CONFIG, epochs=1), QUIET)
    batches = prepared.train.batches(CONFIG.batch_size)
    assert len(taken) == updates * batches
    # From the widest down to the narrowest, each with a gradient of its own.
    assert [width for width, _ in taken[::updates]] == [widths[-1]] * batches
    assert [width for width, _ in taken[updates - 1 :: updates]] == [widths[0]] * batches
    assert all(norm > 0 for _, norm in taken)


@pytest.mark.parametrize("channels", [1, 3])
def test_activations_keep_their_channels_last_in_memory(channels: int) -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(channels, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 5, 3))
    x = torch.randn(2, channels, 8, 8)
    supernet = convert(network, x, (2, 8))
    strides = []
    for layer in supernet.layers:
        layer.register_forward_hook(lambda _, inputs, output: strides.extend([inputs[0].stride(1), output.stride(1)]))
    supernet(x)
    assert strides == [1] * 4
    assert torch.equal(channels_last(x), x)


@pytest.mark.skipif(not sys.platform.startswith("linux") or platform.libc_ver()[0] != "glibc", reason="glibc only")
def test_memory_freed_in_training_is_kept_and_given_back_afterwards() -> None:
    def faults(megabytes: int = 64) -> int:
        """Page faults of ten large tensors made and freed."""
        resource = pytest.importorskip("resource")
        torch.ones(megabytes << 18)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(10):
            torch.ones(megabytes << 18)
        return int(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

    def resident() -> int:
        """Bytes."""
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    without = faults()
    with freed_memory_kept():
        within, kept = faults(), resident()
    assert within < without / 2
    assert resident() < kept - 2**25
    # Where something that lives on lies above what was freed, that is taken again, and stays; so what does not fit.
    assert faults(96) > 2 * within

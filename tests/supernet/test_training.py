"""Training: seeded, resumable to the same bytes, and refusing what it cannot do."""

from __future__ import annotations

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
from caq.graph import LayerWidths
from caq.supernet import convert, train
from caq.supernet.batches import Samples
from caq.supernet.gates import Gate
from caq.supernet.heap import freed_memory_kept
from caq.supernet.layers import AvgPool, Clip, Window
from caq.supernet.network import channels_last
from caq.supernet.pipeline import prepare, train_model
from caq.supernet.quantizers import ActivationQuantizer, choose_activation, nested_values, quantize_weight, weight_codes
from caq.supernet.train import Outputs, TrainConfig, accuracy, predict, reestimate_norms, train_float, train_supernet

CONFIG = TrainConfig(epochs=3, batch_size=32, seed=5)
QUIET = Outputs(quiet=True)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    data = load("digits")
    return replace(
        data, x_train=data.x_train[:400], y_train=data.y_train[:400], x_test=data.x_test[:100], y_test=data.y_test[:100]
    )


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


def test_augmentation_shifts_and_fills_with_zeros() -> None:
    codes = torch.arange(1, 17, dtype=torch.int8).reshape(1, 1, 4, 4).repeat(64, 1, 1, 1)
    data = Samples(codes, torch.zeros(64, dtype=torch.int64), 1.0, shift=(1, 1))
    x, _ = next(data.epoch(64, seed=0, epoch=0))
    found = set()
    for image in x[:, 0]:
        padded = torch.nn.functional.pad(codes[0, 0].float(), (1, 1, 1, 1))
        at = [(i, j) for i in range(3) for j in range(3) if torch.equal(padded[i : i + 4, j : j + 4], image)]
        assert len(at) == 1
        found.add(at[0])
    assert len(found) == 9


def test_augmentation_turns_sensors_alike_and_by_no_more_than_asked() -> None:
    generator = torch.Generator().manual_seed(0)
    sensor = torch.randint(-70, 71, (50, 3, 1, 20), generator=generator, dtype=torch.int8)
    codes = torch.cat([sensor, -sensor], 1)
    data = Samples(codes, torch.zeros(50, dtype=torch.int64), 0.5, rotation=30.0)
    (x, _), (again, _) = (next(data.epoch(50, seed=0, epoch=0)) for _ in range(2))
    order = np.random.default_rng([0, 0]).permutation(50)
    before, after = codes[order].double(), (x / 0.5).double()
    assert torch.equal(x, again) and torch.equal(after, after.round())
    # Both sensors turn alike, and every vector by the sample's angle at most. What is small is rounded by much.
    assert torch.equal(after[:, :3], -after[:, 3:])
    lengths = before[:, :3].norm(dim=1), after[:, :3].norm(dim=1)
    assert (lengths[0] - lengths[1]).abs().max() < 1
    large = lengths[0] > 40
    cosine = (before[:, :3] * after[:, :3]).sum(1)[large] / (lengths[0] * lengths[1])[large]
    turned = torch.rad2deg(torch.arccos(cosine.clamp(-1, 1)))
    assert 20 < float(turned.max()) < 32
    plain = Samples(codes, data.labels, 0.5)
    assert data.sha256 != plain.sha256 and torch.equal(next(plain.epoch(50, 0, 0))[0], codes[order].float() * 0.5)


def test_what_has_no_three_axes_is_not_turned(digits: Dataset) -> None:
    prepared = prepare(digits, "mlp", 0)
    supernet = convert(prepared.network, prepared.example(), (2, 8))
    with pytest.raises(ConfigError, match="three axes; the data have 64 channels"):
        train_supernet(supernet, prepared.train, TrainConfig(epochs=1, rotation=30), Outputs(quiet=True))
    for rotation in (-1.0, 181.0, float("nan")):
        with pytest.raises(ConfigError, match="rotation: 0 to 180 degrees"):
            TrainConfig(rotation=rotation)


def test_a_band_of_rows_and_one_of_columns_are_masked() -> None:
    codes = torch.full((300, 2, 20, 10), 7, dtype=torch.int8)
    data = Samples(codes, torch.zeros(300, dtype=torch.int64), 0.5, masking=0.25)
    (x, _), (again, _) = (next(data.epoch(300, seed=0, epoch=0)) for _ in range(2))
    assert torch.equal(x, again) and set(x.unique().tolist()) == {0.0, 3.5}
    hidden = (x == 0).all(1)
    rows, columns = hidden.all(2), hidden.all(1)
    # Nothing else is hidden, every place may be, and every length up to a quarter.
    assert torch.equal((x == 0).any(1), rows[:, :, None] | columns[:, None])
    for bands, most in ((rows, 5), (columns, 2)):
        assert bands.any(0).all() and set(bands.sum(1).tolist()) == set(range(most + 1))
        edges = bands.int().diff(dim=1, prepend=torch.zeros(300, 1), append=torch.zeros(300, 1)).abs().sum(1)
        assert set(edges.tolist()) == {0, 2}
    everything = next(replace(data, masking=1.0).epoch(300, seed=0, epoch=0))[0]
    assert (everything == 0).flatten(1).all(1).any()


def test_masking_leaves_what_was_without_it_and_needs_rows_and_columns(digits: Dataset) -> None:
    codes = torch.arange(60, dtype=torch.int8).reshape(10, 1, 3, 2)
    data = Samples(codes, torch.zeros(10, dtype=torch.int64), 0.5, (1, 1))
    masked = replace(data, masking=0.4)
    (plain, _), (x, _) = (next(s.epoch(10, seed=0, epoch=0)) for s in (data, masked))
    assert torch.equal(torch.where(x == 0, plain, x), plain) and not torch.equal(x, plain)
    assert len({data.sha256, masked.sha256, replace(data, masking=0.5).sha256}) == 3
    prepared = prepare(digits, "mlp", 0)
    supernet = convert(prepared.network, prepared.example(), (2, 8))
    with pytest.raises(ConfigError, match="masking is of spectrograms and images; the data have 1 rows and 1 columns"):
        train_supernet(supernet, prepared.train, TrainConfig(epochs=1, masking=0.2), Outputs(quiet=True))
    for masking in (-0.1, 1.1, float("nan")):
        with pytest.raises(ConfigError, match="masking: a share between 0 and 1"):
            TrainConfig(masking=masking)


def test_batches_depend_on_seed_and_epoch_only() -> None:
    data = Samples(torch.arange(100, dtype=torch.int8).reshape(100, 1, 1, 1), torch.arange(100), 1.0)

    def order(seed: int, epoch: int) -> list[int]:
        return torch.cat([y for _, y in data.epoch(16, seed, epoch)]).tolist()

    assert order(0, 3) == order(0, 3)
    assert order(0, 3) != order(0, 4)
    assert order(0, 3) != order(1, 3)
    # Six batches of 16; the rest, four samples, is too small for batch norm.
    assert len(order(0, 0)) == 96 and data.batches(16) == 6


@pytest.mark.parametrize("width", range(2, 9))
def test_training_quantizes_weights_as_the_contract_says(width: int) -> None:
    torch.manual_seed(width)
    weight = torch.randn(5, 3, 2, 2)
    scale = torch.linspace(-5, -3, 5).exp()
    q = weight_codes(weight, scale).long()
    m = q if width == 8 else 2 * (q >> (8 - width)) + 1
    unit = 1.0 if width == 8 else 2.0 ** (7 - width)
    expected = m * unit * scale.reshape(5, 1, 1, 1)
    assert torch.allclose(quantize_weight(weight, scale, width), expected, rtol=1e-6)
    assert torch.equal(nested_values(q.float(), width), m * unit)


@pytest.mark.parametrize("width", [8, 5, 2])
def test_the_gradient_along_a_channel_is_that_of_its_size(width):
    """A channel that is c times as large, its range with it, gives c times the same, also where weights are clipped."""
    torch.manual_seed(0)
    weight, slope = torch.randn(6, 4, 3, 3, requires_grad=True), torch.randn(6, 4, 3, 3)

    def quantized(w):
        return quantize_weight(w, 1.5 * w.detach().square().flatten(1).mean(1).sqrt() / 127, width)

    (slope * quantized(weight)).sum().backward()
    found = (weight.grad * weight.detach()).flatten(1).sum(1)
    assert torch.allclose(found, (slope * quantized(weight.detach())).flatten(1).sum(1), rtol=1e-4, atol=1e-5)
    assert torch.allclose(quantized(3 * weight), 3 * quantized(weight), rtol=1e-5)


def test_ranges_and_steps_learn_slowly():
    nn = torch.nn
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    supernet = convert(network, torch.zeros(2, 3, 8, 8), (2, 8))
    groups = train._groups(supernet, 0.01)
    rates = {id(p): group["rate"] for group in groups for p in group["params"]}
    named = dict(supernet.named_parameters())
    assert {id(p) for p in named.values()} == rates.keys()
    slow = {name for name, p in named.items() if rates[id(p)] == train.RANGE_RATE}
    assert slow == {name for name in named if name.endswith(("log_range", "log_step"))} and len(slow) > 1
    narrow = convert(network, torch.zeros(2, 3, 8, 8), (2, 3))
    assert {group["rate"] for group in train._groups(narrow, 0.01)} == {1.0}


def test_weights_behind_batch_norm_do_not_shrink():
    """What their size does is nothing, so no step may be along them, whatever rounding and clipping say."""
    torch.manual_seed(0)
    weight, x = torch.randn(6, 4, 1, 1, requires_grad=True), torch.randn(64, 4, 5, 5)
    scale = 1.5 * weight.detach().square().flatten(1).mean(1).sqrt() / 127
    y = torch.nn.functional.conv2d(x, quantize_weight(weight, scale, 2))
    normed = torch.nn.functional.batch_norm(y, None, None, training=True, eps=1e-12)
    (normed * torch.randn_like(normed)).sum().backward()
    along = (weight.grad * weight.detach()).flatten(1).sum(1)
    assert torch.allclose(along, torch.zeros(6), atol=1e-3 * float(weight.grad.norm()))


def test_gradients_of_the_quantizers() -> None:
    quantizer = ActivationQuantizer(3, signed=False)
    quantizer.log_step.data.fill_(float(np.log(0.5)))
    x = torch.tensor([[[[-1.0, 0.3, 1.1, 9.0]]]], requires_grad=True)
    y = quantizer(x)
    assert torch.allclose(y, torch.tensor([0.0, 0.5, 1.0, 3.5]))
    y.sum().backward()
    assert x.grad is not None and x.grad.flatten().tolist() == [0, 1, 1, 0]
    # d/d(step): 0 below, rounding error inside, the bound above; times the step, for the logarithm.
    expected = (0 + (1 - 0.6) + (2 - 2.2) + 7) / np.sqrt(4 * 7) * 0.5
    assert quantizer.log_step.grad is not None
    assert float(quantizer.log_step.grad) == pytest.approx(expected, rel=1e-5)


def test_the_widest_step_is_the_least_error_on_its_data() -> None:
    quantizer = ActivationQuantizer(4, signed=True)
    x = torch.randn(1, 1, 50, 50, generator=torch.Generator().manual_seed(0))
    quantizer.fit(x)
    error = (quantizer(x) - x).square().mean()
    for factor in (0.7, 1.4):
        other = ActivationQuantizer(4, signed=True)
        other.log_step.data = quantizer.log_step.data + np.log(factor)
        assert (other(x) - x).square().mean() > error


def test_a_gate_gives_up_bits_where_they_are_worth_least(digits: Dataset) -> None:
    prepared = prepare(digits, "mlp", 0)
    graph = convert(prepared.network, prepared.example(), (2, 4, 8)).graph
    gate = Gate(graph)
    with torch.no_grad():
        gate.weight_logits.copy_(torch.tensor([[0.0, 0.5, 1.0]] * 3))
        gate.activation_logits.copy_(torch.tensor([[0.0, 0.5, 9.0]] * 3))
        gate.weight_logits[2] = torch.tensor([0.0, 20.0, 40.0])
    reading = LayerWidths(8, 8)
    assert gate.assignment(1.0) == (reading,) * 3
    narrow = gate.assignment(0.6)
    assert 0.5 < relative_cost(graph, narrow) <= 0.6
    assert narrow[2].weight == 8 and min(narrow[0].weight, narrow[1].weight) < 8
    assert all(pair.activation == 8 for pair in narrow)
    # What the budget leaves is used, even if the logits ask for less.
    with torch.no_grad():
        gate.weight_logits.copy_(-gate.weight_logits)
    assert gate.assignment(1.0) == (reading,) * 3
    with pytest.raises(ConfigError, match="the cheapest costs"):
        gate.assignment(0.01)


@pytest.mark.parametrize("cost", ["", "bytes", "bit_macs", "latency@bit-serial", "energy@bit-serial"])
def test_a_gate_keeps_its_budget_in_any_cost(digits: Dataset, cost: str) -> None:
    prepared = prepare(digits, "mlp", 0)
    graph = convert(prepared.network, prepared.example(), (2, 4, 8)).graph
    gate, dearest = Gate(graph, cost), relative_cost(graph, graph.uniform(8), cost)
    assert dearest == pytest.approx(1)
    rng = np.random.default_rng(0)
    with torch.no_grad():  # as a sure gate, its expectation is its choice's cost
        for _ in range(5):
            picks = rng.integers(0, 3, (2, len(graph.layers)))
            for logits, pick in zip((gate.weight_logits, gate.activation_logits), picks, strict=True):
                logits.copy_(60 * torch.eye(3)[torch.from_numpy(pick)])
            chosen = tuple(
                LayerWidths(graph.widths[w], 8 if layer.reads_input else graph.widths[a])
                for layer, w, a in zip(graph.layers, *picks, strict=True)
            )
            assert float(gate.expected_cost()) == pytest.approx(relative_cost(graph, chosen, cost), rel=1e-5)
    for share in (0.0, 0.3, 0.7, 1.0):
        most = affordable_cost(graph, share, cost)
        found = gate.assignment(most)
        assert relative_cost(graph, found, cost) <= most + 1e-9
        # Nothing wider fits any more.
        for i, pair in enumerate(found):
            for wider in (pair._replace(weight=8), pair._replace(activation=8)):
                other = (*found[:i], wider, *found[i + 1 :])
                assert wider == pair or relative_cost(graph, other, cost) > relative_cost(graph, found, cost) - 1e-12
    expected = gate.expected_cost()
    expected.backward()
    assert gate.weight_logits.grad is not None and torch.isfinite(gate.weight_logits.grad).all()


def test_a_gate_steps_over_widths_that_cost_more_than_wider_ones(digits: Dataset, tmp_path: Path) -> None:
    """4 bits cost more than 8 where they have to be unpacked; 2 bits may cost less all the same."""
    profile = tmp_path / "odd.yaml"
    profile.write_text(
        """
title: a device whose unpacking costs as much as reading
arithmetic: byte
weights: packed
combine: sum
memory:
  - level: flash
    capacity: {value: 1, unit: MiB, source: test}
    latency: {value: 1, unit: ns, source: test}
    energy: {value: 0, unit: pJ, source: test}
latency:
  unpacked_weight: {value: 0.6, unit: ns, source: test}
energy:
  power: {value: 1, unit: W, source: test}
sources:
  test: {kind: assumed, text: for a test}
"""
    )
    prepared = prepare(digits, "mlp", 0)
    graph = convert(prepared.network, prepared.example(), (2, 4, 8)).graph
    gate = Gate(graph, f"latency@{profile}")
    costs = gate.table.layers[0, :, 0]
    assert costs[0] < costs[2] < costs[1]
    most = affordable_cost(graph, 0.5, f"latency@{profile}")
    found = gate.assignment(most)
    assert {pair.weight for pair in found} == {2, 8} and all(pair.activation == 8 for pair in found)
    with pytest.raises(ConfigError, match="the cheapest costs"):
        gate.assignment(gate.table.least * 0.99)


def test_a_budget_that_widths_cannot_keep_is_refused(digits: Dataset) -> None:
    prepared = prepare(digits, "mlp", 0)
    graph = convert(prepared.network, prepared.example(), (2, 4, 8)).graph
    for cost in ("latency@cortex-m4", "energy@cortex-m7", "latency@raspberry-pi-4"):
        with pytest.raises(ConfigError, match="narrower widths save next to nothing"):
            affordable_cost(graph, 0.5, cost)
    for cost in ("latency@pi", "watts", "energy@"):
        with pytest.raises(ConfigError):
            Budget("saver", 0.5, cost)


def test_a_gate_learned_for_a_device(digits: Dataset) -> None:
    budgets = (Budget("quick", 0.3, "latency@bit-serial"), Budget("small", 0.3, "bytes"))
    model = train_model(digits, "mlp", replace(CONFIG, epochs=1), (2, 4, 8), budgets, QUIET)
    points = {point.name: point.assignment for point in model.points}
    for budget in budgets:
        found, most = points[budget.name], affordable_cost(model.graph, budget.share, budget.cost)
        assert relative_cost(model.graph, found, budget.cost) <= most + 1e-9
        for i, pair in enumerate(found):
            if pair.weight < 8:
                wider = (*found[:i], pair._replace(weight=2 * pair.weight), *found[i + 1 :])
                assert relative_cost(model.graph, wider, budget.cost) > most
    # Activations have no part in the bytes of weights.
    assert all(pair.activation == 8 for pair in points["small"])


def test_training_beats_chance_with_one_width(digits: Dataset) -> None:
    prepared = prepare(digits, "mlp", 0)
    supernet = convert(prepared.network, prepared.example(), (3,))
    train_supernet(supernet, prepared.train, replace(CONFIG, epochs=10), QUIET)
    supernet.set_assignment(supernet.graph.uniform(3))
    assert accuracy(predict(supernet, prepared.train), prepared.train.labels) > 0.8


def test_a_chosen_activation_has_the_gradients_of_the_sum_over_all_widths() -> None:
    torch.manual_seed(0)
    quantizers = [ActivationQuantizer(w, signed=False).requires_grad_(False) for w in (2, 4)]
    for quantizer, step in zip(quantizers, (0.7, 0.15), strict=True):
        quantizer.log_step.fill_(float(np.log(step)))
    x = torch.randn(2, 3, 4, 5).relu()
    for chosen in range(3):
        mix = torch.eye(3)[chosen].clone()
        inputs = [(x.clone().requires_grad_(), mix.clone().requires_grad_()) for _ in range(2)]
        (x1, mix1), (x2, mix2) = inputs
        summed = mix1[0] * quantizers[0](x1) + mix1[1] * quantizers[1](x1) + mix1[2] * x1
        one = choose_activation(x2, mix2, [*quantizers, None])
        assert torch.allclose(summed, one, atol=1e-6)
        weight = torch.randn_like(x)
        (summed * weight).sum().backward()
        (one * weight).sum().backward()
        assert mix1.grad is not None and mix2.grad is not None and x1.grad is not None and x2.grad is not None
        assert torch.allclose(mix1.grad, mix2.grad, atol=1e-4)
        assert torch.allclose(x1.grad, x2.grad, atol=1e-6)


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_the_average_of_all_positions_is_torchs_own_to_the_bit(memory_format: torch.memory_format) -> None:
    torch.manual_seed(0)
    pool = AvgPool("pool", Window((5, 7), (5, 7)), Clip())
    pool.rounding = False
    inputs = [torch.randn(4, 6, 5, 7).to(memory_format=memory_format).requires_grad_() for _ in range(2)]
    inputs[1].data.copy_(inputs[0].data)
    outputs = pool(inputs[0]), torch.nn.functional.avg_pool2d(inputs[1], (5, 7))
    assert outputs[0].grad_fn is not None and "AveragePositions" in type(outputs[0].grad_fn).__name__
    weight = torch.randn(4, 6, 1, 1)
    for y in outputs:
        y.backward(weight)
    (a, b), (grad_a, grad_b) = outputs, (x.grad for x in inputs)
    assert grad_a is not None and grad_b is not None
    assert torch.equal(a, b) and torch.equal(grad_a, grad_b) and grad_a.stride() == grad_b.stride()


def test_statistics_do_not_depend_on_the_order_of_the_data(digits: Dataset) -> None:
    order = np.argsort(digits.y_train, kind="stable")
    means = []
    for data in (digits, replace(digits, x_train=digits.x_train[order], y_train=digits.y_train[order])):
        prepared = prepare(data, "mlp", 0)
        supernet = convert(prepared.network, prepared.example(), (2, 8))
        reestimate_norms(supernet, prepared.train, supernet.graph.uniform(8))
        norm = supernet.layers[0].norm
        assert norm is not None
        means.append(norm.mean[1].clone())
    assert (means[0] - means[1]).abs().max() < 0.02
    labels = torch.cat([y for _, y in prepared.train.typical(100, 100)])
    assert len(labels) == 100 and len(labels.unique()) == 10


@pytest.mark.parametrize("count", [257, 513])
def test_no_batch_of_one_is_left_over(digits: Dataset, count: int) -> None:
    x, y = np.resize(digits.x_train, (count, 8, 8, 1)), np.resize(digits.y_train, count)
    model = train_model(replace(digits, x_train=x, y_train=y), "mlp", replace(CONFIG, epochs=1), (2, 8), (), QUIET)
    assert len(model.points) == 2


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
    megabytes = 64

    def faults() -> int:
        """Page faults of ten large tensors made and freed."""
        resource = pytest.importorskip("resource")
        torch.ones(megabytes << 18)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(10):
            torch.ones(megabytes << 18)
        return int(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

    without = faults()
    with freed_memory_kept():
        within = faults()
    assert within < without / 2
    assert faults() > 2 * within

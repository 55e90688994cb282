"""Peers of continual calibration do what their papers say, and start from the same model and bytes."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from benchmarks.calibrate_streams import Part, Phase, Protocol
from benchmarks.continual import __main__ as command
from benchmarks.continual import backprop, bars, cost, noisy
from benchmarks.continual.forward import BiasCorrection, ZerothOrder, ZerothOrderSettings
from benchmarks.continual.memory import Memory, as_inputs
from benchmarks.continual.methods import BACKPROP, METHODS
from benchmarks.continual.methods import backprop as make_backprop
from benchmarks.continual.ours import random_core, with_features
from benchmarks.continual.plot import DRAWN, curves, plot
from benchmarks.continual.sources import Source
from benchmarks.continual.squant import flipped, stored_codes
from benchmarks.continual.start import accuracy, run
from benchmarks.continual.stream import follow, last, protocol_of, start_of
from benchmarks.corruptions import SEVERITIES
from caq.calibration.cuts import Cut, measure_outputs
from caq.data import from_arrays
from caq.errors import ConfigError
from caq.quant import plane_bytes
from caq.supernet.lower import lower

WIDTHS = (2, 4, 8)


@pytest.fixture(scope="module")
def protocol(tmp_path_factory):
    """Four classes of a small series, a network that tells them apart, and what another sensor makes of them."""
    rng = np.random.default_rng(0)
    y = np.arange(240) % 4
    waves = np.sin(np.arange(16)[None, :, None] * (0.3 + 0.35 * y[:, None, None]) + np.arange(2))
    x = (waves + rng.normal(0, 0.35, waves.shape)).astype(np.float32)
    clean, moved = Part(x, y), Part((0.6 * x + 0.7).astype(np.float32), y)
    train, test = np.arange(120), np.arange(120, 200)
    arrays = {"x_train": x[train], "y_train": y[train], "x_test": x[test], "y_test": y[test]}
    path = tmp_path_factory.mktemp("source") / "small.caq"
    source = Source(path, from_arrays("waves", arrays), "resnet8", 3, 0, WIDTHS)
    batches = tuple(moved.take(rows) for rows in np.array_split(np.arange(120, 180), 3))
    phase = Phase("person 1", batches, moved.take(np.arange(180, 240)))
    return Protocol("waves", source.model(), clean.take(train), clean.take(test), ((phase,),), source)


@pytest.fixture(scope="module")
def start(protocol):
    return start_of(protocol, 0, size=24)


@pytest.fixture(scope="module")
def batch(protocol):
    part = protocol.streams[0][0].batches[0]
    return protocol.model.encode(part.x)[0], part.y


def test_a_source_comes_back_with_its_own_integers(protocol, start):
    assert protocol.source is not None and not protocol.source.path.with_suffix(".checkpoint").exists()
    found = lower(start.supernet(), protocol.model.scaling.step)
    np.testing.assert_array_equal(found.planes(), protocol.model.planes)
    for name in ("gain", "gain_exponent", "bias", "bias_exponent", "steps", "ratios"):
        np.testing.assert_array_equal(getattr(found.parameters, name), getattr(protocol.model.parameters, name))


def test_every_method_starts_from_the_same_model(start, batch):
    x, _ = batch
    for name, make in METHODS.items():
        if "squant" not in name:  # which changes codes before anything streams
            model = make(start).model(4)
            np.testing.assert_array_equal(run(model, 4, x), run(start.model, 4, x), err_msg=name)


@pytest.mark.parametrize("name", BACKPROP)
def test_back_propagation_reaches_the_weights_of_every_layer(start, batch, name):
    before = start.supernet()
    method = make_backprop(name, rate=0.01, epochs=2)(start)
    method.step(*batch)
    for width in WIDTHS:
        after = method.learners[width].supernet
        for old, new in zip(before.layers, after.layers, strict=True):
            moved = (old.weight != new.weight).float().mean()
            assert moved > 0.9, f"{name} at {width} bits: {moved:.2f} of the weights of {new.name} changed"
        planes = method.model(width).planes
        for layer in start.model.graph.layers:
            span = slice(layer.first_byte, layer.first_byte + plane_bytes(layer.weights))
            assert (planes[:, span] != start.model.planes[:, span]).any(), f"codes of {layer.name} are as they were"
        with torch.no_grad():
            floats = after.eval()(as_inputs(start.train[0]).float() * start.model.scaling.step).numpy()
        integers = run(method.model(width), width, start.train[0])
        assert (floats.argmax(1) == integers.argmax(1)).mean() > 0.9


def test_what_is_learnt_helps_on_the_target(protocol, start):
    none, lsq = (follow(protocol, start, METHODS[name]) for name in ("none", "lsq"))
    assert np.mean(last(lsq, "target")) > np.mean(last(none, "target")) + 5


def test_a_gem_takes_away_what_harms_old_samples(start, batch):
    learner = backprop.Learner(start, 8, backprop.Settings(), False)
    x = as_inputs(batch[0])
    y, wrong = learner.evaluated(x).topk(2).indices.T  # what it answers, and next to that
    learner.memory.x, learner.memory.y = x.clone(), y.clone()  # to learn the one is to forget the other
    followed = []
    learner.follow = followed.append
    learner.supernet.eval()
    backprop.averaged_gem(learner, x, wrong)
    loss = torch.nn.functional.cross_entropy
    g = learner.gradient(loss(learner.outputs(x)[0], wrong))
    reference = learner.gradient(loss(learner.outputs(x)[0], y))
    scale = float(reference.norm() * g.norm())
    assert torch.dot(g, reference) < -0.1 * scale and abs(torch.dot(followed[0], reference)) < 1e-4 * scale


def test_er_ace_leaves_absent_classes_of_a_batch_alone(start, batch):
    learner = backprop.Learner(start, 8, backprop.Settings(), False)
    two = batch[1] < 2
    x, y = as_inputs(batch[0][two]), torch.from_numpy(batch[1][two].astype(np.int64))
    losses, learn = [], learner.learn
    learner.learn = losses.append
    learner.memory.draw = lambda count: torch.zeros(0, dtype=torch.int64)
    learner.supernet.eval()
    kept = torch.nn.functional.cross_entropy
    with pytest.MonkeyPatch.context() as patch:
        # Without old samples their mean is nothing; only the batch's own loss is looked at.
        patch.setattr(backprop.functional, "cross_entropy", lambda z, t: kept(z, t) if len(t) else z.sum())
        backprop.replay_asymmetric(learner, x, y)
    z = learner.outputs(x)[0].detach()
    assert losses[0].item() == pytest.approx(float(kept(z[:, :2], y)), abs=1e-5)
    learn(losses[0])
    assert learner.supernet.layers[-1].bias.grad[2:].abs().max() == 0


def test_memory_keeps_within_the_core_sets_bytes(start, batch):
    core = start.core
    plain, dark = Memory(core, None, 0), Memory(core, torch.zeros(len(core), 4), 0)
    each = core.nbytes // len(core)
    assert len(plain) == len(core) and len(dark) * (each + 16) <= core.nbytes < (len(dark) + 1) * (each + 16)
    x, y = as_inputs(batch[0]), torch.from_numpy(batch[1].astype(np.int64))
    before = plain.x.clone()
    for _ in range(20):
        plain.add(x, y, None)
    stays = len(core) - len(core) // 2
    assert torch.equal(plain.x[:stays], before[:stays])
    of_stream = [any(torch.equal(kept, sample) for sample in x) for kept in plain.x[stays:]]
    assert all(of_stream) and len({kept.numpy().tobytes() for kept in plain.x[stays:]}) > 3


@pytest.mark.parametrize("width", WIDTHS)
def test_squant_bounds_every_sum_of_errors(width):
    rng = np.random.default_rng(width)
    target = rng.normal(0, 30, (5, 6, 9)).clip(-100, 100)
    codes, size = flipped(target, width), 2.0 ** (8 - width)
    exact = np.clip(target if width == 8 else target / size - 0.5, -(2 ** (width - 1)), 2 ** (width - 1) - 1)
    rounded = np.floor(exact + 0.5)
    error = codes - exact
    assert np.abs(error).max() <= 1 + 1e-9 and np.abs(codes - rounded).max() <= 1 and (codes != rounded).any()
    assert np.abs(error.sum(2)).max() <= 1 + 1e-9
    assert np.abs(error.sum((1, 2))).max() <= 0.5 + 1e-9
    assert np.abs((rounded - exact).sum((1, 2))).max() > 0.5  # which plain rounding does not do
    np.testing.assert_array_equal(stored_codes(codes, width) >> (8 - width), codes)


def test_squant_flips_the_elements_that_are_furthest_off():
    target = np.array([[[0.6, 1.7, 2.8, 0.45]]])  # errors 0.4 0.3 0.2 -0.45: their sum is 0.45, nothing flips
    np.testing.assert_array_equal(flipped(target, 8)[0, 0], [1, 2, 3, 0])
    target = np.array([[[0.6, 1.7, 2.8, 0.1]]])  # errors 0.4 0.3 0.2 -0.1: one flip, of the first
    np.testing.assert_array_equal(flipped(target, 8)[0, 0], [0, 2, 3, 0])


def test_bias_correction_restores_means(start, batch):
    method = BiasCorrection(start)
    method.step(*batch)
    layer, model = start.model.graph.layers[0], method.model(4)
    cut, uniform = Cut(start.model, layer.index), model.graph.uniform(4)

    def mean(parameters, x):
        return measure_outputs(cut, parameters, uniform, 1, x.astype(np.int16)).mean

    wanted, found = mean(start.model.parameters, start.core.x), mean(model.parameters, batch[0])
    assert np.abs(mean(start.model.parameters, batch[0]) - wanted).max() > 5
    assert np.abs(found - wanted).max() < 0.5
    np.testing.assert_array_equal(model.parameters.gain, start.model.parameters.gain)


def test_zeroth_order_learns_scales_alone_by_two_forwards_a_step(start, batch, monkeypatch):
    method = ZerothOrder(replace(start, widths=(4,)), ZerothOrderSettings(steps=60, rate=3e-3))
    forwards, loss = [], method._loss
    monkeypatch.setattr(method, "_loss", lambda *args: forwards.append(1) or loss(*args))
    x, y = batch
    before = loss(4, np.zeros(start.model.graph.channels), x, y)
    method.step(x, y)
    assert len(forwards) == 2 * 60 and loss(4, method._logs[4], x, y) < before
    model = method.model(4)
    np.testing.assert_array_equal(model.planes, start.model.planes)
    np.testing.assert_array_equal(model.parameters.bias, start.model.parameters.bias)
    for row, width in enumerate(WIDTHS):
        same = np.array_equal(model.parameters.gain[row], start.model.parameters.gain[row])
        assert same == (width != 4)


def test_ablations_of_the_core_set(start, batch):
    drawn = random_core(start)
    assert len(drawn.core) == len(start.core) and set(drawn.core.ids) != set(start.core.ids)
    fixed = METHODS["ours_fixed"](start)
    fixed.step(*batch)
    assert fixed._calibrator.core.from_factory.all()
    free = METHODS["ours"](start)
    free.step(*batch)
    assert not free._calibrator.core.from_factory.all()


def test_features_take_no_more_than_the_bytes_of_half_a_core_set(start):
    found = with_features(start)
    features = found.model.features
    assert len(found.core) == len(start.core) // 2 and len(features.y)
    assert found.core.nbytes + features.to_rows(start.model.graph).nbytes <= start.core.nbytes


def test_methods_without_labels_do_not_read_them(start, batch):
    x, y = batch
    for name in ("ranges", "bn", "bn_prior", "bias", "squant_bn", "ours_unlabelled"):
        right, wrong = METHODS[name](start), METHODS[name](start)
        right.step(x, y)
        wrong.step(x, (y + 1) % 4)
        np.testing.assert_array_equal(run(right.model(4), 4, x), run(wrong.model(4), 4, x), err_msg=name)
    ranges = METHODS["ranges"](start)
    ranges.step(x, y)
    assert (ranges.model(4).parameters.steps != start.model.parameters.steps).any()


def test_rows_table_and_picture(protocol, start, tmp_path, monkeypatch):
    rows = [
        {"seed": 0, "method": name, **row}
        for name in ("none", "ours")
        for row in follow(protocol, start, METHODS[name])
    ]
    assert np.shape(rows[0]["target"]) == (3, 3)
    x, y = protocol.model.encode(protocol.source_test.x)[0], protocol.source_test.y
    assert rows[0]["source"][0] == [round(accuracy(start.model, w, x, y), 2) for w in WIDTHS]
    lines = command.table(rows)
    assert [line["method"] for line in lines] == ["none", "ours"]
    assert lines[0]["target w4"] == rows[0]["target"][-1][1]
    two = [*rows, *({**copy.deepcopy(row), "phase": "noise"} for row in rows)]
    assert curves(rows, "ours", "target").shape == (3, 3) and curves(two, "ours", "target").shape == (6, 3)
    assert set(DRAWN) <= set(METHODS)
    plot(rows, "waves", tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 10_000
    (tmp_path / "rows").mkdir()
    command.row_path(tmp_path, "waves", 0, "ours", 60).write_text(json.dumps([{"phase": "p"}]))
    assert command.collect(tmp_path, "waves", [0], 60) == [{"seed": 0, "method": "ours", "phase": "p"}]


def test_noise_and_corruptions_come_one_after_the_other(tmp_path, monkeypatch):
    pytest.importorskip("scipy")
    monkeypatch.setattr(noisy, "Source", lambda *args: SimpleNamespace(args=args, model=lambda: None))
    monkeypatch.setattr(noisy, "STREAMED", 20)
    monkeypatch.setattr(noisy, "TESTED", 10)
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (1040, 8, 8, 3)).astype(np.uint8), np.arange(1040) % 3
    np.savez(tmp_path / "cifar10.npz", x_train=x, y_train=y, x_test=x[:40], y_test=y[:40])
    images = protocol_of("cifar10", tmp_path, tmp_path, 0)
    assert [phase.name for phase in images.streams[0]] == list(SEVERITIES)
    words = np.arange(40).repeat(6).reshape(40, 3, 2).astype(np.uint8)
    x_test, levels = np.concatenate([words + 50 * i for i in range(4)]).astype(np.uint8), np.repeat(np.arange(4), 40)
    arrays = {"x_train": words, "y_train": np.arange(40) % 3, "domain_train": np.zeros(40, int)}
    np.savez(tmp_path / "kws12.npz", **arrays, x_test=x_test, y_test=np.tile(np.arange(40) % 3, 4), domain_test=levels)
    speech = protocol_of("kws12", tmp_path, tmp_path, 0)
    assert [phase.name for phase in speech.streams[0]] == ["20 dB", "10 dB", "0 dB"]
    streamed = []
    for i, phase in enumerate(speech.streams[0], 1):
        word = np.concatenate([batch.x[:, 0, 0, 0] for batch in phase.batches]) - 50 * i
        tested = phase.test.x[:, 0, 0, 0] - 50 * i
        assert len(phase.batches) == 10 and sorted([*word, *tested]) == list(range(40))
        assert (np.concatenate([batch.y for batch in phase.batches]) == word % 3).all()
        np.testing.assert_array_equal(speech.source_test.x[:, 0, 0, 0], tested)
        streamed.append(tuple(word))
    assert len(set(streamed)) == 3 and len({frozenset(words) for words in streamed}) == 1
    with pytest.raises(ConfigError, match="no protocol 'kws'"):
        protocol_of("kws", tmp_path, tmp_path, 0)


def test_bars_are_met_at_every_width_or_not():
    def row(method, target, source, seed=0):
        after = {"target": [target + i for i in range(len(WIDTHS))], "source": [source] * len(WIDTHS)}
        return {"seed": seed, "method": method} | {
            what: [[0.0] * len(WIDTHS), values] for what, values in after.items()
        }

    a = [row("ours", 70, 88), row("none", 60, 90), row("bn", 66, 80), row("lsq", 75, 85)]
    b = [row("ours", 70, 90), row("ours", 0, 0, seed=1), row("none", 60, 90), row("bn", 73, 80)]
    found = bars.accuracy_bars({"a": a, "b": b}, "ours")
    assert found["target above no adaptation"] == {
        "met": True,
        "least": 0,
        "a": [10] * 3,
        "b": [10] * 3,
        "mean": [10] * 3,
    }
    assert found["target above batch norm"]["met"] and found["target above batch norm"]["mean"] == [0.5] * 3
    assert not found["target within 2 points of LSQ on the same core"]["met"]
    assert found["source loses at most 2 points"]["met"] and "target within 2 points of experience replay" not in found
    b[0]["target"][-1][1] -= 10
    found = bars.accuracy_bars({"a": a, "b": b}, "ours")
    assert not found["target above batch norm"]["met"]
    theirs = {figure: 5.0 for figure, _ in bars.COSTS.values()}
    costs = bars.cost_bars({"er": theirs, "lsq": theirs, "ours": dict.fromkeys(theirs, 1.0)}, "ours")
    assert [row["met"] for row in costs.values()] == [False, True, True]


def test_no_source_no_stream(protocol):
    with pytest.raises(ConfigError, match="trained source"):
        start_of(replace(protocol, source=None), 0)


def test_cost_of_ours_without_torch(tmp_path, monkeypatch):
    monkeypatch.setattr(cost, "SIDE", 8)
    cost.make(tmp_path)
    code = (
        f"import sys, json; from pathlib import Path; from benchmarks.continual import cost; "
        f"print(json.dumps([cost.work(Path({str(tmp_path)!r}), 'ours'), 'torch' in sys.modules]))"
    )
    answer = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    row, torch_is_there = json.loads(answer.stdout)
    assert not torch_is_there and row["ms"] > 0 and row["peak_mib"] > row["growth_mib"] > 0
    found = cost.ratios({"ours": row, "er": {key: 4 * value for key, value in row.items()}})
    assert found["er"]["ours_over_its_time"] == found["er"]["ours_over_its_peak"] == 0.25

"""Baselines of joint training do what their papers say, and cross-validation keeps people apart."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import accuracy
from benchmarks.baselines import adabits, any_precision
from benchmarks.baselines.average import WeightAverage
from benchmarks.baselines.joint import Plan, augmented, train_joint
from benchmarks.joint_baselines import collect
from benchmarks.joint_folds import folds
from benchmarks.storage import file_bytes
from caq import artifact
from caq.data import Dataset, load
from caq.errors import ConfigError
from caq.supernet import convert
from caq.supernet.conversion import DEFAULT_WIDTHS
from caq.supernet.gates import Budget
from caq.supernet.network import Supernet
from caq.supernet.pipeline import Prepared, prepare, train_model
from caq.supernet.train import Outputs, TrainConfig, train_supernet

CONFIG = TrainConfig(epochs=2, batch_size=32, seed=3)
QUIET = Outputs(quiet=True)
WIDTHS = (2, 4, 8)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    data = load("digits")
    return replace(data, x_train=data.x_train[:96], y_train=data.y_train[:96])


@pytest.fixture(scope="module")
def prepared(digits: Dataset) -> Prepared:
    return prepare(digits, "mlp", CONFIG.seed)


def supernet_of(prepared: Prepared) -> Supernet:
    return convert(prepared.network, prepared.example(), WIDTHS)


def joint(prepared: Prepared, plan: Plan) -> dict[str, torch.Tensor]:
    supernet = supernet_of(prepared)
    train_joint(supernet, prepared.train, CONFIG, plan, QUIET)
    return supernet.state_dict()


@pytest.mark.parametrize("labels", [0.0, 0.5, 1.0])
def test_the_plain_plan_is_our_recipe_bit_for_bit(prepared: Prepared, labels: float) -> None:
    ours = supernet_of(prepared)
    train_supernet(ours, prepared.train, replace(CONFIG, labels=labels), QUIET)
    trained = joint(prepared, Plan(labels=labels))
    assert all(torch.equal(value, trained[name]) for name, value in ours.state_dict().items())


@pytest.mark.parametrize(
    ("plan", "updates"),
    [(Plan(), 3), (Plan(every_width=True), 3), (Plan(turns=True), 1), (any_precision.PLAN, 1), (adabits.PLAN, 1)],
)
def test_how_often_a_batch_updates_the_weights(
    prepared: Prepared, plan: Plan, updates: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = 0
    original = torch.optim.AdamW.step

    def counting(self: torch.optim.AdamW, closure: None = None) -> None:
        nonlocal steps
        steps += 1
        original(self, closure)

    monkeypatch.setattr(torch.optim.AdamW, "step", counting)
    joint(prepared, plan)
    assert steps == updates * CONFIG.epochs * prepared.train.batches(CONFIG.batch_size)


def test_every_setting_of_a_plan_changes_what_is_learned(prepared: Prepared) -> None:
    plain = joint(prepared, Plan())
    for field in ("every_width", "summed", "wider", "upwards", "widest_range", "turns"):
        changed = joint(prepared, Plan(**{field: True}))
        assert any(not torch.equal(value, plain[name]) for name, value in changed.items()), field
    for field in ("labels", "smoothing", "mixup"):
        changed = joint(prepared, Plan(**{field: 0.2}))
        assert any(not torch.equal(value, plain[name]) for name, value in changed.items()), field


def test_the_recipe_is_the_plan_that_nothing_was_said_about() -> None:
    assert Plan().labels == TrainConfig().labels
    for labels in (-0.1, 1.1):
        with pytest.raises(ConfigError, match="labels"):
            TrainConfig(labels=labels)


def test_a_plan_that_contradicts_itself_is_refused() -> None:
    for plan in ({"summed": True, "upwards": True}, {"summed": True, "widest_range": True}):
        with pytest.raises(ConfigError, match="contradicts"):
            Plan(**plan)
    with pytest.raises(ConfigError, match="contradicts"):
        Plan(upwards=True, wider=True)


def test_mixed_samples_have_the_loss_of_both_labels() -> None:
    x, y = torch.eye(4).reshape(4, 4, 1, 1), torch.arange(4)
    mixed, criterion = augmented(x, y, Plan(mixup=1.0), np.random.default_rng(0))
    logits = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    soft = mixed.reshape(4, 4)  # each sample is its label, one-hot
    assert torch.allclose(soft.sum(1), torch.ones(4)) and not torch.equal(soft, torch.eye(4))
    assert torch.allclose(criterion(logits), torch.nn.functional.cross_entropy(logits, soft))
    plain, criterion = augmented(x, y, Plan(), np.random.default_rng(0))
    assert plain is x and torch.equal(criterion(logits), torch.nn.functional.cross_entropy(logits, y))


def test_weights_are_averaged_over_the_steps() -> None:
    model = torch.nn.Linear(2, 1, bias=False)
    average = WeightAverage(model)
    for value in (1.0, 2.0, 6.0):
        torch.nn.init.constant_(model.weight, value)
        average.add()
    average.store()
    assert torch.allclose(model.weight, torch.full((1, 2), 3.0))


def test_folds_keep_people_apart_and_cover_all(digits: Dataset) -> None:
    people = replace(digits, domain_train=np.arange(96) % 7)
    held = [outside for _, outside in folds(people, 3)]
    assert np.array_equal(np.sort(np.concatenate(held)), np.arange(96))
    assert people.domain_train is not None
    for inside, outside in folds(people, 3):
        assert not set(people.domain_train[inside]) & set(people.domain_train[outside])
    for inside, outside in folds(digits, 3):
        assert len(outside) == 32
        assert not set(inside) & set(outside)


def test_bytes_are_counted_as_a_trained_artifact_has_them(digits: Dataset, prepared: Prepared) -> None:
    config = replace(CONFIG, epochs=1)
    budgets = (Budget("small", 0.4),)
    for widths, chosen in ((DEFAULT_WIDTHS, budgets), ((4,), ())):
        model = train_model(digits, "mlp", config, widths, chosen, QUIET)
        gates = {point.name: point.assignment for point in model.points if point.name == "small"}
        # Scores and versions are written in more or fewer digits.
        assert abs(len(artifact.dumps(model)) - file_bytes(digits, prepared, widths, gates)) <= 64


def test_rows_are_collected_with_costs_relative_to_8_bits(tmp_path: Path) -> None:
    seed = {"seconds": {"fp32": 1800.0}, "fp32": 0.5, "w8a8": 0.6, "w4a4": 0.5, "w4a4 alone": 0.4, "assignments": {}}
    seed["costs"] = {"w8a8": [80, 1000], "w4a4": [40, 250]}
    (tmp_path / "seed-0.json").write_text(json.dumps(seed))
    other = {"rows": [{"point": "w4a4", "accuracy": 0.3}], "seconds": 1800.0}
    (tmp_path / "adabits@0.json").write_text(json.dumps(other))
    rows, hours = collect(tmp_path)
    assert hours == 1
    found = {(row["method"], row["point"]): (row["accuracy"], row["bytes"], row["bit_macs"]) for row in rows}
    assert found == {
        ("fp32", "fp32"): (0.5, None, None),
        ("supernet", "w8a8"): (0.6, 1, 1),
        ("supernet", "w4a4"): (0.5, 0.5, 0.25),
        ("alone", "w4a4"): (0.4, 0.5, 0.25),
        ("adabits", "w4a4"): (0.3, 0.5, 0.25),
    }


def test_what_was_trained_with_other_augmentation_is_kept_apart(digits: Dataset, tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    accuracy.add_settings(parser)
    folders = set()
    for options in ([], ["--rotation", "0.2"], ["--masking", "0.2"], ["--masking", "0.1"]):
        given = ["--data", "digits", "--model", "mlp", "--epochs", "2", "--cache", str(tmp_path), *options]
        args = parser.parse_args(given)
        folders.add(accuracy.cache_folder(args, digits))
        config = accuracy.train_config(args)
        assert (config.rotation, config.masking) == (args.rotation, args.masking)
        assert " ".join(options) in accuracy.command("accuracy", args)
    assert len(folders) == 4

"""Post-training baselines on a perceptron: exact where nothing is lost, and worse where bits are."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("torch")

from benchmarks import post_training
from benchmarks.baselines.given import Given, train
from caq.data import load
from caq.errors import MissingExtraError
from caq.supernet.train import TrainConfig

UNIFORM = ["w8a8", "w6a6", "w5a5", "w4a4", "w3a3", "w2a2"]


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Given:
    data = load("digits")
    data = replace(data, x_train=data.x_train[:600], y_train=data.y_train[:600])
    folder = tmp_path_factory.mktemp("float")
    return train(data, "mlp", TrainConfig(epochs=5, seed=1), folder / "float.pt")


def test_a_method_is_measured_once_and_kept(given: Given, tmp_path: Path) -> None:
    found = post_training.rows(given, "fp32", tmp_path)
    (row,) = found["rows"]
    assert row | {"accuracy": 0} == {
        "method": "fp32",
        "seed": 1,
        "point": "fp32",
        "accuracy": 0,
        "bytes": None,
        "bit_macs": None,
    }
    assert row["accuracy"] > 0.85
    kept = tmp_path / "post-training-fp32-1.json"
    kept.write_text(json.dumps({"rows": [], "seconds": 0}))
    assert post_training.rows(given, "fp32", tmp_path)["rows"] == []


@pytest.mark.parametrize("method", ["slicing", "torchao", "brevitas"])
def test_eight_bits_keep_the_accuracy_and_two_lose_it(given: Given, method: str, tmp_path: Path) -> None:
    if method != "slicing":
        pytest.importorskip(method)
    rows = post_training.rows(given, method, tmp_path)["rows"]
    assert [row["point"] for row in rows] == UNIFORM
    float_accuracy = given.accuracy(given.network)
    assert rows[0]["accuracy"] == pytest.approx(float_accuracy, abs=0.01)
    assert rows[-1]["accuracy"] < rows[0]["accuracy"]
    costs = [(row["bytes"], row["bit_macs"]) for row in rows]
    assert costs[0] == (1, 1) and costs == sorted(costs, reverse=True)


def test_a_missing_package_names_the_extra(given: Given, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(post_training, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'caq\[baselines\]'"):
        post_training.rows(given, "torchao", tmp_path)

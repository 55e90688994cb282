"""Operating points that learn: gates chosen on the way, and their assignments trained in the last epochs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from caq import artifact
from caq.costs import Budget
from caq.data import Dataset
from caq.errors import ConfigError
from caq.graph import Assignment
from caq.supernet.conversion import convert
from caq.supernet.network import Supernet
from caq.supernet.pipeline import Prepared, prepare, train_model
from caq.supernet.points import learn_points, train_gated
from caq.supernet.train import Outputs, TrainConfig

QUIET = Outputs(quiet=True)
CONFIG = TrainConfig(epochs=4, batch_size=32, seed=1)
BUDGETS = (Budget("half", 0.5), Budget("small", 0.1))


def made(digits: Dataset) -> tuple[Supernet, Prepared]:
    prepared = prepare(digits, "mlp", 0)
    return convert(prepared.network, prepared.example(), (2, 4, 8)), prepared


def test_points_learn_from_every_batch_of_their_epochs(digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[tuple[Assignment, int | None]] = []
    original = Supernet.forward

    def forward(self: Supernet, x: Tensor) -> Tensor:
        if self.training and torch.is_grad_enabled() and self.layers[0].mix is None:
            computed.append((tuple(layer.widths for layer in self.layers), self.layers[0].row))
        return original(self, x)

    monkeypatch.setattr(Supernet, "forward", forward)
    supernet, prepared = made(digits)
    points = train_gated(supernet, prepared.train, CONFIG, BUDGETS, QUIET)
    batches = 2 * len(list(prepared.train.epoch(CONFIG.batch_size, 0, 0)))
    of_points = [one for one in computed if one[1] is not None]
    assert len(of_points) == batches and set(of_points) == {(p.assignment, p.row) for p in points}
    assert all(row is None for _, row in computed[: 3 * batches])
    assert computed.count((supernet.graph.uniform(8), None)) == 2 * batches


def test_points_have_rows_of_their_own(digits: Dataset) -> None:
    supernet, prepared = made(digits)
    points = train_gated(supernet, prepared.train, CONFIG, BUDGETS, QUIET)
    assert [(p.name, p.row) for p in points] == [("half", 3), ("small", 4)]
    for layer, pair in zip(supernet.layers, points[1].assignment, strict=True):
        if layer.norm is not None:
            assert layer.norm.gamma.shape[0] == layer.norm.mean.shape[0] == 5
            assert not torch.equal(layer.norm.gamma[4], layer.norm.gamma[supernet.widths.index(pair.weight)])


def test_without_epochs_of_their_own_rows_are_those_of_the_widths(digits: Dataset, tmp_path: Path) -> None:
    outputs = Outputs(tmp_path / "c.pt", quiet=True)
    supernet, prepared = made(digits)
    points = train_gated(supernet, prepared.train, replace(CONFIG, epochs=1), BUDGETS, outputs)
    again, _ = made(digits)
    train_gated(again, prepared.train, replace(CONFIG, epochs=1), (), outputs)
    assert learn_points(again, prepared.train, CONFIG, BUDGETS, quiet=True) == points
    for layer, other, pair in zip(supernet.layers, again.layers, points[0].assignment, strict=True):
        assert torch.equal(layer.weight, other.weight)
        if layer.norm is not None:
            assert torch.equal(layer.norm.gamma[3], layer.norm.gamma[supernet.widths.index(pair.weight)])
    assert [path.name for path in tmp_path.iterdir()] == ["c.pt"]


class Killed(Exception):
    pass


def test_a_run_that_dies_among_the_points_is_resumed(
    digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trained(outputs: Outputs) -> bytes:
        return artifact.dumps(train_model(digits, "mlp", CONFIG, (2, 4, 8), BUDGETS, outputs))

    whole, outputs = trained(QUIET), Outputs(tmp_path / "c.pt", quiet=True)
    original, steps = torch.optim.AdamW.step, 0

    def dying(self: torch.optim.AdamW, closure: None = None) -> None:
        nonlocal steps
        steps += 1
        if steps == 2 * 13 * 3 + 13 * 4 + 5:  # in the last of four epochs of thirteen batches of three and four steps
            raise Killed
        original(self, closure)

    monkeypatch.setattr(torch.optim.AdamW, "step", dying)
    with pytest.raises(Killed):
        trained(outputs)
    monkeypatch.undo()
    done = {path.name: torch.load(path, weights_only=True)["epochs"] for path in tmp_path.iterdir()}
    assert done == {"c.pt": 2, "c-points.pt": 1}
    assert trained(outputs) == whole


@pytest.mark.parametrize("bad", [{"point_share": -0.1}, {"point_share": 1.0}, {"point_share": 2.0}])
def test_bad_settings(bad: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="point_share"):
        TrainConfig(**bad)  # type: ignore[arg-type]


@pytest.mark.parametrize(("epochs", "own"), [(1, 0), (2, 1), (3, 1), (6, 3), (13, 6)])
def test_how_many_epochs_are_the_points(epochs: int, own: int) -> None:
    assert TrainConfig(epochs=epochs).point_epochs == own

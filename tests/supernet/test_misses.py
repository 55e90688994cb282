"""Misses counted in training: they change nothing of what is trained, and survive a restart."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from caq import artifact
from caq.calibration.making import CoreConfig
from caq.data import Dataset, load
from caq.errors import ConfigError, TrainingError
from caq.supernet import convert
from caq.supernet.misses import LOGS, MissLog
from caq.supernet.pipeline import prepare, train_model
from caq.supernet.train import Outputs, TrainConfig, predict, reestimate_norms, train_supernet

CONFIG = TrainConfig(epochs=3, batch_size=32, seed=5)
CORE = CoreConfig(size=40)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    data = load("digits")
    part = {name: getattr(data, name)[:300] for name in ("x_train", "y_train")}
    return replace(data, **part, x_test=data.x_test[:50], y_test=data.y_test[:50])


def trained(data: Dataset, core: CoreConfig | None, outputs: Outputs = Outputs(quiet=True)) -> artifact.Model:  # noqa: B008
    return train_model(data, "resnet8", CONFIG, (2, 8), (), outputs, core=core)


@pytest.fixture(scope="module")
def whole(digits: Dataset) -> artifact.Model:
    return trained(digits, CORE)


def test_a_core_set_changes_nothing_of_the_model(digits: Dataset, whole: artifact.Model) -> None:
    assert whole.core is not None and len(whole.core.y) == 40 and set(whole.core.y.tolist()) == set(range(10))
    assert artifact.dumps(whole.replace(core=None)) == artifact.dumps(trained(digits, None))
    assert whole.core.misses.max() < CONFIG.epochs
    codes = whole.encode(digits.x_train)[0].reshape(len(digits.x_train), -1).tolist()
    assert all(sample in codes for sample in whole.core.x.reshape(40, -1).tolist())


def test_counting_goes_on_after_a_restart(
    digits: Dataset, whole: artifact.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(Exception):
        pass

    after = MissLog.after

    def dying(self: MissLog, epoch: int, *rest: object) -> None:
        if epoch == 2:
            raise Killed
        after(self, epoch, *rest)  # type: ignore[arg-type]

    outputs = Outputs(tmp_path / "c.pt", quiet=True)
    monkeypatch.setattr(MissLog, "after", dying)
    with pytest.raises(Killed):
        trained(digits, CORE, outputs)
    monkeypatch.undo()
    assert artifact.dumps(trained(digits, CORE, outputs)) == artifact.dumps(whole)


def test_a_checkpoint_without_misses_is_refused(digits: Dataset, tmp_path: Path) -> None:
    outputs = Outputs(tmp_path / "c.pt", quiet=True)
    trained(digits, None, outputs)
    with pytest.raises(TrainingError, match="nothing counted misses"):
        trained(digits, CORE, outputs)


def test_a_log_is_what_each_width_gets_right(digits: Dataset) -> None:
    prepared = prepare(digits, "resnet8", 0)
    supernet = convert(prepared.network, prepared.example(), (2, 8))
    log, seen = MissLog(), []

    class Both:
        """Looks at what the log looks at."""

        def after(self, epoch: int, epochs: int, net: object, train: object) -> None:
            log.after(epoch, epochs, supernet, prepared.train)
            seen.append(log.state()["before"].clone())

        state, load_state = log.state, log.load_state

    train_supernet(supernet, prepared.train, CONFIG, Outputs(quiet=True, watch=Both()))
    for i, width in enumerate((2, 8)):
        reestimate_norms(supernet, prepared.train, supernet.graph.uniform(width))
        correct = predict(supernet, prepared.train).argmax(1) == prepared.train.labels
        assert torch.equal(correct, seen[-1][i])
    lost = sum((a & ~b).int() for a, b in pairwise(seen))
    assert torch.equal(lost.int(), log.state()["misses"])


def test_logs_are_spread_over_the_training_and_the_last_epoch_has_one() -> None:
    for epochs in (1, 7, 10, 25, 50, 99):
        every = -(-epochs // LOGS)
        logged = [e for e in range(epochs) if not (epochs - 1 - e) % every]
        assert logged[-1] == epochs - 1 and len(logged) <= LOGS and (epochs < LOGS or len(logged) > LOGS // 2)


def test_a_core_set_that_cannot_be_drawn_is_refused_before_training(
    digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("caq.supernet.pipeline.train_gated", lambda *_: pytest.fail("it was trained"))
    with pytest.raises(ConfigError, match="301"):
        trained(digits, CoreConfig(size=301))
    with pytest.raises(ConfigError, match="reconstruct"):
        train_model(digits, "autoencoder", CONFIG, core=CORE)


def test_nothing_is_counted_yet() -> None:
    log = MissLog()
    assert log.state() == {}
    log.load_state({})
    assert log.state() == {}

"""The README's code runs as it stands there, with a shorter training."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor, nn

import caq

README = Path(__file__).parent.parent / "README.md"


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README.read_text(), re.S)


class MyNetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=4)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(256, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.conv(x)).relu().flatten(1))  # type: ignore[no-any-return]


def test_your_own_network_in_five_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    y = np.arange(96) % 3
    x = (rng.integers(0, 100, (96, 32, 32, 3)) + 70 * y[:, None, None, None]).astype(np.uint8)
    np.savez("mine.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    code = next(block for block in blocks() if "convert(" in block)
    shorter = code.replace("epochs=30", "epochs=30, batch_size=32")
    assert shorter != code
    names = {"MyNetwork": MyNetwork}
    exec(compile(shorter, str(README), "exec"), names)
    assert (tmp_path / "mine.caq").stat().st_size > 0
    assert caq.load("mine.caq").points[0].score > 0.6


def test_the_ten_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from caq import artifact
    from caq.data import load
    from caq.supernet.pipeline import train_model
    from caq.supernet.train import Outputs, TrainConfig

    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    model = train_model(load("digits"), "mlp", TrainConfig(epochs=1), outputs=Outputs(quiet=True))
    artifact.save(model, "demo/digits.caq")
    exec(compile(next(block for block in blocks() if "rt.history" in block), str(README), "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 3
    assert printed[0].split()[0] in {p.name for p in model.points}
